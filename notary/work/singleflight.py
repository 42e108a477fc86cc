"""Work that several callers want at the same time, done once.

Rules of this module: everything happens on the reactor's thread. Nothing is remembered: who asks after the work has
ended starts it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SingleFlight(Generic[K, T]):
    """Does one thing for all who ask for it at the same time.

    ``work`` is started for the first; who asks before it ends gets the same outcome. It runs to its end whoever is
    cancelled. ``landed`` hears of each result, unless it was forgotten.
    """

    def __init__(
        self,
        work: Callable[[K], Coroutine[Deferred[Any], Any, T]],
        landed: Callable[[K, T], None] = lambda _name, _result: None,
    ) -> None:
        self._work = work
        self._landed = landed
        self._flights: dict[K, list[Deferred[T]]] = {}

    def __call__(self, name: K) -> Deferred[T]:
        """The outcome of the work on ``name`` that is under way, or else of that which begins now."""
        asked: Deferred[T] = Deferred()
        flight = self._flights.get(name)
        if flight is not None:
            flight.append(asked)
            return asked
        self._flights[name] = flight = [asked]
        Deferred.fromCoroutine(self._work(name)).addBoth(self._land, name, flight)
        return asked

    def __contains__(self, name: K) -> bool:
        """Whether work on ``name`` is under way, which who asks now would share."""
        return name in self._flights

    def forget(self, name: K) -> None:
        """Let what is under way end for those who wait, and for nobody else."""
        self._flights.pop(name, None)

    def wanted(self, name: K) -> bool:
        """Whether somebody still waits for the work on ``name`` that is under way."""
        return any(not asked.called for asked in self._flights.get(name, ()))

    def _land(self, result: T | Failure, name: K, flight: list[Deferred[T]]) -> None:
        if self._flights.get(name) is flight:
            del self._flights[name]
            if not isinstance(result, Failure):
                self._landed(name, result)
        for asked in flight:
            asked.callback(result)  # of a failure, Twisted makes an errback
