"""A client that has never seen a collection, as strict as the stock ``notary`` 0.7.0 is, and no stricter.

Rules of this module: independent of the package under test; it knows each algorithm by its textbook, and of Notary's
rules only what the stock client insists on. It reads a collection from the timestamp down, as that client does: the
snapshot, root, targets, and each delegation that targets lead to and the snapshot lists, all by checksum. Where that
client gives up on the whole collection there is an AssertionError. Where it prints a warning and goes on (a delegation
without enough good signatures, or expired) the role is passed over.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

from notary.certs import Certificate, first_in_pem
from notary.errors import InvalidCertificate
from tests.support.author import Key, canonical

BASE_ROLES = ("root", "targets", "snapshot", "timestamp")
METHODS = {
    "ecdsa": "ecdsa",
    "ecdsa-x509": "ecdsa",
    "rsa": "rsapss rsapkcs1v15 pycrypto-pkcs#1 pss",
    "rsa-x509": "rsapss rsapkcs1v15",
    "ed25519": "eddsa",
}

Files = Mapping[tuple[str, str], bytes]
"""Content by role and SHA-256 (hex)."""


def by_checksum(files: Iterable[tuple[str, bytes]]) -> Files:
    """Files in the way in which clients ask for them."""
    return {(str(role), hashlib.sha256(data).hexdigest()): data for role, data in files}


def read(files: Files, timestamp: bytes, now: datetime | None = None) -> dict[str, bytes]:
    """What a newcomer gets: each role that counts, and its file; what is passed over is not among them.

    Without ``now`` nothing is taken to have expired.
    """
    listed = json.loads(timestamp)["signed"]["meta"]
    snapshot = _fetch(files, "snapshot", listed)
    listed = json.loads(snapshot)["signed"]["meta"]
    served = {"timestamp": timestamp, "snapshot": snapshot}
    for role in ("root", "targets"):
        served[role] = _fetch(files, role, listed)
    root = json.loads(served["root"])["signed"]
    for role in BASE_ROLES:
        fault = _fault(role, served[role], root["keys"], root["roles"][role], now)
        assert fault is None, fault
    waiting = ["targets"]
    while waiting:
        parent = waiting.pop(0)
        delegations = json.loads(served[parent])["signed"].get("delegations") or {}
        children = []
        for child in delegations.get("roles") or []:
            role, keys = child["name"], delegations["keys"]
            if role not in listed:
                continue
            assert role not in served, f"{role} is delegated to twice"
            data = _fetch(files, role, listed)
            for key_id in child.get("keyids") or []:
                _check_certificate(role, keys[key_id])
            if _fault(role, data, keys, child, now) is None:
                served[role] = data
                children.append(role)
        waiting = children + waiting
    return served


def verify_collection(served: Mapping[str, bytes]) -> None:
    """Check that files, one a role, are a collection that a newcomer reads, and all that it gets."""
    read(by_checksum(served.items()), served["timestamp"])
    for role in json.loads(served["snapshot"])["signed"]["meta"]:
        assert role in served or not role.startswith("targets"), f"{role} is listed and cannot be read"


def _fetch(files: Files, role: str, listed: Mapping[str, Any]) -> bytes:
    meta = listed[role]
    digests = {name: base64.b64decode(digest) for name, digest in meta["hashes"].items()}
    assert "sha256" in digests, f"{role}: no SHA-256 to ask by"
    data = files.get((role, digests["sha256"].hex()))
    assert data is not None, f"{role}: there is no file with the listed checksum"
    assert meta["length"] == -1 or meta["length"] >= len(data), (
        f"{role}: {meta['length']} of {len(data)} bytes are read"
    )
    for name in digests.keys() & {"sha256", "sha512"}:
        assert digests[name] == hashlib.new(name, data).digest(), f"{role}: wrong {name}"
    return data


def _fault(
    role: str, data: bytes, keys: Mapping[str, Any], named: Mapping[str, Any], now: datetime | None
) -> str | None:
    """Why a file does not count, if that is so; AssertionError if clients give up on it."""
    file = json.loads(data)
    assert file["signatures"], f"{role}: no signatures"
    payload = _signed_bytes(file["signed"])
    good = set()
    for one in file["signatures"]:
        if one["keyid"] in (named.get("keyids") or []):
            key = _as_certified(keys[one["keyid"]]) if role == "root" else keys[one["keyid"]]
            own = Key(key["keytype"], base64.b64decode(key["keyval"]["public"])).key_id
            assert own == one["keyid"], f"{role}: key id {one['keyid']} is that of another key"
            if _is_signed(payload, one, key):
                good.add(one["keyid"])
    if len(good) < named["threshold"]:
        return f"{role}: {len(good)} good signatures of {named['threshold']}"
    if now is not None and datetime.fromisoformat(file["signed"]["expires"]) < now:
        return f"{role}: expired"
    return None


def _as_certified(key: Mapping[str, Any]) -> Mapping[str, Any]:
    """A root key: clients go by the certificates in it, not by the type that it names."""
    try:
        public = _certificate(key).public_key
    except ValueError:
        return key
    return {**key, "keytype": "rsa-x509" if isinstance(public, rsa.RSAPublicKey) else "ecdsa-x509"}


def _check_certificate(role: str, key: Mapping[str, Any]) -> None:
    try:
        certificate = _certificate(key)
    except ValueError:
        return
    assert certificate.signature_hash != "sha1", f"{role}: SHA-1"
    public = certificate.public_key
    assert not isinstance(public, rsa.RSAPublicKey) or public.key_size >= 2048, f"{role}: a short RSA key"


def _certificate(key: Mapping[str, Any]) -> Certificate:
    """The first certificate of a key. Raises ValueError. That it is read as Go does is tested in test_certs."""
    try:
        return first_in_pem(base64.b64decode(key["keyval"]["public"]))
    except InvalidCertificate as error:
        raise ValueError(str(error)) from None


def _public_key(key: Mapping[str, Any]) -> Any:
    """The public key of a key as metadata holds it."""
    public = base64.b64decode(key["keyval"]["public"])
    if key["keytype"].endswith("-x509"):
        return _certificate(key).public_key
    if key["keytype"] == "ed25519":
        return ed25519.Ed25519PublicKey.from_public_bytes(public)
    return load_pem_public_key(public) if public.startswith(b"-----") else load_der_public_key(public)


def _is_signed(payload: bytes, signature: Mapping[str, str], key: Mapping[str, Any]) -> bool:
    """Whether a signature is good."""
    if signature["method"].lower() not in METHODS.get(key["keytype"], ""):
        return False
    public, data = _public_key(key), base64.b64decode(signature["sig"])
    try:
        if isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(data, payload)
        elif isinstance(public, rsa.RSAPublicKey):
            plain = signature["method"].lower() == "rsapkcs1v15"
            scheme = padding.PKCS1v15() if plain else padding.PSS(padding.MGF1(hashes.SHA256()), 32)
            public.verify(data, payload, scheme, hashes.SHA256())
        else:
            half = len(data) // 2
            r, s = (int.from_bytes(one, "big") for one in (data[:half], data[half:]))
            public.verify(encode_dss_signature(r, s), payload, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _signed_bytes(value: Any) -> bytes:
    """Canonical JSON in full: whole numbers written otherwise, and control characters as they are."""
    if isinstance(value, dict):
        members = (_signed_bytes(name) + b":" + _signed_bytes(value[name]) for name in sorted(value, key=str.encode))
        return b"{" + b",".join(members) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(_signed_bytes, value)) + b"]"
    if isinstance(value, str):
        return b'"' + value.replace("\\", "\\\\").replace('"', '\\"').encode() + b'"'
    return canonical(int(value) if isinstance(value, float) else value)
