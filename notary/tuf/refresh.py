"""Whether the timestamp or snapshot that a reader is about to get must be renewed first (docs/protocol.md, section 1).

Rules of this module: pure. The stored files and ``now`` come in; what comes out is None (serve what is stored) or the
drafts of the next versions. The server may not hold the keys for them: then assembling a draft raises InvalidUpdate,
and the reader gets what is stored, since a client judges expiry for itself.

Whether root has expired is the client's to judge too: it stops no renewal, it is only told (section 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from notary.errors import InvalidMetadata, InvalidUpdate, NotFound
from notary.tuf import keys
from notary.tuf.model import ROOT, SNAPSHOT, TIMESTAMP, RoleName, Root, Snapshot, Timestamp
from notary.tuf.publish import Draft, Held, next_snapshot, next_timestamp, stored_envelope


@dataclass(frozen=True, slots=True)
class Refresh:
    """What must be renewed.

    ``snapshot`` is the next snapshot, if the stored one has expired and there can be a next one. If it cannot be
    signed, the stored snapshot stays in force. A new timestamp is due if a new snapshot was made, or if
    ``timestamp_due``. ``root_expired`` is there to be logged and counted.
    """

    snapshot: Draft | None
    timestamp_due: bool
    root_expired: bool
    _root: Root
    _snapshot_data: bytes
    _timestamp_version: int
    _now: datetime

    def timestamp(self, snapshot: bytes | None = None) -> Draft:
        """The next timestamp over ``snapshot``, the finished new file; left out: over the stored one.

        Raises InvalidUpdate if there can be no next one.
        """
        data = self._snapshot_data if snapshot is None else snapshot
        return next_timestamp(self._root, self._timestamp_version, data, self._now)


def stale(current: Mapping[RoleName, Held], now: datetime) -> Refresh | None:
    """What must be renewed before the timestamp or snapshot in ``current`` is served at ``now`` (aware), if anything.

    ``current`` holds the newest stored timestamp, snapshot and root. The timestamp is due if it has expired, or if it
    does not vouch for the stored snapshot; the snapshot only if it has expired.

    Raises NotFound if one that matters is not there; InvalidMetadata if one that matters is not valid, or if the
    snapshot is not signed as root asks: the server vouches for nothing of that kind.
    """
    held_timestamp, held_snapshot = _held(current, TIMESTAMP), _held(current, SNAPSHOT)
    timestamp = Timestamp.parse(stored_envelope(TIMESTAMP, held_timestamp.data))
    snapshot = Snapshot.parse(stored_envelope(SNAPSHOT, held_snapshot.data))
    snapshot_due = snapshot.expires < now
    timestamp_due = timestamp.expires < now or not timestamp.meta[SNAPSHOT].matches(held_snapshot.data)
    if not snapshot_due and not timestamp_due:
        return None
    held_root = _held(current, ROOT)
    root = Root.parse(stored_envelope(ROOT, held_root.data))
    if not keys.meets_threshold(snapshot.envelope, root.roles[SNAPSHOT]).ok:
        raise InvalidMetadata("the stored snapshot is not signed by the keys that root names for it")
    return Refresh(
        snapshot=_renewed(root, held_root, snapshot, held_snapshot.version, now) if snapshot_due else None,
        timestamp_due=timestamp_due,
        root_expired=root.expires < now,
        _root=root,
        _snapshot_data=held_snapshot.data,
        _timestamp_version=held_timestamp.version,
        _now=now,
    )


def _renewed(root: Root, held_root: Held, snapshot: Snapshot, version: int, now: datetime) -> Draft | None:
    try:
        return next_snapshot(root, snapshot, version, {ROOT: held_root.data}, now)
    except InvalidUpdate:
        return None


def good_until(timestamp: Held, snapshot: Held) -> datetime:
    """The moment from which :func:`stale` has something to renew; long past if the two do not belong together.

    Raises InvalidMetadata if one of them is not valid.
    """
    first = Timestamp.parse(stored_envelope(TIMESTAMP, timestamp.data))
    second = Snapshot.parse(stored_envelope(SNAPSHOT, snapshot.data))
    if not first.meta[SNAPSHOT].matches(snapshot.data):
        return datetime.min.replace(tzinfo=UTC)
    return min(first.expires, second.expires)


def _held(current: Mapping[RoleName, Held], role: RoleName) -> Held:
    try:
        return current[role]
    except KeyError:
        raise NotFound(f"this collection has no {role}") from None
