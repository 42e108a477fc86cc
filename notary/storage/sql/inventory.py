"""The operators' port on the server's database: all collections, row by row.

Rules of this module: those of ``metadata``, whose tables these are. A walk reads page by page in the order
of the database, each page and each collection in a transaction of its own, so that neither memory nor a transaction
grows with the number of collections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from twisted.internet.defer import Deferred

from notary.errors import NotFound
from notary.storage.operators import FeedEntry, StoredCollection
from notary.storage.sql.cursor import Cursor
from notary.storage.sql.database import Database
from notary.storage.sql.guns import guns, like
from notary.storage.sql.metadata import lock
from notary.storage.sql.values import to_bytes, to_version
from notary.tuf.collection import Collection, File

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


def _remove(cursor: Cursor, gun: str, choose: Callable[[Collection], Sequence[File]], limit: int) -> Sequence[File]:
    lock(cursor, gun)
    chosen = choose(_Rows(cursor, gun))[:limit]
    for file in chosen:
        cursor.run(_DELETE, gun, file.role, file.version)
    return chosen


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

    def remove(self, gun: str, choose: Callable[[Collection], Sequence[File]], limit: int) -> Deferred[Sequence[File]]:
        """See the port."""
        return self._database.write(_remove, gun, choose, limit)

    def close(self) -> Deferred[None]:
        """See the port."""
        return self._database.close()
