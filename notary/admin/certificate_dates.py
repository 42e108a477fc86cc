"""The dates of the certificates in a file.

Rules of this module: a file is read, and nothing in it is verified: :mod:`notary.net.tls.contexts` does that for the
daemons and for ``check-config``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from notary import certs
from notary.errors import ConfigError, InvalidCertificate


@dataclass(frozen=True, slots=True)
class CertificateDates:
    """The dates of one certificate (aware, UTC), with the configuration key that names its file."""

    key: str
    path: Path
    subject: str
    valid_from: datetime
    valid_until: datetime


def read(key: str, path: Path) -> list[CertificateDates]:
    """Return the dates of the certificates in a file, in order. Raises ConfigError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f'{key}: "{path}" cannot be read ({error.strerror}); expected certificates as PEM') from None
    try:
        return [
            CertificateDates(key, path, str(each.subject), each.not_before, each.not_after)
            for each in certs.all_in_pem(data)
        ]
    except InvalidCertificate as error:
        raise ConfigError(f'{key}: "{path}" holds no certificate, or a damaged one ({error}); expected PEM') from None
