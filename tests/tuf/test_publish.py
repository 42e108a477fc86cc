"""What an upload must satisfy: the shared tables of uploads, then what only the core can be asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from notary.errors import InvalidMetadata, InvalidRole, InvalidUpdate, MalformedJSON, NoFilename, UploadFault
from notary.tuf import model, publish, validation
from notary.tuf.model import BASE_ROLES, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Gun, RoleName
from tests.support import upload_files, upload_histories
from tests.support.author import (
    HARMLESS,
    Author,
    Role,
    Signed,
    file_meta,
    flip_bit,
    make_key,
    make_root_key,
    moment,
    setting,
    sign,
)
from tests.support.collection import GUN, NOW, Collection, Held
from tests.support.uploads import Case

A = RoleName("targets/a")


@pytest.mark.parametrize("case", [*upload_files.CASES, *upload_histories.CASES], ids=str)
def test_table_of_uploads(case: Case) -> None:
    collection = Collection()
    *earlier, last = case.steps(collection.author(case.snapshot))
    for files in earlier:
        collection.publish(files)
        collection.check(collection.now)
    before = dict(collection.current)
    assert collection.outcome(last) == case.expected
    if case.expected == "OK":
        assert collection.current != before
        collection.check(collection.now)
    else:
        assert collection.current == before


# -- what a plan holds ------------------------------------------------------------------------------------------------


def test_first_plan_of_the_server() -> None:
    collection = Collection()
    author = collection.author()
    author.delegate("targets/a")
    files = author.first()
    plan = collection.validate(list(reversed(files.items())))
    assert plan.updates == tuple(model.Update(role, 1, files[role]) for role in (ROOT, TARGETS, A))
    assert plan.snapshot is not None
    assert (plan.snapshot.role, plan.snapshot.version, plan.snapshot.threshold) == (SNAPSHOT, 1, 1)
    assert [key.key_id for key in plan.snapshot.keys] == [collection.snapshot_key.key_id]
    assert json.loads(plan.snapshot.payload) == {
        "_type": "Snapshot",
        "expires": moment(NOW + timedelta(days=3 * 365)),
        "meta": {role: file_meta(data) for role, data in files.items()},
        "version": 1,
    }
    snapshot = collection.sign(plan.snapshot)
    timestamp = plan.timestamp(snapshot)
    assert json.loads(timestamp.payload) == {
        "_type": "Timestamp",
        "expires": moment(NOW + timedelta(days=14)),
        "meta": {"snapshot": file_meta(snapshot)},
        "version": 1,
    }


def test_plan_with_an_uploaded_snapshot() -> None:
    collection = Collection()
    files = collection.author("client").first()
    plan = collection.validate(files)
    assert plan.snapshot is None
    assert [update.role for update in plan.updates] == [ROOT, TARGETS, SNAPSHOT]
    assert plan.timestamp() == plan.timestamp(files["snapshot"])
    assert json.loads(plan.timestamp().payload)["meta"] == {"snapshot": file_meta(files["snapshot"])}


def test_server_made_snapshot_keeps_what_was_not_uploaded() -> None:
    collection = Collection()
    author = collection.author()
    author.delegate("targets/a")
    author.delegate("targets/b")
    author.delegate("targets/a/c")
    collection.publish(author.first())
    before = collection.signed("snapshot")["meta"]
    written = collection.publish(author.publish("targets/a"))
    assert set(written) == {"targets/a", "snapshot", "timestamp"}
    assert collection.signed("snapshot") == {
        "_type": "Snapshot",
        "expires": moment(NOW + timedelta(days=3 * 365)),
        "meta": before | {"targets/a": file_meta(written["targets/a"])},
        "version": 2,
    }
    assert collection.signed("timestamp")["version"] == 2


def test_a_removed_delegation_stays_listed_in_server_made_snapshots() -> None:
    collection = Collection()
    author = collection.author()
    author.delegate("targets/a")
    collection.publish(author.first())
    del author.delegations["targets/a"]
    collection.publish(author.publish("targets"))
    assert "targets/a" in collection.signed("snapshot")["meta"]


def test_members_of_a_stored_snapshot_that_the_core_does_not_know_are_kept() -> None:
    collection = Collection()
    author = collection.author()
    collection.publish(author.first())
    meta = {**collection.signed("snapshot")["meta"], "targets/x": {**file_meta(b""), "custom": {"n": [1, "é"]}}}
    edited = sign({**collection.signed("snapshot"), "meta": meta}, [collection.snapshot_key])
    collection.current[SNAPSHOT] = Held(1, edited)
    collection.publish(author.publish("targets"))
    assert collection.signed("snapshot")["meta"]["targets/x"] == meta["targets/x"]


@pytest.mark.parametrize("role", ["root", "targets", "targets/a"])
@pytest.mark.parametrize("damage", HARMLESS.values(), ids=HARMLESS)
def test_snapshots_hash_the_bytes_that_are_stored(role: str, damage: Callable[[bytes], bytes]) -> None:
    collection = Collection()
    author = collection.author()
    author.delegate("targets/a")
    files = author.first()
    files[role] = damage(files[role])
    collection.publish(files)
    assert collection.current[RoleName(role)].data == files[role]
    assert collection.signed("snapshot")["meta"][role] == file_meta(files[role])


def test_a_collection_whose_snapshot_lists_other_bytes_heals() -> None:
    """The Go server hashed its own re-serialisation (docs/protocol.md, section 9)."""
    collection = Collection()
    author = collection.author()
    author.delegate("targets/a")
    collection.publish(author.first())
    broken = collection.signed("snapshot")
    for role in ("root", "targets"):
        broken["meta"][role] = file_meta(b"something else")
    collection.current[SNAPSHOT] = Held(1, sign(broken, [collection.snapshot_key]))
    collection.publish(author.publish("targets/a"))
    collection.check()


def test_a_time_zone_and_a_fraction_of_now_do_not_show() -> None:
    collection = Collection(now=datetime(2026, 3, 1, 0, 30, 0, 999_999, tzinfo=UTC))
    collection.publish(collection.author().first())
    assert collection.signed("timestamp")["expires"] == "2026-03-15T00:30:00Z"


# -- what must be loaded ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uploaded", "more"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param(["root"], [], id="root"),
        pytest.param(["targets"], [], id="targets"),
        pytest.param(["targets/a"], ["targets/a"], id="delegation"),
        pytest.param(
            ["targets/a/b/c", "targets/a/d"],
            ["targets/a", "targets/a/b", "targets/a/b/c", "targets/a/d"],
            id="nested delegations",
        ),
        pytest.param(
            ["targets/a", "targets/a/b/c"],
            ["targets/a", "targets/a/b", "targets/a/b/c"],
            id="a delegation and one below",
        ),
    ],
)
def test_needed(uploaded: list[str], more: list[str]) -> None:
    assert publish.needed([RoleName(role) for role in uploaded]) == {*BASE_ROLES, *more}


def test_names_that_are_no_roles_need_nothing() -> None:
    names = ["targets/a", "", "Root", "root", "targets/a", "targets//b"]
    assert publish.named((name, b"never read") for name in names) == [A, ROOT, A]


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        pytest.param([], None, id="nothing"),
        pytest.param([("root", b'{"signed":{},"signatures":[]}')] * 2, None, id="metadata"),
        pytest.param(
            [("root", b'{"signed":{},"signatures":[]}'), ("targets", b"[]")],
            MalformedJSON("metadata: expected an object"),
            id="no metadata",
        ),
        pytest.param([("", b"")], NoFilename("a part of the upload has no file name"), id="no name"),
        pytest.param([("mirrors", b"")], InvalidRole("'mirrors' is not the name of a role"), id="no role"),
    ],
)
def test_what_can_be_read_of_an_upload(files: list[tuple[str, bytes]], fault: Exception | None) -> None:
    if fault is None:
        assert [(upload.role, upload.data) for upload in publish.read(files)] == files
        publish.check(files)
        return
    for function in (publish.read, publish.check):
        with pytest.raises(type(fault), match=f"^{fault}"):
            function(files)


# -- the order of the checks ------------------------------------------------------------------------------------------


def _break(files: dict[str, bytes], *roles: str) -> dict[str, bytes]:
    return {
        role: sign(json.loads(data)["signed"], [make_key()]) if role in roles else data for role, data in files.items()
    }


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        pytest.param(["root", "targets", "targets/a", "snapshot"], UploadFault.ROOT, id="everything"),
        pytest.param(["targets/a", "snapshot"], UploadFault.TARGETS, id="all but root"),
        pytest.param(["snapshot"], UploadFault.SNAPSHOT, id="snapshot"),
    ],
)
def test_first_fault_is_told(broken: list[str], fault: UploadFault) -> None:
    collection = Collection()
    author = collection.author("client")
    author.delegate("targets/a")
    author.bump("targets", by=5000)
    with pytest.raises(InvalidUpdate) as caught:
        collection.validate(_break(author.first(), *broken))
    assert caught.value.fault == fault
    assert broken[0] in str(caught.value)


def test_shallow_targets_are_judged_before_deep_ones() -> None:
    collection = Collection()
    author = collection.author()
    for role in ("targets/b", "targets/a", "targets/a/a"):
        author.delegate(role)
    files = _break(author.first(), "targets/a/a", "targets/b")
    with pytest.raises(InvalidUpdate, match=r"^targets/b: "):
        collection.validate(files)


def test_a_leap_is_told_with_both_numbers() -> None:
    collection = Collection()
    author = collection.author()
    collection.publish(author.first())
    collection.publish(author.publish("targets"))
    author.bump("targets", by=1001)
    with pytest.raises(
        InvalidUpdate, match=r"^targets: version 1003 .* stored version 2; the largest allowed is 1002$"
    ) as caught:
        collection.validate(author.files("targets"))
    assert caught.value.fault == UploadFault.VALIDATION


def test_an_upload_that_is_not_metadata_cannot_be_built() -> None:
    with pytest.raises(MalformedJSON):
        model.Upload(TARGETS, b"[]")


def test_the_files_of_an_upload_share_a_budget_of_structure() -> None:
    # In a string, brackets count as structure too, and are read a hundred times faster.
    half = b'{"signed":{"x":"' + b"[" * 150_000 + b'"},"signatures":[]}'
    assert len(publish.read([("targets", half), ("targets/a", half), ("targets/b", half)])) == 3
    with pytest.raises(MalformedJSON, match="all files together"):
        publish.read([("targets", half), ("targets/a", half), ("targets/b", half), ("targets/c", half)])


def test_stored_parents_share_a_budget_of_structure() -> None:
    collection = Collection()
    author = collection.author()
    names = [f"targets/{letter}" for letter in "abc"]
    for name in names:
        author.delegate(name)
        author.contents[name]["custom"] = {"hashes": {}, "length": 0, "custom": "[" * 250_000}
        author.delegate(f"{name}/x")
    collection.publish(author.files("root", "targets"))
    for name in names:
        collection.publish(author.files(name))
    with pytest.raises(InvalidUpdate, match="too much structure: all files together"):
        collection.validate(author.files(*[f"{name}/x" for name in names]))


LARGE = b'{"signed":{"x":"' + b"[" * 250_000 + b'"},"signatures":[]}'


@pytest.mark.parametrize(
    ("stored", "uploaded", "fault"),
    [
        pytest.param(False, {}, UploadFault.VALIDATION, id="no-root"),
        pytest.param(False, {"root": b'{"signed":{},"signatures":[]}'}, UploadFault.ROOT, id="bad-root"),
        pytest.param(
            True, {"root": b'{"signed":{},"signatures":[]}'}, UploadFault.ROOT, id="bad-root-beside-a-stored-one"
        ),
    ],
)
def test_a_large_upload_is_read_only_under_a_good_root(stored, uploaded, fault) -> None:
    collection = Collection()
    if stored:
        collection.publish(collection.author().first())
    bomb = [("targets", LARGE), ("targets/a", LARGE), ("targets/b", LARGE), ("targets/c", b"no JSON at all")]
    for files in ([*bomb, *uploaded.items()], [*uploaded.items(), *bomb]):
        with pytest.raises(InvalidUpdate) as caught:
            publish.validate_files(Gun(GUN), collection.current, files, NOW)
        assert caught.value.fault == fault


def test_a_large_upload_under_a_good_root_is_read_whole() -> None:
    author = Collection().author()
    files = [*author.first().items()]
    for unread in (b"no JSON at all", LARGE + LARGE):
        for role in ("targets/a", "timestamp", "root"):
            with pytest.raises(MalformedJSON):
                publish.validate_files(Gun(GUN), {}, [(role, unread), *files], NOW)
    first = {"root": author.root(), "targets": author.targets()}
    author.bump("root")
    plan = publish.validate_files(Gun(GUN), {}, [("root", author.root()), *first.items()], NOW)
    assert [update.data for update in plan.updates] == [*first.values()]


def test_the_root_of_a_large_upload_shares_its_budget_of_structure() -> None:
    author = Collection().author()
    files = [("root", author.root(edit=setting("x", to="[" * 250_000))), ("targets/a", LARGE), ("targets/b", LARGE)]
    with pytest.raises(MalformedJSON, match="all files together"):
        publish.validate_files(Gun(GUN), {}, files, NOW)


def test_a_stored_root_is_verified_unless_it_is_known_to_be_good() -> None:
    collection, author = _stored()
    collection.current[ROOT] = Held(1, author.root(signers=[make_root_key(GUN)]))
    files = [*author.publish("targets").items()]
    uploads = publish.read(files)
    for known, fault in (({}, InvalidMetadata), ({"root_verified": True}, None)):
        with pytest.raises(fault) if fault else nullcontext():
            validation.validate(Gun(GUN), collection.current, uploads, NOW, **known)
        with pytest.raises(fault) if fault else nullcontext():
            publish.validate_files(Gun(GUN), collection.current, files, NOW, **known)


def test_the_version_of_an_upload() -> None:
    author = Author(GUN)
    author.bump("targets", by=41)
    assert model.Upload(TARGETS, author.targets()).version == 42


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "fault"),
    [
        ("root", UploadFault.ROOT),
        ("targets", UploadFault.TARGETS),
        ("targets/a", UploadFault.TARGETS),
        ("snapshot", UploadFault.SNAPSHOT),
    ],
)
def test_an_upload_may_expire_now_but_not_a_moment_before(role: str, fault: UploadFault) -> None:
    collection = Collection()
    author = collection.author("client")
    author.delegate("targets/a")
    author.lifetimes[role] = timedelta(0)
    files = author.first()
    collection.validate(files)
    collection.now += timedelta(microseconds=1)
    with pytest.raises(InvalidUpdate, match=rf"^{role}: it expired at 2026-03-01") as caught:
        collection.validate(files)
    assert caught.value.fault == fault


@pytest.mark.parametrize(
    ("late", "accepted"),
    [
        pytest.param(timedelta(days=1), True, id="a day ahead"),
        pytest.param(timedelta(days=1, seconds=1), False, id="more than a day ahead"),
        pytest.param(timedelta(days=-30), True, id="at its very end"),
        pytest.param(timedelta(days=-30, seconds=-1), False, id="after its end"),
    ],
)
def test_the_time_of_a_root_certificate(late: timedelta, accepted: bool) -> None:
    collection = Collection()
    author = collection.author()
    begins = NOW + late
    author.roles["root"] = Role([make_root_key(GUN, begins=begins, ends=begins + timedelta(days=30))])
    assert collection.outcome(author.first()) == ("OK" if accepted else "ErrBadRoot")


@pytest.fixture
def aged() -> tuple[Collection, Author]:
    """A collection with a delegation, of which everything, root certificate included, has expired."""
    collection = Collection()
    author = collection.author("client")
    author.roles["root"] = Role([make_root_key(GUN, begins=NOW - timedelta(1), ends=NOW + timedelta(1))])
    author.delegate("targets/a")
    for role in ("root", "targets", "targets/a", "snapshot"):
        author.lifetimes[role] = timedelta(hours=1)
    collection.publish(author.first())
    author.lifetimes.clear()
    collection.now = author.now = NOW + timedelta(days=365)
    return collection, author


def test_expiry_of_stored_root_and_parents_stops_no_publisher(aged: tuple[Collection, Author]) -> None:
    collection, author = aged
    collection.publish(author.publish("targets/a"))
    collection.check()


def test_expired_root_can_be_followed_by_a_fresh_one(aged: tuple[Collection, Author]) -> None:
    collection, author = aged
    author.rotate("root", make_root_key(GUN, begins=author.now))
    collection.publish(author.publish("root"))
    collection.check()


def test_expired_certificate_cannot_vouch_for_its_own_new_root(aged: tuple[Collection, Author]) -> None:
    collection, author = aged
    with pytest.raises(InvalidUpdate, match="valid only from") as caught:
        collection.validate(author.publish("root"))
    assert caught.value.fault == UploadFault.ROOT


def test_a_root_is_verified_once_it_is_certain_to_be_found_valid_for_ever() -> None:
    collection = Collection()
    author = collection.author()
    expired = make_root_key(GUN, begins=NOW - timedelta(9), ends=NOW - timedelta(1))
    author.roles["root"] = Role([make_root_key(GUN), expired])
    files = author.first()
    # Its expired certificate counts when the root is a stored one.
    assert collection.validate(files).verified_root is None
    collection.publish(files)
    assert collection.validate(author.publish("targets")).verified_root == files["root"]
    author.rotate("root", make_root_key(GUN))
    assert collection.validate(newer := author.publish("root")).verified_root == newer["root"]


# -- what is stored can be bad, too -----------------------------------------------------------------------------------


def _stored(snapshot: str = "server") -> tuple[Collection, Author]:
    collection = Collection()
    author = collection.author(snapshot)
    author.delegate("targets/a")
    collection.publish(author.first())
    return collection, author


_JUNK = [pytest.param(b"junk", id="not JSON"), pytest.param(b"[]", id="no envelope")]


@pytest.mark.parametrize("data", [*_JUNK, pytest.param(sign({"_type": "Root"}, []), id="no root")])
def test_a_stored_root_that_is_none_is_the_services_failure(data: bytes) -> None:
    collection, author = _stored()
    collection.current[ROOT] = Held(1, data)
    with pytest.raises(InvalidMetadata):
        collection.validate(author.publish("root", "targets"))


def test_a_stored_root_that_does_not_verify_is_the_services_failure() -> None:
    collection, author = _stored()
    collection.current[ROOT] = Held(1, author.root(signers=[make_root_key(GUN)]))
    with pytest.raises(InvalidMetadata, match=r"^root: it has 0 valid signature"):
        collection.validate(author.publish("targets"))


@pytest.mark.parametrize("data", [*_JUNK, pytest.param(sign({"_type": "Snapshot"}, []), id="no snapshot")])
@pytest.mark.parametrize("role", ["targets", "targets/a"])
def test_a_stored_snapshot_that_is_none_is_the_services_failure(data: bytes, role: str) -> None:
    collection, author = _stored()
    collection.current[SNAPSHOT] = Held(1, data)
    with pytest.raises(InvalidMetadata):
        collection.validate(author.publish(role))


def test_a_stored_snapshot_that_is_none_can_be_replaced_by_its_publisher() -> None:
    collection, author = _stored("client")
    collection.current[SNAPSHOT] = Held(1, b"junk")
    collection.publish(author.publish("targets"))
    collection.check()


@pytest.mark.parametrize("data", [*_JUNK, pytest.param(sign({"_type": "Targets"}, []), id="no targets")])
def test_a_stored_parent_that_is_none_must_be_uploaded_again(data: bytes) -> None:
    collection, author = _stored()
    collection.current[TARGETS] = Held(1, data)
    with pytest.raises(InvalidUpdate, match=r"^targets/a: its parent targets, as stored, .* upload it too") as caught:
        collection.validate(author.publish("targets/a"))
    assert caught.value.fault == UploadFault.TARGETS
    collection.publish(author.publish("targets", "targets/a"))
    collection.check()


def test_a_root_alone_need_not_mend_the_targets_that_it_does_not_touch() -> None:
    """No client can read the collection, before and after: its publisher may go step by step."""
    collection, author = _stored()
    collection.current[TARGETS] = Held(1, author.targets(signers=[make_key()]))
    author.rotate("root", make_root_key(GUN))
    collection.publish(author.publish("root"))
    author.rotate("targets", make_key())
    with pytest.raises(InvalidUpdate, match=r"^the targets file, as stored, is not valid .* upload it too") as caught:
        collection.validate(author.publish("root"))
    assert caught.value.fault == UploadFault.TARGETS
    author.versions["root"] -= 1
    collection.publish(author.publish("root", "targets"))
    collection.check()


@pytest.mark.parametrize("snapshot", ["server", "client"])
def test_what_the_stored_snapshot_lists_wrongly_stops_no_publisher(snapshot: str) -> None:
    """Clients look for a file of a delegation that is not there. It may stay so; its next publish mends it."""
    collection, author = _stored(snapshot)
    author.stored["targets/a"] = b"not what is stored"
    keys = author.roles["snapshot"].keys if snapshot == "client" else [collection.snapshot_key]
    author.versions["snapshot"] = 2
    collection.current[SNAPSHOT] = Held(2, author.snapshot(author.stored, signers=keys))
    author.add("v1", b"content")
    collection.publish(author.publish("targets"))
    with pytest.raises(AssertionError, match="targets/a: there is no file with the listed checksum"):
        collection.check()
    collection.publish(author.publish("targets/a"))
    collection.check()


def test_a_root_alone_may_not_give_the_targets_key_a_false_id() -> None:
    collection, author = _stored()
    (key,) = author.roles["targets"].keys

    def edit(signed: Signed) -> None:
        signed["keys"][key.key_id] = make_key().to_json()

    author.bump("root")
    with pytest.raises(InvalidUpdate, match="does not match the content of its key") as caught:
        collection.validate({"root": author.root(edit=edit)})
    assert caught.value.fault == UploadFault.TARGETS


def test_a_stored_timestamp_that_is_none_is_replaced() -> None:
    collection, author = _stored()
    collection.current[TIMESTAMP] = Held(7, b"junk")
    collection.publish(author.publish("targets"))
    assert collection.signed("timestamp")["version"] == 8


def test_a_stored_parent_that_the_snapshot_has_dropped_is_no_parent() -> None:
    collection, author = _stored("client")
    author.delegate("targets/a/b")
    collection.publish(author.publish("targets/a", "targets/a/b"))
    del author.stored["targets/a"]
    collection.publish(author.publish("targets"))
    with pytest.raises(InvalidUpdate, match="its parent targets/a is neither in this upload nor in the") as caught:
        collection.validate(author.publish("targets/a/b"))
    assert caught.value.fault == UploadFault.TARGETS
    author.versions["targets/a"] = 3
    collection.publish(author.publish("targets/a", "targets/a/b"))
    collection.check()


def test_stored_parents_count_without_a_stored_snapshot() -> None:
    collection, author = _stored("client")
    del collection.current[SNAPSHOT]
    collection.publish(author.publish("targets/a"))


@pytest.mark.parametrize("role", [SNAPSHOT, TIMESTAMP])
def test_the_last_version_can_be_made(role: RoleName) -> None:
    collection, author = _stored()
    collection.current[role] = Held(2**31 - 2, collection.current[role].data)
    collection.publish(author.publish("targets"))
    assert collection.signed(role)["version"] == 2**31 - 1


@pytest.mark.parametrize("role", [SNAPSHOT, TIMESTAMP])
def test_no_version_follows_the_last_one(role: RoleName) -> None:
    collection, author = _stored()
    collection.current[role] = Held(2**31 - 1, collection.current[role].data)
    with pytest.raises(InvalidUpdate, match=rf"^{role}: version 2147483647 is stored") as caught:
        collection.publish(author.publish("targets"))
    assert caught.value.fault == UploadFault.VALIDATION


def test_the_last_version_is_the_largest_that_can_be_uploaded() -> None:
    collection, author = _stored()
    collection.current[TARGETS] = Held(2**31 - 5, collection.current[TARGETS].data)
    author.versions["targets"] = 2**31
    with pytest.raises(InvalidUpdate, match=r"^targets: invalid version 2147483648") as caught:
        collection.validate(author.files("targets"))
    assert caught.value.fault == UploadFault.TARGETS
    author.versions["targets"] = 2**31 - 1
    collection.publish(author.files("targets"))


def test_a_leap_to_the_largest_version_is_told_after_other_faults() -> None:
    collection, author = _stored()
    author.versions["targets"] = 2**31 - 1
    author.lifetimes["targets"] = timedelta(days=-1)
    with pytest.raises(InvalidUpdate, match=r"^targets: it expired at ") as caught:
        collection.validate(author.files("targets"))
    assert caught.value.fault == UploadFault.TARGETS


def test_a_snapshot_may_list_what_is_stored_and_what_is_no_role() -> None:
    """The stored snapshot listed other bytes of targets. Clients do not look for names that are no targets roles."""
    collection, author = _stored("client")
    broken = {**author.stored, "targets": b"not what is stored"}
    collection.current[SNAPSHOT] = Held(1, author.snapshot(broken))
    files = author.publish("snapshot")
    others = {name: file_meta(b"") for name in ("no role", "mirrors", "timestamp")}
    files["snapshot"] = author.snapshot(author.stored, edit=lambda signed: signed["meta"].update(others))
    collection.publish(files)
    collection.check()


# -- any bit ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signed_files() -> tuple[Collection, dict[str, bytes]]:
    """Uploads with every kind of key, all valid."""
    collection = Collection()
    author = collection.author("client")
    author.roles["targets"] = Role([make_key("rsa")])
    author.delegate("targets/a", make_key("ed25519"), make_root_key("delegate"), threshold=2)
    author.add("v1", b"content")
    files = author.first()
    collection.validate(files)
    return collection, files


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(role=st.sampled_from(["root", "targets", "targets/a", "snapshot"]), bit=st.integers(0, 2**20))
def test_one_changed_bit_in_a_signed_payload_is_refused(
    signed_files: tuple[Collection, dict[str, bytes]], role: str, bit: int
) -> None:
    collection, files = signed_files
    head, middle, tail = files[role].partition(b',"signatures":')
    payload = flip_bit(head.removeprefix(b'{"signed":'), bit)
    with pytest.raises((InvalidUpdate, MalformedJSON)):
        collection.validate({**files, role: b'{"signed":' + payload + middle + tail})


@pytest.fixture(scope="module")
def published() -> tuple[Collection, Author]:
    return _stored()


@settings(max_examples=100, deadline=None)
@given(version=st.integers(-5, 2**53 - 1), stored=st.integers(0, 2**31 - 1))
def test_a_version_is_refused_exactly_if_it_leaps(
    published: tuple[Collection, Author], version: int, stored: int
) -> None:
    collection, author = published
    collection.current[TARGETS] = Held(stored, b"never read")
    data = author.targets(edit=setting("version", to=version))
    leaps = version > stored + 1000
    if leaps or not 1 <= version < 2**31:
        with pytest.raises(InvalidUpdate) as caught:
            collection.validate({"targets": data})
        assert caught.value.fault == (UploadFault.VALIDATION if leaps else UploadFault.TARGETS)
    else:
        collection.validate({"targets": data})


def test_a_stored_root_without_a_usable_certificate_is_replaced_before_all_else():
    collection = Collection()
    author = collection.author()
    collection.publish(author.first())
    author.roles["root"] = Role([make_root_key("elsewhere.com/*")])
    collection.current[ROOT] = Held(1, author.root())
    with pytest.raises(InvalidUpdate, match="rotate the root key first, with the present one") as caught:
        collection.validate({"targets": author.publish("targets")["targets"]})
    assert caught.value.fault == UploadFault.ROOT
    author.rotate("root", make_root_key(GUN, number=1))
    collection.publish(author.publish("root"))
    assert collection.signed("root")["version"] == 2


def test_the_certificates_of_all_delegations_that_are_not_uploaded_are_looked_at():
    collection = Collection()
    author = collection.author()
    for role in ("targets/a", "targets/b"):
        author.delegate(role)
    collection.publish(author.first())
    author.delegations["targets/b"].keys = [make_root_key("anything", "rsa", sha1=True)]
    with pytest.raises(InvalidUpdate, match=r"targets/b: key [0-9a-f]{64}: the certificate is signed with SHA-1"):
        collection.publish(author.publish("targets", "targets/a"))
