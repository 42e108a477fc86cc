"""What every custody of private keys keeps to, and that a custody is one row: a toy one works in a whole signer.

A new custody gets a row in ``MAKERS``; so does each place of key-encrypting keys.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from notary import envelope
from notary.config import KekUri, SignerConfig, awskms, load_signer, pkcs11, vault
from notary.envelope.awskms import KmsKek
from notary.envelope.envelopes import Envelopes, under
from notary.envelope.file import FileKek
from notary.envelope.inside import open_tokens
from notary.envelope.pkcs11 import Pkcs11Kek
from notary.envelope.schemes import SCHEMES
from notary.envelope.vault import VaultKek
from notary.errors import SigningFailed, UnsupportedAlgorithm
from notary.signer.custody import ByKeywrap, KeyCustody, custodies
from notary.signer.custody.envelope import EnvelopeCustody
from notary.signer.custody.inside import InsideCustody
from notary.signer.custody.jwe import JweCustody
from notary.signer.tap import Signer
from notary.storage import StoredKey
from notary.storage.open import open_key_store
from notary.tuf import jwe, private
from notary.tuf.model import Signature
from notary.tuf.public import PublicKey, verify
from tests.support.elsewhere import second_reactor
from tests.support.kms import Kms
from tests.support.peers import free_port
from tests.support.signer import Client, Pair, signer_config
from tests.support.softhsm import Tokens
from tests.support.vault import Vault

GUN = "example.com/app"
ALIAS = "alias_one"
ENVIRONMENT = {"NOTARY_SIGNER_ALIAS_ONE": "the first passphrase, which is long"}
MESSAGE = b"a message"
ALGORITHMS = ["ed25519", "ecdsa", "rsa"]
UNMADE = {("inside", "ed25519")}
"""Algorithms of keys that a custody does not make."""
UNKNOWN = "HSM-OF-ANOTHER-HOUSE"
PLACE = "TEST_URI_OF_A_KEY"
"""The variable with the URI of a key that is no secret of the test itself."""


def _jwe(_reactor: object = None) -> KeyCustody:
    return JweCustody({ALIAS: "the first passphrase, which is long"}.get, ALIAS)


def _in_a_file(_reactor: object = None) -> KeyCustody:
    return EnvelopeCustody(Envelopes([FileKek(bytes(range(32)))]))


def _in_a_token(_reactor: object) -> KeyCustody:
    return EnvelopeCustody(Envelopes([Pkcs11Kek(pkcs11.parse(os.environ[PLACE]))]))


def _in_transit(reactor: Any) -> KeyCustody:
    return EnvelopeCustody(Envelopes([VaultKek(vault.parse(os.environ[PLACE]), reactor)]))


def _inside_a_token(_reactor: object) -> KeyCustody:
    return InsideCustody(open_tokens([KekUri("pkcs11", os.environ[PLACE])], "storage.keys"))


def _in_kms(_reactor: object) -> KeyCustody:
    return EnvelopeCustody(Envelopes([KmsKek(awskms.parse(os.environ[PLACE]))]))


MAKERS: Mapping[str, tuple[str, Callable[[Any], KeyCustody]]] = {
    "jwe": (jwe.KEYWRAP, _jwe),
    "file": (envelope.KEYWRAP, _in_a_file),
    "pkcs11": (envelope.KEYWRAP, _in_a_token),
    "vault": (envelope.KEYWRAP, _in_transit),
    "awskms": (envelope.KEYWRAP, _in_kms),
    "inside": (envelope.INSIDE, _inside_a_token),
}
"""For each custody, the value of ``keywrap_alg`` in its rows, and what builds it as another process would."""


@pytest.fixture(params=sorted(MAKERS))
def maker(request) -> str:
    return request.param


@pytest.fixture
def keywrap(maker: str) -> str:
    return MAKERS[maker][0]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Tokens:
    return Tokens.make(tmp_path_factory.mktemp("hsm") / "tokens")


@pytest.fixture
def transit(tmp_path) -> Iterator[Vault]:
    with Vault(tmp_path / "vault") as running:
        yield running


@pytest.fixture(scope="module")
def kms(tmp_path_factory) -> Iterator[Kms]:
    with Kms(tmp_path_factory.mktemp("kms")) as running:
        yield running


@pytest.fixture
def second() -> Iterator[Any]:
    with second_reactor() as running:
        yield running


@pytest.fixture
def build(maker: str, request, monkeypatch) -> Iterator[Callable[[], KeyCustody]]:
    """Builds the custody as one more process would; all are closed."""
    places = {"pkcs11": "tokens", "inside": "tokens", "vault": "transit", "awskms": "kms"}
    network = request.getfixturevalue("second") if maker == "vault" else None
    if maker in places:
        place = request.getfixturevalue(places[maker])
        if maker != "vault":
            place.seen_by(monkeypatch)
        uri = place.inside() if maker == "inside" else place.uri()
        monkeypatch.setenv(PLACE, uri.partition(":")[2])
    built: list[KeyCustody] = []

    def another() -> KeyCustody:
        built.append(MAKERS[maker][1](network))
        return built[-1]

    yield another
    for each in built:
        each.close()


@pytest.fixture
def one(maker: str) -> str:
    """An algorithm of keys that the custody makes."""
    return "ecdsa" if maker == "inside" else "ed25519"


@pytest.fixture
def custody(build: Callable[[], KeyCustody]) -> KeyCustody:
    return build()


def good(key: Any, signature: bytes, message: bytes = MESSAGE) -> bool:
    return verify(key.public, Signature(key.public.key_id, key.method, signature), message)


def test_every_custody_is_tested_here():
    assert {keywrap for keywrap, _ in MAKERS.values()} == set(custodies.CUSTODIES)
    assert set(SCHEMES) <= set(MAKERS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_new_key_and_its_row_are_the_same_key(custody, maker, keywrap, algorithm):
    if (maker, algorithm) in UNMADE:
        with pytest.raises(UnsupportedAlgorithm):
            custody.make(GUN, "timestamp", algorithm)
        return
    key, row = custody.make(GUN, "timestamp", algorithm)
    assert (row.key_id, row.algorithm, row.public) == (key.public.key_id, algorithm, key.public.public)
    assert (row.gun, row.role, row.last_used, row.keywrap_alg) == (GUN, "timestamp", None, keywrap)
    assert PublicKey(row.algorithm, row.public).key_id == row.key_id
    assert good(key, key.sign(MESSAGE))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_process_opens_the_row(custody, build, maker, algorithm):
    if (maker, algorithm) in UNMADE:
        return
    made, row = custody.make(GUN, "snapshot", algorithm)
    opened = build().open(row)
    assert (opened.public, opened.method) == (made.public, made.method)
    assert good(opened, opened.sign(MESSAGE))
    assert not good(opened, opened.sign(MESSAGE), b"another message")


def test_each_key_is_new(custody, one):
    assert len({custody.make(GUN, "timestamp", one)[1].key_id for _ in range(5)}) == 5


def test_whether_a_key_is_quick_stays(custody, build, one):
    made, row = custody.make(GUN, "timestamp", one)
    assert isinstance(made.quick, bool)
    assert build().open(row).quick is made.quick


def test_other_algorithms_are_refused(custody):
    with pytest.raises(UnsupportedAlgorithm):
        custody.make(GUN, "timestamp", "dsa")


@pytest.mark.parametrize("wrapped", [b"", b"\x00", b"a.b.c.d.e", b"x" * 10_000], ids=["empty", "zero", "dots", "long"])
def test_a_damaged_row_is_a_failure_that_names_its_key(custody, wrapped, one):
    _, row = custody.make(GUN, "timestamp", one)
    with pytest.raises(SigningFailed, match=row.key_id):
        custody.open(replace(row, private=wrapped))


def test_a_row_of_another_key_is_a_failure(custody, one):
    (_, row), (_, other) = (custody.make(GUN, "timestamp", one) for _ in range(2))
    for bad in (replace(row, public=other.public), replace(row, private=other.private), replace(row, key_id="0" * 64)):
        with pytest.raises(SigningFailed):
            custody.open(bad)


def test_a_custody_in_order_is_not_away(custody, one):
    assert custody.makes
    custody.check()
    assert under(custody.make(GUN, "timestamp", one)[1]) == custody.under


def test_a_key_shows_nothing_private(custody, one):
    key, row = custody.make(GUN, "timestamp", one)
    for shown in (repr(key), repr(custody.open(row)), str(key)):
        assert row.private.decode("latin-1") not in shown
        assert "passphrase" not in shown


def test_a_key_signs_in_several_threads_at_once(custody):
    key, _ = custody.make(GUN, "timestamp", "ecdsa")
    with ThreadPoolExecutor(4) as pool:
        assert all(good(key, signature) for signature in pool.map(key.sign, [MESSAGE] * 20))


# -- several ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SlowKey:
    """A key that must not sign on the reactor's thread; ``threads`` notes where it signed."""

    key: private.PrivateKey
    threads: list[threading.Thread]
    quick: bool = False

    @property
    def public(self) -> PublicKey:
        return self.key.public

    @property
    def method(self) -> str:
        return self.key.method

    def sign(self, payload: bytes) -> bytes:
        self.threads.append(threading.current_thread())
        return self.key.sign(payload)


class Toy:
    """Keeps keys in ``box``, as a machine of its own would; a row holds only the place in it."""

    makes = True
    under = ""

    def __init__(self, box: dict[bytes, private.PrivateKey]) -> None:
        self.box = box
        self.threads: list[threading.Thread] = []

    def make(self, gun: str, role: str, algorithm: str) -> tuple[SlowKey, StoredKey]:
        key = private.generate(algorithm)
        place = b"%d" % len(self.box)
        self.box[place] = key
        public = key.public
        row = StoredKey(public.key_id, public.key_type, public.public, place, gun, role, "", "none", "TOY")
        return SlowKey(key, self.threads), row

    def open(self, row: StoredKey) -> SlowKey:
        return SlowKey(self.box[row.private], self.threads)

    def check(self) -> None:
        """Nothing can be away."""

    def close(self) -> None:
        """Nothing to release."""


def test_the_first_makes_keys_and_each_opens_its_own():
    toy, ours = Toy({}), _jwe()
    both = ByKeywrap({"TOY": toy, jwe.KEYWRAP: ours})
    made, row = both.make(GUN, "timestamp", "ed25519")
    assert row.keywrap_alg == "TOY"
    assert both.open(row).public == made.public
    wrapped, row = ours.make(GUN, "timestamp", "ed25519")
    assert both.open(row).public == wrapped.public


def test_a_custody_that_only_opens_makes_no_keys():
    opener = EnvelopeCustody(Envelopes([FileKek(bytes(range(32)))]), makes=False)
    both = ByKeywrap({envelope.KEYWRAP: opener, jwe.KEYWRAP: _jwe()})
    assert both.make(GUN, "timestamp", "ed25519")[1].keywrap_alg == jwe.KEYWRAP
    made, row = _in_a_file().make(GUN, "timestamp", "ed25519")
    assert both.open(row).public == made.public


def test_a_row_that_nobody_opens_is_a_failure_that_names_its_algorithm():
    both = ByKeywrap({"TOY": Toy({}), jwe.KEYWRAP: _jwe()})
    _, row = both.make(GUN, "timestamp", "ed25519")
    with pytest.raises(SigningFailed, match=f"key {row.key_id} has keywrap_alg .{UNKNOWN}.* it opens TOY, PBES2"):
        both.open(replace(row, keywrap_alg=UNKNOWN))


@pytest_twisted.ensureDeferred
async def test_a_keyring_finds_a_key_that_it_cannot_open(bench):
    """The public half of a key is there for all; only to sign with it is a failure."""
    _, row = _jwe().make(GUN, "timestamp", "ed25519")
    await bench.store.add(replace(row, keywrap_alg=UNKNOWN))
    keyring = bench.keyring_of(ByKeywrap({jwe.KEYWRAP: _jwe()}))
    assert (await keyring.find(row.key_id)).role == "timestamp"
    assert keyring.sign_fast(row.key_id, MESSAGE) is None
    with pytest.raises(SigningFailed, match=UNKNOWN):
        await keyring.sign(row.key_id, MESSAGE)


@pytest_twisted.ensureDeferred
async def test_a_key_that_is_not_quick_signs_in_a_thread(bench):
    toy = Toy({})
    keyring = bench.keyring_of(toy)
    key = await keyring.create(GUN, "timestamp", "ed25519")
    for _ in range(2):  # pending, then not
        assert keyring.sign_fast(key.key_id, MESSAGE) is None
        signed = await keyring.sign(key.key_id, MESSAGE)
        assert verify(key, Signature(key.key_id, signed.method, signed.signature), MESSAGE)
    assert len(toy.threads) == 2
    assert threading.main_thread() not in toy.threads


# -- a toy in a whole signer ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return Pair.mint(tmp_path_factory.mktemp("tls"))


async def called(config: SignerConfig, pair: Pair, work: Callable[[Client], Any]) -> Any:
    """What ``work`` returns, as a client of a signer that serves only for it."""
    port = free_port()
    address = config.server.grpc_addr._replace(port=port)
    service = Signer(replace(config, server=replace(config.server, grpc_addr=address)), reactor)
    await service.startService()

    def connected() -> Any:
        with Client(pair, port) as client:
            return work(client)

    try:
        return await deferToThread(connected)
    finally:
        await service.stopService()


@pytest_twisted.ensureDeferred
async def test_a_toy_custody_is_one_row(pair: Pair, tmp_path: Path, monkeypatch):
    """No other part of the signer hears of it: it makes keys, they outlive the signer, and older keys still sign."""
    storage = {"backend": "sqlite3", "db_url": str(tmp_path / "keys.db"), "default_alias": ALIAS}
    config = load_signer(json.dumps(signer_config(pair, 0, storage)), ENVIRONMENT, tmp_path)

    def create(client: Client) -> str:
        key_id: str = client.create(GUN, "timestamp", "ecdsa").keyInfo.keyID.ID
        assert client.sign(key_id, MESSAGE).content
        return key_id

    older = await called(config, pair, create)
    box: dict[bytes, private.PrivateKey] = {}
    toys: list[Toy] = []

    def build(current: Callable[[], SignerConfig], _reactor: object) -> Toy:
        assert current().storage.backend == "sqlite3"
        toys.append(Toy(box))
        return toys[-1]

    monkeypatch.setattr(custodies, "CUSTODIES", {"TOY": build, **custodies.CUSTODIES})
    key_id = await called(config, pair, create)
    assert [key.public.key_id for key in box.values()] == [key_id]

    def sign(client: Client) -> None:
        assert client.sign(key_id, MESSAGE).content
        assert client.sign(older, MESSAGE).content

    await called(config, pair, sign)  # the signer has restarted
    # The others are those that try stored keys when the signer starts; the toy's keys need no passphrase to be tried.
    assert [len(toy.threads) for toy in toys if toy.threads] == [1, 1]
    assert all(threading.main_thread() not in toy.threads for toy in toys)

    store = await open_key_store("sqlite3", str(tmp_path / "keys.db"), reactor)
    rows = [await store.get(each) for each in (older, key_id)]
    await store.close()
    assert [row.keywrap_alg for row in rows] == [jwe.KEYWRAP, "TOY"]
    assert all(row.last_used for row in rows)
