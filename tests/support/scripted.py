"""A signer in memory, whose answers are scripted, behind a real gRPC server and a wire; no sockets, a fake clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError as RefusedByPeer
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.test import iosim
from zope.interface import implementer

from notary.net.grpc import GrpcFactory, RpcError, Status
from notary.proto import health_pb2, signer_pb2
from tests.support.author import Key, make_key, raw_signature

CREATE, INFO = "/proto.KeyManagement/CreateKey", "/proto.KeyManagement/GetKeyInfo"
SIGN, CHECK, DESCRIBE = "/proto.Signer/Sign", "/grpc.health.v1.Health/Check", "/notary.v1.Instance/Describe"
METHODS = (CREATE, INFO, SIGN, CHECK, DESCRIBE)
SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()
NOT_SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING).SerializeToString()
STEP_SECONDS = 0.1


def result_of(deferred: Deferred[Any], let_pass: Callable[[float], object], seconds: float) -> Any:
    """What a call comes to within ``seconds``, which ``let_pass`` lets pass."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    let_pass(seconds)
    assert results, f"no answer after {seconds} s"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


@implementer(IStreamClientEndpoint)
class Scripted:
    """A signer that does as it is told, and the wire to it.

    ``answers`` says, for each method, what it answers: bytes, an RpcError, or None for nothing ever. A method without
    an answer works, with real keys. ``requests`` holds what was asked. While ``up`` is False it refuses connections.
    Several can share a ``clock`` and ``keys``.
    """

    def __init__(self, clock: Clock | None = None, keys: dict[str, Key] | None = None) -> None:
        self.clock = clock or Clock()
        self.up = True
        self.answers: dict[str, bytes | RpcError | None] = {CHECK: SERVING}
        self.requests: list[tuple[str, bytes]] = []
        self.keys: dict[str, Key] = {} if keys is None else keys
        self._factory = GrpcFactory({path: self._method(path) for path in METHODS}, self.clock)
        self.pumps: list[iosim.IOPump] = []

    def connect(self, factory: Any) -> Deferred[Any]:
        if not self.up:
            return fail(RefusedByPeer())
        server, client = (
            each.buildProtocol(IPv4Address("TCP", "192.0.2.9", 7899)) for each in (self._factory, factory)
        )
        ends = (iosim.FakeTransport(server, isServer=True), iosim.FakeTransport(client, isServer=False))
        self.pumps.append(iosim.connect(server, ends[0], client, ends[1]))
        return succeed(client)

    def crash(self) -> None:
        """End every connection without a word, and take no more."""
        self.up = False
        for pump in self.pumps:
            pump.serverIO.abortConnection()
        self.let_pass(0.0)

    def let_pass(self, seconds: float) -> None:
        """Let time go on, and what is on the wires arrive."""
        for _ in range(round(seconds / STEP_SECONDS) + 1):
            while sum(pump.pump() for pump in self.pumps) or self._is_due():
                self.clock.advance(0)
            self.clock.advance(STEP_SECONDS if seconds else 0)

    def _is_due(self) -> bool:
        return any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls())

    def result(self, deferred: Deferred[Any], seconds: float = 1.0) -> Any:
        """What a call comes to within ``seconds``, by the clock."""
        return result_of(deferred, self.let_pass, seconds)

    # -- the signer ---------------------------------------------------------------------------------------------------

    def _method(self, path: str) -> Any:
        def handle(request: bytes, _context: object) -> Any:
            self.requests.append((path, request))
            if path not in self.answers and path == DESCRIBE:
                raise RpcError(Status.UNIMPLEMENTED, "unknown service")
            if path not in self.answers:
                return {CREATE: self._create, INFO: self._info, SIGN: self._sign}[path](request).SerializeToString()
            answer = self.answers[path]
            if isinstance(answer, RpcError):
                raise answer
            return Deferred() if answer is None else answer

        return handle

    def _create(self, data: bytes) -> Any:
        asked = signer_pb2.CreateKeyRequest.FromString(data)
        key = make_key(asked.algorithm)
        self.keys[key.key_id] = key
        return signer_pb2.PublicKey(keyInfo=key_info(key), publicKey=key.public)

    def _find(self, key_id: str) -> Key:
        if key_id not in self.keys:
            raise RpcError(Status.NOT_FOUND, f"key {key_id} not found")
        return self.keys[key_id]

    def _info(self, data: bytes) -> Any:
        key = self._find(signer_pb2.KeyID.FromString(data).ID)
        return signer_pb2.GetKeyInfoResponse(keyInfo=key_info(key), publicKey=key.public)

    def _sign(self, data: bytes) -> Any:
        asked = signer_pb2.SignatureRequest.FromString(data)
        key = self._find(asked.keyID.ID)
        return signature_of(key, asked.content)


def key_info(key: Key) -> Any:
    return signer_pb2.KeyInfo(
        keyID=signer_pb2.KeyID(ID=key.key_id), algorithm=signer_pb2.Algorithm(algorithm=key.key_type)
    )


def signature_of(key: Key, content: bytes) -> Any:
    assert key.private is not None
    method = signer_pb2.Algorithm(algorithm=key.method)
    return signer_pb2.Signature(keyInfo=key_info(key), algorithm=method, content=raw_signature(key.private, content))
