"""TLS over loopback with certificates that the tests mint, the files that must not be taken, and listening."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_twisted
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import globalLogPublisher

from notary.config.files import SERVER_TLS, SIGNER_CLIENT_TLS
from notary.errors import ConfigError
from notary.net.http.site import Call, HttpLimits, Response, Site
from notary.net.listen import listen
from notary.net.refusals import HandshakeFailed, RefusalKind
from notary.net.tls.contexts import GRPC, ClientOptions, client_options, server_context, server_options
from notary.net.tls.wording import Wording
from tests.support.certs import DAY, Authority, Leaf, key_pem, pem
from tests.support.tlsclient import connected


@dataclass
class World:
    """A folder with a chain (root, middle, leaf), a second one nobody trusts, and what was served."""

    folder: Path
    root: Authority
    middle: Authority
    server: Leaf
    stranger: Authority

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    @property
    def ca(self) -> Path:
        return self.root.write(self.folder, "root")

    @property
    def pair(self) -> tuple[Path, Path]:
        return self.server.write(self.folder, "server")


@pytest.fixture(scope="session")
def chain() -> tuple[Authority, Authority, Leaf, Authority]:
    root = Authority.root("root")
    middle = root.intermediate("middle")
    return root, middle, middle.leaf("localhost", "127.0.0.1", "::1"), Authority.root("stranger")


@pytest.fixture
def world(tmp_path: Path, chain) -> World:
    return World(tmp_path, *chain)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    seen: list[str] = []

    def observe(event: dict) -> None:
        if event["log_level"].name == "warn":
            seen.append(event["log_format"].format(**event))

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def serve() -> Iterator[Callable]:
    """Starts a site on a port of its own; stops all of them in the end."""
    started = []

    async def start(
        handler=lambda _: Response(200, b"hello"), tls=None, host="127.0.0.1", limits: HttpLimits | None = None
    ):
        def edge_error(status: int, message: str) -> Response:
            return Response(status, message.encode())

        site = Site(
            handler,
            reactor,
            edge_error=edge_error,
            on_error=lambda error: edge_error(500, repr(error)),
            on_finish=lambda *_: None,
            limits=limits or HttpLimits(),
        )
        port = await listen(reactor, host, 0, site, tls)
        started.append((site, port))
        return port.getHost().port

    yield start
    for site, port in started:
        pytest_twisted.blockon(maybeDeferred(port.stopListening))
        pytest_twisted.blockon(Deferred.fromCoroutine(site.stop(2)))


async def ask(port: int, options=None, host: str = "127.0.0.1") -> tuple[bytes, BaseException]:
    """What a server answers, and how the connection ends."""
    client = await connected(port, options, host)
    client.transport.write(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    (reason,) = await client.done
    return client.received.partition(b"\r\n\r\n")[2], reason


# -- the server's side ------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_https(world: World, serve) -> None:
    calls: list[Call] = []

    def handler(call: Call) -> Response:
        calls.append(call)
        return Response(200, b"hello")

    port = await serve(handler, server_options(*world.pair))
    assert (await ask(port, client_options("localhost", world.ca)))[0] == b"hello"
    assert calls[0].secure
    assert calls[0].remote.startswith("127.0.0.1:")


@pytest_twisted.ensureDeferred
async def test_plain_http_is_not_secure(serve) -> None:
    calls: list[Call] = []
    port = await serve(lambda call: calls.append(call) or Response(200, b"hello"))
    assert (await ask(port))[0] == b"hello"
    assert not calls[0].secure


@pytest_twisted.ensureDeferred
async def test_plain_http_to_a_port_with_tls_is_answered_in_words(world: World, serve) -> None:
    heard: list[bytes] = []

    def refuse(first: bytes) -> bytes:
        heard.append(first)
        return Response(400, b"use https").alone()

    port = await serve(tls=server_options(*world.pair, to_plaintext=refuse))
    assert (await ask(port))[0] == b"use https"
    assert heard == [b"GET /"]
    assert (await ask(port, client_options("localhost", world.ca)))[0] == b"hello"


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(lambda: rsa.generate_private_key(65537, 2048), id="rsa"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP384R1()), id="ecdsa"),
        pytest.param(ed25519.Ed25519PrivateKey.generate, id="ed25519"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_keys_of_every_kind(world: World, serve, key) -> None:
    pair = world.middle.leaf("localhost", key=key()).write(world.folder, "other")
    port = await serve(tls=server_options(*pair))
    assert (await ask(port, client_options("localhost", world.ca)))[0] == b"hello"


@pytest.mark.parametrize(
    ("ours", "theirs", "chosen"),
    [
        pytest.param({}, [b"h2", b"http/1.1"], b"http/1.1", id="https"),
        pytest.param({"protocols": GRPC}, [b"http/1.1", b"h2"], b"h2", id="grpc"),
        pytest.param({}, [b"h2"], b"", id="none-in-common"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_protocol_is_negotiated(world: World, serve, ours, theirs, chosen: bytes) -> None:
    port = await serve(tls=server_options(*world.pair, **ours))
    client = await connected(port, client_options("localhost", world.ca, protocols=theirs))
    client.transport.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    await client.done
    assert (client.transport.negotiatedProtocol or b"") == chosen


@pytest.mark.parametrize(
    ("version", "answered"),
    [
        pytest.param(SSL.TLS1_1_VERSION, False, id="1.1"),
        pytest.param(SSL.TLS1_2_VERSION, True, id="1.2"),
        pytest.param(SSL.TLS1_3_VERSION, True, id="1.3"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_versions(world: World, serve, version: int, answered: bool) -> None:
    port = await serve(tls=server_options(*world.pair))
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(0)
    context.set_max_proto_version(version)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    context.load_verify_locations(str(world.ca))
    body, _ = await ask(port, ClientOptions(context, "localhost"))
    assert (body == b"hello") is answered


@pytest_twisted.ensureDeferred
async def test_only_authenticated_encryption_with_forward_secrecy(world: World, serve) -> None:
    port = await serve(tls=server_options(*world.pair))
    for ciphers in (b"AES128-GCM-SHA256", b"ECDHE-ECDSA-AES128-SHA"):
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        context.set_cipher_list(ciphers)
        context.load_verify_locations(str(world.ca))
        body, reason = await ask(port, ClientOptions(context, "localhost"))
        assert (body, reason.kind) == (b"", RefusalKind.PROTOCOL)


@pytest_twisted.ensureDeferred
async def test_a_context_can_be_replaced_while_serving(world: World, serve) -> None:
    options = server_options(*world.pair)
    port = await serve(tls=options)
    trusting_both = world.file("both.crt", pem([world.root.certificate, world.stranger.certificate]))
    old = await connected(port, client_options("localhost", trusting_both))
    old.transport.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    while b"hello" not in old.received:
        await deferLater(reactor, 0.01)
    other = world.stranger.leaf("localhost")
    options.use(server_context(*other.write(world.folder, "other")))
    new = await connected(port, client_options("localhost", trusting_both))
    for client in (old, new):
        client.transport.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        await client.done
    assert new.transport.getPeerCertificate().to_cryptography() == other.chain[0]
    assert old.received.count(b"hello") == 2


@pytest_twisted.ensureDeferred
async def test_a_large_answer_to_a_slow_client(world: World, serve) -> None:
    body = os.urandom(5_000_000)
    port = await serve(lambda _: Response(200, body), server_options(*world.pair))
    client = await connected(port, client_options("localhost", world.ca))
    client.transport.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    while not client.received:
        await deferLater(reactor, 0.01)
    client.transport.pauseProducing()
    await deferLater(reactor, 0.05)
    client.transport.resumeProducing()
    await client.done
    assert client.received.partition(b"\r\n\r\n")[2] == body


@pytest_twisted.ensureDeferred
async def test_a_refusal_is_read_over_tls_too(world: World, serve) -> None:
    port = await serve(tls=server_options(*world.pair), limits=HttpLimits(body=1_000_000, linger_seconds=1))
    client = await connected(port, client_options("localhost", world.ca))
    client.transport.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1900000\r\n\r\n")
    for _ in range(19):
        client.transport.write(b"x" * 100_000)
    (reason,) = await client.done
    assert client.received.startswith(b"HTTP/1.1 413 ")
    assert type(reason) is ConnectionDone


@pytest_twisted.ensureDeferred
async def test_noise_instead_of_a_handshake(world: World, serve) -> None:
    port = await serve(tls=server_options(*world.pair))
    _, reason = await ask(port)
    assert isinstance(reason, Exception)
    assert (await ask(port, client_options("localhost", world.ca)))[0] == b"hello"


# -- certificates of clients ------------------------------------------------------------------------------------------


def shows(world: World, leaf: Leaf | None, name: str = "client") -> ClientOptions:
    cert, key = leaf.write(world.folder, name) if leaf is not None else (None, None)
    return client_options("localhost", world.ca, cert, key)


@pytest.mark.parametrize(
    ("bundle", "client", "taken"),
    [
        pytest.param("root", "leaf", True, id="root"),
        pytest.param("middle", "leaf", True, id="intermediate-alone"),
        pytest.param("leaf", "leaf", True, id="leaf-alone"),
        pytest.param("leaf+middle", "leaf", True, id="leaf-and-intermediate"),
        pytest.param("leaf+middle", "sibling", True, id="another-leaf-of-the-intermediate"),
        pytest.param("leaf", "sibling", False, id="another-leaf"),
        pytest.param("root", "stranger", False, id="stranger"),
        pytest.param("stranger+root", "stranger", True, id="second-in-bundle"),
        pytest.param("root", "expired", False, id="expired"),
        pytest.param("root", None, False, id="none"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_mutual_tls(world: World, serve, bundle: str, client: str | None, taken: bool) -> None:
    leaf = world.middle.leaf("client")
    leaves = {
        "leaf": leaf,
        "sibling": world.middle.leaf("sibling"),
        "stranger": world.stranger.leaf("client"),
        "expired": world.middle.leaf("client", starts=-2 * DAY, ends=-DAY),
    }
    certificates = {
        "root": world.root.certificate,
        "middle": world.middle.certificate,
        "leaf": leaf.chain[0],
        "stranger": world.stranger.certificate,
    }
    ca = world.file("clients.crt", pem(certificates[name] for name in bundle.split("+")))
    port = await serve(tls=server_options(*world.pair, ca))
    body, reason = await ask(port, shows(world, leaves[client] if client else None))
    assert (body == b"hello") is taken
    assert isinstance(reason, HandshakeFailed) is not taken


# -- the client's side ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hostname", "trusted", "why"),
    [
        pytest.param("localhost", "root", None, id="name"),
        pytest.param("127.0.0.1", "root", None, id="address"),
        pytest.param("::1", "root", None, id="address-6"),
        pytest.param("localhost", "middle", None, id="intermediate-as-anchor"),
        pytest.param("localhost", "leaf", None, id="leaf-as-anchor"),
        pytest.param("notary-server", "root", RefusalKind.WRONG_NAME, id="another-name"),
        pytest.param("192.0.2.1", "root", RefusalKind.WRONG_NAME, id="another-address"),
        pytest.param("localhost", "stranger", RefusalKind.UNKNOWN_ISSUER, id="untrusted"),
        pytest.param("localhost", None, RefusalKind.UNKNOWN_ISSUER, id="not-one-of-the-systems"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_client_knows_its_server(world: World, serve, hostname: str, trusted: str | None, why) -> None:
    certificates = {
        "root": world.root.certificate,
        "middle": world.middle.certificate,
        "leaf": world.server.chain[0],
        "stranger": world.stranger.certificate,
    }
    ca = world.file("ca.crt", pem([certificates[trusted]])) if trusted else None
    port = await serve(tls=server_options(*world.pair))
    body, reason = await ask(port, client_options(hostname, ca))
    if why is None:
        assert (body, type(reason)) == (b"hello", ConnectionDone)
    else:
        assert (body, reason.kind) == (b"", why)


@pytest_twisted.ensureDeferred
async def test_a_certificate_without_names_is_nobodys(world: World, serve) -> None:
    """The common name does not count; "localhost" is only there."""
    nameless = world.middle.leaf("localhost", common_name_only=True)
    port = await serve(tls=server_options(*nameless.write(world.folder, "nameless")))
    body, reason = await ask(port, client_options("localhost", world.ca))
    assert (body, reason.kind) == (b"", RefusalKind.WRONG_NAME)
    assert "no name that counts" in str(reason)


# -- files ------------------------------------------------------------------------------------------------------------

SERVER = Wording(**SERVER_TLS)
CLIENT = Wording(**SIGNER_CLIENT_TLS)
NOT_PEM = b"\x30\x82 not PEM"
HALF = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("which", "content", "message"),
    [
        pytest.param("cert", None, "cannot be read (No such file or directory)", id="no-certificate"),
        pytest.param("cert", "folder", "cannot be read (Is a directory)", id="certificate-is-a-folder"),
        pytest.param("cert", b"", "holds no certificate", id="empty-certificate"),
        pytest.param("cert", NOT_PEM, "holds no certificate", id="certificate-not-pem"),
        pytest.param("cert", "key", "holds no certificate", id="key-as-certificate"),
        pytest.param("cert", HALF, "holds a malformed certificate", id="malformed-certificate"),
        pytest.param("cert", "weak", "is refused by OpenSSL (ee key too small)", id="weak-certificate"),
        pytest.param("key", None, "cannot be read (No such file or directory)", id="no-key"),
        pytest.param("key", b"", "holds no usable private key", id="empty-key"),
        pytest.param("key", NOT_PEM, "holds no usable private key", id="key-not-pem"),
        pytest.param("key", "cert", "holds no usable private key", id="certificate-as-key"),
        pytest.param("key", "public", "holds no usable private key", id="public-key"),
        pytest.param("key", "encrypted", "is encrypted; expected a private key", id="encrypted-key"),
        pytest.param("key", "other", "is not the key of the first certificate in", id="another-key"),
        pytest.param("key", "dsa", "holds a key of another kind", id="dsa-key"),
        pytest.param("ca", None, "cannot be read (No such file or directory)", id="no-bundle"),
        pytest.param("ca", b"", "holds no certificate", id="empty-bundle"),
        pytest.param("ca", "key", "holds no certificate", id="key-as-bundle"),
    ],
)
def test_files_that_cannot_be_used(world: World, which: str, content: object, message: str) -> None:
    cert, key = world.pair
    files = {"cert": cert, "key": key, "ca": world.ca}
    bad = world.folder / "bad"
    if content == "folder":
        bad.mkdir()
    elif content == "weak":
        weak = world.root.leaf("localhost", key=rsa.generate_private_key(65537, 1024))
        bad, files["key"] = weak.write(world.folder, "bad")
    elif content == "public":
        bad.write_bytes(world.server.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    elif content == "encrypted":
        bad.write_bytes(key_pem(world.server.key, b"passphrase"))
    elif content == "other":
        bad.write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1())))
    elif content == "dsa":
        bad.write_bytes(key_pem(dsa.generate_private_key(2048)))
    elif isinstance(content, str):
        bad.write_bytes(files[content].read_bytes())
    elif isinstance(content, bytes):
        bad.write_bytes(content)
    files[which] = bad
    server_key = {"cert": "server.tls_cert_file", "key": "server.tls_key_file", "ca": "server.client_ca_file"}
    with pytest.raises(ConfigError) as caught:
        server_options(files["cert"], files["key"], files["ca"], wording=SERVER)
    assert str(caught.value).startswith(f'{server_key[which]}: "{bad}" {message}')
    assert "\n" not in str(caught.value)
    client_key = {
        "cert": "trust_service.tls_client_cert",
        "key": "trust_service.tls_client_key",
        "ca": "trust_service.tls_ca_file",
    }
    with pytest.raises(ConfigError) as caught:
        client_options("localhost", files["ca"], files["cert"], files["key"], wording=CLIENT)
    assert str(caught.value).startswith(f'{client_key[which]}: "{bad}" {message}')


def test_the_leaf_must_come_first(world: World) -> None:
    cert, key = world.pair
    cert.write_bytes(pem(reversed(world.server.chain)))
    with pytest.raises(ConfigError, match="expected a pair, and the leaf before the intermediates"):
        server_options(cert, key)


@pytest.mark.parametrize(
    ("starts", "ends", "warning"),
    [
        pytest.param(-2 * DAY, -DAY, "EXPIRED at", id="expired"),
        pytest.param(DAY, 2 * DAY, "is not valid before", id="not-yet"),
        pytest.param(-DAY, DAY, None, id="valid"),
    ],
)
def test_a_certificate_out_of_time_is_warned_about(
    world: World, warnings: list[str], starts: timedelta, ends: timedelta, warning: str | None
) -> None:
    leaf = world.middle.leaf("localhost", starts=starts, ends=ends)
    cert, key = leaf.write(world.folder, "dated")
    server_options(cert, key, cert, wording=SERVER)
    if warning is None:
        assert warnings == []
    else:
        assert len(warnings) == 2
        for text, name in zip(warnings, ["server.tls_cert_file", "server.client_ca_file"], strict=True):
            assert text.startswith(f"{name}: the certificate of CN=localhost in {cert} {warning}")


# -- listening --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        pytest.param("", ["127.0.0.1", "::1"], id="every-interface"),
        pytest.param("::", ["127.0.0.1", "::1"], id="every-interface-6"),
        pytest.param("0.0.0.0", ["127.0.0.1"], id="every-interface-4"),
        pytest.param("127.0.0.1", ["127.0.0.1"], id="ipv4"),
        pytest.param("::1", ["::1"], id="ipv6"),
        pytest.param("localhost", ["127.0.0.1"], id="name"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_where_a_port_is_reached(serve, host: str, reached: list[str]) -> None:
    port = await serve(host=host)
    for address in reached:
        assert (await ask(port, host=address))[0] == b"hello"


@pytest_twisted.ensureDeferred
async def test_ipv4_alone_where_there_is_no_ipv6(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    made = socket.socket

    def without_ipv6(family: int = -1, *rest: object, **options: object) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return made(family, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", without_ipv6)
        port = await serve(host="")
    assert (await ask(port))[0] == b"hello"


@pytest.mark.parametrize(
    ("host", "port"),
    [
        pytest.param("", 1, id="taken"),
        pytest.param("127.0.0.1", 1, id="taken-here"),
        pytest.param("192.0.2.1", 0, id="not-ours"),
        pytest.param("no-such-host.invalid", 0, id="unknown-name"),
        pytest.param("a" * 300, 0, id="no-name"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_where_one_cannot_listen(serve, host: str, port: int) -> None:
    if port:
        port = await serve(host="")
    with pytest.raises(CannotListenError):
        await listen(reactor, host, port, Factory.forProtocol(Protocol))


@pytest_twisted.ensureDeferred
async def test_a_reactor_without_descriptors_listens_as_it_can() -> None:
    memory = MemoryReactorClock()
    factory = Factory.forProtocol(Protocol)
    await listen(memory, "127.0.0.1", 80, factory)
    assert [entry[:2] for entry in memory.tcpServers] == [(80, factory)]


@pytest_twisted.ensureDeferred
async def test_a_reactor_without_descriptors_does_not_serve_in_plain_what_shall_be_secret(world: World) -> None:
    memory = MemoryReactorClock()
    with pytest.raises(TypeError):
        await listen(memory, "127.0.0.1", 80, Factory.forProtocol(Protocol), server_options(*world.pair))
    assert not memory.tcpServers
