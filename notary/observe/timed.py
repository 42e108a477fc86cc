"""Measures a service behind a port: how long each of its calls takes, and whether it fails.

Rules of this module: it knows no port of its own; each method of the port it is given is measured under its own name if
the method returns a Deferred.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from notary.work.forwarding import Forwarding
from notary.work.reactor import Clock

P = TypeVar("P")


class Observe(Protocol):
    """Hears of each call: the method's name, how many seconds the call took, whether it did its work."""

    def __call__(self, operation: str, seconds: float, /, *, ok: bool) -> None:
        """Count one call."""
        ...


def timed(
    port: type,
    service: P,
    clock: Clock,
    observe: Observe,
    *,
    expected: type[BaseException] | tuple[type[BaseException], ...],
) -> P:
    """Return ``service`` with the methods of ``port``, each call of which is reported to ``observe``.

    ``expected`` are the errors that do not count as failures: a file that does not exist, for example.
    """

    def make_method(name: str) -> Callable[..., Any]:
        method = getattr(service, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            started = clock.seconds()

            def done(result: Any) -> Any:
                ok = not isinstance(result, Failure) or result.check(expected) is not None
                observe(name, clock.seconds() - started, ok=ok)
                return result

            result = method(*args, **kwargs)
            return result.addBoth(done) if isinstance(result, Deferred) else result

        return call

    return cast("P", Forwarding(port, make_method))
