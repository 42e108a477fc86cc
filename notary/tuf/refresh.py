"""Whether the timestamp or snapshot of a collection must be renewed (docs/protocol.md, section 1).

Rules of this module: pure. The stored files and ``now`` come in; the result is None (serve the stored files) or the
drafts of the next versions. If the server does not hold the keys for a draft, assembling it raises InvalidUpdate, and
the reader gets the stored file, because clients check expiry themselves.

Clients also check the expiry of root: an expired root stops no renewal, and is only reported (section 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from notary.errors import InvalidMetadata, InvalidUpdate, NotFound
from notary.tuf import public
from notary.tuf.draft import LIFETIMES, Draft, Lifetimes, next_snapshot, next_timestamp
from notary.tuf.model import ROOT, SNAPSHOT, TIMESTAMP, Held, RoleName, Root, Snapshot, Timestamp, stored_envelope

_EARLIEST = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Slack:
    """How long before its expiry each file is renewed; by default only afterwards.

    A snapshot is renewed together with the timestamp that is due before it. For the snapshot alone, a renewal begins
    only when the slack of a timestamp is left: its key may be the publisher's, and then each try is in vain.
    """

    timestamp: timedelta = timedelta(0)
    snapshot: timedelta = timedelta(0)

    @classmethod
    def of(cls, lifetimes: Lifetimes, share: float) -> Slack:
        """Return the slack that is a ``share`` of the lifetimes of what the server signs."""
        return cls(lifetimes.timestamp * share, lifetimes.snapshot * share)

    @property
    def snapshot_alone(self) -> timedelta:
        """How long before its expiry a snapshot is renewed although its timestamp is not due."""
        return min(self.timestamp, self.snapshot)


NO_SLACK = Slack()


class Expiries(NamedTuple):
    """When a timestamp and its snapshot expire; both are long past if the two files do not match."""

    timestamp: datetime
    snapshot: datetime

    @property
    def first(self) -> datetime:
        """The time from which clients refuse one of the files."""
        return min(self)

    def due(self, slack: Slack) -> datetime:
        """Return the time from which :func:`stale` returns a renewal."""
        return min(_before(self.timestamp, slack.timestamp), _before(self.snapshot, slack.snapshot_alone))


@dataclass(frozen=True, slots=True)
class Refresh:
    """The renewals that are due.

    ``snapshot`` is the next snapshot if it is due and a next one is possible. If the next snapshot cannot be signed,
    the stored one stays in force. A new timestamp is due if a new snapshot was made, or if ``timestamp_due``.
    ``snapshot_expired`` and ``root_expired`` are for logs and metrics.
    """

    snapshot: Draft | None
    timestamp_due: bool
    snapshot_expired: bool
    root_expired: bool
    _root: Root
    _snapshot_data: bytes
    _timestamp_version: int
    _timestamp_expires: datetime

    def timestamp(self, snapshot: bytes | None = None) -> Draft:
        """Return the next timestamp over ``snapshot``, the finished new file, or by default over the stored snapshot.

        Raises InvalidUpdate if no next timestamp is possible.
        """
        data = self._snapshot_data if snapshot is None else snapshot
        return next_timestamp(self._root, self._timestamp_version, data, self._timestamp_expires)


def stale(
    current: Mapping[RoleName, Held], now: datetime, slack: Slack = NO_SLACK, lifetimes: Lifetimes = LIFETIMES
) -> Refresh | None:
    """Return the renewals that are due for the timestamp or snapshot in ``current``, None if none are.

    ``current`` holds the newest stored timestamp, snapshot and root; ``now`` is aware. The timestamp is due if it
    expires within its ``slack``, or if it does not list the stored snapshot; the snapshot if it expires within its own.

    Raises NotFound if a file that is needed is missing; InvalidMetadata if it is not valid, or if the snapshot is not
    signed as root demands: the server signs no timestamp for such a snapshot.
    """
    held_timestamp, held_snapshot = _held(current, TIMESTAMP), _held(current, SNAPSHOT)
    timestamp = Timestamp.parse(stored_envelope(TIMESTAMP, held_timestamp.data))
    snapshot = Snapshot.parse(stored_envelope(SNAPSHOT, held_snapshot.data))
    timestamp_due = timestamp.expires < now + slack.timestamp or not timestamp.meta[SNAPSHOT].matches(
        held_snapshot.data
    )
    if not timestamp_due and not snapshot.expires < now + slack.snapshot_alone:
        return None
    snapshot_due = snapshot.expires < now + slack.snapshot
    held_root = _held(current, ROOT)
    root = Root.parse(stored_envelope(ROOT, held_root.data))
    if not public.meets_threshold(snapshot.envelope, root.roles[SNAPSHOT]).ok:
        raise InvalidMetadata("the stored snapshot is not signed by the keys that root names for it")
    expires = now + lifetimes.snapshot
    return Refresh(
        snapshot=_renewed(root, held_root, snapshot, held_snapshot.version, expires) if snapshot_due else None,
        timestamp_due=timestamp_due,
        snapshot_expired=snapshot.expires < now,
        root_expired=root.expires < now,
        _root=root,
        _snapshot_data=held_snapshot.data,
        _timestamp_version=held_timestamp.version,
        _timestamp_expires=now + lifetimes.timestamp,
    )


def _renewed(root: Root, held_root: Held, snapshot: Snapshot, version: int, expires: datetime) -> Draft | None:
    try:
        return next_snapshot(root, snapshot, version, {ROOT: held_root.data}, expires)
    except InvalidUpdate:
        return None


def expiries(timestamp: Held, snapshot: Held) -> Expiries:
    """Return when the two files expire.

    Raises InvalidMetadata if one of the files is not valid.
    """
    first = Timestamp.parse(stored_envelope(TIMESTAMP, timestamp.data))
    second = Snapshot.parse(stored_envelope(SNAPSHOT, snapshot.data))
    if not first.meta[SNAPSHOT].matches(snapshot.data):
        return Expiries(_EARLIEST, _EARLIEST)
    return Expiries(first.expires, second.expires)


def _before(time: datetime, by: timedelta) -> datetime:
    try:
        return time - by
    except OverflowError:
        return _EARLIEST


def _held(current: Mapping[RoleName, Held], role: RoleName) -> Held:
    try:
        return current[role]
    except KeyError:
        raise NotFound(f"this collection has no {role}") from None
