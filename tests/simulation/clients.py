"""HTTP clients of the simulated servers.

Rules of this module: a client sends one request at a time on each of its connections, and knows of each answer when its
request was sent and when the answer was complete.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import ClientFactory, Protocol
from zope.interface import implementer

from tests.simulation.cluster import HTTP_PORT, Cluster

PATIENCE_SECONDS = 25.0
"""How long a client waits for an answer."""

IDLE_SECONDS = 6.0
"""How long after a request a server keeps its connection, at least."""


@dataclass
class Answer:
    """An answer. ``status`` is 0 if there was none; then ``body`` says why."""

    status: int
    body: bytes
    headers: dict[str, str]
    began: float
    ended: float
    gave_up: bool = False
    """True if the client did not wait any longer."""
    is_odd: bool = False
    """True if the client sent its request in pieces, or left before the answer."""
    is_raced: bool = False
    """True if the server may have closed the connection, which was idle, before the request came."""
    server: str = ""
    request: str = ""
    """The method and the path."""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


@implementer(IHalfCloseableProtocol)
class Connection(Protocol):
    """One connection of a client."""

    def __init__(self, client: Client, server: str) -> None:
        self.client = client
        self.server = server
        self.waiting: Deferred[Answer] | None = None
        self.began = client.cluster.world.now
        self.is_raced = False
        self.method = ""
        self.timer: Any = None
        self.is_odd = False
        self._data = bytearray()
        self.is_lost = False

    def connectionMade(self) -> None:
        self.client.connections[self.server] = self

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Deferred[Answer]:
        world = self.client.cluster.world
        self.waiting = Deferred()
        self.is_raced = world.now > self.began + IDLE_SECONDS
        self.began, self.method, self.is_odd = world.now, method, False
        fields = {"Host": "notary", **headers}
        if body or method == "POST":
            fields["Content-Length"] = str(len(body))
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {text}\r\n" for name, text in fields.items())
        random = self.client.random
        self.timer = self.client.reactor.callLater(PATIENCE_SECONDS, self._give_up)
        data, rest = head.encode() + b"\r\n" + body, b""
        if not self.client.calm and random.random() < 0.1:
            middle = random.randrange(len(data))
            data, rest = data[:middle], data[middle:]
            self.is_odd = True
            self.client.reactor.callLater(random.expovariate(10), self._rest, self.waiting, rest)
        self.transport.write(data)
        if not self.client.calm and random.random() < (0.2 if len(rest) else 0.03):
            self.client.reactor.callLater(random.expovariate(50), self._vanish, self.waiting)
        return self.waiting

    def _rest(self, waiting: Deferred[Answer], data: bytes) -> None:
        if self.waiting is waiting and not self.is_lost:
            self.transport.write(data)

    def _vanish(self, waiting: Deferred[Answer]) -> None:
        """Leave before the answer, in one of the ways in which clients do."""
        if self.waiting is waiting and not self.is_lost:
            self.is_odd = True
            if self.client.random.random() < 0.5:
                self.transport.abortConnection()
            else:
                self._forget()
                self.transport.loseWriteConnection()

    def _give_up(self) -> None:
        self.timer = None
        self.transport.abortConnection()
        self._end(0, b"no answer in time", gave_up=True)

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        lines = self._data[:end].decode().split("\r\n")
        headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines[1:])}
        status = int(lines[0].split(" ")[1])
        size = 0 if self.method == "HEAD" or status == 304 else int(headers.get("content-length", "0"))
        if len(self._data) < end + 4 + size:
            return
        body = bytes(self._data[end + 4 : end + 4 + size])
        del self._data[: end + 4 + size]
        if self.waiting is None:
            if status != 408 or self._data:
                self.client.cluster.leftovers.append(f"an answer that was not asked for: {status} {body!r}")
            self.transport.loseConnection()
            return
        if headers.get("connection", "").lower() == "close":
            self._forget()
            self.transport.loseConnection()
        self._end(status, body, headers)

    def _end(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, gave_up: bool = False) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            now = self.client.cluster.world.now
            waiting.callback(Answer(status, body, headers or {}, self.began, now, gave_up, self.is_odd, self.is_raced))

    def _forget(self) -> None:
        if self.client.connections.get(self.server) is self:
            del self.client.connections[self.server]

    def readConnectionLost(self) -> None:
        self._forget()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Any = None) -> None:
        self.is_lost = True
        self._forget()
        self._end(0, b"the connection was lost")


class _Factory(ClientFactory):
    noisy = False

    def __init__(self, client: Client, server: str, connected: Deferred[Connection | None]) -> None:
        self._client = client
        self._server = server
        self._connected = connected

    def buildProtocol(self, addr: Any) -> Connection:
        made = Connection(self._client, self._server)
        self._client.reactor.callLater(0, self._connected.callback, made)
        return made

    def clientConnectionFailed(self, connector: Any, reason: Any) -> None:
        self._connected.callback(None)


class Client:
    """One client with a connection to each server."""

    def __init__(self, cluster: Cluster, reactor: Any, name: str) -> None:
        self.cluster = cluster
        self.reactor = reactor
        self.name = name
        self.random = cluster.world.random(f"client/{name}")
        self.connections: dict[str, Connection] = {}
        self.asked = 0
        self.calm = False
        """True if the client sends whole requests and waits for each answer."""

    async def ask(
        self, server: str, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        """Ask a server; the answer says so if there is none."""
        world = self.cluster.world
        self.asked += 1
        found = self.connections.get(server)
        began = world.now
        if found is None or found.is_lost or found.waiting is not None:
            connected: Deferred[Connection | None] = Deferred()
            self.reactor.connectTCP(server, HTTP_PORT, _Factory(self, server, connected), 10)
            found = await connected
        if found is None or found.is_lost:
            answer = Answer(0, b"cannot connect", {}, began, world.now)
        else:
            answer = await found.ask(method, path, headers or {}, body)
        answer.server, answer.request = server, f"{method} {path}"
        world.tell(f"{self.name} {server} {answer.request} {answer.status} {len(answer.body)}")
        return answer

    def close(self) -> None:
        for connection in list(self.connections.values()):
            if not connection.is_lost:
                connection.transport.loseConnection()
