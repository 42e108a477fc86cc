"""Uploads, good and bad, sent to the Go server and to ours: same status, same code, same validation error.

Rules of this module: each case gets a collection of its own on each side, authored by the same recipe. What is in the
files comes from the tables that the core is tested with (``upload_files`` and ``upload_histories`` in
``tests.support``); here are the cases that need a server: its keys, and signatures over unusual bytes. How both are
asked and compared is in ``tests.support.exchange``; forms and file names are in ``test_differential_forms``.
``reference`` is what the Go server answers; where ours must answer otherwise the case says so and quotes its reason.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.interop.conftest import Sides
from tests.support import upload_files, upload_histories, uploads
from tests.support.author import (
    METHODS,
    Author,
    Key,
    canonical,
    make_key,
    make_private,
    make_root_key,
    public_bytes,
    raw_signature,
    setting,
)
from tests.support.exchange import BAD_TARGETS, MALFORMED_JSON, exchange
from tests.support.oddcerts import ODD, REFUSED, Form, make, pem
from tests.support.oddrsa import EXPONENT_32, EXPONENT_63, EXPONENT_64, LARGEST_EXPONENT, OddKey
from tests.support.sides import Answer, Case, Collection, Table, clone, make_collection

BAD_SNAPSHOT = "400 INVALID_UPDATE ErrBadSnapshot"
BAD_VALIDATION = "400 INVALID_UPDATE ErrValidation"
NO_SNAPSHOT = "400 INVALID_UPDATE ErrBadHierarchy snapshot"
VERSION = "400 VERSION"

# What the exceptions rest on: docs/protocol.md, section 9, unless it is said otherwise.
STRICT_JSON = "hash the stored bytes, and refuse unsigned members, duplicate keys and trailing data (MALFORMED_JSON)"
FAR_VERSION = "refuse a version more than 1,000 above the stored one (ErrValidation, names both numbers)"
BOUNDED = (
    "docs/adr/0004: integers that a reader with 64-bit floats would change, nesting beyond a bound: MALFORMED_JSON"
)
RFC_3339 = "section 2: expires RFC 3339 (fractions and offsets occur); Go 1.19 reads more than that"
RSA_BOUNDS = "RSA keys of 2,048 to 8,192 bits whose public exponent is 3 to 2^31 - 1"
READABLE = "an upload after which a new client could not read the collection: ErrBadTargets or ErrBadSnapshot"
FOREIGN_KEYS = "no snapshot key: ErrBadHierarchy; foreign timestamp key: ErrBadRoot; missing parent: ErrBadTargets"
STRICTER = {"own": MALFORMED_JSON, "row": STRICT_JSON}
BEYOND = {"own": MALFORMED_JSON, "row": BOUNDED}


# -- the shared tables ------------------------------------------------------------------------------------------------

BRIEF = {
    uploads.OK: "200",
    uploads.VERSION: VERSION,
    uploads.MALFORMED_JSON: MALFORMED_JSON,
    uploads.HIERARCHY: NO_SNAPSHOT,
    "": "400 INVALID_UPDATE",
    None: "dropped",
}
ROWS = {
    uploads.MALFORMED_JSON: STRICT_JSON,
    uploads.VALIDATION: FAR_VERSION,
    uploads.TARGETS: FOREIGN_KEYS,
    uploads.ROOT: FOREIGN_KEYS,
    uploads.HIERARCHY: FOREIGN_KEYS,
}
RESERIALISED = {
    "targets: unsigned member",
    "targets: duplicate key",
    "targets: signed twice",
    "targets: white space",
    "root: white space",
    "targets: method in upper case",
    "root: method in upper case",
    "delegations, nested, all at once",
}
"""Files that are not what the Go server would write, though it takes them."""

INCOHERENT = {
    **dict.fromkeys(
        (
            case.name
            for case in [*upload_files.CASES, *upload_histories.CASES]
            if case.reference == uploads.OK and case.expected == uploads.SNAPSHOT
        ),
        "a snapshot promises what is not there",
    ),
    "rotate targets, root alone": "targets are signed by the former key",
    "rotate targets, root alone, snapshot by the client": "targets are signed by the former key",
    "two targets signatures needed from now on, root alone": "targets have one signature",
    "targets: a delegation twice": "clients fetch its file twice, and give up",
    "a delegation gets a SHA-1 certificate beside its key": "clients give up on such a certificate",
    "a delegation gets a SHA-1 certificate, snapshot by the client": "clients give up on such a certificate",
    "a delegation's key stands under a wrong id": "clients give up on such an id",
    "root names the server's snapshot key under a wrong id": "nobody can check the signature",
    "root names the server's timestamp key under a wrong id": "nobody can check the signature",
}
"""Accepted by the reference, though clients cannot follow."""


def shared(case: uploads.Case) -> Case:
    """A case of the shared tables as one for two servers."""

    async def recipe(c: Collection, author: Author) -> Answer:
        answer = None
        for upload in case.steps(author):
            assert answer is None or answer.status == 200, f"{c.side.name}, not yet the last upload: {answer}"
            answer = await c.upload(upload, author)
        assert answer is not None, "a case without an upload"
        return answer

    def brief(said: str | None) -> str:
        return BRIEF.get(said) or f"400 INVALID_UPDATE {said}"

    reference, own = brief(case.reference), brief(case.expected)
    return Case(
        case.name,
        recipe,
        reference,
        own="" if own == reference else own,
        row="" if own == reference else READABLE if case.name in INCOHERENT else ROWS[case.expected],
        published=False,
        server_snapshot=case.snapshot == "server",
        incoherent=case.name in INCOHERENT,
        reserialised=case.name in RESERIALISED,
    )


CASES = Table(shared(case) for case in [*upload_files.CASES, *upload_histories.CASES])
case = CASES.case


def fresh(name: str, recipe: Any, reference: str, **options: Any) -> None:
    """A case on a collection that was never published."""
    case(name, recipe, reference, published=False, **options)


# -- certificates of all forms ---------------------------------------------------------------------------------------

ROOT_REFUSED = "400 INVALID_UPDATE ErrBadRoot"


def odd_root(form: Form) -> Any:
    """A root with such a certificate, and another root after it."""

    async def recipe(c: Collection, a: Author) -> Answer:
        private = make_private()
        a.rotate("root", Key("ecdsa-x509", pem(make(form, a.gun, private)), private))
        answer = await c.push(a, "root")
        if answer.status == 200:
            a.rotate("root", make_root_key(a.gun))
            answer = await c.push(a, "root")
        return answer

    return recipe


def odd_delegation(form: Form) -> Any:
    async def recipe(c: Collection, a: Author) -> Answer:
        private = make_private()
        a.delegate("targets/odd", Key("ecdsa-x509", pem(make(form, "odd", private)), private))
        a.add("one", b"content", "targets/odd")
        return await c.push(a, "targets", "targets/odd")

    return recipe


for name, form in ODD.items():
    case(f"root: {name}", odd_root(form), "200")
    case(f"delegation: {name}", odd_delegation(form), "200")
for name, form in REFUSED.items():
    case(f"root: {name}", odd_root(form), ROOT_REFUSED)
    case(f"delegation: {name}", odd_delegation(form), BAD_TARGETS)


async def no_paths(c: Collection, a: Author) -> Answer:
    a.delegate("targets/none", paths=[])
    return await c.push(a, "targets")


case("a delegation without paths", no_paths, "200", server_snapshot=True, reserialised=True)


# -- keys that a server holds -----------------------------------------------------------------------------------------


async def timestamp_rotated(c: Collection, a: Author) -> Answer:
    new = await c.key("timestamp", "POST")
    assert new.key_id != a.roles["timestamp"].keys[0].key_id
    a.rotate("timestamp", new)
    return await c.push(a, "root")


async def timestamp_key_pending(c: Collection, a: Author) -> Answer:
    """A new key that no root names yet changes nothing."""
    await c.key("timestamp", "POST")
    return await c.push(a, "targets")


async def timestamp_of_another_collection(c: Collection, a: Author) -> Answer:
    other = await make_collection(c.side, published=False)
    a.rotate("timestamp", await other.key("timestamp"))
    return await c.push(a, "root", "targets")


async def snapshot_to_server(c: Collection, a: Author) -> Answer:
    a.rotate("snapshot", await c.key("snapshot"))
    return await c.push(a, "root")


async def snapshot_rotated(c: Collection, a: Author) -> Answer:
    a.rotate("snapshot", await c.key("snapshot", "POST"))
    return await c.push(a, "root")


async def snapshot_to_client(c: Collection, a: Author) -> Answer:
    a.rotate("snapshot", make_key())
    a.versions["snapshot"] = 7
    return await c.push(a, "root")


async def snapshot_shared(c: Collection, a: Author) -> Answer:
    a.rotate("snapshot", *a.roles["snapshot"].keys, await c.key("snapshot"))
    return await c.push(a, "root")


async def timestamp_signs_snapshots(c: Collection, a: Author) -> Answer:
    """One key of the server in two roles."""
    a.rotate("snapshot", *a.roles["timestamp"].keys)
    return await c.push(a, "root", "targets")


async def server_key_signs_targets(c: Collection, a: Author) -> Answer:
    """The server never signs targets, though it holds the key that root names."""
    a.rotate("targets", a.roles["timestamp"].keys[0])
    return await c.push(a, "root", "targets", victim="targets", signers=[make_key()])


case("timestamp key rotated", timestamp_rotated, "200")
case("timestamp key rotated, snapshot by the server", timestamp_rotated, "200", server_snapshot=True)
case("timestamp key pending", timestamp_key_pending, "200")
fresh("timestamp key of another collection", timestamp_of_another_collection, "200")
case("snapshot key goes to the server", snapshot_to_server, "200")
case("snapshot key rotated at the server", snapshot_rotated, "200", server_snapshot=True)
case("snapshot key comes back to the client", snapshot_to_client, "200", server_snapshot=True)
case("snapshot key of the client and of the server", snapshot_shared, "200")
fresh("snapshot signed by the timestamp key", timestamp_signs_snapshots, "200", server_snapshot=True)
fresh("targets by the server's key", server_key_signs_targets, BAD_TARGETS)


async def deleted_before(c: Collection, a: Author) -> Answer:
    """Between making an upload and sending it somebody deletes the collection."""
    answer = await c.side.request("DELETE", c.path())
    assert answer.status == 200, answer
    c.author = c.first()
    return await c.push(a, "targets")


async def reuse(c: Collection, a: Author) -> Answer:
    answer = await c.side.request("DELETE", c.path())
    assert answer.status == 200, answer
    c.author = c.first()
    author = clone(c.author)
    author.rotate("root", make_root_key(c.gun))
    author.retired.clear()
    author.rotate("timestamp", await c.key("timestamp"))
    return await c.upload(author.first(), author)


async def race(c: Collection, a: Author) -> Answer:
    """Two publishers make the same next version; the second one loses."""
    rival = clone(a)
    rival.add("rival", b"rival content")
    answer = await c.push(rival, "targets")
    assert answer.status == 200, answer
    return await c.push(a, "targets")


case("targets of a collection deleted meanwhile", deleted_before, BAD_VALIDATION)
case("a deleted collection begins anew", reuse, "200")
case("a lost race", race, VERSION)
case("a lost race, snapshot by the server", race, VERSION, server_snapshot=True)


# -- signature methods and key types ----------------------------------------------------------------------------------


class _Method(Key):
    """A key that signs in a way, and under a method, of the test's choice."""

    how: Callable[[Any, bytes], bytes] = staticmethod(raw_signature)
    says = ""

    @property
    def method(self) -> str:
        return self.says

    def sign(self, payload: bytes) -> dict[str, str]:
        return super().sign(payload) | {"sig": base64.b64encode(self.how(self.private, payload)).decode()}


def signing(key: Key, method: str, how: Callable[[Any, bytes], bytes] = raw_signature) -> Key:
    """``key``, but its signatures are made by ``how`` and say ``method``."""
    made = _Method(key.key_type, key.public, key.private)
    object.__setattr__(made, "how", how)
    object.__setattr__(made, "says", method)
    return made


def pkcs1(private: Any, payload: bytes) -> bytes:
    return bytes(private.sign(payload, padding.PKCS1v15(), hashes.SHA256()))


def pss(salt: int) -> Callable[[Any, bytes], bytes]:
    return lambda private, payload: private.sign(
        payload, padding.PSS(padding.MGF1(hashes.SHA256()), salt), hashes.SHA256()
    )


def der(private: Any, payload: bytes) -> bytes:
    return bytes(private.sign(payload, ec.ECDSA(hashes.SHA256())))


def pem_rsa() -> Key:
    """An RSA key whose public part is PEM, which only ``pycrypto-pkcs#1 pss`` takes."""
    private = make_private("rsa")
    return Key("rsa", private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), private)


def x509_key(algorithm: str) -> Key:
    return make_root_key("signer", algorithm)


def targets_by(make: Callable[[], Key], *arguments: Any) -> Any:
    """A first publish whose targets are signed by this key."""

    async def recipe(c: Collection, a: Author) -> Answer:
        a.rotate("targets", signing(make(), *arguments) if arguments else make())
        return await c.push(a, "root", "targets")

    return recipe


for _type, _make in {
    "ecdsa": make_key,
    "rsa": lambda: make_key("rsa"),
    "ed25519": lambda: make_key("ed25519"),
    "ecdsa-x509": lambda: x509_key("ecdsa"),
    "rsa-x509": lambda: x509_key("rsa"),
}.items():
    for _method in ("ecdsa", "rsapss", "rsapkcs1v15", "eddsa", "pycrypto-pkcs#1 pss", ""):
        _good = _method == METHODS[_type.removesuffix("-x509")]
        _how = {"rsapkcs1v15": pkcs1}.get(_method, raw_signature) if _type.startswith("rsa") else raw_signature
        _good = _good or _how is pkcs1
        fresh(
            f"method {_method or 'empty'}, key {_type}",
            targets_by(_make, _method, _how),
            "200" if _good else BAD_TARGETS,
        )

fresh("method pycrypto, key rsa in PEM", targets_by(pem_rsa, "pycrypto-pkcs#1 pss"), "200")
fresh("method rsapss, key rsa in PEM", targets_by(pem_rsa, "rsapss"), BAD_TARGETS)
fresh("method in upper case", targets_by(make_key, "ECDSA"), "200")
fresh("method rsapss, salt of 20 bytes", targets_by(lambda: make_key("rsa"), "rsapss", pss(20)), BAD_TARGETS)
fresh("method rsapss, longest salt", targets_by(lambda: make_key("rsa"), "rsapss", pss(222)), BAD_TARGETS)
fresh("method rsapss, 3,072 bits", targets_by(lambda: make_key("rsa", bits=3072)), "200")
fresh("method rsapss, 1,024 bits", targets_by(lambda: make_key("rsa", bits=1024)), BAD_TARGETS)
fresh("method ecdsa, signature in DER", targets_by(make_key, "ecdsa", der), BAD_TARGETS)
fresh("method ecdsa, one byte short", targets_by(make_key, "ecdsa", lambda k, p: raw_signature(k, p)[:-1]), BAD_TARGETS)
fresh(
    "method ecdsa, one byte long", targets_by(make_key, "ecdsa", lambda k, p: raw_signature(k, p) + b"\0"), BAD_TARGETS
)
fresh("method ecdsa, all zero", targets_by(make_key, "ecdsa", lambda _k, _p: bytes(64)), BAD_TARGETS)
fresh(
    "method eddsa, one byte long",
    targets_by(lambda: make_key("ed25519"), "eddsa", lambda k, p: raw_signature(k, p) + b"\0"),
    BAD_TARGETS,
)


def odd_rsa(odd: OddKey) -> Callable[[], Key]:
    """A key with this public part, and a private part that is not used: ``odd`` signs."""
    return lambda: Key("rsa", odd.public, make_private("rsa"))


for _name, _odd, _reference in (
    ("exponent of 31 bits", OddKey(exponent=LARGEST_EXPONENT), "200"),
    ("exponent of 32 bits", OddKey(exponent=EXPONENT_32), "200"),
    ("exponent of 63 bits", OddKey(exponent=EXPONENT_63), "200"),
    ("exponent of 64 bits", OddKey(exponent=EXPONENT_64), BAD_TARGETS),
    ("some 8,192 bits", OddKey(primes=8), "200"),
    ("some 9,216 bits", OddKey(primes=9), "200"),
):
    _stricter = _reference == "200" and (_odd.primes > 8 or _odd.exponent > LARGEST_EXPONENT)
    fresh(
        f"method rsapkcs1v15, {_name}",
        targets_by(odd_rsa(_odd), "rsapkcs1v15", lambda _private, payload, odd=_odd: odd.sign(payload)),
        _reference,
        **({"own": BAD_TARGETS, "row": RSA_BOUNDS} if _stricter else {}),
    )
for _curve in (ec.SECP224R1, ec.SECP384R1, ec.SECP521R1, ec.SECP256K1):

    def _on_curve(curve: Any = _curve) -> Key:
        private = ec.generate_private_key(curve())
        return Key("ecdsa", public_bytes(private), private)

    fresh(f"curve {_curve.name}", targets_by(_on_curve), BAD_TARGETS if _curve is ec.SECP256K1 else "200")
fresh("key ed25519 of 31 bytes", targets_by(lambda: Key("ed25519", bytes(31), make_private("ed25519"))), BAD_TARGETS)
fresh(
    "key type in upper case",
    targets_by(lambda: signing(Key("ECDSA", make_key().public, make_private()), "ecdsa")),
    BAD_TARGETS,
)


async def one_of_two_types(c: Collection, a: Author) -> Answer:
    """A key of a type that nobody knows, beside a good one that signs."""
    good = make_key()
    a.rotate("targets", good, Key("kyber", b"whatever"))
    answer = await c.push(a, "root", "targets", victim="targets", signers=[good])
    c.author.rotate("targets", good)
    return answer


fresh("key of unknown type beside a good one", one_of_two_types, "200")


# -- bytes that are signed --------------------------------------------------------------------------------------------


def signed_as(wire: Callable[[bytes], bytes], signed: Callable[[bytes], bytes] | None = None) -> Any:
    """Targets that go out as ``wire`` makes them, with a signature over what ``signed`` makes of them."""

    async def recipe(c: Collection, a: Author) -> Answer:
        a.add("name", b"content")
        a.bump("targets")
        payload = canonical(json.loads(a.targets())["signed"])
        signatures = canonical([key.sign((signed or wire)(payload)) for key in a.roles["targets"].keys])
        files = {"targets": b'{"signed":' + wire(payload) + b',"signatures":' + signatures + b"}"}
        return await c.upload(files, a)

    return recipe


def inserting(text: bytes) -> Callable[[bytes], bytes]:
    """Put a member at the start of ``signed``."""
    return lambda payload: payload.replace(b'{"_type"', b'{"_a":' + text + b',"_type"', 1)


def odd(name: str, wire: Any, signed: Any, reference: str, **options: Any) -> None:
    case(
        f"signed bytes: {name}",
        signed_as(wire, signed),
        reference,
        server_snapshot=True,
        reserialised=reference == "200",
        **options,
    )


odd("unknown member", inserting(b'{"b":[1,null,true,"x"]}'), None, "200")
odd("text beyond ASCII", inserting('"é€😀"'.encode()), None, "200")
odd("text escaped", inserting(b'"\\u00e9\\u20ac\\ud83d\\ude00"'), inserting('"é€😀"'.encode()), "200")
odd("text escaped, signed as it is written", inserting(b'"\\u00e9"'), None, BAD_TARGETS)
odd("slash escaped", inserting(b'"a\\/b"'), inserting(b'"a/b"'), "200")
odd("control characters escaped, signed raw", inserting(b'"\\u0001\\n\\t"'), inserting(b'"\x01\n\t"'), "200")
odd("control characters escaped, signed so", inserting(b'"\\u0001"'), None, BAD_TARGETS)
odd("control characters raw", inserting(b'"\x01"'), None, MALFORMED_JSON)
odd("line separator", inserting('"\u2028"'.encode()), None, "200")
odd("HTML characters", inserting(b'"<b>&amp;</b>"'), None, "200")
odd("keys that need sorting", inserting(b'{"z":1,"a":2,"B":3}'), inserting(b'{"B":3,"a":2,"z":1}'), "200")
odd("keys beyond the first plane", inserting('{"\uffee":1,"😀":2}'.encode()), None, "200")
odd("integer with an exponent", inserting(b"1e3"), inserting(b"1000"), "200")
odd("integer with a fraction of zero", inserting(b"1.0"), inserting(b"1"), "200")
odd("integer minus zero", inserting(b"-0"), inserting(b"0"), "200")
odd("integer negative", inserting(b"-12"), None, "200")
odd("integer of 2^53 - 1", inserting(b"9007199254740991"), None, "200")
odd("integer of 2^53", inserting(b"9007199254740992"), None, "200", **BEYOND)
odd("integer of 2^53 + 1", inserting(b"9007199254740993"), None, BAD_TARGETS, **BEYOND)
odd("integer of 5,000 digits", inserting(b"9" * 5000), None, BAD_TARGETS, **BEYOND)
odd("fraction", inserting(b"1.5"), None, BAD_TARGETS)
odd("exponent too large", inserting(b"1e999"), None, BAD_TARGETS, **BEYOND)
odd("NaN", inserting(b"NaN"), None, MALFORMED_JSON)
odd("infinity", inserting(b"-Infinity"), None, MALFORMED_JSON)
odd("leading zero", inserting(b"01"), None, MALFORMED_JSON)
odd("hexadecimal", inserting(b"0x10"), None, MALFORMED_JSON)
odd("comment", inserting(b"1/* one */"), None, MALFORMED_JSON)
odd("trailing comma", inserting(b"[1,]"), None, MALFORMED_JSON)
odd("single quotes", inserting(b"'a'"), None, MALFORMED_JSON)
odd("Latin-1", inserting(b'"\xe9"'), None, BAD_TARGETS, **STRICTER)
odd("Latin-1, signed as replaced", inserting(b'"\xe9"'), inserting('"\ufffd"'.encode()), "200", **STRICTER)
odd("lone surrogate", inserting(b'"\\ud800"'), inserting('"\ufffd"'.encode()), "200", **STRICTER)
odd("UTF-16", lambda p: p.decode().encode("utf-16"), None, MALFORMED_JSON)
odd("nested 90 deep", inserting(b"[" * 90 + b"]" * 90), None, "200")
odd("nested 1,000 deep", inserting(b"[" * 1000 + b"]" * 1000), None, "200", **BEYOND)
odd("nested 100,000 deep", inserting(b"[" * 100_000 + b"]" * 100_000), None, MALFORMED_JSON)
odd("a key twice in an unknown member", inserting(b'{"k":1,"k":2}'), inserting(b'{"k":2}'), "200", **STRICTER)
odd("white space", lambda p: p.replace(b",", b" ,\r\n\t"), lambda p: p, "200")
odd("type in another case", lambda p: p.replace(b'"_type"', b'"_Type"'), None, "200", **STRICTER)


def custom(value: Any) -> Any:
    """Targets with custom data."""

    async def recipe(c: Collection, a: Author) -> Answer:
        a.contents["targets"]["v2"] = a.contents["targets"]["v1"] | {"custom": value}
        return await c.push(a, "targets")

    return recipe


case("custom data of a target", custom({"b": [1, "x"], "a": None}), "200", server_snapshot=True)
case("custom data that is text", custom("text"), "200", server_snapshot=True)
case("custom data with HTML characters", custom("<&>"), "200", server_snapshot=True, reserialised=True)
case("custom data that is null", custom(None), "200", server_snapshot=True, reserialised=True)


# -- values of the common members -------------------------------------------------------------------------------------


def expiring(text: Any) -> Any:
    return lambda c, a: c.push(a, "targets", edit=setting("expires", to=text))


def versioned(version: Any, role: str = "targets") -> Any:
    """Targets, and a snapshot by the client, where the file of ``role`` has this version."""

    async def recipe(c: Collection, a: Author) -> Answer:
        if type(version) is not int:
            return await c.push(a, "targets", victim=role, edit=setting("version", to=version))
        a.versions[role] = version - 1
        return await c.push(a, "targets")

    return recipe


for _text, _reference in {
    "2099-01-01T00:00:00Z": "200",
    "2099-01-01T00:00:00.5Z": "200",
    "2099-01-01T00:00:00.123456789Z": "200",
    "2099-01-01T00:00:00.1234567890123Z": "200",
    "2099-01-01T00:00:00.Z": MALFORMED_JSON,
    "2099-01-01T00:00:00+02:00": "200",
    "2099-01-01T00:00:00.25-11:30": "200",
    "2099-01-01T00:00:00+00:00": "200",
    "2099-01-01T00:00:00+0200": MALFORMED_JSON,
    "2099-01-01T00:00:00": MALFORMED_JSON,
    "2099-01-01t00:00:00z": MALFORMED_JSON,
    "2099-01-01 00:00:00Z": MALFORMED_JSON,
    "2099-01-01": MALFORMED_JSON,
    "2099-13-01T00:00:00Z": MALFORMED_JSON,
    "2099-02-30T00:00:00Z": MALFORMED_JSON,
    "2096-02-29T00:00:00Z": "200",
    "2099-01-01T24:00:00Z": MALFORMED_JSON,
    "2099-01-01T00:00:60Z": MALFORMED_JSON,
    "9999-12-31T23:59:59Z": "200",
    "9999-12-31T23:59:59-12:00": "200",
    "10000-01-01T00:00:00Z": MALFORMED_JSON,
    "0001-01-01T00:00:00Z": BAD_TARGETS,
    "0000-01-01T00:00:00Z": BAD_TARGETS,
    "0001-01-01T00:00:00+14:00": BAD_TARGETS,
    "-001-01-01T00:00:00Z": MALFORMED_JSON,
    "": MALFORMED_JSON,
    " 2099-01-01T00:00:00Z": MALFORMED_JSON,
    "2099-01-01T00:00:00Z ": MALFORMED_JSON,
    "\uff12099-01-01T00:00:00Z": MALFORMED_JSON,
}.items():
    case(f"expires {_text!r}", expiring(_text), _reference)
for _text in ("2099-01-01T00:00:00,5Z", "2099-01-01T00:00:00+24:00", "2099-01-01T5:00:00Z"):
    case(f"expires {_text!r}", expiring(_text), "200", own=MALFORMED_JSON, row=RFC_3339)
for _value in (None, True, {}, [], 4070908800):
    case(f"expires {_value!r}", expiring(_value), BAD_TARGETS if _value is None else MALFORMED_JSON)

for _role, _refusal in (("targets", BAD_TARGETS), ("snapshot", BAD_SNAPSHOT)):
    for _value, _reference in (
        (0, _refusal),
        (-1, _refusal),
        (1, VERSION),
        (True, MALFORMED_JSON),
        ("2", MALFORMED_JSON),
        (None, _refusal),
        ([2], MALFORMED_JSON),
        (2**63, MALFORMED_JSON),
    ):
        case(f"{_role} version {str(_value)[:20]}", versioned(_value, _role), _reference)
    case(f"{_role} version 1,001", versioned(1001, _role), "200")
    for _value in (1002, 2**31 - 1, 2**31):
        case(f"{_role} version {_value}", versioned(_value, _role), "200", own=BAD_VALIDATION, row=FAR_VERSION)
    case(f"{_role} version 2^63 - 1", versioned(2**63 - 1, _role), _refusal, **BEYOND)


# -- the test ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [pytest.param(one, id=one.name) for one in CASES])
@pytest_twisted.ensureDeferred
async def test_upload(case: Case, sides: Sides) -> None:
    await exchange(case, sides.go, sides.ours)


def test_there_are_enough_cases() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 120
