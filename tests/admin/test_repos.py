"""``repos``: list, show and delete, on every backend."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from notary.admin import collections
from notary.admin.command import Status
from notary.admin.output import relative_time, size_text
from notary.storage import StoredKey
from notary.storage.open import open_key_store
from tests.admin.conftest import admin, write_config
from tests.support.author import make_key
from tests.support.certs import Authority
from tests.support.stored import Place, Publisher

GUN = "example.com/team/app"


async def three(place) -> dict[str, Publisher]:
    made = {gun: Publisher(gun) for gun in (GUN, "example.com/team/base", "other.org/tool")}
    for publisher in made.values():
        await place.publish(publisher)
    return made


# -- list -------------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_list(place, tmp_path):
    made = await three(place)
    publisher = made[GUN]
    publisher.author.delegate("targets/releases")
    await place.publish(publisher, publisher.next("targets", "targets/releases"))
    outcome = await admin("repos", "list", "--config", place.config(tmp_path), "--json")
    assert outcome.status == Status.OK, outcome.err
    assert [record["gun"] for record in outcome.records] == sorted(made)
    first = outcome.records[0]
    assert {role: one["version"] for role, one in first["roles"].items()} == {
        "root": 1, "targets": 2, "targets/releases": 1, "snapshot": 2, "timestamp": 2
    }  # fmt: skip
    signed = json.loads(publisher.files["targets"])["signed"]
    assert first["roles"]["targets"]["expires"] == signed["expires"]
    assert first["roles"]["targets"]["bytes"] == len(publisher.files["targets"])
    assert first["files"] == 8
    assert first["problem"] == ""
    ((total,),) = await place.all("SELECT SUM(LENGTH(data)) FROM tuf_files WHERE gun == ?", GUN)
    assert first["bytes"] == total


@pytest.mark.parametrize("command", [["repos", "list"], ["expiring", "--within", "5000w"]], ids=["list", "expiring"])
@pytest_twisted.ensureDeferred
async def test_a_row_that_cannot_be_read_ends_no_walk(place, tmp_path, command):
    if place.backend != "sqlite3":  # the others hold columns to their types
        return
    for name in ("a", "b", "c"):
        await place.publish(Publisher(f"example.com/{name}"))
    await place.execute("UPDATE tuf_files SET version = 'many' WHERE role = 'root' AND gun = 'example.com/b'")
    outcome = await admin(*command, "--config", place.config(tmp_path), "--json")
    names = {record.get("gun", record.get("where")) for record in outcome.records}
    assert {"example.com/a", "example.com/c"} <= names
    if command[0] == "repos":
        (broken,) = [record for record in outcome.records if record["gun"] == "example.com/b"]
        assert "where a version number belongs" in broken["problem"]
        assert broken["roles"] == {}


@pytest_twisted.ensureDeferred
async def test_list_of_nothing(place, tmp_path):
    outcome = await admin("repos", "list", "--config", place.config(tmp_path), "--json")
    assert (outcome.status, outcome.out) == (Status.OK, "")


@pytest.mark.parametrize("prefix", ["example.com/", "EXAMPLE.com/", "a_b", "a%b", "a!b", "", "nobody"])
@pytest_twisted.ensureDeferred
async def test_a_prefix_means_itself(place, tmp_path, prefix):
    await three(place)
    for gun in ("a_b/c", "axb/c", "a%b/c", "a!b/c"):
        await place.publish(Publisher(gun))
    known = [GUN, "example.com/team/base", "other.org/tool", "a_b/c", "axb/c", "a%b/c", "a!b/c"]
    outcome = await admin("repos", "list", "--config", place.config(tmp_path), "--json", "--prefix", prefix)
    assert sorted(record["gun"] for record in outcome.records) == sorted(gun for gun in known if gun.startswith(prefix))


@pytest_twisted.ensureDeferred
async def test_pages_miss_nothing_and_repeat_nothing(place, tmp_path, monkeypatch):
    monkeypatch.setattr(collections, "GUNS_PER_PAGE", 3)
    guns = [f"g{number}" for number in range(10)] + ["G3", "h/É", "h/e"]
    for number, gun in enumerate(guns):
        # By hand: a database that cannot tell two of these apart would refuse a publish, but may hold both.
        await place.execute(
            "INSERT INTO tuf_files (gun, role, version, data, sha256) VALUES (?, ?, ?, ?, ?)",
            gun,
            "timestamp",
            number + 1,
            b"{}",
            "ab" * 32,
        )
    deleted = "INSERT INTO tuf_files (gun, role, version, data, deleted_at) VALUES (?, ?, ?, ?, ?)"
    await place.execute(deleted, "gone", "root", 1, b"", "2020-01-01 00:00:00")
    outcome = await admin("repos", "list", "--config", place.config(tmp_path), "--json")
    assert sorted(record["gun"] for record in outcome.records) == sorted(guns)
    assert all(record["files"] == 1 and record["problem"] for record in outcome.records)


@pytest_twisted.ensureDeferred
async def test_forms_of_a_list(place, tmp_path, monkeypatch):
    await three(place)
    config = place.config(tmp_path)
    plain = await admin("repos", "list", "--config", config)
    lines = [line.split("\t") for line in plain.out.splitlines()]
    assert lines[0][:2] == ["GUN", "Root"]
    assert [line[0] for line in lines[1:]] == [GUN, "example.com/team/base", "other.org/tool"]
    assert {len(line) for line in lines} == {9}
    monkeypatch.setattr("notary.admin.output.ROWS_PER_TABLE", 2)
    drawn = await admin("repos", "list", "--config", config, terminal=True)
    assert drawn.out.count("┏") == 2, "a table is drawn every two rows"
    assert all(f"│ {gun} " in drawn.out for gun in (GUN, "other.org/tool"))
    assert "Collections" in drawn.err


@pytest_twisted.ensureDeferred
async def test_names_never_reach_a_terminal_as_commands(place, tmp_path):
    await place.execute(
        "INSERT INTO tuf_files (gun, role, version, data) VALUES (?, ?, ?, ?)",
        "a\x1b[2Jb\n[red]c",
        "timestamp",
        1,
        b"{}",
    )
    for terminal in (True, False):
        outcome = await admin("repos", "list", "--config", place.config(tmp_path), terminal=terminal)
        assert "\x1b[2J" not in outcome.out
        assert "a\\x1b[2Jb\\n[red]c" in outcome.out.replace("\n", "")


# -- show -------------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_show(place, tmp_path):
    publisher = Publisher(GUN)
    author = publisher.author
    keys = [make_key(), make_key()]
    author.delegate("targets/releases", *keys, threshold=2, paths=["v", "release/"])
    author.delegate("targets/releases/eu")
    author.add("v1", b"one", "targets/releases")
    await place.publish(publisher)
    outcome = await admin("repos", "show", GUN, "--config", place.config(tmp_path), "--json")
    assert outcome.status == Status.OK, outcome.err
    (record,) = outcome.records
    assert record["files"] == 6
    roles = record["roles"]
    assert roles["root"]["keys"] == [{"id": author.roles["root"].keys[0].key_id, "type": "ecdsa-x509"}]
    assert roles["timestamp"]["keys"] == [{"id": author.roles["timestamp"].keys[0].key_id, "type": "ed25519"}]
    assert roles["targets/releases"]["threshold"] == 2
    assert {key["id"] for key in roles["targets/releases"]["keys"]} == {key.key_id for key in keys}
    assert roles["targets/releases"]["targets"] == 1
    assert roles["targets"]["delegations"]["targets/releases"]["paths"] == ["v", "release/"]
    text = (await admin("repos", "show", GUN, "--config", place.config(tmp_path))).out
    lines = text.splitlines()
    assert lines[0].startswith(f"{GUN}: 6 files, ")
    assert any(line.startswith("  targets version 1, expires ") for line in lines)
    assert any(line.startswith("    targets/releases version 1, ") for line in lines), text
    assert any(line.startswith("      targets/releases/eu version 1, ") for line in lines), text
    assert any("signed by 2 of 2 keys" in line for line in lines)
    assert any(f"CN={GUN}, valid to 2049-12-31" in line for line in lines)
    drawn = await admin("repos", "show", GUN, "--config", place.config(tmp_path), terminal=True)
    assert "└── " in drawn.out


@pytest_twisted.ensureDeferred
async def test_show_what_is_broken(place, tmp_path):
    publisher = Publisher(GUN)
    publisher.author.delegate("targets/releases")
    await place.publish(publisher)
    await place.execute("UPDATE tuf_files SET data = ? WHERE gun == ? AND role == ?", b"{", GUN, "targets")
    outcome = await admin("repos", "show", GUN, "--config", place.config(tmp_path))
    assert outcome.status == Status.OK, outcome.err
    assert "targets version 1: the stored targets is not metadata" in outcome.out
    assert "targets/releases version 1" in outcome.out
    assert "PROBLEM" in outcome.out
    await place.execute("DELETE FROM tuf_files WHERE gun == ? AND role == ?", GUN, "timestamp")
    outcome = await admin("repos", "show", GUN, "--config", place.config(tmp_path))
    assert "PROBLEM: there is no timestamp; see fsck" in outcome.out


@pytest.mark.parametrize("arguments", [["show"], ["delete", "--yes"], ["export"]])
@pytest_twisted.ensureDeferred
async def test_a_collection_that_is_not_there(place, tmp_path, arguments):
    await three(place)
    file = [tmp_path / "file"] if arguments == ["export"] else []
    outcome = await admin("repos", *arguments, GUN.upper(), *file, "--config", place.config(tmp_path))
    assert outcome.status == Status.MISSING
    assert outcome.err == f"notary-admin: there is no collection {GUN.upper()}\n"
    assert not (tmp_path / "file").exists()


# -- delete -----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_delete(place, tmp_path):
    await three(place)
    config = place.config(tmp_path)
    dry = await admin("repos", "delete", GUN, "--dry-run", "--json", "--config", config)
    assert dry.status == Status.OK
    assert (dry.records[0]["files"], dry.records[0]["deleted"]) == (4, False)
    unasked = await admin("repos", "delete", GUN, "--config", config)
    assert unasked.status == Status.USAGE
    assert "--yes" in unasked.err
    no = await admin("repos", "delete", GUN, "--config", config, answer="n\n")
    assert no.status == Status.REFUSED
    assert f"Delete {GUN}: 4 files" in no.err
    assert len(await place.rows(GUN)) == 4
    yes = await admin("repos", "delete", GUN, "--config", config, answer="y\n")
    assert (yes.status, await place.rows(GUN)) == (Status.OK, [])
    feed = await place.all("SELECT category FROM changefeed WHERE gun == ? ORDER BY id", GUN)
    assert feed == [("update",), ("deletion",)]
    assert len(await place.rows("other.org/tool")) == 4


@pytest_twisted.ensureDeferred
async def test_delete_what_no_upload_could_have_named(place, tmp_path):
    await place.execute("INSERT INTO tuf_files (gun, role, version, data) VALUES (?, ?, ?, ?)", "a*b", "root", 1, b"")
    outcome = await admin("repos", "delete", "a*b", "--yes", "--config", place.config(tmp_path))
    assert (outcome.status, await place.rows("a*b")) == (Status.OK, [])


@pytest.fixture
def signer_config(tmp_path):
    Authority.root("root").leaf("localhost").write(tmp_path, "signer")
    return write_config(
        tmp_path,
        "signer.json",
        {
            "server": {"grpc_addr": ":0", "tls_cert_file": "signer.crt", "tls_key_file": "signer.key"},
            "storage": {"backend": "sqlite3", "db_url": "signer.db", "default_alias": "one"},
        },
    )


@pytest_twisted.ensureDeferred
async def test_delete_with_the_keys(place, tmp_path, signer_config):
    await three(place)
    keys = await open_key_store("sqlite3", str(tmp_path / "signer.db"), reactor)
    for number, (gun, role) in enumerate([(GUN, "timestamp"), (GUN, "snapshot"), ("other.org/tool", "timestamp")]):
        await keys.add(StoredKey(f"{number:064x}", "ecdsa", b"public", b"a.jwe", gun, role, "one"))
    await keys.mark_used(f"{0:064x}", datetime.now(UTC))
    arguments = ("repos", "delete", GUN, "--config", place.config(tmp_path), "--json")
    environ = {"NOTARY_SIGNER_ONE": "correct horse"}
    both = (*arguments, "--keys", "--signer-config", signer_config)
    dry = await admin(*both, "--dry-run", environ=environ)
    assert dry.records[0]["keys"] == [f"{0:064x}", f"{1:064x}"], dry.err
    outcome = await admin(*both, "--yes", environ=environ)
    assert outcome.status == Status.OK
    left = [await keys.pending("other.org/tool", "timestamp", "ecdsa"), await keys.pending(GUN, "snapshot", "ecdsa")]
    await keys.close()
    assert [key and key.key_id for key in left] == [f"{2:064x}", None]
    assert await place.rows(GUN) == []
    assert (await admin(*both, "--yes", environ=environ)).status == Status.MISSING


@pytest_twisted.ensureDeferred
async def test_keys_need_a_signers_configuration(server_config, tmp_path):
    for more in (["--keys"], ["--signer-config", server_config]):
        outcome = await admin("repos", "delete", GUN, "--config", server_config, *more)
        assert (outcome.status, "expected both or neither" in outcome.err) == (Status.USAGE, True)


@pytest_twisted.ensureDeferred
async def test_the_signers_configuration_is_not_the_servers(place, tmp_path, signer_config):
    await three(place)
    config = place.config(tmp_path)
    environ = {"NOTARY_SIGNER_ONE": "correct horse"}
    swapped = await admin("repos", "delete", GUN, "--config", config, "--keys", "--signer-config", config, "--yes")
    assert swapped.status == Status.USAGE
    assert "--signer-config: this is a server's configuration" in swapped.err
    listed = await admin("repos", "list", "--config", signer_config, environ=environ)
    assert listed.status == Status.USAGE
    assert "--config: this is a signer's configuration" in listed.err
    assert len(await place.rows(GUN)) == 4


# -- surroundings -----------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_store_in_memory_is_out_of_reach(tmp_path):
    value = {"server": {"http_addr": ":0"}, "trust_service": {"type": "local"}, "storage": {"backend": "memory"}}
    outcome = await admin("repos", "list", "--config", write_config(tmp_path, "server.json", value))
    assert outcome.status == Status.USAGE
    assert "is in the memory of the daemon" in outcome.err


@pytest_twisted.ensureDeferred
async def test_a_database_that_is_no_database(server_config, tmp_path):
    (tmp_path / "server.db").write_text("nonsense" * 100)
    outcome = await admin("repos", "list", "--config", server_config)
    assert outcome.status == Status.STORAGE
    assert "not a SQLite database" in outcome.err


def test_expiry_in_words():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    words = [
        relative_time(now + timedelta(**each), now)
        for each in ({"days": 3}, {"hours": 5}, {"minutes": 7}, {"days": -2})
    ]
    assert words == ["in 3 d", "in 5 h", "in 7 min", "expired 2 d ago"]
    assert [size_text(each) for each in (0, 1023, 1024, 5 << 20, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 MiB",
        "3.0 GiB",
    ]


@pytest_twisted.ensureDeferred
async def test_an_interrupted_command_closes_what_it_opened(place, tmp_path):
    await three(place)
    running = Deferred.fromCoroutine(admin("repos", "list", "--config", place.config(tmp_path)))
    running.cancel()
    outcome = await running
    assert (outcome.status, outcome.err) == (Status.INTERRUPTED, "")


@pytest.fixture
def made(tmp_path) -> Path:
    """The SQLite file of ``server_config``, with its tables."""
    path = tmp_path / "server.db"
    pytest_twisted.blockon(Deferred.fromCoroutine(Place("sqlite3", str(path)).make()))
    return path


def test_ctrl_c(server_config, made):
    """The console script ends with the status of an interrupted program, and without a word."""
    with closing(sqlite3.connect(made)) as connection:
        rows = [(f"collection/{number:04}", b"{}") for number in range(3000)]
        insert = "INSERT INTO tuf_files (gun, role, version, data) VALUES (?, 'timestamp', 1, ?)"
        connection.executemany(insert, rows)
        connection.commit()
    command = [Path(sys.executable).parent / "notary-admin", "repos", "list", "--json", "--config", server_config]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    # It has begun, and cannot end: what it has to say does not fit into the pipe.
    assert json.loads(process.stdout.readline())["gun"] == "collection/0000"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, err) == (Status.INTERRUPTED, "")
    assert len(out.splitlines()) < len(rows) - 1


def test_a_reader_that_goes_away(server_config, made):
    script = Path(sys.executable).parent / "notary-admin"
    reader, writer = os.pipe()
    os.close(reader)
    command = [script, "check-config", "--config", server_config]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (Status.PIPE, "")
