"""Publishers and readers who go on through an outage, each of whose answers counts.

Rules of this module: a publish is taken or refused with a server's error within ``ANSWER_SECONDS``, a read is answered
with 200. What happens meanwhile is counted in answers, not in seconds.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Self

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.task import deferLater

from tests.support.sides import BASE_ROLES, MULTIPART, Collection, Side, clone, form_of

ANSWER_SECONDS = 10.0
"""Within this a publish must be answered, with or without a signer."""
TICK_SECONDS = 0.05
PATIENCE_SECONDS = 60.0
"""What has not come to pass after so long never will."""


class Traffic:
    """Publishers, one a collection, and readers; what one of them finds wrong ends all and fails the test."""

    def __init__(self, side: Side, collections: list[Collection]) -> None:
        self.side = side
        self.collections = collections
        self.statuses: Counter[int] = Counter()
        self.reads = 0
        self._taken: Counter[str] = Counter()
        self._over = False
        self._workers: list[Deferred[None]] = []

    async def __aenter__(self) -> Self:
        self._workers = [
            Deferred.fromCoroutine(self._guarded(work(one)))
            for one in self.collections
            for work in (self._publish, self._read)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        try:
            await gatherResults(self._workers, consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            self._over = True

    async def _publish(self, collection: Collection) -> None:
        """Publish again and again, as one who knows nothing of the outage."""
        clock = self.side.reactor
        for number in itertools.count():
            if self._over:
                return
            author = clone(collection.author)
            author.add("file", b"content" * number)
            files = collection.make(author, "targets", "targets/releases")
            begun = clock.seconds()
            answer = await self.side.request("POST", collection.path(), form_of(files), {"Content-Type": MULTIPART})
            took = clock.seconds() - begun
            assert took < ANSWER_SECONDS, f"answered after {took} s: {answer}"
            assert answer.brief in {"200", "500 UPDATING"}, answer
            self.statuses[answer.status] += 1
            if answer.status == 200:
                collection.took(files, author)
                self._taken[collection.gun] += 1

    async def _read(self, collection: Collection) -> None:
        """Read all there is, again and again."""
        names = [f"{role}.json" for role in (*BASE_ROLES, "targets/releases")] + ["1.root.json", "1.targets.json"]
        while not self._over:
            for name in names:
                answer = await self.side.get(collection.path(name))
                assert answer.status == 200, f"{name}: {answer}"
                self.reads += 1
            await deferLater(self.side.reactor, TICK_SECONDS)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so, while publishers and readers go on."""
        ends = self.side.reactor.seconds() + PATIENCE_SECONDS
        while not condition():
            assert not self._over, "a publisher or a reader has ended"
            assert self.side.reactor.seconds() < ends, f"it never came to that: {self.statuses}"
            await deferLater(self.side.reactor, TICK_SECONDS)

    async def answered(self, status: int, count: int) -> None:
        """Wait until ``count`` more publishes have got this answer."""
        wanted = self.statuses[status] + count
        await self.until(lambda: self.statuses[status] >= wanted)

    async def everybody_publishes(self) -> None:
        """Wait until each publisher has had a publish taken that began after this call."""
        wanted = {one.gun: self._taken[one.gun] + 2 for one in self.collections}
        await self.until(lambda: all(self._taken[gun] >= count for gun, count in wanted.items()))
