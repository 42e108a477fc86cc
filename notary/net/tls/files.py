"""Certificates and private keys from PEM files, into OpenSSL contexts.

Rules of this module: a file that is named but cannot be used is a ConfigError that names its key, the file and the
cause, never a weaker connection. Every certificate of a trusted file is a trust anchor, leaf and intermediate included,
as in Go, where OpenSSL by itself wants a self-signed root.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags
from OpenSSL.crypto import Error as CryptoError
from twisted.logger import Logger

from notary import certs
from notary.errors import ConfigError, InvalidCertificate

_Key: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def use_certificate(context: SSL.Context, cert_name: str, cert_file: Path, key_name: str, key_file: Path) -> None:
    """Have the context show the certificates of one file, leaf first, with the key in another. Raises ConfigError."""
    certificates = _certificates(cert_name, cert_file)
    leaf = certificates[0]
    key = _private_key(key_name, key_file)
    if _public_of(leaf, cert_name, cert_file) != _public_bytes(key.public_key()):
        raise ConfigError(
            f'{key_name}: "{key_file}" is not the key of the first certificate in "{cert_file}"; '
            f"expected a pair, and the leaf before the intermediates"
        )
    try:
        context.use_certificate(leaf)
        context.use_privatekey(key)
        for intermediate in certificates[1:]:
            context.add_extra_chain_cert(intermediate)
    except (SSL.Error, CryptoError) as error:
        raise ConfigError(f'{cert_name}: "{cert_file}" is refused by OpenSSL ({_reason(error)})') from None
    _warn_of_dates(cert_name, cert_file, certificates)


def trust(context: SSL.Context, name: str, path: Path) -> None:
    """Make every certificate in a file, and nothing else, a trust anchor of the context."""
    certificates = _certificates(name, path)
    store = context.get_cert_store()
    assert store is not None  # noqa: S101 - a context that was just made has one
    try:
        with certs.reading():
            for certificate in certificates:
                store.add_cert(X509.from_cryptography(certificate))
    except InvalidCertificate:
        raise ConfigError(f'{name}: "{path}" holds a malformed certificate; expected certificates as PEM') from None
    store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
    _warn_of_dates(name, path, certificates)


def _read(name: str, path: Path, expected: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f'{name}: "{path}" cannot be read ({error.strerror}); expected {expected}') from None


def _certificates(name: str, path: Path) -> list[x509.Certificate]:
    expected = "a file of certificates as PEM"
    data = _read(name, path, expected)
    try:
        return list(certs.all_in_pem(data))
    except InvalidCertificate:
        cause = "holds a malformed certificate" if b"-----BEGIN CERTIFICATE-----" in data else "holds no certificate"
        raise ConfigError(f'{name}: "{path}" {cause}; expected {expected}') from None


def _private_key(name: str, path: Path) -> _Key:
    expected = "a private key (RSA, ECDSA or Ed25519) as PEM, without a passphrase"
    data = _read(name, path, expected)
    try:
        key = load_pem_private_key(data, None)
    except TypeError:
        raise ConfigError(f'{name}: "{path}" is encrypted; expected {expected}') from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f'{name}: "{path}" holds no usable private key; expected {expected}') from None
    if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey)):
        raise ConfigError(f'{name}: "{path}" holds a key of another kind; expected {expected}')
    return key


def _public_of(leaf: x509.Certificate, name: str, path: Path) -> bytes:
    try:
        with certs.reading():
            return _public_bytes(leaf.public_key())
    except InvalidCertificate:
        raise ConfigError(
            f'{name}: "{path}" begins with a certificate whose key cannot be read; expected RSA, ECDSA or Ed25519'
        ) from None


def _public_bytes(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


_log = Logger()


def _warn_of_dates(name: str, path: Path, certificates: Sequence[x509.Certificate]) -> None:
    now = datetime.now(UTC)
    for certificate in certificates:
        subject = certs.subject_of(certificate)
        if certificate.not_valid_after_utc <= now:
            when = certificate.not_valid_after_utc.isoformat()
            _log.warn(
                "{key}: the certificate of {subject} in {path} EXPIRED at {when}; peers will refuse it",
                key=name,
                subject=subject,
                path=str(path),
                when=when,
            )
        elif certificate.not_valid_before_utc > now:
            when = certificate.not_valid_before_utc.isoformat()
            _log.warn(
                "{key}: the certificate of {subject} in {path} is not valid before {when}; peers will refuse it",
                key=name,
                subject=subject,
                path=str(path),
                when=when,
            )


def _reason(error: SSL.Error | CryptoError) -> str:
    reasons = [entry[2] for entry in error.args[0] if entry[2]] if error.args else []
    return "; ".join(reasons) or "unknown cause"
