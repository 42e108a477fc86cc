"""Private keys: made, written, read, and never shown."""

from __future__ import annotations

import base64
import json
import re
import traceback
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from notary.config import ServerConfig
from notary.config.table import keys as configuration_keys
from notary.errors import SigningFailed, UnsupportedAlgorithm
from notary.tuf import private, public
from notary.tuf.public import Signature, verify

METHODS = {"ed25519": "eddsa", "ecdsa": "ecdsa", "rsa": "rsapss"}
GO_KEYS = [row for row in json.loads((Path(__file__).parent / "data" / "keys.json").read_bytes()) if row.get("private")]
MESSAGE = b'{"version":1}'


def traditional(secret):
    return secret.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def pkix(secret):
    return secret.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_an_algorithm_has_a_row_in_each_table_and_can_be_configured():
    (kind,) = [key.kind for path, key, _ in configuration_keys(ServerConfig) if path == "trust_service.key_algorithm"]
    assert set(re.findall(r'"(\w+)"', kind.expected)) == set(private._ALGORITHMS) == set(METHODS)
    assert all((row.method, algorithm) in public._ALGORITHMS for algorithm, row in private._ALGORITHMS.items())


@pytest.fixture(scope="module")
def keys():
    return {algorithm: private.generate(algorithm) for algorithm in METHODS}


@pytest.mark.parametrize(("algorithm", "method"), METHODS.items())
def test_generated_keys_sign(keys, algorithm, method):
    key = keys[algorithm]
    assert (key.public.key_type, key.method) == (algorithm, method)
    assert verify(key.public, Signature(key.public.key_id, method, key.sign(MESSAGE)), MESSAGE)
    assert not verify(key.public, Signature(key.public.key_id, method, key.sign(MESSAGE)), MESSAGE + b" ")


@pytest.mark.parametrize("algorithm", METHODS)
def test_what_is_written_is_read(keys, algorithm):
    key = keys[algorithm]
    again = private.decode(algorithm, key.public.public, key.encode())
    assert again.public == key.public
    assert again.encode() == key.encode()
    assert verify(key.public, Signature("", again.method, again.sign(MESSAGE)), MESSAGE)


@pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa"])
def test_every_key_is_new(keys, algorithm):
    assert private.generate(algorithm).public.key_id != keys[algorithm].public.key_id


def test_the_sizes_of_new_keys(keys):
    assert len(keys["ed25519"].encode()) == 96
    assert len(keys["ed25519"].public.public) == 32
    assert keys["ed25519"].encode()[:32] == keys["ed25519"].encode()[64:] == keys["ed25519"].public.public
    assert serialization.load_der_private_key(keys["ecdsa"].encode(), None).curve.name == "secp256r1"
    assert len(keys["ecdsa"].sign(MESSAGE)) == 64
    assert serialization.load_der_private_key(keys["rsa"].encode(), None).key_size >= 2048


@settings(max_examples=30)
@given(st.binary(max_size=100))
def test_ecdsa_signatures_are_of_one_width(message):
    # About one r or s in 256 begins with a zero byte, which must not be dropped.
    key = private.decode("ecdsa", pkix(SMALL_SCALAR), traditional(SMALL_SCALAR))
    for _ in range(20):
        sig = key.sign(message)
        assert len(sig) == 64
        assert verify(key.public, Signature("", "ecdsa", sig), message)


SMALL_SCALAR = ec.derive_private_key(2, ec.SECP256R1())


@pytest.mark.parametrize("row", GO_KEYS, ids=[f"{row['keytype']}-{number}" for number, row in enumerate(GO_KEYS)])
def test_golden_keys(row):
    secret = base64.b64decode(row["private"])
    key = private.decode(row["keytype"], base64.b64decode(row["public"]), secret)
    assert key.public.key_id == row["id"]
    assert key.method == row["method"]
    assert key.encode() == secret, "the bytes are those that Go writes"
    sig = key.sign(MESSAGE)
    assert len(sig) == len(base64.b64decode(row["sig"]))
    assert verify(key.public, Signature(row["id"], row["method"], sig), MESSAGE)


def test_the_golden_keys_cover_every_algorithm():
    assert {row["keytype"] for row in GO_KEYS} == set(METHODS)


@pytest.mark.parametrize("algorithm", ["", "ECDSA", "ecdsa-x509", "rsa-x509", "dilithium", "ed25519\n", "\ud800"])
def test_unsupported_algorithms(algorithm):
    with pytest.raises(UnsupportedAlgorithm, match="choose one of ed25519, ecdsa, rsa") as caught:
        private.generate(algorithm)
    assert str(caught.value).isascii()
    with pytest.raises(UnsupportedAlgorithm):
        private.decode(algorithm, b"", b"")


SEED = bytes(range(32))
POINT = ed25519.Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()
ED25519 = POINT + SEED + POINT
P256 = ec.derive_private_key(7, ec.SECP256R1())
K1 = ec.derive_private_key(7, ec.SECP256K1())
SMALL = rsa.generate_private_key(65537, 1024)


@pytest.mark.parametrize(
    ("algorithm", "public", "secret"),
    [
        pytest.param("ed25519", POINT, ED25519, id="ed25519"),
        pytest.param("ecdsa", pkix(P256), traditional(P256), id="ecdsa"),
    ],
)
def test_the_good_material_of_the_bad_table(algorithm, public, secret):
    assert private.decode(algorithm, public, secret).encode() == secret


@pytest.mark.parametrize(
    ("algorithm", "public", "secret", "message"),
    [
        pytest.param("ed25519", POINT, b"", "cannot be read", id="ed25519-empty"),
        pytest.param("ed25519", POINT, SEED, "cannot be read", id="ed25519-seed-alone"),
        pytest.param("ed25519", POINT, SEED + POINT, "cannot be read", id="ed25519-go-private-key-alone"),
        pytest.param("ed25519", POINT, ED25519[:-1], "cannot be read", id="ed25519-truncated"),
        pytest.param("ed25519", POINT, ED25519 + b"\0", "cannot be read", id="ed25519-too-long"),
        pytest.param("ed25519", POINT, SEED + SEED + POINT, "cannot be read", id="ed25519-inner-public"),
        pytest.param("ed25519", POINT, POINT + SEED + SEED, "cannot be read", id="ed25519-outer-public"),
        pytest.param("ed25519", bytes(32), ED25519, "do not belong together", id="ed25519-of-another-key"),
        pytest.param("ecdsa", pkix(P256), b"", "cannot be read", id="ecdsa-empty"),
        pytest.param("ecdsa", pkix(P256), traditional(P256)[:-1], "cannot be read", id="ecdsa-truncated"),
        pytest.param("ecdsa", pkix(SMALL_SCALAR), traditional(P256), "do not belong", id="ecdsa-of-another-key"),
        pytest.param("ecdsa", pkix(K1), traditional(K1), "cannot be read", id="ecdsa-curve-unknown-to-go"),
        pytest.param("ecdsa", pkix(SMALL), traditional(SMALL), "cannot be read", id="rsa-as-ecdsa"),
        pytest.param("rsa", pkix(P256), traditional(P256), "cannot be read", id="ecdsa-as-rsa"),
        pytest.param("rsa", pkix(SMALL), traditional(SMALL), "cannot be read", id="rsa-1024"),
        pytest.param("rsa", pkix(SMALL), b"\x30\x03\x02\x01\x00", "cannot be read", id="rsa-not-a-key"),
    ],
)
def test_keys_that_cannot_be_used(algorithm, public, secret, message):
    with pytest.raises(SigningFailed, match=message) as caught:
        private.decode(algorithm, public, secret)
    shown = "".join(traceback.format_exception(caught.value))
    assert secret.hex() not in shown or not secret
    assert repr(secret) not in shown or not secret


@given(st.sampled_from(list(METHODS)), st.binary(max_size=200), st.binary(max_size=200))
def test_garbage_is_refused(algorithm, public, secret):
    with pytest.raises(SigningFailed):
        private.decode(algorithm, public, secret)


@pytest.mark.parametrize("algorithm", METHODS)
def test_a_key_does_not_show_its_secret(keys, algorithm):
    key = keys[algorithm]
    assert repr(key) == str(key) == f"<PrivateKey {algorithm} {key.public.key_id}>"
    assert not hasattr(key, "__dict__")
