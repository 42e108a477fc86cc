"""Peers for gRPC in memory: h2 driven by hand on one side, ours on the other, time by a clock.

client = RawClient(factory, clock)          # against our server
service = Service(); service.client()       # the same, with a few methods
memory = Memory(clock, factory)             # an endpoint for our channel, with our server behind it
memory = Memory(clock, RawServer)           # the same, with a server that a test drives
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, Event, ResponseReceived, StreamReset, TrailersReceived
from h2.settings import SettingCodes, Settings
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump
from zope.interface import implementer

from notary.net.grpc import Context, GrpcFactory, GrpcLimits, Peer, RpcError, Status

HEAD = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/test.Echo/Echo"),
    (":authority", "test"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
PEER = IPv4Address("TCP", "127.0.0.1", 4321)


def packed(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def with_headers(**changes: str | None) -> list[tuple[str, str]]:
    """HEAD with some values changed, added, or removed (None); "_" stands for "-", and "__" for ":"."""
    head = dict(HEAD)
    for name, value in changes.items():
        key = name.replace("__", ":").replace("_", "-")
        if value is None:
            del head[key]
        else:
            head[key] = value
    return list(head.items())


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


class RawClient:
    """A client's connection to our server. ``events`` is all that came; nothing is checked on the way out.

    One that is ``mute`` says only what it is fed.
    """

    def __init__(
        self,
        factory: GrpcFactory,
        clock: Clock,
        *,
        settings: dict[SettingCodes, int] | None = None,
        mute: bool = False,
    ) -> None:
        self.mute = mute
        self.clock = clock
        self.transport = StringTransportWithDisconnection(peerAddress=PEER)
        self.protocol = factory.buildProtocol(PEER)
        self.transport.protocol = self.protocol
        self.protocol.makeConnection(self.transport)
        config = H2Configuration(
            client_side=True,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = H2Connection(config)
        if settings:
            self.h2.local_settings = Settings(client=True, initial_values=settings)
        self.h2.initiate_connection()
        self.events: list[Event] = []

    def feed(self, data: bytes = b"", *, step: int | None = None) -> None:
        """Send what h2 has to say, and ``data``, in pieces of ``step`` bytes; then take the answer."""
        data = data if self.mute else self.h2.data_to_send() + data
        for position in range(0, len(data), step or len(data) or 1):
            if not self.transport.connected:
                break
            self.protocol.dataReceived(data[position : position + (step or len(data))])
        self.take()

    def take(self, seconds: float = 0) -> None:
        """Let time pass; take what our side says, and answer to what h2 answers to."""
        self.clock.advance(seconds)
        while self.transport.value():
            data = self.transport.value()
            self.transport.clear()
            self.events += self.h2.receive_data(data)
            said = self.h2.data_to_send()
            if said and self.transport.connected and not self.mute:
                self.protocol.dataReceived(said)
            self.clock.advance(0)

    def request(
        self, body: bytes | None = None, head: Iterable[tuple[str, str]] = HEAD, *, end: bool = True, say: bool = True
    ) -> int:
        """Begin a call; returns its stream. Without ``say``, h2 keeps it for the next ``feed``."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, list(head), end_stream=body is None and end)
        if body is not None:
            self.h2.send_data(stream, body, end_stream=end)
        if say:
            self.feed()
        return stream

    def headers(self, stream: int) -> list[tuple[str, str]]:
        """The head of an answer."""
        (found,) = (e.headers for e in self.events if isinstance(e, ResponseReceived) and e.stream_id == stream)
        return found

    def data(self, stream: int) -> bytes:
        return b"".join(e.data for e in self.events if isinstance(e, DataReceived) and e.stream_id == stream)

    def trailers(self, stream: int) -> dict[str, str]:
        """What ended a call: its trailers, or its head if that was all."""
        found = [e.headers for e in self.events if isinstance(e, TrailersReceived) and e.stream_id == stream]
        return dict(found[0] if found else self.headers(stream))

    def status(self, stream: int) -> int:
        return int(self.trailers(stream)["grpc-status"])

    def reset_code(self, stream: int) -> ErrorCodes | int | None:
        """The code that a stream was reset with, None if it was not."""
        codes = [e.error_code for e in self.events if isinstance(e, StreamReset) and e.stream_id == stream]
        return codes[0] if codes else None

    @property
    def goaway(self) -> ConnectionTerminated | None:
        return next((e for e in self.events if isinstance(e, ConnectionTerminated)), None)

    @property
    def connected(self) -> bool:
        return self.transport.connected


class RawServer(Protocol):
    """A server that does what a test tells it. ``requests`` are the streams that are complete."""

    def __init__(self) -> None:
        self.h2 = H2Connection(
            H2Configuration(client_side=False, validate_outbound_headers=False, normalize_outbound_headers=False)
        )
        self.requests: list[int] = []
        self.events: list[Event] = []
        self.silent = False
        self.gives_room = True
        self.lost = False

    def connectionMade(self) -> None:
        self.h2.initiate_connection()
        self.say()

    def dataReceived(self, data: bytes) -> None:
        if self.silent:
            return
        events = self.h2.receive_data(data)
        self.events += events
        for event in events:
            if type(event).__name__ == "StreamEnded":
                self.requests.append(event.stream_id)
            if isinstance(event, DataReceived) and self.gives_room:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self.say()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True

    def say(self, data: bytes = b"") -> None:
        self.transport.write(self.h2.data_to_send() + data)

    def answer(self, stream: int, message: bytes, status: str = "0") -> None:
        self.h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        self.h2.send_data(stream, packed(message))
        self.h2.send_headers(stream, [("grpc-status", status)], end_stream=True)
        self.say()


@implementer(IStreamClientEndpoint)
class Memory:
    """Connects a channel to servers in memory. ``fail`` is how many attempts are refused first, None for all."""

    def __init__(self, clock: Clock, server: Callable[[], Protocol] | GrpcFactory, *, fail: int | None = 0) -> None:
        self.clock = clock
        self.server = server
        self.fail = fail
        self.attempts: list[float] = []
        self.pumps: list[IOPump] = []
        self.servers: list[Any] = []
        self.clients: list[Any] = []

    def connect(self, factory: Factory) -> Deferred[Any]:
        self.attempts.append(self.clock.seconds())
        if self.fail is None or self.fail > 0:
            self.fail = None if self.fail is None else self.fail - 1
            return fail(Refused("nobody listens"))
        client = factory.buildProtocol(PEER)
        server = self.server.buildProtocol(PEER) if isinstance(self.server, GrpcFactory) else self.server()
        if server is None:
            return fail(Refused("it stops"))
        ends = FakeTransport(client, isServer=False), FakeTransport(server, isServer=True)
        self.pumps.append(IOPump(client, server, *ends, debug=False, clock=self.clock))
        self.clients.append(client)
        self.servers.append(server)
        server.makeConnection(ends[1])
        client.makeConnection(ends[0])
        return succeed(client)

    def settle(self, seconds: float = 0) -> None:
        """Let time pass, in small steps, and everything be said."""
        steps = max(1, round(seconds * 4))
        for _ in range(steps):
            self.clock.advance(seconds / steps)
            while any([pump.flush() for pump in list(self.pumps)]):  # noqa: C419 - all of them, each time
                pass

    def lose(self) -> None:
        """Break the newest connection."""
        pump = self.pumps[-1]
        pump.serverIO.loseConnection()
        self.settle()


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = frame(4, 0, 0)
SMALL = GrpcLimits(message=1000, buffered=3000, streams=4, resets=5, resets_per_second=1, controls=20)


class Service:
    """Our server with the methods that tests call, and all that its hooks heard."""

    def __init__(self, limits: GrpcLimits | None = None) -> None:
        self.clock = Clock()
        self.pending: list[Deferred[bytes]] = []
        self.cancelled = 0
        self.contexts: list[Context] = []
        self.finished: list[tuple[str, Status, float, Peer]] = []
        self.errors: list[tuple[str, Failure]] = []
        methods = {
            "/test.Echo/Echo": self.echo,
            "/test.Echo/Wait": self.wait,
            "/test.Echo/Async": self.through,
            "/test.Echo/Refuse": self.refuse,
            "/test.Echo/Fault": self.fault,
            "/test.Echo/Large": lambda request, _: bytes(int(request)),
        }
        self.factory = GrpcFactory(
            methods,
            self.clock,
            limits=limits,
            on_finish=lambda *call: self.finished.append(call),
            on_error=lambda path, failure: self.errors.append((path, failure)),
        )
        self.clients: list[RawClient] = []

    def echo(self, request: bytes, context: Context) -> bytes:
        self.contexts.append(context)
        return request

    def wait(self, _request: bytes, context: Context) -> Deferred[bytes]:
        self.contexts.append(context)

        def cancelled(_: Deferred[bytes]) -> None:
            self.cancelled += 1

        self.pending.append(Deferred(cancelled))
        return self.pending[-1]

    async def through(self, request: bytes, context: Context) -> bytes:
        return request + await self.wait(request, context)

    def refuse(self, request: bytes, _context: Context) -> bytes:
        raise RpcError(Status.NOT_FOUND, request.decode())

    def fault(self, _request: bytes, _context: Context) -> bytes:
        raise ZeroDivisionError("the secret")

    def client(self, settings: dict[SettingCodes, int] | None = None) -> RawClient:
        made = RawClient(self.factory, self.clock, settings=settings)
        made.feed()
        self.clients.append(made)
        return made

    @property
    def statuses(self) -> list[Status]:
        return [status for _, status, _, _ in self.finished]


def path(name: str) -> list[tuple[str, str]]:
    """The head of a request to a method of Service."""
    return with_headers(__path=f"/test.Echo/{name}")
