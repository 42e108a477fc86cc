"""A publisher of collections for tests: real keys, real certificates, real signatures, and every kind of damage.

Synchronous, and independent of the package under test: it has its own canonical form, key ids and signing, so that a
mistake there cannot hide a mistake here. What it writes is what the Go client writes, byte for byte in form
(``{"signed":…,"signatures":…}``, canonical), so the same files can go to the Go server.

    author = Author("example.com/app", snapshot=make_key(), timestamp=server_key_from(body))
    files = author.first()                      # {"root": …, "targets": …, "snapshot": …}
    author.add("v1", b"content")
    files = author.publish("targets")           # targets and, as this author holds its key, a snapshot that fits
"""

from __future__ import annotations

import base64
import copy
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

Private = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
Signed = dict[str, Any]
Edit = Callable[[Signed], None]
Damage = Callable[[bytes], bytes]

METHODS = {"ecdsa": "ecdsa", "rsa": "rsapss", "ed25519": "eddsa"}
TYPES = {"root": "Root", "snapshot": "Snapshot", "timestamp": "Timestamp"}


def canonical(value: Any) -> bytes:
    """Canonical JSON of values whose strings hold no control characters."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def moment(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- keys -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A key as metadata names it; ``private`` is None if somebody else (the server) holds it."""

    key_type: str
    public: bytes
    private: Private | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "keytype": self.key_type,
            "keyval": {"private": None, "public": base64.b64encode(self.public).decode()},
        }

    @functools.cached_property
    def key_id(self) -> str:
        return hashlib.sha256(canonical(self.to_json())).hexdigest()

    @property
    def algorithm(self) -> str:
        return self.key_type.removesuffix("-x509")

    @property
    def method(self) -> str:
        return METHODS[self.algorithm]

    @property
    def public_part(self) -> Key:
        return Key(self.key_type, self.public)

    @property
    def bare(self) -> Key:
        """The key without its certificate; its id is the canonical id."""
        assert self.private is not None
        return Key(self.algorithm, public_bytes(self.private), self.private)

    def sign(self, payload: bytes) -> dict[str, str]:
        assert self.private is not None, f"the private part of {self.key_id} is not here"
        return {
            "keyid": self.key_id,
            "method": self.method,
            "sig": base64.b64encode(raw_signature(self.private, payload)).decode(),
        }


def raw_signature(private: Private, payload: bytes) -> bytes:
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return private.sign(payload)
    if isinstance(private, rsa.RSAPrivateKey):
        return private.sign(payload, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    r, s = decode_dss_signature(private.sign(payload, ec.ECDSA(hashes.SHA256())))
    width = (private.curve.key_size + 7) // 8
    return r.to_bytes(width, "big") + s.to_bytes(width, "big")


def public_bytes(private: Private) -> bytes:
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@functools.cache
def _rsa_pool(bits: int, number: int) -> rsa.RSAPrivateKey:
    """RSA keys are slow to make and hold no state, so tests share them."""
    return rsa.generate_private_key(65537, bits)


def make_private(algorithm: str = "ecdsa", *, number: int = 0, bits: int = 2048) -> Private:
    """A new private key; for RSA the ``number``-th of a shared pool."""
    if algorithm == "rsa":
        return _rsa_pool(bits, number)
    if algorithm == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP256R1())


def make_key(algorithm: str = "ecdsa", *, number: int = 0, bits: int = 2048) -> Key:
    private = make_private(algorithm, number=number, bits=bits)
    return Key(algorithm, public_bytes(private), private)


def server_key_from(body: bytes) -> Key:
    """The key in the answer to ``GET …/snapshot.key`` or ``…/timestamp.key``."""
    value = json.loads(body)
    return Key(value["keytype"], base64.b64decode(value["keyval"]["public"]))


def make_certificate(
    private: Private,
    name: str,
    *,
    begins: datetime | None = None,
    ends: datetime | None = None,
    authority: bool = False,
    sha1: bool = False,
    names: Sequence[str] = (),
    constrained: bool = True,
    broken: bool = False,
) -> bytes:
    """A self-signed certificate, as PEM.

    ``sha1`` (RSA only) relabels it, so that its own signature is wrong; ``broken`` puts nonsense into its constraints.
    """
    begins = begins or datetime(2020, 1, 1, tzinfo=UTC)
    ends = ends or datetime(2049, 12, 31, tzinfo=UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one) for one in (*names, name)] if name else [])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(begins, ends))
        .not_valid_after(max(begins, ends))
    )
    if constrained:
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    digest = None if isinstance(private, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    certificate = builder.sign(private, digest)
    der = certificate.public_bytes(Encoding.DER)
    if begins > ends:
        der = _swapped(der, begins, ends)
    if broken:
        der = der.replace(bytes.fromhex("0603551d130101ff04023000"), bytes.fromhex("0603551d130101ff04020500"))
    if sha1:
        der = der.replace(bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d010105"))
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def _swapped(der: bytes, begins: datetime, ends: datetime) -> bytes:
    """No library makes a certificate that ends before it begins, so the two UTCTimes change places."""
    first, second = (one.strftime("%y%m%d%H%M%SZ").encode() for one in (ends, begins))
    assert der.count(first) == der.count(second) == 1
    return der.replace(first + b"\x17\x0d" + second, second + b"\x17\x0d" + first)


def make_root_key(
    name: str,
    algorithm: str = "ecdsa",
    *,
    private: Private | None = None,
    number: int = 0,
    bits: int = 2048,
    intermediates: Sequence[bytes] = (),
    **certificate: Any,
) -> Key:
    """A key in a certificate for ``name`` (a GUN, or a prefix and ``*``), followed by ``intermediates`` (PEM)."""
    private = private or make_private(algorithm, number=number, bits=bits)
    chain = make_certificate(private, name, **certificate) + b"".join(intermediates)
    return Key(f"{algorithm}-x509", chain, private)


# -- collections ------------------------------------------------------------------------------------------------------


@dataclass
class Role:
    """Who may sign, and how many must."""

    keys: list[Key]
    threshold: int = 1
    paths: list[str] = field(default_factory=lambda: [""])

    def to_json(self) -> dict[str, Any]:
        return {"keyids": [key.key_id for key in self.keys], "threshold": self.threshold}


def sign(signed: Signed, keys: Iterable[Key]) -> bytes:
    """The whole file, in the form of the Go client."""
    payload = canonical(signed)
    signatures = canonical([key.sign(payload) for key in keys])
    return b'{"signed":' + payload + b',"signatures":' + signatures + b"}"


def file_meta(data: bytes) -> dict[str, Any]:
    return {
        "hashes": {name: base64.b64encode(hashlib.new(name, data).digest()).decode() for name in ("sha256", "sha512")},
        "length": len(data),
    }


class Author:
    """One collection in the hands of its publisher.

    ``roles`` holds the base roles; ``delegations`` maps each delegated role to its keys; ``contents`` maps each
    targets role to its files; ``versions`` and ``lifetimes`` hold what the next file of a role will say. A key without
    a private part is the server's. Files are made by ``root``, ``targets`` and ``snapshot``, which change nothing.
    ``stored`` holds what ``publish`` made: what the server has if it took everything.
    """

    def __init__(
        self,
        gun: str,
        *,
        timestamp: Key | None = None,
        snapshot: Key | None = None,
        root: Key | None = None,
        targets: Key | None = None,
        now: datetime | None = None,
    ) -> None:
        self.gun = gun
        self.now = now or datetime.now(UTC).replace(microsecond=0)
        self.roles = {
            "root": Role([root or make_root_key(gun)]),
            "targets": Role([targets or make_key()]),
            "snapshot": Role([snapshot or make_key()]),
            "timestamp": Role([timestamp or make_key("ed25519")]),
        }
        self.retired: list[Key] = []
        self.delegations: dict[str, Role] = {}
        self.contents: dict[str, dict[str, dict[str, Any]]] = {"targets": {}}
        self.versions: dict[str, int] = {}
        self.stored: dict[str, bytes] = {}
        self.lifetimes: dict[str, timedelta] = {}

    # -- changing the collection

    def bump(self, *roles: str, by: int = 1) -> None:
        """The next files of ``roles`` have a higher version."""
        for role in roles:
            self.versions[role] = self.versions.get(role, 1) + by

    def add(self, name: str, content: bytes, role: str = "targets") -> None:
        self.contents.setdefault(role, {})[name] = file_meta(content)

    def delegate(self, role: str, *keys: Key, threshold: int = 1, paths: Sequence[str] = ("",)) -> None:
        self.delegations[role] = Role(list(keys or [make_key()]), threshold, list(paths))
        self.contents.setdefault(role, {})

    def rotate(self, role: str, *keys: Key, threshold: int = 1) -> None:
        """Give a base role new keys. Old root keys keep signing root, so that others can follow."""
        if role == "root":
            self.retired.extend(self.roles["root"].keys)
        self.roles[role] = Role(list(keys), threshold)

    @property
    def holds_snapshot(self) -> bool:
        return all(key.private is not None for key in self.roles["snapshot"].keys)

    # -- making files

    def root(self, *, edit: Edit | None = None, signers: Sequence[Key] | None = None) -> bytes:
        signed = self._common("root", timedelta(days=3650)) | {
            "consistent_snapshot": False,
            "keys": {key.key_id: key.to_json() for role in self.roles.values() for key in role.keys},
            "roles": {name: role.to_json() for name, role in self.roles.items()},
        }
        return self._finish(signed, [*self.roles["root"].keys, *self.retired], edit, signers)

    def targets(
        self, role: str = "targets", *, edit: Edit | None = None, signers: Sequence[Key] | None = None
    ) -> bytes:
        children = {name: one for name, one in self.delegations.items() if name.rpartition("/")[0] == role}
        signed = self._common(role, timedelta(days=1095)) | {
            "delegations": {
                "keys": {key.key_id: key.to_json() for one in children.values() for key in one.keys},
                "roles": [one.to_json() | {"name": name, "paths": one.paths} for name, one in children.items()],
            },
            "targets": self.contents.get(role, {}),
        }
        return self._finish(signed, (self.delegations.get(role) or self.roles["targets"]).keys, edit, signers)

    def snapshot(
        self, files: Mapping[str, bytes], *, edit: Edit | None = None, signers: Sequence[Key] | None = None
    ) -> bytes:
        """A snapshot that lists ``files`` and nothing else."""
        meta = {role: file_meta(data) for role, data in files.items() if role not in ("snapshot", "timestamp")}
        signed = self._common("snapshot", timedelta(days=1095)) | {"meta": meta}
        return self._finish(signed, self.roles["snapshot"].keys, edit, signers)

    def timestamp(self, snapshot: bytes, *, edit: Edit | None = None, signers: Sequence[Key] | None = None) -> bytes:
        signed = self._common("timestamp", timedelta(days=14)) | {"meta": {"snapshot": file_meta(snapshot)}}
        return self._finish(signed, self.roles["timestamp"].keys, edit, signers)

    def files(self, *roles: str) -> dict[str, bytes]:
        """``roles`` made now, with a snapshot over them and the stored files if this author holds its key."""
        made = {role: self.root() if role == "root" else self.targets(role) for role in roles if role != "snapshot"}
        return self.covered(made)

    def covered(self, made: Mapping[str, bytes]) -> dict[str, bytes]:
        """``made``, with a snapshot over it and the stored files if this author holds its key."""
        if not self.holds_snapshot:
            return dict(made)
        return {**made, "snapshot": self.snapshot({**self.stored, **made})}

    def publish(self, *roles: str) -> dict[str, bytes]:
        """New versions of those ``roles`` that are stored, first ones of the others; ``stored`` follows."""
        again = [role for role in (*roles, *(["snapshot"] if self.holds_snapshot else [])) if role in self.stored]
        self.bump(*dict.fromkeys(again))
        made = self.files(*roles)
        self.stored.update(made)
        return made

    def first(self) -> dict[str, bytes]:
        """What the first publish of the collection uploads."""
        return self.publish("root", "targets", *self.delegations)

    def _common(self, role: str, lifetime: timedelta) -> Signed:
        return {
            "_type": TYPES.get(role, "Targets"),
            "expires": moment(self.now + self.lifetimes.get(role, lifetime)),
            "version": self.versions.get(role, 1),
        }

    def _finish(self, signed: Signed, keys: Sequence[Key], edit: Edit | None, signers: Sequence[Key] | None) -> bytes:
        signed = copy.deepcopy(signed)
        if edit is not None:
            edit(signed)
        return sign(signed, keys if signers is None else signers)


# -- damage -----------------------------------------------------------------------------------------------------------


def resigned(data: bytes, edit: Edit, keys: Iterable[Key]) -> bytes:
    """``data`` with its signed part edited and signed again."""
    signed = json.loads(data)["signed"]
    edit(signed)
    return sign(signed, keys)


def _envelope(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Damage to the parsed file, which is then written in the usual form."""

    def damage(data: bytes) -> bytes:
        value = json.loads(data)
        change(value)
        return b"{" + b",".join(canonical(name) + b":" + canonical(one) for name, one in value.items()) + b"}"

    return damage


def setting(*path: str | int, to: Any) -> Edit:
    """An edit that puts ``to`` at ``path``."""

    def edit(signed: Signed) -> None:
        place: Any = signed
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to

    return edit


def dropping(*path: str | int) -> Edit:
    """An edit that removes what is at ``path``."""

    def edit(signed: Signed) -> None:
        place: Any = signed
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return edit


def flip_bit(data: bytes, bit: int) -> bytes:
    """``data`` with one bit changed; ``bit`` counts from the start, modulo its size."""
    place, bit = divmod(bit % (8 * len(data)), 8)
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def _flip_signature(value: dict[str, Any]) -> None:
    for one in value["signatures"]:
        one["sig"] = base64.b64encode(flip_bit(base64.b64decode(one["sig"]), 77)).decode()


def _in_signatures(**changes: str) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        for one in value["signatures"]:
            one.update(changes)

    return change


MALFORMED: Mapping[str, Damage] = {
    "empty": lambda _data: b"",
    "blank": lambda _data: b" ",
    "not JSON": lambda _data: b"not json",
    "a number": lambda _data: b"12",
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "a list": lambda data: b"[" + data + b"]",
    "truncated": lambda data: data[:-10],
    "nested 100,000 deep": lambda _data: b"[" * 100_000,
    "version is text": lambda data: data.replace(b'"version":', b'"version":"x","w":'),
    "version has a fraction": lambda data: data.replace(b'"version":', b'"version":1.5,"w":'),
    "version has 5,000 digits": lambda data: data.replace(b'"version":', b'"version":' + b"9" * 5000 + b',"w":'),
    "version is NaN": lambda data: data.replace(b'"version":', b'"version":NaN,"w":'),
    "expires is no time": lambda data: data.replace(b'"expires":"', b'"expires":"next '),
    "expires is a number": lambda data: data.replace(b'"expires":"', b'"expires":5,"w":"'),
    "type is a number": lambda data: data.replace(b'"_type":"', b'"_type":5,"w":"'),
    "signatures are text": lambda data: data.replace(b'"signatures":[', b'"signatures":"","w":['),
    "signature is not base64": lambda data: data.replace(b'"sig":"', b'"sig":"*'),
    "signed is text": lambda data: data.replace(b'{"signed":', b'{"signed":"","w":'),
}
"""Files that every Notary server refuses as MALFORMED_JSON."""

STRICTLY_MALFORMED: Mapping[str, Damage] = {
    "not UTF-8": lambda data: data.replace(b'"_type":', b'"_a":"\xe9","_type":'),
    "unsigned member": _envelope(lambda value: value.update(note="unsigned")),
    "duplicate key": lambda data: data.replace(b'"version":', b'"version":1,"version":', 1),
    "signed twice": lambda data: data.replace(b'{"signed":', b'{"signed":{},"signed":'),
    "trailing data": lambda data: data + b"{}",
    "trailing text": lambda data: data + b" and more",
    "lone surrogate": lambda data: data.replace(b'"_type":', b'"_a":"\\ud800","_type":'),
}
"""Files that this service refuses as MALFORMED_JSON, and the reference does not (docs/protocol.md, section 9).

The reference takes some, and calls others badly signed.
"""

UNSIGNED: Mapping[str, Damage] = {
    "no signatures": _envelope(lambda value: value.update(signatures=[])),
    "signature bit flipped": _envelope(_flip_signature),
    "signature empty": _envelope(_in_signatures(sig="")),
    "signature of nobody": _envelope(_in_signatures(keyid="0" * 64)),
    "key id in upper case": _envelope(
        lambda value: [one.update(keyid=one["keyid"].upper()) for one in value["signatures"]]
    ),
    "unknown method": _envelope(_in_signatures(method="rot13")),
    "method of another key type": _envelope(_in_signatures(method="pycrypto-pkcs#1 pss")),
    "version changed after signing": _envelope(
        lambda value: value["signed"].update(version=value["signed"]["version"] + 1)
    ),
    "member added after signing": _envelope(lambda value: value["signed"].update(extra="x")),
    "expiry changed after signing": _envelope(lambda value: value["signed"].update(expires="2199-01-01T00:00:00Z")),
}
"""Files that parse, and whose signatures are not good."""

HOLLOW: Mapping[str, Damage] = {
    "signed missing": _envelope(lambda value: value.pop("signed")),
    "signed null": _envelope(lambda value: value.update(signed=None)),
}
"""Files with signatures of nothing, over which the reference drops the connection unless they are roots."""

HARMLESS: Mapping[str, Damage] = {
    "white space": lambda data: json.dumps(json.loads(data), indent=2).encode(),
    "method in upper case": _envelope(
        lambda value: [one.update(method=one["method"].upper()) for one in value["signatures"]]
    ),
    "signature of a stranger too": _envelope(
        lambda value: value["signatures"].append({"keyid": "0" * 64, "method": "ecdsa", "sig": "AAAA"})
    ),
    "every signature twice": _envelope(lambda value: value["signatures"].extend(list(value["signatures"]))),
    "bad signature beside the good one": _envelope(
        lambda value: value["signatures"].insert(0, {**value["signatures"][0], "sig": "AAAA"})
    ),
}
"""Changes that leave a file valid, though not in the usual form."""

INVALID: Mapping[str, Edit] = {
    "wrong type": setting("_type", to="Mirrors"),
    "type missing": dropping("_type"),
    "version 0": setting("version", to=0),
    "version negative": setting("version", to=-1),
    "version missing": dropping("version"),
    "expired": setting("expires", to="2001-01-01T00:00:00Z"),
    "expiry missing": dropping("expires"),
}
"""Edits that make the file of any role invalid though it is well signed."""
