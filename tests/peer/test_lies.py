"""A server that lies: one line says what is wrong, that collection stays as it is, and the others are fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from notary.admin.command import Status
from notary.peer import client, http, walk
from notary.work.backoff import Backoff
from tests.admin.conftest import admin
from tests.support.author import make_key, make_root_key, setting
from tests.support.hostile import NOT_DONE_YET, Lie, NotaryServer, publisher, serving
from tests.support.peers import free_port
from tests.support.stored import Place, Publisher

GUN = "example.com/app"
OTHER = "example.com/other"


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """Retries and measurements without long waits."""
    monkeypatch.setattr(client, "BACKOFF", Backoff(first=0.01, most=0.02))
    monkeypatch.setattr(http, "LOOK_SECONDS", 0.2)


@pytest.fixture
def server_config(tmp_path):
    """The configuration of a server on an empty SQLite database."""
    place = Place("sqlite3", str(tmp_path / "server.db"))
    pytest_twisted.blockon(Deferred.fromCoroutine(place.make()))
    return place.config(tmp_path)


@pytest.fixture
def server():
    with serving(reactor) as made:
        yield made


def fetch(server: NotaryServer, config, *arguments: object):
    return admin(
        "fetch", server.url, *arguments, "--config", config, "--json", "--timeout", "1",
        environ={"DOCKER_CONFIG": "/nonexistent"},
    )  # fmt: skip


async def rows(config) -> list[tuple]:
    place = Place("sqlite3", str(config.parent / "server.db"))
    return sorted(await place.all("SELECT gun, role, version, data FROM tuf_files"))


# -- lies about a file ------------------------------------------------------------------------------------------------


def changed(made: Publisher) -> dict[str, bytes]:
    made.author.add("v2", b"more")
    return made.next("root", "targets", "targets/a", "targets/a/b")


def replaced(**files: Callable[[Publisher], bytes]) -> Callable[[NotaryServer, Publisher], None]:
    """Publish a next version in which some files are other ones, and everything that lists them follows."""

    def lie(server: NotaryServer, made: Publisher) -> None:
        author = made.author
        author.bump("root", "targets", "targets/a", "targets/a/b", "snapshot")
        roles = ("root", "targets", "targets/a", "targets/a/b")
        names = {role.replace("/", "_"): role for role in (*roles, "snapshot", "timestamp")}
        special = {names[name]: make for name, make in files.items()}
        made_now = {role: author.root() if role == "root" else author.targets(role) for role in roles}
        made_now |= {role: special[role](made) for role in roles if role in special}
        made.files.update(made_now)
        made.files["snapshot"] = author.snapshot(made_now)
        if "snapshot" in special:
            made.files["snapshot"] = special["snapshot"](made)
        author.bump("timestamp")
        made.files["timestamp"] = author.timestamp(made.files["snapshot"])
        if "timestamp" in special:
            made.files["timestamp"] = special["timestamp"](made)
        server.take(made)

    return lie


def served(start: str, lie: Lie) -> Callable[[NotaryServer, Publisher], None]:
    """Serve an honest next version, but for one file of this collection."""

    def setup(server: NotaryServer, made: Publisher) -> None:
        changed(made)
        server.take(made)
        server.lies[start] = lambda request, data: lie(request, data) if GUN.encode() in request.path else data

    return setup


def redirected(request, _data):
    request.redirect(request.path)
    return b""


def endless(request, _data):
    request.setHeader("Content-Length", str(3 << 30))
    request.write(b"x" * 1000)
    return NOT_DONE_YET


def unannounced(request, _data):
    def write() -> None:
        if request.channel is not None and not request._disconnected:
            request.write(b"x" * (1 << 16))
            reactor.callLater(0, write)

    write()
    return NOT_DONE_YET


def slow(request, _data):
    request.write(b"{")
    return NOT_DONE_YET


def silent(_request, _data):
    return NOT_DONE_YET


def head_without_end(request, _data):
    request.channel.transport.write(b"HTTP/1.1 200 OK\r\n" + b"X-Filler: y\r\n" * 20_000)
    return NOT_DONE_YET


def compressed(request, data):
    request.setHeader("Content-Encoding", "gzip")
    return data


def failing(request, _data):
    request.setResponseCode(500)
    return b"oops"


def rollback(server: NotaryServer, made: Publisher) -> None:
    old = Publisher(GUN)
    old.author = made.author
    files = dict(made.files)
    changed(made)
    server.take(made)
    made.files = files


def other_history(server: NotaryServer, _made: Publisher) -> None:
    stranger = publisher(GUN)
    server.take(stranger)


def gap(server: NotaryServer, made: Publisher) -> None:
    changed(made)
    server.take(made)
    changed(made)
    server.take(made)
    server.lies["2.root"] = lambda request, data: None if GUN.encode() in request.path else data


def forged_link(server: NotaryServer, made: Publisher) -> None:
    made.author.rotate("root", make_root_key(GUN))
    made.author.retired.clear()
    changed(made)
    server.take(made)


def other_collection(server: NotaryServer, made: Publisher) -> None:
    stranger = publisher("example.org/else")
    for _ in range(2):
        changed(stranger)
    for path in list(server.files):
        if f"/{GUN}/" in path:
            del server.files[path]
    renamed = Publisher(GUN)
    renamed.files = stranger.files
    server.take(renamed)


def targets_of_another(made: Publisher) -> bytes:
    stranger = publisher("example.org/else")
    stranger.author.bump("targets", by=2)
    return stranger.author.targets()


def many_delegations(made: Publisher) -> bytes:
    def edit(signed):
        (one, *_) = signed["meta"].values()
        signed["meta"] |= {f"targets/d{number}": one for number in range(10_000)}

    return made.author.snapshot(dict(made.files), edit=edit)


def loop(made: Publisher) -> bytes:
    key = make_key()

    def edit(signed):
        signed["delegations"]["keys"][key.key_id] = key.to_json()
        signed["delegations"]["roles"].append(
            {"keyids": [key.key_id], "threshold": 1, "name": "targets/a", "paths": [""]}
        )

    return made.author.targets("targets/a/b", edit=edit)


LIES = {
    "rollback": (rollback, "timestamp: the server has version 1, and version 2 is stored"),
    "another collection of the same name": (other_history, "timestamp: the server has another version 1"),
    "wrong hash": (served("targets.", lambda _, data: data[:-1] + b" "), "targets: its content does not match"),
    "too long": (served("targets.", lambda _, data: data + b" " * 9), "bytes; at most"),
    "too short": (served("targets.", lambda _, data: data[:-9]), "targets: its content does not match"),
    "wrong length": (
        replaced(snapshot=lambda made: made.author.snapshot(
            made.files, edit=setting("meta", "targets", "length", to=9))),
        "bytes; at most 9",
    ),
    "a role of another collection": (replaced(targets=targets_of_another), "targets: it has 0 valid signature(s)"),
    "files of another collection": (other_collection, "common name 'example.org/else'"),
    "gap in the roots": (gap, "root: the server has no version 2, so nothing leads from the stored version 1"),
    "forged root": (forged_link, "root: version 2 does not follow version 1: root: it has 0 valid signature(s)"),
    "root under a wrong version": (
        lambda server, made: (changed(made), server.take(made), changed(made), server.take(made),
                              server.lies.update({"2.root": lambda _, data: made.files["root"]})),
        "root: asked for version 2, the server sends version 3",
    ),
    "threshold not met": (
        replaced(root=lambda made: made.author.root(edit=setting("roles", "targets", "threshold", to=2))),
        "targets: it has at most 1 valid signature(s) by the keys that root names for it; 2 needed",
    ),
    "unsigned timestamp": (
        replaced(timestamp=lambda made: made.author.timestamp(made.files["snapshot"], signers=[make_key()])),
        "timestamp: it has 0 valid signature(s)",
    ),
    "unsigned snapshot": (
        replaced(snapshot=lambda made: made.author.snapshot(made.files, signers=[make_key()])),
        "snapshot: it has 0 valid signature(s)",
    ),
    "older targets in a newer snapshot": (
        replaced(targets=lambda made: made.author.targets(edit=setting("version", to=1))),
        "targets: the server has another version 1",
    ),
    "endless redirects": (served("timestamp", redirected), "more than 5 redirects"),
    "a body of 3 GB": (served("timestamp", endless), "the answer has 3221225472 bytes; at most 1048576"),
    "a body without end": (served("timestamp", unannounced), "the answer has more than 1048576 bytes"),
    "one byte a second": (served("targets.", slow), "the answer comes at less than 1000 bytes a second"),
    "no answer": (served("targets.", silent), "no answer within 1 seconds"),
    "a head without end": (served("targets.", head_without_end), "http://127.0.0.1:"),
    "compressed": (served("targets.", compressed), "the answer is compressed"),
    "HTML with 200": (served("timestamp", lambda *_: b"<html>Sign in</html>"), "timestamp: not JSON"),
    "not UTF-8": (served("timestamp", lambda *_: b'{"signed": "\xff"}'), "timestamp: not UTF-8"),
    "a delegation loop": (replaced(targets_a_b=loop), "targets/a/b: cannot delegate to 'targets/a'"),
    "10,000 delegations": (replaced(snapshot=many_delegations), "snapshot: it lists 10004 roles; at most 1000"),
    "a delegation that is not there": (
        served("targets/a.", lambda *_: None), "targets/a: snapshot lists the checksum"
    ),
    "status 500": (served("targets.", failing), "the server answers with status 500"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
@pytest_twisted.ensureDeferred
async def test_a_lie(server, server_config, name):
    lie, expected = LIES[name]
    made = publisher(GUN)
    if name == "rollback":
        first = dict(made.files)
        lie(server, made)
        assert (await fetch(server, server_config, GUN)).status == Status.OK
        made.files = first
        server.take(made)
    else:
        server.take(made)
        assert (await fetch(server, server_config, GUN)).status == Status.OK
        lie(server, made)
    before = await rows(server_config)
    other = publisher(OTHER)
    server.take(other)
    outcome = await fetch(server, server_config, GUN, OTHER)
    assert outcome.status == Status.FOUND, outcome.err
    results = {record["gun"]: record for record in outcome.records}
    assert results[GUN]["outcome"] in ("refused", "failed"), results[GUN]
    assert expected in results[GUN]["reason"], results[GUN]["reason"]
    assert "\n" not in results[GUN]["reason"]
    assert results[OTHER]["outcome"] == "stored"
    assert [row for row in await rows(server_config) if row[0] == GUN] == before


@pytest.mark.parametrize("name", ["gap in the roots", "forged root"])
@pytest_twisted.ensureDeferred
async def test_a_new_collection_with_a_broken_chain_is_refused(server, server_config, name):
    made = publisher(GUN)
    server.take(made)
    LIES[name][0](server, made)
    outcome = await fetch(server, server_config, GUN)
    (result,) = outcome.records
    expected = {"gap in the roots": "there is a gap", "forged root": "root: version 2 does not follow version 1"}[name]
    assert (result["outcome"], expected in result["reason"]) == ("refused", True), result
    assert await rows(server_config) == []


@pytest_twisted.ensureDeferred
async def test_force_takes_an_older_collection(server, server_config):
    made = publisher(GUN)
    first = dict(made.files)
    changed(made)
    server.take(made)
    await fetch(server, server_config, GUN)
    made.files = first
    server.take(made)
    outcome = await fetch(server, server_config, GUN, "--force")
    assert outcome.records[0]["outcome"] == "stored"
    assert {row[3] for row in await rows(server_config)} == set(first.values())
    assert (await admin("fsck", "--config", server_config)).status == Status.OK
    server.take(stranger := publisher(GUN))
    assert (await fetch(server, server_config, GUN, "--force")).status == Status.OK
    assert {row[3] for row in await rows(server_config)} == set(stranger.files.values())
    place = Place("sqlite3", str(server_config.parent / "server.db"))
    feed = await place.all("SELECT category FROM changefeed ORDER BY id")
    assert [category for (category,) in feed] == ["update", "deletion", "update", "deletion", "update"]


# -- what is taken with a warning -------------------------------------------------------------------------------------


def expired(server: NotaryServer, made: Publisher) -> None:
    author = made.author
    for role in ("root", "targets", "targets/a", "snapshot", "timestamp"):
        author.lifetimes[role] = timedelta(days=-7)
    changed(made)
    server.take(made)


def unsigned_delegation(server: NotaryServer, made: Publisher) -> None:
    author = made.author
    author.delegations["targets/a"].keys[:] = [make_key()]
    author.bump("targets", "snapshot", "timestamp")
    files = {**made.files, "targets": author.targets()}
    files["snapshot"] = author.snapshot(files)
    files["timestamp"] = author.timestamp(files["snapshot"])
    made.files = files
    server.take(made)


def undelegated(server: NotaryServer, made: Publisher) -> None:
    del made.author.delegations["targets/a/b"]
    changed_roles = made.author.publish("targets", "targets/a")
    made.stamped(changed_roles)
    server.take(made)


def old_server(server: NotaryServer, made: Publisher) -> None:
    for _ in range(3):
        changed(made)
    server.take(made)
    server.lies["3.root"] = lambda *_: None


WARNED = {
    "expired": (expired, ["root: expired on", "targets: expired on", "targets/a: expired on", "snapshot: expired on",
                          "timestamp: expired on"]),
    "a delegation that its parent's keys have not signed": (unsigned_delegation, ["targets/a: it lacks signatures",
                          "targets/a/b: no role that clients read delegates to it"]),
    "a role to which no role delegates": (undelegated, ["targets/a/b: no role that clients read delegates to it"]),
    "a server that gives no roots by version": (old_server, ["root: the server does not give its versions 1 to 3"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNED)
@pytest_twisted.ensureDeferred
async def test_what_is_taken_with_a_warning(server, server_config, name):
    lie, expected = WARNED[name]
    made = publisher(GUN)
    lie(server, made)
    outcome = await fetch(server, server_config, GUN)
    (result,) = outcome.records
    assert (outcome.status, result["outcome"]) == (Status.OK, "stored"), result
    said = sorted(warning["text"] for warning in result["warnings"])
    assert len(said) == len(expected), said
    for each in expected:
        assert any(text.startswith(each) for text in said), said
    assert {row[3] for row in await rows(server_config)} == set(made.files.values())


@pytest_twisted.ensureDeferred
async def test_an_expired_role_is_named_with_its_day(server, server_config):
    made = publisher(GUN)
    expired(server, made)
    (result,) = (await fetch(server, server_config, GUN)).records
    day = json.loads(made.files["targets"])["signed"]["expires"]
    assert f"targets: expired on {day[:10]}" in [warning["text"] for warning in result["warnings"]]
    assert result["readable_until"] == day


# -- the list of collections ------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_without_names_the_changefeed_says_what_there_is(server, server_config, monkeypatch):
    monkeypatch.setattr(client, "RECORDS_PER_PAGE", 2)
    guns = [f"example.com/app{number}" for number in range(5)]
    for gun in guns:
        server.take(publisher(gun))
    server.change(guns[0], 0, "", "deletion")
    outcome = await fetch(server, server_config)
    assert sorted(record["gun"] for record in outcome.records) == guns[1:]


@pytest_twisted.ensureDeferred
async def test_a_changefeed_that_goes_backwards(server, server_config):
    for number in range(3):
        server.take(publisher(f"example.com/app{number}"))
    server.changes[2]["ID"] = "1"
    outcome = await fetch(server, server_config)
    assert outcome.status == Status.PEER
    assert "the changefeed goes backwards: change 1 follows change 2" in outcome.err


@pytest_twisted.ensureDeferred
async def test_names_of_docker_repositories(server, server_config, tmp_path):
    for gun in ("docker.io/library/alpine", "docker.io/team/app", "localhost:5000/own"):
        server.take(publisher(gun))
    names = tmp_path / "names"
    names.write_text("alpine\n# a remark\n\nteam/app:v1  # with a tag\nlocalhost:5000/own\nnothing\n")
    outcome = await fetch(server, server_config, "--guns-from", names)
    assert outcome.status == Status.FOUND
    assert {record["name"]: (record["gun"], record["outcome"]) for record in outcome.records} == {
        "alpine": ("docker.io/library/alpine", "stored"),
        "team/app:v1": ("docker.io/team/app", "stored"),
        "localhost:5000/own": ("localhost:5000/own", "stored"),
        "nothing": ("nothing", "absent"),
    }


@contextmanager
def limit(monkeypatch, name: str, value: int):
    with monkeypatch.context() as patched:
        patched.setattr(walk, name, value)
        yield


@pytest_twisted.ensureDeferred
async def test_limits_of_a_collection(server, server_config, monkeypatch):
    made = publisher(GUN)
    for _ in range(4):
        changed(made)
        server.take(made)
    for name, value, expected in (
        ("MAX_ROOTS", 3, "follows too many others"),
        ("MAX_COLLECTION_BYTES", 2000, "at most"),
        ("MAX_VERIFYING_MICROSECONDS", 100, "too long to verify"),
    ):
        with limit(monkeypatch, name, value):
            (result,) = (await fetch(server, server_config, GUN)).records
        assert (result["outcome"], expected in result["reason"]) == ("refused", True), result


@pytest_twisted.ensureDeferred
async def test_nobody_answers(server_config):
    nobody = NotaryServer()
    nobody.url = f"http://127.0.0.1:{free_port()}"
    outcome = await fetch(nobody, server_config, GUN)
    assert outcome.status == Status.PEER
    assert "refused" in outcome.err


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_busy_is_asked_again(server, server_config):
    server.take(publisher(GUN))
    busy = [503, 429]

    def lie(request, data):
        if not busy:
            return data
        request.setResponseCode(busy.pop())
        request.setHeader("Retry-After", "0")
        return b"later"

    server.lies["targets."] = lie
    assert (await fetch(server, server_config, GUN)).status == Status.OK
    assert busy == []
