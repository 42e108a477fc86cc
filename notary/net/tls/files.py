"""Certificates and private keys from PEM files, into OpenSSL contexts.

Rules of this module: a file that is named but cannot be used is a ConfigError that names its key, the file and the
cause, never a weaker connection. Every certificate of a trusted file is a trust anchor, leaf and intermediate included,
as in Go, where OpenSSL by itself wants a self-signed root. OpenSSL reads the certificates; our own reader only looks at
their dates, and a certificate that it cannot read is no error.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_ASN1, X509, X509StoreFlags, load_certificate
from OpenSSL.crypto import Error as CryptoError
from twisted.logger import Logger

from notary import certs
from notary.errors import ConfigError, InvalidCertificate

_EXPECTED: Final = "a file of certificates as PEM"
_Key: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def use_certificate(context: SSL.Context, cert_name: str, cert_file: Path, key_name: str, key_file: Path) -> None:
    """Have the context show the certificates of one file, leaf first, with the key in another. Raises ConfigError."""
    ders = _certificates(cert_name, cert_file)
    for der in ders:
        _known_to_openssl(der, cert_name, cert_file)
    key = _private_key(key_name, key_file)
    try:
        context.use_certificate_chain_file(cert_file)
    except SSL.Error as error:
        raise ConfigError(f'{cert_name}: "{cert_file}" is refused by OpenSSL ({_reason(error)})') from None
    try:
        context.use_privatekey(key)
        context.check_privatekey()
    except (SSL.Error, CryptoError):
        raise ConfigError(
            f'{key_name}: "{key_file}" is not the key of the first certificate in "{cert_file}"; '
            f"expected a pair, and the leaf before the intermediates"
        ) from None
    _warn_of_dates(cert_name, cert_file, ders)


def trust(context: SSL.Context, name: str, path: Path) -> None:
    """Make every certificate in a file, and nothing else, a trust anchor of the context."""
    ders = _certificates(name, path)
    store = context.get_cert_store()
    assert store is not None  # noqa: S101 - a context that was just made has one
    for der in ders:
        store.add_cert(_known_to_openssl(der, name, path))
    store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
    _warn_of_dates(name, path, ders)


def _read(name: str, path: Path, expected: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f'{name}: "{path}" cannot be read ({error.strerror}); expected {expected}') from None


def _certificates(name: str, path: Path) -> Sequence[bytes]:
    """Return the certificates in a file, in DER."""
    data = _read(name, path, _EXPECTED)
    try:
        return certs.ders_in_pem(data)
    except InvalidCertificate:
        cause = "holds a malformed certificate" if b"-----BEGIN CERTIFICATE-----" in data else "holds no certificate"
        raise ConfigError(f'{name}: "{path}" {cause}; expected {_EXPECTED}') from None


def _known_to_openssl(der: bytes, name: str, path: Path) -> X509:
    try:
        return load_certificate(FILETYPE_ASN1, der)
    except CryptoError as error:
        cause = f"holds a malformed certificate (OpenSSL: {_reason(error)})"
        raise ConfigError(f'{name}: "{path}" {cause}; expected {_EXPECTED}') from None


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


_log = Logger()


def _warn_of_dates(name: str, path: Path, ders: Sequence[bytes]) -> None:
    now = datetime.now(UTC)
    for der in ders:
        try:
            certificate = certs.Certificate(der)
        except InvalidCertificate as error:
            _log.warn(
                "{key}: {path} holds a certificate that OpenSSL reads and this daemon does not, so it is not watched: "
                "{error}",
                key=name,
                path=str(path),
                error=str(error),
            )
            continue
        subject = str(certificate.subject)
        if certificate.not_after <= now:
            when = certificate.not_after.isoformat()
            _log.warn(
                "{key}: the certificate of {subject} in {path} EXPIRED at {when}; peers will refuse it",
                key=name,
                subject=subject,
                path=str(path),
                when=when,
            )
        elif certificate.not_before > now:
            when = certificate.not_before.isoformat()
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
