"""The certificates in a file: until when each is valid.

Rules of this module: files are read; nothing is verified beyond that they can be: :mod:`notary.net.tls.contexts` does
that the way the daemons do.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from notary.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate: the configuration key and the file that it was found by, and when it ends (aware, UTC)."""

    key: str
    path: Path
    subject: str
    begins: datetime
    ends: datetime


def read(key: str, path: Path) -> list[Certificate]:
    """The certificates in a file, in order. Raises ConfigError."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise ConfigError(f'{key}: "{path}" cannot be read ({error.strerror}); expected certificates as PEM') from None
    except ValueError:
        raise ConfigError(f'{key}: "{path}" holds no certificate, or a damaged one; expected PEM') from None
    return [
        Certificate(key, path, each.subject.rfc4514_string(), each.not_valid_before_utc, each.not_valid_after_utc)
        for each in found
    ]
