"""``check-database`` says what kind of database a daemon has, and what its settings promise.

Rules of this module: this is only the command line; the dialects of :mod:`notary.storage.sql` ask the database. Nothing
is changed, and the database need not have any tables.
"""

from __future__ import annotations

from notary.admin.command import Status, command
from notary.admin.session import Session
from notary.storage.open import pool_of, survey_database


@command("check-database")
async def check_database(session: Session) -> int:
    """Say what kind of database this is, and what that promises.

    Prints what the database says of replication, of its settings for writing to the disk, and of reading on several
    nodes, each with what follows from it. The exit status is 1 if something acknowledged may be lost, if reads may be
    stale, or if the service was not tried with such a database.
    """
    config = session.config
    storage = session.storage(config)
    found = await survey_database(storage.backend, storage.db_url, session.reactor, pool_of(storage, read_only=True))
    with session.out.table("What", "Value", "Risk", "What it promises") as add:
        for fact in found:
            record = {"what": fact.subject, "value": fact.value, "risk": fact.risk, "promise": fact.promise}
            add([fact.subject, fact.value, "RISK" if fact.risk else "-", fact.promise], record)
    return Status.FOUND if any(fact.risk for fact in found) else Status.OK
