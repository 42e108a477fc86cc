"""What differs between the databases: one row a backend, everything else is in ``sql.py``.

Rules of this module: a row is data and small pure functions; no row knows the tables, and nothing outside this module
asks which backend it talks to. Drivers are DB-API 2.0 modules, imported by name when a store is opened, so that nobody
needs the driver of a database that they do not use. A new backend is a row in :data:`DIALECTS`, a folder in
``schema/`` and a row in ``tests/storage/conftest.py``.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from notary.errors import ConfigError
from notary.storage import catalogue
from notary.storage.catalogue import Catalogue


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One database, as ``sql.py`` sees it.

    ``driver`` is the DB-API module, ``needs`` what to install if it is missing. ``placeholder`` stands for one
    parameter in a statement. ``connections`` bounds the pool, ``writers`` how many transactions of a store may write
    at once. ``begin_read`` opens a transaction that sees one moment, ``begin_write`` one in which what was read stays
    true until the commit. ``catalogue`` tells what tables there are, and how they are changed.

    ``arguments`` turns ``storage.db_url`` into what the driver's ``connect`` takes, or raises ConfigError. ``prepare``
    is run on each new connection. ``embedded``, if it is not None, says that the database is ours alone: a store runs
    it once when it is opened, then creates its tables if there are none.

    ``bind_time`` is the form in which an aware UTC time is stored. ``duplicate`` tells whether an error is that of a
    unique key; ``explain`` says in one sentence what went wrong and what to do, without a path or a name in it.
    """

    name: str
    driver: str
    needs: str
    placeholder: str
    connections: int
    writers: int
    begin_read: str
    begin_write: str
    catalogue: Catalogue
    arguments: Callable[[str], Mapping[str, Any]]
    prepare: Callable[[Any], None]
    embedded: Callable[[Any], None] | None
    bind_time: Callable[[datetime], object]
    duplicate: Callable[[Exception], bool]
    explain: Callable[[Exception], str]


# -- SQLite -----------------------------------------------------------------------------------------------------------

_PATIENCE = 10.0
"""Seconds that a SQLite connection waits for another process to let go of the file."""

_ADVICE: Mapping[int, str] = MappingProxyType(
    {
        sqlite3.SQLITE_BUSY: f"another process has kept the SQLite file locked for {_PATIENCE:.0f} seconds: stop it",
        sqlite3.SQLITE_CANTOPEN: (
            "the SQLite file cannot be opened: its directory must exist, and the service must be allowed to write to "
            "both"
        ),
        sqlite3.SQLITE_PERM: "the SQLite file cannot be opened: the service must be allowed to read and write it",
        sqlite3.SQLITE_READONLY: (
            "the SQLite file is read-only: the service must be allowed to write to it and to its directory"
        ),
        sqlite3.SQLITE_FULL: "there is no room for the SQLite file to grow: free some space on its disk",
        sqlite3.SQLITE_IOERR: "the disk under the SQLite file failed or is full: check the disk and the system's log",
        sqlite3.SQLITE_CORRUPT: "the SQLite file is damaged: stop the service and restore the file from a backup",
        sqlite3.SQLITE_NOTADB: "the file is not a SQLite database: restore it from a backup, or name another file",
        sqlite3.SQLITE_NOMEM: "there is not enough memory for SQLite: give the service more",
    }
)
"""What to do, by SQLite's primary result code (https://www.sqlite.org/rescode.html)."""


def _sqlite_code(error: Exception) -> int:
    """The primary result code of an error, 0 if SQLite itself did not raise it."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


class _SQLiteConnection(sqlite3.Connection):
    """Makes the file if it is not there, for its owner only: SQLite gives its journals the same rights.

    Without ever opening it: a process that closes any descriptor of a file drops every POSIX lock it holds on it, those
    of SQLite's other connections included, and the next foreign process to close the database would delete the log that
    we go on writing to (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """

    def __init__(self, database: str, *arguments: Any, **options: Any) -> None:
        # Usually it is there. What else is wrong here is wrong for SQLite too, and `explain` knows its errors. SQLite
        # follows links, mknod does not.
        with contextlib.suppress(OSError):
            os.mknod(os.path.realpath(database), stat.S_IFREG | 0o600)
        super().__init__(database, *arguments, **options)


def _sqlite_arguments(db_url: str) -> Mapping[str, Any]:
    """A plain file path, nothing else."""
    if not db_url or "\0" in db_url or db_url.startswith((":", "file:")):
        raise ConfigError(
            f"storage.db_url: {db_url!r}: expected the path of a SQLite file (for a store in memory, set "
            'storage.backend to "memory")'
        )
    return {
        "database": db_url,
        "timeout": _PATIENCE,
        "isolation_level": None,  # transactions begin where sql.py says so
        "check_same_thread": False,  # the pool gives each thread its own, and one thread closes all when none works
        "factory": _SQLiteConnection,
    }


def _sqlite_prepare(connection: sqlite3.Connection) -> None:
    # Acknowledged is durable: the log is on the disk before a commit returns.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # A Go Notary stores keys as text, which need not be UTF-8; this loses nothing.
    connection.text_factory = _sqlite_text


def _sqlite_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _sqlite_embedded(connection: sqlite3.Connection) -> None:
    """Let readers and the writer work side by side; the file remembers it.

    While another process writes in the old way, SQLite fears a deadlock and says "busy" at once, whatever the time-out:
    the waiting is ours.
    """
    (milliseconds,) = connection.execute("PRAGMA busy_timeout").fetchone()
    deadline = time.monotonic() + milliseconds / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if _sqlite_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _sqlite_duplicate(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) in (
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
    )


def _sqlite_explain(error: Exception) -> str:
    return _ADVICE.get(_sqlite_code(error)) or f"SQLite could not do its work: {error}"


SQLITE3 = Dialect(
    name="sqlite3",
    driver="sqlite3",
    needs="a Python that was built with SQLite",
    placeholder="?",
    connections=4,
    writers=1,  # SQLite has one at a time; waiting in our own line is fair and keeps the threads free for readers
    begin_read="BEGIN",
    begin_write="BEGIN IMMEDIATE",
    catalogue=catalogue.SQLITE3,
    arguments=_sqlite_arguments,
    prepare=_sqlite_prepare,
    embedded=_sqlite_embedded,
    bind_time=lambda when: when.isoformat(" "),
    duplicate=_sqlite_duplicate,
    explain=_sqlite_explain,
)

DIALECTS: Mapping[str, Dialect] = MappingProxyType({dialect.name: dialect for dialect in (SQLITE3,)})
"""The backends by their name in ``storage.backend``."""
