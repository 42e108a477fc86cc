"""One connection of an HTTP/1.1 server: twisted.web's parser, with our limits, deadlines and answers.

Rules of this module: those of :mod:`notary.net.http`, whose Site makes the connections and keeps their deadlines.
Overridden on purpose, each with a test: Request's own parsing of multipart bodies, HTTPChannel's wordless 400, its
timers (one per connection, re-armed for every request) and its system call for each getHost.
"""

# ruff: noqa: D102 - Twisted says what the methods mean that it calls
from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum, auto
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IPushProducer,
    ITCPTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web import http
from zope.interface import implementer

from notary.net.messages import Call, Response, conditional
from notary.net.plain import NO_QUERY, read_fields, read_line
from notary.net.target import Refused, decode_path, parse_query, redirection, split_target

if TYPE_CHECKING:
    from notary.net.http import Site

_log = Logger()

_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_HOST: Final = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:\[\]%]*")
_PIECE: Final = 64 * 1024  # bytes of a body that are handed to the transport at a time
_TURN: Final = 1024 * 1024  # bytes of a body that are handed to it before others have their turn
_LENGTH_DIGITS: Final = 18  # of a Content-Length; int() raises on thousands of digits
_CLOSE: Final = b"Connection: close\r\n"
_PROGRESS: Final = 1024  # bytes of a body that must arrive within Limits.body_seconds
_LOGGED_TARGET: Final = 1024  # bytes of a refused request's target that reach the log
_FIRST_SECONDS: Final = 5.0  # that a new connection has for its handshake, then for a request, once the site stops
_CLIENT_CLOSED: Final = 499  # logged, never sent: the client went away before its request was complete


class _Phase(Enum):
    """What a connection is doing, and so what its deadline is for."""

    IDLE = auto()  # no byte of the next request has come
    HEAD = auto()
    BODY = auto()
    BUSY = auto()  # the handler has the request
    REFUSED = auto()  # answered before its end: input is read and dropped until the client closes
    CLOSING = auto()  # nothing more is said; what is written still goes out


@implementer(IPushProducer)
class Request(http.Request):
    """One request: collects a bounded body, has the site's handler answer it, writes the answer in one piece."""

    channel: Connection
    content: BytesIO

    def __init__(self, channel: Connection, queued: object = None) -> None:  # noqa: ARG002 - twisted.web passes it
        # twisted.web would read a multipart body itself, lose the file names and drop the connection on a bad one.
        super().__init__(channel, parsePOSTFormSubmission=False)
        self.site = channel.site
        self.started = channel.site.seconds()
        self.call: Call | None = None
        self.response: Response | None = None
        self._limit = 0
        self._reserved = 0  # bytes of the site's budget of bodies
        self._called = False  # whether the handler was given the call, and so will answer it
        self._rest = b""  # a body that goes out in pieces
        self._turn: IDelayedCall | None = None  # when it goes on

    def gotLength(self, length: int | None) -> None:
        """The head is complete: decide whether its body (None: of a length that is not known yet) may come."""
        limits = self.site.limits
        self._limit = limits.body if self.channel.method in _WITH_BODY else limits.other_body
        self.content = BytesIO()
        if length == 0:
            return
        if length is not None and length > self._limit:
            self._refuse_size()
            return
        try:
            call, refusal = self._read_head()
        except Refused as refused:
            self.channel.refuse(refused.status, str(refused))
            return
        refusal = refusal or self.site.admit(call)
        if refusal is not None:
            self.channel.reject(refusal)
        elif length is not None:
            self._reserve(length)

    def handleContentChunk(self, data: bytes) -> None:
        if self.channel.deaf:  # refused in the middle of what has been read
            return
        size = self.content.tell() + len(data)
        if size > self._limit:
            self._refuse_size()
        elif self._reserve(size):
            self.content.write(data)

    def _refuse_size(self) -> None:
        self.channel.refuse(413, f"the body is larger than {self._limit} bytes")

    def _reserve(self, size: int) -> bool:
        """Have room for a body of ``size`` bytes, or refuse the request."""
        more = max(size - self._reserved, 0)
        if not self.site.reserve(more):
            self.channel.refuse(503, "too many bodies are being received, try again later")
            return False
        self._reserved += more
        return True

    def parseCookies(self) -> None:
        """Nobody here reads cookies."""

    def process(self) -> None:
        call, elsewhere = self.call, None
        if call is None:  # there was no body
            try:
                call, elsewhere = self._read_head()
            except Refused as refused:
                self.channel.refuse(refused.status, str(refused))
                return
        if elsewhere is not None:
            self.answer(elsewhere)
            return
        call.body = self.content.getvalue()
        self.content = BytesIO()
        self._called = True
        result = self.site.handle(call)
        if isinstance(result, Response):
            self.answer(result)
        else:
            self._wait_for(result)

    def _wait_for(self, deferred: Deferred[Response]) -> None:
        self.site.working.add(self)
        deferred.addCallbacks(self._done, self._failed)

    def _read_head(self) -> tuple[Call, Response | None]:
        """The call, without its body, and what sends it to the clean form of its path if it is not. Raises Refused."""
        origin, path, query = split_target(self.uri.decode("latin-1"))
        self.call = call = self._make_call(origin, path, query)
        location = redirection(origin, call.path, query)
        return call, None if location is None else Response(301, b"", (("Location", location),))

    def _make_call(self, origin: str, path: str, query: str) -> Call:
        headers = {
            name.decode("ascii").lower(): b", ".join(values).decode("latin-1")
            for name, values in self.requestHeaders.getAllRawHeaders()
        }
        if self.clientproto == b"HTTP/1.1" and len(self.requestHeaders.getRawHeaders(b"host", ())) != 1:
            raise Refused(400, "exactly one Host field is needed")
        if origin:
            headers["host"] = origin.partition("://")[2]  # RFC 9112, section 3.2.2
        if _HOST.fullmatch(headers.get("host", "")) is None:
            raise Refused(400, "the host is malformed")
        if headers.get("expect", "100-continue").lower() != "100-continue":
            raise Refused(417, "the only expectation known here is 100-continue")
        return Call(
            method=self.method.decode("ascii"),
            path="" if path == "*" else decode_path(path),
            raw_path=path.encode("latin-1"),
            query=parse_query(query[1:]) if query else NO_QUERY,
            headers=headers,
            remote=self.channel.remote,
            secure=self.channel.secure,
        )

    def _done(self, result: object) -> None:
        if not isinstance(result, Response):
            result = self.site.failed(TypeError(f"a handler returned {type(result).__name__}, not a Response"))
        try:
            self.answer(result)
        finally:
            self.site.worked(self)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        self._done(self.site.failed(error if isinstance(error, Exception) else RuntimeError(repr(error))))

    def answer(self, response: Response) -> None:
        """Send ``response``, or the 304 that stands for it; if the client is gone, only log it."""
        call = cast("Call", self.call)
        self.response = response = conditional(call, response)
        if self._disconnected:
            self.site.log(self)
            return
        body = b"" if call.method == "HEAD" else response.body
        channel = self.channel
        if self.site.stopping:
            channel.persistent = False
        connection = b"" if channel.persistent else _CLOSE
        first = body[:_PIECE]
        self.sentLength = len(first)
        self.startedWriting = 1  # all of it: what twisted.web would do in seven steps
        channel.write(b"".join((response.head, connection, self.site.date(), first)))
        if len(body) > _PIECE or channel.choked:
            # The request is not done before the client has taken the most of it: a client that sends requests and does
            # not read cannot pile up answers.
            self._rest = body
            self.registerProducer(self, True)
            self.resumeProducing()
        else:
            self.finish()

    def resumeProducing(self) -> None:
        """Write more of a large body, as much as the client takes; then it has a while to take more.

        A client that takes all at once gets a part in each turn of the reactor, so that others are served as well.
        """
        if self._turn is not None:
            return
        channel = self.channel
        end = self.sentLength + _TURN
        while not channel.choked:
            piece = self._rest[self.sentLength : self.sentLength + _PIECE]
            if not piece:
                self.unregisterProducer()
                self.finish()
                return
            if self.sentLength >= end:
                self._turn = self.site.soon(self._take_turn)
                break
            self.sentLength += len(piece)
            channel.write(piece)
        channel.deadline = self.site.seconds() + self.site.limits.write_seconds

    def _take_turn(self) -> None:
        self._turn = None
        self.resumeProducing()

    def pauseProducing(self) -> None:
        """The channel knows: see ``choked``."""

    def stopProducing(self) -> None:
        """The connection is going away: ``connectionLost`` follows."""

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        self.producer = None  # it was the request itself
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if self.response is not None:
            self.site.log(self)  # half of an answer is one too
        elif not self._called:
            self.release()

    def release(self) -> None:
        """Drop the bodies, when the request has been logged or will never be complete.

        Whoever still refers to the request or its call (a traceback, a cycle) must not hold megabytes until the
        garbage collector comes by.
        """
        if self.call is not None:
            self.call.body = b""
        self.call = self.response = None
        self.content = BytesIO()
        self._rest = b""
        self.site.give_back(self._reserved)
        self._reserved = 0


class _Plain(Request):
    """A request that the parser has not seen: complete from the beginning, and waiting for its handler."""

    queued = False
    response: Response | None = None
    _reserved = 0
    _called = True
    _rest = b""
    _turn = None

    def __init__(self, channel: Connection, call: Call, started: float, waits_for: Deferred[Response]) -> None:
        # Not Request's: nothing of what it prepares for the parser and for stock resources is needed.
        self.channel = channel
        self.site = channel.site
        self.call = call
        self.started = started
        self.notifications = []
        channel.requests.append(self)
        self._wait_for(waits_for)

    def finish(self) -> None:
        if self.channel.waits_for_nothing:
            self.site.log(self)
            self.finished = 1
            self.channel.plain_done()
        else:
            super().finish()

    def release(self) -> None:
        """See Request: there was no body."""
        self.call = self.response = None
        self._rest = b""


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
        self._progress = 0
        self._dropped = 0
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

    def connectionMade(self) -> None:
        super().connectionMade()
        self.secure = self.isSecure()
        self._await(_Phase.HEAD, self.site.limits.head_seconds)  # which covers the TLS handshake
        self.site.opened(self)
        self.retire()

    def handshakeCompleted(self) -> None:
        """TLS is up. If the site stops, the request that is on its way has as long again as the handshake had."""
        if self.site.stopping and self.deadline is not None:
            self.deadline = self.site.seconds() + _FIRST_SECONDS

    def getHost(self) -> Any:
        """The local address, asked for once: every Request wants it, and each time is a system call."""
        if self._address is None:
            self._address = self.transport.getHost()
        return self._address

    def dataReceived(self, data: bytes) -> None:
        phase = self.phase
        if (phase is _Phase.IDLE or (phase is _Phase.HEAD and not self._begun)) and self._is_plain(data):
            return
        if phase is _Phase.CLOSING:
            return
        if self.phase is _Phase.REFUSED:
            self._dropped += len(data)
            # Many clients read only when they have sent all: an upload that is a little too large must fit.
            if self._dropped > 2 * self.site.limits.body:
                self.transport.abortConnection()
            return
        if self.phase is _Phase.IDLE:
            self._await(_Phase.HEAD, self.site.limits.head_seconds)
        elif self.phase is _Phase.BODY:
            self._progress += len(data)
            if self._progress >= _PROGRESS:
                self._await(_Phase.BODY, self.site.limits.body_seconds)
        LineReceiver.dataReceived(self, data)

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
            _Plain(self, call, started, result)
            return True
        response = conditional(call, result)
        body = b"" if call.method == "HEAD" else response.body
        if len(body) > _PIECE or self.choked:
            self._handlingRequest = True
            self.setRawMode()
            _Plain(self, call, started, succeed(response))
            return True
        connection = b"" if self.persistent else _CLOSE
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

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.deadline = None
        if self.phase in {_Phase.HEAD, _Phase.BODY} and self.requests:
            self._report_incomplete(_CLIENT_CLOSED, 0)
        super().connectionLost(reason)
        self.phase = _Phase.CLOSING
        # Requests, the parser's state and a TLS transport refer to the connection, and it to them.
        self.transport = self._networkProducer = None
        self.requests.clear()
        self._transferDecoder = None
        self._requestProducer = None
        self._dataBuffer.clear()
        self.clearLineBuffer()
        self.site.closed(self)

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
        if not self.deaf:
            super().rawDataReceived(data)

    def allHeadersReceived(self) -> None:
        if self.deaf:
            return
        request = self.requests[-1]
        request.method, request.uri, request.clientproto = self._command, self._path, self._version
        headers = request.requestHeaders
        coding = headers.getRawHeaders(b"transfer-encoding")
        if coding is not None and (
            self._version != b"HTTP/1.1" or headers.hasHeader(b"content-length") or coding[0].lower() != b"chunked"
        ):
            # twisted.web takes `identity`, and chunks from HTTP/1.0 clients; a proxy in front may see it otherwise.
            self.refuse(400, "the length of the body is ambiguous")
            return
        self._await(_Phase.BODY, self.site.limits.body_seconds)
        super().allHeadersReceived()

    def _maybeChooseTransferDecoder(self, header: bytes, data: bytes) -> bool:
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
        self._progress = 0

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
        self.transport.write(b"".join((response.head, _CLOSE, self.site.date(), body)))
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

    def retire(self) -> None:
        """When the site stops: close the connection unless a request is on its way, or may be."""
        if not self.site.stopping:
            return
        now = self.site.seconds()
        if self.phase is _Phase.IDLE:
            self._leave(now)
        elif self.phase is _Phase.HEAD and not self._begun and self.deadline is not None:
            # It is new: closed now, its client would see its first request fail.
            self.deadline = min(self.deadline, now + _FIRST_SECONDS)

    def _leave(self, now: float) -> None:
        """Close a connection on which nothing is sent: a TLS client that says no goodbye must not delay a stop."""
        self._end()
        self.deadline = now

    def forceAbortClient(self) -> None:
        """Drop the connection, answered or not."""
        self.deadline = None
        self.transport.abortConnection()
