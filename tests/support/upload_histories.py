"""Cases on what an upload is to its collection: first or next, whole or in part, with new keys, versions, delegations.

Rules of this module: what counts is which files there are, now and before; what one may hold is in ``upload_files``.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.author import Author, Key, Role, Signed, make_key, make_root_key, sign
from tests.support.uploads import HIERARCHY, OK, ROOT, SNAPSHOT, TARGETS, VALIDATION, VERSION, Steps, Table, Upload

CASES = Table()
case = CASES.case


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


# The reference takes these, and then no client can read the collection.
@case("rotate targets, root alone", TARGETS, reference=OK)
@case("rotate targets, root alone, snapshot by the client", TARGETS, snapshot="client", reference=OK)
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.rotate("targets", make_key())
    yield author.publish("root")


@case("two targets signatures needed from now on, root alone", TARGETS, reference=OK)
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.roles["targets"] = Role([*author.roles["targets"].keys, make_key()], 2)
    yield author.publish("root")


@case("a second targets key, root alone", OK)
@case("a second targets key, root alone, snapshot by the client", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.roles["targets"].keys.append(make_key())
    yield author.publish("root")


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


# Clients pass over a delegation that lacks signatures, and publishers take keys from one on purpose.
@case("the keys of a delegation change, and nothing in it", OK)
@case("the keys of a delegation change, and nothing in it, snapshot by the client", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    author.delegate("targets/a/b")
    yield author.first()
    author.delegate("targets/a", make_key())
    yield author.publish("targets")
    author.delegations["targets/a"].keys.clear()
    yield author.publish("targets")


@case("a delegation needs more signatures from now on", OK)
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    yield author.first()
    author.delegations["targets/a"].threshold = 2
    yield author.publish("targets")


@case("a delegation is removed, and comes back with its file", OK)
@case("a delegation is removed, and comes back with its file, snapshot by the client", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    yield author.first()
    role = author.delegations.pop("targets/a")
    yield author.publish("targets")
    author.delegations["targets/a"] = role
    yield author.publish("targets")


# The reference takes these, and then no client can read the collection.
@case("a delegation gets a SHA-1 certificate beside its key", TARGETS, reference=OK)
@case("a delegation gets a SHA-1 certificate, snapshot by the client", TARGETS, snapshot="client", reference=OK)
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    yield author.first()
    author.delegations["targets/a"].keys.append(make_root_key("x", "rsa", sha1=True))
    yield author.publish("targets")


@case("a delegation without a file gets a SHA-1 certificate", OK)
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a", make_root_key("x", "rsa", sha1=True))
    yield author.publish("root", "targets")


@case("a delegation's key stands under a wrong id", TARGETS, reference=OK)
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    yield author.first()
    (key,) = author.delegations["targets/a"].keys
    other = make_key()

    def edit(signed: Signed) -> None:
        signed["delegations"]["keys"][key.key_id] = other.to_json()

    author.bump("targets")
    yield {"targets": author.targets(edit=edit)}


@case("one of two needed delegation keys signs", TARGETS)
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a", make_key(), make_key(), threshold=2)
    yield {**author.first(), "targets/a": author.targets("targets/a", signers=author.delegations["targets/a"].keys[:1])}


# -- snapshots by the client ------------------------------------------------------------------------------------------


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


@case("snapshot over targets that are not the stored ones", SNAPSHOT, snapshot="client", reference=OK)
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.stored["targets"] = b"other targets"
    yield author.publish("root")


@case("snapshot over targets of an older version", SNAPSHOT, snapshot="client", reference=OK)
def _(author: Author) -> Iterator[Upload]:
    old = author.first()
    yield old
    yield author.publish("targets")
    author.stored["targets"] = old["targets"]
    yield author.publish("root")


@case("snapshot over a delegation of an older version", SNAPSHOT, snapshot="client", reference=OK)
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    old = author.first()
    yield old
    yield author.publish("targets/a")
    author.stored["targets/a"] = old["targets/a"]
    yield author.publish("targets")


@case("snapshot over a delegation that was never stored", SNAPSHOT, snapshot="client", reference=OK)
def _(author: Author) -> Iterator[Upload]:
    yield author.first()
    author.delegate("targets/a")
    author.stored["targets/a"] = author.targets("targets/a")
    yield author.publish("targets")


@case("snapshot over targets that somebody else has replaced", VERSION, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    stale = author.first()
    yield stale
    versions = dict(author.versions)
    yield author.publish("targets")
    author.stored, author.versions = dict(stale), versions
    yield author.publish("root")


@case("first root and a snapshot over targets that are not there", SNAPSHOT, snapshot="client", reference=OK)
def _(author: Author) -> Iterator[Upload]:
    files = author.first()
    yield {role: files[role] for role in ("root", "snapshot")}


@case("a snapshot tells more of a delegation than the one before", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    def less(signed: Signed) -> None:
        signed["meta"]["targets/a"]["length"] = -1
        del signed["meta"]["targets/a"]["hashes"]["sha512"]

    author.delegate("targets/a")
    files = author.first()
    yield {**files, "snapshot": author.snapshot(files, edit=less)}
    yield author.publish("targets")


@case("a snapshot tells another length of a delegation than the one before", SNAPSHOT, snapshot="client", reference=OK)
def _(author: Author) -> Iterator[Upload]:
    def less(signed: Signed) -> None:
        signed["meta"]["targets/a"]["length"] -= 1

    author.delegate("targets/a")
    yield author.first()
    author.bump("snapshot")
    yield {"snapshot": author.snapshot(author.stored, edit=less)}


@case("a snapshot alone", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    author.delegate("targets/a")
    yield author.first()
    yield author.publish()


@case("a snapshot that the server should have made", SNAPSHOT)
def _(author: Author) -> Iterator[Upload]:
    files = author.first()
    yield {**files, "snapshot": author.snapshot(files, signers=[make_key()])}


@case("two of two snapshot keys of the client", OK, snapshot="client")
def _(author: Author) -> Iterator[Upload]:
    author.roles["snapshot"] = Role([make_key(), make_key("ed25519")], 2)
    yield author.first()
