"""Rows whose private key is encrypted under a data key, which stands in the same row, wrapped by a KEK (ADR 0033).

Rules of this module:

- A row is whole: it has the private key under the data key, and the data key under the KEK. The column of the alias
  names both, as ``<KEK>/<data key>``. The column ``private`` has these bytes: a mark, the length of the wrapped data
  key as two bytes (big-endian), the wrapped data key, a nonce of 12 bytes, then the private key by AES-256-GCM. What is
  authenticated with the private key is the id of the data key and the id of the key, so that no row opens with the
  bytes of another.
- One data key serves ``KEYS_OF_A_DATA_KEY`` new keys of one process, so that the KEK is asked rarely. Opened data keys
  stay in memory, bounded in number.
- Methods block while they ask a KEK: call them in a thread. Several threads may call at the same time: one of them asks
  for a data key, and the others wait for the answer.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from notary.envelope import ENCRYPTION, KEYWRAP, KeyEncryptingKey
from notary.errors import SigningFailed
from notary.storage import StoredKey
from notary.storage.keywrap import public_half
from notary.tuf import private
from notary.tuf.canonical import quote
from notary.work.lru import Lru

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

KEYS_OF_A_DATA_KEY: Final = 10_000
"""How many new keys are encrypted under one data key: a million keys need a hundred calls to the KEK."""

CAPACITY: Final = 4096
"""How many opened data keys are remembered: a megabyte or two."""

_MARK: Final = b"NE1"
_LENGTH_BYTES: Final = 2
_NONCE_BYTES: Final = 12
_DATA_KEY_BYTES: Final = 32
_ID_BYTES: Final = 8
_DAMAGED: Final = "its envelope is damaged in the store"


class _Envelope(NamedTuple):
    """The bytes of the column ``private``, taken apart."""

    wrapped: bytes
    nonce: bytes
    sealed: bytes

    @classmethod
    def read(cls, stored: bytes) -> _Envelope:
        """Take the column apart. Raises SigningFailed."""
        start = len(_MARK) + _LENGTH_BYTES
        middle = start + int.from_bytes(stored[len(_MARK) : start], "big")
        end = middle + _NONCE_BYTES
        if not stored.startswith(_MARK) or len(stored) <= end:
            raise SigningFailed(_DAMAGED)
        return cls(stored[start:middle], stored[middle:end], stored[end:])

    def written(self) -> bytes:
        """Return the bytes of the column."""
        return b"".join((_MARK, len(self.wrapped).to_bytes(_LENGTH_BYTES, "big"), *self))


@dataclass(frozen=True, slots=True)
class _DataKey:
    """An open data key; ``wrapped`` is its form under the KEK whose name begins the alias."""

    alias: str
    wrapped: bytes = field(repr=False)
    secret: bytes = field(repr=False)
    cipher: AESGCM = field(repr=False)


def under(row: StoredKey) -> str:
    """What a stored key is under: the name of a KEK or, in a row of another making, the alias of a passphrase."""
    return row.passphrase_alias.partition("/")[0] if row.keywrap_alg == KEYWRAP else row.passphrase_alias


class Envelopes:
    """Seals new private keys under a key-encrypting key, and opens those that are under one of several.

    Args:
        keks: The key-encrypting keys, that of new keys first; at least one, and each with another name.
        keys_of_a_data_key: How many new keys are encrypted under one data key.
    """

    def __init__(self, keks: Sequence[KeyEncryptingKey], keys_of_a_data_key: int = KEYS_OF_A_DATA_KEY) -> None:
        self._keks = {kek.name: kek for kek in keks}
        self._first = keks[0]
        self._keys_of_a_data_key = keys_of_a_data_key
        self._newest: _DataKey | None = None
        self._sealed = 0  # keys under the newest data key
        self._opened: Lru[tuple[str, bytes], _DataKey] = Lru(CAPACITY)
        self._moved: Lru[tuple[str, bytes], bytes] = Lru(CAPACITY)
        self._table = threading.Lock()  # held for microseconds
        self._sealing = threading.Lock()  # held while the KEK is asked
        self._asking = threading.Lock()  # likewise

    @property
    def names(self) -> Sequence[str]:
        """The names of the key-encrypting keys, that of new keys first."""
        return tuple(self._keks)

    @property
    def first(self) -> KeyEncryptingKey:
        """The key-encrypting key of new keys."""
        return self._first

    def seal(self, key: private.PrivateKey, gun: str, role: str) -> StoredKey:
        """Return a new key in its stored form, pending. Raises SigningFailed."""
        data_key = self._data_key_of_new_keys()
        public = key.public
        nonce = os.urandom(_NONCE_BYTES)
        sealed = data_key.cipher.encrypt(nonce, key.encode(), _bound(data_key.alias, public.key_id))
        return StoredKey(
            key_id=public.key_id,
            algorithm=public.key_type,
            public=public.public,
            private=_Envelope(data_key.wrapped, nonce, sealed).written(),
            gun=gun,
            role=role,
            passphrase_alias=data_key.alias,
            encryption_alg=ENCRYPTION,
            keywrap_alg=KEYWRAP,
        )

    def open(self, row: StoredKey) -> private.PrivateKey:
        """Open a stored key. Raises SigningFailed, UnsupportedAlgorithm."""
        public = public_half(row)
        try:
            envelope = _Envelope.read(row.private)
            data_key = self._data_key_of(row, envelope)
            plaintext = data_key.cipher.decrypt(envelope.nonce, envelope.sealed, _bound(data_key.alias, row.key_id))
        except InvalidTag:
            raise _refused(row, _DAMAGED) from None
        except SigningFailed as error:
            raise _refused(row, str(error), type(error)) from None
        return private.decode(public.key_type, public.public, plaintext)

    def is_current(self, row: StoredKey) -> bool:
        """Whether a row is under the key-encrypting key of new keys, and under its newest version."""
        if row.keywrap_alg != KEYWRAP or under(row) != self._first.name:
            return False
        try:
            return self._first.is_newest(_Envelope.read(row.private).wrapped)
        except SigningFailed:  # damaged: nothing can be moved
            return True

    def move(self, row: StoredKey) -> StoredKey:
        """Return a row of this module under the key-encrypting key of new keys: the same key, the same data key.

        A row that only gets the newest version of that key is not opened: no secret comes here. From another key, the
        private key is opened, so that nothing is moved that would not open. Raises SigningFailed,
        UnsupportedAlgorithm.
        """
        if under(row) != self._first.name:
            self.open(row)
        try:
            envelope = _Envelope.read(row.private)
            wrapped = self._once(
                self._moved, (row.passphrase_alias, envelope.wrapped), lambda: self._rewrapped(row, envelope)
            )
        except SigningFailed as error:
            raise _refused(row, str(error), type(error)) from None
        alias = f"{self._first.name}/{_data_key_id(row.passphrase_alias)}"
        return replace(row, private=envelope._replace(wrapped=wrapped).written(), passphrase_alias=alias)

    def check(self) -> None:
        """Find out whether each key-encrypting key can be used. Raises CustodyUnavailable."""
        for kek in self._keks.values():
            kek.check()

    def close(self) -> None:
        """Close each key-encrypting key."""
        for kek in self._keks.values():
            kek.close()

    # -- data keys ----------------------------------------------------------------------------------------------------

    def _data_key_of_new_keys(self) -> _DataKey:
        with self._sealing:
            if self._newest is None or self._sealed >= self._keys_of_a_data_key:
                secret = os.urandom(_DATA_KEY_BYTES)
                name = os.urandom(_ID_BYTES).hex()
                wrapped = self._first.wrap(secret, _context(name))
                self._newest = newest = _DataKey(f"{self._first.name}/{name}", wrapped, secret, AESGCM(secret))
                self._sealed = 0
                with self._table:
                    self._opened.put((newest.alias, newest.wrapped), newest)
            self._sealed += 1
            return self._newest

    def _rewrapped(self, row: StoredKey, envelope: _Envelope) -> bytes:
        """Return the data key of a row as it is under the key-encrypting key of new keys."""
        context = _context(_data_key_id(row.passphrase_alias))
        if under(row) == self._first.name:
            return self._first.rewrap(envelope.wrapped, context)
        return self._first.wrap(self._data_key_of(row, envelope).secret, context)

    def _data_key_of(self, row: StoredKey, envelope: _Envelope) -> _DataKey:
        alias, wrapped = row.passphrase_alias, envelope.wrapped
        return self._once(self._opened, (alias, wrapped), lambda: self._unwrapped(alias, wrapped))

    def _unwrapped(self, alias: str, wrapped: bytes) -> _DataKey:
        name = alias.partition("/")[0]
        kek = self._keks.get(name)
        if kek is None:
            raise SigningFailed(
                f"there is no key-encrypting key {quote(name)}: name it in storage.keys.unwrap; those of the "
                f"configuration are {', '.join(self._keks)}"
            )
        secret = kek.unwrap(wrapped, _context(_data_key_id(alias)))
        if len(secret) != _DATA_KEY_BYTES:
            raise SigningFailed(_DAMAGED)
        return _DataKey(alias, wrapped, secret, AESGCM(secret))

    def _once(self, table: Lru[K, V], name: K, ask: Callable[[], V]) -> V:
        """Return what ``table`` has under ``name``; ask a KEK for it first if it is not there."""
        with self._table:
            found = table.get(name)
        if found is not None:
            return found
        with self._asking:  # who waited here finds what another thread has asked for
            with self._table:
                found = table.get(name)
            if found is None:
                found = ask()
                with self._table:
                    table.put(name, found)
        return found


def _data_key_id(alias: str) -> str:
    return alias.partition("/")[2]


def _context(data_key_id: str) -> bytes:
    """What is authenticated with a data key: its id."""
    return data_key_id.encode("utf-8", "surrogatepass")


def _bound(alias: str, key_id: str) -> bytes:
    """What is authenticated with a private key: its id, and that of the data key, which a new KEK does not change."""
    return f"{_data_key_id(alias)} {key_id}".encode("utf-8", "surrogatepass")


def _refused(row: StoredKey, why: str, kind: type[SigningFailed] = SigningFailed) -> SigningFailed:
    return kind(f"key {row.key_id}, under key-encrypting key {quote(under(row))}: {why}")
