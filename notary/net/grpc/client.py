"""The client: a channel that keeps one connection to a server and makes calls on it.

Rules of this module:

- A call ends at its deadline at the latest. It waits for a connection that can take it. UNAVAILABLE says that the call
  was never sent, DEADLINE_EXCEEDED that it was sent and not answered.
- A call that the server certainly has not begun (a refused stream, a GOAWAY below it) is sent once more. Any other call
  that is lost with its connection fails with UNAVAILABLE: only the caller knows whether it may be repeated.
- From the first call (or ``connect``) until ``close`` the channel reconnects: at once after a connection that worked,
  else after a growing delay. Every attempt resolves the name again and tries every address.
- A server that sends nothing while a call waits for its answer gets a PING. If it does not answer the PING, the
  connection is aborted.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar, Final, TypeAlias

from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from hpack import NeverIndexedHeaderTuple
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IOpenSSLClientConnectionCreator,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import ClientFactory
from twisted.logger import ILogObserver, LogEvent, Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from notary.net.address import join
from notary.net.grpc.connection import GrpcLimits, Http2Connection, describe
from notary.net.grpc.frames import Message, check_answer, check_trailers, encode_timeout, pack
from notary.net.grpc.status import RpcError, Status, of_reset
from notary.net.tls.handshake import HandshakeFactory
from notary.work.backoff import Backoff
from notary.work.reactor import Reactor

_log = Logger()


@implementer(ILogObserver)
def _no_observer(_event: LogEvent) -> None:
    """Write nothing."""


_LAST_CALL: Final = (1 << 31) - 3  # the number of the last stream of a connection
_CLOSED: Final = "the channel is closed"
_CHECK_SECONDS: Final = 1.0
_LIMITS: Final = GrpcLimits(keepalive=20.0, keepalive_answer=5.0, linger=0.5)

_Head: TypeAlias = list[tuple[bytes, bytes]]


class State(Enum):
    """The states of a channel; the names are gRPC's."""

    IDLE = "idle"
    CONNECTING = "connecting"
    READY = "ready"
    TRANSIENT_FAILURE = "transient failure"
    SHUTDOWN = "shutdown"


class _Call:
    """One call, from the caller's request to its answer."""

    __slots__ = ("body", "connection", "deadline", "head", "message", "result", "retried", "sent_at", "stream", "timer")

    def __init__(self, head: _Head, body: bytes, message: Message, deadline: float, result: Deferred[bytes]) -> None:
        self.head = head
        self.body = body
        self.message = message  # the answer
        self.deadline = deadline
        self.result = result
        self.timer: IDelayedCall | None = None
        self.connection: _ClientConnection | None = None  # None while it waits
        self.stream = 0
        self.sent_at = 0.0
        self.retried = False


class _ClientConnection(Http2Connection):
    client_side = True

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel.clock, channel.limits)
        self.channel = channel
        self.calls: dict[int, _Call] = {}
        self.good = False  # it has received an answer
        self.leaving = False  # no more calls begin here
        self._checking: IDelayedCall | None = None

    # -- the transport ------------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Register with the channel, and begin."""
        self.channel.made(self)
        super().connectionMade()
        self._checking = self.clock.callLater(_CHECK_SECONDS, self._check)

    def _settings(self, event: RemoteSettingsChanged) -> None:
        if not self.peer_spoke_http2:
            self.peer_spoke_http2 = True
            self.channel.connected(self)
        else:
            self.channel.fill()
        self.on_window_update(event)

    def _check(self) -> None:
        now = self.clock.seconds()
        self._checking = self.clock.callLater(_CHECK_SECONDS, self._check)
        self.check_deadlines(now)
        if self.closing_since is None and self.peer_spoke_http2 and self.ping_sent_at is None and self.calls:
            oldest = next(iter(self.calls.values())).sent_at
            if now - max(self.last_received_at, oldest) >= self.limits.keepalive:
                self.ping()

    def going_away(self, last_stream: int, code: int, debug: bytes) -> None:
        """Begin no more calls here; calls that the server has not begun go to another connection."""
        if code != ErrorCodes.NO_ERROR and not self.leaving:  # one line, however many GOAWAYs come
            text = debug.decode("utf-8", "replace")
            line = "{name} ends the connection: error {code} {text}"
            self.channel.lines.warn(line, name=self.channel.name, code=code, text=text)
        self.leaving = True
        self.channel.leaving(self)
        for stream in [number for number in self.calls if number > last_stream]:
            call = self.calls.pop(stream, None)
            self.discard_unsent(stream)
            if call is not None:
                self.channel.again(call)
        self._maybe_leave()

    def end_streams(self, reason: str) -> None:
        """Fail the open calls."""
        if self._checking is not None:
            self._checking.reset(self.limits.linger)
        self.channel.leaving(self)
        while self.calls:
            call = self.calls.pop(next(iter(self.calls)))
            self.channel.finish(call, RpcError(Status.UNAVAILABLE, f"{self.channel.name}: {reason}"))

    def lost(self, *, quiet: bool) -> None:  # noqa: ARG002 - the channel knows whether it wanted that
        """Tell the channel."""
        if self._checking is not None:
            self._checking.cancel()
            self._checking = None
        self.channel.lost(self)

    # -- calls --------------------------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """Return True if a call may begin here."""
        return (
            self.closing_since is None
            and not self.leaving
            and len(self.calls) < self._h2.remote_settings.max_concurrent_streams
        )

    def send(self, call: _Call) -> None:
        """Send a request."""
        h2 = self._h2
        stream = call.stream = h2.get_next_available_stream_id()
        now = call.sent_at = self.clock.seconds()
        call.connection = self
        self.calls[stream] = call
        timeout = NeverIndexedHeaderTuple(b"grpc-timeout", encode_timeout(call.deadline - now))
        h2.send_headers(stream, [*call.head, timeout])
        self.send_message(stream, call.body, None)
        if stream >= _LAST_CALL:
            self.leaving = True
            self.channel.leaving(self)
        self.flush_soon()

    def forget(self, call: _Call, *, suspicious: bool) -> None:
        """Cancel a call whose caller no longer waits."""
        del self.calls[call.stream]
        self.reset(call.stream, ErrorCodes.CANCEL)
        if suspicious and self.last_received_at <= call.sent_at and self.ping_sent_at is None:
            self.ping()
        self._after_call()

    def _after_call(self) -> None:
        self.channel.fill()
        self._maybe_leave()

    def leave(self) -> None:
        """Begin no more calls here, and close when the last one has ended."""
        self.leaving = True
        self.channel.leaving(self)
        self._maybe_leave()

    def _maybe_leave(self) -> None:
        if self.leaving and not self.calls:
            self.close("the connection is used up")

    def _finish(self, stream: int, result: bytes | RpcError) -> None:
        call = self.calls.pop(stream)
        self.good = True
        self.earn_budget()
        self.reset(stream, ErrorCodes.CANCEL)  # in case one side has sent all before it received all
        self.channel.finish(call, result)
        self._after_call()

    def _head(self, event: ResponseReceived) -> None:
        call = self.calls.get(event.stream_id)
        if call is None:
            return
        try:
            check_answer(event.headers, ended=event.stream_ended is not None)
        except RpcError as error:
            self._finish(event.stream_id, error)

    def _data(self, event: DataReceived) -> None:
        self.replenish_window(event)
        call = self.calls.get(event.stream_id)
        if call is None:
            return
        try:
            call.message.feed(event.data)
        except RpcError as error:
            self._finish(event.stream_id, error)

    def _trailers(self, event: TrailersReceived) -> None:
        call = self.calls.get(event.stream_id)
        if call is None:
            return
        result: bytes | RpcError
        try:
            check_trailers(event.headers)
            result = call.message.finish()
        except RpcError as error:
            result = error
        self._finish(event.stream_id, result)

    def _ended(self, event: StreamEnded) -> None:
        """Fail a call without a status: an answer with a status is finished before this event."""
        if event.stream_id in self.calls:
            self._finish(event.stream_id, RpcError(Status.UNKNOWN, "the answer ended without a status"))

    def _reset_by_server(self, event: StreamReset) -> None:
        stream = event.stream_id or 0
        self.discard_unsent(stream)
        call = self.calls.get(stream)
        if call is None:
            return
        code = event.error_code or ErrorCodes.NO_ERROR
        if code == ErrorCodes.REFUSED_STREAM:
            del self.calls[stream]
            self.channel.again(call)
            self._after_call()
        else:
            text = f"the server reset the stream ({code.name if isinstance(code, ErrorCodes) else code})"
            self._finish(stream, RpcError(of_reset(code), text))

    on_event: ClassVar[dict[Any, Callable[[Any, Any], None]]] = {
        ResponseReceived: _head,
        DataReceived: _data,
        TrailersReceived: _trailers,
        StreamEnded: _ended,
        StreamReset: _reset_by_server,
        WindowUpdated: Http2Connection.on_window_update,
        RemoteSettingsChanged: _settings,
    }


class _Factory(ClientFactory):
    noisy = False

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def buildProtocol(self, addr: IAddress | None) -> _ClientConnection:  # noqa: ARG002
        return _ClientConnection(self.channel)


class Channel:
    """Calls to one server.

    ``endpoint`` makes the connections, with TLS if ``tls`` is given; ``name`` is the server's host and port, for
    messages and, without ``authority``, for the ``:authority`` of requests. ``chance`` returns a number in [0, 1).
    After ``limits.keepalive`` seconds without a byte while a call is open, the server gets a PING. ``on_ready`` is
    called when a connection can take calls, before calls that wait for one begin. A channel that is ``quiet`` logs
    nothing: another one to the same server does.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        *,
        name: str,
        tls: IOpenSSLClientConnectionCreator | None = None,
        limits: GrpcLimits | None = None,
        backoff: Backoff | None = None,
        chance: Callable[[], float] = random.random,
        authority: str = "",
        on_ready: Callable[[], object] = lambda: None,
        quiet: bool = False,
    ) -> None:
        self.lines = Logger(_log.namespace, observer=_no_observer) if quiet else _log
        self.clock = clock
        self.name = name
        self.limits = limits or _LIMITS
        self.last_error = ""
        """The reason why there is no connection; "" if there is one, or if there was no attempt."""
        self._authority = (authority or name).encode("ascii")
        self._on_ready = on_ready
        self._endpoint = endpoint
        self._tls = tls
        self._backoff = backoff or Backoff()
        self._chance = chance
        self._heads: dict[str, _Head] = {}
        self._waiting: deque[_Call] = deque()
        self._ready: _ClientConnection | None = None  # the connection for new calls
        self._connecting = False
        self._attempt: Deferred[Any] | None = None
        self._connections: dict[_ClientConnection, None] = {}
        self._failures = 0
        self._warned = False  # that the server negotiates no protocol
        self._retry: IDelayedCall | None = None
        self._wanted = False
        self._closed: Deferred[None] | None = None

    @classmethod
    def to(
        cls,
        reactor: Reactor,
        host: str,
        port: int,
        tls: IOpenSSLClientConnectionCreator | None = None,
        *,
        limits: GrpcLimits | None = None,
        backoff: Backoff | None = None,
        authority: str = "",
        chance: Callable[[], float] = random.random,
        on_ready: Callable[[], object] = lambda: None,
        quiet: bool = False,
    ) -> Channel:
        """Return a channel to a TCP port of a host, which is a name or an IP address."""
        limits = limits or _LIMITS
        host = host if host.isascii() else host.encode("idna").decode("ascii")
        name = join(host, port)
        endpoint = HostnameEndpoint(reactor, host, port, timeout=limits.handshake)
        return cls(
            endpoint,
            reactor,
            name=name,
            tls=tls,
            limits=limits,
            backoff=backoff,
            authority=authority,
            chance=chance,
            on_ready=on_ready,
            quiet=quiet,
        )

    # -- for callers --------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state of the channel."""
        if self._closed is not None:
            return State.SHUTDOWN
        if self._ready is not None:
            return State.READY
        if self._retry is not None and self._failures:
            return State.TRANSIENT_FAILURE
        return State.CONNECTING if self._wanted else State.IDLE

    def connect(self) -> None:
        """Connect before the first call."""
        if self._closed is None:
            self._wanted = True
            self._ensure()

    def reconnect(self) -> None:
        """Make another connection for new calls; the present one ends when its calls have ended."""
        ready = self._ready
        if ready is not None:
            ready.good = True  # it ends for no fault of its own
            ready.leave()

    def call(self, path: str, request: bytes, timeout: float) -> Deferred[bytes]:
        """Call a method (``/package.Service/Method``) and return its answer, within ``timeout`` seconds.

        Fails with RpcError. A caller that cancels the Deferred cancels the call, at the server too.
        """
        result: Deferred[bytes] = Deferred(lambda _: self._cancel(call))
        deadline = self.clock.seconds() + timeout
        call = _Call(self._head(path), pack(request), Message(self.limits.message), deadline, result)
        if self._closed is not None:
            self._fail(call, Status.CANCELLED, _CLOSED)
        elif len(request) > self.limits.message:
            text = f"a request of {len(request)} bytes is over the limit of {self.limits.message}"
            self._fail(call, Status.RESOURCE_EXHAUSTED, text)
        elif timeout <= 0:
            self._fail(call, Status.DEADLINE_EXCEEDED, "the deadline has passed")
        else:
            call.timer = self.clock.callLater(timeout, self._expire, call)
            ready = self._ready
            if ready is not None and not self._waiting and ready.has_room():
                ready.send(call)
            else:
                self._waiting.append(call)
                self.connect()
        return result

    def close(self) -> Deferred[None]:
        """Fail all calls with CANCELLED and close; the Deferred fires when no connection is left."""
        if self._closed is None:
            self._closed = Deferred()
            if self._retry is not None:
                self._retry.cancel()
                self._retry = None
            while self._waiting:
                self._fail(self._waiting.popleft(), Status.CANCELLED, _CLOSED)
            if self._connecting and self._attempt is not None:
                self._attempt.cancel()
            for connection in list(self._connections):
                while connection.calls:
                    self._fail(connection.calls.pop(next(iter(connection.calls))), Status.CANCELLED, _CLOSED)
                connection.fail(ErrorCodes.NO_ERROR, _CLOSED)
        result: Deferred[None] = Deferred()
        self._closed.addCallback(lambda _: result.callback(None))
        self._maybe_closed()
        return result

    # -- calls --------------------------------------------------------------------------------------------------------

    def _head(self, path: str) -> _Head:
        found = self._heads.get(path)
        if found is None:
            found = self._heads[path] = [
                (b":method", b"POST"),
                (b":scheme", b"http" if self._tls is None else b"https"),
                (b":path", path.encode("ascii")),
                (b":authority", self._authority),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"user-agent", b"notary-service"),
            ]
        return found

    def fill(self) -> None:
        """Begin as many waiting calls as the connection can take."""
        while self._waiting and self._ready is not None and self._ready.has_room():
            self._ready.send(self._waiting.popleft())

    def again(self, call: _Call) -> None:
        """Send a call again, once: the server has certainly not begun it."""
        if call.retried or self._closed is not None:
            self._fail(call, Status.UNAVAILABLE, f"{self.name} refused the call")
            return
        call.retried = True
        call.connection = None
        self._waiting.append(call)
        self.connect()
        self.fill()

    def finish(self, call: _Call, result: bytes | RpcError) -> None:
        """End a call with its result."""
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        if isinstance(result, bytes):
            call.result.callback(result)
        else:
            call.result.errback(result)

    def _fail(self, call: _Call, status: Status, text: str) -> None:
        self.finish(call, RpcError(status, text))

    def _take_back(self, call: _Call, *, suspicious: bool) -> None:
        """Remove a call from the queue or from its connection."""
        if call.connection is None:
            self._waiting.remove(call)
        else:
            call.connection.forget(call, suspicious=suspicious)

    def _cancel(self, call: _Call) -> None:
        self._take_back(call, suspicious=False)
        self._fail(call, Status.CANCELLED, "the caller cancelled the call")

    def _expire(self, call: _Call) -> None:
        call.timer = None
        if call.connection is not None:
            error = RpcError(Status.DEADLINE_EXCEEDED, f"{self.name} did not answer in time")
        elif self._ready is not None:
            error = RpcError(Status.UNAVAILABLE, f"{self.name} has too many calls open")
        else:
            error = RpcError(Status.UNAVAILABLE, f"no connection to {self.name}: {self.last_error or 'connecting'}")
        self._take_back(call, suspicious=True)
        self.finish(call, error)

    # -- connections --------------------------------------------------------------------------------------------------

    def made(self, connection: _ClientConnection) -> None:
        """Register a new connection, which may still fail."""
        self._connections[connection] = None

    def _ensure(self) -> None:
        """Schedule an attempt to connect if none is under way."""
        if self._ready is None and not self._connecting and self._retry is None:
            self._retry = self.clock.callLater(self._backoff.delay(self._failures, self._chance()), self._connect)

    def _connect(self) -> None:
        self._retry = None
        self._connecting = True
        factory: Any = _Factory(self)
        if self._tls is not None:
            factory = HandshakeFactory(self._tls, factory, self.clock)
        self._attempt = self._endpoint.connect(factory)
        self._attempt.addErrback(self._not_connected)

    def _not_connected(self, failure: Failure) -> None:
        self._attempt_failed(describe(failure))

    def _attempt_failed(self, reason: str) -> None:
        self._connecting = False
        if reason != self.last_error and self._closed is None:
            self.lines.warn("no gRPC connection to {name}: {reason}", name=self.name, reason=reason)
        self.last_error = reason
        self._failures += 1
        if self._closed is None:
            self._ensure()
        else:
            self._maybe_closed()

    def connected(self, connection: _ClientConnection) -> None:
        """Use a connection that can take calls."""
        if self.last_error:
            self.lines.info("connected to {name}", name=self.name)
        if not connection.negotiated and not self._warned:
            self._warned = True
            self.lines.warn(
                "{name} speaks HTTP/2 but does not say so in TLS (ALPN), which what ends TLS in front of it should: "
                "until it does, a wrong port is found out only by its first bytes",
                name=self.name,
            )
        self.last_error = ""
        self._connecting = False
        self._ready = connection
        self._on_ready()
        self.fill()

    def leaving(self, connection: _ClientConnection) -> None:
        """Replace a connection that takes no more calls."""
        if self._ready is connection:
            self._ready = None
            lived = self.clock.seconds() - connection.created_at
            self._failures = 0 if connection.good or lived >= self._backoff.most else self._failures + 1
            if self._closed is None:
                self._ensure()

    def lost(self, connection: _ClientConnection) -> None:
        """Forget a connection that is lost."""
        self._connections.pop(connection, None)
        if not connection.peer_spoke_http2:
            self._attempt_failed(connection.end_reason)
            return
        if connection.end_reason and self._ready is None and self._closed is None:
            self.last_error = connection.end_reason
        self._maybe_closed()

    def _maybe_closed(self) -> None:
        closed = self._closed
        if closed is not None and not closed.called and not self._connecting and not self._connections:
            closed.callback(None)
