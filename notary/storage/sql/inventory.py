"""The operators' port on the server's database: all collections, row by row.

Rules of this module: those of ``metadata``, whose tables these are. A walk reads page by page in the order
of the database, each page and each collection in a transaction of its own, so that neither memory nor a transaction
grows with the number of collections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from twisted.internet.defer import Deferred

from notary.errors import InvalidRow, NotFound
from notary.storage import Update
from notary.storage.operators import FeedEntry, StoredCollection, Undated
from notary.storage.sql.cursor import Cursor, Row
from notary.storage.sql.database import Database
from notary.storage.sql.guns import guns, like
from notary.storage.sql.metadata import SQLMetadataStore, lock, replace
from notary.storage.sql.values import UNKNOWN_TIME, to_bytes, to_version, to_written
from notary.tuf.collection import Collection, File
from notary.tuf.model import Gun, RoleName

_T = TypeVar("_T")

_HERE: Final = "WHERE gun == ? AND deleted_at IS NULL"
_DELETE: Final = "DELETE FROM tuf_files WHERE gun == ? AND role == ? AND version = ? AND deleted_at IS NULL"


class _Rows:
    """A collection inside a transaction. Its files are listed at once, the bytes of a file are read on demand."""

    def __init__(self, cursor: Cursor, gun: str) -> None:
        self._cursor = cursor
        self.gun = gun
        rows = cursor.all(f"SELECT role, version, sha256, LENGTH(data) FROM tuf_files {_HERE}", gun)  # noqa: S608
        files = [
            File(role, to_version(version), _checksum(sha256) or None, length) for role, version, sha256, length in rows
        ]
        self.files: Sequence[File] = sorted(files, key=lambda file: (file.role, file.version))

    def data(self, file: File) -> bytes:
        """See Collection."""
        row = self._cursor.first(
            f"SELECT data FROM tuf_files {_HERE} AND role == ? AND version = ?",  # noqa: S608  # constants
            self.gun,
            file.role,
            file.version,
        )
        if row is None:  # possible where the transaction may write: each of its statements sees its own moment
            raise NotFound(f"{self.gun}: {file.role} version {file.version} was deleted a moment ago")
        return to_bytes(row[0])

    def feed(self) -> Sequence[FeedEntry]:
        """See StoredCollection."""
        feed = "FROM changefeed WHERE gun == ?"
        deleted = self._cursor.first(f"SELECT MAX(id) {feed} AND category = 'deletion'", self.gun)
        after = deleted[0] if deleted is not None and deleted[0] is not None else 0
        rows = self._cursor.all(
            f"SELECT version, sha256 {feed} AND category = 'update' AND id > ? ORDER BY id",
            self.gun,
            after,
        )
        return [FeedEntry(to_version(version), _checksum(sha256)) for version, sha256 in rows]

    def undated(self) -> Sequence[Undated]:
        """See StoredCollection."""
        files, records = _undated(self._cursor, self.gun)
        return [
            *(Undated("tuf_files", role, to_version(version)) for role, version, _, _ in files),
            *(Undated("changefeed", "", to_version(version)) for _, version, _ in records),
        ]


def _undated(cursor: Cursor, gun: str) -> tuple[Sequence[Row], Sequence[Row]]:
    """Return the rows without a time: files (role, version, both times) and records (id, version, category)."""
    files = cursor.all(
        f"SELECT role, version, created_at, updated_at FROM tuf_files {_HERE} ORDER BY role, version",  # noqa: S608
        gun,
    )
    records = cursor.all(
        "SELECT id, version, category, created_at FROM changefeed WHERE gun == ? ORDER BY id",
        gun,
    )
    return (
        [row for row in files if UNKNOWN_TIME in (to_written(row[2]), to_written(row[3]))],
        [row[:3] for row in records if to_written(row[3]) == UNKNOWN_TIME],
    )


def _date(cursor: Cursor, gun: str, now: datetime) -> int:
    lock(cursor, gun)
    bind = cursor.dialect.bind_time
    files, records = _undated(cursor, gun)
    for role, version, *times in files:
        known = max([each for each in map(to_written, times) if each != UNKNOWN_TIME], default=now)
        cursor.run(
            f"UPDATE tuf_files SET created_at = ?, updated_at = ? {_HERE} AND role == ? AND version = ?",  # noqa: S608
            bind(known),
            bind(known),
            gun,
            role,
            version,
        )
    for number, version, category in records:
        row = cursor.first(
            f"SELECT created_at FROM tuf_files {_HERE} AND role = 'timestamp' AND version = ?",  # noqa: S608
            gun,
            version,
        )
        known = now if row is None or category == "deletion" else to_written(row[0])
        cursor.run("UPDATE changefeed SET created_at = ? WHERE id = ?", bind(known), number)
    return len(files) + len(records)


def _checksum(value: str | None) -> str:
    """A checksum, "" if there is none; PostgreSQL pads the column with spaces."""
    return (value or "").strip()


def _count(cursor: Cursor, prefix: str) -> int:
    row = cursor.first(
        "SELECT COUNT(DISTINCT gun) FROM tuf_files WHERE deleted_at IS NULL AND gun LIKE ? ESCAPE '!'", like(prefix)
    )
    count: int = row[0] if row is not None else 0
    return count


def _visit(cursor: Cursor, gun: str, work: Callable[[StoredCollection], _T]) -> _T:
    return work(_Rows(cursor, gun))


def _visit_many(
    cursor: Cursor, guns: Sequence[str], work: Callable[[StoredCollection], _T]
) -> Sequence[_T | InvalidRow]:
    found: list[_T | InvalidRow] = []
    for gun in guns:
        try:
            found.append(_visit(cursor, gun, work))
        except InvalidRow as error:
            found.append(error)
    return found


def _remove(cursor: Cursor, gun: str, choose: Callable[[Collection], Sequence[File]], limit: int) -> Sequence[File]:
    lock(cursor, gun)
    chosen = choose(_Rows(cursor, gun))[:limit]
    for file in chosen:
        cursor.run(_DELETE, gun, file.role, file.version)
    return chosen


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """A file of another collection, which is read when it is written."""

    source: Collection
    file: File

    @property
    def role(self) -> RoleName:
        return RoleName(self.file.role)

    @property
    def version(self) -> int:
        return self.file.version

    @property
    def data(self) -> bytes:
        return self.source.data(self.file)


class SQLInventory:
    """:class:`notary.storage.operators.Inventory` on a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def guns(self, prefix: str, after: str, limit: int, *, remembered: bool = False) -> Deferred[Sequence[str]]:
        """See the port."""
        return self._database.snapshot(guns, prefix, after, limit, remembered=remembered)

    def count(self, prefix: str) -> Deferred[int]:
        """See the port."""
        return self._database.read(_count, prefix)

    def visit(self, gun: str, work: Callable[[StoredCollection], _T]) -> Deferred[_T]:
        """See the port."""
        return self._database.snapshot(_visit, gun, work)

    def visit_many(
        self, guns: Sequence[str], work: Callable[[StoredCollection], _T]
    ) -> Deferred[Sequence[_T | InvalidRow]]:
        """See the port."""
        return self._database.snapshot(_visit_many, guns, work)

    def remove(self, gun: str, choose: Callable[[Collection], Sequence[File]], limit: int) -> Deferred[Sequence[File]]:
        """See the port."""
        return self._database.write(_remove, gun, choose, limit)

    def replace(self, gun: Gun, updates: Sequence[Update]) -> Deferred[None]:
        """See the port."""
        return self._database.write(replace, gun, updates, self._database.dialect.bind_time(self._database.now()))

    def add(self, source: Collection, files: Sequence[File], after: str | None) -> Deferred[None]:
        """See the port."""
        updates = [_Elsewhere(source, file) for file in files]
        return SQLMetadataStore(self._database).write(Gun(source.gun), updates, after).addCallback(lambda _: None)

    def date(self, gun: str) -> Deferred[int]:
        """See the port."""
        return self._database.write(_date, gun, self._database.now())

    def close(self) -> Deferred[None]:
        """See the port."""
        return self._database.close()
