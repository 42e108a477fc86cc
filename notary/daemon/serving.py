"""What both daemons do to serve: listen, log refused connections, read files again, wait for a database.

Rules of this module: a database that does not answer yet is waited for; what waiting cannot cure ends the start.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import deferLater
from twisted.logger import Logger

from notary.daemon.pending import Closable, Pending
from notary.daemon.reload import Part, Reloader
from notary.errors import NotaryError, StorageUnreachable
from notary.net.address import name_of
from notary.net.listen import adopt, listen, naming
from notary.net.refusals import Refusals, refusal_level
from notary.net.tls.contexts import ServerOptions
from notary.work.backoff import Backoff
from notary.work.lifecycle import Assembly
from notary.work.machine import MACHINE, Machine
from notary.work.reactor import Reactor

_PATIENCE: Final = Backoff(first=1.0, most=30.0, factor=2.0, jitter=0.2)
"""The pauses, in seconds, between two tries of what a start waits for."""
_MARGIN_SECONDS: Final = 60.0
"""The longest time that one such try may take; the service manager is told so."""

C = TypeVar("C", bound=Closable)
T = TypeVar("T")


class Serving(Assembly):
    """An assembly that serves a port and keeps a store.

    ``threads`` is how many threads ``in_thread`` may use at the same time (see also ``own_threads``). ``sockets``
    listen already: the daemon serves them instead of the address of the configuration.
    """

    def __init__(
        self, reactor: Reactor, threads: int, sockets: Sequence[socket.socket] = (), machine: Machine = MACHINE
    ) -> None:
        super().__init__(reactor, threads, machine)
        self.on_waiting: Callable[[str, float], None] = lambda _status, _seconds: None
        """Called with what a start waits for, and the longest time in seconds until the next call."""
        self._sockets = sockets
        self._opening: Callable[[], Coroutine[Any, Any, None]] | None = None

    def reload_when_changed(self, parts: Sequence[Part]) -> Reloader:
        """Return a reloader of ``parts`` that runs until the service stops."""
        made = Reloader(parts, self.in_thread, self.reactor)
        made.startService()
        self.at_end(made.stopService)
        return made

    async def listen(
        self, key: str, address: Any, factory: IProtocolFactory, options: ServerOptions | None, refused: Refusals
    ) -> None:
        """Serve ``factory`` on ``address`` (with ``host`` and ``port``), or on the sockets that were passed.

        ``key`` names the address in an error. Raises CannotListenError.
        """
        log = refused.log
        if not self._sockets:
            log.info("Starting on {address}", address=str(address))
            with naming(key):
                port = await listen(self.reactor, address.host, address.port, factory, options, refused)
            self.at_end(port.stopListening)
        for passed in self._sockets:
            log.info("Starting on {address}, a socket that was passed", address=name_of(passed))
            self.at_end(passed.close)
            self.at_end(adopt(self.reactor, passed, factory, options, refused).stopListening)

    def refusals(self, log: Logger, *, mutual: bool) -> Refusals:
        """Return what logs refused connections; ``mutual`` says that clients must show a certificate."""
        return Refusals(log, refusal_level(mutual=mutual), self.reactor.seconds)

    async def open(self, port: type, log: Logger, open_store: Callable[[], Deferred[C]]) -> C:
        """Return the store that ``open_store`` opens, or a stand-in if the database of the store does not answer yet.

        The stand-in has the methods of ``port``, the store's Protocol. Each call fails with StorageUnreachable until
        ``wait_for_store`` has turned the stand-in into the store. Store and stand-in are closed at the end. Raises what
        ``open_store`` raises, except StorageUnreachable.
        """
        try:
            store = await open_store()
        except StorageUnreachable as error:
            pending = Pending(port, error)
            self._opening = lambda: self._open_patiently(log, open_store, pending)
            self.at_end(pending.shut)
            return cast("C", pending)
        self.at_end(store.close)
        return store

    async def wait_for_store(self) -> bool:
        """Wait until the store is open. Returns True if that took a retry. Raises what opening the store raises.

        Call it once the port is open: clients that ask meanwhile get an answer.
        """
        if self._opening is None:
            return False
        await self._opening()
        return True

    async def _open_patiently(self, log: Logger, open_store: Callable[[], Deferred[C]], pending: Pending) -> None:
        async def attempt() -> None:
            try:
                store = await open_store()
            except StorageUnreachable as error:
                pending.error = error
                raise
            pending.become(store)

        await self.retry(
            log, attempt, pending.error, StorageUnreachable, waits_for="the database", success="the database answers"
        )

    async def retry(
        self,
        log: Logger,
        attempt: Callable[[], Awaitable[T]],
        error: NotaryError,
        passing: type[NotaryError],
        *,
        waits_for: str,
        success: str,
    ) -> T:
        """Make an attempt that has failed with ``error`` again and again, as long as it raises ``passing``.

        The pauses grow. Each failure is logged, and the service manager is told what the start ``waits_for``. In the
        end the log says ``success``.
        """
        failures = 0
        while True:
            failures += 1
            seconds = _PATIENCE.delay(failures, self.machine.random.random())
            why = str(error)
            log.error("{error}; trying again in {seconds} s", error=why, seconds=round(seconds, 1))
            self.on_waiting(f"Waiting for {waits_for}: {why}", seconds + _MARGIN_SECONDS)
            await deferLater(self.reactor, seconds)
            try:
                result = await attempt()
            except passing as again:
                error = again
            else:
                log.error("{success}, after {failures} tries that failed", success=success, failures=failures)
                return result
