"""The settings of a configuration one by one, and which of them name files of certificates.

Rules of this module: pure; no file is read. The kind of a key in the table says that its file holds certificates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from notary.config.table import Key, keys

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


def settings(config: Any) -> Iterator[tuple[str, Key, object]]:
    """Return every key of a configuration: its path, its row in the table, its value."""
    for path, key, _ in keys(type(config)):
        value: object = config
        for name in path.split("."):
            value = getattr(value, name)
        yield path, key, value


def certificate_files(config: Any) -> Mapping[str, Path]:
    """Return the files of certificates that a configuration names, by the path of their keys."""
    return {path: value for path, key, value in settings(config) if key.kind.certificates and isinstance(value, Path)}
