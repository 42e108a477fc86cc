"""``check-config``: what it says of configurations that a daemon would start with, and of all others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from notary.admin.command import Status
from notary.envelope.envelopes import Envelopes
from notary.envelope.file import FileKek
from notary.storage.open import open_key_store, open_metadata_store
from notary.tuf import private
from tests.admin.conftest import admin, write_config
from tests.support.certs import DAY, Authority
from tests.support.keyplace import OLD, OTHER, environment, make_key
from tests.support.stored import Publisher

ROOT = Path(__file__).parent.parent.parent
PASSPHRASE = {"NOTARY_SIGNER_ONE": "correct horse"}


@pytest.fixture
def signer(tmp_path):
    """Writes the configuration of a signer; ``change`` may alter it."""

    def write(change=lambda value: None, **leaf) -> Path:
        Authority.root("root").leaf("localhost", **leaf).write(tmp_path, "signer")
        value = {
            "server": {"grpc_addr": ":0", "tls_cert_file": "signer.crt", "tls_key_file": "signer.key"},
            "storage": {"backend": "sqlite3", "db_url": "signer.db", "default_alias": "one"},
        }
        change(value)
        return write_config(tmp_path, "signer.json", value)

    return write


async def make(opener, path: Path) -> None:
    await (await opener("sqlite3", str(path), reactor)).close()


def checks(outcome) -> dict[str, dict]:
    return {record["check"]: record for record in outcome.records if "check" in record}


def problems(outcome) -> list[str]:
    return [record["detail"] for record in outcome.records if record.get("ok") is False]


@pytest_twisted.ensureDeferred
async def test_a_server_in_order(server_config, tmp_path):
    await make(open_metadata_store, tmp_path / "server.db")
    outcome = await admin("check-config", "--config", server_config, "--json")
    assert outcome.status == Status.OK
    assert problems(outcome) == []
    settings = {record["key"]: record["value"] for record in outcome.records if "key" in record}
    assert settings["(daemon)"] == "server"
    assert settings["storage.backend"] == "sqlite3"
    assert settings["caching.max_age.current_metadata"] == "300"
    assert settings["server.http_addr"] == ":0"


@pytest_twisted.ensureDeferred
async def test_a_signer_in_order(signer, tmp_path):
    await make(open_key_store, tmp_path / "signer.db")
    outcome = await admin("check-config", "--config", signer(), "--json", environ=PASSPHRASE)
    assert problems(outcome) == []
    assert outcome.status == Status.OK
    assert "CN=localhost" in checks(outcome)["server.tls_cert_file"]["detail"]


@pytest_twisted.ensureDeferred
async def test_no_secret_is_shown(signer, tmp_path):
    def change(value):
        value["storage"]["backend"], value["storage"]["db_url"] = "sqlite3", "hidden-place.db"
        value["reporting"] = {"bugsnag": {"api_key": "0123456789abcdef"}}

    await make(open_key_store, tmp_path / "hidden-place.db")
    for form in ([], ["--json"]):
        outcome = await admin("check-config", "--config", signer(change), *form, environ=PASSPHRASE)
        assert outcome.status == Status.OK, outcome.err
        for secret in ("hidden-place", "0123456789abcdef", "correct horse"):
            assert secret not in outcome.out + outcome.err


def drop_table(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(tmp_path / "signer.db")) as connection:
        connection.execute("CREATE TABLE tuf_files (id integer)")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        pytest.param(lambda path: (path / "signer.key").unlink(), "signer.key", id="no key"),
        pytest.param(lambda path: (path / "signer.crt").write_text("nonsense"), "holds no certificate", id="no PEM"),
        pytest.param(
            lambda path: (
                Authority.root("other")
                .leaf("localhost")
                .write(path, "signer")[0]
                .write_bytes((path / "kept.crt").read_bytes())
            ),
            "is not the key of the first certificate",
            id="another's key",
        ),
        pytest.param(lambda _path: None, "there is no file", id="no database"),
        pytest.param(lambda path: (path / "signer.db").write_text("nonsense" * 100), "not a SQLite", id="no SQLite"),
        pytest.param(drop_table, "give each daemon a database of its own", id="other tables"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_broken_is_a_problem(signer, tmp_path, damage, expected):
    config = signer()
    (tmp_path / "kept.crt").write_bytes((tmp_path / "signer.crt").read_bytes())
    damage(tmp_path)
    outcome = await admin("check-config", "--config", config, "--json", environ=PASSPHRASE)
    assert outcome.status == Status.FOUND
    assert any(expected in each for each in problems(outcome)), problems(outcome)
    if expected == "there is no file":
        assert not (tmp_path / "signer.db").exists()


@pytest.mark.parametrize(
    ("bundle", "problem"),
    [
        pytest.param(lambda path: Authority.root("root").leaf("tokens").write(path, "tokens"), None, id="in order"),
        pytest.param(lambda _path: None, "cannot be read", id="missing"),
        pytest.param(lambda path: (path / "tokens.crt").write_text(""), "holds no certificate", id="empty"),
        pytest.param(
            lambda path: Authority.root("root").leaf("tokens", starts=-9 * DAY, ends=-DAY).write(path, "tokens"),
            "expired 1 d ago",
            id="expired",
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_bundle_of_tokens(tmp_path, bundle, problem):
    await make(open_metadata_store, tmp_path / "server.db")
    bundle(tmp_path)
    options = {"realm": "r", "service": "s", "issuer": "i", "rootcertbundle": "tokens.crt"}
    value = {
        "server": {"http_addr": ":0"},
        "trust_service": {"type": "local"},
        "storage": {"backend": "sqlite3", "db_url": "server.db"},
        "auth": {"type": "token", "options": options},
    }
    outcome = await admin("check-config", "--config", write_config(tmp_path, "server.json", value), "--json")
    assert outcome.status == (Status.OK if problem is None else Status.FOUND)
    assert [problem in each for each in problems(outcome)] == ([] if problem is None else [True])


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        pytest.param({"starts": -timedelta(days=9), "ends": -timedelta(days=3)}, "expired 3 d ago", id="expired"),
        pytest.param({"starts": timedelta(days=2), "ends": timedelta(days=9)}, "not valid before", id="early"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_dates_of_certificates(signer, tmp_path, dates, expected):
    await make(open_key_store, tmp_path / "signer.db")
    outcome = await admin("check-config", "--config", signer(**dates), "--json", environ=PASSPHRASE)
    assert outcome.status == Status.FOUND
    assert [expected in each for each in problems(outcome)] == [True]


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        pytest.param("{", {}, "expected JSON", id="not JSON"),
        pytest.param("{}", {}, "neither is given", id="nobody's"),
        pytest.param(
            '{"server": {"http_addr": ":1", "grpc_addr": ":2"}, "trust_service": {"type": "local"},'
            ' "storage": {"default_alias": "one"}}',
            {},
            "the keys of both daemons are given",
            id="both",
        ),
        pytest.param('{"server": {"http_addr": ":1"}}', {}, "trust_service.type: missing", id="key missing"),
        pytest.param("{}", {"NOTARY_SERVER_SERVER_HTTP_ADDR": ":1"}, "trust_service.type", id="server by variable"),
        pytest.param("{}", {"NOTARY_SIGNER_SERVER_GRPC_ADDR": ":1"}, "tls_cert_file", id="signer by variable"),
        pytest.param('{"server": {"grpc_addr": ":1"}}', {}, "server.tls_cert_file: missing", id="signer"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_configuration_that_cannot_be_used(tmp_path, text, environ, expected):
    path = tmp_path / "config.json"
    path.write_text(text)
    outcome = await admin("check-config", "--config", path, environ=environ)
    assert outcome.status == Status.USAGE
    assert expected in outcome.err
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1


@pytest_twisted.ensureDeferred
async def test_the_file_and_the_place_of_a_mistake_in_it_are_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{\n  // ours\n  "server": {}}')
    outcome = await admin("check-config", "--config", path)
    assert outcome.status == Status.USAGE
    assert outcome.err == f"notary-admin: {path}: line 2, column 3: JSON has no comments; expected JSON\n"


@pytest_twisted.ensureDeferred
async def test_the_sample_of_the_official_image(signer, tmp_path):
    await make(open_key_store, tmp_path / "signer.db")
    config = signer(lambda value: value["server"].update(http_addr=":4444"))
    outcome = await admin("check-config", "--config", config, "--json", environ=PASSPHRASE)
    assert outcome.status == Status.OK, outcome
    assert any("server.http_addr: unknown key, ignored" in str(each) for each in outcome.records)
    other = await admin("check-config", "--config", config, "--daemon", "server", environ=PASSPHRASE)
    assert (other.status, "trust_service.type: missing" in other.err) == (Status.USAGE, True)


@pytest_twisted.ensureDeferred
async def test_passphrases_are_tried_on_stored_keys(key_place, tmp_path):
    Authority.root("root").leaf("localhost").write(tmp_path, "signer")
    await key_place.fill(make_key("a", alias=OTHER), make_key("b"), make_key("c"))
    config = key_place.config(tmp_path)
    right = await admin("check-config", "--config", config, "--json", environ=environment(OLD, OTHER))
    assert right.status == Status.OK, right
    assert checks(right)[f"passphrase {OLD}"]["detail"] == "opens a stored key"
    wrong = {f"NOTARY_SIGNER_{OLD.upper()}": "another than that of the stored keys"}
    outcome = await admin("check-config", "--config", config, "--json", environ=wrong)
    assert outcome.status == Status.FOUND
    assert [f"alias '{OLD}'" in each or f"alias '{OTHER}'" in each for each in problems(outcome)] == [True, True]
    assert all(secret not in outcome.out for secret in wrong.values())


@pytest_twisted.ensureDeferred
async def test_on_a_terminal_it_is_a_table(server_config, tmp_path):
    await make(open_metadata_store, tmp_path / "server.db")
    outcome = await admin("check-config", "--config", server_config, terminal=True)
    assert "│ database │ ok " in outcome.out
    plain = await admin("check-config", "--config", server_config)
    assert "storage.backend\tsqlite3\n" in plain.out


def test_the_console_script(server_config, tmp_path):
    script = Path(sys.executable).parent / "notary-admin"

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess:
        environ = {**os.environ, **variables}
        return subprocess.run([script, *arguments], capture_output=True, text=True, check=False, env=environ)

    found = run("check-config", "--config", server_config, "--json")
    assert found.returncode == Status.FOUND, found.stderr
    assert json.loads(found.stdout.splitlines()[-1])["check"] == "database"
    overridden = run("check-config", "--config", server_config, NOTARY_SERVER_STORAGE_BACKEND="memory")
    assert overridden.returncode == Status.OK, overridden.stderr
    assert run("--version").stdout.startswith("notary-admin, version ")
    assert run("no-such-command").returncode == Status.USAGE
    assert run("check-config").returncode == Status.USAGE
    assert run("check-config", "--config", tmp_path / "nothing").stderr.startswith("notary-admin: ")
    assert "notary_admin_completion" in run(_NOTARY_ADMIN_COMPLETE="bash_source").stdout


@pytest.mark.parametrize(
    "command", [["check-config"], ["expiring", "--within", "1d"]], ids=["check-config", "expiring"]
)
@pytest_twisted.ensureDeferred
async def test_a_file_that_is_no_certificate_is_not_read_as_one(place, tmp_path, command):
    """The manhole's keys are files of a configuration too, and hold no certificate."""
    config = place.config(tmp_path)
    tree = json.loads(config.read_text())
    (tmp_path / "operators").write_text("ssh-ed25519 AAAA operator\n")
    (tmp_path / "host").write_text("no certificate either\n")
    tree["manhole"] = {"port": 2222, "authorized_keys_file": "operators", "host_key_file": "host"}
    config.write_text(json.dumps(tree))
    await place.publish(Publisher("example.com/app"))
    outcome = await admin(*command, "--config", config, "--json")
    assert outcome.status == Status.OK, outcome


@pytest_twisted.ensureDeferred
async def test_key_encrypting_keys_are_tried(signer, tmp_path):
    one, other = FileKek(bytes(range(32))), FileKek(bytes(range(1, 33)))
    for name, content in (("one", range(32)), ("other", range(1, 33)), ("short", range(5))):
        (tmp_path / name).write_bytes(bytes(content))
    store = await open_key_store("sqlite3", str(tmp_path / "signer.db"), reactor)
    for kek in (one, other):
        await store.add(Envelopes([kek]).seal(private.generate("ed25519"), f"example.com/{kek.name}", "timestamp"))
    await store.close()

    async def checked(**keys):
        config = signer(lambda value: value["storage"].update(keys=keys))
        return await admin("check-config", "--config", config, "--json", environ=PASSPHRASE)

    outcome = await checked(wrap="file:one", unwrap=["file:other"])
    assert (outcome.status, problems(outcome)) == (Status.OK, [])
    found = checks(outcome)
    assert found[f"key-encrypting key {one.name}"]["detail"] == "it can be used"
    assert found[f"keys under {other.name}"]["detail"] == "one opens"
    outcome = await checked(wrap="file:one")
    assert outcome.status == Status.FOUND
    assert [f"there is no key-encrypting key '{other.name}'" in each for each in problems(outcome)] == [True]
    outcome = await checked(wrap="file:short")
    assert [each.partition("; ")[0] for each in problems(outcome)] == [
        f"storage.keys.wrap: file:{tmp_path}/short holds 5 bytes"
    ]
    outcome = await checked()
    assert all("name it in storage.keys.wrap" in each for each in problems(outcome))
    assert len(problems(outcome)) == 2
