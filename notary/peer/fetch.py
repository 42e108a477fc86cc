"""Fetching collections: what is asked of a peer for each one, into which destination it goes, and what came of it.

Rules of this module: collections are fetched side by side, and the failure of one ends no other. A collection is stored
as a whole or not at all. A failure of the destination ends the run, because it concerns all collections.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol

from twisted.internet.defer import Deferred, DeferredList, FirstError

from notary.errors import (
    ConfigError,
    Diverged,
    InvalidGun,
    NotaryError,
    NotFound,
    PeerDenied,
    PeerFailed,
    StorageFailed,
)
from notary.peer.client import Peer
from notary.peer.names import candidates
from notary.peer.walk import Found, Known, walk
from notary.tuf.model import Gun

MAX_NAMES: Final = 1_000_000
"""The most collections that the list of a changefeed may name."""


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

    ``found`` is there if the collection is stored; ``reason`` if it is not.
    """

    name: str
    gun: str
    outcome: Outcome
    found: Found | None = None
    reason: str = ""

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

    async def exactly(self, name: str, *, force: bool = False) -> Result:
        """Fetch the collection with this very GUN; ``force`` counts for this one. Raises as :meth:`one` does."""
        try:
            gun = Gun(name)
        except InvalidGun as error:
            return Result(name, name, Outcome.REFUSED, reason=str(error))
        return await self._collection(name, gun, force=force)

    async def one(self, name: str) -> Result:
        """Fetch the collection that ``name`` means. Raises StorageFailed and ConfigError, which end a run."""
        try:
            guns = candidates(name)
        except InvalidGun as error:
            return Result(name, name, Outcome.REFUSED, reason=str(error))
        result = await self._collection(name, guns[0])
        for gun in guns[1:]:
            if result.outcome in (Outcome.ABSENT, Outcome.DENIED):
                other = await self._collection(name, gun)
                result = result if other.outcome is Outcome.ABSENT else other
        return result

    async def _collection(self, name: str, gun: Gun, *, force: bool = False) -> Result:
        try:
            found = await self._fetch(gun, force=force or self._force)
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
        return Result(name, gun, Outcome.STORED if found.files else Outcome.UNCHANGED, found)

    async def _fetch(self, gun: Gun, *, force: bool) -> Found:
        known = await self._destination.known(gun)
        try:
            found = await self._walk(gun, known)
        except Diverged:
            if not force:
                raise
            found = await self._walk(gun, {})
            if not self._dry_run:
                await self._destination.replace(found)
        else:
            if found.files and not self._dry_run:
                await self._destination.store(found, known)
        return found

    async def _walk(self, gun: Gun, known: Mapping[str, Known]) -> Found:
        steps = walk(gun, known, self._now())
        wanted = next(steps)
        while True:
            data = await self._peer.file(gun, wanted.name, wanted.limit)
            try:
                wanted = steps.send(data)
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
