"""Plain functions in threads: a pool that belongs to one service, and failures that hold nothing.

Rules of this module: a pool belongs to the service that uses it, not to the reactor, and ends with it. A
NotaryError of a function reaches the reactor without its frames, which would keep the data of the work, such as the
body of a refused upload, in memory until some garbage collection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from notary.errors import NotaryError
from notary.work.machine import MACHINE, Machine
from notary.work.reactor import Reactor

T = TypeVar("T")


class InThread(Protocol):
    """Runs a plain function in a thread."""

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]:
        """Start ``work``. The Deferred fires on the reactor's thread with the result."""
        ...


class Threads:
    """Runs functions in at most ``most`` threads at the same time; further functions wait for their turn."""

    def __init__(self, reactor: Reactor, most: int, machine: Machine = MACHINE) -> None:
        self._reactor = reactor
        self._pool = machine.thread_pool(0, most)

    def start(self) -> None:
        """Start the pool, and the work that was given to it before."""
        self._pool.start()

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]:
        """Run a plain function in a thread; the Deferred fires on the reactor's thread."""
        # An idle thread keeps a reference to its last call: here only to an empty list.
        once = [work]
        return deferToThreadPool(self._reactor, self._pool, _attempt, once).addCallback(_outcome)

    def stop(self) -> Deferred[None]:
        """Finish the given work, then end the threads. A thread of the reactor's own pool waits for that."""
        stopped: Deferred[None] = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._pool.stop)
        return stopped


class _Refusal:
    """An expected error of the work, returned as a value, not raised: frames would keep the data of the work.

    The frames and the Failure that the thread pool makes refer to each other, so that only a garbage collection would
    free them.
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
