"""Private keys that are made in a token, and never leave it: the token signs.

Rules of this module:

- A row keeps the id of the key in the token, and the public half. Its alias names the token.
- A few sessions, each in a process of its own (:mod:`notary.envelope.pkcs11`), work side by side; a request takes one
  that is free. They log in one after the other.
- The token gets digests, never messages. So keys are ecdsa (P-256) or rsa: an ed25519 key signs whole messages.
- A key is tried when it is opened: what it signs must be a signature by the public half in the row.
"""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives import serialization

from notary.config import KekUri
from notary.config import pkcs11 as uris
from notary.envelope import INSIDE
from notary.envelope.pkcs11 import Logins, Session, require_binding
from notary.envelope.token import ID_BYTES
from notary.errors import CustodyUnavailable, SigningFailed, UnsupportedAlgorithm
from notary.storage import StoredKey
from notary.storage.keywrap import public_half
from notary.tuf.canonical import quote
from notary.tuf.model import Signature
from notary.tuf.public import PublicKey, verify

SESSIONS: Final = 4
"""How many sessions of one token a process of the signer opens: a token may have 16 for all."""

WAIT_SECONDS: Final = 10.0
"""The longest wait for a session that is free."""

_METHODS: Final[Mapping[str, str]] = {"ecdsa": "ecdsa", "rsa": "rsapss"}
"""The methods of signatures by the algorithms of keys that a token makes."""

_MARK: Final = b"NI1"
_PROBE: Final = b"whether this key is the one of the row"


@dataclass(frozen=True, slots=True)
class KeyInside:
    """A private key in a token: see :class:`notary.signer.custody.OpenKey`."""

    public: PublicKey
    method: str
    sign: Callable[[bytes], bytes] = field(repr=False)
    quick: bool = False


class Inside:
    """A token in which keys are made. ``sessions`` work side by side; methods block, and several threads may call."""

    def __init__(self, name: str, sessions: Sequence[Session]) -> None:
        self.name = name
        self._sessions = sessions
        self._free: queue.LifoQueue[Session] = queue.LifoQueue()
        for each in reversed(sessions):
            self._free.put(each)

    def make(self, gun: str, role: str, algorithm: str) -> tuple[KeyInside, StoredKey]:
        """Make a key in the token. Raises UnsupportedAlgorithm, CustodyUnavailable."""
        if algorithm not in _METHODS:
            raise UnsupportedAlgorithm(f"no {quote(algorithm)} key is made in a token; it makes {', '.join(_METHODS)}")
        with self._session() as session:
            made = session.ask("make", algorithm.encode(), b"")
        key_id, public = made[:ID_BYTES], PublicKey(algorithm, _pkix(made[ID_BYTES:]))
        row = StoredKey(
            key_id=public.key_id,
            algorithm=algorithm,
            public=public.public,
            private=_MARK + key_id,
            gun=gun,
            role=role,
            passphrase_alias=self.name,
            encryption_alg="none",
            keywrap_alg=INSIDE,
        )
        return self._tried(row, public, key_id), row

    def open(self, row: StoredKey) -> KeyInside:
        """Find the key of a row. Raises SigningFailed, UnsupportedAlgorithm, CustodyUnavailable."""
        public = public_half(row)
        if row.algorithm not in _METHODS:
            raise UnsupportedAlgorithm(f"key {row.key_id}: no {quote(row.algorithm)} key is in a token")
        return self._tried(row, public, _id_in(row))

    def forget(self, row: StoredKey) -> None:
        """Destroy the key of a row in the token. Raises SigningFailed, CustodyUnavailable."""
        with self._session() as session:
            session.ask("forget", _id_in(row), b"")

    def _tried(self, row: StoredKey, public: PublicKey, key_id: bytes) -> KeyInside:
        method = _METHODS[row.algorithm]

        def sign(payload: bytes) -> bytes:
            try:
                with self._session() as session:
                    return session.ask("sign", key_id, hashlib.sha256(payload).digest())
            except CustodyUnavailable:
                raise
            except SigningFailed as error:
                raise _refused(row, str(error)) from None

        if not verify(public, Signature(public.key_id, method, sign(_PROBE)), _PROBE):
            raise _refused(row, "the key in the token is another one")
        return KeyInside(public, method, sign)

    def check(self) -> None:
        """Find out whether the token can be used. Raises CustodyUnavailable."""
        with self._session() as session:
            session.check()

    def close(self) -> None:
        """End the processes, also while threads wait for their answers."""
        for each in self._sessions:
            each.close()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        try:
            session = self._free.get(timeout=WAIT_SECONDS)
        except queue.Empty:
            raise CustodyUnavailable(f"all {len(self._sessions)} sessions of token {self.name} are busy") from None
        try:
            yield session
        finally:
            self._free.put(session)


class Insides:
    """The tokens of a configuration. That of new keys, if there is one, is the first."""

    def __init__(self, tokens: Sequence[Inside]) -> None:
        self._tokens = {token.name: token for token in tokens}
        self.first = tokens[0]

    def open(self, row: StoredKey) -> KeyInside:
        """Find the key of a row. Raises SigningFailed, UnsupportedAlgorithm, CustodyUnavailable."""
        token = self._tokens.get(row.passphrase_alias)
        if token is None:
            raise _refused(
                row,
                f"there is no such token: name it in storage.keys.unwrap; those of the configuration are "
                f"{', '.join(self._tokens)}",
            )
        return token.open(row)

    def check(self) -> None:
        """Find out whether each token can be used. Raises CustodyUnavailable."""
        for token in self._tokens.values():
            token.check()

    def close(self) -> None:
        """End all processes."""
        for token in self._tokens.values():
            token.close()


def _pkix(public: bytes) -> bytes:
    """Return a public key in the form of rows; modules give those of rsa in another one."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    encoded: bytes = serialization.load_der_public_key(public).public_bytes(serialization.Encoding.DER, form)
    return encoded


def _id_in(row: StoredKey) -> bytes:
    """Return the id in the token. Raises SigningFailed."""
    if not row.private.startswith(_MARK) or len(row.private) != len(_MARK) + ID_BYTES:
        raise _refused(row, "its place in the token is damaged in the store")
    return row.private[len(_MARK) :]


def _refused(row: StoredKey, why: str) -> SigningFailed:
    return SigningFailed(f"key {row.key_id}, inside token {quote(row.passphrase_alias)}: {why}")


def open_tokens(tokens: Sequence[KekUri], key: str) -> Insides:
    """Return the tokens of these URIs, which are not asked yet. ``key`` is for messages. Raises ConfigError."""
    require_binding(key)
    found = []
    for uri in tokens:
        place, logins = uris.parse(uri.place), Logins()
        found.append(Inside(place.name, [Session(place, logins=logins) for _ in range(SESSIONS)]))
    return Insides(found)
