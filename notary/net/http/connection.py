"""One connection of an HTTP/1.1 server: twisted.web's parser, with our limits, deadlines and answers.

Rules of this module: those of :mod:`notary.net.http.site`, whose Site makes the connections and keeps their deadlines.
Overridden on purpose, each with a test: Request's own parsing of multipart bodies, HTTPChannel's wordless 400, its
timers (one per connection, re-armed for every request) and its system call for each getHost.
"""

# ruff: noqa: D102 - Twisted says what the methods mean that it calls
from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from enum import Enum, auto
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, cast

from twisted.internet.defer import succeed
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    ITCPTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web import http
from zope.interface import implementer

from notary.net.http.bodies import body_deadline
from notary.net.http.call import Call, Response, conditional
from notary.net.http.chunked import ChunkedReader, is_field
from notary.net.http.fast import read_fields, read_line
from notary.net.http.request import CLOSE, PIECE, PlainRequest, Request
from notary.net.http.target import BadRequest

if TYPE_CHECKING:
    from notary.net.http.site import Site

P = ParamSpec("P")

_LENGTH_DIGITS: Final = 18  # of a Content-Length; int() raises on thousands of digits
_LOGGED_TARGET: Final = 1024  # bytes of a refused request's target that reach the log
_CLIENT_CLOSED: Final = 499  # logged, never sent: the client went away before its request was complete


class _Phase(Enum):
    """What a connection is doing, and so what its deadline is for."""

    IDLE = auto()  # no byte of the next request has come
    HEAD = auto()
    BODY = auto()
    BUSY = auto()  # the handler has the request
    REFUSED = auto()  # answered before its end: input is read and dropped until the client closes
    CLOSING = auto()  # nothing more is said; what is written still goes out


def _contained(
    callback: Callable[Concatenate[Connection, P], None],
) -> Callable[Concatenate[Connection, P], None]:
    """Have a fault in what Twisted calls end this connection alone, instead of escaping into the reactor."""

    @wraps(callback)
    def contained(connection: Connection, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(connection, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the last line of defence
            connection.break_off(error)

    return cast("Callable[Concatenate[Connection, P], None]", contained)


@implementer(IHalfCloseableProtocol, IHandshakeListener)
class Connection(http.HTTPChannel):
    """One client: twisted.web's parser, with our limits, deadlines and answers to what is no request."""

    requestFactory: type[http.Request] = Request
    transport: Any
    _networkProducer: Any
    # Deadlines are kept by the site, with one timer for all connections: arming two for each request costs more than
    # answering it from a cache.
    timeOut = None

    def __init__(self, site: Site, remote: str) -> None:
        super().__init__()
        self.site = site
        self.remote = remote
        self.secure = False
        self.phase = _Phase.HEAD
        self.deadline: float | None = None
        self.maxHeaders = site.limits.fields
        self.totalHeadersSize = self.MAX_LENGTH = site.limits.head
        self._address: Any = None
        self._dropped = 0
        self._chunks: ChunkedReader | None = None
        self._ended = False
        self._plain_block = b""  # the fields of the last plain request, and what they say: they seldom change
        self._plain_headers: Mapping[str, str] | None = None

    @property
    def method(self) -> str:
        """The method of the request that is being received, "" as long as it is not known."""
        command: bytes = getattr(self, "_command", b"")
        return command.decode("ascii")

    @property
    def _first_line(self) -> int:
        """1 if the parser is at the very beginning of a request."""
        state: int = getattr(self, "_HTTPChannel__first_line")  # noqa: B009 - or Python would take it for ours
        return state

    @property
    def choked(self) -> bool:
        """Whether the client takes our bytes more slowly than we make them."""
        return self._waitingForTransport

    # -- the transport speaks -----------------------------------------------------------------------------------------

    @_contained
    def connectionMade(self) -> None:
        super().connectionMade()
        self.secure = self.isSecure()
        self._await(_Phase.HEAD, self.site.limits.head_seconds)  # which covers the TLS handshake
        self.site.opened(self)
        self.retire()

    def handshakeCompleted(self) -> None:
        """TLS is up. If the site stops, the request that is on its way has as long again as the handshake had."""
        if self.site.stopping and self.deadline is not None:
            self.deadline = self.site.seconds() + self.site.first_seconds

    def getHost(self) -> Any:
        """The local address, asked for once: every Request wants it, and each time is a system call."""
        if self._address is None:
            self._address = self.transport.getHost()
        return self._address

    def dataReceived(self, data: bytes) -> None:
        try:
            phase = self.phase
            if (phase is _Phase.IDLE or (phase is _Phase.HEAD and not self._begun)) and self._is_plain(data):
                return
            if phase is _Phase.CLOSING:
                return
            if self.phase is _Phase.REFUSED:
                self._drop(data)
                return
            if self.phase is _Phase.IDLE:
                self._await(_Phase.HEAD, self.site.limits.head_seconds)
            elif self.phase is _Phase.BODY and self.deadline is not None:
                limits = self.site.limits
                now = self.site.seconds()
                self.deadline = body_deadline(self.deadline, now, len(data), limits.body_rate, limits.body_seconds)
            LineReceiver.dataReceived(self, data)
        except Exception as error:  # noqa: BLE001 - the last line of defence
            self.break_off(error)

    def _drop(self, data: bytes) -> None:
        """Count what comes after a refusal."""
        self._dropped += len(data)
        # Many clients read only when they have sent all: an upload that is a little too large must fit.
        if self._dropped > 2 * self.site.limits.body:
            self.transport.abortConnection()

    def _is_plain(self, data: bytes) -> bool:
        """Answer ``data`` if it is one whole ordinary request, without the parser; False if it is anything else."""
        if data[-4:] != b"\r\n\r\n" or len(data) > self.totalHeadersSize or self.site.stopping or self._first_line != 1:
            return False
        end = data.index(b"\r\n")
        block = data[end + 2 :]
        if block != self._plain_block:
            self._plain_block, self._plain_headers = block, read_fields(block, self.maxHeaders)
        line = read_line(data[:end])
        headers = self._plain_headers
        if line is None or headers is None or end > self.site.limits.request_line:
            return False
        if "connection" in headers:
            self.persistent = headers["connection"].lower() != "close"
        started = self.site.seconds()
        call = Call(*line, headers, self.remote, self.secure)
        self.phase = _Phase.BUSY
        self.deadline = None
        result = self.site.handle(call)
        if not isinstance(result, Response):
            self._handlingRequest = True
            self.setRawMode()  # what comes before the answer is kept
            PlainRequest(self, call, started, result)
            return True
        response = conditional(call, result)
        body = b"" if call.method == "HEAD" else response.body
        if len(body) > PIECE or self.choked:
            self._handlingRequest = True
            self.setRawMode()
            PlainRequest(self, call, started, succeed(response))
            return True
        connection = b"" if self.persistent else CLOSE
        self.transport.write(b"".join((response.head, connection, self.site.date(), body)))
        self.site.finished(call, response.status, len(body), self.site.seconds() - started)
        if self.phase is _Phase.BUSY:
            self._await(_Phase.IDLE, self.site.limits.idle_seconds)
            if not self.persistent or self._ended or self.site.stopping:
                self._end()
        return True

    @property
    def waits_for_nothing(self) -> bool:
        """Whether nothing has come, and nothing has happened to the connection, since its only request."""
        return not (self._dataBuffer or self.choked or self._ended)

    def plain_done(self) -> None:
        """What ``requestDone`` comes to then."""
        self.requests.clear()
        self._handlingRequest = False
        self.line_mode = 1
        self._await(_Phase.IDLE, self.site.limits.idle_seconds)
        if not self.persistent:
            self._end()

    @_contained
    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.deadline = None
        try:
            if self.phase in {_Phase.HEAD, _Phase.BODY} and self.requests:
                self._report_incomplete(_CLIENT_CLOSED, 0)
        finally:
            self._forget(reason)

    def _forget(self, reason: Failure) -> None:
        try:
            super().connectionLost(reason)
        finally:
            self.phase = _Phase.CLOSING
            # Requests, the parser's state and a TLS transport refer to the connection, and it to them.
            self.transport = self._networkProducer = None
            self.requests.clear()
            self._transferDecoder = self._chunks = None
            self._requestProducer = None
            self._dataBuffer.clear()
            self.clearLineBuffer()
            self.site.closed(self)

    @_contained
    def readConnectionLost(self) -> None:
        """The client sends no more, but may still read: what is complete is answered, and what is not is refused."""
        self._ended = True
        if self.phase is _Phase.BODY or (self.phase is _Phase.HEAD and self._begun):
            self.refuse(400, "the request was cut off")
        if self.phase is not _Phase.BUSY and self.phase is not _Phase.CLOSING:
            self._end()

    def writeConnectionLost(self) -> None:
        """Our half is closed, as ``refuse`` asked for."""

    # -- the parser speaks --------------------------------------------------------------------------------------------

    def lineReceived(self, line: bytes) -> None:
        if self.deaf:
            return
        if not self.requests and len(line) > self.site.limits.request_line:
            self.refuse(414, f"the request line is longer than {self.site.limits.request_line} bytes")
            return
        super().lineReceived(line)

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: ARG002 - twisted.web passes it
        self._respondToBadRequestAndDisconnect(too_long=True)

    def rawDataReceived(self, data: bytes) -> None:
        if self.deaf:
            return
        if self._chunks is None or self.phase is not _Phase.BODY:
            super().rawDataReceived(data)
            return
        try:
            for piece in self._chunks.feed(data):
                self.requests[-1].handleContentChunk(piece)
        except BadRequest as refused:
            self.refuse(refused.status, str(refused))
            return
        if self._chunks.ended:
            self._dataBuffer.append(self._chunks.rest)
            self.allContentReceived()

    def allHeadersReceived(self) -> None:
        if self.deaf:
            return
        request = self.requests[-1]
        request.method, request.uri, request.clientproto = self._command, self._path, self._version
        headers = request.requestHeaders
        codings = headers.getRawHeaders(b"transfer-encoding")
        if codings is not None:
            known = len(codings) == 1 and codings[0].lower() == b"chunked"
            if not known or self._version != b"HTTP/1.1" or headers.hasHeader(b"content-length"):
                # A proxy in front may see it otherwise (RFC 9112, section 6.1).
                self.refuse(400, "the length of the body is ambiguous")
                return
            self.length = None
        self._await(_Phase.BODY, self.site.limits.body_seconds)
        super().allHeadersReceived()
        if codings is not None and not self.deaf:
            self._chunks = request.reader()

    def headerReceived(self, line: bytes) -> bool:
        if not is_field(line):
            self.refuse(400, "a header field is malformed")
            return False
        return bool(super().headerReceived(line))

    def _maybeChooseTransferDecoder(self, header: bytes, data: bytes) -> bool:
        if header == b"Transfer-Encoding":
            return True  # it is judged when all fields are known
        if header == b"Content-Length" and len(data) > _LENGTH_DIGITS and data.isdigit():
            self.refuse(413, f"the length of the body has more than {_LENGTH_DIGITS} digits")
            return False
        return bool(super()._maybeChooseTransferDecoder(header, data))

    def checkPersistence(self, request: http.Request, version: bytes) -> bool:
        """Whether the connection stays open: unless the client says otherwise, in any of its Connection fields."""
        options = b",".join(request.requestHeaders.getRawHeaders(b"connection", ())).lower().split(b",")
        return version == b"HTTP/1.1" and b"close" not in {option.strip() for option in options}

    def allContentReceived(self) -> None:
        if self.deaf:
            return
        self.phase = _Phase.BUSY
        self.deadline = None
        self._chunks = None
        super().allContentReceived()

    def requestDone(self, request: http.Request) -> None:
        if not self.persistent:
            self._await(_Phase.CLOSING, self.site.limits.write_seconds)
        elif self._buffer or self._dataBuffer:
            self._await(_Phase.HEAD, self.site.limits.head_seconds)
        else:
            self._await(_Phase.IDLE, self.site.limits.idle_seconds)
        super().requestDone(request)
        if self._ended and self.phase is not _Phase.BUSY:
            self.readConnectionLost()

    def _send100Continue(self) -> None:
        if not (self.deaf or self._buffer or self.length == 0):
            super()._send100Continue()

    def _respondToBadRequestAndDisconnect(self, *, too_long: bool = False) -> None:
        """What the parser calls for whatever it cannot accept; it does not say why."""
        if too_long or self._receivedHeaderSize > self.totalHeadersSize:
            if self.requests:
                self.refuse(431, f"the header fields are larger than {self.totalHeadersSize} bytes")
            else:
                self.refuse(414, f"the request line is longer than {self.site.limits.request_line} bytes")
        elif self._receivedHeaderCount > self.maxHeaders:
            self.refuse(431, f"the request has more than {self.maxHeaders} header fields")
        else:
            self.refuse(400, "the request is malformed")

    # -- deadlines and refusals ---------------------------------------------------------------------------------------

    @property
    def deaf(self) -> bool:
        """Whether what the parser still finds is not to be heard."""
        return self.phase is _Phase.REFUSED or self.phase is _Phase.CLOSING

    @property
    def _begun(self) -> bool:
        """Whether something of a head has come."""
        return bool(self.requests or self._buffer)

    def _await(self, phase: _Phase, seconds: float) -> None:
        self.phase = phase
        self.deadline = self.site.seconds() + seconds

    @_contained
    def expire(self) -> None:
        """Give up waiting for whatever the connection waits for."""
        if self.phase is _Phase.BODY or (self.phase is _Phase.HEAD and self._begun):
            self.refuse(408, "the request took too long")
        elif self.phase is _Phase.BUSY or self.phase is _Phase.CLOSING:
            self.forceAbortClient()
        elif self.site.stopping:
            self._leave(self.site.seconds())
        else:
            self._end()

    def _end(self) -> None:
        """Close the connection once everything written is sent."""
        refused = self.phase is _Phase.REFUSED
        self._await(_Phase.CLOSING, self.site.limits.write_seconds)
        if refused:
            self.transport.loseConnection()  # `refuse` has done the rest
        else:
            self.loseConnection()

    def refuse(self, status: int, message: str) -> None:
        """Answer what is not a request, in the application's words: see ``reject``."""
        if not self.deaf:
            self.reject(self.site.refused(status, message))

    def reject(self, response: Response) -> None:
        """Answer a request before its end, and end the connection so that the client can read why.

        Closing a socket with unread input resets the connection, and the client may lose the answer that it has not
        read yet; therefore input is dropped for a while before that.
        """
        self._await(_Phase.REFUSED, self.site.limits.linger_seconds)
        body = b"" if self._incomplete_call().method == "HEAD" else response.body
        self.transport.write(b"".join((response.head, CLOSE, self.site.date(), body)))
        self._report_incomplete(response.status, len(body))
        for request in self.requests:
            request.release()
        self._networkProducer.unregisterProducer()
        self.clearLineBuffer()
        if not self.secure and ITCPTransport.providedBy(self.transport):
            self.transport.loseWriteConnection()

    def _report_incomplete(self, status: int, sent: int) -> None:
        """Log a request that the handler has not seen."""
        now = self.site.seconds()
        started = self.requests[-1].started if self.requests else now
        self.site.finished(self._incomplete_call(), status, sent, now - started)

    def _incomplete_call(self) -> Call:
        """The call of a request that the handler has not seen, or what is known of it."""
        if self.requests and self.requests[-1].call is not None:
            return cast("Call", self.requests[-1].call)
        method, target = self.method, getattr(self, "_path", b"")
        if not method and self.requests and self.requests[-1].clientproto.startswith(b"HTTP/"):  # received, but bad
            method, target = self.requests[-1].method.decode("ascii"), self.requests[-1].uri
        path: bytes = target.partition(b"?")[0][:_LOGGED_TARGET]
        return Call(method, path.decode("utf-8", "replace"), path, remote=self.remote, secure=self.secure)

    @_contained
    def give_up(self) -> None:
        """Drop the connection when the site has waited for it long enough."""
        self.forceAbortClient()

    @_contained
    def retire(self) -> None:
        """When the site stops: close the connection unless a request is on its way, or may be."""
        if not self.site.stopping:
            return
        now = self.site.seconds()
        if self.phase is _Phase.IDLE:
            self._leave(now)
        elif self.phase is _Phase.HEAD and not self._begun and self.deadline is not None:
            # It is new: closed now, its client would see its first request fail.
            self.deadline = min(self.deadline, now + self.site.first_seconds)

    def _leave(self, now: float) -> None:
        """Close a connection on which nothing is sent: a TLS client that says no goodbye must not delay a stop."""
        self._end()
        self.deadline = now

    def forceAbortClient(self) -> None:
        """Drop the connection, answered or not."""
        self.transport.abortConnection()
        self.deadline = None

    # -- faults of ours -----------------------------------------------------------------------------------------------

    def break_off(self, error: Exception) -> None:
        """End this connection because of a fault in this program, which is logged once; all others go on.

        The client is told (500) if nothing of an answer can have been written and no handler is at work.
        """
        response = self.site.failed(error)
        try:
            if self._unanswered:
                self.reject(response)
                return
        except Exception:  # noqa: BLE001, S110 - it cannot be said in this way, and what is wrong is logged
            pass
        if self.transport is not None:
            self._await(_Phase.CLOSING, self.site.limits.write_seconds)  # then it is tried again
            with contextlib.suppress(Exception):
                self.forceAbortClient()

    @property
    def _unanswered(self) -> bool:
        if self.transport is None:
            return False
        if self.phase is _Phase.BUSY:
            return bool(self.requests) and self.requests[-1].untouched
        return not self.deaf

    @_contained
    def pauseProducing(self) -> None:
        super().pauseProducing()

    @_contained
    def resumeProducing(self) -> None:
        super().resumeProducing()

    @_contained
    def stopProducing(self) -> None:
        super().stopProducing()
