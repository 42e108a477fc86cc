"""A service made of parts that are opened one after the other and closed in the opposite order.

Rules of this module: each part registers its close as soon as it is open, so a start that fails or is cancelled
half-way leaves nothing open.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred

from notary.work.machine import MACHINE, Machine
from notary.work.reactor import Reactor
from notary.work.threads import InThread, Threads


class Assembly(Service, ABC):
    """Starts by ``assemble``, which passes the close of each part to ``at_end``.

    ``threads`` is how many threads ``in_thread`` may use at the same time.
    """

    ready = False
    """True from the end of the start to the beginning of the stop. Load balancers send new requests only then."""

    def __init__(self, reactor: Reactor, threads: int, machine: Machine = MACHINE) -> None:
        self.reactor = reactor
        self.machine = machine
        self._threads = Threads(reactor, threads, machine)
        self.in_thread: InThread = self._threads
        """Runs a plain function in a thread of this service."""
        self._ends: list[Callable[[], object]] = []

    def own_threads(self, most: int) -> InThread:
        """Return another ``in_thread``, with at most ``most`` threads of its own, which end with the service."""
        threads = Threads(self.reactor, most, self.machine)
        threads.start()
        self.at_end(threads.stop)
        return threads

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

    def startService(self) -> Deferred[None]:
        """Open all parts. Fails as they do; ``stopService`` then closes those that are open."""
        super().startService()
        self._threads.start()
        self.at_end(self._threads.stop)
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        await self.assemble()
        self.ready = bool(self.running)

    def stopService(self) -> Deferred[None]:
        """Close all parts."""
        self.ready = False
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        while self._ends:
            await maybeDeferred(self._ends.pop())
