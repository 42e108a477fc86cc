"""The server: connections that hand whole requests to functions and send whole answers.

Rules of this module: a handler that raises RpcError decides the status; whatever else it raises goes to ``on_error``
and is answered INTERNAL with a fixed text. A handler whose caller has gone away, or whose deadline has passed, is
cancelled. What is not gRPC is answered as HTTP says. A client that does not read its answers is not read from. A server
that stops lets calls end, then ends them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeAlias, cast

from cryptography import x509
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from OpenSSL.crypto import X509
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IPushProducer, IReactorTime, ISSLTransport
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from notary.net.address import join
from notary.net.grpc.connection import Connection, Limits
from notary.net.grpc.fast import Fields, Request, end_of_frame, find_request
from notary.net.grpc.frames import LARGEST_WINDOW, Malformed, Message, Refused, decode_timeout, pack, parse_request
from notary.net.grpc.status import RpcError, Status, encode_message
from notary.net.refusals import OnRefused, RefusalKind, Refusals, unreadable_certificate

if TYPE_CHECKING:
    _Factory = ServerFactory["_ServerConnection"]
else:
    _Factory = ServerFactory

_log = Logger()

_HEAD: Final = [(b":status", b"200"), (b"content-type", b"application/grpc")]
_OK: Final = [(b"grpc-status", b"0")]
_SWEEP_SECONDS: Final = 1.0
_FAULT: Final = "internal error"
_SHOWN: Final = 100  # characters of a method that we do not know


class Peer:
    """Who is at the other end of a connection.

    ``address`` is ``host:port``; ``certificate`` the one that a client has proved to own, None without mutual TLS.
    There is one Peer a connection, so what is found out about it may be kept by its identity.
    """

    def __init__(self, address: str, certificate: x509.Certificate | None) -> None:
        self.address = address
        self.certificate = certificate


class Context:
    """What a handler may want to know besides the request."""

    __slots__ = ("_clock", "_deadline", "path", "peer")

    def __init__(self, path: str, peer: Peer, clock: IReactorTime, deadline: float | None) -> None:
        self.path = path
        self.peer = peer
        self._clock = clock
        self._deadline = deadline

    def remaining(self) -> float | None:
        """Seconds until the caller stops waiting; None if it named no deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock.seconds())


Handler: TypeAlias = Callable[[bytes, Context], "bytes | Coroutine[Any, Any, bytes] | Deferred[bytes]"]
"""Answers a request: at once (the fast way), by a coroutine or by a Deferred. Raises RpcError."""
OnFinish: TypeAlias = Callable[[str, Status, float, Peer], None]
OnError: TypeAlias = Callable[[str, Failure], None]


def _log_error(path: str, failure: Failure) -> None:
    _log.failure("{path} failed", failure, path=path)


def _ignore(_path: str, _status: Status, _seconds: float, _peer: Peer) -> None:
    pass


class _Meaning(NamedTuple):
    """The head of a request to a method that we know; ``timeout`` in seconds."""

    path: str
    handler: Handler
    timeout: float | None


class _Stream:
    """One call."""

    __slots__ = ("answered", "complete", "deadline", "held", "id", "message", "path", "result", "since", "timer")

    def __init__(self, stream: int, path: str, since: float, limit: int) -> None:
        self.id = stream
        self.path = path
        self.since = since  # when the request began
        self.answered = since  # when the answer began
        self.deadline: float | None = None
        self.message = Message(limit)
        self.held = 0  # bytes of the message that are counted
        self.complete = False  # the request is
        self.result: Deferred[bytes] | None = None  # what the handler has yet to say
        self.timer: IDelayedCall | None = None


@implementer(IPushProducer)
class _ServerConnection(Connection):
    client_side = False
    factory: GrpcFactory

    def __init__(self, factory: GrpcFactory, address: str) -> None:
        super().__init__(factory.clock, factory.limits)
        self.factory = factory
        self.peer = Peer(address, None)
        self.streams: dict[int, _Stream] = {}
        self._writing: dict[int, _Stream] = {}  # answered, but not taken by the client
        self._buffered = 0
        self._last: int | None = None  # the last stream that is served, once we go away
        self._leave_by: float | None = None  # when we go away at the latest, with or without a call

    # -- the transport ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin; note whose certificate it is; stop reading from a client that does not read."""
        if ISSLTransport.providedBy(self.transport):
            certificate = cast("X509 | None", self.transport.getPeerCertificate())
            if certificate is not None:
                try:
                    self.peer.certificate = certificate.to_cryptography()
                except Exception as strange:  # noqa: BLE001 - parsers of strangers' bytes raise what they like
                    self.why = str(unreadable_certificate(strange))
                    self.factory.on_refused(self.peer.address, RefusalKind.BAD_CERTIFICATE, self.why)
                    self.abort()
                    return
        cast("Any", self.transport).registerProducer(self, True)
        super().begin()

    def pauseProducing(self) -> None:
        """The client does not read: take nothing from it."""
        cast("Any", self.transport).pauseProducing()

    def resumeProducing(self) -> None:
        """The client reads again."""
        cast("Any", self.transport).resumeProducing()

    def stopProducing(self) -> None:
        """The transport is lost, as ``connectionLost`` will say."""

    def ending(self, _reason: str) -> None:
        """Cancel what still runs for this client."""
        # A transport that has a producer waits for it before it closes.
        cast("Any", self.transport).unregisterProducer()
        for stream in list(self.streams.values()):
            self._drop(stream, Status.CANCELLED)
        self._writing.clear()

    def lost(self, *, quiet: bool) -> None:
        """Tell why, if there never was HTTP/2."""
        if not self.spoke and self._last is None and not quiet:
            self.factory.on_refused(self.peer.address, RefusalKind.PROTOCOL, self.why)
        self.factory.forget(self)

    def sweep(self, now: float) -> None:
        """End what takes too long."""
        self.check_life(now)
        if self.closing is not None:
            return
        if self._leave_by is not None and now >= self._leave_by:
            self._leave()
            return
        limits = self.limits
        if self.spoke and self.asked is None and now - self.heard >= limits.keepalive:
            self.ping()
        for stream in list(self.streams.values()):
            if not stream.complete:
                late = stream.deadline is not None and now >= stream.deadline
                if late or now - stream.since >= limits.request:
                    self._error(stream, RpcError(Status.DEADLINE_EXCEEDED, "the request did not arrive in time"))
        for stream in list(self._writing.values()):
            if now - stream.answered >= limits.answer:
                del self._writing[stream.id]
                self.reset(stream.id, ErrorCodes.CANCEL)

    # -- requests -----------------------------------------------------------------------------------------------------

    def meaning(self, fields: Fields) -> _Meaning | None:
        """What the head of a request says, if it is the head of a call that we know."""
        if any(name == b"content-length" for name, _ in fields):
            return None  # h2 compares it with what comes
        try:
            path, timeout = parse_request(fields)
            handler = self.factory.methods.get(path)
            seconds = None if timeout is None else decode_timeout(timeout)
        except (Malformed, Refused, RpcError):
            return None
        return None if handler is None else _Meaning(path, handler, seconds)

    def receive(self, data: bytes) -> None:
        """Answer the calls that came whole; all else goes the general way. Raises Violation, ProtocolError."""
        begin = position = 0  # what is between them is for h2
        while position < len(data) and self.spoke and self.closing is None and self._scanner.between:
            request = find_request(data, position, self._decoder.known)
            if request is None or not self._may_begin(request):
                position = end_of_frame(data, position)
            elif begin < position:
                super().receive(data[begin:position])  # it may change what the next block of headers says
                begin = position
            else:
                self._answer(request, data[position : request.end])
                begin = position = request.end
        if begin < len(data) and self.closing is None:
            super().receive(data[begin:])

    def _may_begin(self, request: Request[_Meaning]) -> bool:
        """Whether h2 and we would have nothing to say against a request."""
        h2 = self._h2
        return (
            request.stream > h2.highest_inbound_stream_id
            and request.size <= h2.inbound_flow_control_window
            and h2.outbound_flow_control_window + request.more_room <= LARGEST_WINDOW
            and h2.remote_settings.initial_window_size + request.room <= LARGEST_WINDOW
            and len(request.message) <= self.limits.message
            and not self._is_full(request.size)
            and len(self.streams) + len(self._writing) < self.limits.streams
            and self._last is None
            and not self._outgoing  # nobody waits for the room that comes with it
        )

    def _answer(self, request: Request[_Meaning], frames: bytes) -> None:
        """Run a request; h2 hears of it, by its frames, only if it has no answer yet that can be sent."""
        stream, (path, handler, timeout) = request.stream, request.meaning
        now = self.heard
        deadline = None if timeout is None else now + timeout
        outcome = self._begin(handler, request.message, Context(path, self.peer, self.clock, deadline))
        if isinstance(outcome, bytes) and len(outcome) <= self.limits.message:
            body = pack(outcome)
            if self.send_at_once(request, body):  # what it earns is more than the frames in it that carry nothing
                self.factory.on_finish(path, Status.OK, self.clock.seconds() - now, self.peer)
                self.earn()
                return
        # What this says is done already. The scanner has nothing to say against it, and nothing to count: a call that
        # is whole may bring a WINDOW_UPDATE or two.
        self._h2.receive_data(frames)
        self.count(request.size)
        call = self.streams[stream] = _Stream(stream, path, now, 0)
        call.deadline = deadline
        call.complete = True
        self._hold(call, len(request.message))
        self._settle(call, outcome)

    def _settings(self, event: RemoteSettingsChanged) -> None:
        self.spoke = True
        self.room(event)

    def _request(self, event: RequestReceived) -> None:
        stream = event.stream_id
        if self.is_closed(stream):
            return  # it was reset at once
        if self._last is not None or len(self.streams) + len(self._writing) >= self.limits.streams:
            self.reset(stream, ErrorCodes.REFUSED_STREAM)
            if self._last is None:
                self.spend_resets(1)
            return
        try:
            path, timeout = parse_request(event.headers)
        except Malformed:
            self.reset(stream, ErrorCodes.PROTOCOL_ERROR)
            self.spend_resets(1)
            return
        except Refused as refused:
            self._h2.send_headers(stream, [(b":status", refused.status), *refused.headers], end_stream=True)
            self.reset(stream, ErrorCodes.NO_ERROR)
            return
        now = self.heard
        call = self.streams[stream] = _Stream(stream, path, now, self.limits.message)
        try:
            if timeout is not None:
                call.deadline = now + decode_timeout(timeout)
        except RpcError as error:
            self._error(call, error)
            return
        if path not in self.factory.methods:
            self._error(call, RpcError(Status.UNIMPLEMENTED, f"unknown method {path[:_SHOWN]}"))

    def _data(self, event: DataReceived) -> None:
        self.seen(event)
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
        """Whether open calls would hold too much with ``more`` bytes."""
        limits = self.limits
        return self._buffered + more > limits.buffered or self.factory.buffered + more > limits.all_buffered

    def _hold(self, call: _Stream, size: int) -> None:
        """Count the bytes of a request, which are held until it is answered."""
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
        self._settle(call, self._begin(self.factory.methods[call.path], request, context))

    def _begin(self, handler: Handler, request: bytes, context: Context) -> bytes | Deferred[bytes] | Failure:
        if self._leave_by is not None:
            self.clock.callLater(0, self._leave)
        try:
            result = handler(request, context)
        except Exception:  # noqa: BLE001 - whatever a handler raises has its answer
            return Failure()
        return result if isinstance(result, (bytes, Deferred)) else Deferred.fromCoroutine(result)

    def _settle(self, call: _Stream, outcome: bytes | Deferred[bytes] | Failure) -> None:
        """Answer, now or when there is an answer."""
        if isinstance(outcome, bytes):
            self._succeeded(outcome, call)
            return
        if isinstance(outcome, Failure):
            self._failed(outcome, call)
            return
        call.result = pending = outcome
        pending.addCallbacks(self._succeeded, self._failed, callbackArgs=(call,), errbackArgs=(call,))
        pending.addErrback(self._fault)
        if call.id in self.streams and call.deadline is not None:
            call.timer = self.clock.callLater(max(0.0, call.deadline - self.clock.seconds()), self._expire, call)

    def _fault(self, failure: Failure) -> None:
        """An answer could not be said: this must not happen, and must not leave a caller waiting."""
        _log.failure("an answer could not be sent", failure)
        self.fail(ErrorCodes.INTERNAL_ERROR, _FAULT)

    def _expire(self, call: _Stream) -> None:
        call.timer = None
        self._error(call, RpcError(Status.DEADLINE_EXCEEDED, "the deadline has passed"))

    def _reset_by_client(self, event: StreamReset) -> None:
        stream = event.stream_id or 0
        self.unsend(stream)
        call = self.streams.get(stream)
        if call is not None:
            self._drop(call, Status.CANCELLED)
        self._writing.pop(stream, None)
        self._maybe_leave()

    # -- answers ------------------------------------------------------------------------------------------------------

    def _succeeded(self, answer: bytes, call: _Stream) -> None:
        call.result = None
        if call.id not in self.streams or self.is_closed(call.id):
            return  # nobody waits for it any more
        if len(answer) > self.limits.message:
            error = f"an answer of {len(answer)} bytes is over the limit of {self.limits.message}"
            self._error(call, RpcError(Status.RESOURCE_EXHAUSTED, error))
            return
        if not self.send_answer(call.id, pack(answer), _HEAD, _OK):
            call.answered = self.clock.seconds()
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
        trailers = [*_HEAD, (b"grpc-status", b"%d" % error.status)]
        if error.message:
            trailers.append((b"grpc-message", encode_message(error.message)))
        if not self.is_closed(call.id):
            self._h2.send_headers(call.id, trailers, end_stream=True)
            self.reset(call.id, ErrorCodes.NO_ERROR)  # if more of the request is to come (RFC 9113, section 8.1)
        self._finish(call, error.status)

    def _finish(self, call: _Stream, status: Status) -> None:
        self._drop(call, status)
        self.earn()
        self.later()
        self._maybe_leave()

    def _drop(self, call: _Stream, status: Status) -> None:
        """A call is over: stop its handler, tell how it ended."""
        del self.streams[call.id]
        self._hold(call, 0)
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        result, call.result = call.result, None
        if result is not None:
            result.cancel()
        factory = self.factory
        factory.on_finish(call.path, status, self.clock.seconds() - call.since, self.peer)

    def sent(self, stream: int) -> None:
        """An answer has left."""
        self._writing.pop(stream, None)
        self._maybe_leave()

    # -- leaving ------------------------------------------------------------------------------------------------------

    def leave(self, first_seconds: float) -> None:
        """Take no more calls; close when those that run are answered.

        A client that has yet to begin, perhaps in the middle of TLS's handshake, has ``first_seconds`` for its first
        call: it was accepted, and would take the end of its connection for a failure.
        """
        if self.spoke:
            self._leave()
        else:
            self._leave_by = self.clock.seconds() + first_seconds

    def _leave(self) -> None:
        self._leave_by = None
        if self._last is None and self.closing is None:
            self._last = self._h2.highest_inbound_stream_id
            if self.spoke:
                self.say_goodbye(self._last)
            self._maybe_leave()

    def _maybe_leave(self) -> None:
        if self._last is not None and not self.streams and not self._writing:
            self.close("the server stops")

    def give_up(self) -> None:
        """End the calls that still run, and the connection."""
        for stream in list(self.streams.values()):
            self._error(stream, RpcError(Status.UNAVAILABLE, "the server is stopping"))
        self.close("the server stops")

    on_event: ClassVar[dict[Any, Callable[[Any, Any], None]]] = {
        RequestReceived: _request,
        DataReceived: _data,
        StreamEnded: _ended,
        StreamReset: _reset_by_client,
        WindowUpdated: Connection.room,
        RemoteSettingsChanged: _settings,
    }


_NOTHING: Final = Message(0)


class GrpcFactory(_Factory):
    """Makes the connections of a server.

    ``methods`` maps paths (``/package.Service/Method``) to handlers. ``on_finish`` is told of every call (the path as
    the client gave it, which may be any; the status; seconds; the peer), ``on_error`` of every handler that failed
    otherwise than by RpcError, ``on_refused`` of every connection that did not come to speak HTTP/2; by default these
    two are logged.
    """

    noisy = False

    def __init__(
        self,
        methods: Mapping[str, Handler],
        clock: IReactorTime,
        *,
        limits: Limits | None = None,
        on_finish: OnFinish = _ignore,
        on_error: OnError = _log_error,
        on_refused: OnRefused | None = None,
    ) -> None:
        self.methods = methods
        self.clock = clock
        self.limits = limits or Limits()
        self.on_finish = on_finish
        self.on_error = on_error
        self.on_refused = on_refused or Refusals(_log, LogLevel.warn, clock.seconds)
        self.buffered = 0
        """Bytes of the messages of all open calls."""
        self._connections: set[_ServerConnection] = set()
        self._sweeping: IDelayedCall | None = None
        self._stopped: Deferred[None] | None = None

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def buildProtocol(self, addr: IAddress | None) -> _ServerConnection | None:
        """Return a new connection; None once the server stops."""
        if self._stopped is not None:
            return None
        host, port = getattr(addr, "host", "?"), getattr(addr, "port", 0)
        made = _ServerConnection(self, join(host, port))
        self._connections.add(made)
        if self._sweeping is None:
            self._sweeping = self.clock.callLater(_SWEEP_SECONDS, self._sweep)
        return made

    def _sweep(self) -> None:
        self._sweeping = self.clock.callLater(_SWEEP_SECONDS, self._sweep)
        now = self.clock.seconds()
        for connection in list(self._connections):
            connection.sweep(now)

    def forget(self, connection: _ServerConnection) -> None:
        """A connection is lost."""
        self._connections.discard(connection)
        if self._connections:
            return
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        if self._stopped is not None and not self._stopped.called:
            self._stopped.callback(None)

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """Take no more connections and calls, wait for the calls that run, then end them; return when all is closed.

        The caller closes the listening ports first.
        """
        if self._stopped is None:
            self._stopped = Deferred()
        if not self._connections:
            return
        for connection in list(self._connections):
            connection.leave(grace_seconds / 2)
        timer = self.clock.callLater(grace_seconds, self._give_up)
        await self._stopped
        if timer.active():
            timer.cancel()

    def _give_up(self) -> None:
        for connection in list(self._connections):
            connection.give_up()
