"""``migrate`` brings the tables of a daemon's database to the schema of this release.

Rules of this module: this is only the command line; :mod:`notary.storage.sql.migrate` does the work.
"""

from __future__ import annotations

import click

from notary.admin.command import Status, command
from notary.admin.session import Session
from notary.config import ServerConfig
from notary.storage.open import migrate_database, migration_plan
from notary.storage.sql.migrate import SERVER, SIGNER


@command("migrate")
@click.option("--dry-run", is_flag=True, help="Change nothing; print the SQL that would be run.")
@click.option("--resume", is_flag=True, help="Run an interrupted migration again from its beginning, then continue.")
async def migrate(session: Session, *, dry_run: bool, resume: bool) -> int:
    """Bring a database to the schema of this release.

    The command creates the tables of an empty database, and upgrades those of any Notary from 0.3 on. It may be run
    repeatedly, several times at once, and while the daemons serve. The database user needs the right to create and
    alter tables, which the user of a daemon does not need.
    """
    config = session.config
    service = SERVER if isinstance(config, ServerConfig) else SIGNER
    storage = session.storage(config, must_exist=dry_run)
    if dry_run:
        steps = await migration_plan(storage.backend, storage.db_url, service, session.reactor, resume=resume)
        for step in steps:
            text = "".join(f"{statement};\n" for statement in step.statements)
            session.out.line(f"-- {step.what}", {"step": step.what, "sql": text})
            if not session.out.as_json:
                for line in text.splitlines():
                    session.out.line(line, {})
        session.out.say(f"steps to take: {len(steps)}" if steps else "there is nothing to do")
        return Status.OK
    done = await migrate_database(
        storage.backend, storage.db_url, service, session.reactor, resume=resume, report=session.out.say
    )
    session.out.say(f"done, steps: {done}" if done else "there was nothing to do")
    return Status.OK
