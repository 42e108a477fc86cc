"""A site with a toy handler and clients that speak raw bytes, in memory and by a clock of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from zope.interface import directlyProvides

from notary.net.http.site import Call, HttpLimits, Response, Site

LIMITS = HttpLimits(
    body=1000,
    other_body=100,
    request_line=200,
    head=600,
    fields=10,
    head_seconds=10,
    idle_seconds=75,
    body_seconds=30,
    write_seconds=20,
    linger_seconds=5,
)
HOST = b"Host: example.com\r\n"


def edge_error(status: int, message: str) -> Response:
    return Response(status, json.dumps({"error": message}).encode(), (("Content-Type", "application/json"),))


def on_error(error: Exception) -> Response:
    return edge_error(500, f"handler: {error}")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def answers(data: bytes, *, heads: tuple[int, ...] = ()) -> list[Answer]:
    """Split what a server sent; ``heads`` are the positions of answers to HEAD."""
    found: list[Answer] = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, head
        first, *fields = head.decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in fields)}
        assert len(headers) == len(fields)
        length = 0 if len(found) in heads else int(headers.get("content-length", "0"))
        assert len(data) >= length
        found.append(Answer(int(status), headers, data[:length]))
        data = data[length:]
    return found


class Transport(StringTransportWithDisconnection):
    """Remembers what happens to it; with ``tcp`` it can be half closed."""

    def __init__(self, peer=None, *, tcp: bool = False) -> None:
        super().__init__(peerAddress=peer)
        self.write_closed = False
        self.aborted = False
        if tcp:
            directlyProvides(self, ITCPTransport)

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Part of ITCPTransport."""

    def loseWriteConnection(self) -> None:
        self.write_closed = True
        self.protocol.writeConnectionLost()

    def loseConnection(self) -> None:
        super().loseConnection()
        self.producer = None  # as real transports do

    def abortConnection(self) -> None:
        self.aborted = True
        self.loseConnection()


@dataclass
class Server:
    """A site with a clock of its own.

    ``calls`` is what reached the handler, ``events`` what `on_finish` was told, ``faults`` what `on_error` was.
    """

    handler: Callable = lambda _: Response(200, b"hello", (("Content-Type", "text/plain"),))
    limits: HttpLimits = LIMITS
    admit: Callable = lambda _: None
    takes_body: Callable = lambda call: call.method in {"POST", "PATCH"}
    calls: list[Call] = field(default_factory=list)
    events: list[tuple] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    keeps_bodies: bool = True
    clock: Any = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.site = Site(
            self._handle,
            self.clock,
            edge_error=edge_error,
            on_error=self._failed,
            on_finish=self._finished,
            admit=self._admit,
            takes_body=self.takes_body,
            limits=self.limits,
        )

    def _admit(self, call: Call) -> Response | None:
        return self.admit(call)

    def _handle(self, call: Call):
        if self.keeps_bodies:
            self.calls.append(replace(call, body=b"".join(call.body)))  # the body of the call itself is dropped
        return self.handler(call)

    def _failed(self, error: Exception) -> Response:
        self.faults.append(error)
        return on_error(error)

    def _finished(self, call: Call, status: int, sent: int, seconds: float) -> None:
        self.events.append((call.method, call.path, status, sent, seconds))

    def connect(self, address=None, *, tcp: bool = False) -> Peer:
        address = address or IPv4Address("TCP", "192.0.2.1", 1234)
        return Peer(self, address, tcp=tcp)

    def wait(self, seconds: float) -> None:
        """Let time pass second by second."""
        for _ in range(int(seconds)):
            self.clock.advance(1)


class Peer:
    def __init__(self, server: Server, address, *, tcp: bool) -> None:
        self.protocol = server.site.buildProtocol(address)
        self.transport = Transport(address, tcp=tcp)
        self.transport.protocol = self.protocol
        self.protocol.makeConnection(self.transport)

    def send(self, data: bytes, *, piecewise: bool = False) -> Peer:
        for piece in [data[n : n + 1] for n in range(len(data))] if piecewise else [data]:
            if self.transport.connected:
                self.protocol.dataReceived(piece)
        return self

    def end(self) -> Peer:
        self.protocol.readConnectionLost()
        return self

    @property
    def closed(self) -> bool:
        return not self.transport.connected

    @property
    def answers(self) -> list[Answer]:
        return answers(self.transport.value())

    @property
    def answer(self) -> Answer:
        (answer,) = self.answers
        return answer


def get(
    target: bytes = b"/", *fields: bytes, method: bytes = b"GET", version: bytes = b"1.1", body: bytes = b""
) -> bytes:
    lines = b"".join(line + b"\r\n" for line in fields)
    return method + b" " + target + b" HTTP/" + version + b"\r\n" + HOST + lines + b"\r\n" + body


def post(body: bytes, *fields: bytes) -> bytes:
    return get(b"/", b"Content-Length: %d" % len(body), *fields, method=b"POST", body=body)


def chunked(body: bytes, *fields: bytes, method: bytes = b"POST") -> bytes:
    return get(b"/", b"Transfer-Encoding: chunked", *fields, method=method, body=body)


def served() -> Iterator[Server]:
    """The body of a fixture: when the test is over and the clients are gone, no timer of the server may be left."""
    server = Server()
    yield server
    server.clock.advance(1000)
    server.clock.advance(1000)
    assert server.clock.getDelayedCalls() == []


PIECEWISE = pytest.mark.parametrize("piecewise", [pytest.param(False, id="whole"), pytest.param(True, id="bytewise")])
