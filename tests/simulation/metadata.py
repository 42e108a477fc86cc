"""The metadata of simulated publishers: real files, whose bytes follow from what is put into them.

Rules of this module: independent of the package under test, as :mod:`tests.support.author` is, whose canonical form it
shares. All signatures are deterministic, so that the same seed gives the same bytes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import nacl.exceptions
import nacl.signing
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tests.support.author import Key, canonical, file_meta, moment, server_key_from

__all__ = ["Key", "canonical", "server_key_from"]

_ECDSA = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
PREFIX = "sim/"


class EdKey(Key):
    """An Ed25519 key whose private half is a seed of 32 bytes."""

    @classmethod
    def of(cls, name: str) -> EdKey:
        secret = nacl.signing.SigningKey(hashlib.sha256(name.encode()).digest())
        return cls("ed25519", bytes(secret.verify_key), secret)  # type: ignore[arg-type]

    def sign(self, payload: bytes) -> dict[str, str]:
        signature = self.private.sign(payload).signature  # type: ignore[union-attr, call-arg]
        return {"keyid": self.key_id, "method": "eddsa", "sig": base64.b64encode(signature).decode()}


class RootKey(Key):
    """An ECDSA key in a certificate for all simulated collections."""

    def sign(self, payload: bytes) -> dict[str, str]:
        r, s = decode_dss_signature(self.private.sign(payload, _ECDSA))  # type: ignore[union-attr, call-arg, arg-type]
        raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return {"keyid": self.key_id, "method": "ecdsa", "sig": base64.b64encode(raw).decode()}


@functools.cache
def root_key(number: int) -> RootKey:
    """Return the key of this number, the same in every run."""
    private = ec.derive_private_key(
        int.from_bytes(hashlib.sha256(f"root {number}".encode()).digest(), "big") >> 1, ec.SECP256R1()
    )
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, PREFIX + "*")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(number + 1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2099, 1, 1, tzinfo=UTC))
        .sign(private, hashes.SHA256(), ecdsa_deterministic=True)
    )
    return RootKey("ecdsa-x509", certificate.public_bytes(Encoding.PEM), private)


TARGETS_KEY = EdKey.of("targets")
SNAPSHOT_KEY = EdKey.of("snapshot")
ROOTS = 4
"""How many root keys there are."""


def stranger() -> RootKey:
    """Return a root key that no collection has."""
    return root_key(ROOTS)


def expiry(signed_part: Mapping[str, Any]) -> datetime:
    """Return when a file expires."""
    return datetime.fromisoformat(signed_part["expires"])


def root_of_id(key_id: str) -> RootKey:
    """Return one of the root keys by its id."""
    return next(key for key in map(root_key, range(ROOTS)) if key.key_id == key_id)


def signed(value: Mapping[str, Any], keys: Sequence[Key]) -> bytes:
    payload = canonical(value)
    return b'{"signed":' + payload + b',"signatures":' + canonical([key.sign(payload) for key in keys]) + b"}"


def root(
    version: int, now: datetime, roles: Mapping[str, Key], signers: Sequence[RootKey], days: float = 3650
) -> bytes:
    """A root file; ``roles`` names the one key of each role."""
    return signed(
        {
            "_type": "Root",
            "consistent_snapshot": False,
            "expires": moment(now + timedelta(days=days)),
            "keys": {key.key_id: key.to_json() for key in roles.values()},
            "roles": {name: {"keyids": [key.key_id], "threshold": 1} for name, key in roles.items()},
            "version": version,
        },
        signers,
    )


def targets(version: int, now: datetime, entries: Mapping[str, Any], key: Key = TARGETS_KEY) -> bytes:
    value = {
        "_type": "Targets",
        "delegations": {"keys": {}, "roles": []},
        "expires": moment(now + timedelta(days=1095)),
        "targets": dict(entries),
        "version": version,
    }
    return signed(value, [key])


def snapshot(version: int, now: datetime, files: Mapping[str, bytes | Mapping[str, Any]]) -> bytes:
    """A snapshot of the publisher: of files, or of what an earlier snapshot says of them."""
    meta = {name: file_meta(file) if isinstance(file, bytes) else file for name, file in files.items()}
    value = {
        "_type": "Snapshot",
        "expires": moment(now + timedelta(days=1095)),
        "meta": meta,
        "version": version,
    }
    return signed(value, [SNAPSHOT_KEY])


def entry(content: bytes) -> dict[str, Any]:
    return file_meta(content)


_loaded = functools.lru_cache(256)(json.loads)
"""Reads JSON. Others get the same value: it may not be changed."""


def parsed(data: bytes) -> dict[str, Any]:
    """Return the signed part of a file, which may not be changed."""
    found: dict[str, Any] = _loaded(data)["signed"]
    return found


def listed(signed_part: Mapping[str, Any], role: str) -> str | None:
    """Return the checksum (hex) that a timestamp or snapshot lists for a role."""
    meta = signed_part["meta"].get(role)
    return None if meta is None else base64.b64decode(meta["hashes"]["sha256"]).hex()


def signers_of(data: bytes, keys: Mapping[str, Any]) -> list[str]:
    """Return the ids of those of ``keys`` (as a root has them) that have signed a file."""
    value = _loaded(data)
    payload = canonical(value["signed"])
    found = []
    for signature in value["signatures"]:
        key = keys.get(signature["keyid"])
        if key is not None and _verifies(key["keytype"], key["keyval"]["public"], signature["sig"], payload):
            found.append(signature["keyid"])
    return found


@functools.lru_cache(1024)
def _verifies(key_type: str, encoded_public: str, encoded_sig: str, payload: bytes) -> bool:
    public, sig = base64.b64decode(encoded_public), base64.b64decode(encoded_sig)
    try:
        if key_type == "ed25519":
            nacl.signing.VerifyKey(public).verify(payload, sig)
        else:
            certificate_key(public).verify(
                encode_dss_signature(int.from_bytes(sig[:32], "big"), int.from_bytes(sig[32:], "big")),
                payload,
                ec.ECDSA(hashes.SHA256()),
            )
    except (nacl.exceptions.BadSignatureError, InvalidSignature):
        return False
    return True


@functools.cache
def certificate_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    return x509.load_pem_x509_certificate(pem).public_key()  # type: ignore[return-value]


def form(files: Mapping[str, bytes]) -> tuple[bytes, bytes]:
    """Return the content type and the body of an upload."""
    boundary = b"boundary-of-the-simulation"
    parts = [
        b"--"
        + boundary
        + b'\r\nContent-Disposition: form-data; name="files"; filename="'
        + role.encode()
        + b'"\r\nContent-Type: application/octet-stream\r\n\r\n'
        + data
        + b"\r\n"
        for role, data in files.items()
    ]
    return b"multipart/form-data; boundary=" + boundary, b"".join(parts) + b"--" + boundary + b"--\r\n"
