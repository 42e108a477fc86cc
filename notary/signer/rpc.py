"""The signer's edge: gRPC messages in, use cases of the keyring, gRPC messages out (docs/protocol.md, section 4).

Rules of this module:

- :meth:`Rpc.methods` is the one table of methods, :data:`_STATUSES` the one table from domain errors to statuses.
- The text of a domain error goes to the client and to the log. Any other error might hold a secret in its text, so the
  client learns nothing of it, and the log has only its type and place.
- The log names keys, collections and roles, and never shows a message.
- The health service says SERVING only while the key store answers and the passphrase of new keys opens stored ones
  (``trial``). Each health check asks the store; checks that arrive at the same time share one question.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import lru_cache
from time import monotonic
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from notary.errors import (
    CustodyUnavailable,
    KeyDoesNotOpen,
    KeyNotFound,
    NotaryError,
    SigningFailed,
    SigningUnavailable,
    StorageFailed,
    UnsupportedAlgorithm,
)
from notary.net.grpc import Context, Handler, RpcError, Status
from notary.observe.logs import error_id, failure_fields
from notary.observe.readiness import Readiness
from notary.observe.readiness import Status as Readable
from notary.proto import health_pb2, instance_pb2, paths, signer_pb2
from notary.signer.keyring import CAPACITY, Keyring, Signed
from notary.signer.metrics import SignerMetrics
from notary.signer.trial import Trial
from notary.tuf.public import PublicKey
from notary.work.repeats import Seldom
from notary.work.singleflight import SingleFlight

SERVICES: Final = frozenset({paths.HEALTH_OF_ALL, paths.HEALTH_OF_KEY_MANAGEMENT, paths.HEALTH_OF_SIGNER})
"""The service names of health checks: those of the reference, and the signer as a whole."""

_STATUSES: Final[Mapping[type[NotaryError], Status]] = MappingProxyType(
    {
        KeyNotFound: Status.NOT_FOUND,
        UnsupportedAlgorithm: Status.UNKNOWN,
        CustodyUnavailable: Status.UNAVAILABLE,
    }
)
"""Any other domain error is INTERNAL, as in the reference, whose server distinguishes only NOT_FOUND. The exception is
SigningUnavailable: it is RESOURCE_EXHAUSTED, and is logged once a minute."""

_STORE, _PASSPHRASE = "store", "passphrase"
"""The names of the checks."""

_Request = TypeVar("_Request", bound=Message)
_Answer: TypeAlias = bytes | Awaitable[Message | bytes]


class Rpc:
    """The methods of a signer: those of ``keyring``, and the health of its store, which ``check`` asks.

    ``logs_info`` returns whether lines of level info are logged: a line that is made for each signature and then
    dropped costs a sixth of the signature. ``seconds`` is the clock that limits how often some lines are logged.
    ``trouble`` says what keeps the custody from working, "" if nothing does.
    """

    def __init__(
        self,
        keyring: Keyring,
        check: Callable[[], Deferred[None]],
        metrics: SignerMetrics,
        logs_info: Callable[[], bool] = lambda: True,
        seconds: Callable[[], float] = monotonic,
        *,
        trial: Trial | None = None,
        processes: int = 1,
        trouble: Callable[[], str] = lambda: "",
    ) -> None:
        self._keyring = keyring
        self._metrics = metrics
        self._retired = False
        self._logs_info = logs_info
        self._check = check
        self._trouble = trouble
        self._trial = trial
        self._description = instance_pb2.InstanceDescription(id=secrets.token_hex(8), processes=processes)
        self._asking = SingleFlight(self._ask)
        self._failures: dict[str, str] = {}
        self._log = Logger(namespace="notary.signer.rpc")
        self._no_key = Seldom(lambda line: self._log.error("no key is made: {why}", why=line), seconds)

    def methods(self) -> Mapping[str, Handler]:
        """Return the handlers by the paths of their methods. A handler returns the answer, or raises RpcError."""
        return {
            paths.CREATE_KEY: self._handler(signer_pb2.CreateKeyRequest, self._create_key),
            paths.DELETE_KEY: self._handler(signer_pb2.KeyID, self._delete_key),
            paths.GET_KEY_INFO: self._handler(signer_pb2.KeyID, self._get_key_info),
            paths.SIGN: self._handler(signer_pb2.SignatureRequest, self._sign),
            paths.CHECK_HEALTH: self._handler(health_pb2.HealthCheckRequest, self._check_health),
            paths.DESCRIBE: self._handler(instance_pb2.DescribeRequest, self._describe),
        }

    def _handler(self, request_type: type[_Request], method: Callable[[_Request], _Answer]) -> Handler:
        name = method.__name__.lstrip("_")

        def handle(data: bytes, _context: Context) -> bytes | Coroutine[Any, Any, bytes]:
            try:
                request = request_type.FromString(data)
            except DecodeError:
                raise RpcError(Status.INTERNAL, f"the request is not a {request_type.DESCRIPTOR.full_name}") from None
            try:
                answer = method(request)
            except Exception as error:  # noqa: BLE001 - the edge
                raise self._logged(name, error) from None
            return answer if isinstance(answer, bytes) else wait(answer)

        async def wait(answer: Awaitable[Message | bytes]) -> bytes:
            try:
                made = await answer
                return made if isinstance(made, bytes) else made.SerializeToString()
            except Exception as error:  # noqa: BLE001 - the edge
                raise self._logged(name, error) from None

        return handle

    def _logged(self, method: str, error: Exception) -> Exception:
        """Log an error, and return the error that the client gets. One call fails, and the signer goes on."""
        if isinstance(error, RpcError | CancelledError):
            return error
        if isinstance(error, SigningUnavailable):
            self._no_key(str(error))
            return RpcError(Status.RESOURCE_EXHAUSTED, str(error))
        if isinstance(error, NotaryError):
            if self._trial is not None and type(error) in (SigningFailed, KeyDoesNotOpen):
                self._trial.suspect()
            status = _STATUSES.get(type(error), Status.INTERNAL)
            self._log.error("{method} failed: {error}", method=method, error=str(error), status=status.name)
            return RpcError(status, str(error))
        failure, known_as = Failure(error), error_id()
        self._metrics.unexpected()
        self._log.error(
            "{method} broke: {error}",
            method=method,
            error=type(error).__name__,
            traceback=failure_fields(failure)["traceback"],
            error_id=known_as,
            log_incident=failure,
            operation=method,
        )
        return RpcError(Status.INTERNAL, f"the signer could not do this; its log says why, at error_id {known_as}")

    # -- keys ---------------------------------------------------------------------------------------------------------

    async def _create_key(self, request: signer_pb2.CreateKeyRequest) -> signer_pb2.PublicKey:
        if self._trial is not None:
            await self._trial.before_a_key()
        key = await self._keyring.create(request.gun, request.role, request.algorithm)
        self._log.info(
            "created, or found pending, key {key_id}",
            key_id=key.key_id,
            gun=request.gun,
            role=request.role,
            algorithm=key.key_type,
        )
        return signer_pb2.PublicKey(keyInfo=_info(key), publicKey=key.public)

    async def _delete_key(self, request: signer_pb2.KeyID) -> signer_pb2.Void:
        if await self._keyring.delete(request.ID):
            self._log.info("deleted key {key_id}", key_id=request.ID)
        return signer_pb2.Void()

    async def _get_key_info(self, request: signer_pb2.KeyID) -> signer_pb2.GetKeyInfoResponse:
        found = await self._keyring.find(request.ID)
        return signer_pb2.GetKeyInfoResponse(keyInfo=_info(found.key), publicKey=found.key.public, role=found.role)

    def _sign(self, request: signer_pb2.SignatureRequest) -> _Answer:
        key_id, content = request.keyID.ID, request.content
        signed = self._keyring.sign_fast(key_id, content)
        return self._sign_later(key_id, content) if signed is None else self._signature(signed)

    async def _sign_later(self, key_id: str, content: bytes) -> bytes:
        return self._signature(await self._keyring.sign(key_id, content))

    def _signature(self, signed: Signed) -> bytes:
        self._metrics.signed(signed.key.key_type)
        if self._logs_info():
            self._log.info("signed with key {key_id}", key_id=signed.key.key_id)
        return (
            _signed_by(signed.key, signed.method) + signer_pb2.Signature(content=signed.signature).SerializeToString()
        )

    # -- health -------------------------------------------------------------------------------------------------------

    async def readiness(self) -> Readiness:
        """Return whether this signer can sign: its store answers, and the signer is not stopping.

        A custody that is away makes it degraded, not unready: keys in memory sign, and other signers may share the
        same machine.
        """
        if self._retired:
            return Readiness(ready=False, status="stopping")
        works = await self._asking("")
        failures = dict(self._failures)
        trouble = self._trouble()
        if trouble:
            failures["custody"] = trouble
        status: Readable = "failing" if not works else "degraded" if trouble else "ok"
        return Readiness(ready=works, status=status, facts={"failures": failures})

    def retire(self) -> None:
        """Report from now on that this signer is not ready, because it stops."""
        self._retired = True

    def works(self) -> Deferred[bool]:
        """Return whether this signer can sign; callers that ask at the same time share one question."""
        return self._asking("")

    async def _check_health(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        if request.service not in SERVICES:
            raise RpcError(Status.NOT_FOUND, "unknown service")
        response = health_pb2.HealthCheckResponse
        return response(status=response.SERVING if await self._asking("") else response.NOT_SERVING)

    async def _ask(self, _what: str) -> bool:
        """Return whether the store answers and its keys can be opened, and log each change of the first."""
        try:
            await self._check()
        except StorageFailed as error:
            if _STORE not in self._failures:
                self._log.error("the key store does not answer: {error}", error=str(error))
            self._failures[_STORE] = "the key store does not answer; the log says why"
        else:
            if self._failures.pop(_STORE, None):
                self._log.error("the key store answers again")
        self._metrics.set_health(_STORE, _STORE not in self._failures)
        if self._trial is not None:
            reason = await self._trial.reason()
            self._failures.pop(_PASSPHRASE, None)
            if reason:
                self._failures[_PASSPHRASE] = "the passphrase opens no stored key; the log says why"
            self._metrics.set_health(_PASSPHRASE, not reason)
        return not self._failures

    def _describe(self, _request: instance_pb2.DescribeRequest) -> bytes:
        return self._description.SerializeToString()


@lru_cache(maxsize=CAPACITY)
def _signed_by(key: PublicKey, method: str) -> bytes:
    """Return a serialised Signature without its content. Serialised messages of one type merge when they are joined."""
    return signer_pb2.Signature(
        keyInfo=_info(key), algorithm=signer_pb2.Algorithm(algorithm=method)
    ).SerializeToString()


def _info(key: PublicKey) -> signer_pb2.KeyInfo:
    return signer_pb2.KeyInfo(
        keyID=signer_pb2.KeyID(ID=key.key_id), algorithm=signer_pb2.Algorithm(algorithm=key.key_type)
    )
