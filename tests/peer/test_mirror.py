"""``mirror``: what is new or deleted at the peer follows, with any form of the peer's changefeed."""

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
from notary.peer import client, fetch
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


# -- every state ------------------------------------------------------------------------------------------------------


async def stored(place: Place, gun: str) -> dict[tuple[str, int], bytes]:
    found = await place.all("SELECT role, version, data FROM tuf_files WHERE gun = ?", gun)
    return {(role, version): bytes(data) for role, version, data in found}


async def feed(place: Place, gun: str) -> list[tuple[str, int, str]]:
    return await place.all("SELECT category, version, sha256 FROM changefeed WHERE gun = ? ORDER BY id", gun)


def served(server, gun: str) -> dict[tuple[str, int], bytes]:
    """All versions of all roles that the peer serves."""
    base = f"/v2/{gun}/_trust/tuf/"
    found = {}
    for path, data in server.files.items():
        name = re.fullmatch(r"([0-9]+)\.(.+)\.json", path.removeprefix(base))
        if path.startswith(base) and name:
            found[name[2], int(name[1])] = data
    return found


def updates_of(server, gun: str) -> list[tuple[str, int, str]]:
    return [(one["Category"], one["Version"], one["SHA256"]) for one in server.changes if one["GUN"] == gun]


def live_on(server, made) -> None:
    """Four more states: of targets, of a delegation, of a rotated root, and of a renewal alone."""
    made.next("targets")
    server.take(made)
    made.next("targets/a", "targets/a/b")
    server.take(made)
    made.next()
    server.take(made)
    made.stamped({"snapshot": made.files["snapshot"]})
    server.take(made)


@pytest_twisted.ensureDeferred
async def test_no_state_is_missed(server, copy, tmp_path):
    made = publisher(GUNS[0])
    server.take(made)
    await mirror(server, tmp_path)
    live_on(server, made)
    metrics = tmp_path / "mirror.prom"
    (record,) = (await mirror(server, tmp_path, "--metrics-file", metrics)).records
    assert (record["outcome"], record["states"], record["missed"], record["remarks"]) == ("stored", 4, 0, "4 states")
    assert await stored(copy, GUNS[0]) == served(server, GUNS[0])
    assert await feed(copy, GUNS[0]) == updates_of(server, GUNS[0])
    assert re.search(r"^notary_mirror_states_total 4$", metrics.read_text(), re.MULTILINE)
    assert re.search(r"^notary_mirror_missed_states_total 0$", metrics.read_text(), re.MULTILINE)
    assert (await admin("fsck", "--config", tmp_path / "server.json")).status == Status.OK
    # names that are asked for follow in the same way
    live_on(server, made)
    (record,) = (await mirror(server, tmp_path, GUNS[0])).records
    assert (record["states"], record["missed"]) == (4, 0)
    assert await feed(copy, GUNS[0]) == updates_of(server, GUNS[0])


@pytest_twisted.ensureDeferred
async def test_of_a_collection_that_is_not_stored_the_current_state_is_taken(server, copy, tmp_path):
    made = publisher(GUNS[0])
    server.take(made)
    live_on(server, made)
    (record,) = (await mirror(server, tmp_path)).records
    assert (record["states"], record["missed"]) == (1, 0)
    assert await feed(copy, GUNS[0]) == updates_of(server, GUNS[0])[-1:]


@pytest_twisted.ensureDeferred
async def test_of_a_collection_that_begins_meanwhile_all_states_are_taken(server, copy, tmp_path):
    old = publisher(GUNS[0])
    server.take(old)
    following = Following(server, tmp_path)
    await following.until(copy, {GUNS[0]: 1})
    # all at once, for the mirror
    admit, server.admit = server.admit, lambda request, _: (request.setResponseCode(503), b"away")[1]
    live_on(server, old)
    forget(server, GUNS[0])
    new, again = publisher(GUNS[1]), publisher(GUNS[0])
    for made in (new, again):
        server.take(made)
        live_on(server, made)
    await deferLater(reactor, 0.3)
    server.admit = admit
    await following.until(copy, {GUNS[0]: 5, GUNS[1]: 5})
    await following.stop()
    for gun in GUNS[:2]:
        assert await stored(copy, gun) == served(server, gun)
        last = updates_of(server, gun)[-5:]
        assert (await feed(copy, gun))[-5:] == last


LONG = b"x" * ((1 << 20) - 100)


@pytest.mark.parametrize(
    ("lies", "taken", "missed"),
    [
        pytest.param({"3.timestamp": lambda _, __: None}, 2, 2, id="old-versions-are-gone"),
        pytest.param({"3.timestamp": lambda _, __: b"<html>"}, 3, 1, id="html"),
        pytest.param({"2.timestamp": lambda _, __: LONG, "3.timestamp": lambda _, __: LONG}, 2, 2, id="long"),
        pytest.param({"4.timestamp": "3.timestamp"}, 3, 1, id="an-older-one"),
        pytest.param({"4.timestamp": "timestamp"}, 3, 1, id="a-newer-one"),
        pytest.param({"4.timestamp": "4.snapshot"}, 3, 1, id="another-role"),
        pytest.param({"3.timestamp": lambda _, data: data.replace(b'"sig":"', b'"sig":"AAAA')}, 3, 1, id="not-signed"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_state_that_cannot_be_had_is_passed_over(server, copy, tmp_path, lies, taken, missed):
    made = publisher(GUNS[0])
    server.take(made)
    await mirror(server, tmp_path)
    live_on(server, made)
    for name, lie in lies.items():
        if isinstance(lie, str):  # another file in its place
            data = server.files[f"/v2/{GUNS[0]}/_trust/tuf/{lie}.json"]
            server.lies[name] = lambda _, __, data=data: data
        else:
            server.lies[name] = lie
    (record,) = (await mirror(server, tmp_path)).records
    assert (record["outcome"], record["states"], record["missed"]) == ("stored", taken, missed)
    assert "before it could not be had" in record["remarks"]
    assert await timestamps(copy) == {GUNS[0]: 5}
    assert (await admin("fsck", "--config", tmp_path / "server.json")).status == Status.OK


@pytest.mark.parametrize("bound", ["MAX_STATES", "MAX_HISTORY_BYTES", "MAX_HISTORY_MICROSECONDS", "MAX_BAD_STATES"])
@pytest_twisted.ensureDeferred
async def test_the_work_for_one_collection_is_bounded(server, copy, tmp_path, monkeypatch, bound):
    made = publisher(GUNS[0])
    server.take(made)
    await mirror(server, tmp_path)
    for _ in range(2):
        live_on(server, made)
    taken, values = {
        "MAX_STATES": (3, 2),
        "MAX_HISTORY_BYTES": (2, 1 << 20),
        "MAX_HISTORY_MICROSECONDS": (2, 0),
        "MAX_BAD_STATES": (1, 1),
    }[bound]
    if bound == "MAX_BAD_STATES":
        for version in (2, 3):
            server.lies[f"{version}.timestamp"] = lambda _, __: b"{}"
    monkeypatch.setattr(fetch, bound, values)
    (record,) = (await mirror(server, tmp_path)).records
    assert (record["states"], record["states"] + record["missed"]) == (taken, 8)
    assert await timestamps(copy) == {GUNS[0]: 9}


@pytest_twisted.ensureDeferred
async def test_a_state_that_the_peer_fails_to_give_does_not_hold_up_the_current_one(server, copy, tmp_path):
    made = publisher(GUNS[0])
    server.take(made)
    following = Following(server, tmp_path)
    await following.until(copy, {GUNS[0]: 1})

    def broken(request, _):
        request.setResponseCode(500)
        return b"broken"

    server.lies = {"2.timestamp": broken}
    live_on(server, made)
    await following.until(copy, {GUNS[0]: 5})
    await following.stop()
    assert "answers with status 500" in following.out.getvalue()
    assert f"{GUNS[0]}: stored" in following.out.getvalue()


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
