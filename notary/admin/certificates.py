"""The certificates that a configuration names: which files, and until when what is in them is valid.

Rules of this module: the files are those whose key in the configuration's table is a file and no private key. Files are
read; nothing is verified beyond that they can be: :mod:`notary.net.tls` does that the way the daemons do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from notary import certs
from notary.config import ServerConfig, SignerConfig
from notary.config.table import Key, keys
from notary.errors import ConfigError, InvalidCertificate

_PRIVATE = ("tls_key_file", "tls_client_key")


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate: the configuration key and the file that it was found by, and when it ends (aware, UTC)."""

    key: str
    path: Path
    subject: str
    begins: datetime
    ends: datetime


def settings(config: ServerConfig | SignerConfig) -> Iterator[tuple[str, Key, object]]:
    """Every key of a configuration: its path, its row in the table, its value."""
    for path, key, _ in keys(type(config)):
        value: object = config
        for name in path.split("."):
            value = getattr(value, name)
        yield path, key, value


def certificate_files(config: ServerConfig | SignerConfig) -> Iterator[tuple[str, Path]]:
    """The files of certificates that a configuration names, by their keys."""
    for path, key, value in settings(config):
        if key.kind.file and isinstance(value, Path) and not path.endswith(_PRIVATE):
            yield path, value


def read(key: str, path: Path) -> list[Certificate]:
    """The certificates in a file, in order. Raises ConfigError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f'{key}: "{path}" cannot be read ({error.strerror}); expected certificates as PEM') from None
    try:
        with certs.reading():
            return [
                Certificate(key, path, certs.subject_of(each), each.not_valid_before_utc, each.not_valid_after_utc)
                for each in certs.all_in_pem(data)
            ]
    except InvalidCertificate:
        raise ConfigError(f'{key}: "{path}" holds no certificate, or a damaged one; expected PEM') from None
