"""SQLite: a file that is ours alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from notary.errors import ConfigError
from notary.storage.sql.catalogue import Catalogue
from notary.storage.sql.dialect import Dialect, PoolSettings, Trouble
from notary.storage.sql.survey import Ask, Fact

CATALOGUE: Final = Catalogue(
    columns=(
        "SELECT m.name, c.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c "
        "WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'"
    ),
    indexes=(
        "SELECT m.tbl_name, m.name, c.name FROM sqlite_master AS m, pragma_index_info(m.name) AS c "
        "WHERE m.type = 'index' ORDER BY m.name, c.seqno"
    ),
    missing_rights="",
    grants="",
    transactional=True,
    take_turn=None,
    forbidden=lambda error: getattr(error, "sqlite_errorname", "").startswith("SQLITE_READONLY"),
    rights="the right to write to the SQLite file and its directory",
)

_LOCK_WAIT_SECONDS = 10.0
"""How long a SQLite connection waits for another process that has locked the file."""

_ADVICE: Mapping[int, str] = MappingProxyType(
    {
        sqlite3.SQLITE_BUSY: (
            f"another process has kept the SQLite file locked for {_LOCK_WAIT_SECONDS:.0f} seconds: stop it"
        ),
        sqlite3.SQLITE_CANTOPEN: (
            "the SQLite file cannot be opened: its directory must exist, and the service must be allowed to write to "
            "both, or with server.read_only to read a file that exists"
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


def _code(error: Exception) -> int:
    """The primary result code of an error, 0 if SQLite itself did not raise it."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


class _Connection(sqlite3.Connection):
    """A connection that creates a missing file, readable by its owner only; SQLite gives its journals the same rights.

    The file is never opened here: a process that closes any descriptor of a file drops all POSIX locks that it holds on
    the file, those of SQLite's other connections included. Then another process that closes the database would delete
    the log to which this one still writes (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """

    def __init__(self, database: str, *arguments: Any, **options: Any) -> None:
        # Usually the file exists. SQLite reports any other error too, and `explain` knows its errors. SQLite follows
        # links, mknod does not.
        with contextlib.suppress(OSError):
            os.mknod(os.path.realpath(database), stat.S_IFREG | 0o600)
        super().__init__(database, *arguments, **options)


class _Replaced(sqlite3.OperationalError):
    """The file is no longer the one that a connection reads, or another process has begun to write to it."""


class _Reader(sqlite3.Connection):
    """A connection that only reads an existing file, also one in a directory in which nothing can be created.

    A file in write-ahead mode that no process has open has no log beside it, and SQLite cannot read it without creating
    one, unless it is told that the file never changes. So each use of such a connection first makes sure that this is
    still true. Each use also makes sure that no other file has taken the place of the one that is open.
    """

    def __init__(self, database: str, **options: Any) -> None:
        self._path = database
        self._identity = _identity(database)
        url = f"{Path(database).absolute().as_uri()}?mode=ro"
        self._fixed = self._identity is not None and not _has_log(database) and _needs_log(url)
        super().__init__(f"{url}&immutable=1" if self._fixed else url, **options)

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        now = _identity(self._path)
        if self._fixed:
            replaced = now != self._identity or _has_log(self._path)
        else:
            replaced = now is not None and now[:2] != (self._identity or now)[:2]
        if replaced:
            raise _Replaced("the SQLite file was replaced")
        return super().cursor(*arguments, **options)


def _identity(path: str) -> tuple[int, int, int, int] | None:
    """What tells one state of a file that is not being written from another; None if there is no file."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _needs_log(url: str) -> bool:
    """Whether the file cannot be read because it has no log and none can be created."""
    with contextlib.closing(sqlite3.connect(url, uri=True, timeout=_LOCK_WAIT_SECONDS)) as connection:
        try:
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        except sqlite3.OperationalError as error:
            return _code(error) in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
        except sqlite3.DatabaseError:
            return False
        return False


def _has_log(path: str) -> bool:
    return Path(f"{path}-wal").exists()


def _arguments(db_url: str, pool: PoolSettings) -> Mapping[str, Any]:
    """A plain file path, nothing else."""
    if not db_url or "\0" in db_url or db_url.startswith((":", "file:")):
        raise ConfigError(
            f"storage.db_url: {db_url!r}: expected the path of a SQLite file (for a store in memory, set "
            'storage.backend to "memory")'
        )
    return {
        "database": db_url,
        "timeout": _LOCK_WAIT_SECONDS,
        "isolation_level": None,  # database.py begins transactions
        "check_same_thread": False,  # each thread has its own connection; at the end one thread closes all
        **({"factory": _Reader, "uri": True} if pool.read_only else {"factory": _Connection}),
    }


def _prepare(connection: sqlite3.Connection, _: PoolSettings) -> None:
    # The log is on the disk before a commit returns.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # A Go Notary stores keys as text, which need not be UTF-8; surrogate escapes keep every byte.
    connection.text_factory = _text


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _embedded(connection: sqlite3.Connection) -> None:
    """Switch the file to write-ahead logging, so that readers and the writer work at the same time.

    While another process writes in the old mode, SQLite returns "busy" at once, without regard to its time-out, to
    avoid a deadlock; so this function waits instead.
    """
    (milliseconds,) = connection.execute("PRAGMA busy_timeout").fetchone()
    deadline = time.monotonic() + milliseconds / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _free_bytes(connection: sqlite3.Connection) -> int:
    (path,) = (path for _, name, path in connection.execute("PRAGMA database_list") if name == "main")
    return shutil.disk_usage(path).free


def _trouble(error: Exception) -> Trouble:
    unique = (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
    if isinstance(error, _Replaced):
        return Trouble.LOST
    if _code(error) == sqlite3.SQLITE_BUSY:
        return Trouble.BUSY
    return Trouble.DUPLICATE if getattr(error, "sqlite_errorcode", 0) in unique else Trouble.OTHER


def _explain(error: Exception) -> str:
    return _ADVICE.get(_code(error)) or f"SQLite could not do its work: {error}"


def _survey(ask: Ask) -> Sequence[Fact]:
    ((version,),) = ask("SELECT sqlite_version()")
    ((mode,),) = ask("PRAGMA journal_mode")
    return [
        Fact("server", f"SQLite {version}", "the release in use"),
        Fact("kind", "a file", "for one daemon on one machine; what it acknowledges is as safe as its disk"),
        Fact("journal_mode", str(mode), "the service uses wal"),
        Fact("synchronous", "FULL", "a commit is on the disk before it is acknowledged"),
    ]


SQLITE3 = Dialect(
    name="sqlite3",
    driver="sqlite3",
    needs="a Python that was built with SQLite",
    placeholder="?",
    exactly="{0} = ?",
    bytewise="{0}",
    member="SELECT * FROM ({0})",
    together=lambda _: False,
    connections=4,
    writers=1,  # SQLite has one at a time; waiting in our own queue is fair and keeps the threads free for readers
    begin_read=("BEGIN",),
    begin_write=("BEGIN IMMEDIATE",),
    for_update="",
    lock="",
    optimistic=False,
    open_writers="",
    see_uncommitted="",
    catalogue=CATALOGUE,
    arguments=_arguments,
    prepare=_prepare,
    read_only="",
    leaves_read_only=lambda _: False,
    is_full=lambda error: _code(error) == sqlite3.SQLITE_FULL,
    undo_leaves_nothing=True,
    try_room=(),
    free_bytes=_free_bytes,
    embedded=_embedded,
    holds=lambda _: True,
    bind_time=lambda when: when.isoformat(" "),
    trouble=_trouble,
    explain=_explain,
    survey=_survey,
)
