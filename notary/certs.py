"""Reading X.509 certificates that somebody else has made.

Rules of this module: pure. The library reads the outside of a certificate when it is loaded and the inside when it is
asked, and may raise anything at both. Nothing in ``notary`` loads a certificate but by these functions, and what is
inside a stranger's certificate is looked at under :func:`reading` only: whatever is wrong is an InvalidCertificate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cryptography import x509

from notary.errors import InvalidCertificate


@contextmanager
def reading() -> Iterator[None]:
    """Turn every failure of the library into an InvalidCertificate."""
    try:
        yield
    except InvalidCertificate:
        raise
    except Exception:  # noqa: BLE001 - parsers of hostile bytes raise what they like
        raise InvalidCertificate("the certificate cannot be read") from None


def subject_of(certificate: x509.Certificate) -> str:
    """Say whose certificate it is, for people, who may have to find it even if its name cannot be read."""
    try:
        with reading():
            return certificate.subject.rfc4514_string()
    except InvalidCertificate:
        return "(a name that cannot be read)"


def from_der(data: bytes) -> x509.Certificate:
    """Read one certificate in DER. Raises InvalidCertificate."""
    with reading():
        return x509.load_der_x509_certificate(data)


def first_in_pem(data: bytes) -> x509.Certificate:
    """Read the first certificate in PEM, whatever follows it. Raises InvalidCertificate, also if there is none."""
    with reading():
        return x509.load_pem_x509_certificate(data)


def all_in_pem(data: bytes) -> tuple[x509.Certificate, ...]:
    """Read every certificate in PEM, in order. Raises InvalidCertificate, also if there is none."""
    with reading():
        return tuple(x509.load_pem_x509_certificates(data))
