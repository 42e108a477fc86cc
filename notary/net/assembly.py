"""A service made of parts that are opened one after the other and closed in the opposite order.

Rules of this module: what is opened is told at once how to close it, so a start that fails or is cancelled half-way
leaves nothing open. Threads belong to the service that uses them, not to the reactor, and end with it. A database that
does not answer yet is waited for; what waiting cannot cure ends the start.
"""

from __future__ import annotations

import random
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Protocol, TypeVar, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from notary.errors import NotaryError, StorageUnreachable
from notary.net import tls
from notary.net.grpc import Backoff
from notary.net.handshake import Refusals, refusal_level
from notary.net.reload import Part, Reloader

_PATIENCE: Final = Backoff(first=1.0, most=30.0, factor=2.0, jitter=0.2)
"""Between two tries to open a store."""
_MARGIN_SECONDS: Final = 60.0  # that one try may take at most, as a service manager is told

T = TypeVar("T")


class Closable(Protocol):
    """What a store is here."""

    def close(self) -> Deferred[None]:
        """Release connections."""


C = TypeVar("C", bound=Closable)


class _Pending:
    """Stands for a store that is not open: has every method, each of which fails with ``error`` until it is."""

    def __init__(self, error: StorageUnreachable) -> None:
        self.error = error
        self._store: Closable | None = None

    def __getattr__(self, name: str) -> Callable[..., Deferred[Any]]:
        # Whoever keeps the method has that of the store later on.
        return lambda *given, **named: (
            fail(self.error) if self._store is None else getattr(self._store, name)(*given, **named)
        )

    def become(self, store: Closable) -> None:
        """Have the methods of ``store``, at no cost for a call."""
        self._store = store
        self.__dict__ |= {name: getattr(store, name) for name in dir(store) if not name.startswith("_")}

    def shut(self) -> Deferred[None] | None:
        """Close the store, if there is one by now."""
        return None if self._store is None else self._store.close()


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
        return deferToThreadPool(self.reactor, pool, _attempt, once).addCallback(_outcome)

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
            port = await tls.listen(self.reactor, address.host, address.port, factory, options, refused)
            self.at_end(port.stopListening)
        for passed in self._sockets:
            log.info("Starting on {address}, a socket that was passed", address=_name(passed))
            self.at_end(passed.close)
            self.at_end(tls.adopt(self.reactor, passed, factory, options, refused).stopListening)

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
            pending = _Pending(error)
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

    async def _open_patiently(self, log: Logger, open_store: Callable[[], Deferred[C]], pending: _Pending) -> None:
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


class _Refusal:
    """That work failed as it may: not an exception in flight, whose frames would hold what the work had in hand.

    Otherwise the body of a refused upload would stay until the garbage collection that comes by some day, because the
    frames and the Failure that the thread pool makes refer to each other.
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


class Bootstrap(Service):
    """Sets up the database, and ends the process: what ``-bootstrap`` asks for.

    ``migrate`` does the work; it is given ``report``, which takes a line before each step.
    """

    def __init__(self, migrate: Callable[..., Awaitable[object]], backend: str, reactor: Any) -> None:
        self._migrate = migrate
        self._backend = backend
        self._reactor = reactor
        self._log = Logger()

    def startService(self) -> Deferred[None]:
        """Do it all. Fails with StorageFailed or ConfigError."""
        super().startService()
        return Deferred.fromCoroutine(self._run())

    async def _run(self) -> None:
        await self._migrate(report=lambda line: self._log.info("{line}", line=line))
        self._log.info("The {backend} backend is set up", backend=self._backend)
        with suppress(ReactorNotRunning):  # a signal has come at the same time
            self._reactor.stop()


def _name(passed: socket.socket) -> str:
    """Return the address of a socket, for a message."""
    address = passed.getsockname()
    if not isinstance(address, tuple):
        return str(address)
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def utc_now() -> datetime:
    """The time of day, aware."""
    return datetime.now(UTC)
