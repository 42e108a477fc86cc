"""Signing for the server: the port, the signer that lives in the server's own memory, and the one that is a service.

Rules of this module: keys are named by their *canonical* id (docs/protocol.md, section 2). A key is pending from its
creation to its first signature; while it is pending it is handed out again for the same collection and role, so that a
client that asks twice before it publishes gets one key. Private keys never leave this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.python.failure import Failure

from notary.errors import KeyNotFound, SigningFailed, SigningUnavailable
from notary.net.grpc import Channel, RpcError, Status
from notary.proto import health_pb2, signer_pb2
from notary.server.validators import InThread
from notary.tuf import private
from notary.tuf.keys import PublicKey
from notary.tuf.model import MAX_SIGNATURES, Gun, RoleName, Signature
from notary.tuf.publish import Draft

T = TypeVar("T")
M = TypeVar("M", bound=Message)

SIGNER_SECONDS = 5.0
"""How long the signer may take for one call. A publish needs one or two of them, one after the other."""


MAX_CREATIONS = 200
"""How many keys one server has the signer make at the same time: fewer than ours lets wait, and few enough that calls
for signatures find room on the connection. A Go signer bounds nothing by itself."""

_UNAVAILABLE = frozenset({Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED, Status.DEADLINE_EXCEEDED})


class SigningService(Protocol):
    """Holds the timestamp and snapshot keys of collections and signs with them.

    Every method fails with SigningFailed when the service cannot be reached or cannot do its work; those about keys
    with SigningUnavailable if asking again later may help.
    """

    def create_key(self, gun: Gun, role: RoleName) -> Deferred[PublicKey]:
        """The pending key of this collection and role, made now if there is none."""
        ...

    def get_key(self, key_id: str) -> Deferred[PublicKey]:
        """The public part of a key. Raises KeyNotFound."""
        ...

    def sign(self, key_id: str, payload: bytes) -> Deferred[tuple[str, bytes]]:
        """The signature method (docs/protocol.md, section 2) and signature of ``payload``. Raises KeyNotFound."""
        ...

    def check(self) -> Deferred[None]:
        """Do the smallest real piece of work; raises SigningFailed if that is not possible."""
        ...

    def close(self) -> Deferred[None]:
        """Release connections. Nothing may be called after."""
        ...


class LocalSigner:
    """Ed25519 keys in memory: for trying things out. A restart loses them, and with them the right to publish."""

    def __init__(self) -> None:
        self._keys: dict[str, private.PrivateKey] = {}
        self._pending: dict[tuple[Gun, RoleName], PublicKey] = {}
        self._made_for: dict[str, tuple[Gun, RoleName]] = {}

    def create_key(self, gun: Gun, role: RoleName) -> Deferred[PublicKey]:
        """See the port."""
        return maybeDeferred(self._create, gun, role)

    def get_key(self, key_id: str) -> Deferred[PublicKey]:
        """See the port."""
        return maybeDeferred(lambda: self._find(key_id).public)

    def sign(self, key_id: str, payload: bytes) -> Deferred[tuple[str, bytes]]:
        """See the port."""
        return maybeDeferred(self._sign, key_id, payload)

    def check(self) -> Deferred[None]:
        """See the port: memory always works."""
        return succeed(None)

    def close(self) -> Deferred[None]:
        """See the port: there is nothing to release."""
        return succeed(None)

    def _create(self, gun: Gun, role: RoleName) -> PublicKey:
        pending = self._pending.get((gun, role))
        if pending is None:
            key = private.generate("ed25519")
            pending = self._pending[gun, role] = key.public
            self._keys[pending.key_id] = key
            self._made_for[pending.key_id] = (gun, role)
        return pending

    def _find(self, key_id: str) -> private.PrivateKey:
        try:
            return self._keys[key_id]
        except KeyError:
            raise KeyNotFound(f"the local signing service holds no key {key_id}") from None

    def _sign(self, key_id: str, payload: bytes) -> tuple[str, bytes]:
        key = self._find(key_id)
        owner = self._made_for.pop(key_id, None)
        if owner is not None:
            del self._pending[owner]
        return key.method, key.sign(payload)


class RemoteSigner:
    """Keys of a signer of its own, ours or the Go one's, over gRPC (docs/protocol.md, section 4).

    ``algorithm`` is that of the keys it makes. A signature is asked for at once, without asking first whether the key
    is there, as the reference does: the signer says so by itself.
    """

    def __init__(self, channel: Channel, algorithm: str) -> None:
        self._channel = channel
        self._algorithm = algorithm
        self._creating = 0

    def create_key(self, gun: Gun, role: RoleName) -> Deferred[PublicKey]:
        """See the port."""
        if self._creating >= MAX_CREATIONS:
            return fail(SigningUnavailable(f"{MAX_CREATIONS} keys are being made already; try again later"))
        request = signer_pb2.CreateKeyRequest(algorithm=self._algorithm, gun=gun, role=role)
        self._creating += 1
        made = self._call("/proto.KeyManagement/CreateKey", request, signer_pb2.PublicKey, _public_key)
        return made.addBoth(self._created).addErrback(_later)

    def _created(self, result: Any) -> Any:
        self._creating -= 1
        return result

    def get_key(self, key_id: str) -> Deferred[PublicKey]:
        """See the port."""
        request = signer_pb2.KeyID(ID=key_id)

        def asked_for(answer: signer_pb2.GetKeyInfoResponse) -> PublicKey:
            key = _public_key(answer)
            if key.key_id != key_id:
                raise _SenselessAnswer
            return key

        return self._call(
            "/proto.KeyManagement/GetKeyInfo", request, signer_pb2.GetKeyInfoResponse, asked_for
        ).addErrback(_later)

    def sign(self, key_id: str, payload: bytes) -> Deferred[tuple[str, bytes]]:
        """See the port."""
        request = signer_pb2.SignatureRequest(keyID=signer_pb2.KeyID(ID=key_id), content=payload)

        def method_and_content(answer: signer_pb2.Signature) -> tuple[str, bytes]:
            if not answer.content:
                raise _SenselessAnswer
            return answer.algorithm.algorithm, answer.content

        return self._call("/proto.Signer/Sign", request, signer_pb2.Signature, method_and_content)

    async def _check(self) -> None:
        for service in ("grpc.health.v1.Health.KeyManagement", "grpc.health.v1.Health.Signer"):
            request = health_pb2.HealthCheckRequest(service=service)
            try:
                status = await self._call(
                    "/grpc.health.v1.Health/Check",
                    request,
                    health_pb2.HealthCheckResponse,
                    lambda answer: answer.status,
                )
            except KeyNotFound as error:  # what NOT_FOUND means elsewhere
                raise SigningFailed(f"the signer at {self._channel.name} has no service {service}") from error
            if status != health_pb2.HealthCheckResponse.SERVING:
                raise SigningFailed(f"the signer at {self._channel.name} says that it cannot work; its log says why")

    def check(self) -> Deferred[None]:
        """See the port."""
        return Deferred.fromCoroutine(self._check())

    def close(self) -> Deferred[None]:
        """See the port."""
        return self._channel.close()

    def _call(self, path: str, request: Message, answer: type[M], read: Callable[[M], T]) -> Deferred[T]:
        call = self._channel.call(path, request.SerializeToString(), SIGNER_SECONDS)
        return call.addCallback(answer.FromString).addCallback(read).addErrback(self._failed)

    def _failed(self, failure: Failure) -> NoReturn:
        failure.trap(RpcError, DecodeError, _SenselessAnswer)
        error = failure.value
        if not isinstance(error, RpcError):
            raise SigningFailed(f"the signer at {self._channel.name} sent an answer that makes no sense")
        if error.status is Status.NOT_FOUND:
            raise KeyNotFound(str(error))
        message = f"the signer at {self._channel.name}: {error.status.name}: {error.message}"
        raise SigningFailed(message) from error


def _later(failure: Failure) -> NoReturn:
    """Tell a signer that may answer later from one that cannot do its work."""
    error = failure.value
    if isinstance(error, SigningFailed):
        cause = error.__cause__
        if isinstance(cause, RpcError) and cause.status in _UNAVAILABLE:
            raise SigningUnavailable(str(error))
    failure.raiseException()


class _SenselessAnswer(Exception):
    """A signer answered with a message of the right kind that cannot be what was asked for."""


def _public_key(answer: signer_pb2.PublicKey | signer_pb2.GetKeyInfoResponse) -> PublicKey:
    if not answer.publicKey:
        raise _SenselessAnswer
    return PublicKey(answer.keyInfo.algorithm.algorithm, answer.publicKey)


async def sign_draft(service: SigningService, draft: Draft, place: InThread) -> bytes:
    """Sign ``draft`` with every key of its role that the service holds; the bytes of the finished file.

    ``place`` is where the signatures are verified and the file is put together.

    Raises what ``draft.assemble`` raises when these are fewer than the role's threshold, and SigningFailed.
    """
    signatures = []
    for key in draft.keys[:MAX_SIGNATURES]:  # nearly always one; beyond that, no reader would take the file
        try:
            method, sig = await service.sign(key.canonical_id, draft.payload)
        except KeyNotFound:
            continue
        signatures.append(Signature(key_id=key.key_id, method=method, sig=sig))
    return await place(lambda: draft.assemble(signatures))
