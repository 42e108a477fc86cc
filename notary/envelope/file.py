"""A key-encrypting key in a file of 32 bytes, such as a credential of systemd.

Rules of this module: the file is read once. No message shows its content.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from notary.config import KekUri
from notary.envelope import OneVersion
from notary.errors import ConfigError, SigningFailed

KEY_BYTES: Final = 32
"""The size of the file: a key of AES-256."""

_NONCE_BYTES: Final = 12
_NAME_BYTES: Final = 6
_EXPECTED: Final = f"a file of {KEY_BYTES} random bytes, as by: (umask 077; head -c {KEY_BYTES} /dev/urandom >FILE)"


class FileKek(OneVersion):
    """See :class:`notary.envelope.KeyEncryptingKey`. ``key`` has ``KEY_BYTES`` bytes."""

    def __init__(self, key: bytes) -> None:
        self.name = "file-" + hmac.digest(key, b"the name of this key-encrypting key", "sha256")[:_NAME_BYTES].hex()
        self._cipher = AESGCM(key)

    def __repr__(self) -> str:
        return f"<FileKek {self.name}>"

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        """See the port: AES-256-GCM, behind its nonce."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data_key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See the port."""
        try:
            return self._cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise SigningFailed("its data key does not open: the stored bytes are damaged") from None

    def check(self) -> None:
        """See the port: the key is in memory."""

    def close(self) -> None:
        """See the port: there is nothing to release."""


def open_file(uri: KekUri, key: str, _reactor: object) -> FileKek:
    """Read the file that ``uri`` names; ``key`` is the key of the configuration, for messages. Raises ConfigError."""
    try:
        with Path(uri.place).open("rb") as file:
            content = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{key}: {uri} cannot be read ({error.strerror}); expected {_EXPECTED}") from None
    if len(content) != KEY_BYTES:
        size = "more" if len(content) > KEY_BYTES else str(len(content))
        raise ConfigError(f"{key}: {uri} holds {size} bytes; expected {_EXPECTED}")
    if len(set(content)) == 1:
        raise ConfigError(f"{key}: {uri} holds one byte repeated, which is no key; expected {_EXPECTED}")
    return FileKek(content)
