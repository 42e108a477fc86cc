"""``gc``: what it removes, what it never removes, and that it gets in nobody's way."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, gatherResults

from notary.admin import findings
from notary.admin.collectable import collectable
from notary.admin.command import Status
from notary.admin.commands import gc
from notary.errors import InvalidMetadata, NotFound
from notary.tuf.model import Gun
from tests.admin.conftest import admin
from tests.support.stored import InMemory, Publisher, updates

GUN = "example.com/team/app"


def history(*rounds: tuple[str, ...]) -> InMemory:
    """A collection with a delegation that was published in full, then in part again and again."""
    publisher = Publisher(GUN)
    publisher.author.delegate("targets/releases")
    stored = InMemory(GUN)
    stored.add(publisher.next())
    for roles in rounds:
        stored.add(publisher.next(*roles))
    return stored


def names(files) -> list[tuple[str, int]]:
    return [(file.role, file.version) for file in files]


def listed(stored: InMemory, role: str, version: int) -> set[str]:
    """The checksums (hex) of all that clients can reach from one file."""
    file = next(each for each in stored.files if (each.role, each.version) == (role, version))
    meta = json.loads(stored.data(file))["signed"]["meta"]
    found = {base64.b64decode(one["hashes"]["sha256"]).hex() for one in meta.values()}
    if role == "timestamp":
        below = [each for each in stored.files if each.role == "snapshot" and each.sha256 in found]
        assert len(below) == 1
        found |= listed(stored, "snapshot", below[0].version)
    return found


def test_what_goes_and_in_which_order():
    stored = history(*[("targets",)] * 4)  # five timestamps, five snapshots, five targets, one releases
    assert names(collectable(stored, 2)) == [
        ("timestamp", 1), ("timestamp", 2), ("timestamp", 3),
        ("snapshot", 1), ("snapshot", 2), ("snapshot", 3),
        ("targets", 1), ("targets", 2), ("targets", 3),
    ]  # fmt: skip
    assert collectable(stored, 5) == []
    assert collectable(stored, 100) == []


def test_what_is_old_but_listed_stays():
    stored = history(("targets",), ("targets",), ("targets/releases",), ("targets/releases",))
    assert ("targets", 3) not in names(collectable(stored, 1)), "listed by the current snapshot"
    assert ("targets", 1) in names(collectable(stored, 1))
    assert ("targets/releases", 1) not in names(collectable(stored, 3)), "listed by the third snapshot from the end"
    assert ("targets/releases", 1) in names(collectable(stored, 2))


def test_renewed_timestamps():
    publisher = Publisher(GUN)
    stored = InMemory(GUN)
    stored.add(publisher.next())
    for _ in range(5):
        publisher.author.bump("timestamp")
        stored.add({"timestamp": publisher.author.timestamp(publisher.files["snapshot"])})
    assert names(collectable(stored, 2)) == [("timestamp", version) for version in (1, 2, 3, 4)]


def test_the_newest_of_a_removed_delegation_stays():
    publisher = Publisher(GUN)
    author = publisher.author
    author.delegate("targets/releases")
    stored = InMemory(GUN)
    for _ in range(3):
        stored.add(publisher.next())
    del author.delegations["targets/releases"], author.stored["targets/releases"]
    for _ in range(3):
        stored.add(publisher.next())
    gone = names(collectable(stored, 1))
    assert ("targets/releases", 3) not in gone
    assert ("targets/releases", 2) in gone


@given(
    st.lists(st.sampled_from([("root",), ("targets",), ("targets/releases",), ("root", "targets")]), max_size=8),
    st.integers(1, 5),
    st.integers(0, 40),
)
@settings(max_examples=40)
def test_nothing_that_is_needed_goes(rounds, keep, stop):
    stored = history(*rounds)
    before = stored.files
    in_order = collectable(stored, keep)
    gone = set(in_order)
    reachable = set()
    for role in ("timestamp", "snapshot"):
        for file in [each for each in before if each.role == role][-keep:]:
            reachable |= {file.sha256} | listed(stored, role, file.version)
    assert not {file.sha256 for file in gone} & reachable
    assert not [file for file in gone if file.role == "root"]
    kept = [file for file in before if file not in gone]
    needless = [
        file
        for file in kept
        if file.role != "root" and file.sha256 not in reachable and file.version < max(
            each.version for each in before if each.role == file.role
        )
    ]  # fmt: skip
    assert needless == [], "all that is not needed goes"
    # It is stopped at any moment: what clients get is whole.
    rest = InMemory(GUN)
    stopped = set(in_order[: stop % (len(gone) + 1)])
    rest.contents = {file: stored.contents[file] for file in before if file not in stopped}
    assert [each for each in findings.check(rest) if each.error] == []


@pytest.mark.parametrize(
    ("role", "error"), [("timestamp", NotFound), ("snapshot", NotFound), ("targets", InvalidMetadata)]
)
def test_a_broken_collection_gives_up_nothing(role, error):
    stored = history(*[("targets",)] * 3)
    for file in [each for each in stored.files if each.role == role]:
        if role != "targets" or file.version == 4:
            del stored.contents[file]
    with pytest.raises(error):
        collectable(stored, 1)


def test_an_old_snapshot_that_cannot_be_read_is_kept():
    stored = history(*[("targets",)] * 3)
    file = next(each for each in stored.files if (each.role, each.version) == ("snapshot", 3))
    del stored.contents[file]
    data = b"{"
    stored.contents[findings.File("snapshot", 3, hashlib.sha256(data).hexdigest(), 1)] = data
    assert ("snapshot", 3) not in names(collectable(stored, 2))
    assert ("snapshot", 2) in names(collectable(stored, 2))


# -- the command ------------------------------------------------------------------------------------------------------


async def grown(place, gun: str = GUN, count: int = 5) -> Publisher:
    publisher = Publisher(gun)
    await place.publish(publisher, *(publisher.next() for _ in range(count)))
    return publisher


@pytest_twisted.ensureDeferred
async def test_the_command(place, tmp_path, monkeypatch):
    monkeypatch.setattr(gc, "BATCH_FILES", 2)  # several transactions a collection
    await grown(place)
    await grown(place, "example.com/other", 1)
    config = place.config(tmp_path)
    dry = await admin("gc", "--keep", 2, "--dry-run", "--json", "--config", config)
    assert [(each["gun"], each["files"], each["removed"]) for each in dry.records] == [(GUN, 9, False)]
    assert (await admin("gc", "--keep", 2, "--config", config)).status == Status.USAGE
    no = await admin("gc", "--keep", 2, "--config", config, answer="\n")
    assert (no.status, len(await place.rows(GUN))) == (Status.REFUSED, 20)
    outcome = await admin("gc", "--keep", 2, "--yes", "--json", "--config", config)
    assert outcome.status == Status.OK
    (record,) = outcome.records
    assert (record["files"], record["bytes"], record["removed"]) == (9, dry.records[0]["bytes"], True)
    kept = [("root", version) for version in range(1, 6)]
    kept += [(role, version) for role in ("snapshot", "targets", "timestamp") for version in (4, 5)]
    assert await place.rows(GUN) == kept
    assert len(await place.rows("example.com/other")) == 4
    assert (await admin("fsck", "--config", config)).status == Status.OK
    again = await admin("gc", "--keep", 2, "--yes", "--json", "--config", config)
    assert (again.status, again.out) == (Status.OK, "")


@pytest_twisted.ensureDeferred
async def test_one_collection_or_some(place, tmp_path):
    guns = ["a/one", "a/two", "b/one"]
    for gun in guns:
        await grown(place, gun, 2)
    config = place.config(tmp_path)
    await admin("gc", "--keep", 1, "--yes", "--gun", "a/two", "--config", config)
    assert [len(await place.rows(gun)) for gun in guns] == [8, 5, 8]
    await admin("gc", "--keep", 1, "--yes", "--prefix", "a/", "--config", config)
    assert [len(await place.rows(gun)) for gun in guns] == [5, 5, 8]
    missing = await admin("gc", "--keep", 1, "--yes", "--gun", "c", "--config", config)
    assert missing.status == Status.MISSING


@pytest_twisted.ensureDeferred
async def test_a_broken_collection_does_not_stop_the_others(place, tmp_path):
    await grown(place, "a")
    await grown(place, "b")
    await place.execute("DELETE FROM tuf_files WHERE gun == ? AND role == ? AND version = ?", "a", "snapshot", 5)
    outcome = await admin("gc", "--keep", 1, "--yes", "--json", "--config", place.config(tmp_path))
    assert outcome.status == Status.FOUND
    assert [(each["gun"], each["files"], bool(each["problem"])) for each in outcome.records] == [
        ("a", 0, True), ("b", 12, False)
    ]  # fmt: skip
    assert len(await place.rows("a")) == 19


@pytest.mark.parametrize("keep", ["0", "-1", "x", None])
@pytest_twisted.ensureDeferred
async def test_how_many_to_keep_must_be_said(server_config, keep):
    outcome = await admin("gc", "--yes", *([] if keep is None else ["--keep", keep]), "--config", server_config)
    assert outcome.status == Status.USAGE
    assert "--keep" in outcome.err


@pytest_twisted.ensureDeferred
async def test_while_somebody_publishes(place, tmp_path):
    publisher = await grown(place)
    config = place.config(tmp_path)

    async def publish() -> None:
        async with place.store() as store:
            for _ in range(20):
                await store.publish(Gun(GUN), updates(publisher.next("targets")))

    async def collect() -> None:
        for _ in range(6):
            outcome = await admin("gc", "--keep", 1, "--yes", "--config", config)
            assert outcome.status == Status.OK, outcome.out + outcome.err

    await gatherResults([Deferred.fromCoroutine(publish()), Deferred.fromCoroutine(collect())])
    assert max(version for role, version in await place.rows(GUN) if role == "timestamp") == 25
    assert (await admin("fsck", "--config", config)).status == Status.OK
