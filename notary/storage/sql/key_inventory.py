"""The operators' port on the signer's database: every key, row by row.

Rules of this module: those of ``keys``, whose table this is. A concurrent change of a row by the signer is never lost:
replacing or removing a row states what the row was, and does nothing if the row has changed. A walk goes by the row's
number, which a row keeps when it is inserted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from twisted.internet.defer import Deferred, succeed

from notary.errors import InvalidRow
from notary.storage import StoredKey
from notary.storage.operators import KeyRow
from notary.storage.sql.cursor import Cursor, Row, insert
from notary.storage.sql.database import Database
from notary.storage.sql.keys import ROW, take, to_key, values_of
from notary.storage.sql.values import UNKNOWN_TIME, to_written

_PENDING: Final = "id = ? AND key_id == ? AND deleted_at IS NULL AND last_used IS NULL"


def _row(row: Row) -> KeyRow:
    number, created, key_id = row[:3]
    written = to_written(created)
    try:
        return KeyRow(number, str(key_id), to_key(row[2:]), None if written == UNKNOWN_TIME else written)
    except InvalidRow as error:
        return KeyRow(number, str(key_id), None, None, str(error))


def _key_ids(cursor: Cursor, gun: str) -> Sequence[str]:
    rows = cursor.all("SELECT key_id FROM private_keys WHERE gun == ? AND deleted_at IS NULL ORDER BY key_id", gun)
    return [key_id for (key_id,) in rows]


def _count(cursor: Cursor) -> int:
    ((count,),) = cursor.all("SELECT COUNT(*) FROM private_keys WHERE deleted_at IS NULL")
    found: int = count
    return found


def _page(cursor: Cursor, after: int, limit: int) -> Sequence[KeyRow]:
    return [_row(row) for row in cursor.all(f"{ROW} AND id > ? ORDER BY id LIMIT ?", after, limit)]


def _replace(cursor: Cursor, pairs: Sequence[tuple[KeyRow, StoredKey]], now: object) -> int:
    replaced = 0
    marks = ", ".join("?" * len(pairs))
    found = {row[0]: row for row in cursor.all(f"{ROW} AND id IN ({marks})", *[old.number for old, _ in pairs])}
    for old, new in pairs:
        row = found.get(old.number)
        key = _row(row).key if row is not None else None
        # A key that was first used meanwhile is replaced too; its time of use is kept.
        if row is None or key is None or old.key is None or replace(key, last_used=old.key.last_used) != old.key:
            continue
        if take(cursor, row):
            changed = {
                "private": new.private,
                "passphrase_alias": new.passphrase_alias,
                "encryption_alg": new.encryption_alg,
                "keywrap_alg": new.keywrap_alg,
                "updated_at": now,
            }
            insert(cursor, "private_keys", {**values_of(row), **changed})
            replaced += 1
    return replaced


def _remove_pending(cursor: Cursor, rows: Sequence[KeyRow]) -> int:
    delete = f"DELETE FROM private_keys WHERE {_PENDING}"  # noqa: S608  # a constant
    return sum(cursor.run(delete, row.number, row.key_id) for row in rows)


class SQLKeyInventory:
    """:class:`notary.storage.operators.KeyInventory` on a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def key_ids(self, gun: str) -> Deferred[Sequence[str]]:
        """See the port."""
        return self._database.read(_key_ids, gun)

    def count(self) -> Deferred[int]:
        """See the port."""
        return self._database.read(_count)

    def page(self, after: int, limit: int) -> Deferred[Sequence[KeyRow]]:
        """See the port."""
        return self._database.read(_page, after, limit)

    def replace(self, pairs: Sequence[tuple[KeyRow, StoredKey]]) -> Deferred[int]:
        """See the port."""
        if not pairs:
            return succeed(0)
        return self._database.write(_replace, pairs, self._database.dialect.bind_time(self._database.now()))

    def remove_pending(self, rows: Sequence[KeyRow]) -> Deferred[int]:
        """See the port."""
        return self._database.write(_remove_pending, rows)

    def close(self) -> Deferred[None]:
        """See the port."""
        return self._database.close()
