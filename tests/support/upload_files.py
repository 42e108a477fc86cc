"""Cases on what one file of an upload holds: its form, its signatures and keys, its certificates, its members.

Rules of this module: all is uploaded at once and fits together, but for what the case is named after.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.author import (
    HARMLESS,
    HOLLOW,
    INVALID,
    MALFORMED,
    STRICTLY_MALFORMED,
    UNSIGNED,
    Author,
    Key,
    Role,
    Signed,
    canonical,
    dropping,
    file_meta,
    make_certificate,
    make_key,
    make_private,
    make_root_key,
    public_bytes,
    setting,
)
from tests.support.uploads import HIERARCHY, MALFORMED_JSON, OK, ROOT, SNAPSHOT, TARGETS, Steps, Table, Upload

CASES = Table()
case = CASES.case


# -- keys of targets --------------------------------------------------------------------------------------------------


def _with_targets_key(algorithm: str) -> Steps:
    def steps(author: Author) -> Iterator[Upload]:
        author.roles["targets"] = Role([make_key(algorithm)])
        yield author.first()

    return steps


for _algorithm in ("ecdsa", "rsa", "ed25519"):
    case(f"targets key of type {_algorithm}", OK)(_with_targets_key(_algorithm))


@case("targets key on P-384", OK)
def _(author: Author) -> Iterator[Upload]:
    private = ec.generate_private_key(ec.SECP384R1())
    author.roles["targets"] = Role([Key("ecdsa", public_bytes(private), private)])
    yield author.first()


@case("targets key of unknown type", TARGETS)
def _(author: Author) -> Iterator[Upload]:
    key = make_key()
    author.roles["targets"] = Role([Key("dsa", key.public)])
    yield {"root": author.root(), "targets": author.targets(signers=[key])}


@case("RSA targets key of 1,024 bits", TARGETS)
def _(author: Author) -> Iterator[Upload]:
    author.roles["targets"] = Role([make_key("rsa", bits=1024)])
    yield author.first()


@case("two of three targets keys sign", OK)
def _(author: Author) -> Iterator[Upload]:
    keys = [make_key(), make_key("ed25519"), make_key()]
    author.roles["targets"] = Role(keys, 2)
    yield {"root": author.root(), "targets": author.targets(signers=keys[1:])}


@case("one of two needed targets keys signs", TARGETS)
@case("one of two needed targets keys signs, snapshot by the client", TARGETS, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    keys = [make_key(), make_key()]
    author.roles["targets"] = Role(keys, 2)
    yield author.covered({"root": author.root(), "targets": author.targets(signers=keys[:1])})


@case("one key signs twice where two must", TARGETS)
def _(author: Author) -> Iterator[Upload]:
    keys = [make_key(), make_key()]
    author.roles["targets"] = Role(keys, 2)
    yield {"root": author.root(), "targets": author.targets(signers=[keys[0], keys[0]])}


# The reference counts ids, and would let one key pass for two.
@case("one key under two ids signs where two must", TARGETS, reference=OK)
def _(author: Author) -> Iterator[Upload]:
    private = make_private()
    author.delegate("targets/a", *(make_root_key("delegate", private=private) for _ in range(2)), threshold=2)
    yield author.first()


# -- form and signatures ----------------------------------------------------------------------------------------------


def _damaged(role: str, change: Callable[[bytes], bytes]) -> Steps:
    def steps(author: Author) -> Iterator[Upload]:
        author.delegate("targets/a")
        files = author.first()
        yield {**files, role: change(files[role])}

    return steps


_FAULTS = {"root": ROOT, "targets": TARGETS, "targets/a": TARGETS, "snapshot": SNAPSHOT}

for _name, _change in MALFORMED.items():
    case(f"targets: {_name}", MALFORMED_JSON)(_damaged("targets", _change))
for _name, _role in (("not JSON", "root"), ("truncated", "snapshot"), ("version is text", "targets/a")):
    case(f"{_role}: {_name}", MALFORMED_JSON, snapshot="client")(_damaged(_role, MALFORMED[_name]))
_SAID = {
    "not UTF-8": TARGETS,
    "trailing data": TARGETS,
    "trailing text": TARGETS,
    "lone surrogate": TARGETS,
}
for _name, _change in STRICTLY_MALFORMED.items():
    case(f"targets: {_name}", MALFORMED_JSON, reference=_SAID.get(_name, OK))(_damaged("targets", _change))
for _name, _change in UNSIGNED.items():
    for _role, _fault in _FAULTS.items():
        case(f"{_role}: {_name}", _fault, snapshot="client")(_damaged(_role, _change))
for _name, _change in HOLLOW.items():
    case(f"targets: {_name}", TARGETS, reference=None)(_damaged("targets", _change))
    case(f"root: {_name}", ROOT)(_damaged("root", _change))
for _name, _change in HARMLESS.items():
    case(f"targets: {_name}", OK)(_damaged("targets", _change))
    case(f"root: {_name}", OK)(_damaged("root", _change))


def _edited(role: str, edit: Callable[[Signed], None]) -> Steps:
    def steps(author: Author) -> Iterator[Upload]:
        author.delegate("targets/a")
        files = author.first()
        if role == "root":
            files["root"] = author.root(edit=edit)
        elif role == "snapshot":
            files["snapshot"] = author.snapshot(author.stored, edit=edit)
        else:
            files[role] = author.targets(role, edit=edit)
        if role != "snapshot" and author.holds_snapshot:
            files["snapshot"] = author.snapshot(files)
        yield files

    return steps


for _name, _edit in INVALID.items():
    for _role, _fault in _FAULTS.items():
        case(f"{_role}: {_name}", _fault, snapshot="client")(_edited(_role, _edit))


def _another_key(role: str) -> Steps:
    def steps(author: Author) -> Iterator[Upload]:
        author.delegate("targets/a")
        files = author.first()
        stranger = make_root_key(author.gun) if role == "root" else make_key()
        files[role] = {
            "root": lambda: author.root(signers=[stranger]),
            "snapshot": lambda: author.snapshot(author.stored, signers=[stranger]),
        }.get(role, lambda: author.targets(role, signers=[stranger]))()
        yield files

    return steps


for _role, _fault in _FAULTS.items():
    case(f"{_role}: signed by a stranger", _fault, snapshot="client")(_another_key(_role))

_HEX = "ab" * 32

for _name, _edit in {
    "no targets role": dropping("roles", "targets"),
    "no root role": dropping("roles", "root"),
    "no timestamp role": dropping("roles", "timestamp"),
    "no roles": dropping("roles"),
    "roles null": setting("roles", to=None),
    "no keys": dropping("keys"),
    "targets threshold 0": setting("roles", "targets", "threshold", to=0),
    "root threshold 0": setting("roles", "root", "threshold", to=0),
    "timestamp threshold negative": setting("roles", "timestamp", "threshold", to=-1),
    "root threshold 2 with one key": setting("roles", "root", "threshold", to=2),
    "threshold is text": setting("roles", "targets", "threshold", to="1"),
    "key ids are text": setting("roles", "targets", "keyids", to=_HEX),
    "key without a key": setting("roles", "targets", "keyids", to=[_HEX]),
    "root without key ids": setting("roles", "root", "keyids", to=[]),
    "keys are a list": setting("keys", to=[]),
    "consistent_snapshot is text": setting("consistent_snapshot", to="no"),
}.items():
    case(f"root: {_name}", ROOT)(_edited("root", _edit))


@case("root names a role of its own invention", OK)
def _(author: Author) -> Iterator[Upload]:
    author.roles["mirrors"] = Role([make_key()])
    yield author.first()


def _wrong_id(author: Author, role: str) -> Callable[[Signed], None]:
    (key,) = author.roles[role].keys

    def edit(signed: Signed) -> None:
        signed["keys"][_HEX] = signed["keys"].pop(key.key_id)
        signed["roles"][role]["keyids"] = [_HEX]

    return edit


def _misnamed(role: str) -> Steps:
    def steps(author: Author) -> Iterator[Upload]:
        yield {"root": author.root(edit=_wrong_id(author, role)), "targets": author.targets()}

    return steps


# The reference takes these, and signs what no client can verify.
case("root names the server's snapshot key under a wrong id", HIERARCHY, reference=OK)(_misnamed("snapshot"))
case("root names the server's timestamp key under a wrong id", ROOT, reference=OK)(_misnamed("timestamp"))


@case("root names a key under a wrong id", TARGETS)
def _(author: Author) -> Iterator[Upload]:
    targets = json.loads(author.targets())
    targets["signatures"][0]["keyid"] = _HEX
    yield {
        "root": author.root(edit=_wrong_id(author, "targets")),
        "targets": b'{"signed":'
        + canonical(targets["signed"])
        + b',"signatures":'
        + canonical(targets["signatures"])
        + b"}",
    }


# -- root certificates ------------------------------------------------------------------------------------------------


def _rooted(*make: Callable[[Author], Key], threshold: int = 1) -> Steps:
    def steps(author: Author) -> Iterator[Upload]:
        author.roles["root"] = Role([one(author) for one in make], threshold)
        yield author.first()

    return steps


def _authority(author: Author, **options: Any) -> bytes:
    return make_certificate(make_private(), "authority", authority=True, **options)


def _mislabelled(author: Author) -> Key:
    key = make_root_key(author.gun)
    return Key("ecdsa", key.public, key.private)


def _reworded(change: Callable[[bytes], bytes]) -> Callable[[Author], Key]:
    def make(author: Author) -> Key:
        key = make_root_key(author.gun)
        return Key(key.key_type, change(key.public), key.private)

    return make


def _leaf_last(author: Author) -> Key:
    key = make_root_key(author.gun)
    return Key(key.key_type, _authority(author) + key.public, key.private)


_FINE: Callable[[Author], Key] = lambda a: make_root_key(a.gun)  # noqa: E731
_FOREIGN: Callable[[Author], Key] = lambda _a: make_root_key("somebody/else")  # noqa: E731

for _name, _expected, _make in (
    ("RSA", OK, lambda a: make_root_key(a.gun, "rsa")),
    ("for a prefix", OK, lambda a: make_root_key(a.gun[:3] + "*")),
    ("for a prefix and two stars", OK, lambda a: make_root_key(a.gun[:3] + "**")),
    ("for everything", OK, lambda _a: make_root_key("*")),
    ("for the name and a star", OK, lambda a: make_root_key(a.gun + "*")),
    ("for another collection", ROOT, _FOREIGN),
    ("for a prefix without a star", ROOT, lambda a: make_root_key(a.gun[:-1])),
    ("for another prefix", ROOT, lambda _a: make_root_key("other/*")),
    ("for a star in front", ROOT, lambda a: make_root_key("*" + a.gun[1:])),
    ("for the name in upper case", ROOT, lambda a: make_root_key(a.gun.upper())),
    ("for nothing", ROOT, lambda _a: make_root_key("")),
    ("for two names, the last one right", OK, lambda a: make_root_key(a.gun, names=["other"])),
    ("for two names, the last one wrong", ROOT, lambda a: make_root_key("other", names=[a.gun])),
    ("expired", ROOT, lambda a: make_root_key(a.gun, begins=a.now - timedelta(9), ends=a.now - timedelta(1))),
    ("valid in half a day", OK, lambda a: make_root_key(a.gun, begins=a.now + timedelta(hours=12))),
    ("valid in two days", ROOT, lambda a: make_root_key(a.gun, begins=a.now + timedelta(2))),
    ("ends before it begins", ROOT, lambda a: make_root_key(a.gun, begins=a.now, ends=a.now - timedelta(9))),
    ("SHA-1", ROOT, lambda a: make_root_key(a.gun, "rsa", sha1=True)),
    ("RSA of 1,024 bits", ROOT, lambda a: make_root_key(a.gun, "rsa", bits=1024)),
    ("an authority", ROOT, lambda a: make_root_key(a.gun, authority=True)),
    ("broken inside", ROOT, lambda a: make_root_key(a.gun, broken=True)),
    ("without constraints", OK, lambda a: make_root_key(a.gun, constrained=False)),
    ("with an intermediate", OK, lambda a: make_root_key(a.gun, intermediates=[_authority(a)])),
    (
        "with an expired intermediate",
        ROOT,
        lambda a: make_root_key(
            a.gun, intermediates=[_authority(a, begins=a.now - timedelta(9), ends=a.now - timedelta(1))]
        ),
    ),
    ("behind its intermediate", ROOT, _leaf_last),
    ("two leaves", ROOT, lambda a: make_root_key(a.gun, intermediates=[make_certificate(make_private(), a.gun)])),
    ("Ed25519", ROOT, lambda a: Key("ecdsa-x509", make_root_key(a.gun, "ed25519").public, make_private())),
    ("under another key type", ROOT, _mislabelled),
    ("bare key", ROOT, lambda _a: make_key()),
    ("no certificate", ROOT, lambda _a: Key("ecdsa-x509", b"not a certificate", make_private())),
    ("with words in front", ROOT, _reworded(lambda pem: b"mine:\n" + pem)),
    ("with a blank line at the end", ROOT, _reworded(lambda pem: pem + b"\n")),
    ("with CR LF", ROOT, _reworded(lambda pem: pem.replace(b"\n", b"\r\n"))),
    (
        "with a broken certificate behind it",
        ROOT,
        _reworded(lambda pem: pem + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ),
    (
        "with a key behind it",
        ROOT,
        _reworded(lambda pem: pem + b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"),
    ),
):
    case(f"root certificate: {_name}", _expected)(_rooted(_make))

case("root certificate: one of two for another collection", OK)(_rooted(_FINE, _FOREIGN))
case("root certificate: two needed, one for another collection", ROOT)(_rooted(_FINE, _FOREIGN, threshold=2))
case("root certificate: two needed, two there", OK)(_rooted(_FINE, _FINE, threshold=2))


# -- keys and content of delegations ----------------------------------------------------------------------------------


def _delegated(expected_key: Callable[[Author], Key]) -> Steps:
    def steps(author: Author) -> Iterator[Upload]:
        author.delegate("targets/a", expected_key(author))
        yield author.first()

    return steps


for _name, _expected, _make in (
    ("expired certificate", OK, lambda a: make_root_key("x", begins=a.now - timedelta(9), ends=a.now - timedelta(1))),
    ("SHA-1 certificate", TARGETS, lambda _a: make_root_key("x", "rsa", sha1=True)),
    ("certificate with RSA of 1,024 bits", TARGETS, lambda _a: make_root_key("x", "rsa", bits=1024)),
    ("authority's certificate", OK, lambda _a: make_root_key("x", authority=True)),
    ("certificate and intermediate", OK, lambda a: make_root_key("x", intermediates=[_authority(a)])),
    ("certificate that is broken inside", TARGETS, lambda _a: make_root_key("x", broken=True)),
    ("RSA certificate", OK, lambda _a: make_root_key("x", "rsa")),
    ("certificate that is none", TARGETS, lambda _a: Key("ecdsa-x509", b"no", make_private())),
    (
        "certificate that ends before it begins",
        TARGETS,
        lambda a: make_root_key("x", begins=a.now, ends=a.now - timedelta(9)),
    ),
):
    case(f"delegation key: {_name}", _expected)(_delegated(_make))


@case("two delegation keys, one of them SHA-1", TARGETS)
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a", make_key(), make_root_key("x", "rsa", sha1=True))
    yield author.first()


def _delegation_edit(**changes: Any) -> Callable[[Signed], None]:
    def edit(signed: Signed) -> None:
        signed["delegations"]["roles"][0].update(changes)

    return edit


for _name, _edit in {
    "not its child": _delegation_edit(name="targets/a/b"),
    "a base role": _delegation_edit(name="snapshot"),
    "itself": _delegation_edit(name="targets"),
    "a name in upper case": _delegation_edit(name="targets/A"),
    "an unclean name": _delegation_edit(name="targets//a"),
    "a name that is too long": _delegation_edit(name="targets/" + "a" * 248),
    "threshold 0": _delegation_edit(threshold=0),
    "a key that is not there": _delegation_edit(keyids=[_HEX]),
    "a name that is a number": _delegation_edit(name=7),
    "roles that are no list": setting("delegations", "roles", to={}),
    "delegations that are a list": setting("delegations", to=[]),
    "targets that are a list": setting("targets", to=[]),
    "a target without hashes that is a number": setting("targets", "v1", to=5),
    "a length that is text": setting("targets", "v1", to={"hashes": {}, "length": "5"}),
    "hashes that are not base64": setting("targets", "v1", to={"hashes": {"sha256": "*"}, "length": 5}),
}.items():
    case(f"targets: {_name}", TARGETS)(_edited("targets", _edit))


# -- snapshots by the client ------------------------------------------------------------------------------------------

_WRONG = base64.b64encode(b"\xab" * 32).decode()
_WRONG_LONG = base64.b64encode(b"\xab" * 64).decode()

for _name, _expected, _edit in (
    ("wrong sha256 of root", SNAPSHOT, setting("meta", "root", "hashes", "sha256", to=_WRONG)),
    ("wrong sha256 of targets", SNAPSHOT, setting("meta", "targets", "hashes", "sha256", to=_WRONG)),
    ("wrong sha512 of targets", SNAPSHOT, setting("meta", "targets", "hashes", "sha512", to=_WRONG_LONG)),
    ("wrong sha256 of a delegation", SNAPSHOT, setting("meta", "targets/a", "hashes", "sha256", to=_WRONG)),
    ("no sha512 of targets", OK, dropping("meta", "targets", "hashes", "sha512")),
    ("no sha256 of targets", SNAPSHOT, dropping("meta", "targets", "hashes", "sha256")),
    ("no sha256 of root", SNAPSHOT, dropping("meta", "root", "hashes", "sha256")),
    ("short sha256 of root", SNAPSHOT, setting("meta", "root", "hashes", "sha256", to=_WRONG[:8])),
    ("short sha512 of root", SNAPSHOT, setting("meta", "root", "hashes", "sha512", to=_WRONG)),
    ("no root", SNAPSHOT, dropping("meta", "root")),
    ("no targets", SNAPSHOT, dropping("meta", "targets")),
    ("no delegation", SNAPSHOT, dropping("meta", "targets/a")),
    ("no meta", SNAPSHOT, dropping("meta")),
    ("meta is a list", SNAPSHOT, setting("meta", to=[])),
    ("a delegation's hashes are empty", SNAPSHOT, setting("meta", "targets/a", "hashes", to={})),
    ("lists what is no role", OK, setting("meta", "mirrors", to=file_meta(b""))),
    ("length of a delegation without a limit", OK, setting("meta", "targets/a", "length", to=-1)),
    ("length of targets beyond their end", OK, setting("meta", "targets", "length", to=10**9)),
):
    case(f"snapshot: {_name}", _expected, snapshot="client")(_edited("snapshot", _edit))

# The reference takes these, and then no client can read the collection, or none that knew it before.
for _name, _edit in {
    "lists a role that does not exist": setting("meta", "targets/y", to=file_meta(b"")),
    "no sha256 of a delegation": dropping("meta", "targets/a", "hashes", "sha256"),
    "length of root below its own": setting("meta", "root", "length", to=1),
    "length of targets below their own": setting("meta", "targets", "length", to=0),
    "length of a delegation below its own": setting("meta", "targets/a", "length", to=-2),
}.items():
    case(f"snapshot: {_name}", SNAPSHOT, snapshot="client", reference=OK)(_edited("snapshot", _edit))


def _delegated_twice(signed: Signed) -> None:
    signed["delegations"]["roles"] *= 2


case("targets: a delegation twice", TARGETS, reference=OK)(_edited("targets", _delegated_twice))
