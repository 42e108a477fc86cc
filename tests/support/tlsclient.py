"""A client of TLS, or of plain TCP, that collects what it receives."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from notary.net.tls.handshake import HandshakeFactory


class Client(Protocol):
    """Collects what it receives; ``done`` gives the reason why the connection ended."""

    def __init__(self) -> None:
        self.received = b""
        self.done: Deferred[list[BaseException]] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.done.callback([reason.value])


async def connected(port: int, options=None, host: str = "127.0.0.1") -> Client:
    endpoint = (TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint)(reactor, host, port)
    client = Client()
    factory = Factory.forProtocol(lambda: client)
    if options is not None:
        factory = HandshakeFactory(options, factory, reactor)
    await endpoint.connect(factory)
    return client
