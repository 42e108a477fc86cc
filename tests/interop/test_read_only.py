"""A read-only server beside the one that writes: on databases whose user has SELECT alone, and on a read-only file."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.databases import DatabaseServer
from tests.support.goclient import Machine
from tests.support.migrated import migrated_database
from tests.support.peers import OUR_SERVER, Certificates, Daemon, clean_environment, daemon

GUN = "example.com/team/app"
SCRIPT = str(Path(sys.executable).parent / "notary-admin")
OBEDIENT = ("setpriv", "--bounding-set=-all") if os.geteuid() == 0 else ()
"""Runs a command without root's right to write wherever it likes."""


def reader_of(directory: Path, storage: dict[str, str], tls: Certificates | None = None) -> Daemon:
    """A read-only server, not started yet, without a signer."""
    extra = {"trust_service": {}, "logging": {"level": "info"}}
    made = daemon("reader", (*OBEDIENT, *OUR_SERVER), directory, tls=tls, storage=storage, extra=extra)
    path = directory / "reader.json"
    config = json.loads(path.read_text())
    config["server"]["read_only"] = True
    path.write_text(json.dumps(config))
    return made


def ask(server: Daemon, path: str, method: str = "GET") -> tuple[int, bytes, dict[str, str]]:
    """Ask a server without TLS."""
    request = urllib.request.Request(server.url + path, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


def admin(config: Path, *arguments: str) -> tuple[int, str]:
    command = (*OBEDIENT, SCRIPT, *arguments, "--config", str(config), "--json")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(params=["mariadb", "postgresql"])
def storages(request: pytest.FixtureRequest) -> tuple[dict[str, str], dict[str, str]]:
    """The sections ``storage`` of a server that writes, and of one whose database user has SELECT alone."""
    server: DatabaseServer = request.getfixturevalue(request.param)
    database, url = migrated_database(server, "server")
    reading = server.db_url(database, server.user(database, ["SELECT"]))
    if server.backend == "postgres":  # SELECT alone: not even the sequences
        server.execute(database, f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM {reading[11:].partition(':')[0]}")
    return ({"backend": server.backend, "db_url": each} for each in (url, reading))


def test_select_is_enough(storages, certificates: Certificates, tmp_path: Path) -> None:
    writing, reading = storages
    with (
        daemon("writer", OUR_SERVER, tmp_path / "writer", tls=certificates, storage=writing) as writer,
        reader_of(tmp_path / "reader", reading, certificates) as reader,
        reader_of(tmp_path / "plain", reading) as plain,
    ):
        owner = Machine(tmp_path / "owner", writer.url, certificates.ca)
        (owner.directory / "v1").write_bytes(b"one")
        owner("init", GUN, "-p")
        owner("add", GUN, "v1", "v1", "-p")
        assert set(Machine(tmp_path / "follower", reader.url, certificates.ca).targets(GUN)) == {"v1"}

        # the stock client with only the URL changed: it reads, and cannot publish, rotate or delete
        moved = Machine(tmp_path / "owner", reader.url, certificates.ca)
        (owner.directory / "v2").write_bytes(b"two")
        moved("add", GUN, "v2", "v2")
        for command in (["publish", GUN], ["key", "rotate", GUN, "snapshot", "-r"], ["delete", GUN, "--remote"]):
            said = moved.refused(*command)
            assert "403" in said, command
        assert set(Machine(tmp_path / "newcomer", reader.url, certificates.ca).targets(GUN)) == {"v1"}
        # the same work, sent to the server that writes, is there at once
        owner("add", GUN, "v2", "v2", "-p")
        assert set(Machine(tmp_path / "latecomer", reader.url, certificates.ca).targets(GUN)) == {"v1", "v2"}

        status, body, headers = ask(plain, f"/v2/{GUN}/_trust/tuf/", "DELETE")
        assert (status, json.loads(body)["errors"][0]["code"], headers["Allow"]) == (403, "READ_ONLY", "GET, HEAD")
        status, body, _ = ask(plain, "/v2/_trust/changefeed?records=10")
        assert (status, json.loads(body)["count"]) == (200, 3)  # init, v1, v2
        while (readiness := json.loads(ask(plain, "/readyz")[1]))["status"] == "starting":
            time.sleep(0.05)
        assert readiness == {"status": "ok", "reads": True, "writes": False, "read_only": True, "failures": {}}
        status, body, _ = ask(plain, "/metrics")
        assert b'notary_server_errors_total{code="READ_ONLY"} 1.0' in body
        assert b'notary_server_health_check{check="DB operational"} 1.0' in body
        assert b"Trust operational" not in body
        for command in (["check-config"], ["fsck"], ["repos", "list"], ["gc", "--keep", "1", "--dry-run"]):
            assert admin(tmp_path / "plain" / "reader.json", *command)[0] == 0, command
        assert admin(tmp_path / "plain" / "reader.json", "repos", "delete", GUN, "--yes")[0] == 3
        plain.stop()


# -- SQLite -----------------------------------------------------------------------------------------------------------


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Take from everybody the right to change a directory and the files in it."""
    places = [directory, *directory.iterdir()]
    modes = [place.stat().st_mode for place in places]
    for place, mode in zip(places, modes, strict=True):
        place.chmod(mode & 0o555)
    try:
        yield
    finally:
        for place, mode in zip(places, modes, strict=True):
            place.chmod(mode)


@pytest.fixture
def published(certificates: Certificates, tmp_path: Path) -> Iterator[Daemon]:
    """A server on SQLite that has published a collection, and was stopped."""
    storage = {"backend": "sqlite3", "db_url": "notary.db"}
    with daemon("publisher", OUR_SERVER, tmp_path / "writer", tls=certificates, storage=storage) as publisher:
        Machine(tmp_path / "owner", publisher.url, certificates.ca)("init", GUN, "-p")
        publisher.stop()
    made = daemon("writer", OUR_SERVER, tmp_path / "writer", storage=storage)
    yield made
    made.kill()


def test_a_file_in_a_directory_that_cannot_be_written(published: Daemon, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    shutil.copy(published.directory / "notary.db", held / "notary.db")
    before = (held / "notary.db").read_bytes()
    with locked(held), reader_of(tmp_path / "reader", {"backend": "sqlite3", "db_url": str(held / "notary.db")}) as it:
        assert ask(it, f"/v2/{GUN}/_trust/tuf/root.json")[0] == 200
        assert admin(tmp_path / "reader" / "reader.json", "fsck")[0] == 0
        assert [path.name for path in held.iterdir()] == ["notary.db"]
    assert (held / "notary.db").read_bytes() == before


def test_another_file_may_take_its_place(published: Daemon, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    shutil.copy(published.directory / "notary.db", held / "notary.db")
    with reader_of(tmp_path / "reader", {"backend": "sqlite3", "db_url": str(held / "notary.db")}) as it:
        with locked(held):
            assert ask(it, f"/v2/{GUN}/_trust/tuf/root.json")[0] == 200
        # by a rename, as rsync does
        shutil.copy(held / "notary.db", held / "new.db")
        with closing(sqlite3.connect(held / "new.db")) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("DELETE FROM tuf_files WHERE role = 'root'")
            connection.commit()
        (held / "new.db").replace(held / "notary.db")
        with locked(held):
            assert ask(it, f"/v2/{GUN}/_trust/tuf/1.root.json")[0] == 404


def test_a_writer_that_begins_is_seen(published: Daemon, tmp_path: Path) -> None:
    """The file is read as one that never changes until somebody opens it to write; then as one that does."""
    directory = published.directory
    with (
        locked(directory),
        reader_of(tmp_path / "reader", {"backend": "sqlite3", "db_url": str(directory / "notary.db")}) as reader,
    ):
        assert ask(reader, f"/v2/{GUN}/_trust/tuf/root.json")[0] == 200
        directory.chmod(0o755)
        (directory / "notary.db").chmod(0o644)
        with published:
            status, _, _ = ask(published, f"/v2/{GUN}/_trust/tuf/", "DELETE")
            assert status == 200
            assert ask(reader, f"/v2/{GUN}/_trust/tuf/root.json")[0] == 404
            published.stop()
        assert ask(reader, f"/v2/{GUN}/_trust/tuf/root.json")[0] == 404


def test_a_missing_or_empty_file_is_refused_and_not_made(tmp_path: Path) -> None:
    it = reader_of(tmp_path / "reader", {"backend": "sqlite3", "db_url": "notary.db"})
    it.spawn()
    assert it.wait() == 1
    assert "with server.read_only to read a file that exists" in it.output()
    assert not (tmp_path / "reader" / "notary.db").exists()
    (tmp_path / "reader" / "notary.db").touch()
    it.spawn()
    assert it.wait() == 1
    assert "the database is empty" in it.output()
    assert (tmp_path / "reader" / "notary.db").stat().st_size == 0
