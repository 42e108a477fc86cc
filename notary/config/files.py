"""The settings of a configuration one by one, and those that name files of certificates.

Rules of this module: pure; no file is read. The kind of a key says whether its file holds certificates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from notary.config.table import Key, keys, value_at

SERVER_TLS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cert_file": "server.tls_cert_file",
        "key_file": "server.tls_key_file",
        "trusted": "server.client_ca_file",
        "client_cert": "trust_service.tls_client_cert",
    }
)
"""The keys of both daemons' servers, by what messages about TLS need: see `notary.net.tls.wording.Wording`."""

SIGNER_CLIENT_TLS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cert_file": "trust_service.tls_client_cert",
        "key_file": "trust_service.tls_client_key",
        "trusted": "trust_service.tls_ca_file",
        "client_cert": "trust_service.tls_client_cert",
    }
)
"""The keys of a server as a client of its signer, likewise."""


def settings(config: object) -> Iterator[tuple[str, Key, object]]:
    """Yield every key of a configuration: its path, its row in the table, its value."""
    for path, key, _ in keys(type(config)):
        yield path, key, value_at(config, path)


def certificate_files(config: object) -> Mapping[str, Path]:
    """Return the files of certificates that a configuration names, by the paths of their keys."""
    return {path: value for path, key, value in settings(config) if key.kind.certificates and isinstance(value, Path)}
