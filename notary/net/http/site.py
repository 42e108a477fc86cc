"""An HTTP/1.1 server that hands whole requests to one function and sends whole responses.

Rules of this module: it knows no TUF, no route and no error table; what the HTTP layer must answer by itself (a request
that is malformed, too large or too slow) is worded by ``edge_error``, what a handler raises by ``on_error``, so that
every body is the application's. :mod:`notary.net.http.reader` reads requests; a :class:`HttpConnection` bounds times,
queues pipelined requests, keeps a client from running ahead and refuses in words instead of by dropping the connection
(docs/adr/).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar, Final

from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory

from notary.net.address import host_and_port
from notary.net.connections import Connections
from notary.net.http.answers import AnswerBudget
from notary.net.http.application import Application, DateField, Service
from notary.net.http.bodies import BodyBudget
from notary.net.http.call import Admit, Call, EdgeError, Handler, OnError, OnFinish, Response, TakesBody
from notary.net.http.connection import HttpConnection
from notary.net.http.limits import HttpLimits
from notary.net.http.multipart import FormPart, parse_multipart

__all__ = ["Call", "FormPart", "Handler", "HttpLimits", "Response", "Site", "parse_multipart"]

_DEFAULT_LIMITS: Final = HttpLimits()
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})


class Site(Factory):
    """Serves ``handler`` over HTTP/1.1.

    ``clock`` gives time and timers.

    ``edge_error(status, message)`` returns the answer to an error that the HTTP layer finds (400, 408, 413, 414, 417,
    431, 503; also 500 if all else fails). ``on_error(exception)`` returns the answer to an exception of the handler, or
    of this layer. Both should not raise.

    ``takes_body(call)`` says whether the application reads the body of a call; if not, a small body is dropped and a
    larger one refused. ``admit(call)`` is called for every request that has a body, before any of the body is read or
    asked for. It may return a Response, or raise, to refuse the request; else the call goes on to the handler.

    ``on_finish(call, status, bytes_sent, seconds)`` is called once for every request that was answered, refused, or
    given up by its client (499 if the request was not complete). ``bytes_sent`` counts the body only; ``seconds`` run
    from the request line until the answer is handed to the transport. The call of a refused request has only the
    fields that were understood, perhaps none.

    ``clock`` measures durations; ``time_of_day`` is in seconds since the epoch, for the Date of answers.
    """

    noisy = False
    connection_type: ClassVar[type[HttpConnection]] = HttpConnection

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
        time_of_day: Callable[[], float] = time.time,
    ) -> None:
        self.application = Application(
            handler,
            edge_error=edge_error,
            on_error=on_error,
            on_finish=on_finish,
            admit=admit,
            takes_body=takes_body,
        )
        self.bodies = BodyBudget(max(limits.bodies, limits.body), max(limits.peer_bodies, limits.body))
        self.answers = AnswerBudget(limits.answers)
        self._connections = Connections(clock)
        self._service = Service(
            self.application,
            limits,
            clock,
            clock.seconds,
            self._connections,
            self.bodies,
            self.answers,
            DateField(time_of_day),
        )

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    def buildProtocol(self, addr: IAddress | None) -> HttpConnection:
        """Return the protocol of a new connection from ``addr``."""
        return self.connection_type(self._service, host_and_port(addr))

    async def stop(self, grace_seconds: float) -> None:
        """Finish what is being received or answered, and one more request on each connection, then drop what is left.

        A new connection has half of the time for its handshake, and as long again for its first request. An idle one
        has a third of the time for its next request. Call it after the listening ports are closed. Returns when no
        connection is open and no handler runs, or after ``grace_seconds``.
        """
        await self._connections.drain(grace_seconds)
