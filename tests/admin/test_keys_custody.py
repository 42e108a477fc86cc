"""``keys reencrypt`` between passphrases and key-encrypting keys, and ``keys verify``, on every backend."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from notary import envelope
from notary.admin.command import Status
from notary.admin.commands import keys as commands
from notary.config import KekUri, KeyEncryption, vault
from notary.envelope.envelopes import Envelopes, under
from notary.envelope.file import FileKek
from notary.envelope.schemes import open_insides
from notary.envelope.vault import VaultKek
from notary.storage import keywrap
from notary.tuf import jwe, private
from tests.admin.conftest import admin
from tests.storage.conftest import BACKENDS
from tests.support.elsewhere import second_reactor
from tests.support.keyload import keep_creating, keep_signing, sign
from tests.support.keyplace import NEW, OLD, OTHER, PASSPHRASES, KeyPlace, environment, make_key
from tests.support.peers import clean_environment
from tests.support.signer import OUR_SIGNER, Client, Pair, signer_daemon
from tests.support.softhsm import Tokens
from tests.support.vault import REWRAPS, Token, Vault

ADMIN = str(Path(sys.executable).with_name("notary-admin"))
GUN = "example.com/app"
ONE, TWO = FileKek(bytes(range(32))), FileKek(bytes(range(1, 33)))


@pytest.fixture
def keks(tmp_path):
    """The URIs of the files of both key-encrypting keys."""
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).write_bytes(bytes(range(number, number + 32)))
    return f"file:{tmp_path}/one", f"file:{tmp_path}/two"


def opened(row, *keks):
    if row.keywrap_alg == jwe.KEYWRAP:
        return keywrap.unwrap(row, PASSPHRASES.get)
    return Envelopes(keks or [ONE, TWO]).open(row)


def sealed(gun, kek=ONE, algorithm="ed25519"):
    return Envelopes([kek]).seal(private.generate(algorithm), gun, "timestamp")


async def run(place, tmp_path, *arguments, keys, environ=None):
    config = place.config(tmp_path, keys)
    environ = environment() if environ is None else environ
    return await admin("keys", arguments[0], "--config", config, *arguments[1:], "--json", environ=environ)


@pytest_twisted.ensureDeferred
async def test_there_on_and_back(key_place, tmp_path, keks, monkeypatch):
    monkeypatch.setattr(commands, "BATCH_KEYS", 4)
    one, two = keks
    algorithms = ("ed25519", "ecdsa", "rsa")
    before = await key_place.fill(*(make_key(f"example.com/{n}", algorithm=algorithms[n % 3]) for n in range(6)))
    before += await key_place.fill(make_key(GUN), sealed("example.com/two", TWO), used=True)
    rows = await key_place.all("SELECT id, key_id, created_at, last_used FROM private_keys ORDER BY id")
    for keys, to, name, count in (
        ({"wrap": one, "unwrap": [two]}, ["--to-kek"], ONE.name, 8),
        ({"wrap": one, "unwrap": [two]}, ["--to-kek"], ONE.name, 0),
        ({"wrap": two, "unwrap": [one]}, ["--to-kek"], TWO.name, 8),
        ({"unwrap": [one, two]}, ["--to", NEW], NEW, 8),
        ({"wrap": one}, ["--to-kek"], ONE.name, 8),
        ({"wrap": one}, ["--to", OLD], OLD, 8),
    ):
        outcome = await run(key_place, tmp_path, "reencrypt", *to, keys=keys)
        assert outcome.status == Status.OK, outcome.err
        assert outcome.records == [{"alias": name, "reencrypted": count, "failed": 0}]
        after = await key_place.keys()
        assert {under(row) for row in after.values()} == {name}
        for key in before:
            assert opened(after[key.key_id]).encode() == opened(key).encode()
        assert await key_place.all("SELECT id, key_id, created_at, last_used FROM private_keys ORDER BY id") == rows
        outcome = await run(key_place, tmp_path, "verify", keys=keys)
        assert (outcome.status, outcome.records) == (Status.OK, [{"checked": 8, "do_not_open": 0}])
    assert {row.keywrap_alg for row in after.values()} == {jwe.KEYWRAP}


@pytest_twisted.ensureDeferred
async def test_a_new_version_of_a_key_in_transit(key_place, tmp_path):
    """Moving once is enough, and a server that is away ends the command before it changes anything."""
    with Vault(tmp_path / "vault") as server:
        keys = {"wrap": server.uri()}
        name = vault.parse(keys["wrap"].partition(":")[2]).name
        made = await key_place.fill(*(make_key(f"example.com/{n}") for n in range(3)))
        for count in (3, 0, 3, 0):
            outcome = await run(key_place, tmp_path, "reencrypt", "--to-kek", keys=keys)
            assert (outcome.status, outcome.records[-1]) == (
                Status.OK,
                {"alias": name, "reencrypted": count, "failed": 0},
            ), outcome.err
            if not count:
                server.rotate()
        server.keys["transit/notary"].min_decryption_version = 2
        outcome = await run(key_place, tmp_path, "verify", keys=keys)
        assert (outcome.status, outcome.records) == (Status.OK, [{"checked": 3, "do_not_open": 0}])
        server.keys["transit/notary"].min_decryption_version = 3
        outcome = await run(key_place, tmp_path, "verify", keys=keys)
        assert (outcome.status, outcome.records[-1]) == (Status.FOUND, {"checked": 3, "do_not_open": 3})
        before = await key_place.keys()
        assert set(before) == {row.key_id for row in made}
        server.sealed = True
        outcome = await run(key_place, tmp_path, "reencrypt", "--to-kek", keys=keys)
        assert outcome.status != Status.OK
        assert "the server is sealed" in outcome.err
        assert await key_place.keys() == before


@pytest_twisted.ensureDeferred
async def test_what_does_not_open_is_left(key_place, tmp_path, keks):
    one, two = keks
    elsewhere = FileKek(bytes(range(2, 34)))
    sound, lost = await key_place.fill(make_key(GUN), sealed("example.com/lost", elsewhere))
    damaged = sealed("example.com/damaged", TWO)
    damaged = replace(damaged, private=damaged.private[:-1] + bytes([damaged.private[-1] ^ 1]))
    unknown = replace(sealed("example.com/unknown"), keywrap_alg="HSM-OF-ANOTHER-HOUSE")
    await key_place.fill(damaged, unknown)
    before = await key_place.keys()
    outcome = await run(key_place, tmp_path, "reencrypt", "--to-kek", keys={"wrap": one, "unwrap": [two]})
    assert outcome.status == Status.FOUND
    assert outcome.records == [{"alias": ONE.name, "reencrypted": 1, "failed": 3}]
    lines = {key.key_id: line for key in before.values() for line in outcome.err.splitlines() if key.key_id in line}
    assert f"there is no key-encrypting key '{elsewhere.name}': name it in storage.keys.unwrap" in lines[lost.key_id]
    assert "its envelope is damaged in the store" in lines[damaged.key_id]
    assert "HSM-OF-ANOTHER-HOUSE" in lines[unknown.key_id]
    after = await key_place.keys()
    assert under(after[sound.key_id]) == ONE.name
    assert {key: row for key, row in after.items() if key != sound.key_id} == {
        key: row for key, row in before.items() if key != sound.key_id
    }
    outcome = await run(key_place, tmp_path, "reencrypt", "--to", NEW, keys={})
    assert "is under a key-encrypting key: name it in storage.keys.wrap" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "keys", "text"),
    [
        ([], {}, "--to, --to-kek: expected one of the two, and not both"),
        (["--to", NEW, "--to-kek"], {"wrap": "file:one"}, "--to, --to-kek: expected one of the two, and not both"),
        (["--to-kek"], {}, "storage.keys.wrap: missing; expected the URI of the new key-encrypting key"),
        (["--to-kek"], {"unwrap": ["file:one"]}, "storage.keys.wrap: missing; expected the URI"),
        (["--to-kek"], {"wrap": "file:three"}, "storage.keys.wrap: file:"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_reencrypt_to_nothing(key_place, tmp_path, keks, arguments, keys, text):
    (key,) = await key_place.fill(make_key(GUN))
    outcome = await run(key_place, tmp_path, "reencrypt", *arguments, keys=keys)
    assert outcome.status == Status.USAGE
    assert outcome.err.startswith(f"notary-admin: {text}")
    assert await key_place.keys() == {key.key_id: key}


@pytest_twisted.ensureDeferred
async def test_list_by_the_name_of_a_kek(key_place, tmp_path, keks):
    await key_place.fill(make_key(GUN), sealed("example.com/two", TWO), sealed("example.com/one"))
    outcome = await run(key_place, tmp_path, "list", "--alias", TWO.name, keys={})
    assert [record["gun"] for record in outcome.records] == ["example.com/two"]


# -- verify -----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_verify_says_what_does_not_open_and_what_can_be_done(key_place, tmp_path, keks):
    await key_place.fill(make_key(GUN), sealed("example.com/sound"))
    other = {"passphrase of another time": PASSPHRASES[OTHER]}
    earlier = keywrap.wrap(
        private.generate("ed25519"), "example.com/earlier", "snapshot", OLD, lambda _: other.popitem()[1]
    )
    mixed = replace(make_key("example.com/mixed"), private=make_key("x").private)
    broken = await key_place.fill(
        earlier,
        mixed,
        replace(make_key("example.com/new"), passphrase_alias=NEW),
        make_key("example.com/other", alias=OTHER),
        sealed("example.com/two", TWO),
        replace(sealed("example.com/short"), private=b"NE1"),
    )
    before = await key_place.keys()
    outcome = await run(key_place, tmp_path, "verify", keys={"wrap": keks[0]})
    assert outcome.status == Status.FOUND
    *found, total = outcome.records
    assert total == {"checked": 8, "do_not_open": 6}
    assert [record["key_id"] for record in found] == [key.key_id for key in broken]
    assert found[0]["under"] == OLD
    assert (found[0]["gun"], found[0]["role"]) == ("example.com/earlier", "snapshot")
    for record, text in zip(
        found,
        (
            "the passphrase is wrong, or the stored bytes are damaged",
            "the two halves",
            "the passphrase is wrong, or the stored bytes are damaged",
            "there is no passphrase of alias 'alias_other'",
            "name it in storage.keys.unwrap",
            "its envelope is damaged",
        ),
        strict=True,
    ):
        assert text in record["problem"]
    lines = outcome.err.splitlines()
    assert [line for line in lines if line.startswith(f"Under passphrase '{OLD}' other keys open, so these are")]
    assert [line for line in lines if line.startswith(f"Under passphrase '{NEW}' no key opens: the passphrase is prob")]
    assert sum("Harbor 2.2.0 to 2.2.2 and 2.3.0" in line for line in lines) == 2
    assert "have the publisher rotate the key" in lines[-1]
    assert not any(passphrase in outcome.err + outcome.out for passphrase in PASSPHRASES.values())
    assert await key_place.keys() == before
    some = await run(key_place, tmp_path, "verify", "--prefix", "example.com/s", keys={"wrap": keks[0]})
    assert some.records[-1] == {"checked": 2, "do_not_open": 1}


# -- beside a signer, and interrupted ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return Pair.mint(tmp_path_factory.mktemp("tls"))


@contextmanager
def serving(pair, place, directory, keys, *aliases):
    storage = {"backend": place.backend, "db_url": place.db_url, "default_alias": OLD, "keys": keys}
    daemon = signer_daemon("signer", OUR_SIGNER, pair, directory, storage, environment=environment(*aliases))
    with daemon, Client(pair, daemon.port) as client:
        yield client


def killed_and_started_again(config: Path, *arguments: str) -> tuple[int, str]:
    """Run the command, kill -9 it a few times while it moves keys, then let it end; how often it was killed."""
    kills = 0
    while True:
        process = subprocess.Popen(
            [ADMIN, "keys", "reencrypt", "--config", config, *arguments, "--json"],
            env=clean_environment(environment()),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                out, err = process.communicate(timeout=1.2 if kills < 3 else 120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
                continue
        assert process.returncode == Status.OK, err
        return kills, out


def under_load(client, used, pending, config, arguments):
    """Move all keys while others sign, sign for the first time, and create; the keys that were made."""
    ended = Event()
    with ThreadPoolExecutor(3) as threads:
        signing = threads.submit(keep_signing, client, used, ended)
        making = threads.submit(keep_creating, client, ended)
        firsts = threads.submit(lambda: [sign(client, key) for key in pending])
        try:
            _, out = killed_and_started_again(config, *arguments)
        finally:
            ended.set()
        signing.result()
        assert all(firsts.result())
        return out, making.result()


@pytest_twisted.ensureDeferred
async def test_killed_while_the_signer_serves_nothing_is_lost(key_place, pair, tmp_path, keks):
    one, _ = keks
    used = await key_place.fill(*(make_key(f"example.com/used/{n}") for n in range(150)), used=True)
    pending = await key_place.fill(*(make_key(f"example.com/pending/{n}") for n in range(50)))
    expected = {key.key_id for key in (*used, *pending)}

    def move(keys, arguments, name):
        config = key_place.config(tmp_path, keys)
        with serving(pair, key_place, tmp_path / name, keys, OLD, NEW) as client:
            out, made = under_load(client, used, pending, config, arguments)
        assert json.loads(out)["failed"] == 0
        return made

    expected |= set(await deferToThread(move, {"wrap": one}, ["--to-kek"], "there"))
    stored = await key_place.keys()
    assert set(stored) == expected
    assert {row.keywrap_alg for row in stored.values()} == {envelope.KEYWRAP}
    assert all(stored[key.key_id].last_used for key in pending)
    # Back, and the signer makes keys under the old passphrase meanwhile.
    made = await deferToThread(move, {"unwrap": [one]}, ["--to", OLD], "back")
    stored = await key_place.keys()
    assert set(stored) >= expected | set(made)
    assert {row.keywrap_alg for row in stored.values()} == {jwe.KEYWRAP}

    def with_the_passphrase_only():
        with serving(pair, key_place, tmp_path / "only", {}, OLD) as client:
            return [sign(client, key) for key in (*used, *pending)]

    assert all(await deferToThread(with_the_passphrase_only))


def under_transit(server, count):
    """Keys under the first version of the key of ``server``, ten of them under one data key."""
    with second_reactor() as second:
        kek = VaultKek(vault.parse(server.uri().partition(":")[2]), second)
        box = Envelopes([kek], keys_of_a_data_key=10)
        rows = [box.seal(private.generate("ed25519"), f"example.com/{n}", "timestamp") for n in range(count)]
        kek.close()
        return rows


@pytest.mark.parametrize("key_place", [each for each in BACKENDS if each.id == "sqlite3"], indirect=True)
@pytest_twisted.ensureDeferred
async def test_more_keys_in_transit_than_threads(key_place, tmp_path):
    """Threads that wait for the server leave one to look its name up, and to read the file of the login."""
    with Vault(tmp_path / "vault") as server:
        await key_place.fill(*await deferToThread(under_transit, server, 30))
        outcome = await run(key_place, tmp_path, "verify", keys={"wrap": server.uri()})
        assert (outcome.status, outcome.records) == (Status.OK, [{"checked": 30, "do_not_open": 0}]), outcome.err


@pytest.mark.parametrize("key_place", [each for each in BACKENDS if each.id == "mysql"], indirect=True)
@pytest_twisted.ensureDeferred
async def test_rewrapped_and_killed_while_the_signer_serves(key_place, pair, tmp_path):
    """A rotation of the key in Transit: the command may only rewrap, and the private part of each row stays."""
    with Vault(tmp_path / "vault") as server:
        rows = await deferToThread(under_transit, server, 200)
        used, pending = await key_place.fill(*rows[:150], used=True), await key_place.fill(*rows[150:])
        before = await key_place.keys()
        keys = {"wrap": server.uri()}
        server.rotate()
        server.tokens["of-the-rotation"] = Token(REWRAPS)
        (tmp_path / "token").write_text("of-the-rotation")
        config = key_place.config(tmp_path, {"wrap": server.uri(f"token-file={tmp_path}/token")})

        def move():
            with serving(pair, key_place, tmp_path / "there", keys, OLD) as client:
                return under_load(client, used, pending, config, ["--to-kek"])

        out, made = await deferToThread(move)
        assert json.loads(out)["failed"] == 0
        after = await key_place.keys()
        assert set(after) == {row.key_id for row in rows} | set(made)
        assert {row.private[5:].partition(b":v")[2][:1] for row in after.values()} == {b"2"}
        for row in rows:
            was, now = before[row.key_id], after[row.key_id]
            assert now.passphrase_alias == was.passphrase_alias
            assert now.private[-60:] == was.private[-60:]
        server.keys["transit/notary"].min_decryption_version = 2
        outcome = await run(key_place, tmp_path, "verify", keys=keys)
        assert (outcome.status, outcome.records) == (Status.OK, [{"checked": len(after), "do_not_open": 0}]), (
            outcome.err
        )


# -- bench ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["passphrase", "file", "pkcs11", "vault"])
@pytest_twisted.ensureDeferred
async def test_bench_measures_what_is_configured_and_stores_nothing(place, tmp_path, keks, monkeypatch):
    place_of = KeyPlace("sqlite3", str(tmp_path / "keys.db"))  # which is not there, and stays away
    with Vault(tmp_path / "vault") as server:
        if place == "pkcs11":
            uri = Tokens.make(tmp_path / "hsm").seen_by(monkeypatch).uri()
        else:
            uri = {"file": keks[0], "vault": server.uri()}.get(place)
        outcome = await run(place_of, tmp_path, "bench", "--seconds", "0.1", keys={} if uri is None else {"wrap": uri})
    assert outcome.status == Status.OK, outcome.err
    works = [(record["work"], record["threads"]) for record in outcome.records]
    asked = [] if uri is None else [("encrypt a data key", 1), ("decrypt a data key", 1)]
    assert works == [*asked, ("make a key", 1), ("make a key", 8), ("open a key", 1), ("sign", 1)]
    for record in outcome.records:
        assert record["per_second"] > 0
        assert 0 <= record["median_ms"] <= record["worst_ms"]
    assert not (tmp_path / "keys.db").exists()


@pytest_twisted.ensureDeferred
async def test_bench_of_keys_inside_leaves_none_there(tmp_path, monkeypatch):
    tokens = Tokens.make(tmp_path / "hsm").seen_by(monkeypatch)
    place = KeyPlace("sqlite3", str(tmp_path / "keys.db"))
    outcome = await run(place, tmp_path, "bench", "--seconds", "0.1", keys={"wrap": tokens.inside()})
    assert outcome.status == Status.OK, outcome.err
    assert [(each["work"], each["threads"]) for each in outcome.records] == [
        ("make a key", 1),
        ("make a key", 8),
        ("open a key", 1),
        ("sign", 1),
        ("sign", 8),
    ]
    assert "EC" not in tokens.tool("notary", "--list-objects")


@pytest_twisted.ensureDeferred
async def test_keys_inside_are_verified_and_not_moved(key_place, tmp_path, keks, monkeypatch):
    tokens = Tokens.make(tmp_path / "hsm").seen_by(monkeypatch)
    insides = open_insides(KeyEncryption(wrap=KekUri("pkcs11", tokens.inside().partition(":")[2])))
    made = [(await deferToThread(insides.first.make, f"example.com/{n}", "timestamp", "ecdsa"))[1] for n in range(2)]
    await key_place.fill(make_key(GUN), *made)
    await deferToThread(insides.first.forget, made[1])
    await deferToThread(insides.close)
    outcome = await run(key_place, tmp_path, "verify", keys={"unwrap": [tokens.inside()]})
    assert (outcome.status, outcome.records[-1]) == (Status.FOUND, {"checked": 3, "do_not_open": 1})
    assert "there are 0 keys in the token" in outcome.records[0]["problem"]
    outcome = await run(key_place, tmp_path, "reencrypt", "--to-kek", keys={"wrap": keks[0]})
    assert (outcome.status, outcome.records[-1]["failed"]) == (Status.FOUND, 2)
    assert f"key {made[0].key_id} is inside a token, which it never leaves" in outcome.err


@pytest_twisted.ensureDeferred
async def test_bench_of_what_is_away(tmp_path):
    with Vault(tmp_path / "vault") as server:
        server.sealed = True
        place = KeyPlace("sqlite3", str(tmp_path / "keys.db"))
        outcome = await run(place, tmp_path, "bench", keys={"wrap": server.uri()})
    assert outcome.status not in (Status.OK, Status.FAULT)
    assert "the server is sealed" in outcome.err
