"""How long clients and proxies may keep an answer: never longer than the file in it is valid.

Rules of this module: a file that is in memory is looked through once; a large one in a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from math import inf
from typing import Final

from twisted.internet.defer import Deferred

from notary.net.http.site import Response
from notary.storage import Stored
from notary.storage.cache import SHARED_BYTES
from notary.tuf.validity import WINDOW_BYTES, valid_until
from notary.work.lru import Lru
from notary.work.singleflight import SingleFlight
from notary.work.threads import InThread

JSON: Final = "application/json"

KEPT: Final = 10_000
"""Of how many large files the end of validity is remembered."""

MARGIN_SECONDS: Final = 1
"""How much earlier an answer becomes stale than its file expires: caches count in whole seconds."""


@dataclass(frozen=True, slots=True, eq=False)  # a key of each file's notes: by identity it is found fastest
class CachePolicy:
    """How long caches may keep an answer: ``max_age`` seconds; 0 forbids caching."""

    max_age: int
    must_revalidate: bool

    def headers(self, at_most: int | None = None) -> tuple[tuple[str, str], ...]:
        """The headers that say so (docs/protocol.md, section 1); ``at_most`` is a shorter age, in seconds."""
        max_age = self.max_age if at_most is None else min(self.max_age, at_most)
        if max_age <= 0:
            return (("Cache-Control", "max-age=0, no-cache, no-store"), ("Pragma", "no-cache"))
        value = f"public, max-age={max_age}, s-maxage={max_age}"
        return (("Cache-Control", value + ", must-revalidate" if self.must_revalidate else value),)


@dataclass(frozen=True, slots=True)
class _Large:
    """A large file. Two are equal if their checksums are."""

    sha256: str
    stored: Stored

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Large) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)


class Answers:
    """Makes the answers with files; ``time_of_day`` returns it in seconds since the epoch."""

    def __init__(self, time_of_day: Callable[[], float], in_thread: InThread) -> None:
        self._time_of_day = time_of_day
        self._in_thread = in_thread
        self._large: Lru[str, datetime] = Lru(KEPT)
        self._looking = SingleFlight(self._look_through)

    def answer(self, stored: Stored, policy: CachePolicy) -> Response | Deferred[Response]:
        """Return the answer that is ``stored``."""
        made: tuple[Response, float] | None = stored.notes.get(policy)
        if made is not None and self._time_of_day() < made[1]:
            return made[0]
        until: datetime | None = stored.notes.get(valid_until)
        if until is None:
            if len(stored.data) > WINDOW_BYTES:
                until = self._large.get(stored.sha256)
                if until is None:
                    found = self._looking(_Large(stored.sha256, stored))
                    return found.addCallback(self._answer, stored, policy)
            else:
                until = valid_until(stored.data)
            stored.notes[valid_until] = until
        return self._answer(until, stored, policy)

    async def _look_through(self, large: _Large) -> datetime:
        until = await self._in_thread(lambda: valid_until(large.stored.data))
        self._large.put(large.sha256, until)
        return until

    def _answer(self, until: datetime, stored: Stored, policy: CachePolicy) -> Response:
        ends = until.timestamp()
        left = int(ends - self._time_of_day()) - MARGIN_SECONDS
        modified = format_datetime(stored.modified, usegmt=True)
        headers = (("Content-Type", JSON), ("Last-Modified", modified), *policy.headers(left))
        if len(stored.data) > SHARED_BYTES:  # a remembered response would hold the file that holds the response
            return Response(200, stored.data, headers, stored.sha256, keeps=stored)
        response = Response(200, stored.data, headers, stored.sha256)
        if policy.max_age == 0:
            stored.notes[policy] = response, inf
        elif left >= policy.max_age:
            stored.notes[policy] = response, ends - policy.max_age - MARGIN_SECONDS
        return response
