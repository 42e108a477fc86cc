"""Rows in envelopes: what opens them, what does not, and how often a key-encrypting key is asked."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest

from notary import envelope
from notary.envelope import envelopes
from notary.envelope.envelopes import Envelopes, under
from notary.envelope.file import FileKek
from notary.errors import SigningFailed
from notary.storage import StoredKey, keywrap
from notary.tuf import private
from notary.tuf.public import Signature, verify

GUN = "example.com/app"
ONE, OTHER = bytes(range(32)), bytes(range(1, 33))


class Counting:
    """A key-encrypting key that counts how often it is asked, and says in which threads."""

    def __init__(self, kek: FileKek) -> None:
        self._kek = kek
        self.name = kek.name
        self.calls: list[str] = []

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        self.calls.append("wrap")
        return self._kek.wrap(data_key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        self.calls.append("unwrap")
        return self._kek.unwrap(wrapped, context)

    def is_newest(self, wrapped: bytes) -> bool:
        return self._kek.is_newest(wrapped)


def sealed(box: Envelopes, algorithm: str = "ed25519") -> StoredKey:
    return box.seal(private.generate(algorithm), GUN, "timestamp")


def opens(box: Envelopes, row: StoredKey) -> bool:
    key = box.open(row)
    return verify(key.public, Signature(row.key_id, key.method, key.sign(b"a message")), b"a message")


def test_a_row_says_what_made_it():
    kek = FileKek(ONE)
    row = sealed(Envelopes([kek]))
    name, _, data_key_id = row.passphrase_alias.partition("/")
    assert (name, row.keywrap_alg, row.encryption_alg) == (kek.name, envelope.KEYWRAP, envelope.ENCRYPTION)
    assert len(data_key_id) == 16
    assert under(row) == kek.name
    assert under(replace(row, keywrap_alg="PBES2-HS256+A128KW")) == row.passphrase_alias


def test_the_longest_name_of_a_kek_fits_into_the_column_of_the_alias():
    assert envelope.MAX_NAME_CHARACTERS + len("/") + 16 == 50
    assert len(FileKek(ONE).name) <= envelope.MAX_NAME_CHARACTERS


def test_the_name_of_a_kek_is_its_own_and_shows_nothing_of_it():
    assert FileKek(ONE).name == FileKek(ONE).name != FileKek(OTHER).name
    assert FileKek(ONE).name == "file-e50b0a3bac65"  # stored rows name it: it must stay as it is
    assert ONE.hex()[:8] not in FileKek(ONE).name


@pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa", "rsa"])
def test_nothing_of_the_private_key_or_of_the_data_key_is_in_the_row(algorithm, monkeypatch):
    key = private.generate(algorithm)
    made = []
    monkeypatch.setattr(envelopes.os, "urandom", lambda size: made.append(bytes([len(made) + 1]) * size) or made[-1])
    row = Envelopes([FileKek(ONE)]).seal(key, GUN, "timestamp")
    (data_key,) = [each for each in made if len(each) == 32]
    for secret in (key.encode(), data_key, ONE):
        for start in range(0, len(secret) - 16, 16):
            assert secret[start : start + 16] not in row.private


def test_two_rows_share_a_data_key_and_nothing_else():
    box = Envelopes([FileKek(ONE)])
    one, other = sealed(box), sealed(box)
    assert one.passphrase_alias == other.passphrase_alias
    nonces = {envelopes._Envelope.read(row.private).nonce for row in (one, other)}
    assert len(nonces) == 2


def test_the_format_of_the_row():
    """Another release reads it: the mark, the length, the data key under the KEK, the nonce, the key."""
    row = sealed(Envelopes([FileKek(ONE)]))
    assert row.private[:3] == b"NE1"
    size = int.from_bytes(row.private[3:5], "big")
    assert size == 12 + 32 + 16
    assert len(row.private) == 5 + size + 12 + len(private.generate("ed25519").encode()) + 16


def test_the_kek_is_asked_once_for_each_data_key():
    kek = Counting(FileKek(ONE))
    box = Envelopes([kek], keys_of_a_data_key=3)
    rows = [sealed(box) for _ in range(7)]
    assert [opens(box, row) for row in rows] == [True] * 7
    assert kek.calls == ["wrap"] * 3
    assert len({row.passphrase_alias for row in rows}) == 3
    another = Counting(FileKek(ONE))
    box = Envelopes([another], keys_of_a_data_key=3)
    assert [opens(box, row) for row in rows * 2] == [True] * 14
    assert another.calls == ["unwrap"] * 3


def hold_up(kek: Counting) -> tuple[threading.Event, threading.Event]:
    """Have ``unwrap`` tell that it has begun, and wait until it may go on."""
    begun, go = threading.Event(), threading.Event()
    unwrap = kek.unwrap

    def held(wrapped: bytes, context: bytes) -> bytes:
        begun.set()
        assert go.wait(30)
        return unwrap(wrapped, context)

    kek.unwrap = held
    return begun, go


def test_threads_that_need_one_data_key_ask_for_it_once():
    row = sealed(Envelopes([FileKek(ONE)]))
    kek = Counting(FileKek(ONE))
    begun, go = hold_up(kek)
    box = Envelopes([kek])
    with ThreadPoolExecutor(4) as threads:
        work = [threads.submit(opens, box, row) for _ in range(4)]
        assert begun.wait(30)
        go.set()
        assert all(each.result() for each in work)
    assert kek.calls == ["unwrap"]


def test_a_data_key_that_is_known_waits_for_no_kek():
    """While a KEK hangs, keys under data keys that are open go on."""
    kek = Counting(FileKek(ONE))
    maker = Envelopes([FileKek(ONE)], keys_of_a_data_key=1)
    known, unknown = sealed(maker), sealed(maker)
    box = Envelopes([kek])
    assert opens(box, known)
    begun, go = hold_up(kek)
    with ThreadPoolExecutor(1) as threads:
        work = threads.submit(opens, box, unknown)
        assert begun.wait(30)
        assert opens(box, known)
        go.set()
        assert work.result()


# -- what does not open -----------------------------------------------------------------------------------------------


def test_another_kek_is_named():
    row = sealed(Envelopes([FileKek(ONE)]))
    box = Envelopes([FileKek(OTHER)])
    with pytest.raises(SigningFailed) as caught:
        box.open(row)
    assert row.key_id in str(caught.value)
    assert f"there is no key-encrypting key '{FileKek(ONE).name}': name it in storage.keys.unwrap" in str(caught.value)
    assert FileKek(OTHER).name in str(caught.value)
    assert opens(Envelopes([FileKek(OTHER), FileKek(ONE)]), row)


def test_each_bit_of_the_row_counts():
    box = Envelopes([FileKek(ONE)])
    row = sealed(box)
    for place in range(len(row.private)):
        damaged = bytearray(row.private)
        damaged[place] ^= 0x10
        with pytest.raises(SigningFailed, match=row.key_id):
            box.open(replace(row, private=bytes(damaged)))
    for size in range(len(row.private)):
        with pytest.raises(SigningFailed, match=row.key_id):
            box.open(replace(row, private=row.private[:size]))


def test_no_row_opens_with_the_bytes_or_the_alias_of_another():
    box = Envelopes([FileKek(ONE)], keys_of_a_data_key=2)
    rows = [sealed(box) for _ in range(4)]  # two under each data key
    for one, other in pairwise(rows):
        with pytest.raises(SigningFailed):
            box.open(replace(one, private=other.private))
    with pytest.raises(SigningFailed):
        box.open(replace(rows[0], passphrase_alias=rows[2].passphrase_alias))


@pytest.mark.parametrize("alias", ["", "/", "file-", "\ud800", "x" * 50, f"{FileKek(ONE).name}/"])
def test_an_alias_of_another_making_is_a_failure(alias):
    box = Envelopes([FileKek(ONE)])
    row = sealed(box)
    with pytest.raises(SigningFailed, match=row.key_id):
        Envelopes([FileKek(ONE)]).open(replace(row, passphrase_alias=alias))


def test_nothing_secret_is_shown():
    box = Envelopes([FileKek(ONE)])
    row = sealed(box)
    shown = [
        repr(FileKek(ONE)),
        repr(box),
        repr(box._newest),
        repr(box._data_key_of(row, envelopes._Envelope.read(row.private))),
    ]
    for secret in (ONE, box._newest.secret, box._newest.wrapped):
        for text in shown:
            assert repr(secret)[2:-1] not in text
            assert secret.hex() not in text


# -- moving -----------------------------------------------------------------------------------------------------------


def test_a_row_moves_to_another_kek_and_stays_the_same_key():
    old, new = Counting(FileKek(ONE)), Counting(FileKek(OTHER))
    rows = [sealed(Envelopes([FileKek(ONE)])) for _ in range(2)] * 5
    box = Envelopes([new, old])
    moved = [box.move(row) for row in rows]
    assert (old.calls, new.calls) == (["unwrap"] * 2, ["wrap"] * 2)
    for row, now in zip(rows, moved, strict=True):
        assert under(now) == new.name
        assert now.passphrase_alias.partition("/")[2] == row.passphrase_alias.partition("/")[2]
        assert replace(now, private=row.private, passphrase_alias=row.passphrase_alias) == row
        assert opens(Envelopes([FileKek(OTHER)]), now)
        with pytest.raises(SigningFailed):
            Envelopes([FileKek(ONE)]).open(now)
    assert [box.is_current(row) for row in (rows[0], moved[0])] == [False, True]


def test_a_row_that_does_not_open_is_not_moved():
    row = sealed(Envelopes([FileKek(ONE)]))
    damaged = replace(row, private=row.private[:-1] + bytes([row.private[-1] ^ 1]))
    with pytest.raises(SigningFailed, match="damaged"):
        Envelopes([FileKek(OTHER), FileKek(ONE)]).move(damaged)


def test_a_row_under_a_passphrase_is_not_current():
    row = keywrap.wrap(private.generate("ed25519"), GUN, "timestamp", "alias", {"alias": "a passphrase"}.get)
    assert not Envelopes([FileKek(ONE)]).is_current(row)
