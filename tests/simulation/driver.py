"""A DB-API module over SQLite that fails on purpose, and a dialect that understands its errors.

Rules of this module: each virtual thread has a connection of its own, and each statement gives the others a turn. A
transaction that waits for the writer of the file waits on the virtual clock. Which transaction fails, and how, is the
decision of ``Store.faults``; whether a commit took effect before it failed is known to the simulation only.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from notary.storage.sql.backends.sqlite3 import SQLITE3
from notary.storage.sql.dialect import Dialect, Trouble
from notary.storage.sql.migrate import SERVER, SIGNER, Service, set_up
from notary.work.usage import PoolUsage
from tests.simulation.scheduler import Host, World

apilevel = "2.0"
threadsafety = 1
paramstyle = "qmark"

Error = sqlite3.Error

BUSY_SECONDS = 10.0
"""How long a transaction waits for the writer."""


class Lost(sqlite3.OperationalError):
    """The connection to the database was lost."""


class Conflict(sqlite3.OperationalError):
    """The database has rolled the transaction back because of another one."""


class ReadOnly(sqlite3.OperationalError):
    """The database takes no writes now."""


@dataclass
class Faults:
    """How the database behaves now: chances for each transaction, and how slow a statement is."""

    lost_before: float = 0.0
    lost_at_commit: float = 0.0
    """Nothing was committed, and the client does not know it."""
    lost_after_commit: float = 0.0
    """All was committed, and the client does not know it."""
    conflict: float = 0.0
    read_only: bool = False
    statement_seconds: float = 0.0005
    commit_seconds: float = 0.001


@dataclass
class Store:
    """One database of the cluster. ``on_commit`` is called after each commit of a transaction that has written."""

    name: str
    file: File
    world: World
    random: Random
    pace: float = 0.0005
    """How many seconds a statement takes if nothing is wrong."""
    faults: Faults = field(default_factory=Faults)
    on_commit: Callable[[Host], None] = lambda _host: None
    connections: list[Connection] = field(default_factory=list)

    def heal(self) -> None:
        """End all faults."""
        self.faults = Faults(statement_seconds=self.pace, commit_seconds=2 * self.pace)

    def host_died(self, host: Host) -> None:
        """Roll back what a process that was killed has begun."""
        for connection in [each for each in self.connections if each.host is host]:
            connection.drop()

    def close(self) -> None:
        for connection in list(self.connections):
            connection.drop()


class File:
    """A SQLite file with the tables of a service, and the connections to it that nobody uses now.

    A file and its connections serve one simulation after the other: to open them, and to compile each statement anew,
    would take as long as all that they do.
    """

    def __init__(self, service: Service) -> None:
        self._folder = tempfile.TemporaryDirectory(dir=memory_folder())
        self._path = Path(self._folder.name) / f"{service.folder}.db"
        self._unused: list[sqlite3.Connection] = []
        self._used = 0
        connection = self.take()
        set_up(connection, SQLITE3, service)
        connection.execute("COMMIT")
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        self._rows = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
        self.give_back(connection)

    def take(self) -> sqlite3.Connection:
        """Return a connection. Only this process uses the file, so that its locks need no calls of the kernel."""
        self._used += 1
        if self._unused:
            return self._unused.pop()
        place = f"file:{self._path}?vfs=unix-excl"
        made = sqlite3.connect(
            place, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=500, uri=True
        )
        made.execute("PRAGMA synchronous = OFF")
        made.execute("PRAGMA foreign_keys = ON")
        return made

    def give_back(self, connection: sqlite3.Connection) -> None:
        """Take a connection whose cursors are closed; a transaction that is open is rolled back."""
        if connection.in_transaction:
            connection.rollback()
        self._used -= 1
        self._unused.append(connection)

    def restore(self) -> bool:
        """Make the file one that was never used; False if somebody still has a connection to it."""
        if self._used:
            return False
        connection = self.take()
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("BEGIN IMMEDIATE")
        for name, rows in self._rows.items():
            connection.execute(f"DELETE FROM {name}")  # the names are those of the schema
            for row in rows:
                connection.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(row))})", row)
        connection.execute("COMMIT")
        connection.execute("PRAGMA foreign_keys = ON")
        self.give_back(connection)
        return True


stores: dict[str, Store] = {}
"""The databases by ``db_url``; that of a process is followed by the name of its host."""
hosts: dict[str, Host] = {}


def connect(database: str, usage: PoolUsage | None = None, **_: Any) -> Connection:
    """Connect, as DB-API modules do. The name of the database is that of a store and of a host."""
    name, _, host = database.partition("@")
    made = Connection(stores[name], hosts[host])
    if usage is not None:
        made.host.usage = usage
        made.host.connections.append(made)
    return made


class Connection:
    """A connection."""

    def __init__(self, store: Store, host: Host) -> None:
        self.store = store
        self.host = host
        if store.faults.lost_before >= 1:
            raise Lost("the database does not answer")
        self.real: sqlite3.Connection | None = store.file.take()
        self.cursors: list[sqlite3.Cursor] = []
        self.writes = False
        store.connections.append(self)

    def cursor(self) -> Cursor:
        if self.real is None:
            raise Lost("the connection is closed")
        return Cursor(self)

    def commit(self) -> None:
        if self.in_transaction:
            self.cursor().execute("COMMIT")

    @property
    def in_transaction(self) -> bool:
        """True between the begin of a transaction and its end."""
        return self.real is not None and self.real.in_transaction

    def rollback(self) -> None:
        if self.real is not None and self.real.in_transaction:
            self.real.rollback()

    def close(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Close the connection; a transaction that is open is rolled back."""
        real, self.real = self.real, None
        if real is not None:
            for cursor in self.cursors:
                cursor.close()
            self.store.file.give_back(real)
            self.store.connections.remove(self)
            if self in self.host.connections:
                self.host.connections.remove(self)


class Cursor:
    """A cursor: each statement gives the others a turn, and may fail."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        assert connection.real is not None
        self._real = connection.real.cursor()
        connection.cursors.append(self._real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def close(self) -> None:
        if self._connection.real is not None:
            self._real.close()
            self._connection.cursors.remove(self._real)

    def execute(self, text: str, values: Any = ()) -> Any:
        connection = self._connection
        store = connection.store
        world, faults, random = store.world, store.faults, store.random
        world.pause(random.expovariate(1 / faults.statement_seconds))
        self._check()
        if text.startswith("BEGIN"):
            if random.random() < faults.lost_before:
                self._lose()
            connection.writes = text == "BEGIN IMMEDIATE"
            if connection.writes and faults.read_only:
                raise ReadOnly("attempt to write a readonly database")
            return self._begin(text)
        if text == "COMMIT":
            return self._commit()
        if not connection.writes and random.random() < faults.lost_before:
            self._lose()
        return self._real.execute(text, values)

    def _begin(self, text: str) -> Any:
        store = self._connection.store
        world = store.world
        until = world.now + BUSY_SECONDS
        while True:
            try:
                return self._real.execute(text)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or world.now > until or world.thread is None:
                    raise
            world.pause(max(0.002, store.faults.statement_seconds) * (0.5 + store.random.random()))
            self._check()

    def _commit(self) -> Any:
        connection = self._connection
        store = connection.store
        world, faults, random = store.world, store.faults, store.random
        chance = random.random()
        if connection.writes:
            if chance < faults.conflict:
                self._real.execute("ROLLBACK")
                raise Conflict("could not serialize access")
            if chance < faults.conflict + faults.lost_at_commit:
                self._lose()
        world.pause(random.expovariate(1 / faults.commit_seconds))
        self._check()
        writes, connection.writes = connection.writes, False
        result = self._real.execute("COMMIT")
        if writes:
            store.on_commit(connection.host)
            if chance > 1 - faults.lost_after_commit:
                self._lose()
        world.pause(random.expovariate(1 / faults.commit_seconds))
        self._check()
        return result

    def _check(self) -> None:
        if self._connection.real is None:
            raise Lost("the connection is closed")

    def _lose(self) -> None:
        self._connection.drop()
        raise Lost("server closed the connection unexpectedly")


def _trouble(error: Exception) -> Trouble:
    if isinstance(error, Lost):
        return Trouble.LOST
    if isinstance(error, Conflict):
        return Trouble.CONFLICT
    return SQLITE3.trouble(error)


def dialect() -> Dialect:
    """The row of the simulated database."""
    return replace(
        SQLITE3,
        driver=__name__,
        writers=3,
        arguments=lambda db_url, pool: {"database": db_url, "usage": pool.usage},
        prepare=lambda _connection, _settings: None,
        embedded=None,
        trouble=_trouble,
        explain=str,
    )


def memory_folder() -> str | None:
    """Return a folder in memory, if there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


_files: dict[str, File] = {}


def open_stores(world: World) -> tuple[Store, Store]:
    """Return the two databases of a cluster, which are empty: the server's and the signer's."""
    made = []
    for service in (SERVER, SIGNER):
        file = _files.get(service.folder)
        if file is None or not file.restore():
            file = _files[service.folder] = File(service)
        store = Store(service.folder, file, world, world.random(f"database/{service.folder}"))
        stores[service.folder] = store
        made.append(store)
    return made[0], made[1]
