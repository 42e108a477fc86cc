"""``mirror``: what is new or deleted at the peer follows, whatever the peer's changefeed looks like."""

from __future__ import annotations

import io
import random
import re

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from notary.admin.cli import parse
from notary.admin.command import Invocation, Status
from notary.errors import PeerFailed
from notary.peer import client
from notary.peer.client import PeerChange
from notary.peer.mirror import Window
from notary.work.backoff import Backoff
from tests.admin.conftest import admin
from tests.support.hostile import publisher, serving
from tests.support.stored import Place

GUNS = [f"example.com/app{number}" for number in range(4)]


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(client, "BACKOFF", Backoff(first=0.01, most=0.02))


@pytest.fixture
def server():
    with serving(reactor) as made:
        yield made


@pytest.fixture
def copy(tmp_path) -> Place:
    place = Place("sqlite3", str(tmp_path / "server.db"))
    pytest_twisted.blockon(Deferred.fromCoroutine(place.make()))
    place.config(tmp_path)
    return place


def mirror(server, tmp_path, *arguments: object):
    return admin("mirror", server.url, *arguments, "--config", tmp_path / "server.json", "--json",
                 environ={"DOCKER_CONFIG": "/nonexistent"})  # fmt: skip


async def timestamps(place: Place) -> dict[str, int]:
    return dict(await place.all("SELECT gun, MAX(version) FROM tuf_files WHERE role = 'timestamp' GROUP BY gun"))


def forget(server, gun: str) -> None:
    """Delete a collection at the peer."""
    for path in [path for path in server.files if path.startswith(f"/v2/{gun}/")]:
        del server.files[path]
    server.change(gun, 0, "", "deletion")


@pytest_twisted.ensureDeferred
async def test_rounds(server, copy, tmp_path):
    made = {gun: publisher(gun) for gun in GUNS}
    for each in made.values():
        server.take(each)
    metrics = tmp_path / "mirror.prom"
    outcome = await mirror(server, tmp_path, "--metrics-file", metrics)
    assert outcome.status == Status.OK, outcome.err
    assert {record["gun"]: record["outcome"] for record in outcome.records} == dict.fromkeys(GUNS, "stored")
    assert re.search(r"^notary_mirror_due_collections 0$", metrics.read_text(), re.MULTILINE)
    assert re.search(r'^notary_mirror_collections_total{outcome="stored"} 4$', metrics.read_text(), re.MULTILINE)

    made[GUNS[1]].next("targets")
    server.take(made[GUNS[1]])
    forget(server, GUNS[2])
    forget(server, GUNS[3])
    server.take(publisher(GUNS[3]))  # begun anew
    outcome = await mirror(server, tmp_path)
    assert {record["gun"]: record["outcome"] for record in outcome.records} == {
        GUNS[1]: "stored", GUNS[2]: "deleted", GUNS[3]: "stored"
    }  # fmt: skip
    assert await timestamps(copy) == {GUNS[0]: 1, GUNS[1]: 2, GUNS[3]: 1}
    assert (await admin("fsck", "--config", tmp_path / "server.json")).status == Status.OK


@pytest_twisted.ensureDeferred
async def test_without_a_deletion_in_the_feed_nothing_is_deleted(server, copy, tmp_path):
    server.take(publisher(GUNS[0]))
    await mirror(server, tmp_path)
    server.files.clear()
    outcome = await mirror(server, tmp_path)
    assert (outcome.status, outcome.records) == (Status.OK, [])
    assert await timestamps(copy) == {GUNS[0]: 1}


class Following:
    """``mirror --follow`` in this process."""

    def __init__(self, server, tmp_path, *arguments: object) -> None:
        config = ("--config", tmp_path / "server.json", "--follow", "--every", "0.1")
        command = ("mirror", server.url, *arguments, *config)
        invocation = parse([str(each) for each in command])
        assert isinstance(invocation, Invocation)
        self.out, self.err = io.StringIO(), io.StringIO()
        running = invocation.run(reactor, {"DOCKER_CONFIG": "/nonexistent"}, io.StringIO(), self.out, self.err)
        self.ended = Deferred.fromCoroutine(running)

    async def until(self, place: Place, expected: dict[str, int]) -> None:
        for _ in range(200):
            if await timestamps(place) == expected:
                return
            await deferLater(reactor, 0.05)
        raise AssertionError(f"{await timestamps(place)} is not {expected}\n{self.out.getvalue()}{self.err.getvalue()}")

    async def stop(self) -> None:
        self.ended.cancel()
        assert await self.ended == Status.INTERRUPTED


@pytest_twisted.ensureDeferred
async def test_following_a_feed(server, copy, tmp_path):
    following = Following(server, tmp_path)
    made = publisher(GUNS[0])
    server.take(made)
    await following.until(copy, {GUNS[0]: 1})
    made.next("targets")
    server.take(made)
    await following.until(copy, {GUNS[0]: 2})

    # A change that becomes visible after one with a higher number.
    late = publisher(GUNS[1])
    server.take(late)
    hidden = server.changes.pop()
    server.change(GUNS[0], 2, "")
    server.changes[-1]["ID"] = str(int(hidden["ID"]) + 1)
    await deferLater(reactor, 0.3)
    assert await timestamps(copy) == {GUNS[0]: 2}
    server.changes.insert(-1, hidden)
    await following.until(copy, {GUNS[0]: 2, GUNS[1]: 1})

    # The peer is away, and comes back with a shorter feed.
    admit, server.admit = server.admit, lambda request, _: (request.setResponseCode(503), b"away")[1]
    await deferLater(reactor, 0.3)
    server.admit = admit
    del server.changes[1:]
    server.take(publisher(GUNS[2]))
    forget(server, GUNS[0])
    await following.until(copy, {GUNS[1]: 1, GUNS[2]: 1})
    assert "answers with status 503" in following.err.getvalue()
    assert "the changefeed goes backwards" in following.err.getvalue()
    await following.stop()


@pytest_twisted.ensureDeferred
async def test_following_names(server, copy, tmp_path):
    made = publisher(GUNS[0])
    server.take(made)
    following = Following(server, tmp_path, GUNS[0], GUNS[1])
    await following.until(copy, {GUNS[0]: 1})
    made.next("targets")
    server.take(made)
    server.take(publisher(GUNS[1]))
    await following.until(copy, {GUNS[0]: 2, GUNS[1]: 1})
    forget(server, GUNS[0])
    await following.until(copy, {GUNS[1]: 1})
    await following.stop()
    assert "changefeed" not in "".join(server.asked)


# -- the window -------------------------------------------------------------------------------------------------------


def change(number: int) -> PeerChange:
    return PeerChange(number, "a", 1, "", "update")


def test_a_window_misses_nothing_in_any_order():
    chance = random.Random(15)
    for _ in range(50):
        hidden = list(range(1, 300))
        visible: list[int] = []
        window, found = Window(look_back=40), []
        while hidden:
            # A change becomes visible at most 30 numbers after the lowest one that is not visible yet.
            some = chance.sample(range(30), chance.randrange(10))
            visible += [number for number in hidden if number - hidden[0] in some]
            hidden = [number for number in hidden if number not in visible]
            page = [change(number) for number in sorted(visible) if number > window.start]
            window.check(page)
            if page:
                found += [each.id for each in window.new(page)]
        assert sorted(found) == list(range(1, 300))


def test_a_window_notices_a_feed_that_was_set_back():
    window = Window()
    window.check([])
    assert len(window.new([change(1), change(2)])) == 2
    window.check([change(1), change(2)])
    assert window.new([change(1), change(2)]) == []
    with pytest.raises(PeerFailed, match="change 2 is gone"):
        window.check([change(1)])
    window.check([change(1)])
    assert len(window.new([change(1)])) == 1
