"""Private keys in the key store, each under a data key, and data keys under a key-encrypting key.

Rules of this module: rows are sealed and opened by :mod:`notary.envelope.envelopes`, which ``notary-admin`` uses too.
The key-encrypting keys are opened once, when the custody is built: others need a restart.
"""

from __future__ import annotations

from collections.abc import Callable

from notary.config import SignerConfig
from notary.envelope.envelopes import Envelopes
from notary.envelope.schemes import open_envelopes
from notary.signer.custody.in_memory import KeyInMemory
from notary.storage import StoredKey
from notary.tuf import private
from notary.work.reactor import Reactor


class EnvelopeCustody:
    """Keys that are opened into memory from envelopes; with ``makes``, new keys are sealed into envelopes too."""

    def __init__(self, envelopes: Envelopes, *, makes: bool = True) -> None:
        self._envelopes = envelopes
        self.makes = makes

    @property
    def under(self) -> str:
        """See the port."""
        return self._envelopes.names[0]

    def make(self, gun: str, role: str, algorithm: str) -> tuple[KeyInMemory, StoredKey]:
        """See the port."""
        key = private.generate(algorithm)
        return KeyInMemory.of(key), self._envelopes.seal(key, gun, role)

    def open(self, row: StoredKey) -> KeyInMemory:
        """See the port. Raises SigningFailed if a key-encrypting key is missing, or on damage."""
        return KeyInMemory.of(self._envelopes.open(row))

    def check(self) -> None:
        """See the port."""
        self._envelopes.check()

    def close(self) -> None:
        """See the port."""
        self._envelopes.close()


def build(current: Callable[[], SignerConfig], reactor: Reactor) -> EnvelopeCustody | None:
    """Build the custody if the configuration names a key-encrypting key. Raises ConfigError."""
    keys = current().storage.keys
    envelopes = open_envelopes(keys, reactor)
    return None if envelopes is None else EnvelopeCustody(envelopes, makes=keys.wraps)
