"""Which of the clients that TLS accepts may call the signer.

Rules of this module: a client is known by the names in its certificate and by nothing else. The decision is made once
for each connection. The log has each refusal with its reason; the client learns only that it was refused. The health of
the signer as a whole is open to every client that TLS accepts, because health checks of containers and load balancers
do not hold the server's certificate. The health of a named service needs the name: a server asks for it to find out
whether it may call that service.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.x509.oid import NameOID
from twisted.logger import Logger

from notary.net.grpc import Context, Handler, Peer, RpcError, Status
from notary.proto import paths

_OPEN: Final[Mapping[str, bytes]] = MappingProxyType({paths.CHECK_HEALTH: b""})
"""Requests that every client may make: a HealthCheckRequest that names no service has no bytes."""


def names_of(certificate: x509.Certificate) -> frozenset[str]:
    """Return the DNS names of a certificate or, if it has none, its common names; in lower case."""
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = alternative.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = []
    if not names:
        names = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return frozenset(name.lower() for name in names)


class Clients:
    """Serves the clients whose certificate has one of ``names``; letter case does not matter."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(name.lower() for name in names)
        self._known: WeakKeyDictionary[Peer, bool] = WeakKeyDictionary()
        self._log = Logger(namespace="notary.signer.clients")

    def guard(self, methods: Mapping[str, Handler]) -> Mapping[str, Handler]:
        """Return the same methods for these clients only; other clients get PERMISSION_DENIED."""
        return {path: self._guarded(handler, _OPEN.get(path)) for path, handler in methods.items()}

    def _guarded(self, handler: Handler, for_all: bytes | None) -> Handler:
        def handle(request: bytes, context: Context) -> object:
            if request != for_all and not self._may_call(context.peer):
                raise RpcError(Status.PERMISSION_DENIED, "the signer does not serve this client; its log says why")
            return handler(request, context)

        return handle  # type: ignore[return-value]

    def _may_call(self, peer: Peer) -> bool:
        known = self._known.get(peer)
        if known is None:
            known = self._known[peer] = self._decide(peer)
        return known

    def _decide(self, peer: Peer) -> bool:
        if peer.certificate is None:
            self._log.error("client {peer} is refused: it showed no certificate", peer=peer.address)
            return False
        try:
            names = names_of(peer.certificate)
        except Exception:  # noqa: BLE001 - fails closed: a parser of hostile bytes may raise any error
            self._log.error("client {peer} is refused: its certificate cannot be read", peer=peer.address)
            return False
        if names.isdisjoint(self._names):
            self._log.error(
                "client {peer} is refused: server.client_names has none of the names in its certificate: {names}",
                peer=peer.address,
                names=", ".join(sorted(names)) or "there are none",
            )
            return False
        return True
