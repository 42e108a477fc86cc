"""Which keys the signers of a server hold, as a command asks them.

Rules of this module: the signers are asked as the server asks them, with the server's own certificate, one after the
other until one answers. No key is made.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from notary.admin.session import Session
from notary.config import ServerConfig
from notary.config.files import SIGNER_CLIENT_TLS
from notary.errors import ConfigError, SigningFailed
from notary.net.address import join
from notary.net.grpc import Channel, RpcError, Status
from notary.net.tls import contexts
from notary.net.tls.wording import Wording
from notary.proto import paths, signer_pb2

TIMEOUT_SECONDS: Final = 5.0
"""The longest time until the signer answers."""


class SignerKeys:
    """The keys of the signers of a server. Raises ConfigError if it is no signer that another process can ask."""

    def __init__(self, config: ServerConfig, session: Session) -> None:
        trust = config.trust_service
        if trust.type != "remote":
            raise ConfigError(
                "trust_service.type: the keys are in the memory of the server, which nothing else can read; expected "
                '"remote"'
            )
        own = trust.tls_ca_file, trust.tls_client_cert, trust.tls_client_key
        options = contexts.client_options(trust.hostname, *own, wording=Wording(**SIGNER_CLIENT_TLS))
        authority = join(trust.hostname, trust.port)
        self._channels = deque(
            Channel.to(session.reactor, place.host, place.port, options, authority=authority) for place in trust.signers
        )
        for channel in self._channels:
            session.at_end(channel.close)

    async def has(self, key_id: str) -> bool:
        """Return whether the signers hold the key with this canonical id. Raises SigningFailed if none says so."""
        request = signer_pb2.KeyID(ID=key_id)
        reasons = []
        for channel in list(self._channels):
            try:
                await channel.call(paths.GET_KEY_INFO, request.SerializeToString(), TIMEOUT_SECONDS)
            except RpcError as error:
                if error.status is Status.NOT_FOUND:
                    return False
                reasons.append(f"the signer at {channel.name} does not say which keys it holds: {error}")
                self._channels.rotate(-1)  # the next key is asked for elsewhere first
            else:
                return True
        raise SigningFailed("; ".join(reasons))
