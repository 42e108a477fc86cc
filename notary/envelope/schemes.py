"""The one table of schemes of key-encrypting keys.

Rules of this module: a new scheme is a module in this package and a row here; its name and the form of its URIs are in
:mod:`notary.config.values`. Nothing else asks for a scheme by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from notary.config import KekUri, KeyEncryption, pkcs11
from notary.config.values import FILE_SCHEME
from notary.envelope import KeyEncryptingKey
from notary.envelope.envelopes import Envelopes
from notary.envelope.file import open_file
from notary.envelope.pkcs11 import open_token

Opener: TypeAlias = Callable[[KekUri, str], KeyEncryptingKey]
"""Makes the key-encrypting key of a URI; the second argument is the key of the configuration, for messages.

Raises ConfigError.
"""

SCHEMES: Final[Mapping[str, Opener]] = MappingProxyType({FILE_SCHEME: open_file, pkcs11.SCHEME: open_token})
"""The schemes by the beginning of their URIs."""


def open_envelopes(config: KeyEncryption) -> Envelopes | None:
    """Return what opens the envelopes of this configuration; None if it names no KEK. Raises ConfigError."""
    if not config.uris:
        return None
    keks = [
        SCHEMES[uri.scheme](uri, "storage.keys.wrap" if uri == config.wrap else "storage.keys.unwrap")
        for uri in config.uris
    ]
    return Envelopes(keks)
