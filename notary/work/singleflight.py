"""Work that several callers request at the same time, done once.

Rules of this module: everything happens on the reactor's thread. Results are not remembered: a call after the work has
ended starts the work again.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SingleFlight(Generic[K, T]):
    """Runs ``work`` once for all callers that request the same name at the same time.

    The first caller starts the work, and callers that come before its end share its result. The work runs to its end
    even if callers are cancelled. ``landed`` is called with each result, unless the work was forgotten.
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
        """Return the result of the running work on ``name``, or start that work."""
        asked: Deferred[T] = Deferred()
        flight = self._flights.get(name)
        if flight is not None:
            flight.append(asked)
            return asked
        self._flights[name] = flight = [asked]
        Deferred.fromCoroutine(self._work(name)).addBoth(self._land, name, flight)
        return asked

    def __contains__(self, name: K) -> bool:
        """Whether work on ``name`` is running, which a new caller would share."""
        return name in self._flights

    def forget(self, name: K) -> None:
        """Let no new caller share the running work on ``name``; callers that wait still get its result."""
        self._flights.pop(name, None)

    def wanted(self, name: K) -> bool:
        """Whether a caller still waits for the running work on ``name``."""
        return any(not asked.called for asked in self._flights.get(name, ()))

    def _land(self, result: T | Failure, name: K, flight: list[Deferred[T]]) -> None:
        if self._flights.get(name) is flight:
            del self._flights[name]
            if not isinstance(result, Failure):
                self._landed(name, result)
        for asked in flight:
            asked.callback(result)  # of a failure, Twisted makes an errback
