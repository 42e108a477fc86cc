"""When the served timestamp or snapshot must be renewed, and with what."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from notary.errors import InvalidMetadata, InvalidUpdate, NotFound, UploadFault
from notary.tuf import refresh
from notary.tuf.draft import Lifetimes
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
    assert str(caught.value).endswith(
        "upload a signed snapshot, or publish a root that names the server's snapshot key"
    )
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


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        pytest.param(b"junk", "the stored {} is not metadata: ", id="junk"),
        pytest.param(b"{}", "{}: expected type ", id="empty"),
        pytest.param(sign({"_type": "Mirrors"}, []), "{}: expected type ", id="other"),
    ],
)
@pytest.mark.parametrize("role", [TIMESTAMP, SNAPSHOT, ROOT])
def test_a_file_that_is_not_valid(role: RoleName, data: bytes, fault: str) -> None:
    collection, _ = _published()
    collection.current[role] = Held(1, data)
    with pytest.raises(InvalidMetadata, match="^" + fault.format(role)):
        refresh.stale(collection.current, NOW + FORTNIGHT + MOMENT)


def test_the_server_vouches_for_no_snapshot_that_root_does_not() -> None:
    collection, author = _published()
    author.roles["snapshot"] = Role([make_key()])
    collection.current[SNAPSHOT] = Held(2, author.snapshot(author.stored))
    with pytest.raises(InvalidMetadata, match=r"^the stored snapshot is not signed by the keys that root names"):
        refresh.stale(collection.current, NOW)


@pytest.mark.parametrize(
    ("timestamp_days", "snapshot_days", "now", "timestamp_due", "snapshot_due"),
    [
        pytest.param(4, 8, NOW + FORTNIGHT - timedelta(days=4), None, None, id="at-the-slack-of-the-timestamp"),
        pytest.param(4, 8, NOW + FORTNIGHT - timedelta(days=4) + MOMENT, True, False, id="within-it"),
        pytest.param(4, 1090, NOW + FORTNIGHT - timedelta(days=4) + MOMENT, True, True, id="within-both"),
        pytest.param(0, 1090, NOW + FORTNIGHT, None, None, id="the-snapshot-waits-for-the-timestamp"),
    ],
)
def test_what_is_due_within_its_slack(timestamp_days, snapshot_days, now, timestamp_due, snapshot_due) -> None:
    collection, _ = _published()
    slack = refresh.Slack(timedelta(days=timestamp_days), timedelta(days=snapshot_days))
    due = refresh.stale(collection.current, now, slack)
    if timestamp_due is None:
        assert due is None
    else:
        assert due is not None
        assert (due.timestamp_due, due.snapshot is not None) == (timestamp_due, snapshot_due)
        assert not due.snapshot_expired


def test_a_snapshot_alone_is_due_within_the_slack_of_a_timestamp() -> None:
    collection, author = _published("client")
    author.lifetimes["snapshot"] = timedelta(days=10)
    collection.publish(author.publish("snapshot"))
    slack = refresh.Slack(timedelta(days=2), timedelta(days=5))
    assert slack.snapshot_alone == timedelta(days=2)
    assert refresh.stale(collection.current, NOW + timedelta(days=8), slack) is None
    due = refresh.stale(collection.current, NOW + timedelta(days=8) + MOMENT, slack)
    assert due is not None
    assert (due.timestamp_due, due.snapshot is not None, due.snapshot_expired) == (False, True, False)


@pytest.mark.parametrize(("later", "expired"), [(timedelta(0), False), (MOMENT, True)])
def test_the_moment_of_expiry(later: timedelta, expired: bool) -> None:
    collection = Collection()
    author = collection.author("client")
    author.lifetimes.update(root=timedelta(days=20), snapshot=timedelta(days=20))
    collection.publish(author.first())
    due = refresh.stale(collection.current, NOW + timedelta(days=20) + later)
    assert due is not None
    assert (due.snapshot_expired, due.root_expired, due.snapshot is not None) == (expired, expired, expired)


def test_the_slack_is_a_share_of_the_lifetimes() -> None:
    lifetimes = Lifetimes(timestamp=timedelta(hours=5), snapshot=timedelta(hours=7))
    assert refresh.Slack.of(lifetimes, 0.25) == refresh.Slack(timedelta(minutes=75), timedelta(minutes=105))


def test_new_files_live_as_long_as_is_said() -> None:
    collection, _ = _published()
    now = NOW + SNAPSHOT_LIFE + MOMENT
    lifetimes = Lifetimes(timestamp=timedelta(hours=5), snapshot=timedelta(hours=7))
    due = refresh.stale(collection.current, now, refresh.NO_SLACK, lifetimes)
    assert due is not None
    assert due.snapshot is not None
    assert json.loads(due.snapshot.payload)["expires"] == moment(now + timedelta(hours=7))
    assert json.loads(due.timestamp().payload)["expires"] == moment(now + timedelta(hours=5))


def test_when_the_two_files_expire() -> None:
    collection, _ = _published()
    timestamp, snapshot = collection.current[TIMESTAMP], collection.current[SNAPSHOT]
    found = refresh.expiries(timestamp, snapshot)
    assert found == (NOW + FORTNIGHT, NOW + SNAPSHOT_LIFE)
    assert found.first == NOW + FORTNIGHT
    day = timedelta(days=1)
    assert found.due(refresh.NO_SLACK) == NOW + FORTNIGHT
    assert found.due(refresh.Slack(day, 2 * day)) == NOW + FORTNIGHT - day
    later = refresh.Expiries(NOW + SNAPSHOT_LIFE, NOW + FORTNIGHT)
    assert later.due(refresh.Slack(day, 2 * day)) == NOW + FORTNIGHT - day
    assert later.due(refresh.Slack(2 * day, day)) == NOW + FORTNIGHT - day


def test_files_that_do_not_match_have_expired_long_ago() -> None:
    collection, _ = _published()
    timestamp, snapshot = collection.current[TIMESTAMP], collection.current[SNAPSHOT]
    found = refresh.expiries(timestamp, Held(1, snapshot.data + b" "))
    assert found.first == found.timestamp == found.snapshot < NOW - timedelta(days=365_000)
    assert found.due(refresh.Slack(FORTNIGHT, FORTNIGHT)) == found.first


@pytest.mark.parametrize("role", [TIMESTAMP, SNAPSHOT])
def test_the_expiries_of_what_is_not_valid(role: RoleName) -> None:
    collection, _ = _published()
    collection.current[role] = Held(1, b"junk")
    with pytest.raises(InvalidMetadata, match=f"^the stored {role} is not metadata: "):
        refresh.expiries(collection.current[TIMESTAMP], collection.current[SNAPSHOT])
