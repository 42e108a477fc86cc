"""The one table of schemes of key-encrypting keys.

Rules of this module: a new scheme is a module in this package and a row here; its name and the form of its URIs are in
:mod:`notary.config.values`. Nothing else asks for a scheme by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from notary.config import KekUri, KeyEncryption, awskms, pkcs11, vault
from notary.config.values import FILE_SCHEME
from notary.envelope import KeyEncryptingKey
from notary.envelope.awskms import open_kms
from notary.envelope.envelopes import Envelopes
from notary.envelope.file import FileKek, open_file
from notary.envelope.inside import Insides, open_tokens
from notary.envelope.pkcs11 import open_token
from notary.envelope.vault import open_transit
from notary.errors import ConfigError
from notary.work.reactor import Reactor

Opener: TypeAlias = Callable[[KekUri, str, Reactor], KeyEncryptingKey]
"""Makes the key-encrypting key of a URI; the second argument is the key of the configuration, for messages.

The reactor is for keys that are behind the network: it must run, in another thread, while such a key works. Raises
ConfigError.
"""

SCHEMES: Final[Mapping[str, Opener]] = MappingProxyType(
    {FILE_SCHEME: open_file, pkcs11.SCHEME: open_token, vault.SCHEME: open_transit, awskms.SCHEME: open_kms}
)
"""The schemes by the beginning of their URIs."""


def open_envelopes(config: KeyEncryption, reactor: Reactor) -> Envelopes | None:
    """Return what opens the envelopes of this configuration; None if it names no KEK. Raises ConfigError."""
    keks: dict[str, KeyEncryptingKey] = {}
    for uri in config.uris:
        if uri.inside:
            continue
        key = "storage.keys.wrap" if uri == config.wrap else "storage.keys.unwrap"
        kek = SCHEMES[uri.scheme](uri, key, reactor)
        if kek.name in keks and isinstance(kek, FileKek):
            continue  # its name is of its content: it is the same key in another place
        if kek.name in keks:
            raise ConfigError(
                f"{key}: {uri} is named {kek.name}, as another key-encrypting key of this configuration is; expected "
                "each key once, and names of their own for different keys"
            )
        keks[kek.name] = kek
    return Envelopes(list(keks.values())) if keks else None


def open_insides(config: KeyEncryption) -> Insides | None:
    """Return the tokens that keep private keys inside; None if the configuration names none. Raises ConfigError."""
    uris = [uri for uri in config.uris if uri.inside]
    return open_tokens(uris, "storage.keys") if uris else None
