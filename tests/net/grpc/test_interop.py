"""gRPC over mutual TLS on loopback: with grpcio, which shares no code with ours, and with peers that are refused."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import Logger, LogLevel, capturedLogs, formatEvent
from twisted.python.failure import Failure

from notary.certs import Certificate
from notary.config.files import SERVER_TLS, SIGNER_CLIENT_TLS
from notary.net.grpc import Channel, Context, GrpcFactory, RpcError, State, Status, refuse_plaintext
from notary.net.listen import listen
from notary.net.refusals import Refusals
from notary.net.tls.contexts import GRPC, HTTP, client_options, server_options
from notary.net.tls.wording import Wording
from tests.support.certs import Authority

ECHO = "/test.Echo/Echo"


@dataclass(frozen=True)
class Pki:
    """A root, and two leaves it signed: server and client; "stranger" is signed by another root."""

    folder: Path

    def file(self, name: str) -> Path:
        return self.folder / name

    def pair(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder = tmp_path_factory.mktemp("pki")
    root, other = Authority.root("root"), Authority.root("other")
    root.write(folder, "root")
    other.write(folder, "other")
    root.leaf("localhost", "127.0.0.1").write(folder, "server")
    root.leaf("elsewhere").write(folder, "elsewhere")
    root.leaf("client").write(folder, "client")
    root.leaf("late", ends=-timedelta(hours=1)).write(folder, "late")
    root.leaf("localhost", ends=-timedelta(hours=1)).write(folder, "late-server")
    root.leaf("early", starts=timedelta(hours=1)).write(folder, "early")
    other.leaf("client").write(folder, "stranger")
    return Pki(folder)


class OurServer:
    """Our server on a port; ``contexts`` are those of its calls."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self.waiting: list[Deferred[bytes]] = []
        self.cancelled = 0
        methods = {
            ECHO: self.echo,
            "/test.Echo/Wait": self.wait,
            "/test.Echo/Refuse": self.refuse,
            "/test.Echo/Fault": lambda _, __: 1 // 0,
        }
        self.refusals = Refusals(Logger(), LogLevel.error, reactor.seconds)
        self.factory = GrpcFactory(methods, reactor, on_error=lambda *_: None, on_refused=self.refusals)
        self.port: Any = None

    def echo(self, request: bytes, context: Context) -> bytes:
        self.contexts.append(context)
        return request

    def wait(self, _request: bytes, _context: Context) -> Deferred[bytes]:
        def cancelled(_: Deferred[bytes]) -> None:
            self.cancelled += 1

        self.waiting.append(Deferred(cancelled))
        return self.waiting[-1]

    def refuse(self, request: bytes, _context: Context) -> bytes:
        raise RpcError(Status.FAILED_PRECONDITION, request.decode())

    async def start(self, pki: Pki, *, name: str = "server", protocols: tuple[bytes, ...] = GRPC) -> None:
        options = server_options(
            *pki.pair(name),
            pki.file("root.crt"),
            protocols,
            wording=Wording(**SERVER_TLS),
            to_plaintext=refuse_plaintext,
        )
        self.port = await listen(reactor, "127.0.0.1", 0, self.factory, options, self.refusals)

    async def stop(self) -> None:
        await self.port.stopListening()
        await self.factory.stop(0.2)

    @property
    def number(self) -> int:
        return self.port.getHost().port


@pytest_twisted.async_yield_fixture
async def ours(pki: Pki) -> AsyncIterator[OurServer]:
    server = OurServer()
    await server.start(pki)
    yield server
    await server.stop()


def channel_to(
    port: int, pki: Pki, name: str | None = "client", ca: str = "root.crt", host: str = "localhost", **options: Any
) -> Channel:
    cert, key = pki.pair(name) if name else (None, None)
    return Channel.to(
        reactor,
        "localhost",
        port,
        client_options(host, pki.file(ca), cert, key, wording=Wording(**SIGNER_CLIENT_TLS), **options),
    )


async def outcome(call: Deferred[bytes]) -> bytes | tuple[Status, str]:
    try:
        return await call
    except RpcError as error:
        return error.status, error.message


# -- ours and ours ----------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_our_client_and_our_server(ours: OurServer, pki: Pki) -> None:
    channel = channel_to(ours.number, pki)
    assert await channel.call(ECHO, b"hello", 5) == b"hello"
    large = bytes(range(256)) * 16384
    assert await channel.call(ECHO, large, 20) == large
    assert await outcome(channel.call("/test.Echo/Refuse", "schlüssel".encode(), 5)) == (
        Status.FAILED_PRECONDITION,
        "schlüssel",
    )
    peer = ours.contexts[0].peer
    assert peer.certificate is not None
    assert str(Certificate(peer.certificate).subject) == "CN=client"
    assert peer is ours.contexts[1].peer
    await channel.close()


@pytest_twisted.ensureDeferred
async def test_the_channel_survives_a_restart_of_the_server(pki: Pki) -> None:
    server = OurServer()
    await server.start(pki)
    channel = channel_to(server.number, pki)
    call = channel.call("/test.Echo/Wait", b"", 10)
    assert await channel.call(ECHO, b"1", 10) == b"1"
    port = server.number
    await server.stop()
    assert await outcome(call) == (Status.UNAVAILABLE, "the server is stopping")
    waits = channel.call(ECHO, b"2", 10)
    again = OurServer()
    options = server_options(*pki.pair("server"), pki.file("root.crt"), GRPC)
    again.port = await listen(reactor, "127.0.0.1", port, again.factory, options)
    assert await waits == b"2"
    await channel.close()
    await again.stop()


# -- grpcio as the client ---------------------------------------------------------------------------------------------


@pytest.fixture
def grpcio(ours: OurServer, pki: Pki) -> Iterator[grpc.Channel]:
    cert, key = pki.pair("client")
    credentials = grpc.ssl_channel_credentials(pki.file("root.crt").read_bytes(), key.read_bytes(), cert.read_bytes())
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"localhost:{ours.number}", credentials, options) as channel:
        yield channel


@pytest_twisted.ensureDeferred
async def test_a_client_without_tls_fails_at_once_and_says_what_answered(ours: OurServer) -> None:
    """It must not take an answer for a connection that works, or it would connect again and again."""
    with grpc.insecure_channel(f"localhost:{ours.number}") as channel, capturedLogs() as logs:
        status, details = await their_call(channel, ECHO, b"hello", timeout=30)
    assert status == "UNAVAILABLE"
    assert "HTTP status 400" in details
    (line,) = [each["reason"] for each in logs if "reason" in each]
    assert "does not speak TLS" in line


@pytest_twisted.ensureDeferred
async def test_a_browser_without_tls_is_told_so(ours: OurServer) -> None:
    def ask() -> bytes:
        with socket.create_connection(("127.0.0.1", ours.number)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return b"".join(iter(lambda: plain.recv(4096), b""))

    answer = await deferToThread(ask)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"this port demands TLS" in answer


def their_call(channel: grpc.Channel, path: str, request: bytes, timeout: float | None = 10.0, **options: Any) -> Any:
    """The outcome of a call, made in a thread of the reactor's pool."""

    def call() -> bytes | tuple[str, str]:
        try:
            return channel.unary_unary(path)(request, timeout=timeout, **options)
        except grpc.RpcError as error:
            return error.code().name, error.details()

    return deferToThread(call)


@pytest_twisted.ensureDeferred
async def test_their_client_is_answered(grpcio: grpc.Channel, ours: OurServer) -> None:
    assert await their_call(grpcio, ECHO, b"hello") == b"hello"
    assert await their_call(grpcio, ECHO, b"") == b""
    assert await their_call(grpcio, ECHO, b"no deadline", None) == b"no deadline"
    large = bytes(range(256)) * 16384
    assert await their_call(grpcio, ECHO, large) == large
    assert ours.contexts[0].peer.certificate is not None
    remaining = ours.contexts[0].remaining()
    assert remaining is not None
    assert 0 < remaining <= 10


@pytest.mark.parametrize(
    ("path", "request_", "status", "message"),
    [
        pytest.param("/test.Echo/Refuse", "nö %41\n".encode(), "FAILED_PRECONDITION", "nö %41\n", id="refused"),
        pytest.param("/test.Echo/Fault", b"", "INTERNAL", "internal error", id="fault"),
        pytest.param("/test.Echo/None", b"", "UNIMPLEMENTED", "unknown method /test.Echo/None", id="unknown"),
        pytest.param(
            ECHO,
            bytes(4 * 1024 * 1024 + 1),
            "RESOURCE_EXHAUSTED",
            "a message of 4194305 bytes is over the limit of 4194304",
            id="too-large",
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_their_client_understands_our_errors(
    grpcio: grpc.Channel, path: str, request_: bytes, status: str, message: str
) -> None:
    assert await their_call(grpcio, path, request_) == (status, message)
    assert await their_call(grpcio, ECHO, b"the connection goes on") == b"the connection goes on"


@pytest_twisted.ensureDeferred
async def test_their_client_compresses(grpcio: grpc.Channel) -> None:
    status, message = await their_call(grpcio, ECHO, bytes(10_000), compression=grpc.Compression.Gzip)
    assert status == "UNIMPLEMENTED"
    assert "compressed" in message


@pytest_twisted.ensureDeferred
async def test_their_deadline(grpcio: grpc.Channel, ours: OurServer) -> None:
    status, _ = await their_call(grpcio, "/test.Echo/Wait", b"", 0.3)
    assert status == "DEADLINE_EXCEEDED"
    await until(lambda: ours.cancelled == 1)


@pytest_twisted.ensureDeferred
async def test_a_thousand_of_their_calls_at_once(grpcio: grpc.Channel, ours: OurServer) -> None:
    def call_all() -> list[bytes]:
        method = grpcio.unary_unary(ECHO)
        futures = [method.future(b"%d" % number, timeout=30) for number in range(1000)]
        return [future.result() for future in futures]

    assert await deferToThread(call_all) == [b"%d" % number for number in range(1000)]
    assert len({context.peer for context in ours.contexts}) == 1


@pytest_twisted.ensureDeferred
async def test_their_client_and_our_drain(grpcio: grpc.Channel, pki: Pki) -> None:
    server = OurServer()
    await server.start(pki)
    cert, key = pki.pair("client")
    credentials = grpc.ssl_channel_credentials(pki.file("root.crt").read_bytes(), key.read_bytes(), cert.read_bytes())
    with grpc.secure_channel(f"localhost:{server.number}", credentials) as channel:
        call = their_call(channel, "/test.Echo/Wait", b"")
        await until(lambda: len(server.waiting) == 1)
        await server.port.stopListening()
        stopped = Deferred.fromCoroutine(server.factory.stop(10))
        await deferLater(reactor, 0.05)
        assert not stopped.called
        server.waiting[0].callback(b"the last")
        assert await call == b"the last"
        await stopped


# -- grpcio as the server ---------------------------------------------------------------------------------------------


class TheirServer(grpc.GenericRpcHandler):
    """grpcio's server on a port."""

    def __init__(self, pki: Pki) -> None:
        cert, key = pki.pair("server")
        credentials = grpc.ssl_server_credentials(
            [(key.read_bytes(), cert.read_bytes())], pki.file("root.crt").read_bytes(), require_client_auth=True
        )
        self.pool = ThreadPoolExecutor(4)
        self.server = grpc.server(self.pool, handlers=[self], options=[("grpc.max_receive_message_length", -1)])
        self.port = self.server.add_secure_port("127.0.0.1:0", credentials)
        self.server.start()

    def service(self, details: Any) -> Any:
        methods = {
            ECHO: lambda request, _: request,
            "/test.Echo/Slow": self.slow,
            "/test.Echo/Refuse": self.refuse,
            "/test.Echo/Large": lambda request, _: bytes(int(request)),
        }
        method = methods.get(details.method)
        return method and grpc.unary_unary_rpc_method_handler(method)

    @staticmethod
    def slow(request: bytes, _context: Any) -> bytes:
        time.sleep(float(request))
        return b"slow"

    @staticmethod
    def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.NOT_FOUND, request.decode())

    def stop(self, grace: float) -> Any:
        def stop() -> None:
            self.server.stop(grace).wait()
            self.pool.shutdown()

        return deferToThread(stop)


@pytest_twisted.async_yield_fixture
async def theirs(pki: Pki) -> AsyncIterator[TheirServer]:
    logging.getLogger("grpc").setLevel(logging.CRITICAL)  # it logs what a handler aborts
    server = TheirServer(pki)
    yield server
    await server.stop(0.5)


@pytest_twisted.async_yield_fixture
async def channel(theirs: TheirServer, pki: Pki) -> AsyncIterator[Channel]:
    made = channel_to(theirs.port, pki)
    yield made
    await made.close()


@pytest_twisted.ensureDeferred
async def test_their_server_answers(channel: Channel) -> None:
    assert await channel.call(ECHO, b"hello", 10) == b"hello"
    assert await channel.call(ECHO, b"", 10) == b""
    large = bytes(range(256)) * 16384
    assert await channel.call(ECHO, large, 20) == large


@pytest.mark.parametrize(
    ("path", "request_", "seconds", "status", "message"),
    [
        pytest.param("/test.Echo/Refuse", "nö %41\n".encode(), 10, Status.NOT_FOUND, "nö %41\n", id="refused"),
        pytest.param("/test.Echo/None", b"", 10, Status.UNIMPLEMENTED, "Method not found!", id="unknown"),
        pytest.param("/test.Echo/Slow", b"0.5", 0.1, Status.DEADLINE_EXCEEDED, "", id="deadline"),
        pytest.param("/test.Echo/Large", b"4194305", 10, Status.RESOURCE_EXHAUSTED, "over the limit", id="too-large"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_our_client_understands_their_errors(
    channel: Channel, path: str, request_: bytes, seconds: float, status: Status, message: str
) -> None:
    # The deadline is that of an answer, not that of a connection.
    assert await channel.call(ECHO, b"the connection is there", 10) == b"the connection is there"
    result = await outcome(channel.call(path, request_, seconds))
    assert result[0] is status
    assert message in result[1]
    assert await channel.call(ECHO, b"the connection goes on", 10) == b"the connection goes on"


@pytest_twisted.ensureDeferred
async def test_a_thousand_calls_at_once_on_their_server(channel: Channel) -> None:
    answers = await gatherResults([channel.call(ECHO, b"%d" % number, 30) for number in range(1000)])
    assert answers == [b"%d" % number for number in range(1000)]


@pytest_twisted.ensureDeferred
async def test_their_server_drains(pki: Pki) -> None:
    server = TheirServer(pki)
    channel = channel_to(server.port, pki)
    assert await channel.call(ECHO, b"", 10) == b""
    call = channel.call("/test.Echo/Slow", b"0.3", 10)
    await deferLater(reactor, 0.1)
    stopped = server.stop(5)
    assert await call == b"slow"
    await stopped
    await until(lambda: channel.state is not State.READY)
    await channel.close()


# -- peers that are refused -------------------------------------------------------------------------------------------


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must happen soon."""
    for _ in range(500):
        if condition():
            return
        await deferLater(reactor, 0.01)
    pytest.fail("it did not happen")


@pytest.mark.parametrize(
    ("options", "client_says", "server_says"),
    [
        pytest.param({"name": None}, "was shown none", "the peer showed no certificate", id="no-certificate"),
        pytest.param(
            {"name": "stranger"},
            "does not trust the issuer of our certificate (CN=client, for client, issued by CN=other)",
            "(CN=client, issued by CN=other) leads to no certificate in server.client_ca_file; add CN=other there",
            id="certificate-of-a-stranger",
        ),
        pytest.param(
            {"name": "late"},
            "says that our certificate (CN=late, for late, issued by CN=root) has expired",
            "(CN=late, issued by CN=root) expired at 20",
            id="expired-certificate",
        ),
        pytest.param(
            {"name": "early"},
            "refused our certificate (CN=early, for early, issued by CN=root)",
            "(CN=early, issued by CN=root) is not valid before 20",
            id="certificate-of-tomorrow",
        ),
        pytest.param(
            {"ca": "other.crt"},
            "(CN=root, issued by CN=root) leads to no certificate in trust_service.tls_ca_file; add CN=root there",
            "does not trust the issuer of our certificate (CN=localhost, for localhost, 127.0.0.1, issued by CN=root)",
            id="wrong-ca",
        ),
        pytest.param(
            {"host": "127.0.0.2"},
            "(CN=localhost) is for localhost, 127.0.0.1 and not for 127.0.0.2",
            "a name which our certificate (CN=localhost, for localhost, 127.0.0.1, issued by CN=root) lacks",
            id="another-name",
        ),
        pytest.param({"protocols": HTTP}, "ALPN", "ALPN", id="wrong-alpn"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_our_server_and_a_client_that_is_not_welcome(
    ours: OurServer, pki: Pki, options: dict[str, Any], client_says: str, server_says: str
) -> None:
    with capturedLogs() as logs:
        channel = channel_to(ours.number, pki, **options)
        status, message = await outcome(channel.call(ECHO, b"", 0.5))
        await channel.close()
    assert status is Status.UNAVAILABLE
    assert message.startswith(f"no connection to localhost:{ours.number}: ")
    assert client_says in message
    refusals = [event for event in logs if "refused" in event["log_format"]]
    assert len(refusals) == 1, "the channel tried again, and the log is not repeated"
    assert server_says in refusals[0]["reason"]
    assert refusals[0]["peer"].startswith("127.0.0.1:")
    assert refusals[0]["log_level"] is LogLevel.error
    assert ours.contexts == []


def knowing_no_alpn(pki: Pki, certificate: str) -> ssl.SSLContext:
    """The context of one side of a balancer that ends TLS, as HAProxy has it if nobody asks for ALPN."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if certificate == "server" else ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(*pki.pair(certificate))
    context.load_verify_locations(pki.file("root.crt"))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class Balancer:
    """Ends TLS on both sides, and passes bytes; in threads. ``port`` is where it listens; ``to`` is the server's."""

    def __init__(self, pki: Pki, to: int) -> None:
        self._to = to
        self._contexts = {name: knowing_no_alpn(pki, name) for name in ("server", "client")}
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            raw, _ = self._listening.accept()
            with (
                self._contexts["server"].wrap_socket(raw, server_side=True) as front,
                socket.create_connection(("127.0.0.1", self._to)) as plain,
                self._contexts["client"].wrap_socket(plain, server_hostname="localhost") as back,
            ):
                ends = {front: back, back: front}
                while True:
                    for ready in select.select(list(ends), (), ())[0]:
                        data = ready.recv(1 << 16)
                        if not data:
                            return
                        ends[ready].sendall(data)

    def close(self) -> None:
        self._listening.close()
        self._thread.join()


@pytest_twisted.ensureDeferred
async def test_a_balancer_that_ends_tls_and_knows_no_alpn(ours: OurServer, pki: Pki) -> None:
    """Go to Go works there. Both sides warn, and both still verify certificates."""
    balancer = Balancer(pki, ours.number)
    with capturedLogs() as logs:
        channel = channel_to(balancer.port, pki)
        for message in (b"hello", b"again"):
            assert await channel.call(ECHO, message, 10) == message
        await channel.close()
    shown = ours.contexts[0].peer.certificate
    assert shown is not None
    assert str(Certificate(shown).subject) == "CN=client"
    warned = [formatEvent(event) for event in logs if event["log_level"] is LogLevel.warn]
    assert [("the client" in line, "does not say so in TLS (ALPN)" in line) for line in sorted(warned)] == [
        (False, True),
        (True, True),
    ]
    await deferToThread(balancer.close)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("elsewhere", "(CN=elsewhere) is for elsewhere and not for localhost", id="another-name"),
        pytest.param("late-server", "(CN=localhost, issued by CN=root) expired at 20", id="expired"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_server_that_is_not_the_one(pki: Pki, name: str, message: str) -> None:
    server = OurServer()
    await server.start(pki, name=name)
    channel = channel_to(server.number, pki)
    result = await outcome(channel.call(ECHO, b"", 0.5))
    assert result[0] is Status.UNAVAILABLE
    assert message in result[1]
    await channel.close()
    await server.stop()


class Talk(Protocol):
    """Says something and remembers how it ends."""

    def __init__(self, said: bytes) -> None:
        self.said = said
        self.ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(self.said)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        assert reason.check(ConnectionLost) or reason.check(type(connectionDone.value))
        self.ended.callback(None)


@pytest_twisted.ensureDeferred
async def test_a_client_that_speaks_plain_http_2(ours: OurServer) -> None:
    with capturedLogs() as logs:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", ours.number)
        talk = await connectProtocol(endpoint, Talk(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)))
        await talk.ended
        await until(lambda: any("reason" in event for event in logs))
    (refusal,) = (event for event in logs if "refused" in event["log_format"])
    assert refusal["reason"].startswith("the peer does not speak TLS (its first byte is 0x50)")


@pytest_twisted.ensureDeferred
async def test_a_server_that_speaks_no_tls(pki: Pki) -> None:
    class Web(Talk):
        def __init__(self) -> None:
            super().__init__(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

        def dataReceived(self, data: bytes) -> None:
            self.transport.loseConnection()

    port: IListeningPort = reactor.listenTCP(0, Factory.forProtocol(Web), interface="127.0.0.1")
    channel = channel_to(port.getHost().port, pki)
    status, message = await outcome(channel.call(ECHO, b"", 0.5))
    assert status is Status.UNAVAILABLE
    assert "the peer does not speak TLS (its first byte is 0x48)" in message
    await channel.close()
    await port.stopListening()
