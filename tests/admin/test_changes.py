"""``changes``: every record once, in order, also of what is written while it waits."""

from __future__ import annotations

import io
import json

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from notary.admin.cli import parse
from notary.admin.command import Status
from notary.admin.commands import changes
from notary.storage import Update
from notary.tuf.model import TIMESTAMP, Gun
from tests.admin.conftest import admin
from tests.support.migrated import migrated_database
from tests.support.stored import Place

APP, OLD = Gun("example.com/app"), Gun("example.com/old")


async def publish(place, gun: Gun, *versions: int) -> None:
    async with place.store() as store:
        for version in versions:
            await store.publish(gun, [Update(TIMESTAMP, version, f"{gun} {version}".encode())])


async def wait_until(condition) -> None:
    while not condition():
        await deferLater(reactor, 0.02)


@pytest_twisted.ensureDeferred
async def test_what_was_published_and_deleted(place, tmp_path):
    await publish(place, APP, 1, 2)
    await publish(place, OLD, 1)
    async with place.store() as store:
        await store.delete(OLD)
        recorded = await store.changes(None, 0, 10)
    config = place.config(tmp_path)
    outcome = await admin("changes", "--config", config, "--json")
    assert (outcome.status, outcome.err) == (Status.OK, "")
    assert [(one["id"], one["gun"], one["version"], one["sha256"], one["category"]) for one in outcome.records] == [
        (one.id, one.gun, one.version, one.sha256 or None, one.category) for one in recorded
    ]
    assert outcome.records[0]["created"].endswith("Z")
    after = await admin("changes", "--config", config, "--json", "--after", recorded[1].id)
    assert after.records == outcome.records[2:]
    of_one = await admin("changes", "--config", config, "--json", "--gun", APP)
    assert of_one.records == outcome.records[:2]
    newest = await admin("changes", "--config", config, "--json", "--after", -1)
    assert (newest.status, newest.out) == (Status.OK, "")
    plain = await admin("changes", "--config", config)
    assert plain.out.splitlines()[0] == "ID\tCreated\tGUN\tVersion\tSHA256\tCategory"
    assert len(plain.out.splitlines()) == 5


@pytest_twisted.ensureDeferred
async def test_pages_follow_each_other(place, tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "_PAGE_RECORDS", 3)
    await publish(place, APP, *range(1, 8))
    for terminal in (False, True):
        outcome = await admin("changes", "--config", place.config(tmp_path), terminal=terminal)
        assert outcome.out.count("example.com/app") == 7
    outcome = await admin("changes", "--config", place.config(tmp_path), "--json")
    assert [one["version"] for one in outcome.records] == list(range(1, 8))


@pytest_twisted.ensureDeferred
async def test_following_prints_what_is_published_meanwhile(place, tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "_POLL_SECONDS", 0.02)
    await publish(place, APP, 1)
    out, err = io.StringIO(), io.StringIO()
    invocation = parse(["changes", "--config", str(place.config(tmp_path)), "--follow", "--json"])
    running = Deferred.fromCoroutine(invocation.run(reactor, {}, io.StringIO(), out, err))
    await wait_until(lambda: out.getvalue().count("\n") == 1)
    await publish(place, APP, 2)
    await wait_until(lambda: out.getvalue().count("\n") == 2)
    running.cancel()
    assert await running == Status.INTERRUPTED
    assert [json.loads(line)["version"] for line in out.getvalue().splitlines()] == [1, 2]
    assert err.getvalue() == ""


@pytest.fixture
def mysql_place(mariadb):
    yield Place("mysql", migrated_database(mariadb, "server")[1])
    mariadb.ensure()


@pytest_twisted.ensureDeferred
async def test_following_outlasts_a_database_that_is_away(mariadb, mysql_place, tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "_POLL_SECONDS", 0.02)
    place = mysql_place
    await publish(place, APP, 1)
    out, err = io.StringIO(), io.StringIO()
    config = str(place.config(tmp_path))
    running = Deferred.fromCoroutine(
        parse(["changes", "--config", config, "--follow", "--json"]).run(reactor, {}, io.StringIO(), out, err)
    )
    await wait_until(lambda: out.getvalue().count("\n") == 1)
    mariadb.stop()
    await wait_until(lambda: "trying again until it answers" in err.getvalue())
    mariadb.start()
    await publish(place, APP, 2)
    await wait_until(lambda: out.getvalue().count("\n") == 2)
    running.cancel()
    assert await running == Status.INTERRUPTED
    assert err.getvalue().count("\n") == 1


@pytest.mark.parametrize("after", ["-2", "x"])
@pytest_twisted.ensureDeferred
async def test_an_id_that_is_none(place, tmp_path, after):
    outcome = await admin("changes", "--config", place.config(tmp_path), "--after", after)
    assert outcome.status == Status.USAGE


@pytest_twisted.ensureDeferred
async def test_a_collection_that_cannot_be(place, tmp_path):
    assert (await admin("changes", "--config", place.config(tmp_path), "--gun", " x")).status == Status.REFUSED
