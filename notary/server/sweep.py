"""Goes through all collections again and again, and renews what is due although nobody reads it.

Rules of this module: a sweep takes little of the process: it reads page by page, renews one collection at a time and
pauses after each. What a sweep does not come to, because it fails or because another server is at work in the same
page, the next sweep does: there are many while the slack lasts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger

from notary.errors import InvalidGun, InvalidMetadata, NotaryError, NotFound
from notary.server.renewal import Outcome, Renewals
from notary.storage import Identity, MetadataStore, Place
from notary.tuf.model import SNAPSHOT, TIMESTAMP, Gun
from notary.tuf.refresh import Expiries, expiries
from notary.work.lru import Lru
from notary.work.reactor import Clock
from notary.work.threads import InThread

PAGE: Final = 100
"""How many collections a sweep reads at once."""

SWEEPS: Final = 16
"""How many sweeps there are while the slack of a timestamp lasts."""

FIRST_SECONDS: Final = 60.0
"""The longest time from the start to the first sweep; by chance less, so that servers do not begin in step."""

KEPT: Final = 20_000
"""Of how many pairs of files the expiries are remembered, at about 500 bytes: a sweep does not read these files."""

PAUSES: Final = 9
"""A pause is this many times as long as the renewal before it."""

MOST_PAUSE_SECONDS: Final = 0.1
"""The longest pause."""

MOST_FAILURES: Final = 3
"""After this number of failures in a row, a sweep only reads: the signer or the database is away."""

AGAIN_SECONDS: Final = 300.0
"""The longest time to the next sweep after one that could not renew all that is due."""

_PAIR: Final = (TIMESTAMP, SNAPSHOT)


class Sweep(Service):
    """Renews what is due in ``store``, by ``renewals``; ``random`` is different in each process.

    ``now`` returns the time of day (aware, UTC); ``clock`` times sweeps and pauses.
    """

    def __init__(
        self,
        store: MetadataStore,
        renewals: Renewals,
        in_thread: InThread,
        now: Callable[[], datetime],
        clock: Clock,
        random: Random,
    ) -> None:
        self._store = store
        self._renewals = renewals
        self._in_thread = in_thread
        self._now = now
        self._clock = clock
        self._random = random
        schedule = renewals.schedule
        self.interval_seconds = (schedule.lifetimes.timestamp * schedule.share / SWEEPS).total_seconds()
        self._expiries: Lru[tuple[Identity, Identity], Expiries] = Lru(KEPT)
        self._nearest: Expiries | None = None
        self._begin_after = ""
        self._timer: IDelayedCall | None = None
        self._sweeping: Deferred[None] | None = None
        self._log = Logger(namespace="notary.server.sweep")

    # -- again and again ----------------------------------------------------------------------------------------------

    def startService(self) -> None:
        """Sweep soon, and from then on again and again."""
        super().startService()
        self._wait(min(FIRST_SECONDS, self.interval_seconds) * self._random.random())

    def stopService(self) -> Deferred[None] | None:
        """Sweep no more; the Deferred fires when the step under way has ended."""
        super().stopService()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return self._sweeping

    def _wait(self, seconds: float) -> None:
        self._timer = self._clock.callLater(seconds, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        self._sweeping = Deferred()
        Deferred.fromCoroutine(self._run()).addCallback(self._swept, self._sweeping)

    async def _run(self) -> float:
        """Sweep once. Returns the seconds to the next sweep."""
        try:
            whole = await self.sweep()
        except NotaryError as error:
            self._log.warn("looking for metadata to renew failed: {error}", error=str(error))
            whole = False
        except Exception:  # noqa: BLE001 - a bug in one sweep must not end the others
            self._log.failure("looking for metadata to renew failed")
            whole = False
        seconds = self.interval_seconds if whole else min(self.interval_seconds, AGAIN_SECONDS)
        return seconds * (0.9 + 0.2 * self._random.random())

    def _swept(self, seconds: float, ended: Deferred[None]) -> None:
        self._sweeping = None
        if self.running:
            self._wait(seconds)
        ended.callback(None)

    # -- one sweep ----------------------------------------------------------------------------------------------------

    async def sweep(self) -> bool:
        """Go through all collections once. Returns False if something was due and could not be renewed.

        Raises StorageFailed.
        """
        one = _One()
        pages = 0
        begin_after = ""
        async for page in self._pages(self._begin_after):
            await self._page(page, one)
            pages += 1
            if not self._random.randrange(pages):  # each page is chosen with the same chance
                begin_after = page[-1]
            if self._stopped:
                return True
        self._begin_after = begin_after
        self._nearest = one.nearest
        return one.whole

    @property
    def _stopped(self) -> bool:
        """Whether the service was started and stopped again."""
        return bool(self._sweeping is not None and not self.running)

    async def _pages(self, begin_after: str) -> AsyncIterator[Sequence[str]]:
        """Yield all names, page by page: those after ``begin_after``, then the others up to that name."""
        for begin, end in ((begin_after, None), ("", begin_after))[: 2 if begin_after else 1]:
            after = begin
            while page := await self._store.guns(after, PAGE):
                yield page
                if end in page:
                    break
                after = page[-1]

    async def _page(self, page: Sequence[str], one: _One) -> None:
        guns = [gun for gun in map(_gun, page) if gun is not None]
        places = [(gun, role, None) for gun in guns for role in _PAIR]
        found: Mapping[Place, Identity] = await self._store.identify(places)
        self._random.shuffle(guns)
        alone = True
        for gun in guns:
            if self._stopped:
                return
            pair = found.get((gun, TIMESTAMP, None)), found.get((gun, SNAPSHOT, None))
            if pair[0] is None or pair[1] is None:
                continue
            known = await self._expire(gun, (pair[0], pair[1]))
            if known is None:
                continue
            if alone and one.goes_on and self._renewals.due(gun, known) <= self._now():
                alone, known = await self._renewed(gun, known, one)
            one.saw(known)

    async def _expire(self, gun: Gun, pair: tuple[Identity, Identity]) -> Expiries | None:
        """Return when the files of a collection expire; None if they are not valid, or were deleted a moment ago."""
        known = self._expiries.get(pair)
        if known is None:
            stored = await self._store.current(gun, _PAIR)
            if TIMESTAMP not in stored or SNAPSHOT not in stored:
                return None
            try:
                known = await self._in_thread(lambda: expiries(stored[TIMESTAMP], stored[SNAPSHOT]))
            except InvalidMetadata:
                return None
            first, second = ((stored[role].version, stored[role].sha256) for role in _PAIR)
            self._expiries.put((first, second), known)
        return known

    async def _renewed(self, gun: Gun, known: Expiries, one: _One) -> tuple[bool, Expiries]:
        """Renew a collection. Returns False if another server is at work in this page, and the expiries from now on."""
        began = self._clock.seconds()
        outcome = await self._renewals.attempt(gun)
        one.tried(outcome)
        took = self._clock.seconds() - began
        await deferLater(self._clock, min(took * PAUSES, MOST_PAUSE_SECONDS))
        if outcome is None or outcome is Outcome.IMPOSSIBLE:
            return True, known
        try:
            found = await self._store.identify([(gun, role, None) for role in _PAIR])
            first, second = (found[gun, role, None] for role in _PAIR)
        except (KeyError, NotFound):
            return outcome is Outcome.DONE, known
        return outcome is Outcome.DONE, await self._expire(gun, (first, second)) or known

    # -- metrics ------------------------------------------------------------------------------------------------------

    def seconds_to_expiry(self) -> Mapping[tuple[str, ...], float]:
        """Seconds until the first timestamp, and the first snapshot, of all expires; nothing before the first sweep."""
        if self._nearest is None:
            return {}
        now = self._now()
        return {
            (role,): (expiry - now) / timedelta(seconds=1)
            for role, expiry in zip(("timestamp", "snapshot"), self._nearest, strict=True)
        }


class _One:
    """What one sweep has seen and done so far."""

    def __init__(self) -> None:
        self.nearest: Expiries | None = None
        self.whole = True
        self._failures = 0

    @property
    def goes_on(self) -> bool:
        """Whether the sweep renews, and does not only read."""
        return self._failures < MOST_FAILURES

    def tried(self, outcome: Outcome | None) -> None:
        """Count a renewal; None is a failure."""
        self._failures = 0 if outcome is not None else self._failures + 1
        self.whole = self.whole and outcome is not None

    def saw(self, known: Expiries) -> None:
        """Remember the earliest expiries."""
        if self.nearest is None:
            self.nearest = known
        else:
            self.nearest = Expiries(*map(min, self.nearest, known))


def _gun(name: str) -> Gun | None:
    try:
        return Gun(name)
    except InvalidGun:
        return None
