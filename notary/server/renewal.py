"""Renews timestamps, and snapshots whose key the server holds, before they expire.

Rules of this module: no reader waits for a renewal in the background. Several servers, and several workers, renew the
same collections without speaking to each other: each has its own point in time for a collection, reads what is stored
before it signs, and the store takes only one successor of a timestamp.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Final
from zlib import crc32

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from notary.errors import InvalidUpdate, NotaryError, OldVersion, SigningFailed
from notary.storage import MetadataStore, Update
from notary.tuf.draft import Draft, Lifetimes
from notary.tuf.model import ROOT, SNAPSHOT, TIMESTAMP, Gun, RoleName
from notary.tuf.refresh import Expiries, Refresh, Slack, stale
from notary.work.reactor import Clock
from notary.work.repeats import Seldom
from notary.work.singleflight import SingleFlight
from notary.work.threads import InThread

SHARE: Final = 0.33
"""The share of a lifetime that is left when a file is renewed, unless the configuration says otherwise."""

JITTER: Final = 0.2
"""The largest part of the slack by which a renewal is later, by chance: it spreads the work over time and servers."""

MOST_WAITING: Final = 1_000
"""How many collections may wait for their renewal because they were read; the sweep finds all others."""

PAUSE_SECONDS: Final = 60.0
"""How long reads begin no renewal in the background after one has failed."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long what the server signs is valid, and when it is renewed.

    ``share`` is the share of a lifetime that is left then; 0 renews only what has expired, when it is read. With
    ``renews`` False the server renews nothing at all: it serves what is stored.
    """

    lifetimes: Lifetimes = field(default_factory=Lifetimes)
    share: float = SHARE
    renews: bool = True

    @property
    def in_background(self) -> bool:
        """Whether anything is renewed before it expires."""
        return self.renews and self.share > 0


class Outcome(Enum):
    """What became of a renewal."""

    DONE = "done"
    ELSEWHERE = "elsewhere"
    """Nothing was due any more: another request, or another server, was first."""
    IMPOSSIBLE = "impossible"
    """The server holds no key that could sign what is due."""


@dataclass(slots=True)
class Counts:
    """What the metrics show of renewals."""

    failures: int = 0


class Renewals:
    """Renews the collections of ``store`` by ``schedule``.

    ``sign`` returns the signed file of a draft; it raises InvalidUpdate and SigningFailed. ``now`` returns the time of
    day (aware, UTC), ``clock`` times what happens in the background. ``chance`` is a number of this process alone.
    ``on_refresh`` is called with the role of each renewed file, ``on_expired_root`` for each renewal under an expired
    root.
    """

    def __init__(
        self,
        store: MetadataStore,
        sign: Callable[[Draft], Awaitable[bytes]],
        in_thread: InThread,
        now: Callable[[], datetime],
        clock: Clock,
        schedule: Schedule,
        chance: int,
        on_refresh: Callable[[RoleName], None],
        on_expired_root: Callable[[], None],
    ) -> None:
        self.schedule = schedule
        self.counts = Counts()
        self._store = store
        self._sign = sign
        self._in_thread = in_thread
        self._now = now
        self._clock = clock
        self._chance = chance.to_bytes(8, "big")
        self._on_refresh = on_refresh
        self._on_expired_root = on_expired_root
        self._renewing = SingleFlight(self._renew)
        self._waiting: dict[Gun, None] = {}
        self._running: Deferred[None] | None = None
        self._paused_until = 0.0
        self._closed = False
        self._log = Logger(namespace="notary.server.renewal")
        self._failed = Seldom(lambda text: self._log.warn("{text}", text=text), clock.seconds)

    # -- when ---------------------------------------------------------------------------------------------------------

    def due(self, gun: Gun, expiries: Expiries) -> datetime:
        """Return the time from which the collection is to be renewed."""
        return expiries.due(self._slack(gun))

    def _slack(self, gun: Gun) -> Slack:
        """Return the slack of this collection on this server."""
        chance = crc32(gun.encode(), crc32(self._chance)) / 2**32
        return Slack.of(self.schedule.lifetimes, self.schedule.share * (1 - JITTER * chance))

    # -- one collection -----------------------------------------------------------------------------------------------

    def renew(self, gun: Gun) -> Deferred[Outcome]:
        """Sign and store what is due. Concurrent callers share one renewal.

        Raises StorageFailed, SigningFailed, NotFound, and InvalidMetadata if what is stored cannot be renewed.
        """
        return self._renewing(gun)

    async def _renew(self, gun: Gun) -> Outcome:
        found = await self._store.current(gun, [ROOT, SNAPSHOT, TIMESTAMP])
        slack = self._slack(gun)
        renewal = await self._in_thread(lambda: stale(found, self._now(), slack, self.schedule.lifetimes))
        if renewal is None:
            return Outcome.ELSEWHERE
        if renewal.root_expired:
            self._log.warn("the root of {gun} has expired; its publisher must sign a new one", gun=gun)
            self._on_expired_root()
        try:
            updates = await self._signed(gun, renewal)
        except InvalidUpdate as error:
            self._failed(f"cannot renew the metadata of {gun}: {error}")
            return Outcome.IMPOSSIBLE
        if not updates:
            return Outcome.IMPOSSIBLE
        try:
            await self._store.publish(gun, updates, found[TIMESTAMP].sha256)
        except OldVersion:
            return Outcome.ELSEWHERE
        for update in updates:
            self._on_refresh(update.role)
        return Outcome.DONE

    async def _signed(self, gun: Gun, renewal: Refresh) -> list[Update]:
        """Return the renewed files. The timestamp's key is the server's; the snapshot's may be the publisher's."""
        updates = []
        snapshot = None
        if renewal.snapshot is not None:
            try:
                snapshot = await self._sign(renewal.snapshot)
            except InvalidUpdate:
                if renewal.snapshot_expired:
                    self._log.warn("the snapshot of {gun} has expired; its publisher must sign a new one", gun=gun)
            else:
                updates.append(Update(SNAPSHOT, renewal.snapshot.version, snapshot))
        if snapshot is not None or renewal.timestamp_due:
            draft = await self._in_thread(lambda: renewal.timestamp(snapshot))
            updates.append(Update(TIMESTAMP, draft.version, await self._sign(draft)))
        return updates

    async def attempt(self, gun: Gun) -> Outcome | None:
        """Renew as :meth:`renew` does; log and count a failure, and return None for it."""
        try:
            return await self.renew(gun)
        except SigningFailed as error:
            self._failed(f"cannot renew the metadata of {gun}: {error}")
        except NotaryError as error:
            self._failed(f"the metadata of {gun} is not renewed: {error}")
        self.counts.failures += 1
        return None

    # -- in the background --------------------------------------------------------------------------------------------

    def soon(self, gun: Gun) -> None:
        """Renew a collection that was read, in the background, unless renewing does not work at present."""
        if self._closed or len(self._waiting) >= MOST_WAITING or self._clock.seconds() < self._paused_until:
            return
        self._waiting[gun] = None
        if self._running is None:
            self._running = Deferred()
            self._clock.callLater(0, self._begin, self._running)

    def _begin(self, ended: Deferred[None]) -> None:
        Deferred.fromCoroutine(self._work()).addErrback(self._broken).addCallback(lambda _: self._end(ended))

    async def _work(self) -> None:
        while self._waiting and not self._closed:
            gun = next(iter(self._waiting))
            del self._waiting[gun]
            if await self.attempt(gun) is None:
                self._paused_until = self._clock.seconds() + PAUSE_SECONDS
                self._waiting.clear()

    def _broken(self, failure: Failure) -> None:
        self._log.failure("renewing in the background failed", failure)
        self._waiting.clear()

    def _end(self, ended: Deferred[None]) -> None:
        self._running = None
        ended.callback(None)

    async def close(self) -> None:
        """Begin no more renewals in the background; return when the one that runs has ended."""
        self._closed = True
        if self._running is not None:
            await self._running
