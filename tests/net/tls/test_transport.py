"""Connections to a server, plain and with TLS: order, pauses, the end. Refusals are in test_handshake.py."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from notary.net.listen import adopt, listen
from notary.net.tcp import ReadListener
from notary.net.tls.contexts import ClientOptions, client_options, server_options
from notary.net.tls.transport import SecureServer
from tests.support.certs import Authority, Leaf
from tests.support.tlsclient import connected


class World(NamedTuple):
    """A server's certificate with its key, and the authority that its clients trust."""

    pair: tuple[Path, Path]
    ca: Path


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = Authority.root("root")
    return World(root.leaf("localhost").write(tmp_path, "server"), root.write(tmp_path, "root"))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest_twisted.ensureDeferred
async def test_writes_keep_their_order_whatever_the_socket_takes(world: World, tls: bool) -> None:
    """Some are sent at once, some in part, some wait for the reactor."""
    pieces = [bytes([n % 256]) * (n * 997 % 200_000) for n in range(150)]

    class Writer(Protocol):
        def connectionMade(self) -> None:
            self.write_from(0)

        def write_from(self, position: int) -> None:
            for piece in pieces[position : position + 10]:
                self.transport.write(piece)
            if position < len(pieces):
                reactor.callLater(0, self.write_from, position + 10)
            else:
                self.transport.loseConnection()

    server, options = (server_options(*world.pair), client_options("localhost", world.ca)) if tls else (None, None)
    port = await listen(reactor, "127.0.0.1", 0, Factory.forProtocol(Writer), server)
    client = await connected(port.getHost().port, options)
    (reason,) = await client.done
    await maybeDeferred(port.stopListening)
    assert client.received == b"".join(pieces)
    assert type(reason) is ConnectionDone


@pytest.mark.parametrize("passed", [False, True], ids=["our own socket", "a socket that was passed"])
@pytest_twisted.ensureDeferred
async def test_no_connection_waits_for_acknowledgements(passed: bool) -> None:
    made: Deferred[int] = Deferred()

    class Asked(Protocol):
        def connectionMade(self) -> None:
            made.callback(self.transport.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        if passed:
            port = adopt(reactor, listening, Factory.forProtocol(Asked))
        else:
            port = await listen(reactor, "127.0.0.1", 0, Factory.forProtocol(Asked))
        client = await connected(port.getHost().port, None)
        assert await made == 1
        client.transport.loseConnection()
        await client.done
        await maybeDeferred(port.stopListening)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest_twisted.ensureDeferred
async def test_writing_to_a_client_that_is_gone_ends_the_connection(world: World, tls: bool) -> None:
    ended: Deferred[None] = Deferred()

    class Writer(Protocol):
        def connectionMade(self) -> None:
            self.write()

        def write(self) -> None:
            if self.connected:
                self.transport.write(b"x")
                reactor.callLater(0, self.write)

        def connectionLost(self, reason: Failure = connectionDone) -> None:
            self.connected = 0
            self.transport.write(b"too late")
            ended.callback(None)

    server, options = (server_options(*world.pair), client_options("localhost", world.ca)) if tls else (None, None)
    port = await listen(reactor, "127.0.0.1", 0, Factory.forProtocol(Writer), server)
    client = await connected(port.getHost().port, options)
    if tls:
        client.transport.write(b"x")
        while not client.received:
            await deferLater(reactor, 0)
    client.transport.abortConnection()
    await ended
    await client.done
    await maybeDeferred(port.stopListening)


class Listener(ReadListener):
    """Notes what comes, and whether more of the same read may come."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def dataReceived(self, data: bytes) -> None:
        self.seen.append((data, self.reading))

    def readEnded(self) -> None:
        self.seen.append(self.reading)


@pytest_twisted.ensureDeferred
async def test_a_protocol_learns_when_a_read_has_ended_however_many_records_it_was(world: World) -> None:
    listener = Listener()
    factory = Factory.forProtocol(lambda: listener)
    port = await listen(reactor, "127.0.0.1", 0, factory, server_options(*world.pair))
    client = await connected(port.getHost().port, client_options("localhost", world.ca))
    client.transport.write(b"first")
    while not listener.seen:
        await deferLater(reactor, 0)
    assert listener.seen == [(b"first", True), False]
    listener.seen.clear()
    tls, below = client.transport.getHandle(), client.transport.transport
    for record in (b"a", b"b", b"c"):
        tls.send(record)
    records = tls.bio_read(1 << 16)
    for part in (records[:-1], records[-1:]):
        before = len(listener.seen)
        below.write(part)
        while len(listener.seen) == before:
            await deferLater(reactor, 0)
    seen = listener.seen.copy()
    client.transport.loseConnection()
    await client.done
    await maybeDeferred(port.stopListening)
    assert seen == [(b"a", True), (b"b", True), False, (b"c", True), False]


class Reader(Protocol):
    """Takes what comes; stops after each ``pause`` bytes until it is told to go on."""

    def __init__(self, pause: int) -> None:
        self.pause = pause
        self.taken = bytearray()
        self.pauses = 0
        self.ended: Deferred[BaseException] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        assert self.pauses * self.pause <= len(self.taken), "nothing comes to who has paused"
        self.taken += data
        if len(self.taken) // self.pause > self.pauses:
            self.pauses = len(self.taken) // self.pause
            self.transport.pauseProducing()
            reactor.callLater(0.001, self.transport.resumeProducing)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(reason.value)


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])
@pytest_twisted.ensureDeferred
async def test_all_that_a_client_says_comes_in_order_and_then_its_goodbye(world: World, version: int) -> None:
    reader = Reader(100_000)
    port = await listen(reactor, "127.0.0.1", 0, Factory.forProtocol(lambda: reader), server_options(*world.pair))
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(version)
    context.load_verify_locations(str(world.ca))
    client = await connected(port.getHost().port, ClientOptions(context, "localhost"))
    pieces = [bytes([n % 256]) * (n * 997 % 60_000) for n in range(80)]
    for piece in pieces:
        client.transport.write(piece)
    client.transport.loseConnection()
    reason = await reader.ended
    await client.done
    await maybeDeferred(port.stopListening)
    assert bytes(reader.taken) == b"".join(pieces)
    assert reader.pauses > 10
    assert type(reason) is ConnectionDone


@pytest_twisted.ensureDeferred
async def test_what_is_written_before_the_handshake_is_done_goes_out_after_it(world: World) -> None:
    class Early(Protocol):
        def connectionMade(self) -> None:
            self.transport.write(b"early ")
            self.transport.write(b"bird")
            self.transport.loseConnection()

    port = await listen(reactor, "127.0.0.1", 0, Factory.forProtocol(Early), server_options(*world.pair))
    client = await connected(port.getHost().port, client_options("localhost", world.ca))
    (reason,) = await client.done
    await maybeDeferred(port.stopListening)
    assert client.received == b"early bird"
    assert type(reason) is ConnectionDone


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_our_half_of_the_handshake_is_not_read_either(tmp_path: Path) -> None:
    """What it sends meanwhile would have the reactor ask again and again."""
    root = Authority.root("root")
    leaf, ca = root.leaf("localhost"), root.write(tmp_path, "root")
    long = Leaf(leaf.key, (*leaf.chain, *(root.leaf(f"more-{n}").chain[0] for n in range(100))))
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        port = adopt(reactor, listening, Factory.forProtocol(Protocol), server_options(*long.write(tmp_path, "long")))
        client.connect(listening.getsockname())
        client.setblocking(False)
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.load_verify_locations(str(ca))
        tls = SSL.Connection(context)
        tls.set_connect_state()
        with pytest.raises(SSL.WantReadError):
            tls.do_handshake()
        client.sendall(tls.bio_read(1 << 16) + b"more")
        while not (waiting := [each for each in reactor.getWriters() if isinstance(each, SecureServer)]):
            await deferLater(reactor, 0)
        assert waiting[0] not in reactor.getReaders()
        heard = 0
        while waiting[0] not in reactor.getReaders():
            with contextlib.suppress(BlockingIOError):
                heard += len(client.recv(1 << 16))
            await deferLater(reactor, 0)
        assert heard > 0
        waiting[0].abortConnection()
        await maybeDeferred(port.stopListening)
