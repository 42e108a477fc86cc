"""The signer's port on a SQL database: private keys, wrapped.

Rules of this module: the table is that of docs/protocol.md, section 5; the signer's user may SELECT, INSERT and DELETE,
nothing else. Rows with ``deleted_at`` set do not exist for us, but they occupy their unique keys: they are removed
where we need the place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from notary.errors import InvalidGun, KeyNotFound
from notary.storage import StoredKey
from notary.storage.sql.cursor import Cursor, OutcomeUnknown, Row, insert
from notary.storage.sql.database import Database
from notary.storage.sql.migrate import SIGNER, probe
from notary.storage.sql.values import to_bytes, to_time
from notary.tuf.canonical import quote

_T = TypeVar("_T")

KEY_COLUMNS: Final = (
    "key_id, algorithm, public, private, gun, role, passphrase_alias, encryption_alg, keywrap_alg, last_used"
)
_KEY: Final = f"SELECT {KEY_COLUMNS} FROM private_keys WHERE deleted_at IS NULL"  # noqa: S608  # a constant


_COLUMNS: Final = f"id, created_at, {KEY_COLUMNS}"
ROW: Final = f"SELECT {_COLUMNS} FROM private_keys WHERE deleted_at IS NULL"  # noqa: S608  # a constant
"""Whole rows, for those who put them in again."""


def values_of(row: Row) -> Mapping[str, object]:
    """A row of :data:`ROW` by its columns, ready to be inserted."""
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    for name in ("public", "private"):
        values[name] = to_bytes(values[name])
    return values


def take(cursor: Cursor, row: Row) -> bool:
    """Delete a row of :data:`ROW`, to insert it anew; False if it is not the same any more.

    Those who race have read the same row, and wait for each other here: one of them ends its pending state, wraps it
    anew or deletes it, and the others must look again.
    """
    values = values_of(row)
    used = values["last_used"]
    same = "id = ? AND key_id == ? AND passphrase_alias == ? AND deleted_at IS NULL"
    given = (values["id"], values["key_id"], values["passphrase_alias"])
    if used is None:
        return cursor.run(f"DELETE FROM private_keys WHERE {same} AND last_used IS NULL", *given) > 0  # noqa: S608
    return cursor.run(f"DELETE FROM private_keys WHERE {same} AND last_used = ?", *given, used) > 0  # noqa: S608


def to_key(row: Row) -> StoredKey:
    """A row of the columns in ``KEY_COLUMNS``."""
    key_id, algorithm, public, private, gun, role, alias, encryption_alg, keywrap_alg, used = row
    last_used = None if used is None else to_time(used)
    return StoredKey(
        key_id, algorithm, to_bytes(public), to_bytes(private), gun, role, alias, encryption_alg, keywrap_alg, last_used
    )


def _get(cursor: Cursor, key_id: str) -> StoredKey:
    row = cursor.first(f"{_KEY} AND key_id == ?", key_id)
    if row is None:
        raise KeyNotFound(f"there is no key {key_id}")
    return to_key(row)


def _pending(cursor: Cursor, gun: str, role: str, algorithm: str) -> StoredKey | None:
    # In the reference's order, so that both hand out the same one where there are several.
    row = cursor.first(
        f"{_KEY} AND gun == ? AND role == ? AND algorithm == ? AND last_used IS NULL ORDER BY key_id LIMIT 1",
        gun,
        role,
        algorithm,
    )
    return None if row is None else to_key(row)


def _add(cursor: Cursor, key: StoredKey, now: object) -> StoredKey:
    kept = _pending(cursor, key.gun, key.role, key.algorithm)
    if kept is not None:
        return kept
    cursor.later("DELETE FROM private_keys WHERE key_id == ? AND deleted_at IS NOT NULL", key.key_id)
    insert(
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
    while True:
        row = cursor.first(f"{ROW} AND key_id == ? AND last_used IS NULL", key_id)
        if row is None:
            return
        if take(cursor, row):
            insert(cursor, "private_keys", {**values_of(row), "updated_at": when, "last_used": when})
            return


def _delete_key(cursor: Cursor, key_id: str) -> bool:
    while not cursor.run("DELETE FROM private_keys WHERE key_id == ? AND deleted_at IS NULL", key_id):
        # PostgreSQL waits for whoever puts the row in again (mark_used, an operator), and then takes it to be gone.
        if cursor.first(f"{ROW} AND key_id == ?", key_id) is None:
            return False
    return True


class SQLKeyStore:
    """:class:`notary.storage.KeyStore` on a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, key: StoredKey) -> Deferred[StoredKey]:
        """See the port. Raises StorageFailed if a key of this id is there that is not pending."""
        if not self._database.dialect.holds(key.gun):
            return fail(InvalidGun(f"{quote(key.gun)}: the database cannot hold this name"))
        now = self._database.dialect.bind_time(self._database.now())
        # The table has no unique key for these three.
        turn = f"{key.gun}\0{key.role}\0{key.algorithm}"
        return self._again_if_unknown(lambda: self._database.write_in_turn(turn, _add, key, now))

    def get(self, key_id: str) -> Deferred[StoredKey]:
        """See the port."""
        return self._database.read(_get, key_id)

    def pending(self, gun: str, role: str, algorithm: str) -> Deferred[StoredKey | None]:
        """See the port."""
        if not self._database.dialect.holds(gun):
            return succeed(None)
        return self._database.read(_pending, gun, role, algorithm)

    def mark_used(self, key_id: str, when: datetime) -> Deferred[None]:
        """See the port."""
        time = self._database.dialect.bind_time(when.astimezone(UTC))
        return self._again_if_unknown(lambda: self._database.write(_mark_used, key_id, time))

    def delete(self, key_id: str) -> Deferred[bool]:
        """See the port."""
        return self._database.write(_delete_key, key_id)

    def _again_if_unknown(self, write: Callable[[], Deferred[_T]]) -> Deferred[_T]:
        """Do what has the same effect when it is done twice."""

        def again(failure: Failure) -> Deferred[_T]:
            failure.trap(OutcomeUnknown)
            return write()

        return write().addErrback(again)

    def check(self) -> Deferred[None]:
        """See the port."""
        return self._database.read(probe, SIGNER)

    def close(self) -> Deferred[None]:
        """See the port."""
        return self._database.close()
