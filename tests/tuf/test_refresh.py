"""When the served timestamp or snapshot must be renewed, and with what."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from notary.errors import InvalidMetadata, InvalidUpdate, NotFound, UploadFault
from notary.tuf import refresh
from notary.tuf.model import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, RoleName
from tests.support.author import Author, Role, file_meta, make_key, moment, sign
from tests.support.collection import NOW, Collection, Held

FORTNIGHT = timedelta(days=14)
SNAPSHOT_LIFE = timedelta(days=3 * 365)
MOMENT = timedelta(microseconds=1)


def _published(snapshot: str = "server") -> tuple[Collection, Author]:
    collection = Collection()
    author = collection.author(snapshot)
    author.delegate("targets/a")
    collection.publish(author.first())
    return collection, author


def test_what_is_fresh_is_left_alone() -> None:
    collection, _ = _published()
    assert refresh.stale(collection.current, NOW) is None
    assert refresh.stale(collection.current, NOW + FORTNIGHT) is None


def test_an_expired_timestamp_is_followed_by_the_next() -> None:
    collection, _ = _published()
    now = NOW + FORTNIGHT + MOMENT
    due = refresh.stale(collection.current, now)
    assert due is not None
    assert (due.snapshot, due.timestamp_due, due.root_expired) == (None, True, False)
    draft = due.timestamp()
    assert (draft.role, draft.version) == (TIMESTAMP, 2)
    assert json.loads(draft.payload) == {
        "_type": "Timestamp",
        "expires": moment(now + FORTNIGHT),
        "meta": {"snapshot": file_meta(collection.current[SNAPSHOT].data)},
        "version": 2,
    }
    collection.current[TIMESTAMP] = Held(2, collection.sign(draft))
    assert refresh.stale(collection.current, now) is None


def test_an_expired_snapshot_is_followed_by_the_next_and_by_a_timestamp() -> None:
    collection, _ = _published()
    before = collection.signed("snapshot")
    now = NOW + SNAPSHOT_LIFE + MOMENT
    due = refresh.stale(collection.current, now)
    assert due is not None
    assert due.snapshot is not None
    assert json.loads(due.snapshot.payload) == before | {"expires": moment(now + SNAPSHOT_LIFE), "version": 2}
    snapshot = collection.sign(due.snapshot)
    collection.current[SNAPSHOT] = Held(2, snapshot)
    collection.current[TIMESTAMP] = Held(2, collection.sign(due.timestamp(snapshot)))
    collection.check()
    assert refresh.stale(collection.current, now) is None


def test_the_snapshot_may_expire_before_the_timestamp() -> None:
    collection, author = _published("client")
    author.lifetimes["snapshot"] = timedelta(days=1)
    collection.publish(author.publish("snapshot"))
    due = refresh.stale(collection.current, NOW + timedelta(days=1) + MOMENT)
    assert due is not None
    assert due.snapshot is not None
    assert not due.timestamp_due


def test_a_snapshot_of_the_client_cannot_be_renewed_but_a_timestamp_over_it_can() -> None:
    collection, author = _published("client")
    author.lifetimes["snapshot"] = timedelta(days=1)
    collection.publish(author.publish("snapshot"))
    due = refresh.stale(collection.current, NOW + timedelta(days=30))
    assert due is not None
    assert due.snapshot is not None
    with pytest.raises(InvalidUpdate) as caught:
        collection.sign(due.snapshot)
    assert (caught.value.fault, caught.value.missing) == (UploadFault.HIERARCHY, "snapshot")
    collection.current[TIMESTAMP] = Held(3, collection.sign(due.timestamp()))
    collection.check()


def test_nothing_is_renewed_after_the_last_version() -> None:
    collection, _ = _published()
    for role in (SNAPSHOT, TIMESTAMP):
        collection.current[role] = Held(2**31 - 1, collection.current[role].data)
    due = refresh.stale(collection.current, NOW + SNAPSHOT_LIFE + MOMENT)
    assert due is not None
    assert due.snapshot is None
    with pytest.raises(InvalidUpdate, match=r"^timestamp: version 2147483647 is stored"):
        due.timestamp()


def test_a_timestamp_without_the_servers_key_cannot_be_renewed() -> None:
    collection, _ = _published()
    collection.keys.clear()
    due = refresh.stale(collection.current, NOW + FORTNIGHT + MOMENT)
    assert due is not None
    with pytest.raises(InvalidUpdate) as caught:
        collection.sign(due.timestamp())
    assert caught.value.fault == UploadFault.ROOT


def test_a_timestamp_over_another_snapshot_is_replaced() -> None:
    collection, author = _published("client")
    author.bump("snapshot")
    collection.current[SNAPSHOT] = Held(2, author.snapshot(author.stored))
    due = refresh.stale(collection.current, NOW)
    assert due is not None
    assert (due.snapshot, due.timestamp_due) == (None, True)
    collection.current[TIMESTAMP] = Held(2, collection.sign(due.timestamp()))
    collection.check()
    assert refresh.stale(collection.current, NOW) is None


def test_new_drafts_are_for_the_keys_that_root_names_now() -> None:
    collection, author = _published()
    for role in ("snapshot", "timestamp"):
        key = make_key()
        collection.keys[key.key_id] = key
        author.rotate(role, key.public_part)
    collection.publish(author.publish("root"))
    due = refresh.stale(collection.current, NOW + SNAPSHOT_LIFE + MOMENT)
    assert due is not None
    assert due.snapshot is not None
    for draft, role in ((due.snapshot, "snapshot"), (due.timestamp(), "timestamp")):
        assert [key.key_id for key in draft.keys] == [author.roles[role].keys[0].key_id]


def test_an_expired_root_is_told_and_stops_nothing() -> None:
    collection = Collection()
    author = collection.author()
    author.lifetimes["root"] = timedelta(days=1)
    collection.publish(author.first())
    due = refresh.stale(collection.current, NOW + FORTNIGHT + MOMENT)
    assert due is not None
    assert due.root_expired
    collection.current[TIMESTAMP] = Held(2, collection.sign(due.timestamp()))
    collection.check()


def test_targets_are_not_looked_at() -> None:
    collection, _ = _published()
    collection.current[TARGETS] = Held(1, b"junk")
    assert refresh.stale(collection.current, NOW + FORTNIGHT + MOMENT) is not None


@pytest.mark.parametrize("role", [TIMESTAMP, SNAPSHOT, ROOT])
def test_a_file_that_is_not_there(role: RoleName) -> None:
    collection, _ = _published()
    del collection.current[role]
    with pytest.raises(NotFound, match=f"no {role}$"):
        refresh.stale(collection.current, NOW + FORTNIGHT + MOMENT)


def test_root_is_not_asked_for_while_nothing_is_due() -> None:
    collection, _ = _published()
    del collection.current[ROOT]
    assert refresh.stale(collection.current, NOW) is None


@pytest.mark.parametrize("data", [b"junk", b"{}", sign({"_type": "Mirrors"}, [])], ids=["junk", "empty", "other"])
@pytest.mark.parametrize("role", [TIMESTAMP, SNAPSHOT, ROOT])
def test_a_file_that_is_not_valid(role: RoleName, data: bytes) -> None:
    collection, _ = _published()
    collection.current[role] = Held(1, data)
    with pytest.raises(InvalidMetadata):
        refresh.stale(collection.current, NOW + FORTNIGHT + MOMENT)


def test_the_server_vouches_for_no_snapshot_that_root_does_not() -> None:
    collection, author = _published()
    author.roles["snapshot"] = Role([make_key()])
    collection.current[SNAPSHOT] = Held(2, author.snapshot(author.stored))
    with pytest.raises(InvalidMetadata, match="not signed by the keys that root names"):
        refresh.stale(collection.current, NOW)
