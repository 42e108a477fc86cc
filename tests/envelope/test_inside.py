"""Private keys inside a token: that they sign, and what goes wrong, on SoftHSM."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from notary import envelope
from notary.config import KekUri, KeyEncryption, pkcs11
from notary.envelope.inside import Inside, open_tokens
from notary.envelope.pkcs11 import FRESH_SECONDS, Logins, Session
from notary.envelope.schemes import open_envelopes, open_insides
from notary.errors import CustodyUnavailable, SigningFailed, UnsupportedAlgorithm
from notary.tuf.model import Signature
from notary.tuf.public import verify
from tests.support.clocks import Time
from tests.support.softhsm import PIN

GUN = "example.com/app"
PAUSE = 100.0  # longer than any


@contextmanager
def inside(uri: str, clock=None, sessions: int = 2, timeout: float = 20.0):
    place, logins, clock = pkcs11.parse(uri.removeprefix("pkcs11:")), Logins(), clock or Time()
    token = Inside(place.name, [Session(place, clock, timeout, logins) for _ in range(sessions)])
    try:
        yield token
    finally:
        token.close()


def signs(key) -> bool:
    return verify(key.public, Signature(key.public.key_id, key.method, key.sign(b"a message")), b"a message")


def test_a_key_is_made_in_the_token_and_never_leaves_it(tokens):
    with inside(tokens.inside()) as token:
        key, row = token.make(GUN, "timestamp", "ecdsa")
        assert signs(key)
        assert (row.keywrap_alg, row.encryption_alg, row.passphrase_alias) == (envelope.INSIDE, "none", token.name)
        assert row.private == b"NI1" + row.private[3:]
        assert len(row.private) == 19
        shown = tokens.tool("notary", "--list-objects", "--type", "privkey", "--id", row.private[3:].hex())
        assert "sensitive" in shown
        assert "never extractable" in shown
        assert repr(key).startswith("KeyInside(public=")


def test_sessions_work_side_by_side_and_see_keys_of_each_other(tokens):
    with inside(tokens.inside(), sessions=3) as token:
        key, row = token.make(GUN, "timestamp", "ecdsa")
        with ThreadPoolExecutor(6) as threads:
            assert all(threads.map(lambda _: signs(key), range(60)))
        assert len({each._helper._process.pid for each in token._sessions}) == 3
        assert all(signs(token.open(row)) for _ in range(3))


def test_a_session_that_does_not_see_a_key_begins_afresh(tokens):
    """SoftHSM lists a token's files when it begins, and looks again after a change that it was told of."""
    clock, before = Time(), set(tokens.folder.glob("tokens/*/*"))
    with inside(tokens.inside()) as maker, inside(tokens.inside(), clock, sessions=1) as other:
        _, row = maker.make(GUN, "timestamp", "ecdsa")
        made = set(tokens.folder.glob("tokens/*/*")) - before
        for path in made:
            path.rename(f"{path}.hidden")
        other.check()
        for path in made:
            Path(f"{path}.hidden").rename(path)
        pid = other._sessions[0]._helper._process.pid
        with pytest.raises(SigningFailed, match="there are 0 keys in the token with the id"):
            other.open(row)  # what the session has read is new
        assert other._sessions[0]._helper._process.pid == pid
        clock.now += FRESH_SECONDS
        assert signs(other.open(row))
        assert other._sessions[0]._helper._process.pid != pid


def test_a_key_that_was_destroyed_is_missed_by_its_id(tokens):
    with inside(tokens.inside()) as token:
        _, row = token.make(GUN, "timestamp", "rsa")
        token.forget(row)
        missed = f"key {row.key_id}, .*there are 0 keys in the token with the id"
        with pytest.raises(SigningFailed, match=missed) as caught:
            token.open(row)
        assert not isinstance(caught.value, CustodyUnavailable)
        assert row.private[3:].hex() not in tokens.tool("notary", "--list-objects")


def test_no_other_algorithm(tokens):
    with inside(tokens.inside()) as token:
        with pytest.raises(UnsupportedAlgorithm, match="no 'ed25519' key is made in a token; it makes ecdsa, rsa"):
            token.make(GUN, "timestamp", "ed25519")
        _, row = token.make(GUN, "timestamp", "ecdsa")
        odd = replace(row, private=b"NI1")
        with pytest.raises(SigningFailed, match="its place in the token is damaged in the store"):
            token.open(odd)


@pytest.mark.parametrize("fault", ["crash", "session lost", "removed", "logged out", "general"])
def test_a_fault_of_the_module_costs_the_signatures_until_it_is_over(tokens, fault):
    clock = Time()
    with inside(tokens.inside(module=tokens.faulty_module()), clock) as token:
        key, _ = token.make(GUN, "timestamp", "ecdsa")
        tokens.go_wrong(fault)
        for _ in range(2):
            with pytest.raises(CustodyUnavailable, match=r"^the keys in token 'notary' cannot be used now: ") as caught:
                key.sign(b"a message")
            assert PIN not in str(caught.value)
        with pytest.raises(CustodyUnavailable):
            token.check()
        tokens.go_wrong("")
        clock.now += PAUSE
        assert signs(key)
        token.check()


def test_a_module_that_hangs_is_killed(tokens):
    with inside(tokens.inside(module=tokens.faulty_module()), sessions=1, timeout=3.0) as token:
        key, _ = token.make(GUN, "timestamp", "ecdsa")
        tokens.go_wrong("hang")
        with pytest.raises(CustodyUnavailable, match="did not answer within 3 s"):
            key.sign(b"a message")


def test_a_wrong_pin_is_tried_once_by_all_sessions_together(tokens):
    clock = Time()
    (tokens.folder / "pin").write_text("not-the-pin")
    with inside(tokens.inside(), clock, sessions=4) as token, ThreadPoolExecutor(4) as threads:
        for work in [threads.submit(token.check) for _ in range(4)]:
            with pytest.raises(CustodyUnavailable, match=r"the token refuses the PIN"):
                work.result()
    tokens.tool("notary", "--list-objects")  # the token is not locked


def test_a_configuration_names_tokens_beside_key_encrypting_keys(tokens, tmp_path):
    (tmp_path / "kek").write_bytes(bytes(range(32)))
    token, kek = KekUri("pkcs11", tokens.inside().partition(":")[2]), KekUri("file", str(tmp_path / "kek"))
    for config, makes, wraps in (
        (KeyEncryption(wrap=token, unwrap=(kek,)), True, False),
        (KeyEncryption(wrap=kek, unwrap=(token,)), False, True),
    ):
        assert (config.makes_inside, config.wraps) == (makes, wraps)
        envelopes, insides = open_envelopes(config, None), open_insides(config)
        assert len(envelopes.names) == 1
        assert insides.first.name == pkcs11.parse(token.place).name
    assert open_insides(KeyEncryption(wrap=kek)) is None
    assert open_envelopes(KeyEncryption(wrap=token), None) is None


def test_a_row_of_another_token(tokens):
    other = KekUri("pkcs11", tokens.inside().partition(":")[2].replace("token=notary", "token=other"))
    with inside(tokens.inside()) as token:
        _, row = token.make(GUN, "timestamp", "ecdsa")
        with pytest.raises(SigningFailed, match=r"there is no such token: name it in storage\.keys\.unwrap"):
            open_tokens([other], "storage.keys").open(row)
