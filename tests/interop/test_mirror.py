"""``notary-admin mirror``: every state of every collection of a real server comes to the mirror, in order."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from tests.support.copies import SQLITE, read_only
from tests.support.goclient import Machine
from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, Daemon, clean_environment, daemon
from tests.support.sides import MULTIPART, Collection, Side, clone, form_of, make_collection

SCRIPT = str(Path(sys.executable).parent / "notary-admin")
PATIENCE_SECONDS = 60.0

Change = tuple[str, int, str]
"""A line of a changefeed: the category, the version and the checksum."""


def feed_of(mirror: Daemon) -> dict[str, list[Change]]:
    """The changefeed in the mirror's database, by collection."""
    with closing(sqlite3.connect(mirror.directory / "notary.db")) as connection:
        lines = connection.execute("SELECT gun, category, version, sha256 FROM changefeed ORDER BY id").fetchall()
    found: dict[str, list[Change]] = {}
    for gun, *change in lines:
        found.setdefault(gun, []).append(tuple(change))
    return found


async def served_feed(side: Side, guns: list[str]) -> dict[str, list[Change]]:
    """The changefeed of some collections of a server."""
    found: dict[str, list[Change]] = {}
    for gun in guns:
        answer = await side.get(f"/v2/{gun}/_trust/changefeed?records=1000")
        records = json.loads(answer.body)["records"]
        found[gun] = [(each["Category"], each["Version"], each["SHA256"]) for each in records]
    return found


async def require_equal(side: Side, mirror: Daemon, guns: list[str]) -> None:
    """AssertionError unless the mirror has every line of the changefeed, every version and every byte."""
    assert feed_of(mirror) == await served_feed(side, guns)
    with closing(sqlite3.connect(mirror.directory / "notary.db")) as connection:
        rows = connection.execute("SELECT gun, role, version, data FROM tuf_files").fetchall()
    numbers: dict[tuple[str, str], set[int]] = {}
    for gun, role, version, data in rows:
        answer = await side.get(f"/v2/{gun}/_trust/tuf/{version}.{role}.json")
        assert (answer.status, answer.body) == (200, bytes(data)), f"{gun} {role} {version}"
        numbers.setdefault((gun, role), set()).add(version)
    for (gun, role), versions in numbers.items():
        assert versions == set(range(1, max(versions) + 1)), f"{gun} {role}"
        assert (await side.get(f"/v2/{gun}/_trust/tuf/{max(versions) + 1}.{role}.json")).status == 404


async def publish(side: Side, collection: Collection, turn: int) -> None:
    """Publish another version of targets, and sometimes of another role too."""
    author = clone(collection.author)
    author.add(f"file{turn % 10}", b"content %d" % turn)
    roles = ["targets", *(["targets/releases"] if turn % 3 == 0 else []), *(["root"] if turn % 7 == 0 else [])]
    files = collection.make(author, *roles)
    answer = await side.request("POST", collection.path(), form_of(files), {"Content-Type": MULTIPART})
    assert answer.status == 200, answer
    collection.took(files, author)


def mirror_command(source: Daemon, mirror: Daemon, ca: Path, *arguments: object) -> list[str]:
    config = mirror.directory / "mirror.json"
    return [str(each) for each in (SCRIPT, "mirror", source.url, "--ca", ca, "--config", config, "--json", *arguments)]


ENVIRONMENT = clean_environment({"DOCKER_CONFIG": "/nonexistent"})


def mirror_once(source: Daemon, mirror: Daemon, ca: Path) -> list[dict[str, Any]]:
    command = mirror_command(source, mirror, ca)
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


async def until(reactor: Any, holds: Callable[[], bool]) -> None:
    """Wait until something holds; AssertionError if that takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        await deferLater(reactor, 0.1)


class Following:
    """``mirror --follow`` as a process; ``figures`` is the file of its metrics. Leaving it ends the process."""

    def __init__(self, source: Daemon, mirror: Daemon, ca: Path, *arguments: object) -> None:
        self.figures = mirror.directory / "mirror.prom"
        files = ("--metrics-file", self.figures, "--status-file", mirror.directory / "mirror.status")
        self._command = mirror_command(source, mirror, ca, "--follow", *files, *arguments)
        self._log = mirror.directory / "mirror.log"

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=ENVIRONMENT, stdout=log, stderr=log)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


@pytest_twisted.ensureDeferred
async def test_every_state_of_a_go_server(certificates: Certificates, tmp_path: Path, reactor: Any) -> None:
    mirror = read_only(certificates, tmp_path / "mirror")
    with daemon("go", GO_SERVER, tmp_path / "go", tls=certificates) as source:
        async with Side(source, reactor) as side:
            collections = [await make_collection(side, server_snapshot=bool(number)) for number in range(2)]
            assert len(mirror_once(source, mirror, certificates.ca)) == 2
            for collection in collections:
                for turn in range(1, 10):
                    await publish(side, collection, turn)
            records = mirror_once(source, mirror, certificates.ca)
            assert [(each["states"], each["missed"]) for each in records] == [(9, 0)] * 2
            await require_equal(side, mirror, [each.gun for each in collections])


@pytest_twisted.ensureDeferred
async def test_none_is_missed_under_load(certificates: Certificates, tmp_path: Path, reactor: Any) -> None:
    """Several publishers at once, as fast as the server takes it; collections begin, and the mirror is killed once."""
    mirror = read_only(certificates, tmp_path / "mirror")
    source = daemon("source", OUR_SERVER, tmp_path / "source", tls=certificates, storage=SQLITE)
    collections: list[Collection] = []
    with source, mirror, Following(source, mirror, certificates.ca, "--every", 0.5) as following:
        async with Side(source, reactor) as side:

            async def until_stored(*guns: str) -> None:
                await until(reactor, lambda: feed_of(mirror).keys() >= set(guns))

            async def publisher(collection: Collection | None) -> None:
                made = collection or await make_collection(side)
                collections.append(made)
                for turn in range(1, 31):
                    await publish(side, made, turn)

            first = await make_collection(side)
            await until_stored(first.gun)
            publishers = [Deferred.fromCoroutine(publisher(each)) for each in (first, None, None, None)]
            await until(reactor, lambda: len(collections) == len(publishers))
            await until_stored(*(each.gun for each in collections))
            following.kill()
            await gatherResults(publishers)
            following.start()
            guns = [each.gun for each in collections]
            expected = await served_feed(side, guns)
            await until(reactor, lambda: feed_of(mirror) == expected)
            await require_equal(side, mirror, guns)
        async with Side(mirror, reactor) as side:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while "error" in (known := json.loads((await side.get("/readyz")).body).get("mirror", {"error": ""})):
                assert time.monotonic() < deadline, known
                await deferLater(reactor, 0.1)
            assert known["behind_seconds"] >= 0
            assert known["due"] == 0
            body = (await side.get("/metrics")).body
        assert re.search(rb"^notary_server_mirror_behind_seconds [0-9.]+$", body, re.MULTILINE)
        assert "\nnotary_mirror_missed_states_total 0\n" in following.figures.read_text()
        assert Machine(tmp_path / "reader", mirror.url, certificates.ca).targets(first.gun)
        mirror.stop()
