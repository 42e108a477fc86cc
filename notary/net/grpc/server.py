"""The server: connections that hand whole requests to functions and send whole answers.

Rules of this module: a handler that raises RpcError decides the status; any other exception goes to ``on_error``, and
the caller gets INTERNAL with a fixed text. A handler is cancelled if its caller disconnects or its deadline passes.
Requests that are not gRPC get an HTTP status. The messages of
a stream are small and few. The server does not read from a client that does not read its answers. A
server that stops lets calls end, then ends them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeAlias, cast

from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from OpenSSL.crypto import FILETYPE_ASN1, X509, dump_certificate
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IPushProducer, IReactorTime, ISSLTransport
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from notary.net.address import join
from notary.net.connections import Connections
from notary.net.grpc.connection import GrpcLimits, Http2Connection
from notary.net.grpc.fast import Fields, Request, end_of_frame, find_request
from notary.net.grpc.frames import LARGEST_WINDOW, Malformed, Message, NotGrpc, decode_timeout, pack, parse_request
from notary.net.grpc.status import RpcError, Status, encode_message
from notary.net.refusals import OnRefused, RefusalKind, Refusals
from notary.work.repeats import Seldom

if TYPE_CHECKING:
    _Factory = ServerFactory["_ServerConnection"]
else:
    _Factory = ServerFactory

_log = Logger()

_HEAD: Final = [(b":status", b"200"), (b"content-type", b"application/grpc")]
_OK: Final = [(b"grpc-status", b"0")]
_CLOSING_SECONDS: Final = 2.0  # beyond the time in which a sweep aborts a connection that does not close
_FAULT: Final = "internal error"
_SHOWN_CHARACTERS: Final = 100  # of the path of an unknown method


class Peer:
    """The client of a connection.

    ``address`` is ``host:port``; ``certificate`` is the one that the client has proved to own, as OpenSSL has read it,
    in DER; it is None without mutual TLS.
    There is one Peer for each connection, so facts about a client may be kept by the identity of its Peer.
    """

    def __init__(self, address: str, certificate: bytes | None) -> None:
        self.address = address
        self.certificate = certificate


class Context:
    """The circumstances of a request: its path, its client and its deadline."""

    __slots__ = ("_clock", "_deadline", "path", "peer")

    def __init__(self, path: str, peer: Peer, clock: IReactorTime, deadline: float | None) -> None:
        self.path = path
        self.peer = peer
        self._clock = clock
        self._deadline = deadline

    def remaining(self) -> float | None:
        """Return the seconds until the caller stops waiting; None if the caller set no deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock.seconds())


Handler: TypeAlias = Callable[[bytes, Context], "bytes | Coroutine[Any, Any, bytes] | Deferred[bytes]"]
"""Answers a request: at once (the fast path), by a coroutine or by a Deferred. Raises RpcError."""
Streaming: TypeAlias = Callable[[bytes, Context, Callable[[bytes], None]], "Deferred[bytes]"]
"""Answers a request with a stream of messages: each goes to the third argument.

The Deferred is never fired; it fails with RpcError to end the stream, and is cancelled when nobody listens any more.
"""
OnFinish: TypeAlias = Callable[[str, Status, float, Peer], None]
OnError: TypeAlias = Callable[[str, Failure], None]


def _log_error(path: str, failure: Failure) -> None:
    _log.failure("{path} failed", failure, path=path)


def _warn_of_no_alpn(address: str) -> None:
    _log.warn(
        "the client {address} speaks HTTP/2 but does not say so in TLS (ALPN), which what connects to this port "
        "should: in a balancer, ALPN may have to be switched on",
        address=address,
    )


def _ignore(_path: str, _status: Status, _seconds: float, _peer: Peer) -> None:
    pass


class _Meaning(NamedTuple):
    """The meaning of the header block of a request to a known method; ``timeout`` is in seconds."""

    path: str
    handler: Handler
    timeout: float | None


class _Stream:
    """One call."""

    __slots__ = (
        "answered_at",
        "begun_at",
        "complete",
        "deadline",
        "held",
        "id",
        "message",
        "path",
        "result",
        "streams",
        "timer",
    )

    def __init__(self, stream: int, path: str, begun_at: float, limit: int) -> None:
        self.id = stream
        self.path = path
        self.begun_at = begun_at
        self.answered_at = begun_at
        self.deadline: float | None = None
        self.message = Message(limit)
        self.held = 0  # bytes of the message that count towards the limits
        self.complete = False  # the request has arrived
        self.streams = False  # the head of an answer of several messages is sent
        self.result: Deferred[bytes] | None = None  # the answer of the handler, which is not there yet
        self.timer: IDelayedCall | None = None


@implementer(IPushProducer)
class _ServerConnection(Http2Connection):
    client_side = False
    factory: GrpcFactory

    def __init__(self, factory: GrpcFactory, address: str) -> None:
        super().__init__(factory.clock, factory.limits)
        self.factory = factory
        self.peer = Peer(address, None)
        self.streams: dict[int, _Stream] = {}
        self._writing: dict[int, _Stream] = {}  # answered, but the client has not read all of the answer
        self._buffered = 0
        self._last_served: int | None = None  # None until we leave
        self._leave_by: float | None = None  # when we leave even without a first call

    # -- the transport ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin: note the client's certificate, and stop reading from a client that does not read."""
        if ISSLTransport.providedBy(self.transport):
            certificate = cast("X509 | None", self.transport.getPeerCertificate())
            if certificate is not None:
                self.peer.certificate = dump_certificate(FILETYPE_ASN1, certificate)
        cast("Any", self.transport).registerProducer(self, True)
        super().begin()

    def pauseProducing(self) -> None:
        """Stop reading: the client does not read."""
        cast("Any", self.transport).pauseProducing()

    def resumeProducing(self) -> None:
        """Read again: the client does."""
        cast("Any", self.transport).resumeProducing()

    def stopProducing(self) -> None:
        """Do nothing: ``connectionLost`` follows."""

    def end_streams(self, _reason: str) -> None:
        """Cancel the handlers that run for this client."""
        # A transport that has a producer waits for it before it closes.
        cast("Any", self.transport).unregisterProducer()
        for stream in list(self.streams.values()):
            self._drop(stream, Status.CANCELLED)
        self._writing.clear()

    def lost(self, *, quiet: bool) -> None:
        """Report the refusal of a connection that never got to HTTP/2."""
        if not self.peer_spoke_http2 and self._last_served is None and not quiet:
            self.factory.on_refused(self.peer.address, RefusalKind.PROTOCOL, self.end_reason)
        self.factory.forget(self)

    def sweep(self, now: float) -> None:
        """End the calls, and the connection, that are late."""
        self.check_deadlines(now)
        if self.closing_since is not None:
            return
        if self._leave_by is not None and now >= self._leave_by:
            self._leave()
            return
        limits = self.limits
        if self.peer_spoke_http2 and self.ping_sent_at is None and now - self.last_received_at >= limits.keepalive:
            self.ping()
        for stream in list(self.streams.values()):
            if not stream.complete:
                late = stream.deadline is not None and now >= stream.deadline
                if late or now - stream.begun_at >= limits.request:
                    self._error(stream, RpcError(Status.DEADLINE_EXCEEDED, "the request did not arrive in time"))
        for stream in list(self._writing.values()):
            if now - stream.answered_at >= limits.answer:
                del self._writing[stream.id]
                self.reset(stream.id, ErrorCodes.CANCEL)

    # -- requests -----------------------------------------------------------------------------------------------------

    def meaning(self, fields: Fields) -> _Meaning | None:
        """Return the meaning of a header block if it belongs to a call of a known method."""
        if any(name == b"content-length" for name, _ in fields):
            return None  # h2 compares it with the length of the body
        try:
            path, timeout = parse_request(fields)
            handler = self.factory.methods.get(path)
            seconds = None if timeout is None else decode_timeout(timeout)
        except (Malformed, NotGrpc, RpcError):
            return None
        return None if handler is None else _Meaning(path, handler, seconds)

    def receive(self, data: bytes) -> None:
        """Answer complete calls on the fast path, the rest on the full path. Raises Violation, ProtocolError."""
        begin = position = 0  # the bytes between the two are for h2
        while position < len(data) and self.peer_spoke_http2 and self.closing_since is None and self._scanner.between:
            request = find_request(data, position, self._decoder.known)
            if request is None or not self._may_begin(request):
                position = end_of_frame(data, position)
            elif begin < position:
                super().receive(data[begin:position])  # it may change the meaning of the next header block
                begin = position
            else:
                self._answer(request, data[position : request.end])
                begin = position = request.end
        if begin < len(data) and self.closing_since is None:
            super().receive(data[begin:])

    def _may_begin(self, request: Request[_Meaning]) -> bool:
        """Return True if neither h2 nor a limit would refuse a request."""
        h2 = self._h2
        return (
            request.stream > h2.highest_inbound_stream_id
            and request.size <= h2.inbound_flow_control_window
            and h2.outbound_flow_control_window + request.connection_increment <= LARGEST_WINDOW
            and h2.remote_settings.initial_window_size + request.stream_increment <= LARGEST_WINDOW
            and len(request.message) <= self.limits.message
            and not self._is_full(request.size)
            and len(self.streams) + len(self._writing) < self.limits.streams
            and self._last_served is None
            and not self._outgoing  # no stream waits for the window that comes with it
        )

    def _answer(self, request: Request[_Meaning], frames: bytes) -> None:
        """Run a request. h2 gets its frames only if there is no answer yet that can be sent."""
        stream, (path, handler, timeout) = request.stream, request.meaning
        now = self.last_received_at
        deadline = None if timeout is None else now + timeout
        outcome = self._begin(handler, request.message, Context(path, self.peer, self.clock, deadline))
        if isinstance(outcome, bytes) and len(outcome) <= self.limits.message:
            body = pack(outcome)
            if self.send_fast(request, body):  # the call earns more than its control frames cost
                self.factory.on_finish(path, Status.OK, self.clock.seconds() - now, self.peer)
                self.earn_budget()
                return
        # The events of these frames are handled already. The scanner would neither refuse nor count anything here: a
        # complete call may bring a WINDOW_UPDATE or two.
        self._h2.receive_data(frames)
        self.count_received(request.size)
        call = self.streams[stream] = _Stream(stream, path, now, 0)
        call.deadline = deadline
        call.complete = True
        self._hold(call, len(request.message))
        self._settle(call, outcome)

    def _settings(self, event: RemoteSettingsChanged) -> None:
        if not (self.negotiated or self.peer_spoke_http2):
            self.factory.warn_of_no_alpn(self.peer.address)
        self.peer_spoke_http2 = True
        self.on_window_update(event)

    def _request(self, event: RequestReceived) -> None:
        stream = event.stream_id
        if self.is_closed(stream):
            return  # it was reset at once
        if self._last_served is not None or len(self.streams) + len(self._writing) >= self.limits.streams:
            self.reset(stream, ErrorCodes.REFUSED_STREAM)
            if self._last_served is None:
                self.spend_resets(1)
            return
        try:
            path, timeout = parse_request(event.headers)
        except Malformed:
            self.reset(stream, ErrorCodes.PROTOCOL_ERROR)
            self.spend_resets(1)
            return
        except NotGrpc as other:
            self._h2.send_headers(stream, [(b":status", other.status), *other.headers], end_stream=True)
            self.reset(stream, ErrorCodes.NO_ERROR)
            return
        now = self.last_received_at
        call = self.streams[stream] = _Stream(stream, path, now, self.limits.message)
        try:
            if timeout is not None:
                call.deadline = now + decode_timeout(timeout)
        except RpcError as error:
            self._error(call, error)
            return
        if path not in self.factory.methods and path not in self.factory.streaming:
            self._error(call, RpcError(Status.UNIMPLEMENTED, f"unknown method {path[:_SHOWN_CHARACTERS]}"))

    def _data(self, event: DataReceived) -> None:
        self.replenish_window(event)
        call = self.streams.get(event.stream_id)
        if call is None:
            return
        message = call.message
        try:
            message.feed(event.data)
        except RpcError as error:
            self._error(call, error)
            return
        self._hold(call, len(message))
        if self._is_full():
            self._error(call, RpcError(Status.RESOURCE_EXHAUSTED, "too many large requests at once"))

    def _is_full(self, more: int = 0) -> bool:
        """Return True if open calls would hold too much with ``more`` bytes."""
        limits = self.limits
        return self._buffered + more > limits.buffered or self.factory.buffered + more > limits.all_buffered

    def _hold(self, call: _Stream, size: int) -> None:
        """Count the bytes of a request, which are held until its answer."""
        more = size - call.held
        call.held = size
        self._buffered += more
        self.factory.buffered += more

    def _ended(self, event: StreamEnded) -> None:
        call = self.streams.get(event.stream_id)
        if call is None or self.is_closed(event.stream_id):
            return
        call.complete = True
        try:
            request = call.message.finish()
        except RpcError as error:
            self._error(call, error)
            return
        call.message = _NOTHING
        self._run(call, request)

    def _run(self, call: _Stream, request: bytes) -> None:
        context = Context(call.path, self.peer, self.clock, call.deadline)
        streaming = self.factory.streaming.get(call.path)
        if streaming is None:
            handler = self.factory.methods[call.path]
        else:
            handler = partial(_begin_stream, streaming, partial(self._send_piece, call))
        self._settle(call, self._begin(handler, request, context))

    def _send_piece(self, call: _Stream, message: bytes) -> None:
        """Send one message of several. A client that leaves no room for it does not listen, so its call is ended."""
        if call.id not in self.streams or self.is_closed(call.id):
            return
        h2, body = self._h2, pack(message)
        if not call.streams:
            call.streams = True
            h2.send_headers(call.id, _HEAD)
        if len(body) > h2.local_flow_control_window(call.id):
            self._error(call, RpcError(Status.RESOURCE_EXHAUSTED, "the client does not read"))
            return
        h2.send_data(call.id, body)
        self.flush_soon()

    def _begin(self, handler: Handler, request: bytes, context: Context) -> bytes | Deferred[bytes] | Failure:
        if self._leave_by is not None:
            self.clock.callLater(0, self._leave)
        try:
            result = handler(request, context)
        except Exception:  # noqa: BLE001 - each exception of a handler has its answer
            return Failure()
        return result if isinstance(result, (bytes, Deferred)) else Deferred.fromCoroutine(result)

    def _settle(self, call: _Stream, outcome: bytes | Deferred[bytes] | Failure) -> None:
        """Answer now, or when the handler is done."""
        if isinstance(outcome, bytes):
            self._succeeded(outcome, call)
            return
        if isinstance(outcome, Failure):
            self._failed(outcome, call)
            return
        call.result = pending = outcome
        pending.addCallbacks(self._succeeded, self._failed, callbackArgs=(call,), errbackArgs=(call,))
        pending.addErrback(self._fault)
        if call.id not in self.streams:
            pending.cancel()  # the call has ended while it began
        elif call.deadline is not None:
            call.timer = self.clock.callLater(max(0.0, call.deadline - self.clock.seconds()), self._expire, call)

    def _fault(self, failure: Failure) -> None:
        """End the connection: a bug kept an answer from being sent, and no caller may wait because of it."""
        _log.failure("an answer could not be sent", failure)
        self.fail(ErrorCodes.INTERNAL_ERROR, _FAULT)

    def _expire(self, call: _Stream) -> None:
        call.timer = None
        self._error(call, RpcError(Status.DEADLINE_EXCEEDED, "the deadline has passed"))

    def _reset_by_client(self, event: StreamReset) -> None:
        stream = event.stream_id or 0
        self.discard_unsent(stream)
        call = self.streams.get(stream)
        if call is not None:
            self._drop(call, Status.CANCELLED)
        self._writing.pop(stream, None)
        self._maybe_leave()

    # -- answers ------------------------------------------------------------------------------------------------------

    def _succeeded(self, answer: bytes, call: _Stream) -> None:
        call.result = None
        if call.id not in self.streams or self.is_closed(call.id):
            return  # the caller has cancelled the call
        if len(answer) > self.limits.message:
            error = f"an answer of {len(answer)} bytes is over the limit of {self.limits.message}"
            self._error(call, RpcError(Status.RESOURCE_EXHAUSTED, error))
            return
        if not self.send_answer(call.id, pack(answer), _HEAD, _OK):
            call.answered_at = self.clock.seconds()
            self._writing[call.id] = call
        self._finish(call, Status.OK)

    def _failed(self, failure: Failure, call: _Stream) -> None:
        call.result = None
        if call.id not in self.streams:
            return
        error = failure.value
        if not isinstance(error, RpcError):
            self.factory.on_error(call.path, failure)
            error = RpcError(Status.INTERNAL, _FAULT)
        self._error(call, error)

    def _error(self, call: _Stream, error: RpcError) -> None:
        """Answer with a status and no message ("trailers only")."""
        trailers = [*([] if call.streams else _HEAD), (b"grpc-status", b"%d" % error.status)]
        if error.message:
            trailers.append((b"grpc-message", encode_message(error.message)))
        if not self.is_closed(call.id):
            self._h2.send_headers(call.id, trailers, end_stream=True)
            self.reset(call.id, ErrorCodes.NO_ERROR)  # if more of the request is to come (RFC 9113, section 8.1)
        self._finish(call, error.status)

    def _finish(self, call: _Stream, status: Status) -> None:
        self._drop(call, status)
        self.earn_budget()
        self.flush_soon()
        self._maybe_leave()

    def _drop(self, call: _Stream, status: Status) -> None:
        """End a call: cancel its handler and report its status."""
        del self.streams[call.id]
        self._hold(call, 0)
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        result, call.result = call.result, None
        if result is not None:
            result.cancel()
        factory = self.factory
        factory.on_finish(call.path, status, self.clock.seconds() - call.begun_at, self.peer)

    def sent(self, stream: int) -> None:
        """The client has read an answer that had to wait."""
        self._writing.pop(stream, None)
        self._maybe_leave()

    # -- leaving ------------------------------------------------------------------------------------------------------

    def leave(self, first_seconds: float, idle_seconds: float) -> None:  # noqa: ARG002 - GOAWAY serves an idle client
        """Take no more calls, and close when the running calls are answered.

        A client that has not sent anything yet, perhaps in the middle of TLS's handshake, has ``first_seconds`` for its
        first call: its connection was accepted, so a close would look like a failure.
        """
        if self.peer_spoke_http2:
            self._leave()
        else:
            self._leave_by = self.clock.seconds() + first_seconds

    def _leave(self) -> None:
        self._leave_by = None
        if self._last_served is None and self.closing_since is None:
            for call in [each for each in self.streams.values() if each.path in self.factory.streaming]:
                self._error(call, RpcError(Status.UNAVAILABLE, "the server is stopping"))
            self._last_served = self._h2.highest_inbound_stream_id
            if self.peer_spoke_http2:
                self.send_goaway(self._last_served)
            self._maybe_leave()

    def _maybe_leave(self) -> None:
        if self._last_served is not None and not self.streams and not self._writing:
            self.close("the server stops")

    def give_up(self) -> None:
        """End the running calls and the connection."""
        for stream in list(self.streams.values()):
            self._error(stream, RpcError(Status.UNAVAILABLE, "the server is stopping"))
        self.close("the server stops")

    on_event: ClassVar[dict[Any, Callable[[Any, Any], None]]] = {
        RequestReceived: _request,
        DataReceived: _data,
        StreamEnded: _ended,
        StreamReset: _reset_by_client,
        WindowUpdated: Http2Connection.on_window_update,
        RemoteSettingsChanged: _settings,
    }


_NOTHING: Final = Message(0)


def _begin_stream(
    streaming: Streaming, send: Callable[[bytes], None], request: bytes, context: Context
) -> Deferred[bytes]:
    return streaming(request, context, send)


class GrpcFactory(_Factory):
    """Makes the connections of a server.

    ``methods`` maps paths (``/package.Service/Method``) to handlers, ``streaming`` to those of methods that answer with
    a stream; a server that stops ends these streams at once. ``on_finish`` is called after every call, with the
    path (any text that a client sent), the status, the seconds that the call took, and the peer; ``on_error`` for every
    exception of a handler but RpcError; ``on_refused`` for every connection that ended before HTTP/2 began. By default
    these two write log lines.
    """

    noisy = False

    def __init__(
        self,
        methods: Mapping[str, Handler],
        clock: IReactorTime,
        *,
        streaming: Mapping[str, Streaming] = MappingProxyType({}),
        limits: GrpcLimits | None = None,
        on_finish: OnFinish = _ignore,
        on_error: OnError = _log_error,
        on_refused: OnRefused | None = None,
    ) -> None:
        self.methods = methods
        self.streaming = streaming
        self.clock = clock
        self.limits = limits or GrpcLimits()
        self.on_finish = on_finish
        self.on_error = on_error
        self.on_refused = on_refused or Refusals(_log, LogLevel.warn, clock.seconds)
        self.buffered = 0
        """The number of bytes in the messages of all open calls."""
        self._connections = Connections(clock)
        self._no_alpn = Seldom(_warn_of_no_alpn, clock.seconds)

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    def buildProtocol(self, addr: IAddress | None) -> _ServerConnection | None:
        """Return a new connection; None if the server is stopping."""
        if self._connections.draining:
            return None
        host, port = getattr(addr, "host", "?"), getattr(addr, "port", 0)
        made = _ServerConnection(self, join(host, port))
        self._connections.add(made)
        return made

    def warn_of_no_alpn(self, address: str) -> None:
        """Log, once a minute, that a client with TLS speaks HTTP/2 without having said so."""
        self._no_alpn(address)

    def forget(self, connection: _ServerConnection) -> None:
        """Forget a connection that is lost."""
        self._connections.discard(connection)

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """Take no more connections and calls, wait for the running calls, then end them. Returns when all is closed.

        The caller closes the listening ports first.
        """
        await self._connections.drain(grace_seconds, self.limits.linger + _CLOSING_SECONDS)
