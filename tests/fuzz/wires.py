"""Fuzz targets for what speaks over a connection: bytes of a stranger in, whole answers or an end out.

Rules of this module: those of :mod:`tests.fuzz.parsers`. Nothing waits: connections are in memory, and clocks are
advanced by hand. A traceback in the log is a fault, also if the client gets a good answer.
"""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from notary.net.grpc import Channel, Context, Peer, RpcError
from notary.net.http.site import Response
from notary.net.tls.contexts import ServerOptions, server_context
from notary.net.tls.transport import SecureUnixServer
from notary.signer.custody.jwe import JweCustody
from notary.signer.keyring import Keyring
from notary.signer.metrics import SignerMetrics
from notary.signer.rpc import Rpc
from notary.storage import Update
from notary.storage.memory import MemoryKeyStore, MemoryMetadataStore
from notary.tuf.model import Gun
from tests.fuzz.golden import ALIAS, NOW, PASSPHRASE, world
from tests.fuzz.parsers import split
from tests.net.grpc.test_fast import outcome
from tests.support import inmemory, rawhttp
from tests.support.collection import GUN
from tests.support.rawgrpc import SETTINGS, Memory, frame


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing in here writes a traceback to the log."""
    with capturedLogs() as events:
        yield
    for event in events:
        failure = event.get("log_failure") or event.get("log_incident")
        if failure is not None:
            raise AssertionError(f"logged: {event.get('log_format')}") from failure.value
        assert not event.get("traceback"), event


# -- HTTP -------------------------------------------------------------------------------------------------------------

BODY = 1000
LIMITS = replace(rawhttp.LIMITS, body=BODY, bodies=BODY)
"""One of the largest bodies is all that may be on its way at a time: a budget that was not given back is seen."""


def http(data: bytes) -> None:
    """What a client sends on one connection: it is the same whole as byte by byte, and leaves nothing behind."""
    with quiet():
        whole, bytewise = _served(data, piecewise=False), _served(data, piecewise=True)
    assert whole == bytewise


def _served(data: bytes, *, piecewise: bool) -> Any:
    server = rawhttp.Server(
        handler=lambda call: Response(200, call.path.encode("utf-8", "replace"), etag="e"), limits=LIMITS
    )
    peer = server.connect()
    peer.send(data, piecewise=piecewise)
    calls = [(call.method, call.path, call.raw_path, dict(call.query), dict(call.headers)) for call in server.calls]
    # Who has sent the body already is not told to go on.
    said = peer.transport.value().replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    seen = (said, peer.closed, calls, list(server.events))
    assert all(status < 500 or status == 503 for *_, status, _, _ in server.events), server.events
    if peer.transport.connected:
        peer.transport.loseConnection()
    other = server.connect().send(rawhttp.post(b"x" * BODY))
    assert other.answer.status == 200, "the budget of bodies has not come back"
    other.transport.loseConnection()
    server.wait(100)
    assert server.clock.getDelayedCalls() == []
    return seen


def api(data: bytes) -> None:
    """A request to a server that holds the golden collection.

    The first byte says whether it is sent as it is, with the length that its body has, or in chunks.
    """
    way, rest = split(data, 3)
    head, end, body = rest.partition(b"\r\n\r\n")
    if way == 1:
        rest = head + b"\r\nContent-Length: %d" % len(body) + end + body
    elif way == 2:
        chunks = [body[at : at + 97] for at in range(0, len(body), 97)]
        coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        rest = head + b"\r\nTransfer-Encoding: chunked" + end + coded
    with quiet():
        server = _api()
        transport = inmemory._Transport()
        protocol = server.site.buildProtocol(transport.getPeer())
        transport.protocol = protocol
        protocol.makeConnection(transport)
        protocol.dataReceived(rest)
        server.clock.advance(0)
        for _, status, _ in server.events:
            assert status < 500, status
        said = transport.value()
        if transport.connected:
            transport.loseConnection()
        server.clock.advance(1000)
        server.clock.advance(1000)
        assert server.clock.getDelayedCalls() == []
    _check_answers(said)


def _api() -> inmemory.Server:
    store = MemoryMetadataStore(lambda: NOW)
    updates = [Update(role, held.version, held.data) for role, held in world().stored.items()]
    stored: Deferred[Any] = store.publish(Gun(GUN), updates)
    assert stored.called
    server = inmemory.Server(store)
    server.now = NOW
    return server


def _check_answers(said: bytes) -> None:
    """The first answer is HTTP; if it is an error, it is one of ours in JSON."""
    if not said:
        return
    head, end, body = said.partition(b"\r\n\r\n")
    assert end, said
    status, *fields = head.decode("latin-1").split("\r\n")
    code = int(status.split()[1])
    values = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
    assert len(values) == len(fields)
    length = int(values.get("content-length", "0"))
    if code >= 400 and 0 < length <= len(body):  # an answer to HEAD has a length and no body
        with suppress(UnicodeDecodeError):
            if body[:1] == b"{":
                (error,) = json.loads(body[:length])["errors"]
                assert error["code"]


# -- gRPC -------------------------------------------------------------------------------------------------------------


def grpc(data: bytes) -> None:
    """What a client of the signer's protocol sends: it gets the same answers with and without the fast path.

    0xFF 0xFE parts what is sent at a time; the preface and the settings come by themselves.
    """
    pieces = data.split(b"\xff\xfe")[:12]
    quick, slow = outcome(pieces, fast=True), outcome(pieces, fast=False)
    assert quick["connected"] == slow["connected"]
    # Of calls that come in one piece with what ends the connection, h2 may answer fewer.
    assert quick == slow or not quick["connected"]
    assert outcome(pieces, fast=True, step=1) == outcome(pieces, fast=False, step=1)


class _Teller(Protocol):
    """A signer that gives the answer that it is told, to any call."""

    def __init__(self, said: list[bytes]) -> None:
        self._said = said

    def connectionMade(self) -> None:
        self.transport.write(SETTINGS + frame(4, 1, 0))

    def dataReceived(self, data: bytes) -> None:
        if self._said:
            self.transport.write(self._said.pop(0))


def answers(data: bytes) -> None:
    """What a signer says to a server that calls it: each call has an outcome, and nothing is left when it is over.

    0xFF 0xFE parts what is said at a time.
    """
    clock = Clock()
    pieces = data.split(b"\xff\xfe")[:12]
    memory = Memory(clock, lambda: _Teller(pieces))
    channel = Channel(memory, clock, name="signer:7899", chance=lambda: 0.5)
    outcomes: list[Any] = []
    with quiet():
        for _ in range(2):
            channel.call("/proto.Signer/Sign", b"request", 3).addBoth(outcomes.append)
            memory.settle(1)
        memory.settle(5)
        closed = channel.close()
        memory.settle(20)
        assert closed.called
    assert len(outcomes) == 2
    assert all(isinstance(each, bytes) or each.check(RpcError) for each in outcomes), outcomes
    assert clock.getDelayedCalls() == []


@cache
def _methods() -> tuple[tuple[str, Any], ...]:
    store = MemoryKeyStore()
    made = store.add(world().row)
    assert made.called
    keyring = Keyring(store, JweCustody({ALIAS: PASSPHRASE}.get, ALIAS), inmemory.maybe_now, lambda: NOW)
    return tuple(sorted(Rpc(keyring, lambda: succeed(None), SignerMetrics(version="0")).methods().items()))


def rpc(data: bytes) -> None:
    """The message of a call to the signer; the first byte chooses the method."""
    way, message = split(data, len(_methods()))
    path, handler = _methods()[way]
    context = Context(path, Peer("192.0.2.1:5", None), Clock(), None)
    with quiet():
        try:
            made = handler(message, context)
        except RpcError:
            return
        if isinstance(made, bytes):
            return
        outcomes: list[Any] = []
        Deferred.fromCoroutine(made).addBoth(outcomes.append)
        (answer,) = outcomes
        if isinstance(answer, Failure):
            answer.trap(RpcError)
        else:
            assert isinstance(answer, bytes)


# -- TLS --------------------------------------------------------------------------------------------------------------


class _Echo(Protocol):
    """Says what it hears; ``ended`` is why it heard no more."""

    def __init__(self) -> None:
        self.heard = b""
        self.ended: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        self.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = reason


SAID = b"said by a client that is let in"


@cache
def _options() -> ServerOptions:
    with tempfile.TemporaryDirectory() as folder:
        cert, key = Path(folder) / "tls.crt", Path(folder) / "tls.key"
        cert.write_text(world().tls_certificate)
        key.write_text(world().tls_key)
        return ServerOptions(server_context(cert, key, cert))


@cache
def _client() -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    with tempfile.TemporaryDirectory() as folder:
        for name, text, use in (
            ("tls.crt", world().tls_certificate, context.use_certificate_chain_file),
            ("tls.key", world().tls_key, context.use_privatekey_file),
        ):
            path = Path(folder) / name
            path.write_text(text)
            use(str(path))
    return context


def tls(data: bytes) -> None:
    """Bytes of a client of TLS: the first of a connection, in place of the second flight, or behind the handshake.

    The server's socket never blocks; the connection ends or waits, and what ends it is one of Twisted's reasons.
    """
    way, rest = split(data, 3)
    ours, theirs = socket.socketpair()
    with ours, theirs, quiet():
        ours.setblocking(False)
        theirs.setblocking(False)
        reactor, protocol = MemoryReactorClock(), _Echo()
        refused: list[tuple[str, str, str]] = []
        server = SecureUnixServer(
            _options(), lambda *what: refused.append(what), ours, protocol, None, _Listening(), 1, reactor
        )
        protocol.makeConnection(server)
        if way:
            client = SSL.Connection(_client(), theirs)
            client.set_connect_state()
            with suppress(SSL.WantReadError):
                client.do_handshake()
            _turn(server)
            if way == 2:
                client.do_handshake()
                client.send(SAID)
                _turn(server)
                _turn(server)
                assert protocol.heard == SAID
        with suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            theirs.send(rest)
        for _ in range(20):
            if _turn(server):
                break
        if not server.disconnected:
            server.abortConnection()
            _lose(server)
        assert protocol.ended is not None
        assert protocol.heard in {b"", SAID}, "bytes that no key was known for were taken for the client's"
        assert all(why and message for _, why, message in refused)


class _Listening(Factory):
    """Stands in the place of a listening port, of which a connection only wants the number."""

    _realPortNumber = 0


def _turn(server: SecureUnixServer) -> bool:
    """One turn of the reactor for this connection; True if it has ended."""
    for act in (server.doRead, server.doWrite):
        if server.disconnected or not hasattr(server, "socket"):
            return True
        reason = act()
        if reason is not None:
            server.connectionLost(Failure(reason if isinstance(reason, BaseException) else reason()))
            return True
    return False


def _lose(server: SecureUnixServer) -> None:
    if hasattr(server, "socket"):
        server.connectionLost(Failure(connectionDone.value))
