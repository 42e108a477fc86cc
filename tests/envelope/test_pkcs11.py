"""A key-encrypting key in a token: that it works, and everything that goes wrong with tokens, on SoftHSM."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from notary.config import KekUri, pkcs11
from notary.envelope import MAX_NAME_CHARACTERS
from notary.envelope.pkcs11 import Pkcs11Kek, open_token
from notary.errors import CustodyUnavailable, SigningFailed
from tests.support.clocks import Time
from tests.support.softhsm import FAULTS, PIN

DATA, CONTEXT = b"d" * 32, b"context"
PAUSE = 100.0  # longer than any


@contextmanager
def kek_of(uri: str, time=None, timeout=20.0):
    kek = Pkcs11Kek(pkcs11.parse(uri.removeprefix("pkcs11:")), time or Time(), timeout)
    try:
        yield kek
    finally:
        kek.close()


def pid_of(kek) -> int:
    return kek._helper._process.pid


def away(kek, text: str) -> None:
    """Asked to do something, it is away, and says why."""
    with pytest.raises(CustodyUnavailable) as caught:
        kek.wrap(DATA, CONTEXT)
    assert text in str(caught.value)
    assert PIN not in str(caught.value)
    assert str(caught.value).startswith("the key-encrypting key in token 'notary', object ")


# -- it works ---------------------------------------------------------------------------------------------------------


def test_another_process_opens_what_one_has_wrapped(tokens):
    with kek_of(tokens.uri()) as one, kek_of(tokens.uri()) as other:
        one.check()
        wrapped = one.wrap(DATA, CONTEXT)
        assert DATA not in wrapped
        assert other.unwrap(wrapped, CONTEXT) == DATA
        assert pid_of(one) != pid_of(other)
        for bad, context in (
            (wrapped, b"another"),
            (wrapped[:-1], CONTEXT),
            (wrapped[:-1] + bytes([wrapped[-1] ^ 1]), CONTEXT),
            (b"", CONTEXT),
            (b"x" * 12, CONTEXT),
            (os.urandom(60), CONTEXT),
        ):
            with pytest.raises(SigningFailed, match="the stored bytes are damaged") as caught:
                other.unwrap(bad, context)
            assert not isinstance(caught.value, CustodyUnavailable)
        assert other.unwrap(wrapped, CONTEXT) == DATA


def test_another_key_of_the_token_opens_nothing(tokens):
    tokens.add_key("notary", "kek2")
    with kek_of(tokens.uri()) as one, kek_of(tokens.uri(key="kek2")) as other:
        assert one.name != other.name
        with pytest.raises(SigningFailed, match="or the key in the token is another one"):
            other.unwrap(one.wrap(DATA, CONTEXT), CONTEXT)


def test_nothing_is_asked_of_the_token_before_it_is_needed(tokens):
    kek = open_token(KekUri("pkcs11", tokens.uri().removeprefix("pkcs11:")), "storage.keys.wrap", None)
    assert kek._helper is None
    assert len(kek.name) <= MAX_NAME_CHARACTERS
    kek.close()
    with pytest.raises(CustodyUnavailable, match="is stopping"):
        kek.check()


def test_the_pin_is_in_no_place_that_others_see(tokens):
    with kek_of(tokens.uri()) as kek:
        kek.check()
        process = Path(f"/proc/{pid_of(kek)}")
        for shown in (process / "cmdline", process / "environ"):
            assert PIN.encode() not in shown.read_bytes()  # root sees every process
        assert PIN not in repr(kek)
        assert "Max core file size        0                    0" in (process / "limits").read_text()


def test_variables_of_the_signer_stay_with_it(tokens, monkeypatch):
    monkeypatch.setenv("NOTARY_SIGNER_ALIAS_ONE", "a passphrase of the signer")
    with kek_of(tokens.uri()) as kek:
        kek.check()
        assert b"a passphrase of the signer" not in Path(f"/proc/{pid_of(kek)}/environ").read_bytes()


# -- sessions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM], ids=lambda each: each.name)
def test_a_module_that_crashed_is_loaded_again(tokens, number):
    with kek_of(tokens.uri()) as kek:
        wrapped = kek.wrap(DATA, CONTEXT)
        first = pid_of(kek)
        os.kill(first, number)
        assert kek.unwrap(wrapped, CONTEXT) == DATA
        assert pid_of(kek) != first


@pytest.mark.parametrize("fault", ["crash", "session lost", "removed", "logged out", "general"])
def test_a_fault_of_the_module_costs_one_request_until_it_is_over(tokens, fault):
    time = Time()
    with kek_of(tokens.uri(module=tokens.faulty_module()), time) as kek:
        wrapped = kek.wrap(DATA, CONTEXT)
        tokens.go_wrong(fault)
        away(kek, "the module has crashed" if fault == "crash" else "the token failed (")
        tokens.go_wrong("")
        away(kek, "")  # the pause lasts, and nothing is started meanwhile
        assert kek._helper is None
        time.now += PAUSE
        assert kek.unwrap(wrapped, CONTEXT) == DATA


def test_a_token_without_a_free_session(tokens):
    time = Time()
    with kek_of(tokens.uri(module=tokens.faulty_module()), time) as kek:
        tokens.go_wrong("full")
        away(kek, "the token failed (SessionCount)")
        tokens.go_wrong("")
        time.now += PAUSE
        kek.check()


def test_a_module_that_hangs_is_killed(tokens):
    time = Time()
    with kek_of(tokens.uri(module=tokens.faulty_module()), time, 3.0) as kek:
        wrapped = kek.wrap(DATA, CONTEXT)
        tokens.go_wrong("hang")
        away(kek, "the module did not answer within 3 s")
        away(kek, "the module did not answer within 3 s")  # at once: the pause lasts
        tokens.go_wrong("")
        time.now += PAUSE
        assert kek.unwrap(wrapped, CONTEXT) == DATA


def test_a_close_ends_a_module_that_hangs(tokens):
    with kek_of(tokens.uri(module=tokens.faulty_module()), timeout=600.0) as kek:
        kek.check()
        tokens.go_wrong("hang")
        with ThreadPoolExecutor(1) as threads:
            work = threads.submit(kek.check)
            while not kek._lock.locked():
                threading.Event().wait(0.01)
            kek.close()
            with pytest.raises(CustodyUnavailable):
                work.result(60)


def test_the_pauses_grow(tokens):
    time = Time()
    tokens.remove()
    with kek_of(tokens.uri(), time) as kek:
        pauses = []
        for _ in range(9):
            away(kek, "there is no such token")
            pauses.append(kek._pauses.ends_at - time.now)
            time.now = kek._pauses.ends_at
        assert pauses[0] < 2 < pauses[3] < pauses[-1] <= 72


# -- tokens and keys --------------------------------------------------------------------------------------------------


def test_a_token_that_is_removed_and_put_back(tokens):
    time = Time()
    with kek_of(tokens.uri(), time) as kek:
        wrapped = kek.wrap(DATA, CONTEXT)
        os.kill(pid_of(kek), signal.SIGKILL)
        tokens.remove()
        away(kek, "there is no such token: it is removed, or the module does not see it")
        tokens.put_back()
        time.now += PAUSE
        assert kek.unwrap(wrapped, CONTEXT) == DATA


def test_two_tokens_of_one_name(tokens):
    tokens.add_token("notary")
    with kek_of(tokens.uri()) as kek:
        away(kek, "there are 2 such tokens: add serial=")
    serials = [
        line.partition(":")[2].strip()
        for line in tokens._run("softhsm2-util", "--show-slots").splitlines()
        if "Serial number" in line and line.partition(":")[2].strip()
    ]
    assert len(serials) == 2
    found = []
    for serial in serials:
        with kek_of(tokens.uri(more=f";serial={serial}")) as kek:
            try:
                kek.check()
            except CustodyUnavailable as error:
                assert "there is no such key in the token" in str(error)  # noqa: PT017
            else:
                found.append(serial)
    assert len(found) == 1


def test_a_key_that_can_be_taken_out_is_refused(tokens):
    tokens.add_key("notary", "open", "--extractable")
    with kek_of(tokens.uri(key="open")) as kek:
        away(kek, "the key can be taken out of the token: make one that is sensitive and not extractable")


def test_two_keys_of_one_name(tokens):
    tokens.add_key("notary", "kek", "--id", "07", "--sensitive")
    with kek_of(tokens.uri()) as kek:
        away(kek, "there are 2 such keys: add id=")
    with kek_of(tokens.uri(more=";id=%07")) as kek:
        kek.check()


def test_a_key_of_another_kind(tokens):
    tokens.add_key("notary", "other", "--sensitive", kind="GENERIC:32")
    with kek_of(tokens.uri(key="other")) as kek:
        away(kek, "the key is not an AES key")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"key": "none"}, "there is no such key in the token"),
        ({"module": "/usr/lib/none.so"}, "the module /usr/lib/none.so cannot be loaded"),
        ({"module": "/etc/hostname"}, "the module /etc/hostname cannot be loaded"),
    ],
)
def test_what_is_not_there(tokens, change, text):
    with kek_of(tokens.uri(**change)) as kek:
        away(kek, text)


# -- PINs -------------------------------------------------------------------------------------------------------------


def test_a_wrong_pin_is_tried_once(tokens):
    time = Time()
    (tokens.folder / "pin").write_text("not-the-pin")
    with kek_of(tokens.uri(), time) as kek:
        away(kek, "the token refuses the PIN")
        for _ in range(3):
            time.now += PAUSE
            away(kek, "the token refuses the PIN, which is not tried again: correct the file of pin-source")
        # Another process, as after a restart, sees the mark on the token and tries nothing, not even the right PIN.
        with kek_of(tokens.uri()) as other:
            away(other, "a wrong PIN was given to the token, and no further one is tried, since tokens lock")
        (tokens.folder / "pin").write_text(PIN)
        with kek_of(tokens.uri()) as other:
            away(other, "then log in once by hand")
        tokens.tool("notary", "--list-objects")
        time.now += PAUSE
        kek.check()
    with kek_of(tokens.uri()) as other:
        other.check()


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("locked", "the PIN of the token is locked: unlock it"),
        ("final try", "no further one is tried, since tokens lock"),
    ],
)
def test_no_pin_is_given_to_a_token_that_is_or_may_be_locked(tokens, fault, text):
    module = tokens.faulty_module()
    tokens.go_wrong(fault)
    with kek_of(tokens.uri(module=module)) as kek:
        away(kek, text)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "the file of its PIN cannot be read (No such file or directory)"),
        (b"", "the file of its PIN is empty or too large"),
        (b"\n", "the file of its PIN is empty or too large"),
        (b"1" * 2000, "the file of its PIN is empty or too large"),
        (b"\xff\xfe", "the file of its PIN cannot be read (it is not UTF-8)"),
    ],
)
def test_a_file_that_holds_no_pin(tokens, content, text):
    path = tokens.folder / "pin"
    path.unlink() if content is None else path.write_bytes(content)
    with kek_of(tokens.uri()) as kek:
        away(kek, text)
        assert kek._helper is None


def test_every_fault_of_the_module_is_in_a_test():
    text = Path(__file__).read_text()
    assert all(f'"{fault}"' in text for fault in FAULTS)
