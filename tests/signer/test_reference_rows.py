"""Keys that the reference signer made and stored, in ours: they open, and sign what its signatures match."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import joserfc.jwe
import pytest
import pytest_twisted
from joserfc.jwe import JWERegistry
from joserfc.jwk import OctKey

from notary.storage import StoredKey
from notary.tuf import jwe, private
from notary.tuf.public import PublicKey, Signature, verify

GOLDEN = json.loads((Path(__file__).parent / "data" / "reference-rows.json").read_text("utf-8"))
PASSPHRASES = GOLDEN["passphrases"]
MESSAGE = GOLDEN["message"].encode()
ROWS = [
    pytest.param(row, id=f"{row['algorithm']}-{row['passphrase_alias']}-{'used' if row['last_used'] else 'pending'}")
    for row in GOLDEN["rows"]
]


def stored(row):
    used = row["last_used"]
    return StoredKey(
        key_id=row["key_id"],
        algorithm=row["algorithm"],
        public=base64.b64decode(row["public"]),
        private=row["private"].encode(),
        gun=row["gun"],
        role=row["role"],
        passphrase_alias=row["passphrase_alias"],
        encryption_alg=row["encryption_alg"],
        keywrap_alg=row["keywrap_alg"],
        last_used=None if used is None else datetime.fromisoformat(used).replace(tzinfo=UTC),
    )


def test_the_golden_rows_are_of_every_kind():
    kinds = {(row["algorithm"], row["passphrase_alias"]) for row in GOLDEN["rows"]}
    assert kinds >= {("ecdsa", "alias_one"), ("ed25519", "alias_one"), ("rsa", "alias_one"), ("ecdsa", "alias_two")}
    assert {bool(row["last_used"]) for row in GOLDEN["rows"]} == {True, False}


@pytest.mark.parametrize("row", ROWS)
def test_ids_and_names_are_ours(row):
    key = stored(row)
    assert PublicKey(key.algorithm, key.public).key_id == key.key_id
    assert (key.encryption_alg, key.keywrap_alg) == (jwe.ENCRYPTION, jwe.KEYWRAP)


@pytest.mark.parametrize("row", ROWS)
def test_they_open_and_would_be_written_the_same(row):
    key = stored(row)
    plaintext = jwe.unwrap(key.private, PASSPHRASES[key.passphrase_alias])
    assert private.decode(key.algorithm, key.public, plaintext).encode() == plaintext


@pytest.mark.parametrize("row", [row for row in ROWS if "signed" in row.values[0]])
def test_its_signatures_verify_and_ours_look_the_same(row):
    key, signed = stored(row), row["signed"]
    public = PublicKey(key.algorithm, key.public)
    signature = base64.b64decode(signed["signature"])
    assert verify(public, Signature(key.key_id, signed["method"], signature), MESSAGE)
    ours = private.decode(key.algorithm, key.public, jwe.unwrap(key.private, PASSPHRASES[key.passphrase_alias]))
    assert (ours.method, len(ours.sign(MESSAGE))) == (signed["method"], len(signature))
    if key.algorithm == "ed25519":  # the one that is deterministic
        assert ours.sign(MESSAGE) == signature


@pytest.mark.parametrize("row", ROWS)
@pytest_twisted.ensureDeferred
async def test_the_keyring_signs_with_them(bench, row):
    key = stored(row)
    await bench.store.add(key)
    bench.passphrases.update(PASSPHRASES)
    signed = await bench.keyring().sign(key.key_id, MESSAGE)
    assert verify(signed.key, Signature(key.key_id, signed.method, signed.signature), MESSAGE)


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519", "rsa"])
@pytest_twisted.ensureDeferred
async def test_our_rows_open_with_an_independent_implementation(bench, algorithm):
    key = await bench.keyring().create("example.com/app", "snapshot", algorithm)
    row = await bench.store.get(key.key_id)
    opened = joserfc.jwe.decrypt_compact(
        row.private,
        OctKey.import_key("the first passphrase"),
        registry=JWERegistry(algorithms=["PBES2-HS256+A128KW", "A256GCM"]),
    )
    assert opened.protected == opened.protected | {"alg": row.keywrap_alg, "enc": row.encryption_alg, "p2c": 8192}
    assert private.decode(algorithm, key.public, opened.plaintext).public == key
