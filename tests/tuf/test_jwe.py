"""Keys at rest: what is wrapped opens here, and with an independent JOSE implementation; nothing else does."""

from __future__ import annotations

import base64
import json
import os
import traceback

import joserfc.jwe
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc.jwe import JWERegistry
from joserfc.jwk import OctKey

from notary.errors import SigningFailed
from notary.tuf.jwe import ITERATIONS, MAX_ITERATIONS, unwrap, wrap

PLAINTEXT = b"plaintext of a key \x00\xff"
PASSPHRASE = "a passphrase that nobody may see"
ALGORITHMS = ["PBES2-HS256+A128KW", "PBES2-HS512+A256KW", "A256GCM", "A128GCM", "DEF"]


def header_of(wrapped):
    encoded = wrapped.partition(b".")[0]
    return json.loads(base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4)))


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def with_header(header, wrapped):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return encoded(raw) + b"." + wrapped.partition(b".")[2]


def by_joserfc(plaintext=PLAINTEXT, passphrase=PASSPHRASE, **changes):
    """A compact JWE as another implementation makes it."""
    header = {
        "alg": "PBES2-HS256+A128KW",
        "enc": "A256GCM",
        "p2c": 8192,
        "p2s": encoded(os.urandom(12)).decode(),
    } | changes
    key = OctKey.import_key(passphrase)
    made = joserfc.jwe.encrypt_compact(header, plaintext, key, algorithms=ALGORITHMS)
    return made.encode()


@settings(max_examples=20, deadline=None)
@given(st.binary(min_size=1), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_what_is_wrapped_opens(plaintext, passphrase):
    assert unwrap(wrap(plaintext, passphrase), passphrase) == plaintext


def test_the_header_is_that_of_the_reference():
    header = header_of(wrap(PLAINTEXT, PASSPHRASE))
    assert list(header) == ["alg", "enc", "p2c", "p2s"]
    assert header | {"p2s": ""} == {"alg": "PBES2-HS256+A128KW", "enc": "A256GCM", "p2c": 8192, "p2s": ""}
    assert ITERATIONS == 8192


def test_nothing_repeats():
    first, second = (wrap(PLAINTEXT, PASSPHRASE).split(b".") for _ in range(2))
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_an_independent_implementation_opens_it():
    key = OctKey.import_key(PASSPHRASE)
    opened = joserfc.jwe.decrypt_compact(wrap(PLAINTEXT, PASSPHRASE), key, registry=JWERegistry(algorithms=ALGORITHMS))
    assert opened.plaintext == PLAINTEXT


def test_what_an_independent_implementation_made_opens():
    assert unwrap(by_joserfc(), PASSPHRASE) == PLAINTEXT


@pytest.mark.parametrize(
    "passphrase",
    [b"p\xe9ss phrase of bytes", b"\xff\xfe" * 9, "pässphrase of UTF-8".encode()],
    ids=["latin-1", "no text", "utf-8"],
)
def test_a_passphrase_is_bytes(passphrase):
    """As the reference has it: the environment may hold a passphrase in Latin-1."""
    text = os.fsdecode(passphrase)
    assert unwrap(by_joserfc(passphrase=passphrase), text) == PLAINTEXT
    registry = JWERegistry(algorithms=ALGORITHMS)
    key = OctKey.import_key(passphrase)
    assert joserfc.jwe.decrypt_compact(wrap(PLAINTEXT, text), key, registry=registry).plaintext == PLAINTEXT


@pytest.mark.filterwarnings("ignore:A minimum iteration count of 1000")
@pytest.mark.parametrize("rounds", [1, MAX_ITERATIONS])
def test_as_few_and_as_many_rounds_as_are_allowed(rounds):
    assert unwrap(by_joserfc(p2c=rounds), PASSPHRASE) == PLAINTEXT


GOOD = wrap(PLAINTEXT, PASSPHRASE)
HEADER = header_of(GOOD)
PARTS = GOOD.split(b".")


def flipped(index):
    parts = list(PARTS)
    content = base64.urlsafe_b64decode(parts[index] + b"==")
    parts[index] = encoded(bytes([content[0] ^ 1]) + content[1:])
    return b".".join(parts)


MEMBERS = "the header of its JWE must have the members alg, enc, p2c, p2s and no other$"
BAD = [
    pytest.param(b"", "it is not a compact JWE", id="empty"),
    pytest.param(PLAINTEXT, "it is not a compact JWE", id="plaintext"),
    pytest.param(b".".join(PARTS[:4]), "it is not a compact JWE", id="four parts"),
    pytest.param(GOOD + b".AA", "it is not a compact JWE", id="six parts"),
    pytest.param(b".".join([PARTS[0], b"", *PARTS[2:]]), "it is not a compact JWE", id="an empty part"),
    pytest.param(GOOD + b"\n", "it is not a compact JWE", id="newline"),
    pytest.param(GOOD.replace(b".", b"=.", 1), "it is not a compact JWE", id="padding"),
    pytest.param(json.dumps({"protected": PARTS[0].decode()}).encode(), "it is not a compact JWE", id="JSON form"),
    pytest.param("é".encode() + GOOD, "it is not a compact JWE", id="not ASCII"),
    pytest.param(with_header(b"\xff\xfe", GOOD), "the header of its JWE cannot be read", id="header not text"),
    pytest.param(with_header(b"{", GOOD), "the header of its JWE cannot be read", id="header not JSON"),
    pytest.param(b"A" + GOOD[GOOD.index(b".") :], "the header of its JWE cannot be read", id="header not base64"),
    pytest.param(with_header(b'{"alg":1,"alg":2}', GOOD), "the header of its JWE cannot be read", id="member twice"),
    pytest.param(with_header([1], GOOD), MEMBERS, id="header not an object"),
    pytest.param(with_header(HEADER | {"zip": "DEF"}, GOOD), MEMBERS, id="compressed"),
    pytest.param(with_header(HEADER | {"crit": []}, GOOD), MEMBERS, id="critical"),
    pytest.param(with_header({k: v for k, v in HEADER.items() if k != "p2c"}, GOOD), MEMBERS, id="no p2c"),
    pytest.param(with_header(HEADER | {"alg": "dir"}, GOOD), "its JWE has alg 'dir'", id="direct key"),
    pytest.param(with_header(HEADER | {"alg": None}, GOOD), "its JWE has alg 'None'", id="alg null"),
    pytest.param(with_header(HEADER | {"enc": "A128GCM"}, GOOD), "its JWE has enc 'A128GCM'", id="another cipher"),
    pytest.param(with_header(HEADER | {"p2c": MAX_ITERATIONS + 1}, GOOD), "its JWE has p2c '16385'", id="p2c large"),
    pytest.param(with_header(HEADER | {"p2c": 10**12}, GOOD), "its JWE has p2c '1000000000000'", id="p2c huge"),
    pytest.param(with_header(HEADER | {"p2c": 0}, GOOD), "its JWE has p2c '0'", id="p2c zero"),
    pytest.param(with_header(HEADER | {"p2c": -1}, GOOD), "its JWE has p2c '-1'", id="p2c negative"),
    pytest.param(with_header(HEADER | {"p2c": True}, GOOD), "its JWE has p2c 'True'", id="p2c not a number"),
    pytest.param(with_header(HEADER | {"p2c": "8192"}, GOOD), "its JWE has p2c '8192'", id="p2c a string"),
    pytest.param(with_header(HEADER | {"p2c": 8191}, GOOD), "it does not open", id="p2c changed"),
    pytest.param(with_header(HEADER | {"p2s": 5}, GOOD), "it does not open", id="salt not a string"),
    pytest.param(with_header(HEADER | {"p2s": "AAAA"}, GOOD), "it does not open", id="another salt"),
    *(pytest.param(flipped(index), "it does not open", id=f"part {index} damaged") for index in range(1, 5)),
]


@pytest.mark.parametrize(("wrapped", "message"), BAD)
def test_what_is_not_in_the_format_is_refused(wrapped, message):
    with pytest.raises(SigningFailed, match=f"^{message}") as caught:
        unwrap(wrapped, PASSPHRASE)
    shown = "".join(traceback.format_exception(caught.value))
    assert PASSPHRASE not in shown
    assert "plaintext of a key" not in shown


def test_more_rounds_than_allowed_are_refused_even_if_it_would_open():
    with pytest.raises(SigningFailed, match="p2c"):
        unwrap(by_joserfc(p2c=MAX_ITERATIONS + 1), PASSPHRASE)


def test_compression_is_refused_even_if_it_would_open():
    with pytest.raises(SigningFailed, match="members"):
        unwrap(by_joserfc(zip="DEF"), PASSPHRASE)


def test_another_passphrase_does_not_open_it():
    with pytest.raises(SigningFailed, match="does not open") as caught:
        unwrap(GOOD, PASSPHRASE + " ")
    assert PASSPHRASE not in "".join(traceback.format_exception(caught.value))
