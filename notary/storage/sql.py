"""The way into both storage ports: from ``storage.backend`` and ``storage.db_url`` to an open store."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from notary.errors import ConfigError, StorageFailed
from notary.storage import KeyStore, MetadataStore
from notary.storage.dialect import DIALECTS, Dialect
from notary.storage.keys import SQLKeyStore
from notary.storage.memory import MemoryKeyStore, MemoryMetadataStore
from notary.storage.metadata import SQLMetadataStore
from notary.storage.migrate import SERVER, SIGNER, Service, set_up
from notary.storage.pool import Database, Reactor


async def open_database(dialect: Dialect, db_url: str, service: Service, reactor: Reactor) -> Database:
    """Connect to the database and see that the tables of ``service`` are there.

    Raises ConfigError if the driver is missing or ``db_url`` cannot be used, StorageFailed if the database cannot.
    """
    database = Database(dialect, db_url, reactor)
    try:
        await database.on_connection(set_up, dialect, service)
    except BaseException as error:
        await database.close()
        if isinstance(error, StorageFailed):
            raise StorageFailed(f"storage.db_url: {error}") from error
        raise
    return database


def open_metadata_store(backend: str, db_url: str, reactor: Reactor) -> Deferred[MetadataStore]:
    """Open the server's store.

    ``backend`` and ``db_url`` are the values of ``storage.backend`` and ``storage.db_url``, a file path made absolute.
    Raises ConfigError for an unknown backend, a driver that is not installed or a ``db_url`` that cannot be used,
    StorageFailed for a database that cannot be reached, or whose tables are not ours, too new or half migrated.
    A SQLite file that is new or empty gets its tables.
    """

    async def connect() -> MetadataStore:
        if backend == "memory":
            return MemoryMetadataStore(reactor)
        return SQLMetadataStore(await open_database(dialect_of(backend), db_url, SERVER, reactor))

    return Deferred.fromCoroutine(connect())


def open_key_store(backend: str, db_url: str, reactor: Reactor) -> Deferred[KeyStore]:
    """Open the signer's store; arguments and errors as for :func:`open_metadata_store`."""

    async def connect() -> KeyStore:
        if backend == "memory":
            return MemoryKeyStore()
        return SQLKeyStore(await open_database(dialect_of(backend), db_url, SIGNER, reactor))

    return Deferred.fromCoroutine(connect())


def dialect_of(backend: str) -> Dialect:
    """The row of a backend. Raises ConfigError if there is none."""
    try:
        return DIALECTS[backend]
    except KeyError:
        known = ", ".join(sorted(["memory", *DIALECTS]))
        raise ConfigError(f'storage.backend: "{backend}": expected one of {known}') from None
