"""The private keys of a signer's rows, opened by the configuration of the signer, and where they can be moved.

Rules of this module: what opens a row is told by its ``keywrap_alg``, as in the signer. Methods take milliseconds, or
wait for the machine that has a key-encrypting key: call them in a thread.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Protocol

from notary.config import SIGNER_PREFIX, SignerConfig
from notary.config.table import variable_part
from notary.envelope import INSIDE, KEYWRAP
from notary.envelope.schemes import open_envelopes, open_insides
from notary.errors import ConfigError, SigningFailed
from notary.storage import StoredKey, keywrap
from notary.tuf import jwe
from notary.tuf.canonical import quote
from notary.tuf.private import PrivateKey
from notary.work.reactor import Reactor

_MAX_ALIAS_CHARACTERS: Final = 50
"""The longest alias that fits into the tables of the reference."""


class PrivateKeys:
    """Opens stored keys by the passphrases and the key-encrypting keys of a configuration. Raises ConfigError."""

    def __init__(self, config: SignerConfig, reactor: Reactor) -> None:
        self.envelopes = open_envelopes(config.storage.keys, reactor)
        """The key-encrypting keys, or None if the configuration names none."""
        self.insides = open_insides(config.storage.keys)
        """The tokens that keep keys inside, or None if the configuration names none."""
        self._config = config

    def close(self) -> None:
        """Release what has the key-encrypting keys, and the tokens."""
        for each in (self.envelopes, self.insides):
            if each is not None:
                each.close()

    def check(self) -> None:
        """Find out whether each key-encrypting key and token can be used. Raises CustodyUnavailable."""
        for each in (self.envelopes, self.insides):
            if each is not None:
                each.check()

    def try_key(self, row: StoredKey) -> None:
        """Open a stored key, wherever it is. Raises SigningFailed, UnsupportedAlgorithm."""
        if row.keywrap_alg == INSIDE and self.insides is not None:
            self.insides.open(row)
        else:
            self.open(row)

    def seal(self, key: PrivateKey, gun: str, role: str) -> StoredKey:
        """Return a new key in the form in which a signer of this configuration would store it. Raises SigningFailed."""
        storage = self._config.storage
        if self.envelopes is None or not storage.keys.wraps:
            return keywrap.wrap(key, gun, role, storage.default_alias, self._config.passphrase)
        return self.envelopes.seal(key, gun, role)

    def open(self, row: StoredKey) -> PrivateKey:
        """Open a stored key. Raises SigningFailed, UnsupportedAlgorithm."""
        if row.keywrap_alg == jwe.KEYWRAP:
            return keywrap.unwrap(row, self._config.passphrase)
        if row.keywrap_alg == INSIDE:
            raise SigningFailed(f"key {row.key_id} is inside a token, which it never leaves: it cannot be moved")
        if row.keywrap_alg != KEYWRAP:
            raise SigningFailed(f"key {row.key_id} has keywrap_alg {quote(row.keywrap_alg)}, which nothing here opens")
        if self.envelopes is None:
            raise SigningFailed(
                f"key {row.key_id} is under a key-encrypting key: name it in storage.keys.wrap, or in "
                "storage.keys.unwrap beside another"
            )
        return self.envelopes.open(row)


class Target(Protocol):
    """What stored keys are moved under. ``name`` is for people, and for the output of a command."""

    name: str

    def prepare(self) -> None:
        """Find out what :meth:`has` needs. Blocks. Raises CustodyUnavailable."""
        ...

    def has(self, row: StoredKey) -> bool:
        """Whether a key is under it already."""
        ...

    def move(self, row: StoredKey) -> StoredKey:
        """Return the row of the same key under it. Raises SigningFailed, UnsupportedAlgorithm."""
        ...


class UnderPassphrase:
    """The passphrase of an alias as a :class:`Target`. Raises ConfigError if there is none."""

    def __init__(self, keys: PrivateKeys, config: SignerConfig, alias: str) -> None:
        if len(alias) > _MAX_ALIAS_CHARACTERS:
            raise ConfigError(
                f"--to: expected an alias of at most {_MAX_ALIAS_CHARACTERS} characters, the limit of the database"
            )
        if config.passphrase(alias) is None:
            raise ConfigError(f"{SIGNER_PREFIX}{variable_part(alias)}: missing or empty; expected the new passphrase")
        self.name = alias
        self._keys = keys
        self._config = config

    def prepare(self) -> None:
        """See :class:`Target`: nothing is needed."""

    def has(self, row: StoredKey) -> bool:
        """See :class:`Target`."""
        return row.keywrap_alg == jwe.KEYWRAP and row.passphrase_alias == self.name

    def move(self, row: StoredKey) -> StoredKey:
        """See :class:`Target`."""
        return keywrap.rewrap(row, self._keys.open(row), self.name, self._config.passphrase)


class UnderKek:
    """The key-encrypting key of new keys as a :class:`Target`. Raises ConfigError if there is none."""

    def __init__(self, keys: PrivateKeys, config: SignerConfig) -> None:
        if keys.envelopes is None or not config.storage.keys.wraps:
            found = "a token that keeps keys inside" if config.storage.keys.makes_inside else "missing"
            raise ConfigError(f"storage.keys.wrap: {found}; expected the URI of the new key-encrypting key")
        self.name = keys.envelopes.names[0]
        self._keys = keys
        self._envelopes = keys.envelopes

    def prepare(self) -> None:
        """See :class:`Target`: a key that has versions says which is the newest."""
        self._envelopes.first.find_newest()

    def has(self, row: StoredKey) -> bool:
        """See :class:`Target`."""
        return self._envelopes.is_current(row)

    def move(self, row: StoredKey) -> StoredKey:
        """See :class:`Target`."""
        if row.keywrap_alg == KEYWRAP:
            return self._envelopes.move(row)
        sealed = self._envelopes.seal(self._keys.open(row), row.gun, row.role)
        return replace(sealed, last_used=row.last_used)
