"""``fsck``: every kind of finding from data that was broken in that way, and nothing from data in order."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_twisted

from notary.admin import findings
from notary.admin.command import Status
from notary.storage.sql.values import UNKNOWN_TIME
from notary.tuf.model import ROOT, TIMESTAMP, Gun
from tests.admin.conftest import admin
from tests.support.author import HARMLESS, INVALID, MALFORMED, UNSIGNED, make_key, make_root_key
from tests.support.stored import InMemory, Place, Publisher

GUN = "example.com/team/app"


def published(rounds: int = 1) -> tuple[Publisher, InMemory]:
    """A collection with two delegations, one below the other, and its history."""
    publisher = Publisher(GUN)
    publisher.author.delegate("targets/releases")
    publisher.author.delegate("targets/releases/eu")
    stored = InMemory(GUN)
    for _ in range(rounds):
        stored.add(publisher.next())
    return publisher, stored


def found(stored: InMemory, feed=None) -> list[tuple[str, str, int]]:
    return [(each.kind, each.role, each.version) for each in findings.check(stored, feed)]


def replace(stored: InMemory, role: str, data: bytes, version: int = 1) -> None:
    """Another content under the same name, with the checksum that fits it."""
    file = next(each for each in stored.files if (each.role, each.version) == (role, version))
    del stored.contents[file]
    changed = findings.File(role, version, hashlib.sha256(data).hexdigest(), len(data))
    stored.contents[changed] = data


def remove(stored: InMemory, role: str, version: int = 1) -> None:
    file = next(each for each in stored.files if (each.role, each.version) == (role, version))
    del stored.contents[file]


def feed_of(stored: InMemory) -> list[findings.FeedEntry]:
    return [findings.FeedEntry(each.version, each.sha256) for each in stored.files if each.role == "timestamp"]


# -- in order ---------------------------------------------------------------------------------------------------------


def test_nothing_is_wrong():
    _, stored = published(3)
    assert found(stored, feed_of(stored)) == []


def test_expiry_is_no_finding():
    publisher = Publisher(GUN)
    stored = InMemory(GUN)
    for role in ("root", "targets", "snapshot", "timestamp"):
        publisher.author.lifetimes[role] = -timedelta(days=2)
    stored.add(publisher.next())
    assert found(stored) == []


@pytest.mark.parametrize("harmless", [pytest.param(each, id=name) for name, each in HARMLESS.items()])
def test_unusual_forms_are_no_finding(harmless):
    publisher = Publisher(GUN)
    author = publisher.author
    author.first()
    made = {role: harmless(author.stored[role]) for role in ("root", "targets")}
    stored = InMemory(GUN)
    stored.add(publisher.stamped({**made, "snapshot": author.snapshot(made)}))
    assert found(stored) == []


def test_gaps_are_allowed_but_in_root():
    publisher, stored = published()
    publisher.author.bump("targets", by=700)
    stored.add(publisher.next("targets"))
    assert found(stored) == []
    publisher.author.bump("root", by=2)
    stored.add(publisher.next("root"))
    assert found(stored) == [("root-gap", "root", 4)]


def test_a_first_root_may_say_2_but_not_3():
    for version, expected in ((2, []), (3, [("root-gap", "root", 3)])):
        publisher = Publisher(GUN)
        publisher.author.versions["root"] = version
        stored = InMemory(GUN)
        stored.add(publisher.next())
        assert found(stored) == expected


def test_rotated_keys_are_followed():
    publisher, stored = published()
    author = publisher.author
    author.rotate("root", make_root_key(GUN))
    stored.add(publisher.next("root"))
    author.rotate("targets", make_key())
    stored.add(publisher.next("root", "targets"))
    author.rotate("snapshot", make_key("ed25519"))
    author.rotate("timestamp", make_key("ed25519"))
    stored.add(publisher.next("root"))
    assert found(stored, feed_of(stored)) == []


# -- broken -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [pytest.param(each, id=name) for name, each in MALFORMED.items()])
@pytest.mark.parametrize("role", ["root", "targets", "targets/releases", "snapshot", "timestamp"])
def test_malformed(role, damage):
    _, stored = published()
    data = stored.data(next(each for each in stored.files if each.role == role))
    replace(stored, role, damage(data))
    assert ("malformed", role, 1) in found(stored)


@pytest.mark.parametrize(
    "edit", [pytest.param(INVALID[name], id=name) for name in ("wrong type", "type missing", "version 0")]
)
def test_a_well_signed_file_that_is_not_metadata_of_its_role(edit):
    publisher, stored = published()
    author = publisher.author
    for role, data in (("root", author.root(edit=edit)), ("targets", author.targets(edit=edit))):
        replace(stored, role, data)
        assert ("malformed", role, 1) in found(stored)


@pytest.mark.parametrize("damage", [pytest.param(each, id=name) for name, each in UNSIGNED.items()])
def test_signatures_that_are_not_good(damage):
    publisher = Publisher(GUN)
    author = publisher.author
    author.delegate("targets/releases")
    author.first()
    for role in ("targets", "targets/releases"):
        made = {**author.stored, role: damage(author.stored[role])}
        stored = InMemory(GUN)
        stored.add({**made, "snapshot": (snapshot := author.snapshot(made)), "timestamp": author.timestamp(snapshot)})
        kinds = {kind for kind, where, _ in found(stored) if where == role}
        assert kinds & {"signature", "version"}, found(stored)
    made = {**author.stored, "root": damage(author.stored["root"])}
    stored = InMemory(GUN)
    stored.add({**made, "snapshot": (snapshot := author.snapshot(made)), "timestamp": author.timestamp(snapshot)})
    assert {kind for kind, where, _ in found(stored) if where == "root"} & {"root-chain", "version", "root-gap"}
    for role in ("snapshot", "timestamp"):
        made = dict(author.stored)
        made["snapshot"] = damage(made["snapshot"]) if role == "snapshot" else made["snapshot"]
        stamp = author.timestamp(made["snapshot"])
        stored = InMemory(GUN)
        stored.add({**made, "timestamp": damage(stamp) if role == "timestamp" else stamp})
        assert any(where == role for _, where, _ in found(stored)), (role, found(stored))


def test_a_threshold_that_is_not_met():
    publisher = Publisher(GUN)
    keys = [make_key(), make_key()]
    publisher.author.delegate("targets/releases", *keys, threshold=2)
    publisher.author.first()
    made = {
        **publisher.author.stored,
        "targets/releases": publisher.author.targets("targets/releases", signers=keys[:1]),
    }
    stored = InMemory(GUN)
    stored.add(publisher.stamped({**made, "snapshot": publisher.author.snapshot(made)}))
    assert found(stored) == [("signature", "targets/releases", 1)]


def test_a_role_whose_keys_were_rotated_without_it():
    publisher, stored = published()
    publisher.author.rotate("targets", make_key())
    stored.add(publisher.next("root"))
    assert found(stored) == [("signature", "targets", 1)]


def test_a_root_that_its_predecessor_did_not_sign():
    publisher, stored = published()
    publisher.author.rotate("root", make_root_key(GUN))
    publisher.author.retired.clear()
    stored.add(publisher.next("root"))
    stored.add(publisher.next("root"))
    assert found(stored) == [("root-chain", "root", 2)]


def test_a_root_for_somebody_else():
    other = Publisher("example.com/other")
    stored = InMemory(GUN)
    stored.add(other.next())
    assert ("root-chain", "root", 1) in found(stored)


@pytest.mark.parametrize("role", ["root", "targets", "targets/releases", "snapshot", "timestamp"])
def test_missing(role):
    _, stored = published()
    remove(stored, role)
    assert ("missing", role, 0) in found(stored)


def test_the_missing_end_of_a_history():
    """The newest version of each role is gone, as after an incomplete restore."""
    for role in ("root", "targets", "snapshot", "targets/releases"):
        _, stored = published(2)
        remove(stored, role, 2)
        assert ("missing", role, 0) in found(stored)


def test_a_missing_root_in_between():
    _, stored = published(3)
    remove(stored, "root", 2)
    assert found(stored) == [("root-gap", "root", 3)]


def test_a_checksum_that_does_not_fit():
    publisher, stored = published()
    file = next(each for each in stored.files if each.role == "targets")
    stored.contents[file] = publisher.author.targets(edit=lambda signed: signed.update(more=1))
    assert found(stored) == [("checksum", "targets", 1)]


def test_a_file_under_another_version():
    publisher, stored = published()
    publisher.author.bump("targets", by=4)
    data = publisher.author.targets()
    stored.contents[findings.File("targets", 2, hashlib.sha256(data).hexdigest(), len(data))] = data
    assert found(stored) == [("version", "targets", 2), ("unlisted", "targets", 2)]


def test_no_checksum():
    _, stored = published()
    for file in stored.files:
        data = stored.contents.pop(file)
        stored.contents[findings.File(file.role, file.version, None, file.size)] = data
    assert {kind for kind, _, _ in found(stored)} == {"no-checksum"}
    assert not any(each.error for each in findings.check(stored))


def test_a_delegation_that_was_removed():
    publisher, stored = published()
    author = publisher.author
    del author.delegations["targets/releases/eu"], author.stored["targets/releases/eu"]
    stored.add(publisher.next("targets/releases"))
    assert found(stored) == [("orphan", "targets/releases/eu", 1)]


def test_a_delegation_that_is_listed_still():
    publisher, stored = published()
    del publisher.author.delegations["targets/releases/eu"]
    stored.add(publisher.next("targets/releases"))
    assert found(stored) == [("undelegated", "targets/releases/eu", 1)]


def test_a_newer_version_that_nobody_gets():
    publisher, stored = published()
    publisher.author.bump("targets")
    stored.add({"targets": publisher.author.targets()})
    assert found(stored) == [("unlisted", "targets", 2)]


def test_names():
    _, stored = published()
    stored.gun = "a*b"
    assert found(stored) == [("name", "", 0)]
    _, stored = published()
    stored.contents[findings.File("Targets", 1, None, 2)] = b"{}"
    assert ("name", "Targets", 1) in found(stored)


def test_the_changefeed():
    _, stored = published(3)
    feed = feed_of(stored)
    assert found(stored, feed[2:]) == [], "what is older may be gone from it"
    assert found(stored, feed[:2]) == [("feed-missing", "timestamp", 3)]
    assert found(stored, [*feed, findings.FeedEntry(4, "ab" * 32)]) == [("feed-ahead", "timestamp", 4)]
    changed = [*feed[:2], findings.FeedEntry(3, "ab" * 32)]
    assert found(stored, changed) == [("feed-ahead", "timestamp", 3)]
    assert found(InMemory(GUN), feed) == [("feed-ahead", "timestamp", number) for number in (1, 2, 3)]
    remove(stored, "timestamp", 1)
    assert found(stored, feed) == [], "an old one may have been collected"


def test_every_kind_is_found_by_some_test():
    source = Path(__file__).read_text()
    assert [kind for kind in findings.KINDS if f'"{kind}"' not in source] == []


# -- the command ------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_command_on_data_in_order(place, tmp_path):
    for gun in (GUN, "example.com/other"):
        publisher = Publisher(gun)
        publisher.author.delegate("targets/releases")
        await place.publish(publisher, publisher.next(), publisher.next(), publisher.next("targets"))
    deleted = Publisher("example.com/deleted")
    await place.publish(deleted)
    await admin("repos", "delete", deleted.gun, "--yes", "--config", place.config(tmp_path))
    outcome = await admin("fsck", "--config", place.config(tmp_path), "--json")
    assert (outcome.status, outcome.out, outcome.err) == (Status.OK, "", "")
    outcome = await admin("fsck", "--config", place.config(tmp_path))
    assert outcome.err == "3 collections checked: 0 errors, 0 notes\n"


@pytest_twisted.ensureDeferred
async def test_the_command_on_broken_data(place, tmp_path):
    made = [Publisher(f"example.com/{letter}") for letter in "abcde"]
    for publisher in made:
        await place.publish(publisher, publisher.next(), publisher.next())
    a, b, c, d, _ = (publisher.gun for publisher in made)
    where = "WHERE gun == ? AND role == ? AND version = ?"
    await place.execute(f"UPDATE tuf_files SET data = ? {where}", b'{"a"', a, "targets", 1)
    await place.execute(f"DELETE FROM tuf_files {where}", b, "snapshot", 2)
    await place.execute("DELETE FROM tuf_files WHERE gun == ?", c)
    await place.execute(f"UPDATE tuf_files SET sha256 = NULL {where}", d, "root", 1)
    outcome = await admin("fsck", "--config", place.config(tmp_path), "--json")
    assert outcome.status == Status.FOUND
    names = ("gun", "level", "finding", "role", "version")
    assert [tuple(each[name] for name in names) for each in outcome.records] == [
        (a, "error", "checksum", "targets", 1),
        (a, "error", "malformed", "targets", 1),
        (b, "error", "missing", "snapshot", None),
        (c, "error", "feed-ahead", "timestamp", 1),
        (c, "error", "feed-ahead", "timestamp", 2),
        (d, "note", "no-checksum", "root", 1),
    ]  # fmt: skip
    assert all(each["meaning"] and each["remedy"] for each in outcome.records)
    config = place.config(tmp_path)
    assert (await admin("fsck", "--gun", d, "--config", config)).status == Status.OK, "notes are no errors"
    assert (await admin("fsck", "--gun", "nobody", "--config", config)).status == Status.MISSING
    assert (await admin("fsck", "--gun", c, "--config", config)).status == Status.FOUND
    assert (await admin("fsck", "--prefix", "example.com/e", "--config", config)).status == Status.OK
    plain = await admin("fsck", "--config", config)
    assert f"{b}\tERROR missing\tsnapshot\t-\ttimestamp version 2 lists checksum " in plain.out
    assert plain.err == "5 collections checked: 5 errors, 1 note\n"
    assert plain.out.count(findings.KINDS["missing"].meaning) == 1


@pytest_twisted.ensureDeferred
async def test_rows_of_the_wrong_type(server_config, tmp_path):
    """SQLite takes anything in any column."""
    place = Place("sqlite3", str(tmp_path / "server.db"))
    good, bad = Publisher("example.com/good"), Publisher("example.com/bad")
    for publisher in (good, bad):
        await place.publish(publisher)
    await place.execute("UPDATE tuf_files SET version = 'x' WHERE gun = ? AND role = 'targets'", bad.gun)
    outcome = await admin("fsck", "--config", server_config, "--json")
    assert [(each["gun"], each["finding"]) for each in outcome.records] == [(bad.gun, "unreadable")]
    assert outcome.status == Status.FOUND


@pytest_twisted.ensureDeferred
async def test_what_a_row_says_is_data(server_config, tmp_path):
    place = Place("sqlite3", str(tmp_path / "server.db"))
    await place.publish(Publisher(GUN))
    odd = json.dumps("\x1b]0;title\x07")
    await place.execute("UPDATE tuf_files SET role = ? WHERE role = 'targets'", odd)
    outcome = await admin("fsck", "--config", server_config)
    assert ("\x1b" in outcome.out, outcome.status) == (False, Status.FOUND)


# -- times ------------------------------------------------------------------------------------------------------------

NO_TIMES = {
    "sqlite3": ["NULL", "'soon'", "''", "17"],
    "mysql": ["NULL", "'0000-00-00 00:00:00'"],
    "postgres": ["NULL", "'infinity'", "'0001-01-01 00:00:00'", "'0044-03-15 BC'"],
}
"""What stands for a time where none was written, as SQL; Harbor's migrator writes the year 1 for MySQL's zeros."""


@pytest.mark.parametrize("number", range(4))
@pytest_twisted.ensureDeferred
async def test_rows_without_a_time(place: Place, tmp_path: Path, number):
    value = NO_TIMES[place.backend][number % len(NO_TIMES[place.backend])]
    publisher = Publisher(GUN)
    await place.publish(publisher)
    await place.execute(f"UPDATE tuf_files SET created_at = {value}, updated_at = {value} WHERE role = 'root'")
    await place.execute(f"UPDATE tuf_files SET created_at = {value} WHERE role = 'timestamp'")
    await place.execute(f"UPDATE changefeed SET created_at = {value}")
    gun, digest = Gun(GUN), hashlib.sha256(publisher.files["root"]).hexdigest()
    async with place.store() as store:
        for stored in (
            (await store.current(gun, [ROOT]))[ROOT],
            await store.by_version(gun, ROOT, 1),
            await store.by_checksum(gun, ROOT, digest),
        ):
            assert (stored.data, stored.modified) == (publisher.files["root"], UNKNOWN_TIME)
        (change,) = await store.changes(None, None, 10)
        assert (change.version, change.created) == (1, UNKNOWN_TIME)
    config = place.config(tmp_path)
    outcome = await admin("fsck", "--config", config, "--json")
    assert outcome.status == Status.OK
    assert [(each["finding"], each["role"], each["version"]) for each in outcome.records] == [
        ("no-time", "root", 1),
        ("no-time", "timestamp", 1),
        ("no-time", "timestamp", 1),
    ]
    mended = await admin("fsck", "--config", config, "--mend-times")
    assert mended.status == Status.OK
    assert "0 notes; 3 rows given a time" in mended.err
    assert (await admin("fsck", "--config", config, "--json")).records == []
    async with place.store() as store:
        found = await store.current(gun, [ROOT, TIMESTAMP])
        (change,) = await store.changes(None, None, 10)
        assert found[ROOT].data == publisher.files["root"]
        times = [change.created, found[ROOT].modified, found[TIMESTAMP].modified]
        assert all(datetime.now(UTC) - each < timedelta(hours=1) for each in times)
