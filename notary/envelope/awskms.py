"""A key-encrypting key in AWS KMS, by botocore: an extra, which signs the requests and finds the credentials.

Rules of this module:

- The key is symmetric, and named by its ARN: an alias may become that of another key.
- Credentials are found as other programs of AWS find them: in the file of a profile, from the role of the machine, the
  container or the pod. They are in no configuration of ours.
- A request has bounds of its own for connecting and reading, and is made a second time by botocore. After a failure,
  requests are refused at once until a pause is over; pauses grow.
- Connections are botocore's, with its own rules of TLS: at least TLS 1.2, and the certificates that it brings, unless
  ``ca-file`` names others.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Final

from notary import __version__
from notary.config import KekUri
from notary.config import awskms as uris
from notary.config.awskms import KmsKey
from notary.envelope import OneVersion
from notary.envelope.pauses import Pauses
from notary.errors import ConfigError, CustodyUnavailable, SigningFailed
from notary.tuf.canonical import quote

TIMEOUT_SECONDS: Final = 5.0
"""How long a connection may take, and then an answer; twice that, since a request is repeated once."""

_CONTEXT: Final = "notary-data-key"
"""The name of what is authenticated with a data key; it stands in the audit log of KMS."""

_DAMAGED: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
_ADVICE: Final[Mapping[str, str]] = {
    "AccessDeniedException": "the credentials may not use the key: allow kms:Encrypt and kms:Decrypt",
    "DisabledException": "the key is disabled",
    "KMSInvalidStateException": "the key is not in use: it is disabled, waits for its deletion, or has no material",
    "NotFoundException": "there is no such key in this region and account",
    "UnrecognizedClientException": "the credentials are not those of this account",
    "ExpiredTokenException": "the credentials have expired",
    "ThrottlingException": "KMS limits requests",
    "NoCredentialsError": "there are no credentials: no profile, and no role of the machine, the container or the pod",
    "ProfileNotFound": "there is no such profile in the configuration of AWS",
    "EndpointConnectionError": "KMS cannot be reached",
    "ConnectTimeoutError": "KMS cannot be reached: a connection takes too long",
    "ReadTimeoutError": "KMS does not answer",
    "SSLError": "the certificate of KMS is not trusted",
}
"""What is wrong and what to do, by the code of KMS or the name of botocore's error."""


class KmsKek(OneVersion):
    """See :class:`notary.envelope.KeyEncryptingKey`. KMS finds the material by itself, also after a rotation.

    Args:
        key: Where the key is.
        seconds: A monotonic clock.
        timeout_seconds: How long a connection may take, and an answer.
    """

    def __init__(
        self, key: KmsKey, seconds: Callable[[], float] = monotonic, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self.name = key.name
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()  # one request at a time: there are few
        self._client: Any = None
        self._pauses = Pauses(seconds)
        self._closed = False

    def __repr__(self) -> str:
        return f"<KmsKek {self.name}>"

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        """See the port."""
        return bytes(self._ask("encrypt", context, Plaintext=data_key)["CiphertextBlob"])

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See the port."""
        if not wrapped:
            raise SigningFailed("its data key does not open: the stored bytes are damaged")
        return bytes(self._ask("decrypt", context, CiphertextBlob=wrapped)["Plaintext"])

    def check(self) -> None:
        """See the port."""
        probe = b"a data key that is none"
        if self.unwrap(self.wrap(probe, b"probe"), b"probe") != probe:
            raise self._away("it does not decrypt what it has encrypted")

    def close(self) -> None:
        """See the port: what waits for an answer waits on, for some seconds."""
        self._closed = True
        client = self._client
        if client is not None:
            client.close()

    def _ask(self, work: str, context: bytes, **arguments: Any) -> Mapping[str, Any]:
        with self._lock:
            if self._closed:
                raise self._away("this process is stopping")
            paused = self._pauses.reason()
            if paused is not None:
                raise self._away(paused)
            try:
                client = self._client = self._client or self._connected()
                bound = {_CONTEXT: context.decode("utf-8", "backslashreplace")}
                answer: Mapping[str, Any] = getattr(client, work)(
                    KeyId=self._key.arn, EncryptionContext=bound, **arguments
                )
            except Exception as error:  # noqa: BLE001 - botocore raises errors of many libraries
                code = _code(error)
                if code in _DAMAGED and work == "decrypt":
                    raise SigningFailed(
                        "its data key does not open: the stored bytes are damaged, or the key is another one"
                    ) from None
                kind = code or type(error).__name__
                why = _ADVICE.get(kind, f"KMS says {quote(kind)}" if code else kind)
                self._pauses.failed(why)
                raise self._away(why) from None
            self._pauses.worked()
            return answer

    def _connected(self) -> Any:
        import botocore.session  # an extra, slow to load
        from botocore.config import Config

        session = botocore.session.Session(profile=self._key.profile or None)
        return session.create_client(
            "kms",
            region_name=self._key.region,
            endpoint_url=self._key.endpoint or None,
            verify=self._key.ca_path or None,
            config=Config(
                connect_timeout=self._timeout_seconds,
                read_timeout=self._timeout_seconds,
                retries={"total_max_attempts": 2, "mode": "standard"},
                user_agent_extra=f"notary-signer/{__version__}",
            ),
        )

    def _away(self, why: str) -> CustodyUnavailable:
        return CustodyUnavailable(f"the key-encrypting key {self._key} cannot be used now: {why}")


def _code(error: Exception) -> str:
    """What KMS says is wrong; "" if it says nothing."""
    response = getattr(error, "response", None)  # that of botocore's own errors may be something else
    found = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    return str(found)


def open_kms(uri: KekUri, key: str, _reactor: object) -> KmsKek:
    """Return the key of ``uri``, which is not asked for yet. ``key`` is for messages. Raises ConfigError."""
    if importlib.util.find_spec("botocore") is None:
        raise ConfigError(f"{key}: a key in AWS KMS needs botocore; expected notary-service[awskms] to be installed")
    found = uris.parse(uri.place)
    if found.ca_path and not Path(found.ca_path).is_file():
        raise ConfigError(f"{key}: ca-file: {found.ca_path} is not there; expected a file of certificates, PEM")
    return KmsKek(found)
