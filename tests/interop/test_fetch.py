"""``notary-admin fetch`` from the Go server, of what the stock client published; the stock client judges the result."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.support.author import HARMLESS
from tests.support.goclient import Delegate, Machine
from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, Daemon, clean_environment, daemon
from tests.support.sides import Side, clone, make_collection

SCRIPT = Path(sys.executable).parent / "notary-admin"
SQLITE = {"backend": "sqlite3", "db_url": "notary.db"}
ROOT = Path(__file__).parent.parent.parent
GUN = "example.com/team/app"


def run(*arguments: object, status: int = 0) -> list[dict[str, Any]]:
    """What the console script says; AssertionError if it ends with another status."""
    command = (str(SCRIPT), *map(str, arguments), "--json")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=clean_environment({"DOCKER_CONFIG": "/nonexistent"})
    )
    assert done.returncode == status, f"{arguments}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def rows(database: Path) -> dict[tuple[str, str, int], bytes]:
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT gun, role, version, data FROM tuf_files").fetchall()
    return {(gun, role, version): bytes(data) for gun, role, version, data in found}


def published(machine: Machine, gun: str) -> None:
    """A collection with two delegations, one nested, rotated roots and targets, and the snapshot key at the server."""
    owner = machine
    for name in ("v1", "v2"):
        (owner.directory / name).write_bytes(name.encode())
    owner("init", gun, "-p")
    owner("add", gun, "v1", "v1", "-p")
    owner("key", "rotate", gun, "snapshot", "-r")
    alice, bob = Delegate(owner.directory, "alice"), Delegate(owner.directory, "bob")
    owner("delegation", "add", gun, "targets/releases", alice.certificate, "--all-paths", "-p")
    owner("key", "import", alice.key, "-r", "targets/releases")
    owner("add", gun, "v2", "v2", "-r", "targets/releases", "-p")
    owner("delegation", "add", gun, "targets/releases/beta", bob.certificate, "--all-paths", "-p")
    owner("key", "import", bob.key, "-r", "targets/releases/beta")
    owner("add", gun, "v2", "v2", "-r", "targets/releases/beta", "-p")
    for _ in range(2):
        owner("key", "rotate", gun, "root", stdin=b"yes\n")
    owner("key", "rotate", gun, "targets")


@pytest.fixture(scope="module")
def go(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory):
    with daemon("go", GO_SERVER, tmp_path_factory.mktemp("go"), tls=certificates) as server:
        yield server


@pytest.fixture
def ours(certificates: Certificates, tmp_path: Path) -> Daemon:
    """Not started; its database exists."""
    server = daemon("server", OUR_SERVER, tmp_path / "server", tls=certificates, storage=SQLITE)
    with server:
        pass
    return server


def take_over(owner: Machine, server: Daemon) -> None:
    command = (ROOT / "etc/take-over.sh", server.url, GUN, owner.directory / "trust", "--cacert", server.tls.ca)
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def config_of(server: Daemon) -> Path:
    return server.directory / "server.json"


def test_the_life_of_a_rescue(go: Daemon, ours: Daemon, certificates: Certificates, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "owner", go.url, certificates.ca)
    published(machine, GUN)
    peer = ("fetch", go.url, "--ca", certificates.ca)
    # Without a name, all collections are fetched; other tests may have published some.
    (result,) = (each for each in run(*peer, "--config", config_of(ours)) if each["gun"] == GUN)
    assert (result["outcome"], result["warnings"]) == ("stored", [])
    assert {role: one["version"] for role, one in result["roles"].items() if role == "root"} == {"root": 5}
    assert set(result["roles"]) == {
        "root", "targets", "snapshot", "timestamp", "targets/releases", "targets/releases/beta"
    }  # fmt: skip
    assert {key[1:] for key in rows(ours.directory / "notary.db")} >= {("root", number) for number in range(1, 6)}
    assert run("fsck", "--config", config_of(ours)) == []

    # again: nothing to do
    before = rows(ours.directory / "notary.db")
    (again,) = (each for each in run(*peer, "--config", config_of(ours)) if each["gun"] == GUN)
    assert (again["outcome"], again["new"]) == ("unchanged", 0)
    assert rows(ours.directory / "notary.db") == before

    # the stock client reads from us, and sees what it saw
    with ours:
        reader = Machine(tmp_path / "reader", ours.url, certificates.ca)
        assert reader.targets(GUN) == machine.targets(GUN)
        assert set(reader.targets(GUN)) == {"v1", "v2"}
        # what is newer there follows
        machine("add", GUN, "v3", "v1", "-p")
        (newer,) = run(*peer, GUN, "--config", config_of(ours))
        assert (newer["outcome"], newer["new"]) == ("stored", 3)
        assert set(reader.targets(GUN)) == {"v1", "v2", "v3"}

        # the owner moves over: the keys of timestamp and snapshot become ours, and publishing goes on
        moved = Machine(tmp_path / "owner", ours.url, certificates.ca)
        for role in ("timestamp", "snapshot"):  # each needs the other key, which the old server holds
            moved.refused("key", "rotate", GUN, role, "-r")
        take_over(moved, ours)
        assert "Successfully published changes" in moved("publish", GUN)
        moved("add", GUN, "v4", "v1", "-p")
        assert set(reader.targets(GUN)) == {"v1", "v2", "v3", "v4"}
        (refused,) = run(*peer, GUN, "--config", config_of(ours), status=1)
        assert refused["outcome"] == "refused"
        assert "was published elsewhere since" in refused["reason"]
    assert run("fsck", "--config", config_of(ours)) == []


@pytest_twisted.ensureDeferred
async def test_bytes_in_another_form(go: Daemon, ours: Daemon, certificates: Certificates, reactor: Any) -> None:
    """A file that is not in the canonical form is stored as it is served."""
    async with Side(go, reactor) as side:
        collection = await make_collection(side)
        author = clone(collection.author)
        answer = await collection.push(author, "targets", damage=HARMLESS["white space"])
        assert answer.status == 200
        served = await collection.current()
    (result,) = run("fetch", go.url, collection.gun, "--ca", certificates.ca, "--config", config_of(ours))
    assert result["outcome"] == "stored"
    stored = {role: data for (_, role, _), data in rows(ours.directory / "notary.db").items()}
    assert stored == served
    assert b"\n" in stored["targets"]
    assert run("fsck", "--config", config_of(ours)) == []


@pytest_twisted.async_yield_fixture
async def busy(
    certificates: Certificates, reactor: Any, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Daemon, set[str]]]:
    """A Go server with 40 collections, and their names."""
    with daemon("busy", GO_SERVER, tmp_path_factory.mktemp("busy"), tls=certificates) as server:
        async with Side(server, reactor) as side:
            guns = {(await make_collection(side, server_snapshot=True)).gun for _ in range(40)}
        yield server, guns


def test_killed_on_the_way(busy: tuple[Daemon, set[str]], certificates: Certificates, ours: Daemon) -> None:
    """What a killed process has stored is whole, and the next one goes on."""
    server, guns = busy
    database = ours.directory / "notary.db"
    arguments = ("fetch", server.url, "--ca", certificates.ca, "--config", config_of(ours), "--concurrency", 2)
    for _ in range(5):
        stored = len(rows(database))
        process = subprocess.Popen(
            [str(each) for each in (SCRIPT, *arguments)],
            env=clean_environment({"DOCKER_CONFIG": "/nonexistent"}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while len(rows(database)) == stored and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.wait()
        found: dict[str, set[str]] = {}
        for gun, role, _ in rows(database):
            found.setdefault(gun, set()).add(role)
        assert all(len(roles) == 5 for roles in found.values()), found
    results = run(*arguments)
    assert {each["gun"] for each in results if each["outcome"] in ("stored", "unchanged")} == guns
    assert {each["outcome"] for each in results} == {"stored", "unchanged"}
    assert run("fsck", "--config", config_of(ours)) == []


def test_an_archive_can_be_imported(go: Daemon, ours: Daemon, certificates: Certificates, tmp_path: Path) -> None:
    gun = "example.com/team/archived"
    machine = Machine(tmp_path / "owner", go.url, certificates.ca)
    published(machine, gun)
    folder = tmp_path / "archives"
    peer = ("fetch", go.url, gun, "--ca", certificates.ca, "--archive", folder)
    (result,) = run(*peer)
    assert result["outcome"] == "stored"
    (again,) = run(*peer)
    assert again["outcome"] == "unchanged"
    machine("add", gun, "v3", "v1", "-p")
    (newer,) = run(*peer)
    assert (newer["outcome"], newer["new"]) == ("stored", 3)
    (file,) = folder.iterdir()
    run("repos", "import", file, "--config", config_of(ours))
    assert run("fsck", "--config", config_of(ours)) == []
    with ours:
        reader = Machine(tmp_path / "reader", ours.url, certificates.ca)
        assert reader.targets(gun) == machine.targets(gun)
