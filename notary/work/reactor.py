"""What this program asks of a reactor and of a clock.

Rules of this module: the interfaces are Twisted's own, because our clocks and reactors are handed on to Twisted.
"""

from __future__ import annotations

from datetime import UTC, datetime
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
"""Tells the time (``seconds``) and calls later (``callLater``)."""


class Reactor(IReactorCore, IReactorTime, IReactorThreads, IReactorProcess, IReactorTCP, IReactorSocket):
    """An event loop: a clock that also runs and stops, has threads, starts processes, and listens and connects."""


def installed_reactor() -> Reactor:
    """Return the reactor of this process; the first call installs Twisted's default if there is none yet."""
    from twisted.internet import reactor

    return cast("Reactor", reactor)


def utc_now() -> datetime:
    """The time of day, aware."""
    return datetime.now(UTC)
