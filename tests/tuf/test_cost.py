"""How much work an upload makes: what is estimated before it is judged, and what is spent while it is."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from notary.errors import InvalidUpdate, UploadFault
from notary.server.repository import LITTLE_MICROSECONDS
from notary.tuf import cost, public, publish, validation
from notary.tuf.model import Gun, RoleName
from notary.tuf.public import Signature
from tests.support.author import Author, Key, Role, canonical, make_key, make_root_key, public_bytes
from tests.support.collection import GUN, NOW, Collection, Held
from tests.support.uploads import bogus


def estimated(files, current=(), *, root_verified=False) -> int:
    held = {RoleName(role): Held(1, data) for role, data in dict(current).items()}
    return cost.estimate(held, publish.read(files.items()), root_verified=root_verified)


def author() -> Author:
    return Author(GUN, timestamp=make_key("ed25519"), snapshot=make_key("ed25519"))


@pytest.mark.parametrize("role", ["root", "targets", "snapshot"])
def test_an_ordinary_upload_is_little_work_and_each_signature_counts(role):
    files = author().first()
    ordinary = estimated(files)
    assert ordinary < LITTLE_MICROSECONDS
    more = dict(files, **{role: bogus(files[role], make_key(), 30)})
    assert estimated(more) - ordinary > 30 * 64


def test_dearer_keys_make_more_work_of_as_many_bytes():
    files = author().first()
    key = make_key()
    p256 = estimated({"targets": bogus(files["targets"], key, 30, 64)})
    p384 = estimated({"targets": bogus(files["targets"], key, 20, 96)})
    assert p384 > 3 * p256
    assert p384 > LITTLE_MICROSECONDS


def test_what_is_stored_counts_as_far_as_it_is_read():
    files = author().first()
    upload = {"targets": files["targets"]}
    stored = {"root": files["root"], "snapshot": files["snapshot"]}
    large = {"root": files["root"], "snapshot": files["snapshot"] + b" " * 100_000}
    assert estimated(upload) < estimated(upload, stored, root_verified=True) < estimated(upload, stored)
    assert estimated(upload, stored) < LITTLE_MICROSECONDS < estimated(upload, large)
    assert estimated(upload, {**stored, "timestamp": b" " * 100_000}) == estimated(upload, stored)
    disguised = files["root"].replace(b'"sig"', b'"\\u0073ig"')
    assert estimated(upload, {"root": disguised}) >= estimated(upload, {"root": files["root"]})


def test_the_estimate_is_the_sum_of_all_that_is_read_and_verified():
    files = author().first()
    uploads = {role: files[role] for role in ("root", "targets")}
    one = {role: public.cost(Signature("", "ecdsa", b" " * 64), len(files[role])) for role in files}
    assert one["root"] == one["targets"] == 130
    handled = {role: len(data) // 10 for role, data in files.items()}
    read = {role: 2 * sum(data.count(mark) for mark in (b",", b"{", b"[")) for role, data in files.items()}
    # The keys of the previous root have signed an uploaded root, and its own.
    wanted = sum(handled[role] + read[role] for role in uploads) + 2 * one["root"] + one["targets"]
    assert estimated(uploads) == wanted
    targets = handled["targets"] + read["targets"] + one["targets"]
    stored = handled["root"] + read["root"] + handled["snapshot"] + read["snapshot"]
    assert estimated({"targets": files["targets"]}, files, root_verified=True) == targets + stored
    assert estimated({"targets": files["targets"]}, files) == targets + stored + 1000
    assert cost.estimate({RoleName(role): Held(1, data) for role, data in files.items()}, []) == (
        stored + 1000 + handled["targets"] + read["targets"] + 1000
    )
    signed_twice = {"root": bogus(files["root"], make_key(), 2)}
    assert estimated({}, signed_twice) - estimated({}, signed_twice, root_verified=True) == 2000
    # The root before an uploaded one is read too, the targets before uploaded ones are not.
    assert estimated(uploads, uploads) == wanted + handled["root"] + read["root"] + 1000


@pytest.mark.parametrize("spent", ["all that is handled", "all that is uploaded"])
def test_counting_goes_on_at_the_most(spent):
    files = author().first()
    stored = {"root": files["root"]}
    uploads = {"targets": files["targets"]}
    reached = sum(len(data) // 10 for data in files.values() if data in (files["root"], files["targets"]))
    if spent == "all that is uploaded":
        reached = estimated(uploads) + len(files["root"]) // 10
    whole = estimated(uploads, stored)
    held = {RoleName("root"): Held(1, files["root"])}
    assert cost.estimate(held, publish.read(uploads.items()), most=reached) > reached
    assert cost.estimate(held, publish.read(uploads.items()), most=reached - 1) == reached < whole


@pytest.mark.parametrize(
    ("method", "signature_bytes", "payload_bytes", "microseconds"),
    [
        ("ecdsa", 56, 0, 190),
        ("ecdsa", 64, 1 << 20, 130),
        ("ecdsa", 96, 0, 780),
        ("ecdsa", 132, 0, 980),
        ("ecdsa", 63, 0, 30),
        ("rsapss", 256, 0, 67),
        ("rsapss", 1024, 0, 630),
        ("rsapss", 1025, 0, 30),
        ("eddsa", 64, 299, 100),
        ("eddsa", 64, 3000, 110),
        ("eddsa", 63, 3000, 30),
        ("unknown", 64, 3000, 0),
    ],
)
def test_the_cost_of_a_signature(method, signature_bytes, payload_bytes, microseconds):
    assert public.cost(Signature("", method, b" " * signature_bytes), payload_bytes) == microseconds


def test_counting_ends_above_the_most():
    files = author().first()
    whole = estimated(files)
    uploads = publish.read(files.items())
    assert cost.estimate({}, uploads, most=whole) == whole
    assert 0 < cost.estimate({}, uploads, most=0) < cost.estimate({}, uploads, most=whole - 1) <= whole


def test_a_budget_may_be_spent_to_the_last_microsecond():
    budget = cost.VerifyingBudget(10)
    budget.spend(4)
    budget.spend(6)
    budget.spend(0)
    with pytest.raises(InvalidUpdate) as refused:
        budget.spend(1)
    assert str(refused.value) == (
        "the signatures of this upload take too long to verify: remove those that no role needs, or publish fewer "
        "files at once"
    )
    assert refused.value.fault is UploadFault.VALIDATION


def validated(files) -> validation.Plan:
    return publish.validate_files(Gun(GUN), {}, list(files.items()), NOW)


def heavy(files, good: Key, bad: Key, count: int) -> dict[str, bytes]:
    """Every delegation with ``count`` bogus signatures by ``bad`` before the one by ``good`` that makes it valid."""
    return {
        role: bogus(data, bad, count, 96, last=[good.sign(canonical(json.loads(data)["signed"]))])
        if "/" in role
        else data
        for role, data in files.items()
    }


def test_all_files_of_an_upload_share_one_budget(monkeypatch):
    private = ec.generate_private_key(ec.SECP384R1())
    good, bad = make_key(), Key("ecdsa", public_bytes(private), private)
    made = author()
    for number in range(30):
        made.delegate(f"targets/a{number}", good, bad)
    files = made.first()
    del files["snapshot"]
    verified = []
    real = public._identity

    def identity(*arguments):
        verified.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(public, "_identity", identity)
    validated(heavy(files, good, bad, 1))
    assert len(verified) == 2 + 30 * 2
    verified.clear()
    monkeypatch.setattr(cost, "MAX_VERIFYING_MICROSECONDS", 100_000)
    with pytest.raises(InvalidUpdate, match="take too long to verify: remove those") as refused:
        validated(heavy(files, good, bad, 20))
    assert refused.value.fault is UploadFault.VALIDATION
    assert 100 < len(verified) < 100_000 / 700


def test_every_signature_is_paid_for_before_it_is_verified(monkeypatch):
    """Of both roots, parents and delegations, uploaded or stored, of the snapshot, and by bare keys."""
    collection = Collection()
    made = collection.author("client")
    made.delegate("targets/a")
    made.delegate("targets/a/b")
    elsewhere = collection.author("client")
    elsewhere.roles["root"] = Role([make_root_key("elsewhere/*")])
    paid = []
    real = public._identity
    verified = []
    monkeypatch.setattr(cost.VerifyingBudget, "spend", lambda _self, microseconds: paid.append(microseconds))
    monkeypatch.setattr(public, "_identity", lambda *arguments: verified.append(len(paid)) or real(*arguments))

    def signatures(files, current=collection.current):
        paid.clear()
        verified.clear()
        plan = validation.validate(Gun(GUN), current, publish.read(files.items()), NOW)
        assert verified == [*range(1, len(paid) + 1)]
        return len(verified), plan

    files = made.first()
    assert signatures(files, {})[0] == 5
    collection.publish(files)
    assert signatures(made.publish("targets/a/b"))[0] == 5  # root, two parents, itself and the snapshot
    made.rotate("root", make_root_key(GUN, number=1))
    made.rotate("targets", *made.roles["targets"].keys, threshold=1)
    assert signatures({"root": made.publish("root")["root"]})[0] == 3  # the stored root, and two keys of the new one
    held = {RoleName("root"): Held(1, elsewhere.root())}
    elsewhere.rotate("root", make_root_key(GUN, number=2))
    assert signatures(elsewhere.publish("root", "targets"), held)[0] == 4


def test_signatures_that_no_role_asks_for_cost_nothing(monkeypatch):
    stranger, files = make_key(), author().first()
    spent = []
    monkeypatch.setattr(cost.VerifyingBudget, "spend", lambda _self, microseconds: spent.append(microseconds))
    del files["snapshot"]
    validated(files)
    ordinary = sum(spent)
    spent.clear()
    signatures = json.loads(files["targets"])["signatures"]
    validated({"root": files["root"], "targets": bogus(files["targets"], stranger, 99, last=signatures)})
    assert sum(spent) == ordinary


def test_the_budget_is_enough_for_the_largest_honest_upload():
    """As many files as there may be, each signed by six keys on P-384."""
    each = public.cost(Signature("", "ecdsa", bytes(96)), 10_000)
    budget = cost.VerifyingBudget(cost.MAX_VERIFYING_MICROSECONDS)
    for _ in range(publish.MAX_FILES * 6):
        budget.spend(each)
