"""Uploads, good and bad, with what a server must say to each: one table for the core, the API and the Go server.

A case is a generator over an :class:`~tests.support.author.Author`: it yields uploads (role to bytes, or pairs where a
role comes twice). All but the last must be accepted; the last gets ``expected``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

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
    sign,
)

Upload = Mapping[str, bytes] | Sequence[tuple[str, bytes]]
Steps = Callable[[Author], Iterator[Upload]]

OK = "OK"
VERSION = "VERSION"
MALFORMED_JSON = "MALFORMED_JSON"
VALIDATION = "ErrValidation"
HIERARCHY = "ErrBadHierarchy"
ROOT = "ErrBadRoot"
TARGETS = "ErrBadTargets"
SNAPSHOT = "ErrBadSnapshot"
SAME = "the same"


@dataclass(frozen=True)
class Case:
    """``expected`` is OK, an error code, or the class of an INVALID_UPDATE.

    ``snapshot`` says who holds the snapshot key. ``reference`` is what the Go server (memory backend, local signer)
    says where it differs on purpose (docs/protocol.md, section 9): "" is an INVALID_UPDATE without a class, None a
    dropped connection.
    """

    name: str
    expected: str
    steps: Steps
    snapshot: Literal["server", "client"]
    reference: str | None

    def __str__(self) -> str:
        return self.name


CASES: list[Case] = []


def case(
    name: str,
    expected: str,
    *,
    snapshot: Literal["server", "client"] = "server",
    reference: str | None = SAME,
) -> Callable[[Steps], Steps]:
    """Put a case into the table."""

    def add(steps: Steps) -> Steps:
        CASES.append(Case(name, expected, steps, snapshot, expected if reference is SAME else reference))
        return steps

    return add


# -- the good life ----------------------------------------------------------------------------------------------------


@case("first publish", OK)
@case("first publish, snapshot by the client", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    author.add("v1", b"content")
    yield author.first()


@case("second publish", OK)
@case("second publish, snapshot by the client", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.add("v1", b"content")
    yield author.publish("targets")


@case("root alone again", OK)
@case("root alone again, snapshot by the client", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    yield author.publish("root")


@case("snapshot alone (witness)", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    yield author.publish("snapshot")


@case("first root says version 2", OK)
def _(author: Author) -> Iterator[Upload]:
    author.bump("root")
    yield author.first()


@case("first root says version 3", ROOT)
def _(author: Author) -> Iterator[Upload]:
    author.bump("root", by=2)
    yield author.first()


@case("uploaded timestamp is ignored", OK)
def _(author: Author) -> Iterator[Upload]:
    yield {**author.first(), "timestamp": sign({"_type": "Timestamp", "version": 77}, [])}


@case("bad targets, then good targets", OK)
def _(author: Author) -> Iterator[Upload]:
    files = author.first()
    yield [("targets", author.targets(signers=[])), *files.items()]


@case("good targets, then bad targets", TARGETS)
def _(author: Author) -> Iterator[Upload]:
    files = author.first()
    yield [*files.items(), ("targets", author.targets(signers=[]))]


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


# -- what is missing --------------------------------------------------------------------------------------------------


@case("no root anywhere", VALIDATION)
@case("no root anywhere, snapshot by the client", VALIDATION, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    yield {role: data for role, data in author.first().items() if role != "root"}


@case("a timestamp alone", VALIDATION)
def _(author: Author) -> Iterator[Upload]:
    yield {"timestamp": author.timestamp(b"", signers=[])}


@case("first publish without targets", VALIDATION)
def _(author: Author) -> Iterator[Upload]:
    yield {"root": author.root()}


@case("nothing at all for a collection that exists", OK)
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    yield {}


@case("nothing at all, snapshot by the client", HIERARCHY, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    yield {}


@case("no snapshot, and the client holds its key", HIERARCHY, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    yield {role: data for role, data in author.first().items() if role != "snapshot"}


@case("later no snapshot, and the client holds its key", HIERARCHY, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.bump("targets")
    yield {"targets": author.targets()}


@case("root names no snapshot key", HIERARCHY)
def _(author: Author) -> Iterator[Upload]:
    author.roles["snapshot"].keys.clear()
    yield {"root": author.root(), "targets": author.targets()}


@case("root wants two snapshot signatures, the server has one key", HIERARCHY)
def _(author: Author) -> Iterator[Upload]:
    author.roles["snapshot"].keys.append(make_key())
    author.roles["snapshot"].threshold = 2
    yield {"root": author.root(), "targets": author.targets()}


@case("a foreign snapshot key beside the server's", OK)
def _(author: Author) -> Iterator[Upload]:
    author.roles["snapshot"].keys.append(make_key())
    yield {"root": author.root(), "targets": author.targets()}


@case("timestamp key is not the server's", ROOT)
@case("timestamp key is not the server's, snapshot by the client", ROOT, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    author.roles["timestamp"] = Role([make_key("ed25519")])
    yield author.first()


def _unreadable(role: str) -> Steps:
    def steps(author: Author) -> Iterator[Upload]:
        author.roles[role].keys.append(Key("ecdsa-x509", b"no certificate"))
        yield {"root": author.root(), "targets": author.targets()}

    return steps


case("a certificate that is none beside the server's snapshot key", VALIDATION)(_unreadable("snapshot"))
case("a certificate that is none beside the server's timestamp key", VALIDATION)(_unreadable("timestamp"))


@case("root names no timestamp key", ROOT)
def _(author: Author) -> Iterator[Upload]:
    author.roles["timestamp"].keys.clear()
    yield author.first()


# -- versions ---------------------------------------------------------------------------------------------------------


@case("the same upload again", VERSION)
@case("the same upload again, snapshot by the client", VERSION, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    files = author.first()
    yield files
    yield files


@case("the same targets again", VERSION)
def _(author: Author) -> Iterator[Upload]:
    files = author.first()
    yield files
    yield {"targets": files["targets"]}


@case("an older targets", VERSION)
def _(author: Author) -> Iterator[Upload]:
    old = author.first()
    yield old
    yield author.publish("targets")
    yield {"targets": old["targets"]}


@case("the same snapshot version", VERSION, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.bump("targets")
    yield author.files("targets")


@case("an older root", ROOT)
def _(author: Author) -> Iterator[Upload]:
    old = author.first()
    yield old
    yield author.publish("root")
    yield author.publish("root")
    yield {"root": old["root"]}


@case("root leaves a version out", ROOT)
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.bump("root", by=2)
    yield {"root": author.root()}


def _leap(role: str, by: int) -> Steps:
    def steps(author: Author) -> Iterator[Upload]:
        author.delegate("targets/a")
        yield author.first()
        author.bump(role, by=by)
        yield {role: author.snapshot(author.stored)} if role == "snapshot" else {role: author.targets(role)}

    return steps


case("targets leave 998 versions out", OK)(_leap("targets", 999))
case("targets leave 999 versions out", OK)(_leap("targets", 1000))
case("targets leave 1,000 versions out", VALIDATION, reference=OK)(_leap("targets", 1001))
case("targets leap to the last version", VALIDATION, reference=OK)(_leap("targets", 2**31 - 2))
case("targets leap beyond the last version", VALIDATION, reference=OK)(_leap("targets", 2**31 - 1))
case("a snapshot leaps beyond the last version", VALIDATION, snapshot="client", reference=OK)(_leap("snapshot", 2**40))
case("a delegation leaves 1,000 versions out", VALIDATION, reference=OK)(_leap("targets/a", 1001))
case("a snapshot leaves 999 versions out", OK, snapshot="client")(_leap("snapshot", 1000))
case("a snapshot leaves 1,000 versions out", VALIDATION, snapshot="client", reference=OK)(_leap("snapshot", 1001))


@case("first targets say version 1,000", OK)
def _(author: Author) -> Iterator[Upload]:
    author.bump("targets", by=999)
    yield author.first()


@case("first targets say version 1,001", VALIDATION, reference=OK)
def _(author: Author) -> Iterator[Upload]:
    author.bump("targets", by=1000)
    yield author.first()


@case("a leap in badly signed targets", TARGETS)
def _(author: Author) -> Iterator[Upload]:
    author.bump("targets", by=1000)
    yield {**author.first(), "targets": author.targets(signers=[])}


# -- single files: form and signatures --------------------------------------------------------------------------------


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


def _misnamed(role: str) -> Steps:
    def steps(author: Author) -> Iterator[Upload]:
        (key,) = author.roles[role].keys

        def edit(signed: Signed) -> None:
            signed["keys"][_HEX] = signed["keys"].pop(key.key_id)
            signed["roles"][role]["keyids"] = [_HEX]

        yield {"root": author.root(edit=edit), "targets": author.targets()}

    return steps


# The reference takes these, and signs what no client can verify.
case("root names the server's snapshot key under a wrong id", HIERARCHY, reference=OK)(_misnamed("snapshot"))
case("root names the server's timestamp key under a wrong id", ROOT, reference=OK)(_misnamed("timestamp"))


@case("root names a key under a wrong id", TARGETS)
def _(author: Author) -> Iterator[Upload]:
    (key,) = author.roles["targets"].keys

    def edit(signed: Signed) -> None:
        signed["keys"][_HEX] = signed["keys"].pop(key.key_id)
        signed["roles"]["targets"]["keyids"] = [_HEX]

    targets = json.loads(author.targets())
    targets["signatures"][0]["keyid"] = _HEX
    yield {
        "root": author.root(edit=edit),
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


# -- rotations --------------------------------------------------------------------------------------------------------


@case("rotate root", OK)
@case("rotate root, snapshot by the client", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.rotate("root", make_root_key(author.gun))
    yield author.publish("root")
    author.retired.pop(0)
    author.rotate("root", make_root_key(author.gun, "rsa"))
    yield author.publish("root")


@case("rotate root without the old key", ROOT)
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.rotate("root", make_root_key(author.gun))
    author.retired.clear()
    yield author.publish("root")


@case("rotate root without the new key", ROOT)
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.rotate("root", make_root_key(author.gun))
    author.bump("root")
    yield {"root": author.root(signers=author.retired)}


@case("rotate root from two needed keys, one signs", ROOT)
def _(author: Author) -> Iterator[Upload]:
    author.roles["root"] = Role([make_root_key(author.gun), make_root_key(author.gun)], 2)
    yield author.first()
    author.rotate("root", make_root_key(author.gun))
    author.retired.pop()
    yield author.publish("root")


@case("rotate root from two needed keys, both sign", OK)
def _(author: Author) -> Iterator[Upload]:
    author.roles["root"] = Role([make_root_key(author.gun), make_root_key(author.gun)], 2)
    yield author.first()
    author.rotate("root", make_root_key(author.gun))
    yield author.publish("root")


@case("a root of the same version by somebody else", ROOT)
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.roles["root"] = Role([make_root_key(author.gun)])
    yield {"root": author.root()}


@case("rotate targets", OK)
@case("rotate targets, snapshot by the client", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.rotate("targets", make_key("ed25519"))
    yield author.publish("root", "targets")


@case("rotate targets, targets by the old key", TARGETS)
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    old = author.roles["targets"].keys
    author.rotate("targets", make_key())
    author.bump("root", "targets")
    yield {"root": author.root(), "targets": author.targets(signers=old)}


@case("rotate targets, then a delegation without them", TARGETS, reference="")
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    yield author.first()
    author.rotate("targets", make_key())
    yield author.publish("root", "targets/a")


@case("rotate the snapshot key to the client", OK)
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.rotate("snapshot", make_key())
    author.bump("snapshot")
    yield author.publish("root")


@case("rotate the snapshot key to the client, no snapshot", HIERARCHY)
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.rotate("snapshot", make_key())
    author.bump("root")
    yield {"root": author.root()}


@case("rotate the snapshot key, snapshot by the old one", SNAPSHOT, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    old = author.roles["snapshot"].keys
    author.rotate("snapshot", make_key())
    author.bump("root", "snapshot")
    made = {"root": author.root()}
    yield made | {"snapshot": author.snapshot({**author.stored, **made}, signers=old)}


@case("rotate the timestamp key to a foreign one", ROOT)
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.rotate("timestamp", make_key("ed25519"))
    yield author.publish("root")


@case("root again with every role's keys new", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    yield author.first()
    author.rotate("root", make_root_key(author.gun))
    author.rotate("targets", make_key())
    author.rotate("snapshot", make_key())
    author.delegate("targets/a", make_key())
    yield author.publish("root", "targets", "targets/a")


# -- delegations ------------------------------------------------------------------------------------------------------


@case("delegations, nested, all at once", OK)
@case("delegations, nested, all at once, snapshot by the client", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a", make_root_key("delegate"))
    author.delegate("targets/a/b", make_key("ed25519"), make_key("rsa"), threshold=2)
    author.delegate("targets/a/b/c")
    author.delegate("targets/z-9_y", paths=[])
    yield author.first()


@case("a delegation with its parents in the store", OK)
@case("a delegation with its parents in the store, snapshot by the client", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    author.delegate("targets/a/b")
    yield author.first()
    author.add("v1", b"content", role="targets/a/b")
    yield author.publish("targets/a/b")


@case("deep before shallow in the upload", OK)
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    author.delegate("targets/a/b")
    yield list(reversed(author.first().items()))


@case("a delegation under old targets and its new key in new ones", OK)
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    yield author.first()
    author.delegate("targets/a", make_key())
    yield author.publish("targets", "targets/a")


@case("a delegation by its former key", TARGETS)
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    yield author.first()
    old = author.delegations["targets/a"].keys
    author.delegate("targets/a", make_key())
    yield author.publish("targets")
    author.bump("targets/a")
    yield {"targets/a": author.targets("targets/a", signers=old)}


@case("a delegation that nobody made", TARGETS)
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    yield {"targets/a": author.targets("targets/a")}


@case("a delegation that was removed", TARGETS)
@case("a delegation that was removed, snapshot by the client", TARGETS, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    yield author.first()
    role = author.delegations.pop("targets/a")
    author.stored.pop("targets/a")
    yield author.publish("targets")
    author.bump("targets/a")
    yield author.covered({"targets/a": author.targets("targets/a", signers=role.keys)})


@case("a delegation without targets anywhere", TARGETS)
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    yield {"root": author.root(), "targets/a": author.targets("targets/a")}


@case("a delegation without its parent anywhere", TARGETS)
@case("a delegation without its parent anywhere, snapshot by the client", TARGETS, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    yield author.publish("root", "targets")
    author.delegate("targets/a/b")
    yield author.publish("targets/a/b")


@case("a delegation under a parent that does not name it", TARGETS)
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    yield author.first()
    yield {"targets/a/b": author.targets("targets/a/b", signers=author.delegations["targets/a"].keys)}


@case("a delegation under a parent that has new keys", TARGETS, reference="")
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    author.delegate("targets/a/b")
    yield author.first()
    author.delegate("targets/a", make_key())
    yield author.publish("targets", "targets/a/b")


@case("one of two needed delegation keys signs", TARGETS)
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a", make_key(), make_key(), threshold=2)
    yield {**author.first(), "targets/a": author.targets("targets/a", signers=author.delegations["targets/a"].keys[:1])}


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
    ("lists a role that does not exist", OK, setting("meta", "targets/y", to=file_meta(b""))),
):
    case(f"snapshot: {_name}", _expected, snapshot="client")(_edited("snapshot", _edit))


@case("snapshot over a root that is not the stored one", SNAPSHOT, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.stored["root"] = b"another root"
    yield author.publish("targets")


@case("snapshot over a parent that is not the stored one", SNAPSHOT, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    yield author.first()
    author.stored["targets"] = b"other targets"
    yield author.publish("targets/a")


@case("snapshot over targets that are not the stored ones", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.stored["targets"] = b"other targets"
    yield author.publish("root")


@case("a snapshot that the server should have made", SNAPSHOT)
def _(author: Author) -> Iterator[Upload]:
    files = author.first()
    yield {**files, "snapshot": author.snapshot(files, signers=[make_key()])}


@case("two of two snapshot keys of the client", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    author.roles["snapshot"] = Role([make_key(), make_key("ed25519")], 2)
    yield author.first()
