"""Fetching collections: what is asked of a peer for each one, into which destination it goes, and what came of it.

Rules of this module: collections are fetched side by side, and the failure of one ends no other. A collection is stored
as a whole or not at all. A failure of the destination ends the run, because it concerns all collections.

A collection has had a state for each version of its timestamp. A fetch takes the current state; where a history is
wanted, it takes the states between the stored one and the current one first, each verified as a client of that moment
would, the oldest first. A state that the peer no longer has, or that is not what clients accept, is passed over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum, auto
from typing import Final, Protocol

from twisted.internet.defer import Deferred, DeferredList, FirstError

from notary.errors import (
    ConfigError,
    Diverged,
    InvalidGun,
    InvalidMetadata,
    NotaryError,
    NotFound,
    PeerDenied,
    PeerFailed,
    StorageFailed,
)
from notary.peer.client import Peer
from notary.peer.names import candidates
from notary.peer.walk import MAX_TIMESTAMP_BYTES, Found, Known, Want, walk
from notary.tuf.model import TIMESTAMP, Gun

MAX_NAMES: Final = 1_000_000
"""The most collections that the list of a changefeed may name."""

MAX_STATES: Final = 1_000
"""The most states of one collection, before the current one, that are taken at a time."""
MAX_HISTORY_BYTES: Final = 16 << 20
"""The most bytes of timestamps of these states, which are in memory together."""
MAX_HISTORY_MICROSECONDS: Final = 30_000_000
"""The most work for the signatures of these states."""
MAX_BAD_STATES: Final = 3
"""The most of these states that are passed over because clients would refuse them; then the others are, too."""


class History(Enum):
    """Which states of a collection are taken before the current one."""

    NONE = auto()
    SINCE_STORED = auto()
    """Those after the stored state; none if nothing is stored."""
    ALL = auto()
    """Those after the stored state; all if nothing is stored, or if the stored collection is replaced."""


class Destination(Protocol):
    """Where collections are stored."""

    async def known(self, gun: Gun) -> Mapping[str, Known]:
        """Return the newest stored file of each role. Raises StorageFailed."""
        ...

    async def store(self, found: Found, known: Mapping[str, Known]) -> None:
        """Store the new files of a collection, all or none; ``known`` is what was stored when the walk began.

        Raises OldVersion if that has changed since, InvalidGun if the destination cannot hold the name, and
        StorageFailed.
        """
        ...

    async def replace(self, found: Found) -> None:
        """Store a collection in place of the stored one, in one step. Raises InvalidGun and StorageFailed."""
        ...


class Outcome(StrEnum):
    """What came of a collection."""

    STORED = "stored"
    UNCHANGED = "unchanged"
    ABSENT = "absent"
    """The peer has no such collection."""
    DENIED = "denied"
    """This caller may not read the collection."""
    REFUSED = "refused"
    """The peer's files are not what clients accept, or older than the stored ones."""
    FAILED = "failed"
    """The peer did not answer, or not with what was asked for."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one collection. ``name`` is as it was asked for, ``gun`` the collection that it means.

    ``found`` is there if the collection is stored; ``reason`` if it is not. ``states`` is the number of states that
    were taken, and ``missed`` the number of those that the history lacks.
    """

    name: str
    gun: str
    outcome: Outcome
    found: Found | None = None
    reason: str = ""
    states: int = 0
    missed: int = 0

    @property
    def good(self) -> bool:
        """Whether the destination has what the peer has."""
        return self.found is not None


class Fetch:
    """Fetches collections from a peer into a destination.

    ``force`` takes older files too; ``dry_run`` stores nothing. ``now`` is the time (aware, UTC).
    """

    def __init__(
        self,
        peer: Peer,
        destination: Destination,
        now: Callable[[], datetime],
        *,
        force: bool = False,
        dry_run: bool = False,
    ) -> None:
        self._peer = peer
        self._destination = destination
        self._now = now
        self._force = force
        self._dry_run = dry_run

    async def exactly(self, name: str, *, force: bool = False, history: History = History.NONE) -> Result:
        """Fetch the collection with this very GUN; ``force`` counts for this one. Raises as :meth:`one` does."""
        try:
            gun = Gun(name)
        except InvalidGun as error:
            return Result(name, name, Outcome.REFUSED, reason=str(error))
        return await self._collection(name, gun, history, force=force)

    async def one(self, name: str, *, history: History = History.NONE) -> Result:
        """Fetch the collection that ``name`` means. Raises StorageFailed and ConfigError, which end a run."""
        try:
            guns = candidates(name)
        except InvalidGun as error:
            return Result(name, name, Outcome.REFUSED, reason=str(error))
        result = await self._collection(name, guns[0], history)
        for gun in guns[1:]:
            if result.outcome in (Outcome.ABSENT, Outcome.DENIED):
                other = await self._collection(name, gun, history)
                result = result if other.outcome is Outcome.ABSENT else other
        return result

    async def _collection(self, name: str, gun: Gun, history: History, *, force: bool = False) -> Result:
        try:
            return await self._fetch(name, gun, history, force=force or self._force)
        except NotFound as error:
            return Result(name, gun, Outcome.ABSENT, reason=str(error))
        except PeerDenied as error:
            return Result(name, gun, Outcome.DENIED, reason=str(error))
        except PeerFailed as error:
            return Result(name, gun, Outcome.FAILED, reason=str(error))
        except (StorageFailed, ConfigError):
            raise
        except NotaryError as error:
            return Result(name, gun, Outcome.REFUSED, reason=str(error))

    async def _fetch(self, name: str, gun: Gun, history: History, *, force: bool) -> Result:
        target = _Target(self._destination, gun, await self._destination.known(gun))
        answers: dict[str, bytes | None] = {}
        try:
            found = await self._walk(target, answers)
        except Diverged:
            if not force:
                raise
            target.start_anew()
            found = await self._walk(target, answers)
        if not found.files:
            return Result(name, gun, Outcome.UNCHANGED, found)
        states = missed = 0
        if not self._dry_run:
            last = found.versions[TIMESTAMP]
            first = target.next_version if target.known or history is History.ALL else last
            if history is not History.NONE and first < last:
                states = await self._history(target, range(max(first, last - MAX_STATES), last))
                missed = last - first - states
                found = await self._walk(target, answers)
            await target.put(found)
        return Result(name, gun, Outcome.STORED, found, states=states + 1, missed=missed)

    async def _history(self, target: _Target, versions: range) -> int:
        """Store the states with these versions of the timestamp, as far as they can be had; return how many."""
        timestamps: dict[int, bytes] = {}
        room = MAX_HISTORY_BYTES
        for version in reversed(versions):
            wanted = Want(TIMESTAMP, MAX_TIMESTAMP_BYTES, version=version)
            data = await self._peer.file(target.gun, wanted.name, wanted.limit) if room >= wanted.limit else None
            if data is None:  # the peer does not keep old versions, and the ones before this are older still
                break
            timestamps[version] = data
            room -= len(data)
        states = bad = microseconds = 0
        for version, data in sorted(timestamps.items()):
            if bad > MAX_BAD_STATES or microseconds > MAX_HISTORY_MICROSECONDS:
                break
            try:
                found = await self._walk(target, {Want(TIMESTAMP, 0, version=version).name: data}, version)
            except (NotFound, Diverged, InvalidMetadata):
                bad += 1
                continue
            await target.put(found)
            states += 1
            microseconds += found.verifying_microseconds
        return states

    async def _walk(self, target: _Target, answers: dict[str, bytes | None], version: int = 0) -> Found:
        """Walk through a collection, at a version of its timestamp or now.

        ``answers`` holds files by name that are not asked for again; what the peer answers is added.
        """
        steps = walk(target.gun, target.known, self._now(), version)
        wanted = next(steps)
        while True:
            if wanted.name not in answers:
                answers[wanted.name] = await self._peer.file(target.gun, wanted.name, wanted.limit)
            try:
                wanted = steps.send(answers[wanted.name])
            except StopIteration as done:
                found: Found = done.value
                return found

    async def many(self, names: Iterable[str], at_once: int, report: Callable[[Result], None]) -> None:
        """Fetch collections, at most ``at_once`` side by side; ``report`` is called for each, in the order of ends.

        Raises what :meth:`one` raises, after the other running fetches were cancelled.
        """

        async def work(name: str) -> None:
            report(await self.one(name))

        await side_by_side(names, at_once, work)


class _Target:
    """A collection in a destination: ``known`` is the newest stored file of each role."""

    def __init__(self, destination: Destination, gun: Gun, known: Mapping[str, Known]) -> None:
        self.gun = gun
        self.known = known
        self._destination = destination
        self._anew = False

    @property
    def next_version(self) -> int:
        """The version of the timestamp that follows the stored one."""
        return self.known[TIMESTAMP].version + 1 if TIMESTAMP in self.known else 1

    def start_anew(self) -> None:
        """Let the next state take the place of what is stored."""
        self.known, self._anew = {}, True

    async def put(self, found: Found) -> None:
        """Store a state. Raises as Destination does."""
        if self._anew:
            await self._destination.replace(found)
        else:
            await self._destination.store(found, self.known)
        self._anew = False
        self.known = {**self.known, **{str(each.role): Known(each.version, each.data) for each in found.files}}


async def side_by_side(names: Iterable[str], at_once: int, work: Callable[[str], Awaitable[None]]) -> None:
    """Run ``work`` for each name, at most ``at_once`` at the same time.

    Raises the first error of ``work``, after the other running ones were cancelled.
    """
    waiting = iter(names)

    async def worker() -> None:
        for name in waiting:
            await work(name)

    workers = [Deferred.fromCoroutine(worker()) for _ in range(at_once)]
    everything = DeferredList(workers, fireOnOneErrback=True, consumeErrors=True)
    try:
        await everything
    except FirstError as error:
        for each in workers:
            each.cancel()
        await DeferredList(workers)
        error.subFailure.raiseException()


async def listed(peer: Peer, report: Callable[[int], None] = lambda _changes: None) -> list[str]:
    """Return the names of all collections that the peer's changefeed says exist, in the order of their first change.

    ``report`` is told the number of changes of each page. Raises PeerFailed, PeerDenied if there is no feed.
    """
    exists: dict[str, bool] = {}
    last = 0
    while page := await peer.changes(last):
        for change in page:
            exists[change.gun] = change.category == "update"
        if len(exists) > MAX_NAMES:
            raise PeerFailed(f"the changefeed names more than {MAX_NAMES} collections; name those that are wanted")
        last = page[-1].id
        report(len(page))
    return [gun for gun, there in exists.items() if there]
