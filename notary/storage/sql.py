"""Both storage ports on a SQL database, through ``twisted.enterprise.adbapi``.

Rules of this module: one plain function a transaction, which takes a :class:`Cursor` and values and runs in a thread of
the pool; it never touches the reactor, and what it raises rolls the transaction back. The SQL is what MySQL, PostgreSQL
and SQLite share, with ``?`` for each parameter; what they do not share is in ``dialect.py``. Tables and columns are
those of docs/protocol.md, section 5. Rows with ``deleted_at`` set do not exist for us, but they occupy their unique
keys: they are removed where we need the place.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import resources
from typing import Any, Concatenate, Final, Literal, ParamSpec, Protocol, TypeVar, cast

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred, DeferredSemaphore, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from notary.errors import ConfigError, KeyNotFound, NotFound, OldVersion, StorageFailed
from notary.storage import Change, KeyStore, MetadataStore, Stored, StoredKey, Update
from notary.storage.dialect import DIALECTS, Dialect
from notary.storage.memory import MemoryKeyStore, MemoryMetadataStore
from notary.tuf.model import TIMESTAMP, Gun, RoleName

_P = ParamSpec("_P")
_T = TypeVar("_T")
Row = Sequence[Any]

_INT32_MAX: Final = 2**31 - 1
"""The largest value of the integer columns."""

_INT64_MAX: Final = 2**63 - 1
"""The largest integer that every driver takes as a parameter."""


class Reactor(Protocol):
    """What a store needs of the reactor itself; ``adbapi`` also starts and stops with it (IReactorCore)."""

    def seconds(self) -> float:
        """The time in seconds since the epoch."""
        ...

    def callFromThread(self, call: Callable[..., object], *args: object, **kwargs: object) -> object:
        """Run ``call`` in the reactor's thread."""
        ...


# -- the pool ---------------------------------------------------------------------------------------------------------


class Duplicate(StorageFailed):
    """A unique key was violated."""


class Cursor:
    """The statements of one transaction; each method says how many rows it expects."""

    def __init__(self, transaction: Any, dialect: Dialect) -> None:
        self._transaction = transaction
        self._placeholder = dialect.placeholder

    def run(self, sql: str, *values: object) -> int:
        """Run a statement; the number of rows it changed."""
        self._transaction.execute(sql.replace("?", self._placeholder), values)
        count: int = self._transaction.rowcount
        return count

    def all(self, sql: str, *values: object) -> Sequence[Row]:
        """Run a query; every row."""
        self.run(sql, *values)
        rows: Sequence[Row] = self._transaction.fetchall()
        return rows

    def first(self, sql: str, *values: object) -> Row | None:
        """Run a query that gives one row or none."""
        rows = self.all(sql, *values)
        return rows[0] if rows else None


class Database:
    """A pool of connections to one database, from :func:`open_database` to :meth:`close`.

    A transaction that was begun runs to its end, whatever becomes of the Deferred that waits for it.
    """

    def __init__(self, dialect: Dialect, db_url: str, reactor: Reactor) -> None:
        try:
            self._driver: Any = importlib.import_module(dialect.driver)
        except ImportError as error:
            raise ConfigError(
                f'storage.backend: "{dialect.name}": the Python module {dialect.driver} is missing; install '
                f"{dialect.needs}"
            ) from error
        self.dialect: Final = dialect
        self._reactor = reactor
        self._pool: Any = adbapi.ConnectionPool(
            dialect.driver,
            **dialect.arguments(db_url),
            cp_reactor=reactor,
            cp_min=1,
            cp_max=dialect.connections,
            cp_openfun=self._prepare,
        )
        self._turns = DeferredSemaphore(dialect.writers)
        self._under_way = 0
        self._ending: Deferred[None] | None = None
        self._pool.start()

    def now(self) -> datetime:
        """The time, aware, UTC."""
        return datetime.fromtimestamp(self._reactor.seconds(), UTC)

    def read(self, work: Callable[Concatenate[Cursor, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        """Run ``work`` in a transaction that sees one moment. Raises StorageFailed, and what ``work`` raises."""
        return self._run(lambda: self._begin(self.dialect.begin_read, lambda cursor: work(cursor, *args, **kwargs)))

    def write(self, work: Callable[Concatenate[Cursor, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        """Run ``work`` in a transaction that may write. Raises StorageFailed, and what ``work`` raises."""
        return self._run(
            lambda: self._turns.run(self._begin, self.dialect.begin_write, lambda cursor: work(cursor, *args, **kwargs))
        )

    def set_up(self, service: Service) -> Deferred[None]:
        """See that the tables of ``service`` are there and fit; create them if the database is ours alone and empty."""
        return self._run(lambda: self._pool.runWithConnection(_set_up, self.dialect, service))

    def close(self) -> Deferred[None]:
        """Wait for the work that is under way, then end connections and threads. May be called again."""
        if self._ending is None:
            self._ending = Deferred()
            self._ending.addCallback(self._disconnect)
            self._end_if_idle()
        waiter: Deferred[None] = Deferred()

        def pass_on(result: Failure | None) -> None:
            waiter.callback(result)

        self._ending.addBoth(pass_on)
        return waiter

    def _end_if_idle(self) -> None:
        if self._ending is not None and not self._under_way:
            self._ending.callback(None)

    def _disconnect(self, _: None) -> Deferred[None]:
        # adbapi would close the connections in the reactor's thread, and SQLite then copies its whole log.
        reactor = cast("IReactorFromThreads", self._reactor)
        done = deferToThreadPool(reactor, self._pool.threadpool, _close_all, self._pool.connections)

        def stop(result: Failure | None) -> Failure | None:
            self._pool.close()
            return result

        return done.addBoth(stop).addErrback(self._translate)

    def _begin(self, begin: str, work: Callable[[Cursor], _T]) -> Deferred[_T]:
        def interaction(transaction: Any) -> _T:
            transaction.execute(begin)
            return work(Cursor(transaction, self.dialect))

        return cast("Deferred[_T]", self._pool.runInteraction(interaction))

    def _run(self, start: Callable[[], Deferred[_T]]) -> Deferred[_T]:
        """Count what is under way, translate the driver's errors, and keep the work from being cancelled half-way."""
        if self._ending is not None:
            return fail(StorageFailed("the store is closed"))
        waiter: Deferred[_T] = Deferred()
        self._under_way += 1

        def done(result: _T | Failure) -> _T | Failure:
            self._under_way -= 1
            self._end_if_idle()
            return result

        start().addErrback(self._translate).addBoth(done).addCallbacks(waiter.callback, waiter.errback)
        return waiter

    def _translate(self, failure: Failure) -> None:
        failure.trap(self._driver.Error)
        error = cast("Exception", failure.value)
        kind = Duplicate if self.dialect.duplicate(error) else StorageFailed
        raise kind(self.dialect.explain(error)) from error

    def _prepare(self, connection: Any) -> None:
        try:
            self.dialect.prepare(connection)
        except BaseException:
            connection.close()  # adbapi forgets a connection that it could not prepare
            raise


def _close_all(connections: dict[object, Any]) -> None:
    while connections:
        connections.popitem()[1].close()


async def open_database(dialect: Dialect, db_url: str, service: Service, reactor: Reactor) -> Database:
    """Connect to the database and see that the tables of ``service`` are there.

    Raises ConfigError if the driver is missing or ``db_url`` cannot be used, StorageFailed if the database cannot.
    """
    database = Database(dialect, db_url, reactor)
    try:
        await database.set_up(service)
    except BaseException as error:
        await database.close()
        if isinstance(error, StorageFailed):
            raise StorageFailed(f"storage.db_url: {error}") from error
        raise
    return database


# -- the schema -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Service:
    """Whose tables: ``folder`` is that of ``schema/<backend>/``; ``tables`` the columns we use, main table first."""

    folder: str
    tables: Mapping[str, str]


_STATE: Final = "schema_migrations"
"""golang-migrate's table: one row, the number of the last migration and whether it broke off."""

SERVER: Final = Service(
    "server",
    {
        "tuf_files": "created_at, updated_at, deleted_at, gun, role, version, sha256, data",
        "changefeed": "id, created_at, gun, version, sha256, category",
    },
)
SIGNER: Final = Service(
    "signer",
    {
        "private_keys": "id, created_at, updated_at, deleted_at, key_id, encryption_alg, keywrap_alg, algorithm, "
        "passphrase_alias, public, private, gun, role, last_used"
    },
)


def _migrations(dialect: Dialect, service: Service) -> Mapping[int, Sequence[str]]:
    """The statements of each numbered file of a service, in order. A statement ends with ``;`` at the end of a line."""
    folder = resources.files("notary.storage") / "schema" / dialect.name / service.folder
    files = {int(file.name.split("_")[0]): file for file in folder.iterdir() if file.name.endswith(".up.sql")}
    found = {}
    for number in sorted(files):
        text = re.sub(r"(?m)^\s*--.*\n", "", files[number].read_text("utf-8"))
        found[number] = [statement for statement in re.split(r";\s*(?:\n|\Z)", text) if statement.strip()]
    return found


def _set_up(connection: Any, dialect: Dialect, service: Service) -> None:
    if dialect.embedded:
        dialect.embedded(connection)
    transaction = connection.cursor()
    transaction.execute(dialect.begin_write if dialect.embedded else dialect.begin_read)
    cursor = Cursor(transaction, dialect)
    migrations = _migrations(dialect, service)
    tables = {name for (name,) in cursor.all(dialect.tables)}
    if not tables and dialect.embedded:
        _create(cursor, migrations)
    else:
        _check(cursor, tables, service, max(migrations))
    for table, columns in service.tables.items():
        cursor.all(f"SELECT {columns} FROM {table} WHERE 1 = 0")  # noqa: S608  # both are constants above


def _create(cursor: Cursor, migrations: Mapping[int, Sequence[str]]) -> None:
    """Run every migration. The caller's transaction makes it all or nothing, so the state is never dirty."""
    for statements in migrations.values():
        for statement in statements:
            cursor.run(statement)
    cursor.run(f"CREATE TABLE {_STATE} (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)")
    cursor.run(f"INSERT INTO {_STATE} (version, dirty) VALUES (?, ?)", max(migrations), False)  # noqa: S608


def _check(cursor: Cursor, tables: Collection[str], service: Service, newest: int) -> None:
    """Refuse a database that we would misread. One without any recorded state is judged by its columns alone."""
    main = next(iter(service.tables))
    if main not in tables:
        raise StorageFailed(
            f"the database has tables, but not the {service.folder}'s ({main}): give each daemon a database of its own"
        )
    state = cursor.first(f"SELECT version, dirty FROM {_STATE}") if _STATE in tables else None  # noqa: S608
    if state is None:
        return
    version, dirty = state
    if dirty:
        raise StorageFailed(
            f"migration {version} of the database broke off: restore the database from a backup, or finish that "
            f"migration by hand and set dirty to false in {_STATE}"
        )
    if version > newest:
        raise StorageFailed(
            f"the database is at schema version {version}, made by a newer release; this one knows version {newest}: "
            "run the newer release, or restore a backup from before the upgrade"
        )
    if version < newest:
        raise StorageFailed(
            f"the database is at schema version {version}, and version {newest} is needed: migrate it first, or "
            "name another one"
        )


def _insert(cursor: Cursor, table: str, values: Mapping[str, object]) -> None:
    """Insert a row; table and columns are always written out in this module."""
    marks = ", ".join("?" * len(values))
    cursor.run(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", *values.values())  # noqa: S608


# -- values -----------------------------------------------------------------------------------------------------------


def _time(value: Any) -> datetime:
    """A time as any of the drivers gives it, or as Go's SQLite driver wrote it; UTC where no zone is said."""
    try:
        when: datetime = datetime.fromisoformat(value) if isinstance(value, str) else value
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except (ValueError, OverflowError, AttributeError) as error:
        raise StorageFailed(f"the database holds {value!r} where a time belongs: correct that row") from error


def _bytes(value: Any) -> bytes:
    """Binary content; a Go Notary writes some of it as text."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise StorageFailed("the database holds something else where binary content belongs: correct that row")


def _version(value: Any) -> int:
    """A version number; SQLite takes text in an integer column, and holds it to be above every number."""
    if isinstance(value, int):
        return value
    raise StorageFailed("the database holds something else where a version number belongs: correct that row")


# -- metadata ---------------------------------------------------------------------------------------------------------

_FILE: Final = "SELECT version, data, sha256, COALESCE(created_at, updated_at) FROM tuf_files"
_FEED: Final = "SELECT id, created_at, gun, version, sha256, category FROM changefeed"
_THIS_ROLE: Final = "WHERE gun = ? AND role = ? AND deleted_at IS NULL"


def _stored(role: RoleName, row: Row) -> Stored:
    version, data, sha256, modified = row
    content = _bytes(data)
    # A Go Notary from before that column left it empty.
    return Stored(role, _version(version), content, sha256 or hashlib.sha256(content).hexdigest(), _time(modified))


def _current(cursor: Cursor, gun: Gun, roles: Collection[RoleName]) -> Mapping[RoleName, Stored]:
    found = {}
    for role in roles:
        row = cursor.first(f"{_FILE} {_THIS_ROLE} ORDER BY version DESC LIMIT 1", str(gun), str(role))
        if row is not None:
            found[role] = _stored(role, row)
    return found


def _by_checksum(cursor: Cursor, gun: Gun, role: RoleName, sha256: str) -> Stored:
    # Not ordered by version: that would tempt SQLite to walk every version of the role.
    row = cursor.first(f"{_FILE} {_THIS_ROLE} AND sha256 = ? LIMIT 1", str(gun), str(role), sha256)
    if row is None:
        raise NotFound(f"{gun} has no {role} with this checksum")
    return _stored(role, row)


def _by_version(cursor: Cursor, gun: Gun, role: RoleName, version: int) -> Stored:
    row = cursor.first(f"{_FILE} {_THIS_ROLE} AND version = ?", str(gun), str(role), version)
    if row is None:
        raise NotFound(f"{gun} has no version {version} of {role}")
    return _stored(role, row)


def _publish(cursor: Cursor, gun: Gun, updates: Sequence[Update], after: str | None, now: object) -> None:
    if after is not None:
        # As the caller read it: a checksum that was never written is worked out here too.
        timestamp = _current(cursor, gun, [TIMESTAMP]).get(TIMESTAMP)
        if timestamp is None or timestamp.sha256 != after:
            raise OldVersion(f"{gun}: what this was to follow has been replaced or deleted")
    # Against what was stored before this call: the updates may come in any order.
    for update in updates:
        row = cursor.first(
            f"SELECT version FROM tuf_files {_THIS_ROLE} AND version >= ? ORDER BY version DESC LIMIT 1",  # noqa: S608
            str(gun),
            str(update.role),
            update.version,
        )
        if row is not None:
            newest = _version(row[0])
            raise OldVersion(f"{gun}: {update.role} version {newest} is stored, and {update.version} is not above it")
    for update in updates:
        place = (str(gun), str(update.role), update.version)
        sha256 = hashlib.sha256(update.data).hexdigest()
        cursor.run(
            "DELETE FROM tuf_files WHERE gun = ? AND role = ? AND version = ? AND deleted_at IS NOT NULL", *place
        )
        _insert(
            cursor,
            "tuf_files",
            {
                "created_at": now,
                "updated_at": now,
                "gun": str(gun),
                "role": str(update.role),
                "version": update.version,
                "sha256": sha256,
                "data": update.data,
            },
        )
        if update.role == TIMESTAMP:
            _record(cursor, gun, now, update.version, sha256, "update")


def _delete(cursor: Cursor, gun: Gun, now: object) -> bool:
    cursor.run("DELETE FROM tuf_files WHERE gun = ? AND deleted_at IS NOT NULL", str(gun))
    if not cursor.run("DELETE FROM tuf_files WHERE gun = ?", str(gun)):
        return False
    _record(cursor, gun, now, 0, "", "deletion")
    return True


def _record(
    cursor: Cursor, gun: Gun, now: object, version: int, sha256: str, category: Literal["update", "deletion"]
) -> None:
    _insert(
        cursor,
        "changefeed",
        {"created_at": now, "gun": str(gun), "version": version, "sha256": sha256, "category": category},
    )


def _changes(cursor: Cursor, gun: Gun | None, change_id: int, records: int) -> Sequence[Change]:
    backwards = change_id < 0 or records < 0
    where: dict[str, object] = {}
    if gun is not None:
        where["gun = ?"] = str(gun)
    if not backwards:
        where["id > ?"] = change_id
    elif change_id > 0:  # else from the end
        where["id < ?"] = change_id
    condition = f"WHERE {' AND '.join(where)}" if where else ""
    order = "DESC" if backwards else "ASC"
    rows = cursor.all(f"{_FEED} {condition} ORDER BY id {order} LIMIT ?", *where.values(), abs(records))
    found = [Change(row[0], _time(row[1]), row[2], row[3], row[4] or "", row[5]) for row in rows]
    return found[::-1] if backwards else found


class SQLMetadataStore:
    """:class:`notary.storage.MetadataStore` on a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def current(self, gun: Gun, roles: Collection[RoleName]) -> Deferred[Mapping[RoleName, Stored]]:
        """See the port."""
        return self._database.read(_current, gun, tuple(roles))

    def by_checksum(self, gun: Gun, role: RoleName, sha256: str) -> Deferred[Stored]:
        """See the port."""
        return self._database.read(_by_checksum, gun, role, sha256)

    def by_version(self, gun: Gun, role: RoleName, version: int) -> Deferred[Stored]:
        """See the port."""
        if not 0 < version <= _INT32_MAX:
            return fail(NotFound(f"{gun} has no version {version} of {role}"))
        return self._database.read(_by_version, gun, role, version)

    def publish(self, gun: Gun, updates: Sequence[Update], after: str | None = None) -> Deferred[None]:
        """See the port."""
        if len({(update.role, update.version) for update in updates}) < len(updates):
            return fail(OldVersion(f"{gun}: one role and version comes twice"))
        if any(update.version > _INT32_MAX for update in updates):
            return fail(StorageFailed(f"{gun}: a version is above {_INT32_MAX}, the largest that can be stored"))
        now = self._database.dialect.bind_time(self._database.now())
        done = self._database.write(_publish, gun, tuple(updates), after, now)

        def overtaken(failure: Failure) -> None:
            failure.trap(Duplicate)
            raise OldVersion(f"{gun}: somebody else published the same version first") from failure.value

        return done.addErrback(overtaken)

    def delete(self, gun: Gun) -> Deferred[bool]:
        """See the port."""
        return self._database.write(_delete, gun, self._database.dialect.bind_time(self._database.now()))

    def changes(self, gun: Gun | None, change_id: int | None, records: int) -> Deferred[Sequence[Change]]:
        """See the port."""
        return self._database.read(_changes, gun, _clamp(change_id or 0), _clamp(records))

    def check(self) -> Deferred[None]:
        """See the port."""
        return self._database.read(_probe, SERVER)

    def close(self) -> Deferred[None]:
        """See the port."""
        return self._database.close()


def _clamp(value: int) -> int:
    """The nearest number that every driver takes; no row is beyond it."""
    return max(-_INT64_MAX, min(value, _INT64_MAX))


def _probe(cursor: Cursor, service: Service) -> None:
    cursor.all(f"SELECT 1 FROM {next(iter(service.tables))} LIMIT 1")  # noqa: S608  # a constant


# -- keys -------------------------------------------------------------------------------------------------------------

_KEY_COLUMNS: Final = (
    "key_id, algorithm, public, private, gun, role, passphrase_alias, encryption_alg, keywrap_alg, last_used"
)
_KEY: Final = f"SELECT {_KEY_COLUMNS} FROM private_keys WHERE deleted_at IS NULL"  # noqa: S608  # a constant


def _key(row: Row) -> StoredKey:
    key_id, algorithm, public, private, gun, role, alias, encryption_alg, keywrap_alg, used = row
    last_used = None if used is None else _time(used)
    return StoredKey(
        key_id, algorithm, _bytes(public), _bytes(private), gun, role, alias, encryption_alg, keywrap_alg, last_used
    )


def _get(cursor: Cursor, key_id: str) -> StoredKey:
    row = cursor.first(f"{_KEY} AND key_id = ?", key_id)
    if row is None:
        raise KeyNotFound(f"there is no key {key_id}")
    return _key(row)


def _pending(cursor: Cursor, gun: str, role: str, algorithm: str) -> StoredKey | None:
    # In the reference's order, so that both hand out the same one where there are several.
    row = cursor.first(
        f"{_KEY} AND gun = ? AND role = ? AND algorithm = ? AND last_used IS NULL ORDER BY key_id LIMIT 1",
        gun,
        role,
        algorithm,
    )
    return None if row is None else _key(row)


def _add(cursor: Cursor, key: StoredKey, now: object) -> StoredKey:
    kept = _pending(cursor, key.gun, key.role, key.algorithm)
    if kept is not None:
        return kept
    cursor.run("DELETE FROM private_keys WHERE key_id = ? AND deleted_at IS NOT NULL", key.key_id)
    _insert(
        cursor,
        "private_keys",
        {
            "created_at": now,
            "updated_at": now,
            "key_id": key.key_id,
            "algorithm": key.algorithm,
            "public": key.public,
            "private": key.private,
            "gun": key.gun,
            "role": key.role,
            "passphrase_alias": key.passphrase_alias,
            "encryption_alg": key.encryption_alg,
            "keywrap_alg": key.keywrap_alg,
        },
    )
    return replace(key, last_used=None)


def _mark_used(cursor: Cursor, key_id: str, when: object) -> None:
    columns = f"id, created_at, {_KEY_COLUMNS}"
    row = cursor.first(
        f"SELECT {columns} FROM private_keys WHERE key_id = ? AND deleted_at IS NULL AND last_used IS NULL",  # noqa: S608
        key_id,
    )
    if row is None:
        return
    values = dict(zip(columns.split(", "), row, strict=True))
    for name in ("public", "private"):
        values[name] = _bytes(values[name])
    cursor.run("DELETE FROM private_keys WHERE id = ?", values["id"])
    _insert(cursor, "private_keys", {**values, "updated_at": when, "last_used": when})


def _delete_key(cursor: Cursor, key_id: str) -> bool:
    return cursor.run("DELETE FROM private_keys WHERE key_id = ? AND deleted_at IS NULL", key_id) > 0


class SQLKeyStore:
    """:class:`notary.storage.KeyStore` on a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, key: StoredKey) -> Deferred[StoredKey]:
        """See the port. Raises StorageFailed if a key of this id is there that is not pending."""
        return self._database.write(_add, key, self._database.dialect.bind_time(self._database.now()))

    def get(self, key_id: str) -> Deferred[StoredKey]:
        """See the port."""
        return self._database.read(_get, key_id)

    def pending(self, gun: str, role: str, algorithm: str) -> Deferred[StoredKey | None]:
        """See the port."""
        return self._database.read(_pending, gun, role, algorithm)

    def mark_used(self, key_id: str, when: datetime) -> Deferred[None]:
        """See the port."""
        return self._database.write(_mark_used, key_id, self._database.dialect.bind_time(when.astimezone(UTC)))

    def delete(self, key_id: str) -> Deferred[bool]:
        """See the port."""
        return self._database.write(_delete_key, key_id)

    def check(self) -> Deferred[None]:
        """See the port."""
        return self._database.read(_probe, SIGNER)

    def close(self) -> Deferred[None]:
        """See the port."""
        return self._database.close()


# -- the way in -------------------------------------------------------------------------------------------------------


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
        return SQLMetadataStore(await open_database(_dialect(backend), db_url, SERVER, reactor))

    return Deferred.fromCoroutine(connect())


def open_key_store(backend: str, db_url: str, reactor: Reactor) -> Deferred[KeyStore]:
    """Open the signer's store; arguments and errors as for :func:`open_metadata_store`."""

    async def connect() -> KeyStore:
        if backend == "memory":
            return MemoryKeyStore()
        return SQLKeyStore(await open_database(_dialect(backend), db_url, SIGNER, reactor))

    return Deferred.fromCoroutine(connect())


def _dialect(backend: str) -> Dialect:
    try:
        return DIALECTS[backend]
    except KeyError:
        known = ", ".join(sorted(["memory", *DIALECTS]))
        raise ConfigError(f'storage.backend: "{backend}": expected one of {known}') from None
