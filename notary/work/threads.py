"""Plain functions in threads: a pool that belongs to one service, and failures that hold nothing.

Rules of this module: a pool belongs to the service that uses it, not to the reactor, and ends with it. An error that a
function raises on purpose crosses to the reactor without its frames: these would keep what the work had in hand, such
as the body of a refused upload, until some garbage collection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from notary.errors import NotaryError
from notary.work.reactor import Reactor

T = TypeVar("T")


class InThread(Protocol):
    """Runs a function in a thread."""

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]:
        """The Deferred fires on the reactor's thread."""


class Threads:
    """Runs functions in at most ``most`` threads at the same time; further ones wait for their turn."""

    def __init__(self, reactor: Reactor, most: int) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, most)

    def start(self) -> None:
        """Take work from now on; what was given before is begun."""
        self._pool.start()

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]:
        """Run a plain function in a thread; the Deferred fires on the reactor's thread."""
        # An idle thread remembers what it did last: nothing of this but an empty list.
        once = [work]
        return deferToThreadPool(self._reactor, self._pool, _attempt, once).addCallback(_outcome)

    def stop(self) -> Deferred[None]:
        """Finish what was given, then end the threads. That is waited for in a thread of the reactor's own pool."""
        stopped: Deferred[None] = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._pool.stop)
        return stopped


class _Refusal:
    """That work failed as it may: not an exception in flight, whose frames would hold what the work had in hand.

    The frames and the Failure that the thread pool makes refer to each other, so only the garbage collector, some day,
    would free them.
    """

    def __init__(self, error: NotaryError) -> None:
        self.error = error
        inner: BaseException | None = error
        while inner is not None:
            inner.__traceback__ = None
            inner = inner.__cause__ or inner.__context__


def _attempt(once: list[Callable[[], T]]) -> T | _Refusal:
    try:
        return once.pop()()
    except NotaryError as error:
        return _Refusal(error)


def _outcome(result: T | _Refusal) -> T:
    if isinstance(result, _Refusal):
        raise result.error
    return result
