"""Refusals of the TLS layer: how often they are logged, and what the log says of a stranger's certificate.

What each kind of refusal says is tested where both sides are real: tests/net/grpc/test_interop.py (mutual TLS),
tests/net/tls/test_tls.py (HTTPS), tests/interop/ (the Go programs).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_twisted
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_ASN1, X509, load_certificate
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, capturedLogs
from twisted.python.failure import Failure

from notary.net.listen import listen
from notary.net.refusals import RefusalKind, Refusals, refusal_level
from notary.net.tls.contexts import ClientOptions, client_options, server_options
from notary.net.tls.handshake import HandshakeFactory
from notary.net.tls.verdicts import explain_verify_error
from tests.support.certs import Authority


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines() -> Iterator[list]:
    with capturedLogs() as logs:
        yield logs


def texts(lines: list) -> list[tuple[str, str, str]]:
    return [(event["peer"], event["reason"], event["counted"]) for event in lines]


def test_one_line_a_minute_for_each_kind_and_host(clock: Clock, lines: list) -> None:
    refused = Refusals(Logger(), LogLevel.error, clock.seconds)
    for port in range(1000):
        refused(f"192.0.2.1:{port}", RefusalKind.EXPIRED, "expired")
        refused(f"192.0.2.1:{port}", RefusalKind.PLAINTEXT, "plaintext")
        refused(f"[2001:db8::1]:{port}", RefusalKind.EXPIRED, "expired")
    assert texts(lines) == [
        ("192.0.2.1:0", "expired", ""),
        ("192.0.2.1:0", "plaintext", ""),
        ("[2001:db8::1]:0", "expired", ""),
    ]
    lines.clear()
    clock.advance(Refusals.SECONDS)
    refused("192.0.2.1:1", RefusalKind.EXPIRED, "expired")
    refused("192.0.2.1:2", RefusalKind.EXPIRED, "expired")
    assert texts(lines) == [("192.0.2.1:1", "expired", " (and 999 more like it since the last such line)")]
    assert {event["log_level"] for event in lines} == {LogLevel.error}


def test_a_flood_from_everywhere_fills_neither_log_nor_memory(clock: Clock, lines: list) -> None:
    refused = Refusals(Logger(), LogLevel.info, clock.seconds)
    for number in range(10_000):
        refused(f"10.0.{number >> 8}.{number & 255}:1", RefusalKind.GONE, "gone")
    assert len(lines) == Refusals.MOST_HOSTS + 1
    clock.advance(Refusals.SECONDS)
    lines.clear()
    refused("198.51.100.1:1", RefusalKind.GONE, "gone")
    assert texts(lines) == [("198.51.100.1:1", "gone", "")]


def test_levels() -> None:
    assert refusal_level(mutual=True) is LogLevel.error
    assert refusal_level(mutual=False) is LogLevel.info


def test_a_name_of_a_stranger_is_cut_short() -> None:
    stranger = Authority.root("x" * 64).leaf("y" * 64, *(f"{number}.example" for number in range(1000)))
    failed = explain_verify_error(X509.from_cryptography(stranger.chain[0]), 20, 0, "server.client_ca_file")
    assert failed.kind is RefusalKind.UNKNOWN_ISSUER
    assert len(str(failed)) < 1000


def test_an_error_of_openssl_that_has_no_words_of_ours_is_named_by_its_number() -> None:
    leaf = Authority.root("root").leaf("client")
    assert "OpenSSL's verification error 43;" in str(
        explain_verify_error(X509.from_cryptography(leaf.chain[0]), 43, 0, "here")
    )


def test_a_certificate_that_only_openssl_reads_is_described_all_the_same() -> None:
    """A T61String in Latin-1, which is no UTF-8, in the places of the names."""
    leaf = Authority.root("root").leaf("AAAAAAAA")
    der = leaf.chain[0].public_bytes(Encoding.DER).replace(b"\x0c\x08AAAAAAAA", b"\x14\x08\xe9\n AAAAA")
    certificate = load_certificate(FILETYPE_ASN1, der)
    for number, why in (
        (20, RefusalKind.UNKNOWN_ISSUER),
        (10, RefusalKind.EXPIRED),
        (9, RefusalKind.NOT_YET_VALID),
        (7, RefusalKind.BAD_CERTIFICATE),
    ):
        failed = explain_verify_error(certificate, number, 0, "server.client_ca_file")
        assert failed.kind is why
        assert "AAAAA, issued by CN=root)" in str(failed)
        assert str(failed).isprintable()
        assert "cannot be read" not in str(failed)


# -- over loopback ----------------------------------------------------------------------------------------------------


class Silent(Protocol):
    """Says ``said``, closes if told to, and remembers how it ended."""

    def __init__(self, said: bytes = b"", *, close: bool = False) -> None:
        self.said = said
        self.close = close
        self.ended: Deferred[BaseException] = Deferred()

    def connectionMade(self) -> None:
        if self.said:
            self.transport.write(self.said)
        if self.close:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(reason.value)


class World:
    """A port with mutual TLS; ``refused`` is what it refused."""

    def __init__(self, folder: Path) -> None:
        self.root = Authority.root("root")
        self.folder = folder
        self.ca = self.root.write(folder, "root")
        self.refused: list[tuple[str, str]] = []
        self.heard: Deferred[None] = Deferred()

    async def start(self):
        options = server_options(*self.root.leaf("localhost").write(self.folder, "server"), self.ca)
        return await listen(reactor, "127.0.0.1", 0, Factory.forProtocol(Silent), options, self.refuse)

    def refuse(self, peer: str, why: str, message: str) -> None:
        assert peer.startswith("127.0.0.1:")
        self.refused.append((why, message))
        self.heard.callback(None)


@pytest_twisted.async_yield_fixture
async def world(tmp_path: Path):
    world = World(tmp_path)
    port = await world.start()
    world.number = port.getHost().port
    yield world
    await port.stopListening()


HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00"


@pytest.mark.parametrize(
    ("said", "why", "message"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", RefusalKind.PLAINTEXT, "its first byte is 0x47", id="plaintext"),
        pytest.param(HALF_A_HELLO, RefusalKind.GONE, "in the middle of the TLS handshake", id="gone"),
        pytest.param(b"\x16\x03\x01\x00\x04\xff\xff\xff\xff", RefusalKind.OTHER, "TLS: ", id="noise"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_handshake(world: World, said: bytes, why: RefusalKind, message: str) -> None:
    client = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", world.number), Silent(said, close=True))
    await client.ended
    await world.heard
    ((told, text),) = world.refused
    assert told == why
    assert message in text


@pytest_twisted.ensureDeferred
async def test_a_probe_that_says_nothing_is_no_refusal(world: World) -> None:
    client = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", world.number), Silent(close=True))
    await client.ended
    # The port takes connections in turn: when this one has been refused, the probe has been seen.
    await (
        await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", world.number), Silent(b"x", close=True))
    ).ended
    await world.heard
    assert [why for why, _ in world.refused] == [RefusalKind.PLAINTEXT]


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])
@pytest.mark.parametrize(
    ("shown", "why"),
    [
        pytest.param("stranger", RefusalKind.UNKNOWN_ISSUER, id="stranger"),
        pytest.param("late", RefusalKind.EXPIRED, id="expired"),
        pytest.param("early", RefusalKind.NOT_YET_VALID, id="not-yet-valid"),
        pytest.param(None, RefusalKind.NO_CERTIFICATE, id="none"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_both_versions_of_tls(world: World, shown: str | None, why: RefusalKind, version: int) -> None:
    hour = timedelta(hours=1)
    leaves = {
        "stranger": lambda: Authority.root("stranger").leaf("client"),
        "late": lambda: world.root.leaf("client", ends=-hour),
        "early": lambda: world.root.leaf("client", starts=hour),
    }
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(version)
    context.load_verify_locations(str(world.ca))
    if shown is not None:
        certificate, key = leaves[shown]().write(world.folder, "client")
        context.use_certificate_file(str(certificate))
        context.use_privatekey_file(str(key))
    client = Silent()
    factory = HandshakeFactory(ClientOptions(context, "localhost"), Factory.forProtocol(lambda: client), reactor)
    await TCP4ClientEndpoint(reactor, "127.0.0.1", world.number).connect(factory)
    told = await client.ended
    await world.heard
    assert [each for each, _ in world.refused] == [why]
    assert told.kind in (RefusalKind.OURS_REFUSED, RefusalKind.NO_CERTIFICATE, RefusalKind.PROTOCOL)


@pytest_twisted.ensureDeferred
async def test_a_client_that_refuses_our_name_says_so(world: World) -> None:
    client = Silent()
    options = client_options("elsewhere", world.ca)
    factory = HandshakeFactory(options, Factory.forProtocol(lambda: client), reactor)
    await TCP4ClientEndpoint(reactor, "127.0.0.1", world.number).connect(factory)
    told = await client.ended
    await world.heard
    assert (told.kind, world.refused[0][0]) == (RefusalKind.WRONG_NAME, RefusalKind.OURS_REFUSED)
    assert "is for localhost and not for elsewhere" in str(told)
    assert "a name which our certificate (CN=localhost, for localhost, issued by CN=root) lacks" in world.refused[0][1]
