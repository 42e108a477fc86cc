"""A service made of parts that are opened one after the other and closed in the opposite order.

Rules of this module: what is opened is told at once how to close it, so a start that fails or is cancelled half-way
leaves nothing open. Threads belong to the service that uses them, not to the reactor, and end with it. A database that
does not answer yet is waited for; what waiting cannot cure ends the start.
"""

from __future__ import annotations

import random
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from notary.daemon.pending import Closable, Pending
from notary.daemon.reload import Part, Reloader
from notary.errors import StorageUnreachable
from notary.net import listen
from notary.net.address import name
from notary.net.tls import contexts as tls
from notary.net.tls.refusals import Refusals, refusal_level
from notary.work.backoff import Backoff
from notary.work.threads import attempt, outcome

_PATIENCE: Final = Backoff(first=1.0, most=30.0, factor=2.0, jitter=0.2)
"""Between two tries to open a store."""
_MARGIN_SECONDS: Final = 60.0  # that one try may take at most, as a service manager is told

T = TypeVar("T")


C = TypeVar("C", bound=Closable)


class Assembly(Service, ABC):
    """Runs ``assemble`` to start; that passes each part's end to ``at_end``.

    ``threads`` is how many threads ``in_thread`` may use at the same time (see also ``own_threads``); ``sockets``
    listen already, and are served instead of the address of the configuration.
    """

    ready = False
    """Whether it serves and will go on to: for whoever decides where new requests are sent."""

    def __init__(self, reactor: Any, threads: int, sockets: Sequence[socket.socket] = ()) -> None:
        self.reactor = reactor
        self.on_waiting: Callable[[str, float], None] = lambda _status, _seconds: None
        """Hears what a start waits for, and for how many seconds at most until the next word."""
        self._sockets = sockets
        self._opening: Callable[[], Coroutine[Any, Any, None]] | None = None
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
        return self._in_pool(self._pool, work)

    def own_threads(self, count: int) -> Callable[[Callable[[], T]], Deferred[T]]:
        """Return another ``in_thread``, with ``count`` threads of its own, which end with the service."""
        pool = ThreadPool(0, count)
        self._start_pool(pool)
        return partial(self._in_pool, pool)

    def _in_pool(self, pool: ThreadPool, work: Callable[[], T], /) -> Deferred[T]:
        # An idle thread remembers what it did last: nothing of this but an empty list.
        once = [work]
        return deferToThreadPool(self.reactor, pool, attempt, once).addCallback(outcome)

    def _start_pool(self, pool: ThreadPool) -> None:
        pool.start()
        # It waits for the threads, so it is no work for the reactor's own thread.
        self.at_end(lambda: deferToThreadPool(self.reactor, self.reactor.getThreadPool(), pool.stop))

    def startService(self) -> Deferred[None]:
        """Open all parts. Fails as they do; ``stopService`` then closes those that are open."""
        super().startService()
        self._start_pool(self._pool)
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        await self.assemble()
        self.ready = bool(self.running)

    def stopService(self) -> Deferred[None]:
        """Close all parts."""
        self.ready = False
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    # -- parts that both daemons have ---------------------------------------------------------------------------------

    def watch(self, parts: Sequence[Part]) -> Reloader:
        """Return a reloader of ``parts`` that runs until the service stops."""
        made = Reloader(parts, self.in_thread, self.reactor)
        made.startService()
        self.at_end(made.stopService)
        return made

    async def listen(
        self, address: Any, factory: IProtocolFactory, options: tls.ServerOptions | None, refused: Refusals
    ) -> None:
        """Serve ``factory`` on ``address`` (with ``host`` and ``port``), or on the sockets that were passed."""
        log = refused.log
        if not self._sockets:
            log.info("Starting on {address}", address=str(address))
            port = await listen.listen(self.reactor, address.host, address.port, factory, options, refused)
            self.at_end(port.stopListening)
        for passed in self._sockets:
            log.info("Starting on {address}, a socket that was passed", address=name(passed))
            self.at_end(passed.close)
            self.at_end(listen.adopt(self.reactor, passed, factory, options, refused).stopListening)

    def refusals(self, log: Logger, *, mutual: bool) -> Refusals:
        """Return what logs refused connections; ``mutual`` says that clients must show a certificate."""
        return Refusals(log, refusal_level(mutual=mutual), self.reactor.seconds)

    async def open(self, log: Logger, open_store: Callable[[], Deferred[C]]) -> C:
        """Return what ``open_store`` opens, or, if its database does not answer yet, what stands for it until then.

        What stands for it fails every call with StorageUnreachable; ``opened`` turns it into the store. Either is
        closed in the end. Raises what ``open_store`` does, except StorageUnreachable.
        """
        try:
            store = await open_store()
        except StorageUnreachable as error:
            pending = Pending(error)
            self._opening = lambda: self._open_patiently(log, open_store, pending)
            self.at_end(pending.shut)
            return cast("C", pending)
        self.at_end(store.close)
        return store

    async def opened(self) -> bool:
        """Try until the store of ``open`` is open; return whether it was not. Raises what opening it does.

        Call it when whoever asks meanwhile gets an answer.
        """
        if self._opening is None:
            return False
        await self._opening()
        return True

    async def _open_patiently(self, log: Logger, open_store: Callable[[], Deferred[C]], pending: Pending) -> None:
        failures = 0
        while True:
            failures += 1
            seconds = _PATIENCE.delay(failures, random.random())  # noqa: S311 - jitter
            why = str(pending.error)
            log.error("{error}; trying again in {seconds} s", error=why, seconds=round(seconds, 1))
            self.on_waiting(f"Waiting for the database: {why}", seconds + _MARGIN_SECONDS)
            await deferLater(self.reactor, seconds)
            try:
                store = await open_store()
            except StorageUnreachable as error:
                pending.error = error
            else:
                pending.become(store)
                log.error("the database answers, after {failures} tries that failed", failures=failures)
                return

    async def _stop(self) -> None:
        while self._ends:
            await maybeDeferred(self._ends.pop())
