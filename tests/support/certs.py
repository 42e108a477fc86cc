"""Mints the certificates that tests of TLS need: authorities, leaves, keys, and the files that hold them.

root = Authority.root("root")
middle = root.intermediate("middle")
leaf = middle.leaf("localhost", "127.0.0.1")
cert, key = leaf.write(tmp_path, "server")      # the leaf, then what leads to the root
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from notary.certs import Certificate

DAY = timedelta(days=1)
KEYS_OF_AUTHORITIES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def pem(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def as_read(*certificates: x509.Certificate) -> tuple[Certificate, ...]:
    """The same certificates as the package reads them."""
    return tuple(Certificate(certificate.public_bytes(Encoding.DER)) for certificate in certificates)


def key_pem(key: CertificateIssuerPrivateKeyTypes, passphrase: bytes | None = None) -> bytes:
    protection = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)


@dataclass(frozen=True)
class Leaf:
    """``chain`` is the leaf, then the intermediates; never the root."""

    key: CertificateIssuerPrivateKeyTypes
    chain: tuple[x509.Certificate, ...]

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        cert_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
        cert_file.write_bytes(pem(self.chain))
        key_file.write_bytes(key_pem(self.key))
        return cert_file, key_file


@dataclass(frozen=True)
class Authority:
    """``chain`` is its own certificate, then the intermediates above it; empty for a root."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    chain: tuple[x509.Certificate, ...] = ()

    @classmethod
    def root(cls, name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(_certificate(name, key, name, key, authority=True), key)

    def intermediate(self, name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key, self._name, self.key, authority=True)
        return Authority(certificate, key, (certificate, *self.chain))

    def leaf(
        self,
        *names: str,
        starts: timedelta = -DAY,
        ends: timedelta = DAY,
        key: CertificateIssuerPrivateKeyTypes | None = None,
        common_name_only: bool = False,
    ) -> Leaf:
        """``names`` are host names and IP addresses; ``starts`` and ``ends`` count from now."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(
            names[0],
            key,
            self._name,
            self.key,
            authority=False,
            alternatives=() if common_name_only else names,
            starts=starts,
            ends=ends,
        )
        return Leaf(key, (certificate, *self.chain))

    def write(self, folder: Path, name: str) -> Path:
        path = folder / f"{name}.crt"
        path.write_bytes(pem([self.certificate]))
        return path

    @property
    def _name(self) -> str:
        value = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        return value if isinstance(value, str) else value.decode()


def _certificate(
    subject: str,
    key: CertificateIssuerPrivateKeyTypes,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    authority: bool,
    alternatives: Iterable[str] = (),
    starts: timedelta = -DAY,
    ends: timedelta = DAY,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_distinguished(subject))
        .issuer_name(_distinguished(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if authority:
        # By default, Python 3.13 and later trust no authority without it.
        builder = builder.add_extension(KEYS_OF_AUTHORITIES, critical=True)
    else:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(usage, critical=False)
        if names := [_alternative(name) for name in alternatives]:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _distinguished(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
