"""Private keys in the key store, wrapped in a JWE under a passphrase, as in the reference.

Rules of this module: rows are wrapped and unwrapped by :mod:`notary.storage.keywrap`, which ``notary-admin`` uses too;
both take milliseconds. The passphrase is looked up at each use, so that a reload can replace it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from notary.config import SignerConfig
from notary.signer.custody.in_memory import KeyInMemory
from notary.storage import StoredKey, keywrap
from notary.storage.keywrap import Passphrases
from notary.tuf import private


class JweCustody:
    """Keys that are unwrapped into memory. New keys are wrapped with the passphrase of ``alias``."""

    makes = True

    def __init__(self, passphrases: Passphrases, alias: str) -> None:
        self._passphrases = passphrases
        self._alias = alias

    @property
    def under(self) -> str:
        """See the port."""
        return self._alias

    def make(self, gun: str, role: str, algorithm: str) -> tuple[KeyInMemory, StoredKey]:
        """See the port. Raises SigningFailed if there is no passphrase of the alias."""
        key = private.generate(algorithm)
        return KeyInMemory.of(key), keywrap.wrap(key, gun, role, self._alias, self._passphrases)

    def open(self, row: StoredKey) -> KeyInMemory:
        """See the port. Raises SigningFailed if there is no passphrase, a wrong one, or damage."""
        return KeyInMemory.of(keywrap.unwrap(row, self._passphrases))

    def check(self) -> None:
        """See the port: no machine is needed."""

    def close(self) -> None:
        """See the port: there is nothing to release."""


def build(current: Callable[[], SignerConfig], _reactor: object) -> JweCustody:
    """Build the custody, which every configuration sets up."""
    storage = current().storage
    if storage.kind.persistent:
        return JweCustody(lambda alias: current().passphrase(alias), storage.default_alias)
    # Keys that are forgotten with the process need no passphrase that outlives it.
    passphrase = secrets.token_urlsafe()
    return JweCustody(lambda _alias: passphrase, storage.default_alias)
