"""Measures a service behind a port: how long each of its calls takes, and whether it fails.

Rules of this module: it knows no port; each method that returns a Deferred is timed under its own name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

P = TypeVar("P")


class Observe(Protocol):
    """Hears of each call: the method's name, how many seconds it took, whether it did its work."""

    def __call__(self, operation: str, seconds: float, /, *, ok: bool) -> None:
        """Count one call."""
        ...


def timed(
    service: P, clock: IReactorTime, observe: Observe, expected: type[BaseException] | tuple[type[BaseException], ...]
) -> P:
    """The same service, each call of which is reported to ``observe``.

    ``expected`` are the errors that are answers, not faults: what was asked for does not exist, say.
    """
    return cast("P", _Timed(service, clock, observe, expected))


class _Timed:
    def __init__(self, service: object, clock: IReactorTime, observe: Observe, expected: Any) -> None:
        self._service = service
        self._clock = clock
        self._observe = observe
        self._expected = expected

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._service, name)
        if not callable(method):
            return method
        measuring = self._measuring(name, method)
        self.__dict__[name] = measuring  # found at once the next time
        return measuring

    def _measuring(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = self._clock.seconds()

            def done(result: Any) -> Any:
                ok = not isinstance(result, Failure) or result.check(self._expected) is not None
                self._observe(name, self._clock.seconds() - started, ok=ok)
                return result

            result = method(*args, **kwargs)
            return result.addBoth(done) if isinstance(result, Deferred) else result

        return call
