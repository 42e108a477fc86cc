"""Records of TLS that carry no data: how many a client may send before its connection ends, in and after the handshake.

Rules of this module: what is counted are records, never seconds. A flood is in the socket whole before it is read, so
that a server which reads on while there is something to read would read all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from notary.net.listen import listen
from notary.net.refusals import RefusalKind
from notary.net.tcp import ReadListener
from notary.net.tls.contexts import server_options
from tests.support.certs import Authority
from tests.support.records import (
    ALERT,
    CHANGE_CIPHER_SPEC,
    DATA,
    HANDSHAKE,
    KEY_UPDATE,
    KEY_UPDATE_ASKED,
    TICKET,
    WARNING,
    Forger,
    plain,
)

OLD, NEW = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION
FLOOD = 1000
ALLOWED = 32
"""Messages between two records of data, the server's included."""


class Sender(Protocol):
    """A client that says what it is given; with a Forger, once the handshake is done."""

    def __init__(self, forger: Forger | None) -> None:
        self.forger = forger
        self.ready: Deferred[None] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self.received = 0

    def connectionMade(self) -> None:
        if self.forger is None:
            self.ready.callback(None)
        else:
            self.transport.write(self.forger.handshake())

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)
        if self.forger is not None and not self.forger.done:
            self.transport.write(self.forger.handshake(data))
            if self.forger.done:
                self.ready.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(None)


class Served(Protocol):
    def connectionMade(self) -> None:
        self.taken: list[bytes] = []
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.taken.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class Listening(ReadListener, Served):
    """One that is told where a read ends; ``shares`` are the records of each."""

    def connectionMade(self) -> None:
        super().connectionMade()
        self.shares: list[int] = []

    def readEnded(self) -> None:
        self.shares.append(len(self.taken) - sum(self.shares))


class World:
    """A port with TLS; ``served`` are its connections, ``refused`` what it refused."""

    def __init__(self, folder: Path, protocol: type[Served] = Served) -> None:
        root = Authority.root("root")
        self.ca = root.write(folder, "root")
        self.options = server_options(*root.leaf("localhost").write(folder, "server"))
        self.refused: list[tuple[str, str]] = []
        self.served: list[Served] = []
        self.protocol = protocol

    def make(self) -> Served:
        self.served.append(self.protocol())
        return self.served[-1]

    async def start(self) -> None:
        self.port = await listen(
            reactor,
            "127.0.0.1",
            0,
            Factory.forProtocol(self.make),
            self.options,
            lambda _, why, message: self.refused.append((why, message)),
        )

    async def sender(self, version: int | None) -> Sender:
        made = Sender(None if version is None else Forger(version, self.ca))
        await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port), made)
        await made.ready
        return made


@pytest_twisted.async_yield_fixture
async def world(tmp_path: Path):
    world = World(tmp_path)
    await world.start()
    with capturedLogs() as lines:
        yield world
    assert [line for line in lines if "log_failure" in line] == []
    await maybeDeferred(world.port.stopListening)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await deferLater(reactor, 0.001)


async def taken(served: Served, count: int) -> list[bytes]:
    await until(lambda: len(served.taken) >= count)
    return served.taken


@pytest.mark.parametrize(
    ("message", "allowed"), [(KEY_UPDATE, ALLOWED), (KEY_UPDATE_ASKED, ALLOWED // 2)], ids=["plain", "asked"]
)
@pytest_twisted.ensureDeferred
async def test_key_updates_are_taken_as_long_as_there_is_data_between_them(
    world: World, message: bytes, allowed: int
) -> None:
    sender = await world.sender(NEW)
    for _ in range(5):
        updates = [sender.forger.record(HANDSHAKE, message) for _ in range(allowed)]
        sender.transport.write(b"".join(updates) + sender.forger.record(DATA, b"data"))
    (served,) = world.served
    assert await taken(served, 5) == [b"data"] * 5
    updates = [sender.forger.record(HANDSHAKE, message) for _ in range(allowed + 1)]
    sender.transport.write(b"".join(updates) + sender.forger.record(DATA, b"late"))
    await sender.ended
    await served.lost
    assert served.taken == [b"data"] * 5
    ((why, text),) = world.refused
    assert (why, "messages and no data" in text) == (RefusalKind.OTHER, True)


def renegotiation(forger: Forger) -> bytes:
    return forger.record(HANDSHAKE, b"\x01\x00\x00\xc8" + bytes(200))


def cut_renegotiation(forger: Forger) -> bytes:
    """A ClientHello of 128 KiB, a byte a record."""
    hello = b"\x01\x01\xff\x00" + bytes(FLOOD)  # the rest does not matter: it would be read, and waited for
    return b"".join(forger.record(HANDSHAKE, hello[place : place + 1]) for place in range(len(hello)))


@pytest.mark.parametrize(
    ("version", "make"),
    [
        pytest.param(NEW, lambda forger: forger.record(HANDSHAKE, KEY_UPDATE), id="key-update"),
        pytest.param(NEW, lambda forger: forger.record(HANDSHAKE, KEY_UPDATE_ASKED), id="key-update-asked"),
        pytest.param(NEW, lambda forger: forger.record(HANDSHAKE, TICKET), id="ticket"),
        pytest.param(NEW, lambda forger: forger.record(HANDSHAKE, KEY_UPDATE[:1]), id="long-message"),
        pytest.param(NEW, lambda forger: forger.record(HANDSHAKE, b""), id="1.3-empty-handshake"),
        pytest.param(NEW, lambda forger: forger.record(DATA, b""), id="1.3-empty-data"),
        pytest.param(NEW, lambda forger: forger.record(ALERT, WARNING), id="1.3-warning"),
        pytest.param(NEW, lambda forger: forger.record(CHANGE_CIPHER_SPEC, b"\x01"), id="1.3-ccs"),
        pytest.param(NEW, lambda _: plain(CHANGE_CIPHER_SPEC, b"\x01"), id="1.3-plain-ccs"),
        pytest.param(OLD, renegotiation, id="renegotiation"),
        pytest.param(OLD, cut_renegotiation, id="renegotiation-in-bytes"),
        pytest.param(OLD, lambda forger: forger.record(HANDSHAKE, bytes(4)), id="hello-request"),
        pytest.param(OLD, lambda forger: forger.record(HANDSHAKE, b"\x14\x00\x00\x0c" + bytes(12)), id="finished"),
        pytest.param(OLD, lambda forger: forger.record(HANDSHAKE, b""), id="1.2-empty-handshake"),
        pytest.param(OLD, lambda forger: forger.record(DATA, b""), id="1.2-empty-data"),
        pytest.param(OLD, lambda forger: forger.record(ALERT, WARNING), id="1.2-warning"),
        pytest.param(OLD, lambda forger: forger.record(CHANGE_CIPHER_SPEC, b"\x01"), id="1.2-ccs"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_no_flood_without_data_is_read_to_its_end(
    world: World, version: int, make: Callable[[Forger], bytes]
) -> None:
    sender = await world.sender(version)
    (served,) = world.served
    sender.transport.write(sender.forger.record(DATA, b"before"))
    await taken(served, 1)
    flood = b"".join(make(sender.forger) for _ in range(FLOOD if make is not cut_renegotiation else 1))
    sender.transport.write(flood + sender.forger.record(DATA, b"after"))
    await sender.ended
    await served.lost
    assert served.taken == [b"before"]


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param([plain(CHANGE_CIPHER_SPEC, b"\x01")] * FLOOD, id="ccs"),
        pytest.param([plain(ALERT, WARNING)] * FLOOD, id="warnings"),
        pytest.param([plain(HANDSHAKE, b"")] * FLOOD, id="empty"),
        pytest.param([plain(HANDSHAKE, b"\x01\x01\xff\x00")] + [plain(HANDSHAKE, b"\x03")] * FLOOD, id="in-bytes"),
        pytest.param([plain(HANDSHAKE, b"\x01\xff\xff\xff\x03\x03")], id="too-long"),
        pytest.param([plain(DATA, b"x")] * FLOOD, id="data"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_no_flood_instead_of_a_handshake_is_read_to_its_end(world: World, flood: list[bytes]) -> None:
    sender = await world.sender(None)
    sender.transport.write(b"".join(flood))
    await sender.ended
    await until(lambda: world.refused)
    assert [why for why, _ in world.refused] == [RefusalKind.OTHER]


@pytest.mark.parametrize("version", [OLD, NEW], ids=["1.2", "1.3"])
@pytest_twisted.ensureDeferred
async def test_a_handshake_may_come_in_pieces_of_any_size(world: World, version: int) -> None:
    forger = Forger(version, world.ca)
    sender = await world.sender(None)
    said = forger.handshake()
    hello = [plain(HANDSHAKE, said[5:][place : place + 48]) for place in range(0, len(said) - 5, 48)]
    sender.forger, sender.ready = forger, Deferred()
    for byte in b"".join(hello):
        sender.transport.write(bytes([byte]))
        await deferLater(reactor, 0)
    await sender.ready
    sender.transport.write(forger.record(DATA, b"data"))
    (served,) = world.served
    assert await taken(served, 1) == [b"data"]
    sender.transport.loseConnection()
    await served.lost
    assert world.refused == []


class Hearer(Sender):
    """A client that collects what it is sent, and says nothing by itself."""

    def connectionMade(self) -> None:
        self.heard = b""
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        self.heard += data


@pytest.mark.parametrize("size", [1, 6, 7, 50, 1 << 14])
@pytest_twisted.ensureDeferred
async def test_data_may_come_with_the_end_of_the_handshake(world: World, size: int) -> None:
    forger, hearer = Forger(NEW, world.ca), Hearer(None)
    await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", world.port.getHost().port), hearer)
    hearer.transport.write(forger.handshake())
    end = b""
    while not forger.done:
        await until(lambda: hearer.heard)
        heard, hearer.heard = hearer.heard, b""
        end += forger.handshake(heard)
    end += forger.record(DATA, b"first") + forger.record(HANDSHAKE, KEY_UPDATE) + forger.record(DATA, b"second")
    for place in range(0, len(end), size):
        hearer.transport.write(end[place : place + size])
        await deferLater(reactor, 0)
    (served,) = world.served
    assert await taken(served, 2) == [b"first", b"second"]
    hearer.transport.loseConnection()
    await served.lost
    assert world.refused == []


@pytest_twisted.ensureDeferred
async def test_small_records_are_read_a_share_at_a_time(tmp_path: Path) -> None:
    world = World(tmp_path, Listening)
    await world.start()
    sender = await world.sender(NEW)
    (served,) = world.served
    sender.transport.write(b"".join(sender.forger.record(DATA, b"x") for _ in range(FLOOD)))
    await taken(served, FLOOD)
    sender.transport.loseConnection()
    await served.lost
    await maybeDeferred(world.port.stopListening)
    assert max(served.shares) <= 128
