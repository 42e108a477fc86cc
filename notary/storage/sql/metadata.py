"""The server's port on a SQL database: signed metadata, all versions, and the changefeed.

Rules of this module: tables and columns are those of docs/protocol.md, section 5. Rows with ``deleted_at`` set are
ignored, but they occupy their unique keys, and are removed where a new row needs the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final, Literal, Protocol

from twisted.internet.defer import Deferred, fail

from notary.errors import InvalidGun, InvalidRole, NotFound, OldVersion, StorageFailed
from notary.storage import NOTHING, Change, Identity, Place, Stored, Update
from notary.storage.sql import feed
from notary.storage.sql.cursor import Cursor, Duplicate, OutcomeUnknown, Row, insert
from notary.storage.sql.database import Database
from notary.storage.sql.guns import guns as guns_after
from notary.storage.sql.prober import Prober
from notary.storage.sql.values import to_bytes, to_time, to_version, to_written
from notary.tuf.model import TIMESTAMP, Gun, RoleName

_INT32_MAX: Final = 2**31 - 1
"""The largest value of the integer columns."""

_INT64_MAX: Final = 2**63 - 1
"""The largest integer that every driver takes as a parameter."""

_MAX_ROLES: Final = 100
"""The largest number of roles in one statement; SQLite allows 500 SELECTs in one."""

_INSERT_BYTES: Final = 1 << 20
"""The approximate limit of content in one INSERT, because databases limit it; a larger file has its own INSERT."""

_FILE: Final = "SELECT role, version, data, sha256, COALESCE(created_at, updated_at) FROM tuf_files"
_IDENTITY: Final = "SELECT gun, role, version, sha256 FROM tuf_files"
_THIS_ROLE: Final = "WHERE gun == ? AND role == ? AND deleted_at IS NULL"


class Written(Protocol):
    """What is written of one file; ``data`` may be read from elsewhere each time it is asked for."""

    @property
    def role(self) -> RoleName:
        """The role."""

    @property
    def version(self) -> int:
        """The version."""

    @property
    def data(self) -> bytes:
        """The whole signed file."""


def _stored(role: RoleName, row: Row) -> Stored:
    _, version, data, sha256, modified = row
    content = to_bytes(data)
    # Old releases of Go Notary, without this column, left it empty.
    return Stored(
        role, to_version(version), content, sha256 or hashlib.sha256(content).hexdigest(), to_written(modified)
    )


def _for_each_role(cursor: Cursor, gun: Gun, roles: Sequence[RoleName], sql: str) -> Sequence[Row]:
    """Run a query with the parameters gun and role for all ``roles``, in as few statements as possible."""
    found: list[Row] = []
    for start in range(0, len(roles), _MAX_ROLES):
        some = roles[start : start + _MAX_ROLES]
        union = " UNION ALL ".join([cursor.dialect.member.format(sql)] * len(some)) if len(some) > 1 else sql
        found += cursor.all(union, *(value for role in some for value in (str(gun), str(role))))
    return found


def _current(cursor: Cursor, gun: Gun, roles: Sequence[RoleName]) -> Mapping[RoleName, Stored]:
    newest = f"{_FILE} {_THIS_ROLE} ORDER BY version DESC LIMIT 1"
    found = {row[0]: row for row in _for_each_role(cursor, gun, roles, newest)}
    return {role: _stored(role, found[role]) for role in roles if role in found}


def _by_checksum(cursor: Cursor, gun: Gun, role: RoleName, sha256: str) -> Stored:
    # Not ordered by version: SQLite would read every version of the role.
    row = cursor.first(f"{_FILE} {_THIS_ROLE} AND sha256 = ? LIMIT 1", str(gun), str(role), sha256)
    if row is None:
        raise NotFound(f"{gun} has no {role} with this checksum")
    return _stored(role, row)


def _by_version(cursor: Cursor, gun: Gun, role: RoleName, version: int) -> Stored:
    row = cursor.first(f"{_FILE} {_THIS_ROLE} AND version = ?", str(gun), str(role), version)
    if row is None:
        raise NotFound(f"{gun} has no version {version} of {role}")
    return _stored(role, row)


def _identify(cursor: Cursor, places: Sequence[Place], last_seen: Mapping[Place, int]) -> Mapping[Place, Identity]:
    found: dict[Place, Identity] = {}
    for start in range(0, len(places), _MAX_ROLES):
        found |= _look(cursor, places[start : start + _MAX_ROLES], last_seen)
    return found


def _look(cursor: Cursor, places: Sequence[Place], last_seen: Mapping[Place, int]) -> Mapping[Place, Identity]:
    """Identify the files at ``places`` with one statement, or with a second one if a version in ``last_seen`` is gone.

    The rows from a known version upwards are one range of the unique key; without a known version, finding the newest
    costs a database two to three times as much. Conditions that differ only in the collection become one list, which
    takes MariaDB half of the time, because it analyses one condition and not many.
    """
    known: dict[tuple[Gun, str, int], list[RoleName]] = {}
    newest: list[str] = []
    for place in places:
        gun, role, version = place
        lowest = last_seen.get(place) if version is None else version
        if lowest is None:
            newest += (str(gun), str(role))
        else:
            known.setdefault((gun, ">=" if version is None else "=", lowest), []).append(role)
    alike: dict[tuple[str, int, tuple[RoleName, ...]], list[Gun]] = {}
    for (gun, comparison, version), roles in known.items():
        alike.setdefault((comparison, version, tuple(roles)), []).append(gun)
    values: list[object] = []
    terms = []
    for (comparison, version, names), guns in alike.items():
        terms.append(f"gun {_one_of(guns)} AND role {_one_of(names)} AND version {comparison} ?")
        values += [*map(str, guns), *map(str, names), version]
    ranges = f"{_IDENTITY} WHERE ({' OR '.join(terms)}) AND deleted_at IS NULL"
    member = cursor.dialect.member.format(f"{_IDENTITY} {_THIS_ROLE} ORDER BY version DESC LIMIT 1")
    statement = " UNION ALL ".join([*([ranges] if terms else []), *[member] * (len(newest) // 2)])
    rows: dict[tuple[str, str], dict[int, str | None]] = {}
    for gun, role, version, sha256 in cursor.all(statement, *values, *newest):
        rows.setdefault((gun, role), {})[to_version(version)] = sha256
    found: dict[Place, Identity] = {}
    for place in places:
        gun, role, version = place
        seen = rows.get((gun, role), {})
        if version is None:
            version = max(seen, default=0)
            if version < last_seen.get(place, 0):  # these rows answer another place, one with a version
                return _look(cursor, places, NOTHING)
        if version in seen:
            # Old releases of Go Notary left the checksum empty: then it is computed, unless the file is gone by now.
            with suppress(NotFound):
                found[place] = (version, seen[version] or _by_version(cursor, gun, role, version).sha256)
    return found


def _one_of(values: Sequence[object]) -> str:
    return "= ?" if len(values) == 1 else f"IN ({', '.join('?' * len(values))})"


def lock(cursor: Cursor, gun: str) -> Sequence[Row]:
    """Lock a collection against other writers, from the next statement until the commit; return its name as stored.

    The lock is on the first row of the collection, which publishing never changes. A collection without rows cannot be
    locked: concurrent first publishes write the same version of the timestamp, and the unique key lets one succeed.
    """
    first = "SELECT gun FROM tuf_files WHERE gun = ? AND deleted_at IS NULL ORDER BY role, version LIMIT 1"
    return cursor.later(f"{first} {cursor.dialect.for_update}", str(gun))


def _check_gun(gun: Gun, rows: Sequence[Row]) -> None:
    for row in rows:
        if row[0] != gun:
            # The message does not name the other collection, which this client may have no right to see.
            raise InvalidGun(
                f"{gun}: the database cannot tell this name from that of an existing collection; "
                "choose one that differs by more than case and accents"
            )


def _has(cursor: Cursor, gun: Gun) -> bool:
    row = cursor.first("SELECT gun FROM tuf_files WHERE gun = ? AND deleted_at IS NULL LIMIT 1", str(gun))
    if row is None or row[0] == gun:
        return row is not None
    # This collection may exist even if a Go Notary has also written one with a similar name.
    if cursor.first("SELECT 1 FROM tuf_files WHERE gun == ? AND deleted_at IS NULL LIMIT 1", str(gun)) is None:
        _check_gun(gun, [row])
    return True


def _publish(
    cursor: Cursor, gun: Gun, updates: Sequence[Written], after: str | None, now: object, *, make_room: bool
) -> None:
    locked = lock(cursor, gun)
    roles = list(dict.fromkeys([*(update.role for update in updates), *([] if after is None else [TIMESTAMP])]))
    # Compared as the unique key compares: a row of a similar name, which is never read, may prevent an insertion.
    newest = (
        "SELECT gun, role, version, sha256 FROM tuf_files WHERE gun = ? AND role = ? AND deleted_at IS NULL "
        "ORDER BY version DESC LIMIT 1"
    )
    versions: dict[str, int] = {}
    timestamp = None
    found = _for_each_role(cursor, gun, roles, newest)
    _check_gun(gun, [*locked, *found])
    for _, role, version, sha256 in found:
        if role not in roles:
            raise InvalidRole(f"{gun}: the database cannot tell one of the roles from an existing one, {role}")
        versions[role] = to_version(version)
        if role == TIMESTAMP:
            timestamp = sha256 or _current(cursor, gun, [TIMESTAMP])[TIMESTAMP].sha256
    if after not in {None, timestamp}:
        raise OldVersion(f"{gun}: what this was to follow has been replaced or deleted")
    # Compared with the versions stored before this call, because the updates may be in any order.
    for update in updates:
        stored = versions.get(update.role, 0)
        if stored >= update.version:
            raise OldVersion(f"{gun}: {update.role} version {stored} is stored, and {update.version} is not above it")
    if make_room:
        for update in updates:
            cursor.later(
                "DELETE FROM tuf_files WHERE gun = ? AND role = ? AND version = ? AND deleted_at IS NOT NULL",
                str(gun),
                str(update.role),
                update.version,
            )
    _write(cursor, gun, updates, now)


def _write(cursor: Cursor, gun: Gun, updates: Sequence[Written], now: object) -> None:
    rows: list[Mapping[str, object]] = []
    size = 0
    checksums: dict[int, str] = {}
    # Sorted, so that concurrent publishers insert in the same order.
    for update in sorted(updates, key=lambda update: (update.role, update.version)):
        data = update.data
        sha256 = hashlib.sha256(data).hexdigest()
        if update.role == TIMESTAMP:
            checksums[update.version] = sha256
        if rows and size + len(data) > _INSERT_BYTES:
            insert(cursor, "tuf_files", *rows)
            rows, size = [], 0
        size += len(data)
        rows.append(
            {
                "created_at": now,
                "updated_at": now,
                "gun": str(gun),
                "role": str(update.role),
                "version": update.version,
                "sha256": sha256,
                "data": data,
            }
        )
    if rows:
        insert(cursor, "tuf_files", *rows)
    for update in updates:
        if update.role == TIMESTAMP:
            _record(cursor, gun, now, update.version, checksums[update.version], "update")


def _delete(cursor: Cursor, gun: Gun, now: object) -> bool:
    lock(cursor, gun)  # else files of a concurrent publish would remain
    cursor.run("DELETE FROM tuf_files WHERE gun == ? AND deleted_at IS NOT NULL", str(gun))
    added = _rival_next_publish(cursor, gun, now) if cursor.dialect.optimistic else 0
    if cursor.run("DELETE FROM tuf_files WHERE gun == ?", str(gun)) == added:
        return False
    _record(cursor, gun, now, 0, "", "deletion")
    return True


def replace(cursor: Cursor, gun: Gun, updates: Sequence[Update], now: object) -> None:
    """Delete a collection, if there is one, and write ``updates``. Raises InvalidGun."""
    locked = lock(cursor, gun)
    _delete(cursor, gun, now)
    _check_gun(gun, locked)
    _write(cursor, gun, updates, now)


def _rival_next_publish(cursor: Cursor, gun: Gun, now: object) -> int:
    """Write the timestamp that a publish on another node of a cluster would write now, so that only one can commit.

    The caller deletes the row in the same transaction. Returns the number of rows written.
    """
    newest = "SELECT version FROM tuf_files WHERE gun = ? AND role = ? ORDER BY version DESC LIMIT 1"
    row = cursor.first(newest, str(gun), str(TIMESTAMP))
    if row is None or row[0] >= _INT32_MAX:
        return 0
    values = {"created_at": now, "updated_at": now, "gun": str(gun), "role": str(TIMESTAMP), "version": row[0] + 1}
    # Replaced, because such a publish may have arrived from the other node since the query.
    insert(cursor, "tuf_files", {**values, "sha256": "", "data": b""}, verb="REPLACE")
    return 1


def _record(
    cursor: Cursor, gun: Gun, now: object, version: int, sha256: str, category: Literal["update", "deletion"]
) -> None:
    insert(
        cursor,
        "changefeed",
        {"created_at": now, "gun": str(gun), "version": version, "sha256": sha256, "category": category},
    )


def _are_stored(cursor: Cursor, gun: Gun, updates: Sequence[Written]) -> bool:
    return all(
        cursor.first(
            f"SELECT 1 FROM tuf_files {_THIS_ROLE} AND version = ? AND sha256 = ?",  # noqa: S608  # constants
            str(gun),
            str(update.role),
            update.version,
            hashlib.sha256(update.data).hexdigest(),
        )
        for update in updates
    )


def _changes(
    cursor: Cursor, gun: Gun | None, change_id: int, records: int, horizon: feed.Horizon, now: datetime
) -> Sequence[Change]:
    backwards = change_id < 0 or records < 0
    end = change_id if change_id > 0 else None  # else from the end
    if gun is not None:
        rows = _changes_of(cursor, gun, change_id, records, backwards=backwards)
    elif backwards:
        rows = feed.before(cursor, end, abs(records), horizon, now)
    else:
        rows = feed.after(cursor, change_id, records, horizon, now)
    # PostgreSQL fills the column of an empty checksum with spaces.
    return [Change(row[0], to_written(row[1]), row[2], row[3], (row[4] or "").rstrip(), row[5]) for row in rows]


def _changes_of(cursor: Cursor, gun: Gun, change_id: int, records: int, *, backwards: bool) -> Sequence[Row]:
    """Read a page of one collection, whose writers wait for each other before they take an id."""
    where: dict[str, object] = {"gun == ?": str(gun)}
    if not backwards:
        where["id > ?"] = change_id
    elif change_id > 0:  # else from the end
        where["id < ?"] = change_id
    order = "DESC" if backwards else "ASC"
    rows = cursor.all(
        f"{feed.RECORD} WHERE {' AND '.join(where)} ORDER BY id {order} LIMIT ?", *where.values(), abs(records)
    )
    return rows[::-1] if backwards else rows


class SQLMetadataStore:
    """:class:`notary.storage.MetadataStore` on a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._horizon = feed.Horizon()
        self._prober = Prober(database)

    def current(self, gun: Gun, roles: Collection[RoleName]) -> Deferred[Mapping[RoleName, Stored]]:
        """See the port."""
        wanted = tuple(dict.fromkeys(roles))
        one_statement = len(wanted) <= _MAX_ROLES
        return (self._database.read if one_statement else self._database.snapshot)(_current, gun, wanted)

    def by_checksum(self, gun: Gun, role: RoleName, sha256: str) -> Deferred[Stored]:
        """See the port."""
        return self._database.read(_by_checksum, gun, role, sha256)

    def by_version(self, gun: Gun, role: RoleName, version: int) -> Deferred[Stored]:
        """See the port."""
        if not 0 < version <= _INT32_MAX:
            return fail(NotFound(f"{gun} has no version {version} of {role}"))
        return self._database.read(_by_version, gun, role, version)

    def has(self, gun: Gun) -> Deferred[bool]:
        """See the port."""
        return self._database.read(_has, gun)

    def guns(self, after: str, limit: int) -> Deferred[Sequence[str]]:
        """See the port."""
        return self._database.snapshot(guns_after, "", after, limit)

    def identify(
        self, places: Collection[Place], last_seen: Mapping[Place, int] = NOTHING
    ) -> Deferred[Mapping[Place, Identity]]:
        """See the port."""
        possible = [place for place in places if place[2] is None or 0 < place[2] <= _INT32_MAX]
        one_statement = len(possible) <= _MAX_ROLES
        return (self._database.read if one_statement else self._database.snapshot)(_identify, possible, last_seen)

    def publish(self, gun: Gun, updates: Sequence[Update], after: str | None = None) -> Deferred[datetime]:
        """See the port."""
        return self.write(gun, updates, after)

    def write(self, gun: Gun, updates: Sequence[Written], after: str | None) -> Deferred[datetime]:
        """Publish ``updates``, of which about one file is in memory at a time; ``data`` is read in a thread."""
        if len({(update.role, update.version) for update in updates}) < len(updates):
            return fail(OldVersion(f"{gun}: one role and version comes twice"))
        if any(update.version > _INT32_MAX for update in updates):
            return fail(StorageFailed(f"{gun}: a version is above {_INT32_MAX}, the largest that can be stored"))
        return Deferred.fromCoroutine(self._publish(gun, tuple(updates), after))

    async def _publish(self, gun: Gun, updates: Sequence[Written], after: str | None) -> datetime:
        now = self._database.dialect.bind_time(self._database.now())
        try:
            try:
                await self._database.write(_publish, gun, updates, after, now, make_room=False)
            except Duplicate:  # an ignored row has this key, or a concurrent publish was first
                await self._database.write(_publish, gun, updates, after, now, make_room=True)
        except Duplicate as error:
            raise OldVersion(f"{gun}: somebody else published the same version first") from error
        except OutcomeUnknown:
            # Not repeated: the commit may still be in progress.
            if not await self._database.read(_are_stored, gun, updates):
                raise
        return to_time(now)

    def delete(self, gun: Gun) -> Deferred[bool]:
        """See the port."""
        return self._database.write(_delete, gun, self._database.dialect.bind_time(self._database.now()))

    def changes(self, gun: Gun | None, change_id: int | None, records: int) -> Deferred[Sequence[Change]]:
        """See the port."""
        return self._database.read(
            _changes, gun, _clamp(change_id or 0), _clamp(records), self._horizon, self._database.now()
        )

    def check(self) -> Deferred[None]:
        """See the port."""
        return self._prober.check()

    def check_writes(self) -> Deferred[None]:
        """See the port."""
        return self._prober.check_writes()

    def close(self) -> Deferred[None]:
        """See the port."""
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        await self._prober.close()
        await self._database.close()


def _clamp(value: int) -> int:
    """Limit a number to the range that every driver takes; no row has a number outside it."""
    return max(-_INT64_MAX, min(value, _INT64_MAX))
