"""One connection of an HTTP/1.1 server: what a client sends goes to the reader, and answers go out in their order.

Rules of this module: nearly all requests are read by :mod:`notary.net.http.fast` (the fast path), all others by
:mod:`notary.net.http.reader`; both come to the same answer. Every wait has a deadline, which is an attribute: the sweep
of :class:`notary.net.connections.Connections` looks at it once a second. No exception leaves what Twisted calls.
"""

# ruff: noqa: D102 - Twisted says what the methods mean that it calls
from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from enum import Enum, auto
from functools import wraps
from typing import Concatenate, Final, ParamSpec, Protocol, cast

from twisted.internet import protocol
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from notary.net.http.application import Service
from notary.net.http.bodies import body_deadline
from notary.net.http.call import Call, Response, conditional
from notary.net.http.exchange import CLOSE, PIECE_BYTES, Exchange
from notary.net.http.fast import read_fields, read_line
from notary.net.http.reader import Body, End, Event, Head, Line, Reader
from notary.net.http.target import BadRequest

P = ParamSpec("P")

_LOGGED_TARGET_BYTES: Final = 1024  # of a refused request's target
_AHEAD_BYTES: Final = 16 * 1024  # of further requests that are kept while one is answered, before reading stops
_CLIENT_CLOSED: Final = 499  # logged, never sent: the client went away before its request was complete
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Phase(Enum):
    """What a connection is doing, and so what its deadline is for."""

    IDLE = auto()  # no byte of the next request has arrived
    HEAD = auto()
    BODY = auto()
    BUSY = auto()  # the handler has the request
    REFUSED = auto()  # answered before it was complete: input is read and dropped until the client closes
    CLOSING = auto()  # nothing more is written; bytes that are written already still go out


class _Transport(Protocol):
    """A transport that can be aborted, half closed and paused, as all of ours can."""

    def write(self, data: bytes) -> None: ...
    def loseConnection(self) -> None: ...
    def loseWriteConnection(self) -> None: ...
    def abortConnection(self) -> None: ...
    def registerProducer(self, producer: object, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...


def _contained(
    callback: Callable[Concatenate[HttpConnection, P], None],
) -> Callable[Concatenate[HttpConnection, P], None]:
    """Contain the exceptions of a method that Twisted calls: they end this connection, and do not reach the reactor."""

    @wraps(callback)
    def contained(connection: HttpConnection, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(connection, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the last line of defence
            connection.break_off(error)

    return cast("Callable[Concatenate[HttpConnection, P], None]", contained)


@implementer(IHalfCloseableProtocol, IHandshakeListener, IPushProducer)
class HttpConnection(protocol.Protocol):
    """One client: requests in, answers out, every wait with a deadline; a malformed request gets an error in words."""

    transport: _Transport  # type: ignore[assignment]

    def __init__(self, service: Service, remote: str) -> None:
        self.remote = remote
        self.secure = False
        self.phase = _Phase.HEAD
        self.deadline: float | None = None
        self.persistent = True
        self.choked = False
        self.exchange: Exchange | None = None
        """The request that is being received or answered."""
        self._service = service
        self._reader = Reader(service.limits)
        self._is_reading = False  # an event of the reader is being looked at
        self._line: Line | None = None  # of the present request, once it has arrived
        self._started = 0.0  # when the line arrived
        self._is_paused = False  # whether the transport was told to stop reading
        self._has_ended = False  # whether the client has closed its half
        self._is_lost = False
        self._dropped_bytes = 0
        self._last_block = b""  # the fields of the last fast request, as bytes; the next request often has the same
        self._last_fields: Mapping[str, str] | None = None

    # -- called by the transport ---------------------------------------------------------------------------------------

    @_contained
    def connectionMade(self) -> None:
        service = self._service
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, streaming=True)
        self.secure = ISSLTransport.providedBy(self.transport)
        self._await(_Phase.HEAD, service.limits.head_seconds)  # which covers the TLS handshake
        service.connections.add(self)
        if service.connections.draining:
            self.leave(service.connections.first_seconds, service.connections.idle_seconds)

    def handshakeCompleted(self) -> None:
        """TLS is up. If the server stops, the first request has as long again as the handshake had."""
        connections = self._service.connections
        if connections.draining and self.deadline is not None:
            self.deadline = self._service.seconds() + connections.first_seconds

    def dataReceived(self, data: bytes) -> None:
        try:
            phase = self.phase
            if (phase is _Phase.IDLE or phase is _Phase.HEAD) and self._try_fast(data):
                return
            if phase is _Phase.CLOSING:
                return
            if phase is _Phase.REFUSED:
                self._drop(data)
                return
            if phase is _Phase.IDLE:
                self._await(_Phase.HEAD, self._service.limits.head_seconds)
            elif phase is _Phase.BODY and self.deadline is not None:
                limits = self._service.limits
                now = self._service.seconds()
                self.deadline = body_deadline(self.deadline, now, len(data), limits.body_rate, limits.body_seconds)
            self._read(data)
        except Exception as error:  # noqa: BLE001 - the last line of defence
            self.break_off(error)

    def _drop(self, data: bytes) -> None:
        """Count and drop the bytes that follow a refusal."""
        self._dropped_bytes += len(data)
        # Many clients read only after they have sent everything: an upload that is a little too large must fit.
        if self._dropped_bytes > 2 * self._service.limits.body:
            self.transport.abortConnection()

    @_contained
    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:  # noqa: ARG002 - Twisted passes it
        self.deadline = None
        try:
            if self.phase in {_Phase.HEAD, _Phase.BODY} and self._line is not None:
                self._report_incomplete(_CLIENT_CLOSED, 0)
        finally:
            self._forget()

    def _forget(self) -> None:
        exchange, self.exchange = self.exchange, None
        self.phase = _Phase.CLOSING
        self._is_lost = True
        self._reader.clear()
        try:
            if exchange is not None:
                exchange.lost()
        finally:
            del self.transport  # which refers to the connection
            self._service.connections.discard(self)

    @_contained
    def readConnectionLost(self) -> None:
        """The client sends no more, but may still read: answer complete requests, and refuse an incomplete one."""
        self._has_ended = True
        self._end_if_answered()

    def _end_if_answered(self) -> None:
        if self.phase is _Phase.BODY or (self.phase is _Phase.HEAD and self._reader.begun):
            self.refuse(400, "the request was cut off")
        if self.phase is not _Phase.BUSY and self.phase is not _Phase.CLOSING:
            self._end()

    def writeConnectionLost(self) -> None:
        """Our half is closed, as ``reject`` asked for."""

    @_contained
    def pauseProducing(self) -> None:
        """The client does not read: stop reading its requests, or answers would pile up."""
        self.choked = True
        if not self._is_answering:
            self._pause()

    @_contained
    def resumeProducing(self) -> None:
        """The client reads again."""
        self.choked = False
        if self.exchange is not None and self.exchange.is_writing:
            self.exchange.resume()
        if not self._is_answering and not self._is_deaf:
            self._resume()

    def stopProducing(self) -> None:
        """The connection is going away: ``connectionLost`` follows."""

    @property
    def _is_answering(self) -> bool:
        return self.phase is _Phase.BUSY and self.exchange is not None

    def _pause(self) -> None:
        self._is_paused = True
        self.transport.pauseProducing()

    def _resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self.transport.resumeProducing()

    # -- requests ------------------------------------------------------------------------------------------------------

    def _try_fast(self, data: bytes) -> bool:
        """Answer ``data`` if it is one whole ordinary request. Returns False if it is, or may be, anything else."""
        service = self._service
        limits = service.limits
        if (
            data[-4:] != b"\r\n\r\n"
            or len(data) > limits.head
            or service.connections.draining
            or not self._reader.fresh
        ):
            return False
        end = data.index(b"\r\n")
        block = data[end + 2 :]
        if block != self._last_block:
            self._last_block, self._last_fields = block, read_fields(block, limits.fields)
        line = read_line(data[:end])
        headers = self._last_fields
        if line is None or headers is None or end > limits.request_line:
            return False
        if "connection" in headers:
            self.persistent = headers["connection"].lower() != "close"
        started = service.seconds()
        call = Call(*line, headers, self.remote, self.secure)
        self.phase = _Phase.BUSY
        self.deadline = None
        result = service.application.handle(call)
        if isinstance(result, Response):
            result = conditional(call, result)
            body = b"" if call.method == "HEAD" else result.body
            if len(body) <= PIECE_BYTES and not self.choked:
                self._answer_fast(call, result, body, started)
                return True
        self._reader.hold()
        self.exchange = Exchange(self, service, call, started)
        self.exchange.answer_with(result)
        return True

    def _answer_fast(self, call: Call, response: Response, body: bytes, started: float) -> None:
        service = self._service
        connection = b"" if self.persistent else CLOSE
        self.transport.write(b"".join((response.head, connection, service.date(), body)))
        service.application.finished(call, response.status, len(body), service.seconds() - started)
        if self.phase is _Phase.BUSY:
            self._await(_Phase.IDLE, service.limits.idle_seconds)
            if not self.persistent or self._has_ended:
                self._end()

    def _read(self, data: bytes) -> None:
        """Read ``data``, after the bytes that were kept before it, and act on what it says."""
        self._is_reading = True
        try:
            for event in self._reader.feed(data):
                self._take(event)
                if self._is_deaf:
                    return
        except BadRequest as bad:
            self.refuse(bad.status, str(bad))
            return
        finally:
            self._is_reading = False
        if self.phase is not _Phase.BUSY:
            if self._has_ended:
                self._end_if_answered()
        elif self._reader.kept_bytes > _AHEAD_BYTES and not self._is_paused:
            self._pause()

    def _take(self, event: Event) -> None:
        match event:
            case Line():
                self._line = event
                self._started = self._service.seconds()
            case Head():
                self._begin(event)
            case Body():
                cast("Exchange", self.exchange).receive(event.data)
            case End():
                self.phase = _Phase.BUSY
                self.deadline = None
                cast("Exchange", self.exchange).handle()

    def _begin(self, head: Head) -> None:
        """Begin an exchange: decide whether its body may come, and whether it is kept."""
        service = self._service
        self._await(_Phase.BODY, service.limits.body_seconds)
        self.persistent = head.persistent
        call = Call(head.method, head.path, head.raw_path, head.query, head.headers, self.remote, self.secure)
        exchange = self.exchange = Exchange(self, service, call, self._started)
        if head.location is not None:
            exchange.elsewhere = Response(301, b"", (("Location", head.location),))
        if not head.has_body:
            return
        refusal = exchange.elsewhere or service.application.admit(call)
        if refusal is not None:
            self.reject(refusal)
            return
        if service.application.takes_body(call):
            exchange.keep_body()
        else:
            self._reader.limit_body(service.limits.other_body)
        if head.expects_continue:
            self.transport.write(_CONTINUE)

    def write(self, data: bytes) -> None:
        """Send ``data``."""
        self.transport.write(data)

    def exchange_done(self) -> None:
        """Go on to the next request, which may have arrived already."""
        self.exchange = self._line = None
        self._resume()
        if not self.persistent:
            self._end()
            return
        reader, service = self._reader, self._service
        reader.next_request()
        if reader.kept_bytes:
            self._await(_Phase.HEAD, service.limits.head_seconds)
        else:
            # While the server stops, this answer began before the stop, and did not say that it is the last one.
            waits = service.connections if service.connections.draining else service.limits
            self._await(_Phase.IDLE, waits.idle_seconds)
            if not self._has_ended:
                return  # as after nearly all requests: there is nothing to read
        if not self._is_reading:
            self._read(b"")

    # -- deadlines and refusals ----------------------------------------------------------------------------------------

    @property
    def _is_deaf(self) -> bool:
        """Whether input is dropped."""
        return self.phase is _Phase.REFUSED or self.phase is _Phase.CLOSING

    def _await(self, phase: _Phase, seconds: float) -> None:
        self.phase = phase
        self.deadline = self._service.seconds() + seconds

    def sweep(self, now: float) -> None:
        """Stop waiting if the deadline has passed."""
        if self.deadline is not None and self.deadline <= now:
            self._expire()

    @_contained
    def _expire(self) -> None:
        if self.phase is _Phase.BODY or (self.phase is _Phase.HEAD and self._reader.begun):
            self.refuse(408, "the request took too long")
        elif self.phase is _Phase.BUSY or self.phase is _Phase.CLOSING:
            self.give_up()
        elif self.phase is _Phase.REFUSED:
            self._end()
        else:
            # A busy reactor may not have read what has arrived: it does so before its next turn begins.
            self._service.clock.callLater(0, self._end_silent, self.deadline)

    @_contained
    def _end_silent(self, deadline: float) -> None:
        """End a connection on which nothing has come since it expired, at ``deadline``."""
        if self.deadline != deadline or self._reader.begun or self._is_deaf:
            return
        if self._service.connections.draining:
            self._end_now()
        else:
            self._end()

    def _end(self) -> None:
        """Close the connection when all that was written is sent."""
        refused = self.phase is _Phase.REFUSED
        self._await(_Phase.CLOSING, self._service.limits.write_seconds)
        if not refused:  # `reject` has done it
            self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _end_now(self) -> None:
        """Close a connection on which nothing is sent: a TLS client that says no goodbye must not delay a stop."""
        self._end()
        self.deadline = self._service.seconds()

    def refuse(self, status: int, message: str) -> None:
        """Answer an incomplete request with an error, in the application's words: see ``reject``."""
        if not self._is_deaf:
            self.reject(self._service.application.refused(status, message))

    def reject(self, response: Response) -> None:
        """Answer a request before it is complete, and end the connection so that the client can read why.

        Closing a socket with unread input resets the connection, and the client may lose the answer that it has not
        read yet; therefore input is dropped for a while before that.
        """
        self._await(_Phase.REFUSED, self._service.limits.linger_seconds)
        body = b"" if self._incomplete_call().method == "HEAD" else response.body
        self.transport.write(b"".join((response.head, CLOSE, self._service.date(), body)))
        self._report_incomplete(response.status, len(body))
        if self.exchange is not None:
            self.exchange.release()
        self.transport.unregisterProducer()
        self._reader.clear()
        if not self.secure and ITCPTransport.providedBy(self.transport):
            self.transport.loseWriteConnection()

    def _report_incomplete(self, status: int, sent_bytes: int) -> None:
        """Log a request that the handler has not seen."""
        seconds = self._service.seconds() - self._started if self._line is not None else 0.0
        self._service.application.finished(self._incomplete_call(), status, sent_bytes, seconds)

    def _incomplete_call(self) -> Call:
        """Return the call of a request that the handler has not seen, with the fields that are known."""
        if self.exchange is not None and self.exchange.call is not None:
            return self.exchange.call
        method, target = ("", b"") if self._line is None else (self._line.method, self._line.target)
        path = target.partition(b"?")[0][:_LOGGED_TARGET_BYTES]
        return Call(method, path.decode("utf-8", "replace"), path, remote=self.remote, secure=self.secure)

    @_contained
    def give_up(self) -> None:
        """Drop the connection at once, with all requests on it."""
        self.transport.abortConnection()
        self.deadline = None

    @_contained
    def leave(self, first_seconds: float, idle_seconds: float) -> None:
        """When the server stops: wait for one more request, whose answer is the last. It may be on its way already."""
        if self.phase is _Phase.IDLE:
            seconds = idle_seconds
        elif self.phase is _Phase.HEAD and not self._reader.begun:
            seconds = first_seconds
        else:
            return
        if self.deadline is not None:
            self.deadline = min(self.deadline, self._service.seconds() + seconds)

    # -- faults in this program ----------------------------------------------------------------------------------------

    def break_off(self, error: Exception) -> None:
        """End this connection because of a fault in this program, which is logged once; all others go on.

        The client is told (500) if nothing of an answer can have been written and no handler is at work.
        """
        response = self._service.application.failed(error)
        if self._is_lost:
            return
        try:
            if self._is_unanswered:
                self.reject(response)
                return
        except Exception:  # noqa: BLE001, S110 - the client cannot be told; the fault is logged
            pass
        self._await(_Phase.CLOSING, self._service.limits.write_seconds)  # then it is tried again
        with contextlib.suppress(Exception):
            self.transport.abortConnection()
            self.deadline = None

    @property
    def _is_unanswered(self) -> bool:
        if self.phase is _Phase.BUSY:
            return self.exchange is not None and self.exchange.is_untouched
        return not self._is_deaf
