"""docs/rescue.md, step by step: from a Go 0.7.0 pair on MariaDB to ours, with the stock client on both."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop.test_moving import Move
from tests.support.databases import MariaDB
from tests.support.goclient import Machine
from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, Daemon, clean_environment, daemon
from tests.support.rescue import new_pair, take_over
from tests.support.signer import GO_SIGNER

ROOT = Path(__file__).parent.parent.parent
ADMIN = str(Path(sys.executable).with_name("notary-admin"))
SNAPSHOT_HERE, SNAPSHOT_THERE, TAKEN_BACK = (f"example.com/team/{name}" for name in ("here", "there", "back"))
LIFETIME_SECONDS = 3
EVERY = (SNAPSHOT_HERE, SNAPSHOT_THERE, TAKEN_BACK)


@pytest.fixture
def new(certificates: Certificates, tmp_path: Path) -> Iterator[Daemon]:
    """Our server on SQLite, with our signer; both run."""
    with new_pair(certificates, tmp_path / "new") as server:
        yield server


def admin(server: Daemon, *arguments: object, status: int = 0) -> list[dict[str, Any]]:
    command = [ADMIN, *map(str, arguments), "--config", str(server.directory / "server.json"), "--json"]
    environment = clean_environment({"DOCKER_CONFIG": "/nonexistent"})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def owner_of(machine: Machine, gun: str) -> None:
    (machine.directory / "v1").write_bytes(b"v1")
    machine("init", gun)
    machine("add", gun, "v1", "v1")
    machine("publish", gun)


def moved(machine: Machine, server: Daemon) -> Machine:
    """The same person with the same trust directory, at another server."""
    assert server.tls is not None
    return Machine(machine.directory, server.url, server.tls.ca)


def test_from_a_service_that_closes(mariadb: MariaDB, certificates: Certificates, new: Daemon, tmp_path: Path) -> None:
    old = Move("mariadb", mariadb, tmp_path / "old", certificates)
    owner = Machine(tmp_path / "owner", old.server.url, certificates.ca)
    try:
        old.run((GO_SIGNER, GO_SERVER))
        for gun in EVERY:
            owner_of(owner, gun)
        for gun in (SNAPSHOT_THERE, TAKEN_BACK):
            owner("key", "rotate", gun, "snapshot", "-r")
        owner("key", "rotate", TAKEN_BACK, "snapshot")
        fetched = admin(new, "fetch", old.server.url, "--ca", certificates.ca)
    finally:
        old.kill()
    assert {each["gun"]: each["outcome"] for each in fetched} == dict.fromkeys(EVERY, "stored")
    assert admin(new, "fsck") == []

    # The old service is gone; clients read from the new one.
    reader = Machine(tmp_path / "reader", new.url, certificates.ca)
    for gun in EVERY:
        assert set(reader.targets(gun)) == {"v1"}
    foreign = admin(new, "expiring", "--role", "foreign-keys", status=1)
    listed = [(each["where"], each["what"].partition(":")[0]) for each in foreign]
    assert sorted(listed) == sorted((gun, role) for gun in EVERY for role in ("timestamp", "snapshot"))

    # An owner with the snapshot key gives the timestamp key away, and then, at will, the other one.
    owner = moved(owner, new)
    for gun in (SNAPSHOT_HERE, TAKEN_BACK):
        owner("key", "rotate", gun, "timestamp", "-r")
    owner("key", "rotate", SNAPSHOT_HERE, "snapshot", "-r")
    # Who does not have it gives both away at once.
    said = owner.refused("key", "rotate", SNAPSHOT_THERE, "timestamp", "-r")
    assert "upload a signed snapshot, or publish a root that names the server's snapshot key" in said
    take_over(new, SNAPSHOT_THERE, owner.directory / "trust")
    owner("publish", SNAPSHOT_THERE)
    assert admin(new, "expiring", "--role", "foreign-keys") == []
    for gun in EVERY:
        owner("add", gun, "v2", "v1", "-p")
        assert set(reader.targets(gun)) == {"v1", "v2"}
    assert admin(new, "fsck") == []


def test_the_timestamp_has_expired_already(certificates: Certificates, new: Daemon, tmp_path: Path) -> None:
    gun = "example.com/team/late"
    old = daemon(
        "old",
        OUR_SERVER,
        tmp_path / "old",
        tls=certificates,
        storage={"backend": "sqlite3", "db_url": "notary.db"},
        extra={"lifetimes": {"timestamp": LIFETIME_SECONDS}},
    )
    owner = Machine(tmp_path / "owner", old.url, certificates.ca)
    with old:
        owner_of(owner, gun)
        admin(new, "fetch", old.url, gun, "--ca", certificates.ca)
    time.sleep(LIFETIME_SECONDS + 1)
    reader = Machine(tmp_path / "reader", new.url, certificates.ca)
    assert "timestamp expired at" in reader.refused("list", gun)
    owner = moved(owner, new)
    assert "timestamp expired at" in owner.refused("key", "rotate", gun, "timestamp", "-r")
    assert "timestamp expired at" in owner.refused("publish", gun)

    # What was signed is known still; the collection begins anew, under a new root.
    admin(new, "repos", "export", gun, tmp_path / "late.jsonl")
    admin(new, "repos", "delete", gun, "--yes")
    owner("delete", gun)
    content = hashlib.sha256(b"v1").hexdigest()
    owner("init", gun)
    owner("addhash", gun, "v1", "2", f"--sha256={content}")
    owner("publish", gun)
    assert "could not rotate trust to a new trusted root" in reader.refused("list", gun)
    shutil.rmtree(reader.directory / "trust" / "tuf" / gun)
    assert reader.targets(gun) == {"v1": (content, 2, "targets")}
    assert admin(new, "fsck") == []
