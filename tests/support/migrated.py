"""Databases with the tables of a daemon, for users with that daemon's rights and no more."""

from __future__ import annotations

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from notary.storage.open import migrate_database
from notary.storage.sql.migrate import SERVER, SIGNER
from tests.support.databases import SERVER_RIGHTS, SIGNER_RIGHTS, DatabaseServer

SERVICES = {
    "server": (SERVER, SERVER_RIGHTS, ["tuf_files", "changefeed"]),
    "signer": (SIGNER, SIGNER_RIGHTS, ["private_keys"]),
}
"""By the daemon: its tables, the rights that its user has in these tests, and the tables that it writes to."""


def migrated_database(server: DatabaseServer, service: str) -> tuple[str, str]:
    """A new database with the tables of a service: its name, and the ``db_url`` of a user with that one's rights."""
    made: tuple[str, str] = pytest_twisted.blockon(Deferred.fromCoroutine(migrate_new_database(server, service)))
    return made


async def migrate_new_database(server: DatabaseServer, service: str) -> tuple[str, str]:
    """The same for a test that is a coroutine."""
    tables, rights, _ = SERVICES[service]
    database = server.database()
    await migrate_database(server.backend, server.db_url(database), tables, reactor)
    return database, server.db_url(database, server.user(database, rights))
