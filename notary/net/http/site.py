"""An HTTP/1.1 server that hands whole requests to one function and sends whole responses: a thin shell on twisted.web.

Rules of this module: it knows no TUF, no route and no error table; what it must answer by itself (a request that is
malformed, too large or too slow) it words through ``edge_error``, what a handler raises through ``on_error``, so that
every body is the application's. twisted.web parses, queues pipelined requests and keeps the transport from running
ahead; this module bounds sizes and times, refuses in words instead of by dropping the connection, and writes an answer
in one piece instead of by Request's seven steps, which take half of the time of a cached answer (docs/adr/).
"""

from __future__ import annotations

from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Final

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IReactorTime,
)
from twisted.logger import Logger
from twisted.web import http

from notary.net.address import host_and_port
from notary.net.http.answers import AnswerBudget
from notary.net.http.bodies import BodyBudget
from notary.net.http.call import Admit, Call, EdgeError, Handler, HttpLimits, OnError, OnFinish, Response, TakesBody
from notary.net.http.connection import Connection
from notary.net.http.multipart import FormPart, parse_multipart
from notary.net.http.request import Request

__all__ = ["Call", "FormPart", "Handler", "HttpLimits", "Response", "Site", "parse_multipart"]

_log = Logger()

_SWEEP_SECONDS: Final = 1.0
_DEFAULT_LIMITS: Final = HttpLimits()
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})


class Site(http.HTTPFactory):
    """Serves ``handler`` over HTTP/1.1.

    ``clock`` gives time and timers. ``edge_error(status, message)`` words what this layer answers by itself (400, 408,
    413, 414, 417, 431, 503; also 500 if all else fails); ``on_error(exception)`` what a handler raised, or this layer
    itself; both return a Response and should not raise. ``takes_body(call)`` says whether the application reads the
    body of a call; if not, a small one is dropped and a larger one refused. ``admit(call)`` is asked about every
    request that has a body, before any of it is read or asked for: the call, still without body, goes on to the handler
    unless ``admit`` returns or raises what the client is refused with. ``on_finish(call, status, bytes_sent, seconds)``
    is told once of every request that was answered, refused or given up by its client (499 if that was before it was
    complete): ``bytes_sent`` counts the body only, ``seconds`` run from the request line until the answer is handed to
    the transport. The call of a request that was refused has what was understood of it, perhaps nothing.
    """

    noisy = False

    def __init__(
        self,
        handler: Handler,
        clock: IReactorTime,
        *,
        edge_error: EdgeError,
        on_error: OnError,
        on_finish: OnFinish,
        admit: Admit = lambda _: None,
        takes_body: TakesBody = lambda call: call.method in _WITH_BODY,
        limits: HttpLimits = _DEFAULT_LIMITS,
    ) -> None:
        super().__init__(reactor=clock)
        self.handler = handler
        self.limits = limits
        self.seconds: Callable[[], float] = clock.seconds
        self.stopping = False
        self.first_seconds = 0.0
        """How long a new connection has for its handshake, and again for its first request, once the site stops."""
        self._clock = clock
        self._edge_error = edge_error
        self._on_error = on_error
        self._on_finish = on_finish
        self._admit = admit
        self.takes_body = takes_body
        self.bodies = BodyBudget(max(limits.bodies, limits.body), max(limits.peer_bodies, limits.body))
        self.answers = AnswerBudget(limits.answers)
        self.working: set[Request] = set()  # handlers that run, though their clients may be gone
        self._connections: set[Connection] = set()
        self._sweeper: IDelayedCall | None = None
        self._drained: Deferred[None] | None = None
        self._date_second = -1
        self._date = b""

    def startFactory(self) -> None:
        """twisted.web would start its access log here; ours is ``on_finish``."""

    def stopFactory(self) -> None:
        """See startFactory."""

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def buildProtocol(self, addr: IAddress | None) -> Connection:  # type: ignore[override]
        """The protocol of a new connection from ``addr``: HTTP/1.1 only, without twisted.web's switch to HTTP/2."""
        connection = Connection(self, host_and_port(addr))
        connection.factory = self
        return connection

    async def stop(self, grace_seconds: float) -> None:
        """Finish what is being received or answered, close what waits, then drop what is left.

        A new connection has half of the time for its handshake, and as long again for its first request. Call it after
        the listening ports are closed. Returns when no connection is open and no handler runs, or after
        ``grace_seconds``.
        """
        self.stopping = True
        self.first_seconds = grace_seconds / 2
        for connection in tuple(self._connections):
            connection.retire()
        if not self._connections and not self.working:
            return
        self._drained = Deferred()
        timer = self._clock.callLater(grace_seconds, self._give_up)
        await self._drained
        if timer.active():
            timer.cancel()

    def _give_up(self) -> None:
        for connection in tuple(self._connections):
            connection.give_up()
        self._connections.clear()
        self.working.clear()
        self._quiet()

    # -- for connections ---------------------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """Watch the deadline of a new connection."""
        self._connections.add(connection)
        if self._sweeper is None:
            self._sweeper = self._clock.callLater(_SWEEP_SECONDS, self._sweep)

    def closed(self, connection: Connection) -> None:
        """Forget a connection that is gone and has no handler running."""
        self._connections.discard(connection)
        self._quiet()

    def worked(self, request: Request) -> None:
        """Forget a handler that is done."""
        self.working.discard(request)
        self._quiet()

    def _quiet(self) -> None:
        if self._connections or self.working:
            return
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        if self._drained is not None:
            drained, self._drained = self._drained, None
            drained.callback(None)

    def _sweep(self) -> None:
        """Expire connections. One timer for all costs a request nothing, unlike one timer each."""
        self._sweeper = self._clock.callLater(_SWEEP_SECONDS, self._sweep)
        now = self.seconds()
        for connection in tuple(self._connections):
            if connection.deadline is not None and connection.deadline <= now:
                connection.expire()

    def soon(self, function: Callable[[], None]) -> IDelayedCall:
        """Call ``function`` in the next turn of the reactor."""
        return self._clock.callLater(0, function)

    def date(self) -> bytes:
        """Return the Date field and the end of the head."""
        second = int(self.seconds())
        if second != self._date_second:
            self._date_second = second
            self._date = f"Date: {formatdate(second, usegmt=True)}\r\n\r\n".encode("ascii")
        return self._date

    def refused(self, status: int, message: str) -> Response:
        """The application's wording of an answer of this layer."""
        try:
            return self._edge_error(status, message)
        except Exception:  # noqa: BLE001 - an answer is owed all the same
            _log.failure("edge_error raised")
            return Response(status)

    def admit(self, call: Call) -> Response | None:
        """Return what the application refuses a call with, whose body has not been read."""
        try:
            return self._admit(call)
        except Exception as error:  # noqa: BLE001 - the application's table decides
            return self.failed(error)

    def handle(self, call: Call) -> Response | Deferred[Response]:
        """What the application's handler makes of a call."""
        try:
            result = self.handler(call)
            if isinstance(result, Response):
                return result
            deferred = ensureDeferred(result)
            if deferred.called and isinstance(deferred.result, Response):
                return deferred.result
        except Exception as error:  # noqa: BLE001 - the application's table decides
            return self.failed(error)
        return deferred

    def failed(self, error: Exception) -> Response:
        """Return the application's answer to an exception of its handler, or of this layer; it is logged there."""
        try:
            return self._on_error(error)
        except Exception:  # noqa: BLE001 - an answer is owed all the same
            _log.failure("on_error raised")
            return self.refused(500, "internal error")

    def log(self, request: http.Request) -> None:
        """What twisted.web calls when a request is finished: the last that needs what it was about."""
        ours: Any = request
        self.finished(ours.call, ours.response.status, ours.sentLength, self.seconds() - ours.started)
        ours.release()

    def finished(self, call: Call, status: int, sent: int, seconds: float) -> None:
        """Report a request."""
        try:
            self._on_finish(call, status, sent, seconds)
        except Exception:  # noqa: BLE001 - the request is answered; a log that fails must not break the next
            _log.failure("on_finish raised")
