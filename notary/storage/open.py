"""Opening the stores: from ``storage.backend`` and ``storage.db_url`` to an open store of each port."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from notary.config import Storage
from notary.config.backends import BACKENDS
from notary.errors import ConfigError, StorageFailed
from notary.storage import KeyStore, MetadataStore
from notary.storage.memory import MemoryKeyStore, MemoryMetadataStore
from notary.storage.operators import Inventory, KeyInventory
from notary.storage.sql.backends import DIALECTS
from notary.storage.sql.cursor import Cursor
from notary.storage.sql.database import Database
from notary.storage.sql.dialect import Dialect, PoolSettings
from notary.storage.sql.inventory import SQLInventory
from notary.storage.sql.key_inventory import SQLKeyInventory
from notary.storage.sql.keys import SQLKeyStore
from notary.storage.sql.metadata import SQLMetadataStore
from notary.storage.sql.migrate import SERVER, SIGNER, Service, Step, migrate, plan, set_up
from notary.storage.sql.survey import Fact, risks
from notary.work.machine import MACHINE, Machine
from notary.work.reactor import Reactor
from notary.work.usage import PoolUsage

_T = TypeVar("_T")

_log: Final = Logger()

_POOL: Final = PoolSettings()

_PATIENT: Final = PoolSettings(connections=1, query_timeout=86_400.0)
"""For migrations: creating an index of a big table takes long."""


def pool_of(storage: Storage, usage: PoolUsage | None = None, *, read_only: bool = False) -> PoolSettings:
    """Return the pool settings of a daemon's configuration; the pool keeps its figures in ``usage``.

    With ``read_only``, the store is opened for reading only.
    """
    return PoolSettings(
        connections=storage.connections,
        connect_timeout=storage.connect_timeout,
        query_timeout=storage.query_timeout,
        connection_lifetime=storage.connection_lifetime,
        usage=usage,
        read_only=read_only,
    )


async def open_database(
    dialect: Dialect,
    db_url: str,
    service: Service,
    reactor: Reactor,
    pool: PoolSettings = _POOL,
    machine: Machine = MACHINE,
) -> Database:
    """Connect to the database and check that it has the tables of ``service``.

    Raises ConfigError if the driver is missing or ``db_url`` cannot be used, StorageFailed if the database cannot.
    """
    database = Database(dialect, db_url, reactor, pool, machine)
    try:
        warnings = await _on_tables(database, partial(set_up, read_only=pool.read_only), service)
    except BaseException:
        await database.close()
        raise
    for warning in warnings:
        _log.warn("{warning}", warning=warning)
    with suppress(StorageFailed):  # as where a server refuses the question: that is no reason not to start
        found = risks(await database.read(_survey))
        if found and not pool.read_only:
            _log.warn("{found}; `notary-admin check-database` says more", found=found)
    return database


def _survey(cursor: Cursor) -> Sequence[Fact]:
    return cursor.dialect.survey(cursor.all)


async def survey_database(backend: str, db_url: str, reactor: Reactor, pool: PoolSettings) -> Sequence[Fact]:
    """Return what a database says of its kind and its settings. The database need not have the tables of a service.

    Raises ConfigError and StorageFailed.
    """
    database = Database(_database_of(backend), db_url, reactor, pool)
    try:
        return await database.read(_survey)
    except StorageFailed as error:
        raise type(error)(f"storage.db_url: {error}") from error
    finally:
        await database.close()


async def migrate_database(
    backend: str,
    db_url: str,
    service: Service,
    reactor: Reactor,
    *,
    resume: bool = False,
    report: Callable[[str], None] = lambda _line: None,
) -> int:
    """Bring the tables of ``service`` to their newest form; return the number of steps that were needed.

    ``backend`` and ``db_url`` as for :func:`open_metadata_store`, ``resume`` and ``report`` as for
    :func:`notary.storage.sql.migrate.migrate`; ``report`` is called in the reactor's thread. Raises ConfigError and
    StorageFailed.
    """

    def pass_on(line: str) -> None:
        reactor.callFromThread(report, line)

    return await _on_tables_once(backend, db_url, service, reactor, partial(migrate, resume=resume, report=pass_on), 0)


async def migration_plan(
    backend: str, db_url: str, service: Service, reactor: Reactor, *, resume: bool = False
) -> Sequence[Step]:
    """Return the steps that :func:`migrate_database` would take, and raise what it would raise."""
    return await _on_tables_once(backend, db_url, service, reactor, partial(plan, resume=resume), [])


def open_metadata_store(
    backend: str, db_url: str, reactor: Reactor, pool: PoolSettings = _POOL, machine: Machine = MACHINE
) -> Deferred[MetadataStore]:
    """Open the server's store.

    ``backend`` and ``db_url`` are the values of ``storage.backend`` and ``storage.db_url``, a file path made absolute.
    Raises ConfigError for an unknown backend, a driver that is not installed or a ``db_url`` that cannot be used,
    StorageFailed for a database that cannot be reached, or whose tables are not ours, too new or half migrated.
    A SQLite file that is new or empty gets its tables.
    """

    async def connect() -> MetadataStore:
        dialect = dialect_of(backend)
        if dialect is None:
            return MemoryMetadataStore()
        return SQLMetadataStore(await open_database(dialect, db_url, SERVER, reactor, pool, machine))

    return Deferred.fromCoroutine(connect())


def open_key_store(
    backend: str, db_url: str, reactor: Reactor, pool: PoolSettings = _POOL, machine: Machine = MACHINE
) -> Deferred[KeyStore]:
    """Open the signer's store; arguments and errors as for :func:`open_metadata_store`."""

    async def connect() -> KeyStore:
        dialect = dialect_of(backend)
        if dialect is None:
            return MemoryKeyStore()
        return SQLKeyStore(await open_database(dialect, db_url, SIGNER, reactor, pool, machine))

    return Deferred.fromCoroutine(connect())


def open_inventory(
    backend: str, db_url: str, reactor: Reactor, pool: PoolSettings, machine: Machine = MACHINE
) -> Deferred[Inventory]:
    """Open the server's store for an operator; arguments and errors as for :func:`open_metadata_store`."""

    async def connect() -> Inventory:
        return SQLInventory(await open_database(_database_of(backend), db_url, SERVER, reactor, pool, machine))

    return Deferred.fromCoroutine(connect())


def open_key_inventory(
    backend: str, db_url: str, reactor: Reactor, pool: PoolSettings, machine: Machine = MACHINE
) -> Deferred[KeyInventory]:
    """Open the signer's store for an operator; arguments and errors as for :func:`open_metadata_store`."""

    async def connect() -> KeyInventory:
        return SQLKeyInventory(await open_database(_database_of(backend), db_url, SIGNER, reactor, pool, machine))

    return Deferred.fromCoroutine(connect())


async def _on_tables_once(
    backend: str,
    db_url: str,
    service: Service,
    reactor: Reactor,
    work: Callable[[Any, Dialect, Service], _T],
    in_memory: _T,
) -> _T:
    """Run ``work`` on the tables of a database; return ``in_memory`` for a backend without tables."""
    dialect = dialect_of(backend)
    if dialect is None:
        return in_memory
    database = Database(dialect, db_url, reactor, _PATIENT)
    try:
        return await _on_tables(database, work, service)
    finally:
        await database.close()


async def _on_tables(database: Database, work: Callable[[Any, Dialect, Service], _T], service: Service) -> _T:
    try:
        return await database.on_connection(work, database.dialect, service)
    except StorageFailed as error:
        raise type(error)(f"storage.db_url: {error}") from error


def dialect_of(backend: str) -> Dialect | None:
    """Return the row of a backend; None for one without a database. Raises ConfigError for an unknown name."""
    try:
        known = BACKENDS[backend]
    except KeyError:
        raise ConfigError(f'storage.backend: "{backend}": expected one of {", ".join(sorted(BACKENDS))}') from None
    return DIALECTS[backend] if known.persistent else None


def _database_of(backend: str) -> Dialect:
    """Return the row of a backend that keeps its data. Raises ConfigError for any other."""
    dialect = dialect_of(backend)
    if dialect is None:
        raise ConfigError(f'storage.backend: "{backend}" keeps no data; expected one of {", ".join(sorted(DIALECTS))}')
    return dialect
