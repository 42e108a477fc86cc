"""``keys``: list, reencrypt and prune, on every backend."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
import pytest_twisted

from notary.admin.command import Status
from notary.admin.commands import keys
from notary.storage import keywrap
from tests.admin.conftest import admin
from tests.support.keyplace import NEW, OLD, OTHER, PASSPHRASES, USED, environment, make_key

GUN = "example.com/app"


async def run(place, tmp_path, *arguments, environ=None, **more):
    """A command of ``keys`` on a place."""
    config = place.config(tmp_path)
    environ = environment() if environ is None else environ
    return await admin("keys", arguments[0], "--config", config, *arguments[1:], environ=environ, **more)


def only(*aliases):
    return {alias: PASSPHRASES[alias] for alias in aliases}.get


def but_wrapping(key):
    return replace(key, private=b"", passphrase_alias="")


# -- list -------------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_list(key_place, tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "BATCH_KEYS", 2)
    (used,) = await key_place.fill(make_key(GUN), used=True)
    others = await key_place.fill(
        make_key(GUN, "snapshot", algorithm="ecdsa"), make_key("example.com/b", alias=NEW), make_key("other.org/c")
    )
    outcome = await run(key_place, tmp_path, "list", "--json")
    assert outcome.status == Status.OK, outcome.err
    assert [record["key_id"] for record in outcome.records] == [key.key_id for key in (used, *others)]
    created = outcome.records[0].pop("created")
    assert outcome.records[0]["created"] == created
    assert {**outcome.records[0], "created": None} == {
        "key_id": used.key_id,
        "gun": GUN,
        "role": "timestamp",
        "algorithm": "ed25519",
        "alias": OLD,
        "created": None,
        "last_used": "2030-05-17T12:30:01Z",
        "pending": False,
    }
    assert outcome.records[1]["last_used"] is None
    assert outcome.records[1]["pending"] is True


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "abcd"),
        (["--prefix", "example.com/"], "abc"),
        (["--prefix", "example.com/A"], ""),
        (["--role", "snapshot"], "b"),
        (["--alias", NEW], "c"),
        (["--pending"], "bcd"),
        (["--pending", "--prefix", "example.com/", "--role", "timestamp"], "c"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_list_of_some(key_place, tmp_path, options, expected):
    found = await key_place.fill(make_key(GUN), used=True)
    found += await key_place.fill(
        make_key(GUN, "snapshot"), make_key("example.com/b", alias=NEW), make_key("other.org/c")
    )
    outcome = await run(key_place, tmp_path, "list", "--json", *options)
    names = dict(zip((key.key_id for key in found), "abcd", strict=True))
    assert "".join(names[record["key_id"]] for record in outcome.records) == expected


@pytest_twisted.ensureDeferred
async def test_list_on_a_terminal(key_place, tmp_path):
    (key,) = await key_place.fill(make_key("example.com/\x1b[2J"))
    outcome = await run(key_place, tmp_path, "list", terminal=True)
    assert key.key_id[:12] in outcome.out
    cells = [line.split("│")[1:-1] for line in outcome.out.splitlines() if "│" in line]
    whole = ["".join(part.strip() for part in column) for column in zip(*cells, strict=True)]  # none is cut off
    assert whole[:5] == [key.key_id[:12], r"example.com/\x1b[2J", "timestamp", "ed25519", OLD]
    assert whole[6] == "pending"
    assert "\x1b[2J" not in outcome.out.partition(key.key_id[:12])[2].partition("\n")[0]


@pytest_twisted.ensureDeferred
async def test_a_row_that_cannot_be_read(key_place, tmp_path):
    if key_place.backend != "sqlite3":  # the others hold columns to their types
        await key_place.fill(make_key(GUN))
        return
    damaged, sound = await key_place.fill(make_key(GUN), make_key("example.com/b"))
    await key_place.execute("UPDATE private_keys SET last_used = 'yesterday' WHERE key_id = ?", damaged.key_id)
    outcome = await run(key_place, tmp_path, "list", "--json")
    assert outcome.status == Status.FOUND
    assert outcome.records[0]["key_id"] == damaged.key_id
    assert "'yesterday' where a time belongs" in outcome.records[0]["problem"]
    outcome = await run(key_place, tmp_path, "reencrypt", "--to", NEW)
    assert outcome.status == Status.FOUND
    assert damaged.key_id in outcome.err
    assert (await key_place.keys())[sound.key_id].passphrase_alias == NEW


@pytest_twisted.ensureDeferred
async def test_a_key_used_at_no_time_is_not_pending(key_place, tmp_path):
    """MySQL's date of zeros is not NULL: such a key has been used, and is never handed out again."""
    zero = "0000-00-00 00:00:00" if key_place.backend == "mysql" else "0001-01-01 00:00:00"
    (used,) = await key_place.fill(make_key(GUN))
    await key_place.date(used, zero, zero)
    outcome = await run(key_place, tmp_path, "list", "--json")
    assert [(each["key_id"], each["pending"]) for each in outcome.records] == [(used.key_id, False)]
    assert outcome.records[0]["created"] in {None, "-"}
    assert (await run(key_place, tmp_path, "reencrypt", "--to", NEW)).status == Status.OK
    assert (await key_place.keys())[used.key_id].passphrase_alias == NEW
    rows = await key_place.all(f"SELECT key_id FROM private_keys WHERE last_used = '{zero}' AND created_at = '{zero}'")
    assert rows == [(used.key_id,)]


@pytest_twisted.ensureDeferred
async def test_keys_are_the_signers(server_config):
    outcome = await admin("keys", "list", "--config", server_config)
    assert outcome.status == Status.USAGE
    assert "expected a signer's" in outcome.err


# -- reencrypt --------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_reencrypt(key_place, tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "BATCH_KEYS", 4)
    algorithms = ("ed25519", "ecdsa", "rsa")
    before = await key_place.fill(*(make_key(f"example.com/{n}", algorithm=algorithms[n % 3]) for n in range(9)))
    before += await key_place.fill(make_key(GUN), make_key("example.com/b", alias=NEW), used=True)
    stored = await key_place.keys()
    created = await key_place.all("SELECT id, key_id, created_at FROM private_keys ORDER BY id")
    outcome = await run(key_place, tmp_path, "reencrypt", "--to", NEW, "--json")
    assert outcome.status == Status.OK, outcome.err
    assert outcome.records == [{"alias": NEW, "reencrypted": 10, "failed": 0}]
    after = await key_place.keys()
    assert list(after) == list(stored) == [key.key_id for key in before]
    for key in before:
        assert after[key.key_id].passphrase_alias == NEW
        assert but_wrapping(after[key.key_id]) == but_wrapping(stored[key.key_id])
        was, now = keywrap.unwrap(key, only(OLD, NEW)), keywrap.unwrap(after[key.key_id], only(NEW))
        assert now.encode() == was.encode()
    assert after[before[-1].key_id] == stored[before[-1].key_id]  # it was there already
    assert after[GUN_KEY(before)].last_used == USED
    assert await key_place.all("SELECT id, key_id, created_at FROM private_keys ORDER BY id") == created
    again = await run(key_place, tmp_path, "reencrypt", "--to", NEW, "--json", environ=environment(OLD, NEW))
    assert again.records == [{"alias": NEW, "reencrypted": 0, "failed": 0}]


def GUN_KEY(keys):
    return next(key.key_id for key in keys if key.gun == GUN)


@pytest_twisted.ensureDeferred
async def test_reencrypt_leaves_what_it_cannot_open(key_place, tmp_path):
    (lost, sound) = await key_place.fill(make_key(GUN, alias=OTHER), make_key("example.com/b"))
    mixed = replace(make_key("example.com/c"), private=make_key("example.com/d").private)
    damaged = replace(make_key("example.com/e"), private=b"no JWE")
    foreign = replace(make_key("example.com/f"), public=make_key("example.com/f").public)
    wrong = replace(make_key("example.com/g", alias=OTHER), passphrase_alias=OLD)
    broken = [mixed, damaged, foreign, wrong]
    await key_place.fill(*broken)
    before = await key_place.keys()
    outcome = await run(key_place, tmp_path, "reencrypt", "--to", NEW)
    assert outcome.status == Status.FOUND
    assert outcome.out == f"1 key encrypted under {NEW}, 5 left unchanged\n"
    lines = {key.key_id: line for key in (lost, *broken) for line in outcome.err.splitlines() if key.key_id in line}
    assert "there is no passphrase of alias 'alias_other'" in lines[lost.key_id]
    assert "the two halves" in lines[mixed.key_id]
    assert "it is not a compact JWE" in lines[damaged.key_id]
    assert "its public half belongs to another id" in lines[foreign.key_id]
    assert "the passphrase is wrong, or the stored bytes are damaged" in lines[wrong.key_id]
    assert not any(passphrase in outcome.err for passphrase in PASSPHRASES.values())
    after = await key_place.keys()
    assert after[sound.key_id].passphrase_alias == NEW
    assert all(after[key.key_id] == before[key.key_id] for key in (lost, *broken))
    # With the passphrase that was missing, it is put right.
    outcome = await run(key_place, tmp_path, "reencrypt", "--to", NEW, environ=environment(OLD, NEW, OTHER))
    assert (await key_place.keys())[lost.key_id].passphrase_alias == NEW


@pytest.mark.parametrize(
    ("alias", "text"),
    [
        (OTHER, "NOTARY_SIGNER_ALIAS_OTHER: missing or empty; expected the new passphrase"),
        ("a" * 51, "--to: expected an alias of at most 50 characters, the limit of the database"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_reencrypt_to_nothing(key_place, tmp_path, alias, text):
    (key,) = await key_place.fill(make_key(GUN))
    outcome = await run(key_place, tmp_path, "reencrypt", "--to", alias)
    assert (outcome.status, outcome.err) == (Status.USAGE, f"notary-admin: {text}\n")
    assert await key_place.keys() == {key.key_id: key}


# -- prune ------------------------------------------------------------------------------------------------------------


async def filled(place):
    """Keys by name: old and young, pending and used, of two collections."""
    found = {name: (await place.fill(make_key(f"{gun}/{name}")))[0] for name, gun in (("young", "a"), ("old", "a"))}
    (found["other"],) = await place.fill(make_key("b/other"))
    (found["used"],) = await place.fill(make_key("a/used"), used=True)
    now = await now_of(place)
    for name in ("old", "other", "used"):
        await place.age(found[name], now - timedelta(days=31))
    await place.age(found["young"], now - timedelta(days=29))
    return found


async def now_of(place):
    async with place.store() as store:
        return store._database.now().replace(microsecond=0)


def left(found, stored):
    return {name for name, key in found.items() if key.key_id in stored}


@pytest_twisted.ensureDeferred
async def test_prune(key_place, tmp_path):
    found = await filled(key_place)
    outcome = await run(key_place, tmp_path, "prune", "--older-than", "30d", "--dry-run", "--json")
    assert outcome.status == Status.OK, outcome.err
    assert {record["key_id"] for record in outcome.records} == {found["old"].key_id, found["other"].key_id}
    assert left(found, await key_place.keys()) == set(found)
    outcome = await run(key_place, tmp_path, "prune", "--older-than", "30d", "--yes", "--json", "--prefix", "a/")
    assert outcome.records == [{"removed": 1}]
    assert left(found, await key_place.keys()) == {"young", "other", "used"}


@pytest.mark.parametrize(("answer", "status", "kept"), [("y\n", 0, {"young", "used"}), ("n\n", 5, None), ("", 5, None)])
@pytest_twisted.ensureDeferred
async def test_prune_asks(key_place, tmp_path, answer, status, kept):
    found = await filled(key_place)
    outcome = await run(key_place, tmp_path, "prune", "--older-than", "30d", answer=answer)
    assert outcome.status == status
    assert "Remove 2 keys that have never signed, for good? [y/N]" in outcome.err
    assert left(found, await key_place.keys()) == (set(found) if kept is None else kept)


@pytest_twisted.ensureDeferred
async def test_prune_without_a_terminal(key_place, tmp_path):
    found = await filled(key_place)
    outcome = await run(key_place, tmp_path, "prune", "--older-than", "30d")
    assert outcome.status == Status.USAGE
    assert "--yes: missing" in outcome.err
    assert left(found, await key_place.keys()) == set(found)


@pytest_twisted.ensureDeferred
async def test_prune_of_nothing(key_place, tmp_path):
    await key_place.fill(make_key(GUN))
    outcome = await run(key_place, tmp_path, "prune", "--older-than", "1h", "--yes")
    assert (outcome.status, outcome.err) == (Status.OK, "there are no such keys\n")
