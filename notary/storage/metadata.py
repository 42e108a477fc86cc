"""The server's port on a SQL database: signed metadata, all versions, and the changefeed.

Rules of this module: tables and columns are those of docs/protocol.md, section 5. Rows with ``deleted_at`` set do not
exist for us, but they occupy their unique keys: they are removed where we need the place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from notary.errors import NotFound, OldVersion, StorageFailed
from notary.storage import Change, Identity, Place, Stored, Update
from notary.storage.migrate import SERVER, probe
from notary.storage.pool import Cursor, Database, Duplicate, Row, insert
from notary.storage.rows import to_bytes, to_time, to_version
from notary.tuf.model import TIMESTAMP, Gun, RoleName

_INT32_MAX: Final = 2**31 - 1
"""The largest value of the integer columns."""

_INT64_MAX: Final = 2**63 - 1
"""The largest integer that every driver takes as a parameter."""

_FILE: Final = "SELECT version, data, sha256, COALESCE(created_at, updated_at) FROM tuf_files"
_FEED: Final = "SELECT id, created_at, gun, version, sha256, category FROM changefeed"
_TERMS: Final = 100
"""How many places one statement asks about; SQLite takes 500."""

_THIS_ROLE: Final = "WHERE gun = ? AND role = ? AND deleted_at IS NULL"


def _stored(role: RoleName, row: Row) -> Stored:
    version, data, sha256, modified = row
    content = to_bytes(data)
    # A Go Notary from before that column left it empty.
    return Stored(role, to_version(version), content, sha256 or hashlib.sha256(content).hexdigest(), to_time(modified))


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


def _identify(cursor: Cursor, places: Sequence[Place]) -> Mapping[Place, Identity]:
    found: dict[Place, Identity] = {}
    for start in range(0, len(places), _TERMS):
        part = places[start : start + _TERMS]
        terms: list[str] = []
        values: list[object] = []
        for number, (gun, role, version) in enumerate(part):
            which = "ORDER BY version DESC LIMIT 1" if version is None else "AND version = ?"
            terms.append(
                f"SELECT {number} AS place, version, sha256 FROM "  # noqa: S608
                f"(SELECT version, sha256 FROM tuf_files {_THIS_ROLE} {which}) AS file{number}"
            )
            values += [str(gun), str(role)] if version is None else [str(gun), str(role), version]
        for number, version, sha256 in cursor.all(" UNION ALL ".join(terms), *values):
            gun, role, _ = place = part[number]
            # A Go Notary from before that column left it empty: then the content tells, as of the same moment.
            found[place] = (to_version(version), sha256 or _by_version(cursor, gun, role, version).sha256)
    return found


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
            newest = to_version(row[0])
            raise OldVersion(f"{gun}: {update.role} version {newest} is stored, and {update.version} is not above it")
    for update in updates:
        place = (str(gun), str(update.role), update.version)
        sha256 = hashlib.sha256(update.data).hexdigest()
        cursor.run(
            "DELETE FROM tuf_files WHERE gun = ? AND role = ? AND version = ? AND deleted_at IS NOT NULL", *place
        )
        insert(
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
    insert(
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
    found = [Change(row[0], to_time(row[1]), row[2], row[3], row[4] or "", row[5]) for row in rows]
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

    def identify(self, places: Collection[Place]) -> Deferred[Mapping[Place, Identity]]:
        """See the port."""
        possible = [place for place in places if place[2] is None or 0 < place[2] <= _INT32_MAX]
        return self._database.read(_identify, possible)

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
        return self._database.read(probe, SERVER)

    def close(self) -> Deferred[None]:
        """See the port."""
        return self._database.close()


def _clamp(value: int) -> int:
    """The nearest number that every driver takes; no row is beyond it."""
    return max(-_INT64_MAX, min(value, _INT64_MAX))
