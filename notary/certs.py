"""Reading X.509 certificates from untrusted sources.

Rules of this module: pure. The library parses the frame of a certificate when it is loaded, and each part when the part
is read; both may raise any error. All code in ``notary`` loads certificates with these functions, and reads the parts
of an untrusted certificate inside :func:`reading`, so that every failure is an InvalidCertificate.
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
    """Return the subject of a certificate for messages, also if the subject cannot be read."""
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
    """Read the first certificate in PEM; text after it is ignored. Raises InvalidCertificate, also if there is none."""
    with reading():
        return x509.load_pem_x509_certificate(data)


def all_in_pem(data: bytes) -> tuple[x509.Certificate, ...]:
    """Read every certificate in PEM, in order. Raises InvalidCertificate, also if there is none."""
    with reading():
        return tuple(x509.load_pem_x509_certificates(data))
