"""What this program asks of a reactor and of a clock.

Rules of this module: the interfaces are Twisted's own, because our clocks and reactors are handed on to Twisted. There
are two times, and they are never compared: ``Clock.seconds`` measures durations and only ever grows; that of
:class:`notary.work.machine.Machine` is the time of day, for the expiry of metadata and for records, and may step back
or forth at any time.
"""

from __future__ import annotations

import time
from typing import TypeAlias, cast

from twisted.internet.interfaces import (
    IReactorCore,
    IReactorProcess,
    IReactorSocket,
    IReactorTCP,
    IReactorThreads,
    IReactorTime,
)

Clock: TypeAlias = IReactorTime
"""Measures durations (``seconds``, which has no relation to the time of day) and calls later (``callLater``)."""


class Reactor(IReactorCore, IReactorTime, IReactorThreads, IReactorProcess, IReactorTCP, IReactorSocket):
    """An event loop: a clock that also runs and stops, has threads, starts processes, and listens and connects."""


def installed_reactor() -> Reactor:
    """Return the reactor of this process, on monotonic time; the first call installs Twisted's default if needed."""
    from twisted.internet import reactor

    installed = cast("Reactor", reactor)
    use_monotonic_time(installed)
    return installed


def use_monotonic_time(reactor: Reactor) -> None:
    """Let every timer and duration of ``reactor`` ignore steps of the time of day, which Twisted's reactors follow.

    Calls that are scheduled already keep their remaining time. Call it before the reactor runs: Twisted keeps no other
    record of the clock than the method ``seconds``.
    """
    if reactor.seconds is time.monotonic:
        return
    difference = time.monotonic() - reactor.seconds()
    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    for call in reactor.getDelayedCalls():
        call.delay(difference)
