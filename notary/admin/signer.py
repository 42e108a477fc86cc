"""Which keys the signer of a server holds, as a command asks it.

Rules of this module: the signer is asked as the server asks it, with the server's own certificate. No key is made.
"""

from __future__ import annotations

from typing import Final

from notary.admin.session import Session
from notary.config import ServerConfig
from notary.config.files import SIGNER_CLIENT_TLS
from notary.errors import ConfigError, SigningFailed
from notary.net.grpc import Channel, RpcError, Status
from notary.net.tls import contexts
from notary.net.tls.wording import Wording
from notary.proto import paths, signer_pb2

TIMEOUT_SECONDS: Final = 5.0
"""The longest time until the signer answers."""


class SignerKeys:
    """The keys of the signer of a server. Raises ConfigError if it is no signer that another process can ask."""

    def __init__(self, config: ServerConfig, session: Session) -> None:
        trust = config.trust_service
        if trust.type != "remote":
            raise ConfigError(
                "trust_service.type: the keys are in the memory of the server, which nothing else can read; expected "
                '"remote"'
            )
        self._name = f"{trust.hostname}:{trust.port}"
        own = trust.tls_ca_file, trust.tls_client_cert, trust.tls_client_key
        options = contexts.client_options(trust.hostname, *own, wording=Wording(**SIGNER_CLIENT_TLS))
        self._channel = Channel.to(session.reactor, trust.hostname, trust.port, options)
        session.at_end(self._channel.close)

    async def has(self, key_id: str) -> bool:
        """Return whether the signer holds the key with this canonical id. Raises SigningFailed."""
        request = signer_pb2.KeyID(ID=key_id)
        try:
            await self._channel.call(paths.GET_KEY_INFO, request.SerializeToString(), TIMEOUT_SECONDS)
        except RpcError as error:
            if error.status is Status.NOT_FOUND:
                return False
            raise SigningFailed(f"the signer at {self._name} does not say which keys it holds: {error}") from None
        return True
