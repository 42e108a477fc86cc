"""Private keys in envelopes: each is encrypted under a data key, and data keys under a key-encrypting key.

Rules of this package: a key-encrypting key (KEK) stays where it is kept, be that a file or a machine, and encrypts
nothing but data keys. A scheme of KEKs is a module beside this one and a row in :mod:`notary.envelope.schemes`. The
signer and ``notary-admin`` open the same rows by :mod:`notary.envelope.envelopes`. No error, ``repr`` or log line shows
a key, wrapped or not.
"""

from __future__ import annotations

from typing import Final, Protocol

KEYWRAP: Final = "DATAKEY"
"""The value of ``keywrap_alg`` in rows whose private key is encrypted under a data key."""

INSIDE: Final = "PKCS11"
"""The value of ``keywrap_alg`` in rows whose private key is in a token, which it never leaves."""

ENCRYPTION: Final = "A256GCM"
"""How the private key is encrypted under the data key; the value of ``encryption_alg``."""

MAX_NAME_CHARACTERS: Final = 33
"""The longest name of a KEK: it shares the column of the alias, 50 characters, with a slash and a data key's id."""


class KeyEncryptingKey(Protocol):
    """A key that encrypts data keys. Its methods block: call them in a thread; several may call at the same time."""

    @property
    def name(self) -> str:
        """Which key this is, in at most ``MAX_NAME_CHARACTERS`` characters, without a slash.

        Another key has another name, wherever the key is kept: stored rows name the KEK that opens them. The name
        shows nothing of the key.
        """
        ...

    def wrap(self, data_key: bytes, context: bytes, /) -> bytes:
        """Encrypt a data key. Only with the same ``context`` can it be decrypted.

        Raises CustodyUnavailable if the key cannot be reached now, and SigningFailed.
        """
        ...

    def unwrap(self, wrapped: bytes, context: bytes, /) -> bytes:
        """Decrypt a data key.

        Raises CustodyUnavailable if the key cannot be reached now, and SigningFailed if ``wrapped`` is damaged, or of
        another key or context.
        """
        ...

    def find_newest(self) -> None:
        """Find out which version of this key is the newest. Raises CustodyUnavailable."""
        ...

    def is_newest(self, wrapped: bytes, /) -> bool:
        """Whether a data key that this key has wrapped is under its newest version, as far as is known here.

        It never blocks. After :meth:`find_newest`, it is known.
        """
        ...

    def rewrap(self, wrapped: bytes, context: bytes, /) -> bytes:
        """Return a data key that this key has wrapped under its newest version.

        Raises as :meth:`unwrap` does.
        """
        ...

    def check(self) -> None:
        """Find out whether the key can be used. Raises CustodyUnavailable."""
        ...

    def close(self) -> None:
        """Release processes and connections; the key cannot be used afterwards."""
        ...


class OneVersion:
    """What a key-encrypting key without versions says of them."""

    def find_newest(self: KeyEncryptingKey) -> None:
        """See the port: there is one version, if the key is there."""
        self.check()

    def is_newest(self, wrapped: bytes) -> bool:  # noqa: ARG002 - the port's
        """See the port: another version would be another key."""
        return True

    def rewrap(self: KeyEncryptingKey, wrapped: bytes, context: bytes) -> bytes:
        """See the port."""
        return self.wrap(self.unwrap(wrapped, context), context)
