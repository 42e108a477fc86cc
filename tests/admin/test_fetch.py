"""``fetch`` into each database: in one step, or not at all."""

from __future__ import annotations

import json

import pytest
import pytest_twisted
from twisted.internet import reactor

from notary.admin import destinations
from notary.admin.command import Status
from notary.admin.destinations import file_name
from notary.errors import InvalidGun
from notary.storage.open import open_inventory
from notary.storage.sql.dialect import PoolSettings
from notary.tuf.model import Gun
from tests.admin.conftest import admin
from tests.support.hostile import publisher, serving
from tests.support.stored import updates

GUN = "example.com/app"


@pytest.fixture
def server():
    with serving(reactor) as made:
        yield made


def fetch(server, *arguments: object):
    return admin("fetch", server.url, *arguments, "--json", environ={"DOCKER_CONFIG": "/nonexistent"})


@pytest_twisted.ensureDeferred
async def test_every_database(place, server, tmp_path):
    made = publisher(GUN)
    server.take(made)
    config = place.config(tmp_path)
    for expected in ("stored", "unchanged"):
        (result,) = (await fetch(server, GUN, "--config", config)).records
        assert (result["gun"], result["outcome"]) == (GUN, expected)
    assert await place.rows(GUN) == sorted((role, 1) for role in made.files)
    made.author.add("v2", b"more")
    made.next("root", "targets")
    server.take(made)
    (result,) = (await fetch(server, GUN, "--config", config)).records
    assert (result["outcome"], result["new"]) == ("stored", 4)
    feed = await place.all("SELECT version, category FROM changefeed WHERE gun == ? ORDER BY id", GUN)
    assert feed == [(1, "update"), (2, "update")]
    assert (await admin("fsck", "--config", config)).status == Status.OK


@pytest_twisted.ensureDeferred
async def test_a_dry_run_stores_nothing(place, server, tmp_path):
    server.take(publisher(GUN))
    outcome = await fetch(server, GUN, "--config", place.config(tmp_path), "--dry-run")
    assert (outcome.status, outcome.records[0]["outcome"]) == (Status.OK, "stored")
    assert await place.rows(GUN) == []


@pytest_twisted.ensureDeferred
async def test_replacing_a_collection(place):
    inventory = await open_inventory(place.backend, place.db_url, reactor, PoolSettings())
    try:
        first, second = publisher(GUN), publisher(GUN)
        for made in (first, second):
            await inventory.replace(Gun(GUN), updates(made.files))
            stored = await inventory.visit(GUN, lambda found: {found.data(file) for file in found.files})
            assert stored == set(made.files.values())
        feed = await place.all("SELECT category FROM changefeed WHERE gun == ? ORDER BY id", GUN)
        assert [category for (category,) in feed] == ["update", "deletion", "update"]
        if place.backend == "mysql":
            with pytest.raises(InvalidGun):
                await inventory.replace(Gun(GUN.upper()), updates(first.files))
    finally:
        await inventory.close()


@pytest_twisted.ensureDeferred
async def test_a_name_that_the_server_does_not_hold(place, server, tmp_path):
    server.take(publisher(GUN))
    config = place.config(tmp_path, repositories={"gun_prefixes": ["docker.io/"]})
    outcome = await fetch(server, GUN, "--config", config)
    assert outcome.status == Status.FOUND
    assert outcome.records[0]["reason"] == "the server holds only GUNs that begin with docker.io/"


# -- archives ---------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_disk_that_is_full(server, tmp_path, monkeypatch):
    server.take(publisher(GUN))
    folder = tmp_path / "archives"
    assert (await fetch(server, GUN, "--archive", folder)).status == Status.OK
    before = (folder / file_name(GUN)).read_bytes()

    def full(_collection, stream):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    made = publisher("example.com/other")
    server.take(made)
    monkeypatch.setattr(destinations.archive, "write", full)
    outcome = await fetch(server, GUN, "example.com/other", "--archive", folder)
    assert outcome.status == Status.STORAGE
    assert "cannot be written (No space left on device)" in outcome.err
    assert [path.name for path in folder.iterdir()] == [file_name(GUN)]
    assert (folder / file_name(GUN)).read_bytes() == before


@pytest_twisted.ensureDeferred
async def test_a_damaged_archive_is_left_alone(server, tmp_path):
    server.take(publisher(GUN))
    folder = tmp_path / "archives"
    await fetch(server, GUN, "--archive", folder)
    path = folder / file_name(GUN)
    path.write_bytes(path.read_bytes()[:-100])
    outcome = await fetch(server, GUN, "--archive", folder)
    assert outcome.records[0]["outcome"] == "refused"
    assert "remove the file to fetch the collection anew" in outcome.records[0]["reason"]


@pytest_twisted.ensureDeferred
async def test_neither_database_nor_archive(server):
    outcome = await fetch(server, GUN)
    assert (outcome.status, "--config: missing" in outcome.err) == (Status.USAGE, True)


def test_names_of_archives():
    guns = ["a/b", "a%2Fb", "..", ".", "é" * 200, "é" * 201, "é" * 200 + "a", "A/b"]
    names = [file_name(gun) for gun in guns]
    assert len(set(names)) == len(guns)
    assert all("/" not in name and len(name) <= 255 and name.endswith(".jsonl") for name in names), names
    assert json.dumps(names).isascii()
