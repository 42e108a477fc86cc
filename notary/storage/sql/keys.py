"""The signer's port on a SQL database: private keys, wrapped.

Rules of this module: the table is that of docs/protocol.md, section 5; the signer needs the rights SELECT, INSERT and
DELETE, and never UPDATE. Rows with ``deleted_at`` set are ignored, but they occupy their unique keys, and are removed
where a new row needs the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from notary.errors import InvalidGun, InvalidRow, KeyNotFound
from notary.storage import StoredKey
from notary.storage.sql.cursor import Cursor, Duplicate, OutcomeUnknown, Row, insert
from notary.storage.sql.database import Database
from notary.storage.sql.migrate import SIGNER
from notary.storage.sql.prober import Prober
from notary.storage.sql.values import to_bytes, to_time
from notary.tuf.canonical import quote

_T = TypeVar("_T")

KEY_COLUMNS: Final = (
    "key_id, algorithm, public, private, gun, role, passphrase_alias, encryption_alg, keywrap_alg, last_used"
)
_KEY: Final = f"SELECT {KEY_COLUMNS} FROM private_keys WHERE deleted_at IS NULL"  # noqa: S608  # a constant

_NEWEST: Final = 3
"""How many of the newest keys a sample has. One may be damaged, which says nothing of the passphrase."""

_OLDEST: Final = 1

_COLUMNS: Final = f"id, created_at, {KEY_COLUMNS}"
ROW: Final = f"SELECT {_COLUMNS} FROM private_keys WHERE deleted_at IS NULL"  # noqa: S608  # a constant
"""A query for whole rows, which are deleted and inserted again."""


def values_of(row: Row) -> Mapping[str, object]:
    """Return a row of :data:`ROW` as values by column, ready to be inserted."""
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    for name in ("public", "private"):
        values[name] = to_bytes(values[name])
    return values


def take(cursor: Cursor, row: Row) -> bool:
    """Delete a row of :data:`ROW`, so that it can be inserted again; False if the row has changed since it was read.

    Concurrent transactions that have read the same row wait for each other here: one of them changes or deletes the
    row, and the others must read it again.
    """
    values = values_of(row)
    used = values["last_used"]
    same = "id = ? AND key_id == ? AND passphrase_alias == ? AND deleted_at IS NULL"
    given = (values["id"], values["key_id"], values["passphrase_alias"])
    if used is None:
        return cursor.run(f"DELETE FROM private_keys WHERE {same} AND last_used IS NULL", *given) > 0  # noqa: S608
    return cursor.run(f"DELETE FROM private_keys WHERE {same} AND last_used = ?", *given, used) > 0  # noqa: S608


def to_key(row: Row) -> StoredKey:
    """Return the key of a row of ``KEY_COLUMNS``."""
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
    # In the reference's order, so that both choose the same key where several are pending.
    row = cursor.first(
        f"{_KEY} AND gun == ? AND role == ? AND algorithm == ? AND last_used IS NULL ORDER BY key_id LIMIT 1",
        gun,
        role,
        algorithm,
    )
    return None if row is None else to_key(row)


_TURN: Final = (
    "REPLACE INTO private_keys "
    "(key_id, algorithm, public, private, gun, role, passphrase_alias, encryption_alg, keywrap_alg) "
    "VALUES (?, '', '', '', '', '', '', '', '')"
)
"""Writes the row that stands for a turn. All but its key id is empty, so that little is written into the indexes."""


def _take_turn(cursor: Cursor, key: StoredKey) -> None:
    """Queue what makes other transactions that add a key of this gun, role and algorithm wait for the end of this one.

    The table has no unique key for these three. Where locks are no help, a row is written whose key id stands for them,
    and removed again: nobody ever sees it, others wait for it, and of two nodes of a cluster one fails at its commit.
    """
    digest = hashlib.sha256(f"{key.gun}\0{key.role}\0{key.algorithm}".encode("utf-8", "surrogatepass")).hexdigest()
    if cursor.dialect.lock:
        cursor.later(cursor.dialect.lock, digest)
    elif cursor.dialect.optimistic:
        key_id = f"turn {digest}"
        cursor.later(_TURN, key_id)
        cursor.later("DELETE FROM private_keys WHERE key_id = ?", key_id)


def _sample(cursor: Cursor) -> list[StoredKey]:
    # Both queries walk along the primary key, however many keys there are.
    rows = [*cursor.all(f"{ROW} ORDER BY id DESC LIMIT ?", _NEWEST), *cursor.all(f"{ROW} ORDER BY id LIMIT ?", _OLDEST)]
    found = {}
    for number, _created, *row in rows:
        with suppress(InvalidRow):
            found[number] = to_key(row)
    return list(found.values())


def _add(cursor: Cursor, key: StoredKey, now: object, *, over_deleted: bool = False) -> StoredKey:
    _take_turn(cursor, key)
    kept = _pending(cursor, key.gun, key.role, key.algorithm)
    if kept is not None:
        return kept
    if over_deleted:
        cursor.later("DELETE FROM private_keys WHERE key_id == ? AND deleted_at IS NOT NULL", key.key_id)
    insert(cursor, "private_keys", _values(key, now))
    return replace(key, last_used=None)


def _values(key: StoredKey, now: object) -> Mapping[str, object]:
    """Return a pending key as values by column."""
    return {
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
    }


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
        # PostgreSQL waits for a transaction that replaces the row (mark_used, an operator), and then does not see it.
        if cursor.first(f"{ROW} AND key_id == ?", key_id) is None:
            return False
    return True


class SQLKeyStore:
    """:class:`notary.storage.KeyStore` on a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._prober = Prober(database, SIGNER)

    def add(self, key: StoredKey) -> Deferred[StoredKey]:
        """See the port. Raises StorageFailed if there is a key of this id that is not pending."""
        if not self._database.dialect.holds(key.gun):
            return fail(InvalidGun(f"{quote(key.gun)}: the database cannot hold this name"))
        now = self._database.dialect.bind_time(self._database.now())
        write = self._database.write

        def again(failure: Failure) -> Deferred[StoredKey]:
            failure.trap(Duplicate)  # perhaps of a row with ``deleted_at``: new keys hardly ever meet one
            return write(_add, key, now, over_deleted=True)

        return self._again_if_unknown(lambda: write(_add, key, now).addErrback(again))

    def get(self, key_id: str) -> Deferred[StoredKey]:
        """See the port."""
        return self._database.read(_get, key_id)

    def pending(self, gun: str, role: str, algorithm: str) -> Deferred[StoredKey | None]:
        """See the port."""
        if not self._database.dialect.holds(gun):
            return succeed(None)
        return self._database.read(_pending, gun, role, algorithm)

    def sample(self) -> Deferred[Sequence[StoredKey]]:
        """See the port."""
        return self._database.read(_sample)

    def mark_used(self, key_id: str, when: datetime) -> Deferred[None]:
        """See the port."""
        time = self._database.dialect.bind_time(when.astimezone(UTC))
        return self._again_if_unknown(lambda: self._database.write(_mark_used, key_id, time))

    def delete(self, key_id: str) -> Deferred[bool]:
        """See the port."""
        return self._database.write(_delete_key, key_id)

    def _again_if_unknown(self, write: Callable[[], Deferred[_T]]) -> Deferred[_T]:
        """Run a transaction that may be done twice, and repeat it if its outcome is unknown."""

        def again(failure: Failure) -> Deferred[_T]:
            failure.trap(OutcomeUnknown)
            return write()

        return write().addErrback(again)

    def check(self) -> Deferred[None]:
        """See the port."""
        return self._prober.check()

    def close(self) -> Deferred[None]:
        """See the port."""
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        await self._prober.close()
        await self._database.close()
