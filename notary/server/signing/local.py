"""A signing service in the memory of this process, for trying things out: Ed25519 keys that end with it."""

from __future__ import annotations

from twisted.internet.defer import Deferred, maybeDeferred, succeed

from notary.config import TrustService
from notary.errors import KeyNotFound
from notary.server.signing import Signing
from notary.tuf import private
from notary.tuf.model import Gun, RoleName
from notary.tuf.public import PublicKey
from notary.work.reactor import Reactor


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


def build(_trust: TrustService, _reactor: Reactor) -> Signing:
    """Build the service, which has no options."""
    return Signing(
        LocalSigner(),
        "Using local signing service, which requires ED25519. "
        "Ignoring all other trust_service parameters, including keyAlgorithm",
    )
