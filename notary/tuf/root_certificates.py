"""Which certificates of root keys are valid for a collection (docs/protocol.md, section 3).

Rules of this module: pure. A chain is valid for a collection if it has exactly one leaf, which comes first and names
that collection. Expiry counts only if the caller passes the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from notary import certs
from notary.errors import InvalidCertificate, InvalidMetadata, NoUsableCertificate
from notary.tuf.canonical import quote
from notary.tuf.model import ROOT, Gun, RoleKeys, RoleName, Root
from notary.tuf.public import PublicKey
from notary.tuf.public import rsa_fault as rsa_fault_of

_SHOWN_TEXTS = 3
_NOT_BEFORE_LEEWAY = timedelta(days=1)
_SHA1_SIGNATURES = {
    "1.2.840.113549.1.1.5",  # RSA
    "1.3.14.3.2.29",  # RSA, the older identifier
    "1.2.840.10040.4.3",  # DSA
    "1.2.840.10045.4.1",  # ECDSA
}


def some(texts: Sequence[str], separator: str) -> str:
    """Join the first few of ``texts`` and the number of the others, so that a message does not grow with an upload."""
    more = [f"and {len(texts) - _SHOWN_TEXTS} more"] if len(texts) > _SHOWN_TEXTS else []
    return separator.join([*texts[:_SHOWN_TEXTS], *more])


def certified_keys(root: Root, gun: Gun, now: datetime | None) -> RoleKeys:
    """Return the root keys whose certificate chains are valid for ``gun``, by the ids of the accepted chains.

    A key counts if its chain has exactly one leaf, which comes first, names ``gun`` and has no fault; expiry is a fault
    only if ``now`` is given. An intermediate certificate with a fault is removed from the chain. That changes the key's
    id, so that signatures under the old id no longer count, as in clients.

    Raises NoUsableCertificate, with the reason for each key, if no key counts.
    """
    named = root.roles[ROOT]
    usable: dict[str, PublicKey] = {}
    faults: list[str] = []
    for key in named.keys.values():
        try:
            certified = _certified_key(key, gun, now)
        except InvalidMetadata as error:
            faults.append(f"{key.key_id}: {error}")
        else:
            usable[certified.key_id] = certified
    if not usable:
        reasons = some(faults, "; ") or "no keys"
        raise NoUsableCertificate(f"root: no root key is a valid certificate for {gun} ({reasons})")
    return RoleKeys(usable, named.threshold)


def _certified_key(key: PublicKey, gun: Gun, now: datetime | None) -> PublicKey:
    chain = [_Certificate.read(certificate) for certificate in key.certificates]
    if not chain:
        raise InvalidMetadata("not a chain of certificates in the usual PEM form")
    leaf, *rest = chain
    if leaf.authority:
        raise InvalidMetadata("the first certificate must be the leaf, not an authority")
    if not all(certificate.authority for certificate in rest):
        raise InvalidMetadata("more than one leaf certificate")
    if not leaf.covers(gun):
        raise InvalidMetadata(f"common name {quote(leaf.name)} is neither the collection nor a prefix of it with a *")
    fault = leaf.fault(now)
    if fault is not None:
        raise InvalidMetadata(fault)
    if leaf.key_type is None:
        raise InvalidMetadata("the certificate's key is neither ECDSA nor RSA")
    kept = [leaf, *(certificate for certificate in rest if now is None or certificate.fault(now) is None)]
    return PublicKey(leaf.key_type, b"".join(certificate.pem for certificate in kept))


def check_delegation_certificate(role: RoleName, key: PublicKey) -> None:
    """Require that a delegation's certificate has no fault; its expiry does not count. Raises InvalidMetadata."""
    try:
        certificate = certs.first_in_pem(key.public)
    except InvalidCertificate:
        return  # Not a certificate: a bare key, or a key that can verify nothing.
    fault = _Certificate.read(certificate).fault(None)
    if fault is not None:
        raise InvalidMetadata(f"{role}: key {key.key_id}: {fault}")


@dataclass(frozen=True, slots=True)
class _Certificate:
    """The parts of an X.509 certificate that are checked.

    ``key_type`` is the type of a TUF key that holds this certificate, None if there is no such type.
    """

    pem: bytes
    name: str
    authority: bool
    begins: datetime
    ends: datetime
    sha1: bool
    rsa_fault: str | None
    key_type: str | None

    @classmethod
    def read(cls, certificate: certs.Certificate) -> _Certificate:
        """Read the parts. Raises InvalidMetadata if one is malformed."""
        try:
            public, name = certificate.public_key, certificate.common_name
        except InvalidCertificate as error:
            raise InvalidMetadata(str(error)) from None
        key_type, rsa_fault = None, None
        if isinstance(public, ec.EllipticCurvePublicKey):
            key_type = "ecdsa-x509"
        elif isinstance(public, rsa.RSAPublicKey):
            key_type, rsa_fault = "rsa-x509", rsa_fault_of(public)
        return cls(
            pem=certificate.pem,
            name=name,
            authority=certificate.is_authority,
            begins=certificate.not_before,
            ends=certificate.not_after,
            sha1=certificate.signature_algorithm in _SHA1_SIGNATURES,
            rsa_fault=rsa_fault,
            key_type=key_type,
        )

    def covers(self, gun: Gun) -> bool:
        """Whether the common name is ``gun``, or a prefix of it followed by ``*``."""
        return gun.startswith(self.name.rstrip("*")) if self.name.endswith("*") else self.name == gun

    def fault(self, now: datetime | None) -> str | None:
        """Return the reason why the certificate is not accepted, if any; expiry is one only if ``now`` is given."""
        if self.begins > self.ends:
            return "the certificate ends before it begins"
        if self.sha1:
            return "the certificate is signed with SHA-1"
        if self.rsa_fault is not None:
            return f"the certificate's {self.rsa_fault}"
        if now is not None and (now > self.ends or now + _NOT_BEFORE_LEEWAY < self.begins):
            return f"the certificate is valid only from {self.begins.isoformat()} to {self.ends.isoformat()}"
        return None
