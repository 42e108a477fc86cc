"""Bearer tokens, good and bad, minted by hand: signatures come from ``cryptography`` alone, never from the JOSE library
that the server verifies them with.

Rules of this module: ``World`` holds the keys and certificates of one test run; ``CASES`` is the one table of
Authorization headers with what becomes of each, here and at the reference.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID, ObjectIdentifier

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

REALM = "https://auth.example.com/token"
SERVICE = "notary.example.com"
ISSUER = "issuer.example.com"
GUN = "example.com/team/app"

ACCEPTED = ""
INVALID = "invalid_token"
INSUFFICIENT = "insufficient_scope"
NO_TOKEN = "no token"
"""Verdicts: what the challenge's ``error`` says; ACCEPTED is no challenge, NO_TOKEN a challenge without an error."""


def encode(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def flip_last_bit(token: str) -> str:
    """``token`` with another signature: its last byte's lowest bit is the other one."""
    head, _, signature = token.rpartition(".")
    raw = bytearray(base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4)))
    raw[-1] ^= 1
    return f"{head}.{encode(bytes(raw))}"


def sign(algorithm: str, key: PrivateKey | bytes, data: bytes) -> bytes:
    """A JWS signature (RFC 7518); ``key`` is a shared secret for HS256."""
    digest = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}.get(algorithm[2:])
    if isinstance(key, bytes):
        return hmac.digest(key, data, "sha256")
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    assert digest is not None
    if isinstance(key, rsa.RSAPrivateKey):
        if algorithm.startswith("PS"):
            return key.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        return key.sign(data, padding.PKCS1v15(), digest)
    size = (key.curve.key_size + 7) // 8
    r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def token(header: Mapping[str, Any] | bytes, claims: Mapping[str, Any] | bytes, key: PrivateKey | bytes) -> str:
    """A compact JWS over ``claims``; bytes go in as they are. RS256 is signed if the header names no algorithm."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    algorithm = header.get("alg") if not isinstance(header, bytes) else None
    signed = ".".join(map(encode, parts))
    return f"{signed}.{encode(sign(algorithm if isinstance(algorithm, str) else 'RS256', key, signed.encode()))}"


def fingerprint(key: PrivateKey) -> str:
    """libtrust's name of a key."""
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    text = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode()
    return ":".join(text[start : start + 4] for start in range(0, 48, 4))


def _unsigned(number: int, size: int = 0) -> str:
    return encode(number.to_bytes(size or (number.bit_length() + 7) // 8, "big"))


def public_jwk(key: PrivateKey, **more: Any) -> dict[str, Any]:
    """The JWK of a key, with the ``kid`` that libtrust demands."""
    found = {"kid": fingerprint(key), **more}
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        return {"kty": "RSA", "n": _unsigned(numbers.n), "e": _unsigned(numbers.e), **found}
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size, point = key.curve.key_size, key.public_key().public_numbers()
        length = (size + 7) // 8
        return {
            "kty": "EC",
            "crv": f"P-{size}",
            "x": _unsigned(point.x, length),
            "y": _unsigned(point.y, length),
        } | found
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {"kty": "OKP", "crv": "Ed25519", "x": encode(raw), **found}


def x5c(*certificates: x509.Certificate) -> list[str]:
    """A chain as a JOSE header carries it."""
    return [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode() for certificate in certificates]


@dataclass(frozen=True)
class Holder:
    """A key and its certificate."""

    key: PrivateKey
    certificate: x509.Certificate
    name: str

    def issue(self, name: str, key: PrivateKey, now: datetime, **options: Any) -> Holder:
        """A certificate for ``key`` that this one signs."""
        return _certify(name, key, self, now, **options)


def self_signed(name: str, key: PrivateKey, now: datetime, **options: Any) -> Holder:
    """A certificate that its own key signs."""
    return _certify(name, key, None, now, **options)


def _certify(
    name: str,
    key: PrivateKey,
    issuer: Holder | None,
    now: datetime,
    *,
    ca: bool | None = False,
    path_length: int | None = None,
    start: timedelta = timedelta(days=-2),
    end: timedelta = timedelta(days=2),
    key_usage: x509.KeyUsage | None = None,
    critical: bool = False,
) -> Holder:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer.name if issuer else name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + end)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical=True)
    if key_usage is not None:
        builder = builder.add_extension(key_usage, critical=True)
    if critical:
        unknown = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
        builder = builder.add_extension(unknown, critical=True)
    by = issuer.key if issuer else key
    digest = None if isinstance(by, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Holder(key, builder.sign(by, digest), name)


def usage(*, cert_sign: bool) -> x509.KeyUsage:
    """A key usage that allows signatures, and on certificates if ``cert_sign``."""
    return x509.KeyUsage(True, False, False, False, False, cert_sign, False, False, False)


def _p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


class World:
    """Keys, authorities and the bundle that the servers trust; ``now`` is the time that all of it is about."""

    def __init__(self, now: datetime) -> None:
        now = self.now = now.replace(microsecond=0)
        self.root = self_signed("root", rsa.generate_private_key(65537, 2048), now, ca=True)
        self.rsa = self_signed("rsa signer", rsa.generate_private_key(65537, 2048), now)
        self.ec = self_signed("ec signer", _p256(), now)
        self.p384 = self_signed("p384 signer", ec.generate_private_key(ec.SECP384R1()), now)
        self.p521 = self_signed("p521 signer", ec.generate_private_key(ec.SECP521R1()), now)
        self.middle = self.root.issue("middle", _p256(), now, ca=True)
        self.leaf = self.middle.issue("leaf", _p256(), now)
        self.under_root = self.root.issue("under root", _p256(), now)
        self.hidden_root = self_signed("hidden root", _p256(), now, ca=True)
        self.anchor = self.hidden_root.issue("anchor", _p256(), now, ca=True)
        self.under_anchor = self.anchor.issue("under anchor", _p256(), now)
        self.old = self_signed("old signer", _p256(), now, end=timedelta(hours=-1))
        self.early = self_signed("early signer", _p256(), now, start=timedelta(hours=1))
        self.renewed = self_signed("renewed signer", _p256(), now, end=timedelta(hours=-1))
        self.old_root = self_signed("old root", _p256(), now, ca=True, end=timedelta(hours=-1))
        self.foreign_root = self_signed("foreign root", _p256(), now, ca=True)
        self.foreign = self.foreign_root.issue("foreign", _p256(), now)
        self.impostor_root = self_signed("root", _p256(), now, ca=True)
        self.trusted = (
            self.root,
            self.rsa,
            self.ec,
            self.p384,
            self.p521,
            self.anchor,
            self.old,
            self.early,
            self.renewed,
            self_signed("renewed signer", self.renewed.key, now),
            self_signed("renewed signer", self.renewed.key, now, start=timedelta(hours=1)),
            self.old_root,
        )

    @property
    def bundle(self) -> bytes:
        """The file ``rootcertbundle``."""
        return b"".join(holder.certificate.public_bytes(Encoding.PEM) for holder in self.trusted)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """The claims of a token that lets pull from GUN; a change to None leaves the claim out."""
        moment = int(self.now.timestamp())
        claims = {
            "iss": ISSUER,
            "sub": "alice",
            "aud": SERVICE,
            "exp": moment + 3600,
            "nbf": moment - 3600,
            "iat": moment - 3600,
            "jti": "1",
            "access": [{"type": "repository", "name": GUN, "actions": ["pull"]}],
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def by_kid(self, holder: Holder, algorithm: str, /, **changes: Any) -> str:
        """A bearer token whose header names the key by its fingerprint."""
        header = {"typ": "JWT", "alg": algorithm, "kid": fingerprint(holder.key)}
        return "Bearer " + token(header, self.claims(**changes), holder.key)

    def good(self, **changes: Any) -> str:
        """A bearer token with changed claims and nothing else wrong."""
        return self.by_kid(self.ec, "ES256", **changes)

    def headed(self, holder: Holder, /, algorithm: str = "ES256", **header: Any) -> str:
        """A bearer token with this header and good claims, signed by ``holder``."""
        return "Bearer " + token({"typ": "JWT", "alg": algorithm, **header}, self.claims(), holder.key)

    def chained(self, *holders: Holder, algorithm: str = "ES256") -> str:
        """A bearer token signed by the first of ``holders``, whose certificates it brings as x5c."""
        return self.headed(holders[0], algorithm, x5c=x5c(*(holder.certificate for holder in holders)))

    def seconds(self, delta: int) -> int:
        """``now`` and ``delta`` as a claim."""
        return int(self.now.timestamp()) + delta


@dataclass(frozen=True)
class Case:
    """One Authorization header and its verdict; ``at_reference`` is the reference's, where that differs on purpose."""

    name: str
    verdict: str
    authorization: Callable[[World], str | None]
    at_reference: str | None = None


def _grants(*grants: Any) -> Callable[[World], str]:
    return lambda world: world.good(access=list(grants))


def _grant(name: str, *actions: str, kind: str = "repository") -> dict[str, Any]:
    return {"type": kind, "name": name, "actions": list(actions)}


def _confused(world: World) -> str:
    """The public key of the bundle used as if it were a shared secret."""
    pem = world.rsa.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return "Bearer " + token({"alg": "HS256", "kid": fingerprint(world.rsa.key)}, world.claims(), pem)


def _issued_by_leaf(world: World) -> str:
    below = world.leaf.issue("below a leaf", _p256(), world.now)
    return world.chained(below, world.leaf, world.middle)


def _issued_by_bundle_leaf(world: World) -> str:
    return world.chained(world.ec.issue("below a signer", _p256(), world.now))


def _authority(world: World, **options: Any) -> str:
    """A token under an intermediate authority that is made in this way."""
    middle = world.root.issue("another middle", _p256(), world.now, **options)
    return world.chained(middle.issue("under it", _p256(), world.now), middle)


def _too_deep(world: World) -> str:
    shallow = world.root.issue("path length 0", _p256(), world.now, ca=True, path_length=0)
    deeper = shallow.issue("deeper", _p256(), world.now, ca=True)
    return world.chained(deeper.issue("deepest", _p256(), world.now), deeper, shallow)


def _leaf(world: World, **options: Any) -> str:
    """A token by a leaf of the trusted root that is made in this way."""
    return world.chained(world.root.issue("leaf of its own", _p256(), world.now, **options))


def _signed_unencoded(world: World) -> str:
    """A good token of the extension that signs the claims as they are, not in base64url (RFC 7797)."""
    header = {"alg": "ES256", "kid": fingerprint(world.ec.key), "b64": False, "crit": ["b64"]}
    head, claims = encode(json.dumps(header).encode()), json.dumps(world.claims()).encode()
    return f"Bearer {head}.{encode(claims)}.{encode(sign('ES256', world.ec.key, head.encode() + b'.' + claims))}"


def _respelt(change: Callable[[str], str]) -> Callable[[World], str]:
    """A good token whose certificate is written in another way."""
    return lambda world: world.headed(world.under_root, x5c=[change(x5c(world.under_root.certificate)[0])])


def _weakly_signed(algorithm: str) -> Callable[[World], str]:
    """A token by a leaf of the trusted root whose certificate is signed over SHA-1 or MD5.

    No library signs so any more; the certificate is a good one, patched.
    """
    last, prefix = {
        "sha1": (b"\x05", bytes.fromhex("3021300906052b0e03021a05000414")),
        "md5": (b"\x04", bytes.fromhex("3020300c06082a864886f70d020505000410")),
    }[algorithm]
    oids = bytes.fromhex("06092a864886f70d0101")

    def build(world: World) -> str:
        leaf = world.root.issue("weak", _p256(), world.now)
        assert isinstance(world.root.key, rsa.RSAPrivateKey)
        numbers = world.root.key.private_numbers()
        body = leaf.certificate.tbs_certificate_bytes.replace(oids + b"\x0b", oids + last)
        info = prefix + hashlib.new(algorithm, body).digest()
        message = b"\x00\x01" + b"\xff" * (256 - 3 - len(info)) + b"\x00" + info
        signature = pow(int.from_bytes(message, "big"), numbers.d, numbers.public_numbers.n).to_bytes(256, "big")
        der = leaf.certificate.public_bytes(Encoding.DER).replace(oids + b"\x0b", oids + last)
        return world.headed(leaf, x5c=[base64.b64encode(der[:-256] + signature).decode()])

    return build


def _version_four(world: World) -> str:
    leaf = world.root.issue("version 4", _p256(), world.now).certificate.public_bytes(Encoding.DER)
    version_three, four = bytes.fromhex("a003020102"), bytes.fromhex("a003020103")
    return world.headed(world.ec, x5c=[base64.b64encode(leaf.replace(version_three, four, 1)).decode()])


def _ed25519_leaf(world: World) -> str:
    return world.chained(
        world.root.issue("ed25519", ed25519.Ed25519PrivateKey.generate(), world.now), algorithm="EdDSA"
    )


def _long_chain(world: World) -> str:
    return world.headed(world.under_root, x5c=x5c(world.under_root.certificate, *([world.foreign.certificate] * 30)))


def _nested(depth: int) -> Callable[[World], str]:
    return lambda world: (
        "Bearer " + token({"alg": "ES256", "kid": fingerprint(world.ec.key)}, b"[" * depth + b"]" * depth, world.ec.key)
    )


def _raw(header: bytes | None, claims: bytes | None) -> Callable[[World], str]:
    """A signed token with these bytes as header or claims, and good ones otherwise."""

    def build(world: World) -> str:
        good_header = {"alg": "ES256", "kid": fingerprint(world.ec.key)}
        signed = f"{encode(header or json.dumps(good_header).encode())}."
        signed += encode(claims if claims is not None else json.dumps(world.claims()).encode())
        return f"Bearer {signed}.{encode(sign('ES256', world.ec.key, signed.encode()))}"

    return build


def _mislabelled(world: World, algorithm: Any) -> str:
    """A token that is signed as ES256 while its header says otherwise."""
    header = json.dumps({"alg": algorithm, "kid": fingerprint(world.ec.key)}).encode()
    return _raw(header, None)(world)


def _stray_bits(world: World) -> str:
    """A token whose claims are spelt in a way that decodes to the same bytes as what was signed."""
    head, claims, signature = world.good(jti="12").split(".")
    if len(claims) % 4 == 0:  # no bits are left over then: make the claims one byte longer
        head, claims, signature = world.good(jti="123").split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = f"{claims[:-1]}{alphabet[alphabet.index(claims[-1]) ^ 1]}"
    assert base64.urlsafe_b64decode(other + "==") == base64.urlsafe_b64decode(claims + "==")
    return f"{head}.{other}.{signature}"


def _padded(world: World) -> str:
    """A token of 60 KB, inside the limit of 64 KB."""
    return world.good(access=[_grant(GUN, "pull"), _grant("padding", "x" * 44_000)])


CASES = (
    # -- no token
    Case("no header", NO_TOKEN, lambda _: None),
    Case("empty header", NO_TOKEN, lambda _: ""),
    Case("basic", NO_TOKEN, lambda _: "Basic dXNlcjpwYXNz"),
    Case("scheme alone", NO_TOKEN, lambda _: "Bearer"),
    Case("scheme and a space", NO_TOKEN, lambda _: "Bearer "),
    Case("two spaces", NO_TOKEN, lambda world: world.good().replace(" ", "  ")),
    Case("three words", NO_TOKEN, lambda world: f"{world.good()} more"),
    Case("bare token", NO_TOKEN, lambda world: world.good().removeprefix("Bearer ")),
    # -- ways to name the key
    Case("kid, RS256", ACCEPTED, lambda world: world.by_kid(world.rsa, "RS256")),
    Case("kid, RS384", ACCEPTED, lambda world: world.by_kid(world.rsa, "RS384")),
    Case("kid, RS512", ACCEPTED, lambda world: world.by_kid(world.rsa, "RS512")),
    Case("kid, PS256", ACCEPTED, lambda world: world.by_kid(world.rsa, "PS256"), at_reference=INVALID),
    Case("kid, ES256", ACCEPTED, lambda world: world.by_kid(world.ec, "ES256")),
    Case("kid, ES384", ACCEPTED, lambda world: world.by_kid(world.p384, "ES384")),
    Case("kid, ES512", ACCEPTED, lambda world: world.by_kid(world.p521, "ES512")),
    Case("kid of an authority", ACCEPTED, lambda world: world.by_kid(world.root, "RS256")),
    Case("kid of a bundle certificate that was renewed", ACCEPTED, lambda world: world.by_kid(world.renewed, "ES256")),
    Case(
        "jwk of a bundle certificate that was renewed",
        ACCEPTED,
        lambda world: world.headed(world.renewed, jwk=public_jwk(world.renewed.key)),
    ),
    Case("lower-case scheme", ACCEPTED, lambda world: world.good().replace("Bearer", "bearer")),
    Case("upper-case scheme", ACCEPTED, lambda world: world.good().replace("Bearer", "BEARER")),
    Case("jwk, EC", ACCEPTED, lambda world: world.headed(world.ec, jwk=public_jwk(world.ec.key))),
    Case("jwk, RSA", ACCEPTED, lambda world: world.headed(world.rsa, "RS256", jwk=public_jwk(world.rsa.key))),
    Case(
        "jwk without kid",
        ACCEPTED,
        lambda world: world.headed(world.ec, jwk=public_jwk(world.ec.key) | {"kid": None}),
        at_reference=INVALID,
    ),
    Case(
        "jwk with chain",
        ACCEPTED,
        lambda world: world.headed(
            world.leaf, jwk=public_jwk(world.leaf.key, x5c=x5c(world.leaf.certificate, world.middle.certificate))
        ),
    ),
    Case("x5c, under the root", ACCEPTED, lambda world: world.chained(world.under_root)),
    Case("x5c, with intermediate", ACCEPTED, lambda world: world.chained(world.leaf, world.middle)),
    Case("x5c, with root as well", ACCEPTED, lambda world: world.chained(world.leaf, world.middle, world.root)),
    Case("x5c, RSA of the bundle itself", ACCEPTED, lambda world: world.chained(world.rsa, algorithm="RS256")),
    Case("x5c, EC of the bundle itself", ACCEPTED, lambda world: world.chained(world.ec)),
    Case("x5c, under a bundle intermediate", ACCEPTED, lambda world: world.chained(world.under_anchor)),
    Case(
        "x5c, under a bundle intermediate, with its root",
        ACCEPTED,
        lambda world: world.chained(world.under_anchor, world.anchor, world.hidden_root),
    ),
    Case(
        "x5c, with a foreign certificate as well",
        ACCEPTED,
        lambda world: world.chained(world.leaf, world.foreign_root, world.middle),
    ),
    Case("x5c, Ed25519", ACCEPTED, _ed25519_leaf, at_reference=INVALID),
    Case(
        "x5c goes before a wrong kid",
        ACCEPTED,
        lambda world: world.headed(world.under_root, x5c=x5c(world.under_root.certificate), kid="wrong"),
    ),
    Case(
        "jwk goes before a wrong kid",
        ACCEPTED,
        lambda world: world.headed(world.ec, jwk=public_jwk(world.ec.key), kid="wrong"),
    ),
    Case(
        "empty x5c falls back to kid",
        ACCEPTED,
        lambda world: world.headed(world.ec, x5c=[], kid=fingerprint(world.ec.key)),
    ),
    Case(
        "null x5c and jwk fall back to kid",
        ACCEPTED,
        lambda world: world.headed(world.ec, x5c=None, jwk=None, kid=fingerprint(world.ec.key)),
    ),
    # -- claims
    Case("audience list", ACCEPTED, lambda world: world.good(aud=["other", SERVICE]), at_reference=INVALID),
    Case("no nbf", ACCEPTED, lambda world: world.good(nbf=None)),
    Case("no subject", ACCEPTED, lambda world: world.good(sub=None)),
    Case("issued in the future", ACCEPTED, lambda world: world.good(iat=world.seconds(9000))),
    Case("expired inside the leeway", ACCEPTED, lambda world: world.good(exp=world.seconds(-5))),
    Case("not yet valid inside the leeway", ACCEPTED, lambda world: world.good(nbf=world.seconds(30))),
    Case("unknown claim", ACCEPTED, lambda world: world.good(extra={"a": [1.5, None]})),
    Case("60 KB", ACCEPTED, _padded),
    Case("expired", INVALID, lambda world: world.good(exp=world.seconds(-90))),
    Case("not yet valid", INVALID, lambda world: world.good(nbf=world.seconds(9000))),
    Case("no exp", INVALID, lambda world: world.good(exp=None)),
    Case("exp is a string", INVALID, lambda world: world.good(exp=str(world.seconds(3600)))),
    Case("exp is true", INVALID, lambda world: world.good(exp=True)),
    Case("exp is huge", INVALID, lambda world: world.good(exp=10**30)),
    Case("nbf is a string", INVALID, lambda world: world.good(nbf="0")),
    Case("other issuer", INVALID, lambda world: world.good(iss="other.example.com")),
    Case("no issuer", INVALID, lambda world: world.good(iss=None)),
    Case("issuer is a list", INVALID, lambda world: world.good(iss=[ISSUER])),
    Case("other audience", INVALID, lambda world: world.good(aud="other.example.com")),
    Case("no audience", INVALID, lambda world: world.good(aud=None)),
    Case("audience list without us", INVALID, lambda world: world.good(aud=["a", "b"])),
    Case("audience list with a number", INVALID, lambda world: world.good(aud=[SERVICE, 1])),
    Case("audience is part of ours", INVALID, lambda world: world.good(aud=SERVICE[:-1])),
    Case("subject is a number", INVALID, lambda world: world.good(sub=1)),
    # -- rights
    Case("more than is asked", ACCEPTED, _grants(_grant("other", "pull"), _grant(GUN, "pull", "push", "*"))),
    Case("rights in two grants", ACCEPTED, _grants(_grant(GUN, "push"), _grant(GUN, "pull"))),
    Case("no access claim", INSUFFICIENT, lambda world: world.good(access=None)),
    Case("empty access", INSUFFICIENT, _grants()),
    Case("no actions", INSUFFICIENT, _grants(_grant(GUN))),
    Case("other action", INSUFFICIENT, _grants(_grant(GUN, "push"))),
    Case("star is every action", ACCEPTED, _grants(_grant(GUN, "*"))),
    Case("star is no prefix", INSUFFICIENT, _grants(_grant(GUN, "pu*"))),
    Case("star is no name", INSUFFICIENT, _grants(_grant("*", "*"))),
    Case("other collection", INSUFFICIENT, _grants(_grant("example.com/team", "pull"))),
    Case("collection below", INSUFFICIENT, _grants(_grant(f"{GUN}/sub", "pull"))),
    Case("collection in capitals", INSUFFICIENT, _grants(_grant(GUN.upper(), "pull"))),
    Case("other type", INSUFFICIENT, _grants(_grant(GUN, "pull", kind="registry"))),
    Case("actions is null", INSUFFICIENT, _grants({"type": "repository", "name": GUN, "actions": None})),
    Case("actions is a string", INVALID, _grants({"type": "repository", "name": GUN, "actions": "pull"})),
    Case("access is an object", INVALID, lambda world: world.good(access=_grant(GUN, "pull"))),
    Case("access holds a string", INVALID, _grants("pull")),
    # -- signatures
    Case("changed signature", INVALID, lambda world: flip_last_bit(world.good())),
    Case("signed by another key", INVALID, lambda world: world.headed(world.foreign, kid=fingerprint(world.ec.key))),
    Case("no signature", INVALID, lambda world: world.good().rpartition(".")[0] + "."),
    Case("signature of one byte", INVALID, lambda world: world.good().rpartition(".")[0] + ".AA"),
    Case("alg none", INVALID, lambda world: _raw(b'{"alg":"none"}', None)(world).rpartition(".")[0] + "."),
    Case("alg none with a signature", INVALID, _raw(b'{"alg":"none","kid":"x"}', None)),
    Case("public key as shared secret", INVALID, _confused),
    Case("alg of another type of key", INVALID, lambda world: _mislabelled(world, "RS256")),
    Case("alg of another curve", INVALID, lambda world: _mislabelled(world, "ES384")),
    Case("alg is missing", INVALID, lambda world: _mislabelled(world, None)),
    Case("alg is a list", INVALID, lambda world: _mislabelled(world, ["ES256"])),
    Case("alg in lower case", INVALID, lambda world: _mislabelled(world, "es256")),
    Case(
        "critical extension",
        INVALID,
        lambda world: world.headed(world.ec, kid=fingerprint(world.ec.key), crit=["exp"], exp=1),
        at_reference=ACCEPTED,
    ),
    Case(
        "payload that is not encoded",
        INVALID,
        lambda world: world.headed(world.ec, kid=fingerprint(world.ec.key), b64=False),
        at_reference=ACCEPTED,
    ),
    Case("payload that is signed unencoded", INVALID, _signed_unencoded),
    # -- keys that are not trusted
    Case(
        "kid that nobody knows", INVALID, lambda world: world.headed(world.foreign, kid=fingerprint(world.foreign.key))
    ),
    Case("kid is a number", INVALID, lambda world: world.headed(world.ec, kid=7)),
    Case("no key at all", INVALID, lambda world: world.headed(world.ec)),
    Case(
        "jwk that nobody knows", INVALID, lambda world: world.headed(world.foreign, jwk=public_jwk(world.foreign.key))
    ),
    Case("jwk is a string", INVALID, lambda world: world.headed(world.ec, jwk="key")),
    Case("jwk without type", INVALID, lambda world: world.headed(world.ec, jwk={"x": "AA"})),
    Case(
        "jwk of a shared secret",
        INVALID,
        lambda world: (
            "Bearer "
            + token({"alg": "HS256", "jwk": {"kty": "oct", "k": encode(b"secret")}}, world.claims(), b"secret")
        ),
    ),
    Case(
        "jwk with a list for a coordinate",
        INVALID,
        lambda world: world.headed(world.ec, jwk=public_jwk(world.ec.key) | {"x": ["AA"]}),
    ),
    Case(
        "jwk that is not the key of its chain",
        INVALID,
        lambda world: world.headed(
            world.foreign, jwk=public_jwk(world.foreign.key, x5c=x5c(world.under_root.certificate))
        ),
    ),
    Case(
        "jwk that is not the key of its chain, which signed",
        INVALID,
        lambda world: world.headed(
            world.under_root, jwk=public_jwk(world.foreign.key, x5c=x5c(world.under_root.certificate))
        ),
    ),
    Case(
        "jwk with a foreign chain",
        INVALID,
        lambda world: world.headed(
            world.foreign, jwk=public_jwk(world.foreign.key, x5c=x5c(world.foreign.certificate))
        ),
    ),
    Case("x5c of a foreign authority", INVALID, lambda world: world.chained(world.foreign)),
    Case(
        "x5c of a foreign authority, with it", INVALID, lambda world: world.chained(world.foreign, world.foreign_root)
    ),
    Case("x5c, foreign leaf before a good one", INVALID, lambda world: world.chained(world.foreign, world.under_root)),
    Case(
        "x5c of another authority with the trusted name",
        INVALID,
        lambda world: world.chained(world.impostor_root.issue("impostor", _p256(), world.now), world.impostor_root),
    ),
    Case("x5c without its intermediate", INVALID, lambda world: world.chained(world.leaf)),
    Case(
        "x5c signed by another key than the leaf's",
        INVALID,
        lambda world: world.headed(world.foreign, x5c=x5c(world.under_root.certificate)),
    ),
    Case("x5c, expired leaf", INVALID, lambda world: _leaf(world, end=timedelta(hours=-1))),
    Case("x5c, leaf from the future", INVALID, lambda world: _leaf(world, start=timedelta(hours=1))),
    Case("x5c, expired certificate of the bundle", INVALID, lambda world: world.chained(world.old)),
    Case("x5c, certificate of the bundle from the future", INVALID, lambda world: world.chained(world.early)),
    *(
        Case(
            f"{way} of {what} bundle certificate",
            INVALID,
            lambda world, holder=holder, way=way: (
                world.by_kid(getattr(world, holder), "ES256")
                if way == "kid"
                else world.headed(getattr(world, holder), jwk=public_jwk(getattr(world, holder).key))
            ),
            at_reference=ACCEPTED,
        )
        for way in ("kid", "jwk")
        for what, holder in (("an expired", "old"), ("a future", "early"))
    ),
    Case(
        "x5c, under an expired authority",
        INVALID,
        lambda world: world.chained(world.old_root.issue("late", _p256(), world.now)),
    ),
    Case("x5c, expired intermediate", INVALID, lambda world: _authority(world, ca=True, end=timedelta(hours=-1))),
    Case("x5c, issued by a leaf", INVALID, _issued_by_leaf),
    Case("x5c, issued by a leaf of the bundle", INVALID, _issued_by_bundle_leaf),
    Case("x5c, intermediate that says nothing", INVALID, lambda world: _authority(world, ca=None)),
    Case(
        "x5c, intermediate that may sign but is no authority",
        INVALID,
        lambda world: _authority(world, ca=None, key_usage=usage(cert_sign=True)),
    ),
    Case(
        "x5c, intermediate that may not sign",
        INVALID,
        lambda world: _authority(world, ca=True, key_usage=usage(cert_sign=False)),
    ),
    Case(
        "x5c, intermediate that may sign",
        ACCEPTED,
        lambda world: _authority(world, ca=True, key_usage=usage(cert_sign=True)),
    ),
    Case("x5c, deeper than allowed", INVALID, _too_deep),
    Case("x5c, signed over SHA-1", INVALID, _weakly_signed("sha1")),
    Case("x5c, signed over MD5", INVALID, _weakly_signed("md5")),
    Case("x5c, unknown critical extension", INVALID, lambda world: _leaf(world, critical=True)),
    Case("x5c, 31 certificates", INVALID, _long_chain, at_reference=ACCEPTED),
    Case("x5c, certificate of an unknown version", INVALID, _version_four),
    Case("x5c is a string", INVALID, lambda world: world.headed(world.ec, x5c=x5c(world.ec.certificate)[0])),
    Case("x5c with line breaks", ACCEPTED, _respelt(lambda text: "\r\n".join(re.findall(".{1,64}", text)))),
    Case("x5c with a character of its own", INVALID, _respelt(lambda text: f"{text[:64]}!{text[64:]}")),
    Case("x5c is not base64", INVALID, lambda world: world.headed(world.ec, x5c=["!!!"])),
    Case("x5c is not ASCII", INVALID, lambda world: world.headed(world.ec, x5c=["é"])),
    Case("x5c is no certificate", INVALID, lambda world: world.headed(world.ec, x5c=["AAAA"])),
    Case(
        "x5c, intermediate is no certificate",
        INVALID,
        lambda world: world.headed(world.under_root, x5c=[*x5c(world.under_root.certificate), "AAAA"]),
    ),
    # -- text
    Case("garbage", INVALID, lambda _: "Bearer garbage"),
    Case("dots", INVALID, lambda _: "Bearer .."),
    Case("two parts", INVALID, lambda world: world.good().rpartition(".")[0]),
    Case("four parts", INVALID, lambda world: f"{world.good()}.AAAA"),
    Case("not base64url", INVALID, lambda world: world.good().replace(".", ".!", 1)),
    Case("header of impossible length", INVALID, lambda world: "Bearer A." + world.good().split(".", 1)[1]),
    Case("claims with stray bits at their end", INVALID, _stray_bits),
    Case("header is not JSON", INVALID, _raw(b"alg", None)),
    Case("header is a list", INVALID, _raw(b"[]", None)),
    Case("header is null", INVALID, _raw(b"null", None)),
    Case("claims are empty", INVALID, _raw(None, b"")),
    Case("claims are null", INVALID, _raw(None, b"null")),
    Case("claims are a string", INVALID, _raw(None, b'"claims"')),
    Case("claims are not UTF-8", INVALID, _raw(None, b'{"iss":"\xff"}')),
    Case("claims nested 20,000 deep", INVALID, _nested(20_000)),
    Case(
        "claim given twice",
        INVALID,
        lambda world: _raw(None, json.dumps(world.claims()).encode()[:-1] + b',"sub":"bob"}')(world),
        at_reference=ACCEPTED,
    ),
    Case("claim in capitals", INVALID, lambda world: world.good(AUD="other")),
)
