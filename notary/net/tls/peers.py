"""What a peer's certificate says, beyond what OpenSSL checks: for which hosts it is, and when it is valid.

Rules of this module: no input or output. OpenSSL has read the certificate; :mod:`notary.certs` reads it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final

from OpenSSL.crypto import FILETYPE_ASN1, X509, dump_certificate
from service_identity.exceptions import CertificateError
from service_identity.hazmat import (
    DNS_ID,
    DNSPattern,
    IPAddress_ID,
    IPAddressPattern,
    ServiceID,
    verify_service_identity,
)

from notary import certs
from notary.errors import InvalidCertificate

_UNREAD_TIMES: Final = frozenset({13, 14})
"""OpenSSL's verification errors for a time in another form than it reads (openssl/x509_vfy.h)."""


def read(certificate: X509) -> certs.Certificate:
    """Return a certificate of OpenSSL's as ours. Raises InvalidCertificate."""
    return certs.Certificate(dump_certificate(FILETYPE_ASN1, certificate))


def require_host(certificate: certs.Certificate, host: str) -> None:
    """Require that a certificate is for a host, a name or an IP address.

    Raises VerificationError if it is not, CertificateError if it is for no host at all, and InvalidCertificate. An
    alternative name that can be that of no host (an address in the place of a name) is passed over.
    """
    verify_service_identity(list(_patterns(certificate)), [_identity(host)], [])


def _identity(host: str) -> ServiceID:
    return IPAddress_ID(host) if is_address(host) else DNS_ID(host)


def _patterns(certificate: certs.Certificate) -> Iterator[DNSPattern | IPAddressPattern]:
    for kind, content in certificate.alternatives:
        with suppress(CertificateError):
            if kind == certs.DNS:
                yield DNSPattern.from_bytes(content)
            elif kind == certs.ADDRESS:
                yield IPAddressPattern.from_bytes(content)


def is_only_unread(certificate: X509, error: int) -> bool:
    """Return True if ``error`` means that OpenSSL cannot read a time which we can read, and it is the right time."""
    if error not in _UNREAD_TIMES:
        return False
    with suppress(InvalidCertificate):
        known = read(certificate)
        return known.not_before <= datetime.now(UTC) <= known.not_after
    return False


def is_address(host: str) -> bool:
    """Return True for an IP address, False for a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
