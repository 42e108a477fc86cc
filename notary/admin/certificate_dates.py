"""The certificates in a file: until when each is valid.

Rules of this module: files are read; nothing is verified beyond that they can be: :mod:`notary.net.tls.contexts` does
that the way the daemons do.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from notary import certs
from notary.errors import ConfigError, InvalidCertificate


@dataclass(frozen=True, slots=True)
class CertificateDates:
    """One certificate: the configuration key and the file that it was found by, and when it ends (aware, UTC)."""

    key: str
    path: Path
    subject: str
    valid_from: datetime
    valid_until: datetime


def read(key: str, path: Path) -> list[CertificateDates]:
    """The certificates in a file, in order. Raises ConfigError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f'{key}: "{path}" cannot be read ({error.strerror}); expected certificates as PEM') from None
    try:
        with certs.reading():
            return [
                CertificateDates(key, path, certs.subject_of(each), each.not_valid_before_utc, each.not_valid_after_utc)
                for each in certs.all_in_pem(data)
            ]
    except InvalidCertificate:
        raise ConfigError(f'{key}: "{path}" holds no certificate, or a damaged one; expected PEM') from None
