"""The private keys of a signer's rows, opened and sealed by the configuration of the signer.

Rules of this module: what opens a row is told by its ``keywrap_alg``, as in the signer. Methods take milliseconds, or
wait for the machine that has a key-encrypting key: call them in a thread.
"""

from __future__ import annotations

from notary.config import SignerConfig
from notary.envelope import KEYWRAP
from notary.envelope.schemes import open_envelopes
from notary.errors import SigningFailed
from notary.storage import StoredKey, keywrap
from notary.tuf import jwe
from notary.tuf.canonical import quote
from notary.tuf.private import PrivateKey


class PrivateKeys:
    """Opens stored keys by the passphrases and the key-encrypting keys of a configuration. Raises ConfigError."""

    def __init__(self, config: SignerConfig) -> None:
        self.envelopes = open_envelopes(config.storage.keys)
        """The key-encrypting keys, or None if the configuration names none."""
        self._config = config

    def open(self, row: StoredKey) -> PrivateKey:
        """Open a stored key. Raises SigningFailed, UnsupportedAlgorithm."""
        if row.keywrap_alg == jwe.KEYWRAP:
            return keywrap.unwrap(row, self._config.passphrase)
        if row.keywrap_alg != KEYWRAP:
            raise SigningFailed(f"key {row.key_id} has keywrap_alg {quote(row.keywrap_alg)}, which nothing here opens")
        if self.envelopes is None:
            raise SigningFailed(
                f"key {row.key_id} is under a key-encrypting key: name it in storage.keys.wrap, or in "
                "storage.keys.unwrap beside another"
            )
        return self.envelopes.open(row)
