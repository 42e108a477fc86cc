"""Following a peer: what is published or deleted there is so here, a little later.

Rules of this module: a failure of the peer or of one collection ends nothing; it is tried again in the next round. A
collection is deleted here only if the peer's changefeed names the deletion and the peer has no such collection, or,
where there is no feed, if the peer has not had it twice in a row. A collection that was deleted and begun anew at the
peer is replaced in one step.

Every state of a collection is taken, in order, if the peer still has it: those since the stored one, and of a
collection that begins while the mirror follows, all. A state that the peer fails to give in several rounds is left out,
so that the current one can be taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from notary.errors import PeerFailed
from notary.peer.client import Peer, PeerChange
from notary.peer.fetch import Destination, Fetch, History, Outcome, Result, side_by_side
from notary.tuf.model import Gun

LOOK_BACK: Final = 1_000
"""How many numbers of changes are read again in each round.

A database gives out the numbers before it commits, so that a change may become visible after one with a higher number.
At 50 publishes a second, these are the changes of 20 seconds.
"""
_ABSENCES: Final = 2
_ROUNDS_FOR_HISTORY: Final = 3
"""The rounds in which states before the current one are asked for, if the peer fails to answer."""


class Window:
    """The newest part of a changefeed, in which changes may appear in any order.

    Every change is new once. ``start`` is the number after which to read.
    """

    def __init__(self, look_back: int = LOOK_BACK) -> None:
        self._look_back = look_back
        self._highest = 0
        self._seen: set[int] = set()

    @property
    def start(self) -> int:
        """The number after which the feed must be read."""
        return max(0, self._highest - self._look_back)

    def check(self, page: Sequence[PeerChange]) -> None:
        """Check the first page after ``start``, which has at least as many changes as the window.

        Raises PeerFailed if the newest seen change is missing: the peer's feed was set back. All its changes are new
        then.
        """
        if self._highest and all(change.id != self._highest for change in page):
            highest, self._highest, self._seen = self._highest, 0, set()
            raise PeerFailed(f"the changefeed goes backwards: change {highest} is gone; everything is compared anew")

    def new(self, page: Sequence[PeerChange]) -> list[PeerChange]:
        """Return the changes of a page that were not seen."""
        found = [change for change in page if change.id not in self._seen]
        self._highest = max(self._highest, *(change.id for change in page))
        self._seen = {number for number in self._seen.union(change.id for change in page) if number > self.start}
        return found


class Follower(Destination, Protocol):
    """A destination from which collections can be deleted."""

    async def delete(self, gun: Gun) -> bool:
        """Delete a collection; return whether there was one. Raises StorageFailed."""
        ...


class Happened(StrEnum):
    """What a round did with a collection beyond what a fetch does."""

    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Event:
    """What came of one collection in a round: ``outcome`` is an Outcome, or "deleted"."""

    gun: str
    outcome: str
    result: Result


@dataclass(slots=True)
class _Due:
    """A collection that the next round must fetch.

    ``deleted`` says that the peer has deleted it; ``begun`` that it may have begun while the mirror follows.
    ``failures`` is the number of rounds in which the peer did not give it.
    """

    deleted: bool = False
    begun: bool = False
    failures: int = 0

    @property
    def history(self) -> History:
        """The states to ask for."""
        if self.failures >= _ROUNDS_FOR_HISTORY:
            return History.NONE
        return History.ALL if self.begun else History.SINCE_STORED


class Mirror:
    """Follows a peer. ``names`` are the collections to ask for, None for those that the changefeed names."""

    def __init__(
        self, peer: Peer, fetch: Fetch, destination: Follower, names: Iterable[str] | None, at_once: int
    ) -> None:
        self._peer = peer
        self._fetch = fetch
        self._destination = destination
        self._names = None if names is None else list(names)
        self._at_once = at_once
        self._window = Window()
        self._follows = False
        self._due: dict[str, _Due] = {}
        self._absent: dict[str, int] = {}

    @property
    def due(self) -> int:
        """The number of collections that the next round must fetch, as far as is known."""
        return len(self._due)

    async def round(self, report: Callable[[Event], None]) -> None:
        """Take over what has changed; ``report`` is called for each collection that was looked at.

        Raises PeerFailed if the changefeed cannot be had, and StorageFailed; the next round goes on from there.
        """
        if self._names is None:
            await self._read_feed()
        else:
            for name in self._names:
                self._due.setdefault(name, _Due(begun=name in self._absent))
        due = dict(self._due)

        async def work(gun: str) -> None:
            event = await self._one(gun, due[gun])
            if event.outcome == Outcome.FAILED:
                due[gun].failures += 1
            else:
                self._due.pop(gun, None)
            report(event)

        await side_by_side(due, self._at_once, work)

    async def _read_feed(self) -> None:
        page = await self._peer.changes(self._window.start)
        try:
            self._window.check(page)
        except PeerFailed:
            self._follows = False
            raise
        while page:
            for change in self._window.new(page):
                due = self._due.setdefault(change.gun, _Due(begun=self._follows))
                due.deleted = due.deleted or change.category == "deletion"
            page = await self._peer.changes(page[-1].id)
        self._follows = True

    async def _one(self, gun: str, due: _Due) -> Event:
        if self._names is None:
            result = await self._fetch.exactly(gun, force=due.deleted, history=due.history)
        else:
            result = await self._fetch.one(gun, history=due.history)
        if result.outcome is Outcome.ABSENT:
            self._absent[gun] = self._absent.get(gun, 0) + 1
            forgotten = due.deleted or (self._names is not None and self._absent[gun] >= _ABSENCES)
            if forgotten and await self._delete(gun):
                return Event(gun, Happened.DELETED, result)
        else:
            self._absent.pop(gun, None)
        return Event(result.gun, result.outcome, result)

    async def _delete(self, gun: str) -> bool:
        return await self._destination.delete(Gun(gun))
