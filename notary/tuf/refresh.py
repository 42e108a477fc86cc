"""Whether the timestamp or snapshot that a reader is about to get must be renewed first (docs/protocol.md, section 1).

Rules of this module: pure. The stored files and ``now`` come in; the result is None (serve the stored files) or the
drafts of the next versions. If the server does not hold the keys for a draft, assembling it raises InvalidUpdate, and
the reader gets the stored file, because clients check expiry themselves.

Clients also check the expiry of root: an expired root stops no renewal, and is only reported (section 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from notary.errors import InvalidMetadata, InvalidUpdate, NotFound
from notary.tuf import public
from notary.tuf.draft import Draft, next_snapshot, next_timestamp
from notary.tuf.model import ROOT, SNAPSHOT, TIMESTAMP, Held, RoleName, Root, Snapshot, Timestamp, stored_envelope


@dataclass(frozen=True, slots=True)
class Refresh:
    """The renewals that are due.

    ``snapshot`` is the next snapshot if the stored one has expired and a next one is possible. If the next snapshot
    cannot be signed, the stored one stays in force. A new timestamp is due if a new snapshot was made, or if
    ``timestamp_due``. ``root_expired`` is for logs and metrics.
    """

    snapshot: Draft | None
    timestamp_due: bool
    root_expired: bool
    _root: Root
    _snapshot_data: bytes
    _timestamp_version: int
    _now: datetime

    def timestamp(self, snapshot: bytes | None = None) -> Draft:
        """Return the next timestamp over ``snapshot``, the finished new file, or by default over the stored snapshot.

        Raises InvalidUpdate if no next timestamp is possible.
        """
        data = self._snapshot_data if snapshot is None else snapshot
        return next_timestamp(self._root, self._timestamp_version, data, self._now)


def stale(current: Mapping[RoleName, Held], now: datetime) -> Refresh | None:
    """Return the renewals that are due before the timestamp or snapshot in ``current`` is served, None if none are.

    ``current`` holds the newest stored timestamp, snapshot and root; ``now`` is aware. The timestamp is due if it has
    expired, or if it does not list the stored snapshot; the snapshot only if it has expired.

    Raises NotFound if a file that is needed is missing; InvalidMetadata if it is not valid, or if the snapshot is not
    signed as root demands: the server signs no timestamp for such a snapshot.
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
    if not public.meets_threshold(snapshot.envelope, root.roles[SNAPSHOT]).ok:
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
    """Return the time from which :func:`stale` returns a renewal; long past if the two files do not match.

    Raises InvalidMetadata if one of the files is not valid.
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
