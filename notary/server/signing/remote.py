"""One connection to a notary-signer, as a signing service: gRPC over mutual TLS.

Rules of this module: what the signer answers is checked before it is used; an answer that makes no sense is a failure
of the signer, not of the client's request. (docs/protocol.md, section 4)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

from google.protobuf.message import DecodeError, Message
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from notary.errors import KeyNotFound, SigningFailed, SigningUnavailable
from notary.net.grpc import Channel, RpcError, Status
from notary.proto import health_pb2, instance_pb2, paths, signer_pb2
from notary.tuf.model import Gun, RoleName
from notary.tuf.public import PublicKey

M = TypeVar("M", bound=Message)

SIGNER_SECONDS = 5.0
"""How long one call may take, with all its repeats. A publish needs one or two of them, one after the other."""

MAX_CREATIONS = 200
"""How many keys one server has the signer make at the same time: fewer than ours lets wait, and few enough that calls
for signatures find room on the connection. A Go signer bounds nothing by itself."""

_NO_KEY = "0" * 64
"""The id of a key that no signer holds."""

_UNAVAILABLE = frozenset({Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED, Status.DEADLINE_EXCEEDED})

T = TypeVar("T")


class RemoteSigner:
    """Keys of a signer of its own, ours or the Go one's, over gRPC (docs/protocol.md, section 4).

    ``algorithm`` is that of the keys it makes. A signature is asked for at once, without asking first whether the key
    is there, as the reference does: the signer says so by itself. ``told`` has the names of the signers of which the
    log says already that they have no health service; all connections to one signer share it.
    """

    def __init__(self, channel: Channel, algorithm: str, told: set[str] | None = None) -> None:
        self._channel = channel
        self._algorithm = algorithm
        self._creating = 0
        self._told = set() if told is None else told
        self._log = Logger(namespace="notary.server.signing")

    def create_key(self, gun: Gun, role: RoleName, seconds: float = SIGNER_SECONDS) -> Deferred[PublicKey]:
        """See the port; ``seconds`` is how long the call may take."""
        if self._creating >= MAX_CREATIONS:
            return fail(SigningUnavailable(f"{MAX_CREATIONS} keys are being made already; try again later"))
        request = signer_pb2.CreateKeyRequest(algorithm=self._algorithm, gun=gun, role=role)
        self._creating += 1
        made = self._call(paths.CREATE_KEY, request, signer_pb2.PublicKey, _public_key, seconds)
        return made.addBoth(self._created).addErrback(_later)

    def _created(self, result: Any) -> Any:
        self._creating -= 1
        return result

    def get_key(self, key_id: str, seconds: float = SIGNER_SECONDS) -> Deferred[PublicKey]:
        """See the port; ``seconds`` is how long the call may take."""
        request = signer_pb2.KeyID(ID=key_id)

        def asked_for(answer: signer_pb2.GetKeyInfoResponse) -> PublicKey:
            key = _public_key(answer)
            if key.key_id != key_id:
                raise _SenselessAnswer
            return key

        answer = self._call(paths.GET_KEY_INFO, request, signer_pb2.GetKeyInfoResponse, asked_for, seconds)
        return answer.addErrback(_later)

    def sign(self, key_id: str, payload: bytes, seconds: float = SIGNER_SECONDS) -> Deferred[tuple[str, bytes]]:
        """See the port; ``seconds`` is how long the call may take."""
        request = signer_pb2.SignatureRequest(keyID=signer_pb2.KeyID(ID=key_id), content=payload)

        def method_and_content(answer: signer_pb2.Signature) -> tuple[str, bytes]:
            if not answer.content:
                raise _SenselessAnswer
            return answer.algorithm.algorithm, answer.content

        return self._call(paths.SIGN, request, signer_pb2.Signature, method_and_content, seconds)

    def describe(self) -> Deferred[tuple[str, int]]:
        """The id of the process that answers, and how many processes answer at its address.

        Fails as calls do: only our own signers know the method.
        """
        return self._call(
            paths.DESCRIBE,
            instance_pb2.DescribeRequest(),
            instance_pb2.InstanceDescription,
            lambda answer: (answer.id, answer.processes),
        )

    async def _check(self) -> None:
        try:
            await self._check_health()
            self._told.discard(self._channel.name)
        except SigningFailed as error:
            cause = error.__cause__
            if not (isinstance(cause, RpcError) and cause.status is Status.UNIMPLEMENTED):
                raise
            await self._check_life()

    async def _check_life(self) -> None:
        """Ask a signer that has no health service for a key that it cannot hold: one that says so is alive.

        That the health service is unknown proves nothing: a proxy says so too, when it knows no way to a signer.
        """
        request = signer_pb2.KeyID(ID=_NO_KEY)
        with suppress(KeyNotFound):
            await self._call(paths.GET_KEY_INFO, request, signer_pb2.GetKeyInfoResponse, lambda _: None)
        if self._channel.name not in self._told:
            self._told.add(self._channel.name)
            self._log.warn(
                "the signer at {name} has no health service, as before Notary 0.5: it counts as healthy while it "
                "answers, also when its database fails",
                name=self._channel.name,
            )

    async def _check_health(self) -> None:
        for service in (paths.HEALTH_OF_KEY_MANAGEMENT, paths.HEALTH_OF_SIGNER):
            request = health_pb2.HealthCheckRequest(service=service)
            try:
                status = await self._call(
                    paths.CHECK_HEALTH,
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

    def _call(
        self, path: str, request: Message, answer: type[M], read: Callable[[M], T], seconds: float = SIGNER_SECONDS
    ) -> Deferred[T]:
        call = self._channel.call(path, request.SerializeToString(), seconds)
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
            raise SigningUnavailable(str(error)) from cause
    failure.raiseException()


class _SenselessAnswer(Exception):
    """A signer answered with a message of the right kind that cannot be what was asked for."""


def _public_key(answer: signer_pb2.PublicKey | signer_pb2.GetKeyInfoResponse) -> PublicKey:
    if not answer.publicKey:
        raise _SenselessAnswer
    return PublicKey(answer.keyInfo.algorithm.algorithm, answer.publicKey)
