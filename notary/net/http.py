"""An HTTP/1.1 server that hands whole requests to one function and sends whole responses.

Rules of this module: it knows no TUF, no route and no error table; what it must answer by itself (a request that is
malformed, too large or too slow) it words through ``edge_error``, what a handler raises through ``on_error``, so that
every body is the application's. Every wait has an end, every buffer a bound. It speaks to the transport directly
instead of through ``twisted.web``: that parses multipart bodies by itself and drops the connection on bad ones, answers
malformed requests with an empty body, and spends half of the time of a cached answer on objects nobody asks for
(docs/adr/). A request is answered before the next one on its connection is read.

``twisted.web``'s habits that are kept on purpose: one protocol per connection, a factory called Site, backpressure by
pausing the transport while a request is worked on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast
from typing import Protocol as TypingProtocol

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer  # type: ignore[import-untyped]

from notary.net.multipart import Part, parse_multipart
from notary.net.wire import (
    REQUEST_LINE,
    ChunkedBody,
    Head,
    Refused,
    check_beginning,
    clean_path,
    parse_head,
    redirection,
)

if TYPE_CHECKING:
    _Factory = ServerFactory["Connection"]
else:
    _Factory = ServerFactory

__all__ = ["Call", "Handler", "Limits", "Part", "Response", "Site", "clean_path", "parse_multipart"]

_log = Logger()

_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_ETAG: Final = re.compile(r'(?:W/)?"([^"]*)"')
_KEPT_BY_304: Final = frozenset({"cache-control", "content-location", "expires", "pragma", "vary"})
_BODILESS: Final = frozenset({204, 304})
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_PIECE: Final = 256 * 1024  # bytes handed to the transport at a time
_READ_AHEAD: Final = 64 * 1024  # bytes of later requests that are kept while one is answered
_PROGRESS: Final = 1024  # bytes of a body that must arrive within Limits.body_seconds
_SWEEP_SECONDS: Final = 1.0
_LOGGED_TARGET: Final = 1024  # bytes
_CLOSE: Final = b"Connection: close\r\n"
_KEEP_ALIVE: Final = b"Connection: keep-alive\r\n"
_CR: Final = 13
_LF: Final = 10
_CLIENT_CLOSED: Final = 499  # logged, never sent: the client went away before its request was complete


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may do. Sizes are in bytes, times in seconds (kept to within one second).

    ``body`` bounds the bodies of POST, PUT and PATCH, ``other_body`` those of the methods that need none. Within
    ``head_seconds`` of its first byte a request line and its fields must be complete; ``idle_seconds`` is how long a
    connection may wait for its next request; ``body_seconds`` how long the next kilobyte of a body may take;
    ``write_seconds`` how long a client may take nothing of an answer; ``linger_seconds`` how long, after a refusal,
    input is read and dropped so that the client can see the answer before the connection is closed.
    """

    body: int = 100 * 1024 * 1024
    other_body: int = 64 * 1024
    request_line: int = 8 * 1024
    head: int = 32 * 1024
    fields: int = 100
    head_seconds: float = 10.0
    idle_seconds: float = 75.0
    body_seconds: float = 30.0
    write_seconds: float = 30.0
    linger_seconds: float = 5.0


@dataclass(slots=True)
class Call:
    """One request, complete.

    ``path`` is percent-decoded (``%2F`` too) and clean, or "" if the target has no path or it is not UTF-8;
    ``raw_path`` is the request target as received, without its query. ``query`` has every value of a name in order;
    ``headers`` has lower-cased names, repeated fields joined by ``", "``. ``remote`` is ``host:port`` of the peer (no
    forwarding header is trusted), ``secure`` says whether it speaks TLS. A HEAD keeps its method: answer it as a GET,
    the body is not sent. ``notes`` is for the handler: what it writes there (gun, operation) reaches ``on_finish``.
    """

    method: str
    path: str
    raw_path: bytes = b""
    query: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    remote: str = ""
    secure: bool = False
    body: bytes = b""
    notes: dict[str, str] = field(default_factory=dict)


class Response:
    """An answer. It is immutable, may be cached and sent any number of times, and is encoded once.

    ``etag`` is the bare entity tag, without quotes: with it, a GET or HEAD that already has the body is answered 304.
    Content-Length, Date, ETag and Connection are added here and may not be among ``headers``. Raises ValueError if a
    status, a header or the etag cannot be sent.
    """

    __slots__ = ("_not_modified", "body", "etag", "head", "headers", "status")

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        headers: tuple[tuple[str, str], ...] = (),
        etag: str | None = None,
    ) -> None:
        if not 200 <= status <= 999:  # noqa: PLR2004 - three digits, and final
            raise ValueError(f"{status} is not the status of an answer")
        lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, 'Unknown')}\r\n"]
        for name, value in headers:
            if _FIELD_NAME.fullmatch(name) is None or _FIELD_VALUE.fullmatch(value) is None:
                raise ValueError(f"the header {name!r} cannot be sent")
            lines.append(f"{name}: {value}\r\n")
        if etag is not None:
            if '"' in etag or _FIELD_VALUE.fullmatch(etag) is None:
                raise ValueError(f"{etag!r} is not an entity tag")
            lines.append(f'ETag: "{etag}"\r\n')
        if status not in _BODILESS:
            lines.append(f"Content-Length: {len(body)}\r\n")
        self.status = status
        self.body = body if status not in _BODILESS else b""
        self.headers = headers
        self.etag = etag
        self.head = "".join(lines).encode("latin-1")
        self._not_modified: Response | None = None

    def not_modified(self) -> Response:
        """Return the 304 that stands for this answer: its entity tag and cache headers, no body (RFC 9110, 15.4.5)."""
        if self._not_modified is None:
            kept = tuple((name, value) for name, value in self.headers if name.lower() in _KEPT_BY_304)
            self._not_modified = Response(304, b"", kept, self.etag)
        return self._not_modified

    def matches(self, if_none_match: str) -> bool:
        """Whether a client that sends this If-None-Match already has this answer (weak comparison)."""
        if self.etag is None:
            return False
        return if_none_match.strip() == "*" or self.etag in _ETAG.findall(if_none_match)


Handler: TypeAlias = Callable[[Call], Response | Coroutine[Any, Any, Response] | Deferred[Response]]
"""Answers a call: at once (the fast way, for what is cached) or by a coroutine or a Deferred.

A handler is never cancelled when its client goes away: a write runs to its end, only the answer is dropped.
"""
EdgeError: TypeAlias = Callable[[int, str], Response]
OnError: TypeAlias = Callable[[Exception], Response]
OnFinish: TypeAlias = Callable[[Call, int, int, float], None]


class _State(Enum):
    """What a connection is doing."""

    IDLE = auto()  # waiting for the first byte of a request
    HEAD = auto()
    BODY = auto()
    BUSY = auto()  # the handler has the request
    WRITING = auto()  # the client is slow to take an answer
    LINGERING = auto()  # everything is said; input is dropped
    CLOSING = auto()
    CLOSED = auto()


_WAITING: Final = frozenset({_State.IDLE, _State.HEAD})


class Timer(TypingProtocol):
    """What a clock returns for a call that is due later."""

    def active(self) -> bool: ...
    def cancel(self) -> object: ...


class Clock(TypingProtocol):
    """The part of a reactor that a site needs: any IReactorTime, with types that a checker understands."""

    def seconds(self) -> float: ...
    def callLater(self, delay: float, function: Callable[[], object], /) -> Timer: ...


class _Transport(TypingProtocol):
    """What a connection asks of its transport, plain or TLS."""

    def write(self, data: bytes, /) -> object: ...
    def loseConnection(self) -> object: ...
    def abortConnection(self) -> object: ...
    def registerProducer(self, producer: object, streaming: bool, /) -> object: ...
    def unregisterProducer(self) -> object: ...
    def pauseProducing(self) -> object: ...
    def resumeProducing(self) -> object: ...
    def loseWriteConnection(self) -> object: ...  # of TCP only


@implementer(IHalfCloseableProtocol, IPushProducer)
class Connection(Protocol):
    """One client: reads a request, has it answered, reads the next."""

    _io: _Transport

    def __init__(self, site: Site, remote: str) -> None:
        self._site = site
        self._limits = site.limits
        self._remote = remote
        self._secure = False
        self._state = _State.HEAD
        self.deadline: float | None = None  # when `expire` is due, in the site's seconds
        # The request that is being read.
        self._input = b""  # received, not yet understood
        self._line_skipped = False
        self._head: Head | None = None
        self._started = 0.0  # when its head was complete
        self._body = bytearray()
        self._chunks: ChunkedBody | None = None
        self._progress = 0  # bytes of the body since the deadline was last moved
        self._drained = 0  # bytes dropped while lingering
        # The answer that is being made or written.
        self._call: Call | None = None
        self._status = 0
        self._rest = b""  # its body, if that goes out in pieces
        self._sent = 0  # bytes of its body that are with the transport
        self._keep_alive = True
        self._kept = b""  # the Connection field of an answer that leaves the connection open
        # The transport.
        self._running = False  # `_advance` is on the stack
        self._ended = False  # the client sends no more
        self._read_paused = False
        self._write_paused = False

    # -- the transport speaks ----------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Start to wait for a request; the time for its head also covers the TLS handshake."""
        transport = self.transport
        self._io = cast("_Transport", transport)
        self._secure = bool(ISSLTransport.providedBy(transport))
        self._io.registerProducer(self, True)
        self.deadline = self._site.seconds() + self._limits.head_seconds
        self._site.opened(self)
        if self._site.stopping:
            self._close()

    def dataReceived(self, data: bytes) -> None:
        """Take the next bytes of the connection."""
        state = self._state
        if state is _State.LINGERING:
            self._drained += len(data)
            if self._drained > self._limits.body:
                self._close()
        elif state is _State.IDLE or state is _State.HEAD or state is _State.BODY:
            self._input = self._input + data if self._input else data
            self._advance()
        elif state is _State.BUSY or state is _State.WRITING:
            self._input += data
            if len(self._input) > _READ_AHEAD and not self._read_paused:
                self._read_paused = True
                self._io.pauseProducing()

    def readConnectionLost(self) -> None:
        """The client sends no more, but may still read: what is complete is answered."""
        self._ended = True
        if self._state is _State.BODY or (self._input and self._state in _WAITING):
            self._refuse(Refused(400, "the request was cut off"))
        elif self._state in _WAITING or self._state is _State.LINGERING:
            self._close()

    def writeConnectionLost(self) -> None:
        """Our half of the connection is closed, as `_linger` asked for."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        """The connection is gone; an answer that is still being made is dropped when it comes."""
        state, self._state = self._state, _State.CLOSED
        self.deadline = None
        self._input = b""
        if state is _State.BUSY:
            return  # `_answer` ends it
        if state is _State.WRITING:
            self._finished()
        elif state is _State.BODY:
            self._call = self._incomplete_call()
            self._status = _CLIENT_CLOSED
            self._sent = 0
            self._finished()
        self._site.closed(self)

    def pauseProducing(self) -> None:
        """The client takes our bytes more slowly than we make them."""
        self._write_paused = True

    def resumeProducing(self) -> None:
        """The client has taken what it was sent."""
        self._write_paused = False
        if self._state is _State.WRITING:
            self._write_on()
            self._advance()

    def stopProducing(self) -> None:
        """The connection is going away; `connectionLost` follows."""

    # -- the site speaks ---------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Give up what the connection waits for."""
        if self._state is _State.BODY or (self._input and self._state in _WAITING):
            self._refuse(Refused(408, "the request took too long"))
        elif self._state is _State.CLOSING or self._state is _State.WRITING:
            self.abort()
        else:
            self._close()

    def retire(self) -> None:
        """Close the connection unless it has begun to receive a request; if so, once that is answered."""
        if self._state in _WAITING and not self._input:
            self._close()

    def abort(self) -> None:
        """Drop the connection, answered or not."""
        self.deadline = None
        if self._state is not _State.CLOSED:
            self._io.abortConnection()

    # -- requests in -------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Understand as much of the input as possible; each request that is complete goes to the handler."""
        self._running = True
        try:
            while self._input:
                state = self._state
                if state is _State.BODY:
                    self._read_body()
                elif (state is not _State.IDLE and state is not _State.HEAD) or not self._read_head():
                    break
        except Refused as refused:
            self._refuse(refused)
        finally:
            self._running = False
        if self._read_paused and (self._state in _WAITING or self._state is _State.BODY):
            self._read_paused = False
            self._io.resumeProducing()
        if self._ended:
            self.readConnectionLost()

    def _read_head(self) -> bool:
        """Read a head; return whether it is complete."""
        data = self._input
        if data[0] == _CR and not self._line_skipped:
            # RFC 9112, section 2.2: some clients leave an empty line behind a body.
            if len(data) == 1:
                return False
            if data[1] == _LF:
                self._line_skipped = True
                self._input = data[2:]
                return True
        limits = self._limits
        end = data.find(b"\r\n\r\n")
        now = self._site.seconds()
        if self._state is _State.IDLE:
            self._state = _State.HEAD
            self.deadline = now + limits.head_seconds
        if end < 0 or end > limits.head:
            check_beginning(data[: limits.head], limits.request_line)
            if len(data) > limits.head:
                raise Refused(431, f"the header fields are larger than {limits.head} bytes")
            return False
        self._head = head = parse_head(data[:end], limits.request_line, limits.fields)
        self._input = data[end + 4 :]
        self._line_skipped = False
        self._started = now
        if head.length == 0:
            self._dispatch(head, b"")
        else:
            self._begin_body(head)
        return True

    def _begin_body(self, head: Head) -> None:
        limits = self._limits
        limit = limits.body if head.method in _WITH_BODY else limits.other_body
        if head.length is None:
            self._chunks = ChunkedBody(limit, limits.head)
        elif head.length > limit:
            raise Refused(413, f"the body is larger than {limit} bytes")
        if head.expects_continue and not self._input:
            self._io.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._state = _State.BODY
        self._progress = 0
        self.deadline = self._started + limits.body_seconds

    def _read_body(self) -> None:
        """Read more of a body, perhaps the last of it."""
        data, self._input = self._input, b""
        head = cast("Head", self._head)
        if self._chunks is not None:
            rest = self._chunks.feed(data)
            if rest is not None:
                body = bytes(self._chunks.content)
                self._chunks = None
                self._input = rest
                self._dispatch(head, body)
                return
        else:
            missing = cast("int", head.length) - len(self._body)
            if len(data) >= missing:
                self._input = data[missing:]
                self._body += data[:missing]
                body = bytes(self._body)
                self._body = bytearray()
                self._dispatch(head, body)
                return
            self._body += data
        self._progress += len(data)
        if self._progress >= _PROGRESS:
            self._progress = 0
            self.deadline = self._site.seconds() + self._limits.body_seconds

    def _refuse(self, refused: Refused) -> None:
        """Answer a request that is not one, and end the connection so that the client can read why."""
        self._call = call = self._incomplete_call()
        if self._head is None:
            self._started = self._site.seconds()
        response = self._site.refused(refused)
        body = b"" if call.method == "HEAD" else response.body
        self._io.write(b"".join((response.head, _CLOSE, self._site.date(), body)))
        self._status = response.status
        self._sent = len(body)
        self._body = bytearray()
        self._chunks = None
        self._finished()
        self._linger()

    def _incomplete_call(self) -> Call:
        """Return, for the log, what is known of a request that never became one."""
        if self._head is not None:
            return self._make_call(self._head, b"")
        match = REQUEST_LINE.match(self._input)
        if match is None:
            return Call("", "", remote=self._remote, secure=self._secure)
        target = match[2][:_LOGGED_TARGET]
        return Call(
            match[1].decode("ascii"),
            target.decode("utf-8", "replace"),
            target,
            remote=self._remote,
            secure=self._secure,
        )

    def _make_call(self, head: Head, body: bytes) -> Call:
        raw_path = head.target.partition(b"?")[0]
        return Call(head.method, head.path, raw_path, head.query, head.headers, self._remote, self._secure, body, {})

    # -- answers out -------------------------------------------------------------------------------------------------

    def _dispatch(self, head: Head, body: bytes) -> None:
        """Hand a complete request to the handler."""
        self._call = call = self._make_call(head, body)
        self._keep_alive = head.keep_alive
        self._kept = b"" if head.modern else _KEEP_ALIVE
        self._head = None
        self._state = _State.BUSY
        self.deadline = None
        if (location := redirection(head)) is not None:
            self._answer(Response(301, b"", (("Location", location),)))
            return
        try:
            result = self._site.handler(call)
            if isinstance(result, Response):
                response = result
            else:
                deferred = ensureDeferred(result)
                deferred.addCallbacks(self._answered, self._failed)
                deferred.addErrback(_lost_answer)
                return
        except Exception as error:  # noqa: BLE001 - the application's table decides
            response = self._site.failed(error)
        self._answer(response)

    def _answered(self, result: object) -> None:
        if not isinstance(result, Response):
            result = self._site.failed(TypeError(f"a handler returned {type(result).__name__}, not a Response"))
        self._answer(result)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        self._answer(self._site.failed(error if isinstance(error, Exception) else RuntimeError(repr(error))))

    def _answer(self, response: Response) -> None:
        """Send the answer to the current call and go on with the next."""
        call = cast("Call", self._call)
        head_only = call.method == "HEAD"
        if response.etag is not None and response.status == HTTPStatus.OK and (head_only or call.method == "GET"):
            condition = call.headers.get("if-none-match")
            if condition is not None and response.matches(condition):
                response = response.not_modified()
        self._status = response.status
        self._sent = 0
        if self._state is _State.CLOSED:
            self._finished()
            self._site.closed(self)
            return
        site = self._site
        if site.stopping or (self._ended and not self._input):
            self._keep_alive = False
        connection = self._kept if self._keep_alive else _CLOSE
        body = b"" if head_only else response.body
        if len(body) <= _PIECE:
            self._sent = len(body)
            self._io.write(b"".join((response.head, connection, site.date(), body)))
        else:
            self._rest = body
            self._sent = _PIECE
            self._io.write(b"".join((response.head, connection, site.date(), body[:_PIECE])))
        self._state = _State.WRITING
        self._write_on()
        if not self._running:
            self._advance()

    def _write_on(self) -> None:
        """Write more of an answer, as much as the client takes."""
        body = self._rest
        while not self._write_paused:
            if self._sent >= len(body):
                self._next()
                return
            self._io.write(body[self._sent : self._sent + _PIECE])
            self._sent = min(self._sent + _PIECE, len(body))
        self.deadline = self._site.seconds() + self._limits.write_seconds

    def _next(self) -> None:
        """The answer is with the transport: wait for the next request, or close."""
        now = self._finished()
        self._rest = b""
        if self._keep_alive:
            self._state = _State.IDLE
            self.deadline = now + self._limits.idle_seconds
        elif self._input:
            self._linger()
        else:
            self._close()

    def _finished(self) -> float:
        """Report the current call; return the time."""
        now = self._site.seconds()
        self._site.finished(cast("Call", self._call), self._status, self._sent, now - self._started)
        self._call = None
        return now

    # -- the end -----------------------------------------------------------------------------------------------------

    def _linger(self) -> None:
        """Drop input for a while before closing.

        Closing a socket with unread input resets the connection, and the client may lose the answer that it has not
        read yet.
        """
        if self._ended:
            self._close()
            return
        self._state = _State.LINGERING
        self._input = b""
        self.deadline = self._site.seconds() + self._limits.linger_seconds
        self._io.unregisterProducer()
        if self._read_paused:
            self._read_paused = False
            self._io.resumeProducing()
        if not self._secure and ITCPTransport.providedBy(self.transport):
            self._io.loseWriteConnection()

    def _close(self) -> None:
        """Close the connection once everything written is sent."""
        self._state = _State.CLOSING
        self._input = b""
        self.deadline = self._site.seconds() + self._limits.write_seconds
        self._io.unregisterProducer()
        self._io.loseConnection()


class Site(_Factory):
    """Serves ``handler`` over HTTP/1.1.

    ``clock`` gives time and timers. ``edge_error(status, message)`` words what the protocol layer answers by itself
    (400, 408, 413, 414, 417, 431, 501, 505; also 500 if all else fails); ``on_error(exception)`` what a handler raised;
    both return a Response and should not raise. ``on_finish(call, status, bytes_sent, seconds)`` is told once of every
    request that was answered, refused or given up by its client (499 if that was before it was complete):
    ``bytes_sent`` counts the body only, ``seconds`` run from the end of the head until the answer is handed to the
    transport. The call of a request that was refused has what was understood of it, perhaps nothing.
    """

    noisy = False

    def __init__(
        self,
        handler: Handler,
        edge_error: EdgeError,
        on_error: OnError,
        on_finish: OnFinish,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.seconds: Callable[[], float] = clock.seconds
        self.stopping = False
        self._clock = clock
        self._edge_error = edge_error
        self._on_error = on_error
        self._on_finish = on_finish
        self._connections: set[Connection] = set()
        self._sweeper: Timer | None = None
        self._drained: Deferred[None] | None = None
        self._date_second = -1
        self._date = b""

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        """Return the protocol of a new connection from ``addr``."""
        return Connection(self, _host_and_port(addr))

    async def stop(self, grace_seconds: float) -> None:
        """Finish what is being received or answered, close what waits, then drop what is left.

        Call it after the listening ports are closed. Returns when no connection is open and no handler runs, or after
        ``grace_seconds``.
        """
        self.stopping = True
        for connection in tuple(self._connections):
            connection.retire()
        if not self._connections:
            return
        self._drained = Deferred()
        timer = self._clock.callLater(grace_seconds, self._give_up)
        await self._drained
        if timer.active():
            timer.cancel()

    def _give_up(self) -> None:
        for connection in tuple(self._connections):
            connection.abort()
        self._connections.clear()
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
        if not self._connections:
            self._quiet()

    def _quiet(self) -> None:
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

    def date(self) -> bytes:
        """Return the Date field and the end of the head."""
        second = int(self.seconds())
        if second != self._date_second:
            self._date_second = second
            self._date = f"Date: {formatdate(second, usegmt=True)}\r\n\r\n".encode("ascii")
        return self._date

    def refused(self, refused: Refused) -> Response:
        """Return the application's wording of an answer of this layer."""
        try:
            return self._edge_error(refused.status, str(refused))
        except Exception:  # noqa: BLE001 - an answer is owed all the same
            _log.failure("edge_error raised")
            return Response(refused.status)

    def failed(self, error: Exception) -> Response:
        """Return the application's answer to an exception of its handler."""
        try:
            return self._on_error(error)
        except Exception:  # noqa: BLE001 - an answer is owed all the same
            _log.failure("on_error raised")
            return self.refused(Refused(500, "internal error"))

    def finished(self, call: Call, status: int, sent: int, seconds: float) -> None:
        """Report a request."""
        try:
            self._on_finish(call, status, sent, seconds)
        except Exception:  # noqa: BLE001 - the request is answered; a log that fails must not break the next
            _log.failure("on_finish raised")


def _host_and_port(address: IAddress | None) -> str:
    """Return ``host:port`` of an address, IPv4 where IPv6 only carries it, "" for what has neither."""
    if not isinstance(address, (IPv4Address, IPv6Address)):
        return ""
    host = address.host.removeprefix("::ffff:") if "." in address.host else address.host
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"


def _lost_answer(failure: Failure) -> None:
    _log.failure("an answer could not be sent", failure)
