"""The signer's port on a SQL database: private keys, wrapped.

Rules of this module: the table is that of docs/protocol.md, section 5; the signer's user may SELECT, INSERT and DELETE,
nothing else. Rows with ``deleted_at`` set do not exist for us, but they occupy their unique keys: they are removed
where we need the place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from notary.errors import InvalidGun, KeyNotFound
from notary.storage import StoredKey
from notary.storage.migrate import SIGNER, probe
from notary.storage.pool import Cursor, Database, OutcomeUnknown, Row, insert
from notary.storage.rows import to_bytes, to_time
from notary.tuf.canonical import quote

_T = TypeVar("_T")

_KEY_COLUMNS: Final = (
    "key_id, algorithm, public, private, gun, role, passphrase_alias, encryption_alg, keywrap_alg, last_used"
)
_KEY: Final = f"SELECT {_KEY_COLUMNS} FROM private_keys WHERE deleted_at IS NULL"  # noqa: S608  # a constant


def _key(row: Row) -> StoredKey:
    key_id, algorithm, public, private, gun, role, alias, encryption_alg, keywrap_alg, used = row
    last_used = None if used is None else to_time(used)
    return StoredKey(
        key_id, algorithm, to_bytes(public), to_bytes(private), gun, role, alias, encryption_alg, keywrap_alg, last_used
    )


def _get(cursor: Cursor, key_id: str) -> StoredKey:
    row = cursor.first(f"{_KEY} AND key_id == ?", key_id)
    if row is None:
        raise KeyNotFound(f"there is no key {key_id}")
    return _key(row)


def _pending(cursor: Cursor, gun: str, role: str, algorithm: str) -> StoredKey | None:
    # In the reference's order, so that both hand out the same one where there are several.
    row = cursor.first(
        f"{_KEY} AND gun == ? AND role == ? AND algorithm == ? AND last_used IS NULL ORDER BY key_id LIMIT 1",
        gun,
        role,
        algorithm,
    )
    return None if row is None else _key(row)


def _add(cursor: Cursor, key: StoredKey, now: object) -> StoredKey:
    kept = _pending(cursor, key.gun, key.role, key.algorithm)
    if kept is not None:
        return kept
    cursor.run("DELETE FROM private_keys WHERE key_id == ? AND deleted_at IS NOT NULL", key.key_id)
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
    columns = f"id, created_at, {_KEY_COLUMNS}"
    row = cursor.first(
        f"SELECT {columns} FROM private_keys WHERE key_id == ? AND deleted_at IS NULL AND last_used IS NULL",  # noqa: S608
        key_id,
    )
    if row is None:
        return
    values = dict(zip(columns.split(", "), row, strict=True))
    for name in ("public", "private"):
        values[name] = to_bytes(values[name])
    # Those who race read the same row; one of them ends its pending state, or deletes the key.
    if not cursor.run("DELETE FROM private_keys WHERE id = ? AND last_used IS NULL", values["id"]):
        return
    insert(cursor, "private_keys", {**values, "updated_at": when, "last_used": when})


def _delete_key(cursor: Cursor, key_id: str) -> bool:
    return cursor.run("DELETE FROM private_keys WHERE key_id == ? AND deleted_at IS NULL", key_id) > 0


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
