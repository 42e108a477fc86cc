"""A service made of parts that are opened one after the other and closed in the opposite order.

Rules of this module: what is opened is told at once how to close it, so a start that fails or is cancelled half-way
leaves nothing open. Threads belong to the service that uses them, not to the reactor, and end with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

T = TypeVar("T")


class Assembly(Service, ABC):
    """Runs ``assemble`` to start; that passes each part's end to ``at_end``.

    ``threads`` is how many threads ``in_thread`` may use at the same time.
    """

    def __init__(self, reactor: Any, threads: int) -> None:
        self.reactor = reactor
        self._pool = ThreadPool(0, threads)
        self._ends: list[Callable[[], object]] = []

    @abstractmethod
    async def assemble(self) -> None:
        """Open all parts."""

    def at_end(self, close: Callable[[], object]) -> None:
        """Call ``close`` when the service stops, after the ends of all parts that are opened later.

        It may return a Deferred or a coroutine.
        """
        self._ends.append(close)

    def run(self, service: Service) -> Deferred[None]:
        """Start a service now and stop it at the end; the Deferred fires, or fails, as its start does."""
        self.at_end(service.stopService)
        return maybeDeferred(service.startService)

    def in_thread(self, work: Callable[[], T], /) -> Deferred[T]:
        """Run a plain function in a thread; the Deferred fires on the reactor's thread."""
        return deferToThreadPool(self.reactor, self._pool, work)

    def startService(self) -> Deferred[None]:
        """Open all parts. Fails as they do; ``stopService`` then closes those that are open."""
        super().startService()
        self._pool.start()
        # It waits for the threads, so it is no work for the reactor's own thread.
        self.at_end(lambda: deferToThreadPool(self.reactor, self.reactor.getThreadPool(), self._pool.stop))
        return Deferred.fromCoroutine(self.assemble())

    def stopService(self) -> Deferred[None]:
        """Close all parts."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        while self._ends:
            await maybeDeferred(self._ends.pop())


class Bootstrap(Service):
    """Opens a store, which creates what is missing, closes it, and ends the process: what ``-bootstrap`` asks for."""

    def __init__(self, open_store: Callable[[], Deferred[Any]], backend: str, reactor: Any) -> None:
        self._open_store = open_store
        self._backend = backend
        self._reactor = reactor
        self._log = Logger()

    def startService(self) -> Deferred[None]:
        """Do it all. Fails with StorageFailed or ConfigError."""
        super().startService()
        return Deferred.fromCoroutine(self._run())

    async def _run(self) -> None:
        store = await self._open_store()
        await store.close()
        self._log.info("The {backend} backend is set up", backend=self._backend)
        self._reactor.stop()


def utc_now() -> datetime:
    """The time of day, aware."""
    return datetime.now(UTC)
