"""A signing service that is a notary-signer: gRPC over mutual TLS.

Rules of this module: what the signer answers is checked before it is used; an answer that makes no sense is a failure
of the signer, not of the client's request. (docs/protocol.md, section 4)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

from google.protobuf.message import DecodeError, Message
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from notary.config import TrustService
from notary.config.files import SIGNER_CLIENT_TLS
from notary.errors import KeyNotFound, SigningFailed, SigningUnavailable
from notary.net.grpc import Channel, RpcError, Status
from notary.net.tls import contexts
from notary.net.tls.wording import Wording
from notary.proto import health_pb2, paths, signer_pb2
from notary.server.signing import Signing
from notary.server.sources import Source
from notary.tuf.model import Gun, RoleName
from notary.tuf.public import PublicKey
from notary.work.reactor import Reactor

M = TypeVar("M", bound=Message)

SIGNER_SECONDS = 5.0
"""How long the signer may take for one call. A publish needs one or two of them, one after the other."""


MAX_CREATIONS = 200
"""How many keys one server has the signer make at the same time: fewer than ours lets wait, and few enough that calls
for signatures find room on the connection. A Go signer bounds nothing by itself."""

_UNAVAILABLE = frozenset({Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED, Status.DEADLINE_EXCEEDED})

T = TypeVar("T")


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
        made = self._call(paths.CREATE_KEY, request, signer_pb2.PublicKey, _public_key)
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

        return self._call(paths.GET_KEY_INFO, request, signer_pb2.GetKeyInfoResponse, asked_for).addErrback(_later)

    def sign(self, key_id: str, payload: bytes) -> Deferred[tuple[str, bytes]]:
        """See the port."""
        request = signer_pb2.SignatureRequest(keyID=signer_pb2.KeyID(ID=key_id), content=payload)

        def method_and_content(answer: signer_pb2.Signature) -> tuple[str, bytes]:
            if not answer.content:
                raise _SenselessAnswer
            return answer.algorithm.algorithm, answer.content

        return self._call(paths.SIGN, request, signer_pb2.Signature, method_and_content)

    async def _check(self) -> None:
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


def build(trust: TrustService, reactor: Reactor) -> Signing:
    """Build the service, which connects when it is first asked. Raises ConfigError if a file cannot be used."""
    wording = Wording(**SIGNER_CLIENT_TLS)
    files = trust.tls_ca_file, trust.tls_client_cert, trust.tls_client_key
    options = contexts.client_options(trust.hostname, *files, wording=wording)
    keys = ("trust_service.tls_ca_file", "trust_service.tls_client_cert", "trust_service.tls_client_key")

    def sources(trust: TrustService) -> Sequence[Source]:
        files = trust.tls_ca_file, trust.tls_client_cert, trust.tls_client_key
        return (Source(keys, files, partial(contexts.client_context, *files, wording=wording), options.use),)

    channel = Channel.to(reactor, trust.hostname, trust.port, options)
    return Signing(RemoteSigner(channel, trust.key_algorithm), "Using remote signing service", sources)
