"""A key-encrypting key in Transit: that it works, and what goes wrong, against a strict server of our own."""

from __future__ import annotations

import base64
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from twisted.internet import reactor

from notary.config import KekUri, vault
from notary.envelope import MAX_NAME_CHARACTERS
from notary.envelope.envelopes import Envelopes, under
from notary.envelope.vault import REFUSED_SECONDS, VaultKek, open_transit
from notary.errors import ConfigError, CustodyUnavailable, SigningFailed
from notary.tuf import private
from tests.support.clocks import Time
from tests.support.elsewhere import second_reactor
from tests.support.peers import mint_certificates
from tests.support.vault import REWRAPS, RIGHTS, Key, Token, Vault

DATA, CONTEXT = b"d" * 32, b"context"
PAUSE = 100.0  # longer than any


@pytest.fixture
def server(tmp_path):
    with Vault(tmp_path / "vault") as running:
        yield running


@contextmanager
def kek_of(uri: str, clock=None, timeout=20.0):
    with second_reactor() as second:
        kek = VaultKek(vault.parse(uri.removeprefix("vault:")), second, clock or Time(), timeout)
        try:
            yield kek
        finally:
            kek.close()


def away(kek, text: str) -> str:
    """Asked to do something, it is away, and says why."""
    with pytest.raises(CustodyUnavailable) as caught:
        kek.wrap(DATA, CONTEXT)
    said = str(caught.value)
    assert text in said
    assert said.startswith(f"the key-encrypting key {kek._key} cannot be used now: ")
    assert "root-of-the-test" not in said
    assert "a-secret-id" not in said
    assert said.isprintable()
    return said


# -- it works ---------------------------------------------------------------------------------------------------------


def test_another_process_opens_what_one_has_wrapped(server):
    with kek_of(server.uri()) as one, kek_of(server.uri()) as other:
        one.check()
        wrapped = one.wrap(DATA, CONTEXT)
        assert wrapped.startswith(b"vault:v1:")
        assert other.unwrap(wrapped, CONTEXT) == DATA
        for bad, context in (
            (wrapped, b"another"),
            (wrapped[:-8], CONTEXT),
            (b"vault:v1:AAAA", CONTEXT),
            (b"", CONTEXT),
            (b"\xff" * 40, CONTEXT),
            (wrapped.replace(b":v1:", b":v2:"), CONTEXT),
        ):
            with pytest.raises(SigningFailed, match="the stored bytes are damaged") as caught:
                other.unwrap(bad, context)
            assert not isinstance(caught.value, CustodyUnavailable)
        assert "it is that of other rows" in refused_text(lambda: other.unwrap(wrapped, b"another"))
        assert "it is that of other rows" in refused_text(lambda: other.unwrap(wrapped, CONTEXT[:-1]))
        damaged = wrapped[:-8] + b"AAAAAAA="
        assert "message authentication failed" in refused_text(lambda: other.unwrap(damaged, CONTEXT))


def refused_text(work) -> str:
    with pytest.raises(SigningFailed) as caught:
        work()
    assert not isinstance(caught.value, CustodyUnavailable)
    return str(caught.value)


def test_a_login_serves_many_requests(server):
    with kek_of(server.with_secret_id(uses=1)) as kek:
        for _ in range(5):
            wrapped = kek.wrap(DATA, CONTEXT)
        assert kek.unwrap(wrapped, CONTEXT) == DATA
        assert server.logins() == 1
        assert len(server.requests) == 1 + 1 + 6  # the login, the key, the work


def test_several_threads_ask_at_once(server):
    with kek_of(server.uri()) as kek:
        with ThreadPoolExecutor(8) as threads:
            work = [threads.submit(kek.wrap, DATA, CONTEXT) for _ in range(8)]
        assert len({each.result() for each in work}) == 8


@pytest.mark.parametrize("login", ["with_secret_id", "with_service_account", "uri"])
def test_ways_to_log_in(server, login):
    with kek_of(getattr(server, login)()) as kek:
        assert kek.unwrap(kek.wrap(DATA, CONTEXT), CONTEXT) == DATA


def test_a_namespace_and_another_mount_of_the_login(server):
    server.namespace = "team/a"
    with kek_of(server.uri() + "&namespace=team/a") as kek:
        kek.check()
    with kek_of(server.uri()) as kek:
        away(kek, "there is no auth/token/lookup-self at the server")
    server.namespace = ""
    with kek_of(server.with_secret_id() + "&auth-mount=other") as kek:
        away(kek, "refuses the approle login")


def test_its_name_is_of_the_place(server):
    with kek_of(server.uri()) as kek:
        assert kek.name == "vault-d1bbc0e4d9eb"  # stored rows name it: it must stay as it is
        assert len(kek.name) <= MAX_NAME_CHARACTERS
        assert repr(kek) == f"<VaultKek {kek.name}>"


# -- versions ---------------------------------------------------------------------------------------------------------


def test_a_new_version_of_the_key_and_rows_that_move_to_it(server):
    with kek_of(server.uri()) as kek:
        row = Envelopes([kek]).seal(private.generate("ed25519"), "example.com/app", "timestamp")
        server.rotate()
        with kek_of(server.uri()) as again:
            box = Envelopes([again])
            assert box.open(row).public.key_id == row.key_id
            box.first.find_newest()
            assert not box.is_current(row)
            moved = box.move(row)
            assert box.is_current(moved)
            assert moved.private[-len(row.private) // 2 :] == row.private[-len(row.private) // 2 :]
            assert (under(moved), moved.passphrase_alias) == (kek.name, row.passphrase_alias)
            server.keys["transit/notary"].min_decryption_version = 2
            assert Envelopes([again]).open(moved).public.key_id == row.key_id
            with pytest.raises(SigningFailed, match=r"does not allow this version any more \(min_decryption_version\)"):
                Envelopes([again]).open(row)


def works(server) -> list[str]:
    """What the key was asked for, in order, after :meth:`works` was called last."""
    done = [request.split("/")[-2] for request in server.requests if request.startswith("POST /v1/transit/")]
    server.requests.clear()
    return done


def test_a_rotation_may_rewrap_and_nothing_else(server):
    """One request a data key; a token that may only rewrap is enough, and gets to see no data key and no key."""
    with kek_of(server.uri()) as kek:
        maker = Envelopes([kek], keys_of_a_data_key=2)
        rows = [maker.seal(private.generate("ed25519"), "example.com/app", "timestamp") for _ in range(6)]
    server.rotate()
    server.tokens["root-of-the-test"] = Token(REWRAPS)
    works(server)
    with kek_of(server.uri()) as kek:
        box = Envelopes([kek])
        box.first.find_newest()
        moved = [box.move(row) for row in rows if not box.is_current(row)]
        assert works(server) == ["rewrap"] * 3
        assert all(map(box.is_current, moved))
        server.rotate()  # in the middle: what was moved until now is moved again
        again = box.move(moved[0])
        assert not box.is_current(moved[1])
        assert box.is_current(again)
        with pytest.raises(CustodyUnavailable, match="the server denies transit/decrypt/notary"):
            box.open(again)
    server.tokens["root-of-the-test"] = Token(RIGHTS)
    with kek_of(server.uri()) as kek:
        assert [Envelopes([kek]).open(row).public.key_id for row in moved] == [row.key_id for row in rows]


def test_what_cannot_be_rewrapped(server):
    with kek_of(server.uri()) as kek:
        box = Envelopes([kek])
        row = box.seal(private.generate("ed25519"), "example.com/app", "timestamp")
        for wrapped in (b"vault:v1:AAAA", b"", b"\xff" * 40, b"vault:v2:" + kek.wrap(DATA, CONTEXT)[9:]):
            assert "the stored bytes are damaged" in refused_text(lambda bad=wrapped: kek.rewrap(bad, CONTEXT))
        server.tokens["root-of-the-test"] = Token(RIGHTS)
        with pytest.raises(CustodyUnavailable, match="the server denies transit/rewrap/notary"):
            box.move(row)
        server.keys.clear()
    server.tokens["root-of-the-test"] = Token(REWRAPS)
    with kek_of(server.uri()) as kek, pytest.raises(CustodyUnavailable, match="there is no transit/keys/notary"):
        kek.find_newest()


def test_no_associated_data_is_sent_since_a_rewrap_takes_none(server):
    """What was encrypted with associated data, by others, is refused as the real servers do."""
    key, bound = server.keys["transit/notary"], base64.b64encode(CONTEXT).decode()
    sent = {"plaintext": base64.b64encode(DATA).decode(), "associated_data": bound}
    foreign = server._encrypt(key, sent)["ciphertext"].encode()
    with kek_of(server.uri()) as kek:
        assert "message authentication failed" in refused_text(lambda: kek.unwrap(foreign, CONTEXT))
        server.tokens["root-of-the-test"] = Token(REWRAPS)
        assert "message authentication failed" in refused_text(lambda: kek.rewrap(foreign, CONTEXT))


# -- logins -----------------------------------------------------------------------------------------------------------


def test_a_lease_is_renewed_at_its_half(server):
    clock = Time()
    with kek_of(server.with_secret_id(), clock) as kek:
        kek.check()
        for _ in range(6):
            clock.now += 301
            server.now += 301
            kek.check()
        assert server.logins() == 1
        assert server.requests.count("POST /v1/auth/token/renew-self") == 6


@pytest.mark.parametrize("granted", [Token(ttl=600, renewable=False), Token(ttl=600, renewable=True, last=700)])
def test_a_lease_that_cannot_grow_is_followed_by_another_login(server, granted):
    clock = Time()
    server.granted = granted
    with kek_of(server.with_secret_id(), clock) as kek:
        for _ in range(40):
            kek.check()
            clock.now += 60
            server.now += 60
        assert 4 <= server.logins() <= 9


def test_a_token_that_was_revoked_is_asked_for_again_once(server):
    with kek_of(server.with_secret_id()) as kek:
        wrapped = kek.wrap(DATA, CONTEXT)
        server.tokens = {}
        assert kek.unwrap(wrapped, CONTEXT) == DATA
        assert server.logins() == 2


def test_a_token_whose_file_is_written_anew(server):
    """As an agent beside the signer does."""
    clock = Time()
    with kek_of(server.uri(), clock) as kek:
        kek.check()
        server.tokens = {"another": Token()}
        away(kek, "the server refuses the token login with the content of ")
        (server.folder / "token").write_text("another")
        away(kek, "the server refuses")  # at once: the pause lasts
        clock.now += PAUSE
        kek.check()


def test_a_wrong_secret_locks_no_role_out(server):
    clock = Time()
    uri = server.with_secret_id()
    (server.folder / "secret-id").write_text("wrong-a-secret")
    with kek_of(uri, clock) as kek:
        away(kek, "refuses the approle login with the content of ")
        for _ in range(2):
            clock.now += PAUSE
            assert clock.now < REFUSED_SECONDS
            away(kek, "which is tried again 300 seconds later, or when the file changes")
        assert server.wrong.total() == 1
        (server.folder / "secret-id").write_text("a-secret-id")
        clock.now += PAUSE
        kek.check()


def test_a_role_that_is_locked_out(server):
    uri = server.with_secret_id()
    server.wrong[server.role_id] = 9
    with kek_of(uri) as kek:
        away(kek, "refuses the approle login")


@pytest.mark.parametrize("missing", sorted(RIGHTS))
def test_a_right_that_is_missing_is_named(server, missing):
    server.tokens["root-of-the-test"] = Token(RIGHTS - {missing})
    with kek_of(server.uri()) as kek, pytest.raises(CustodyUnavailable) as caught:
        kek.check()
    path = missing.split()[1]
    assert f"the server denies {path}: the token has ended, or its policies do not allow this path" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "is empty, too large, or has more than one line"),
        (b"one\ntwo", "is empty, too large, or has more than one line"),
        (b"x" * 70_000, "is empty, too large, or has more than one line"),
        ("ä".encode(), "cannot be read (it is not ASCII)"),
    ],
)
def test_a_file_that_holds_no_secret(server, content, text):
    uri = server.uri()
    path = server.folder / "token"
    path.unlink() if content is None else path.write_bytes(content)
    with kek_of(uri) as kek:
        away(kek, f"{path} {text}")
        assert server.requests == []


# -- the key ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (None, "there is no transit/keys/notary at the server"),
        (Key(exportable=True), "the key can be taken out of the server"),
        (Key(allow_plaintext_backup=True), "the key can be taken out of the server"),
        (Key(type="rsa-4096"), "the key is of a type that is not used here"),
        (Key(derived=True), "the key derives other keys (derived=true)"),
    ],
)
def test_a_key_that_is_no_good(server, key, text):
    server.keys = {} if key is None else {"transit/notary": key}
    with kek_of(server.uri()) as kek:
        away(kek, text)
        assert not any("encrypt" in request for request in server.requests)


# -- the server -------------------------------------------------------------------------------------------------------


def test_a_server_that_is_sealed_and_unsealed(server):
    clock = Time()
    with kek_of(server.uri(), clock) as kek:
        wrapped = kek.wrap(DATA, CONTEXT)
        server.sealed = True
        away(kek, "the server is sealed, or in maintenance: it says 'Vault is sealed'")
        server.sealed = False
        away(kek, "sealed")  # the pause lasts
        clock.now += PAUSE
        assert kek.unwrap(wrapped, CONTEXT) == DATA


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ((307, {"Location": "https://other.example.com/v1/x"}, b""), "redirects to 'https://other.example.com/v1/x'"),
        ((429, {}, b'{"errors":["quota"]}'), "the server limits requests, or is a standby"),
        ((500, {}, b'{"errors":["internal"]}'), "answers with status 500: it says 'internal'"),
        ((502, {}, b"<html>"), "answers with status 502: it says nothing that Vault would say"),
        ((200, {}, b"<html>"), "it does not answer as Vault does"),
        ((200, {}, b'{"data": []}'), "it does not answer as Vault does"),
        ((200, {}, b'{"data": {"ttl": "x"}}'), "has no lease"),
        ((200, {}, b"[" * 100_000), "it does not answer as Vault does"),
        ((200, {}, b" " * (1 << 21)), "the answer has 2097152 bytes; at most 1048576 are read"),
    ],
)
def test_answers_of_another_kind(server, answer, text):
    server.answer = answer
    with kek_of(server.uri()) as kek:
        away(kek, text)


def test_a_server_that_stops_and_comes_back(server):
    clock = Time()
    with kek_of(server.uri(), clock) as kek:
        wrapped = kek.wrap(DATA, CONTEXT)
        server.stop()
        away(kek, "onnection")
        server.listen(server.port)
        clock.now += PAUSE
        assert kek.unwrap(wrapped, CONTEXT) == DATA


def test_a_kept_connection_that_the_server_has_closed(server):
    with kek_of(server.uri()) as kek:
        wrapped = kek.wrap(DATA, CONTEXT)
        server.stop()
        server.listen(server.port)
        assert kek.unwrap(wrapped, CONTEXT) == DATA


def test_a_server_that_hangs_is_given_up(server):
    with kek_of(server.uri(), time.monotonic, 0.5) as kek:
        kek.check()
        server.hangs.set()
        away(kek, "no answer within 0.5 seconds")


def test_a_close_ends_what_is_under_way(server):
    with kek_of(server.uri(), timeout=600.0) as kek:
        kek.check()
        server.hangs.set()
        with ThreadPoolExecutor(1) as threads:
            work = threads.submit(kek.check)
            while not kek._running:
                threading.Event().wait(0.01)
            kek.close()
            with pytest.raises(CustodyUnavailable, match="is stopping"):
                work.result(60)
        with pytest.raises(CustodyUnavailable, match="is stopping"):
            kek.check()


def test_the_pauses_grow(server):
    clock = Time()
    server.sealed = True
    with kek_of(server.uri(), clock) as kek:
        pauses = []
        for _ in range(9):
            away(kek, "sealed")
            pauses.append(kek._pauses.ends_at - clock.now)
            clock.now = kek._pauses.ends_at
        assert pauses[0] < 2 < pauses[3] < pauses[-1] <= 72


# -- TLS --------------------------------------------------------------------------------------------------------------


def test_a_certificate_that_is_not_trusted(server, tmp_path):
    other = mint_certificates(tmp_path / "other").ca
    with kek_of(re.sub("ca-file=.*", f"ca-file={other}", server.uri())) as kek:
        away(kek, "(CN=localhost, issued by CN=interop test CA) leads to no certificate in ca-file")
        assert server.requests == []


def test_a_certificate_of_another_name(server, tmp_path):
    server.files = mint_certificates(tmp_path / "other", ["elsewhere"])
    server.stop()
    server.listen()
    with kek_of(server.uri()) as kek:
        away(kek, "localhost")
        assert server.requests == []


def test_a_ca_file_that_is_not_there_is_an_error_of_the_configuration(tmp_path):
    place = f"https://localhost:1/transit/notary?token-file=/t&ca-file={tmp_path}/none"
    with pytest.raises(ConfigError, match=r"^storage\.keys\.wrap: ca-file"):
        open_transit(KekUri("vault", place), "storage.keys.wrap", reactor)
