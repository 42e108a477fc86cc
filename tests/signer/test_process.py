"""The signer as a process, called by grpcio over mutual TLS: the reference's, ours, and ours under twistd.

What all of them must do is one suite. The rest is about ours alone: what the process protects, and what it never says.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from notary.proto import signer_pb2
from notary.tuf import jwe
from notary.tuf.public import PublicKey, Signature, verify
from tests.support.migrated import migrated_database
from tests.support.peers import READY_SECONDS, clean_environment
from tests.support.signer import (
    GO_SIGNER,
    KEY_MANAGEMENT,
    OUR_SIGNER,
    OUR_TWISTD_SIGNER,
    SIGNER,
    Client,
    Pair,
    signer_config,
    signer_daemon,
)
from tests.support.waiting import until
from twisted.plugins import notary_plugins as plugin

GUN = "example.com/app"
MEMORY = {"backend": "memory"}
COMMANDS = {"reference": GO_SIGNER, "ours": OUR_SIGNER, "twistd": OUR_TWISTD_SIGNER}
METHODS = {"ecdsa": "ecdsa", "ed25519": "eddsa", "rsa": "rsapss"}
NO_KEY = "0" * 64
PASSPHRASE = "correct-horse-battery-staple"
OLD_PASSPHRASE = "old-horse-old-battery"
MESSAGE = b"the-message-that-no-line-shows"
NOT_FOUND, INTERNAL, UNIMPLEMENTED = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNIMPLEMENTED,
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return Pair.mint(tmp_path_factory.mktemp("tls"))


def status_of(call, *arguments):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    return caught.value.code()


# -- what every signer does -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=COMMANDS)
def client(request, pair, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    with (
        signer_daemon(request.param, COMMANDS[request.param], pair, directory, MEMORY) as daemon,
        Client(pair, daemon.port) as connected,
    ):
        yield connected


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_every_field_has_the_same_meaning(client, algorithm):
    made = client.create(GUN, "snapshot", algorithm)
    key = PublicKey(algorithm, made.publicKey)
    info = signer_pb2.KeyInfo(
        keyID=signer_pb2.KeyID(ID=key.key_id), algorithm=signer_pb2.Algorithm(algorithm=algorithm)
    )
    assert made == signer_pb2.PublicKey(keyInfo=info, publicKey=key.public)
    assert client.info(key.key_id) == signer_pb2.GetKeyInfoResponse(keyInfo=info, publicKey=key.public, role="snapshot")
    for message in (MESSAGE, b"", b"x" * 1_000_000):
        signed = client.sign(key.key_id, message)
        method = signer_pb2.Algorithm(algorithm=METHODS[algorithm])
        assert signed == signer_pb2.Signature(keyInfo=info, algorithm=method, content=signed.content)
        assert verify(key, Signature(key.key_id, METHODS[algorithm], signed.content), message)
    assert client.delete(key.key_id) == signer_pb2.Void()
    assert status_of(client.info, key.key_id) is NOT_FOUND
    assert status_of(client.sign, key.key_id, MESSAGE) is NOT_FOUND


def test_keys_that_do_not_exist(client):
    assert status_of(client.info, NO_KEY) is NOT_FOUND
    assert status_of(client.sign, NO_KEY, MESSAGE) is NOT_FOUND
    assert client.delete(NO_KEY) == signer_pb2.Void()


def test_requests_that_cannot_be_read(client):
    assert status_of(client.send, "Sign", b"\xff\xff") is INTERNAL
    assert status_of(client.create, GUN, "snapshot", "dsa") is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_not_taken(client, compression):
    request = signer_pb2.CreateKeyRequest(gun=GUN * 50, role="snapshot", algorithm="ecdsa").SerializeToString()
    assert status_of(client.send, "CreateKey", request, compression) is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(("service", "status"), [("", 1), (KEY_MANAGEMENT, 1), (SIGNER, 1), ("proto.Signer", 3)])
def test_health_can_be_watched(client, service, status):
    watch = client.watch(service)
    assert next(watch).status == status
    watch.cancel()
    assert client.health("") == 1


def test_health(client):
    assert [client.health(service) for service in ("", KEY_MANAGEMENT, SIGNER)] == [1, 1, 1]
    assert status_of(client.health, "proto.Signer") is NOT_FOUND


# -- what ours does besides -------------------------------------------------------------------------------------------


OURS = {"ours": OUR_SIGNER, "twistd": OUR_TWISTD_SIGNER}


@pytest.fixture
def storage(tmp_path):
    return {"backend": "sqlite3", "db_url": str(tmp_path / "keys.db"), "default_alias": "alias_one"}


def ours(pair, tmp_path, storage, name="ours", **more):
    environment = more.pop("environment", {"NOTARY_SIGNER_ALIAS_ONE": PASSPHRASE})
    return signer_daemon(name, OURS[name], pair, tmp_path, storage, environment=environment, **more)


@pytest.mark.parametrize("name", OURS)
def test_keys_outlive_the_process(pair, tmp_path, storage, name):
    daemon = ours(pair, tmp_path, storage, name)
    with daemon, Client(pair, daemon.port) as client:
        pending, used = (client.create(GUN, role, "rsa").keyInfo.keyID.ID for role in ("snapshot", "timestamp"))
        client.sign(used, MESSAGE)
        assert daemon.stop() == -signal.SIGTERM
    with daemon, Client(pair, daemon.port) as client:
        again, other = (client.create(GUN, role, "rsa").keyInfo.keyID.ID for role in ("snapshot", "timestamp"))
        assert again == pending
        assert other != used
        signed = client.sign(used, MESSAGE)
        key = PublicKey("rsa", client.info(used).publicKey)
        assert verify(key, Signature(used, "rsapss", signed.content), MESSAGE)


def test_a_passphrase_in_a_file_is_read_again(pair, tmp_path, storage):
    file = tmp_path / "passphrase"
    file.write_text(PASSPHRASE + "\n")
    daemon = ours(pair, tmp_path, storage, environment={"NOTARY_SIGNER_ALIAS_ONE_FILE": str(file)}, level="info")
    with daemon, Client(pair, daemon.port) as client:
        used = client.create(GUN, "snapshot", "ecdsa").keyInfo.keyID.ID
        daemon.stop()
    other = b"another passphrase\xe9"
    file.write_bytes(other)
    daemon.spawn()
    assert daemon.wait(READY_SECONDS) == 1
    last = json.loads(daemon.output().splitlines()[-1])["msg"]
    assert f"NOTARY_SIGNER_ALIAS_ONE: key {used}, wrapped with passphrase alias 'alias_one': it does not open" in last
    file.write_text(PASSPHRASE)
    with daemon, Client(pair, daemon.port) as client:
        file.write_bytes(other)
        daemon.signal(signal.SIGHUP)
        until(lambda: daemon.output().count("it does not open") == 2, "a refusal to reload")
        assert client.create(GUN, "timestamp", "ecdsa")
        file.write_text(PASSPHRASE)
        daemon.signal(signal.SIGHUP)
        until(lambda: "Reloaded; " in daemon.output(), "a reload")
        assert client.sign(used, MESSAGE).content
        daemon.stop()
    for said in (PASSPHRASE, "another passphrase"):
        assert said not in daemon.output()


ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def signer_database(mariadb):
    return migrated_database(mariadb, "signer")[0]


@pytest.mark.parametrize("given", ["environment", "environment in ASCII", "file"])
def test_a_passphrase_of_any_bytes_opens_keys_of_the_reference_and_back(
    pair, tmp_path, mariadb, signer_database, given
):
    """Bytes that are not UTF-8 come from an environment that was written in Latin-1."""
    passphrase = b"p\xe4ssphrase \xff\xfe of bytes"
    storage = {"backend": "mysql", "db_url": mariadb.db_url(signer_database)}
    in_environment = {
        "NOTARY_SIGNER_DEFAULT_ALIAS": "alias_one",
        "NOTARY_SIGNER_ALIAS_ONE": os.fsdecode(passphrase),
    }
    own = in_environment | (ASCII_LOCALE if given == "environment in ASCII" else {})
    if given == "file":
        (tmp_path / "passphrase").write_bytes(passphrase)
        own = in_environment | {
            "NOTARY_SIGNER_ALIAS_ONE": "",
            "NOTARY_SIGNER_ALIAS_ONE_FILE": str(tmp_path / "passphrase"),
        }
    made = []
    for name, command, environment in (
        ("go", GO_SIGNER, in_environment),
        ("ours", OUR_SIGNER, own),
        ("go", GO_SIGNER, in_environment),
    ):
        daemon = signer_daemon(name, command, pair, tmp_path, storage, environment=environment)
        with daemon, Client(pair, daemon.port) as client:
            for key in made:
                signed = client.sign(key.key_id, MESSAGE)
                assert verify(key, Signature(key.key_id, "ecdsa", signed.content), MESSAGE)
            made.append(PublicKey("ecdsa", client.create(f"{GUN}{len(made)}", "timestamp", "ecdsa").publicKey))
            daemon.stop()
    aliases = mariadb.execute(signer_database, "SELECT passphrase_alias FROM private_keys")
    assert aliases == [("alias_one",)] * len(made)


def test_concurrent_creations_leave_one_key(pair, tmp_path, storage):
    daemon = ours(pair, tmp_path, storage)
    with daemon, Client(pair, daemon.port) as client, ThreadPoolExecutor(16) as pool:
        made = pool.map(lambda _: client.create(GUN, "snapshot", "ecdsa").keyInfo.keyID.ID, range(48))
        assert len(set(made)) == 1
    with sqlite3.connect(tmp_path / "keys.db") as database:
        assert database.execute("SELECT count(*) FROM private_keys").fetchone() == (1,)
    database.close()


@pytest.mark.parametrize(
    ("changes", "environment", "message"),
    [
        pytest.param({}, {}, "NOTARY_SIGNER_ALIAS_ONE: missing", id="no passphrase"),
        pytest.param({"grpc_addr": "nowhere"}, None, "server.grpc_addr", id="bad address"),
        pytest.param({"client_ca_file": "missing.crt"}, None, "server.client_ca_file", id="missing file"),
    ],
)
def test_what_prevents_the_start_is_the_last_line(pair, tmp_path, storage, changes, environment, message):
    more = {} if environment is None else {"environment": environment}
    daemon = ours(pair, tmp_path, storage, **changes, **more)
    daemon.spawn()
    assert daemon.wait(READY_SECONDS) == 1
    last = json.loads(daemon.output().splitlines()[-1])
    assert last["level"] == "fatal"
    assert message in last["msg"]


def test_a_log_of_the_life_of_a_signer(pair, tmp_path, storage):
    daemon = ours(pair, tmp_path, storage, level="info")
    with daemon, Client(pair, daemon.port) as client:
        client.create(GUN, "snapshot", "ecdsa")
        daemon.stop()
    lines = [json.loads(line)["msg"] for line in daemon.output().splitlines()]
    assert re.fullmatch(r"Version: \S+, Git commit: \w+", lines[0])
    assert lines[1:3] == ["Using sqlite3 backend", f"Starting on 127.0.0.1:{daemon.port}"]
    assert lines[3].startswith("created, or found pending, key ")


def test_bootstrap_ends_by_itself(pair, tmp_path, storage):
    daemon = ours(pair, tmp_path, storage, flags="-bootstrap")
    daemon.spawn()
    assert daemon.wait(READY_SECONDS) == 0, daemon.output()
    assert (tmp_path / "keys.db").exists()


def core_limit(pid):
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line.split()[4:6] for line in limits if line.startswith("Max core file size"))


@pytest.mark.parametrize("name", OURS)
def test_no_core_files(pair, tmp_path, storage, name):
    with ours(pair, tmp_path, storage, name) as daemon:
        assert core_limit(daemon.pid) == ["0", "0"]


SHOW_DUMPABLE = """
import ctypes, sys
from notary.signer.tap import Options, makeService
options = Options()
options.parseOptions(sys.argv[1:])
makeService(options)
print("dumpable", ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


@pytest.mark.parametrize(("flags", "dumpable"), [((), "0"), (("-debug",), "1")], ids=["as usual", "debug"])
def test_the_memory_is_closed_to_others_unless_debugging(pair, tmp_path, storage, flags, dumpable):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(signer_config(pair, 1, storage)))
    ended = subprocess.run(
        [sys.executable, "-c", SHOW_DUMPABLE, *flags, f"-config={config}"],
        env=clean_environment({"NOTARY_SIGNER_ALIAS_ONE": PASSPHRASE}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"dumpable {dumpable}" in ended.stdout


SHOW_BEGIN = """
import importlib, sys
from pathlib import Path
seen = []
def look(event, arguments):  # at each import from here on
    if event == "import" and arguments[0].startswith(("twisted", "cryptography", "notary.signer.tap")):
        import ctypes
        seen.append((arguments[0], ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), PASSPHRASE in os.fsdecode(block())))
import ctypes, os
def block():
    address = ctypes.CDLL(None).getenv
    address.restype = ctypes.c_char_p
    return address(b"NOTARY_SIGNER_ALIAS_ONE")
PASSPHRASE = sys.argv[1]
start = importlib.import_module("notary.signer.start")
sys.addaudithook(look)
if sys.argv[2] == "main":
    sys.argv[1:] = ["-version"]
    try:
        start.main()
    except SystemExit:
        pass
else:
    start.Options, start.makeService
assert os.environ["NOTARY_SIGNER_ALIAS_ONE"] == PASSPHRASE
print(len(seen), {each[1:] for each in seen})
"""


@pytest.mark.parametrize("how", ["main", "twistd"])
def test_the_environment_is_hidden_and_scrubbed_before_anything_slow_is_loaded(how):
    ended = subprocess.run(
        [sys.executable, "-c", SHOW_BEGIN, PASSPHRASE, how],
        env=clean_environment({"NOTARY_SIGNER_ALIAS_ONE": PASSPHRASE}),
        capture_output=True,
        text=True,
        check=True,
    )
    count, seen = ended.stdout.splitlines()[-1].split(maxsplit=1)
    assert int(count) > 50
    assert seen == "{(0, False)}"


def test_what_starts_a_signer_is_the_module_that_hides():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["notary-signer"] == "notary.signer.start:main"
    assert plugin.notary_signer.module == "notary.signer.start"


def test_with_debug_core_files_are_left_to_the_system(pair, tmp_path, storage):
    with ours(pair, tmp_path, storage, flags="-debug") as daemon:
        assert core_limit(daemon.pid) == core_limit("self")


# -- what it never says -----------------------------------------------------------------------------------------------


def spellings(secret):
    """A secret in the forms in which a careless line would show it; parts of it, so that a shortened one is found."""
    part = secret[8:32]
    yield part.decode("latin-1")
    yield part.decode("utf-8", "backslashreplace")
    yield repr(part)[2:-1]
    yield part.hex()
    for shift in range(3):
        yield base64.b64encode(secret[8 + shift : 32 + shift - (shift % 3)])[2:-4].decode()
    yield json.dumps(part.decode("latin-1"))[1:-1]


@pytest.mark.parametrize("layout", ["json", "logfmt"])
@pytest.mark.parametrize("name", OURS)
def test_no_line_at_any_level_shows_a_secret(pair, tmp_path, storage, name, layout):
    flags = f"-logf={layout}"
    old = {
        "environment": {"NOTARY_SIGNER_OLD": OLD_PASSPHRASE, "NOTARY_SIGNER_ALIAS_ONE": PASSPHRASE},
        "storage": storage | {"default_alias": "old"},
    }
    daemon = ours(pair, tmp_path, **old, name=name, level="debug", flags=flags)
    with daemon, Client(pair, daemon.port) as client:
        lost, damaged = (client.create(GUN, role, "ecdsa").keyInfo.keyID.ID for role in ("targets", "timestamp"))
        daemon.stop()

    daemon = ours(pair, tmp_path, storage, name, level="debug", flags=flags, client_names=["notary-server"])
    with daemon, Client(pair, daemon.port) as client:
        ids = [client.create(GUN, "snapshot", algorithm).keyInfo.keyID.ID for algorithm in METHODS]
        for key_id in ids:
            client.sign(key_id, MESSAGE * 10)
            client.info(key_id)
        with sqlite3.connect(tmp_path / "keys.db", isolation_level=None) as database:
            wrong = jwe.wrap(b"nothing", "another passphrase").decode()
            statement = "UPDATE private_keys SET private = ?, passphrase_alias = 'alias_one' WHERE key_id = ?"
            database.execute(statement, (wrong, damaged))
            rows = database.execute("SELECT key_id, private FROM private_keys").fetchall()
        database.close()
        raw = MESSAGE.decode()
        assert status_of(client.sign, damaged, MESSAGE) is INTERNAL
        assert status_of(client.sign, lost, MESSAGE) is INTERNAL
        assert status_of(client.sign, NO_KEY, MESSAGE) is NOT_FOUND
        assert status_of(client.sign, raw, MESSAGE) is NOT_FOUND
        assert status_of(client.info, raw) is NOT_FOUND
        assert status_of(client.send, "Sign", b"\xff" + MESSAGE) is INTERNAL
        assert status_of(client.send, "Sign", b"\x12\x7f" + MESSAGE) is INTERNAL
        assert status_of(client.sign, ids[0], MESSAGE * 200_000) is grpc.StatusCode.RESOURCE_EXHAUSTED
        client.delete(raw)
        client.delete(ids[0])
        daemon.signal(signal.SIGUSR2)
        daemon.signal(signal.SIGUSR1)
        daemon.stop()

    output = daemon.output()
    assert damaged in output, "errors name the key"
    assert f"no passphrase of alias 'old', which key {lost} needs" in output
    passphrases = dict.fromkeys(ids, PASSPHRASE) | {lost: OLD_PASSPHRASE}
    secrets = [MESSAGE, *(value.encode() for value in (PASSPHRASE, OLD_PASSPHRASE))]
    for key_id, private in rows:
        wrapped = private.encode() if isinstance(private, str) else private
        secrets.append(wrapped[-60:])  # even what is wrapped is nobody's business
        if key_id in passphrases:
            plaintext = jwe.unwrap(wrapped, passphrases[key_id])
            secrets += [plaintext[start : start + 40] for start in range(0, len(plaintext) - 32, 16)]
    assert len(secrets) > 80
    assert any(spelling in output for spelling in spellings(lost.encode())), "what is shown is found"
    for secret in secrets:
        for spelling in spellings(secret):
            assert len(spelling) > 8
            assert spelling not in output
