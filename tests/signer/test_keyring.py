"""The keyring on real stores: what is made, found, signed with, deleted, and how often keys are unwrapped."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest
import pytest_twisted
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from twisted.internet.defer import CancelledError, Deferred, gatherResults

from notary.errors import InvalidGun, InvalidRole, KeyNotFound, SigningFailed, StorageFailed, UnsupportedAlgorithm
from notary.storage import StoredKey
from notary.tuf import jwe, private
from notary.tuf.public import Signature, verify

GUN = "example.com/app"
METHODS = {"ecdsa": "ecdsa", "ed25519": "eddsa", "rsa": "rsapss"}
MESSAGE = b'{"version":1}'
NO_KEY = "0" * 64

start = Deferred.fromCoroutine


def check_with_cryptography(algorithm, public, signature, message):
    """Raise InvalidSignature unless an independent library takes the signature."""
    if algorithm == "ed25519":
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        return
    key = load_der_public_key(public)
    if algorithm == "ecdsa":
        assert isinstance(key.curve, ec.SECP256R1)
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    else:
        assert key.key_size >= 2048
        key.verify(signature, message, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())


class Interrupted:
    """A store whose named method waits: ``reached`` fires when it is called, and it goes on when ``go`` fires."""

    def __init__(self, store, method, *, before=True):
        self.store = store
        self.method = method
        self.before = before
        self.reached = Deferred()
        self.go = Deferred()
        self.calls = 0

    def __getattr__(self, name):
        real = getattr(self.store, name)
        return self._interrupted(real) if name == self.method else real

    def _interrupted(self, real):
        async def wait(*arguments):
            self.calls += 1
            result = None if self.before else await real(*arguments)
            if not self.reached.called:
                self.reached.callback(None)
            await self.go
            return await real(*arguments) if self.before else result

        return lambda *arguments: start(wait(*arguments))


# -- making -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", METHODS)
@pytest_twisted.ensureDeferred
async def test_a_key_is_made_found_used_and_deleted(bench, algorithm):
    keyring = bench.keyring()
    key = await keyring.create(GUN, "snapshot", algorithm)
    assert key.key_type == algorithm

    found = await keyring.find(key.key_id)
    assert (found.key, found.role) == (key, "snapshot")

    signed = await keyring.sign(key.key_id, MESSAGE)
    assert (signed.key, signed.method) == (key, METHODS[algorithm])
    assert verify(key, Signature(key.key_id, signed.method, signed.signature), MESSAGE)
    check_with_cryptography(algorithm, key.public, signed.signature, MESSAGE)

    found = await keyring.find(key.key_id)
    assert (found.key, found.role) == (key, "snapshot")

    assert await keyring.delete(key.key_id) is True
    with pytest.raises(KeyNotFound, match=key.key_id):
        await keyring.find(key.key_id)
    with pytest.raises(KeyNotFound, match=key.key_id):
        await keyring.sign(key.key_id, MESSAGE)


@pytest_twisted.ensureDeferred
async def test_what_is_stored_is_the_format_of_the_reference(bench):
    key = await bench.keyring().create(GUN, "timestamp", "ecdsa")
    row = await bench.store.get(key.key_id)
    assert dataclasses.replace(row, private=b"") == StoredKey(
        key_id=key.key_id,
        algorithm="ecdsa",
        public=key.public,
        private=b"",
        gun=GUN,
        role="timestamp",
        passphrase_alias="alias_one",
        encryption_alg="A256GCM",
        keywrap_alg="PBES2-HS256+A128KW",
        last_used=None,
    )
    plaintext = jwe.unwrap(row.private, "the first passphrase")
    assert private.decode("ecdsa", key.public, plaintext).public == key


@pytest.mark.parametrize("algorithm", ["", "ECDSA", "ecdsa-x509", "dsa", "x" * 100_000])
@pytest_twisted.ensureDeferred
async def test_other_algorithms_are_refused_by_name(bench, algorithm):
    with pytest.raises(UnsupportedAlgorithm, match="choose one of ed25519, ecdsa, rsa") as caught:
        await bench.keyring().create(GUN, "timestamp", algorithm)
    assert len(str(caught.value)) < 300


@pytest_twisted.ensureDeferred
async def test_names_that_no_table_holds_are_refused(bench):
    keyring = bench.keyring()
    with pytest.raises(InvalidGun, match="more than 255 characters"):
        await keyring.create("g" * 256, "timestamp", "ecdsa")
    with pytest.raises(InvalidRole, match="more than 255 characters"):
        await keyring.create(GUN, "r" * 256, "ecdsa")
    assert (await keyring.create("g" * 255, "r" * 255, "ecdsa")).key_type == "ecdsa"


@pytest_twisted.ensureDeferred
async def test_without_the_passphrase_no_key_is_made(bench):
    with pytest.raises(SigningFailed, match="no passphrase of alias 'alias_three'"):
        await bench.keyring(alias="alias_three").create(GUN, "timestamp", "ed25519")
    assert await bench.store.pending(GUN, "timestamp", "ed25519") is None


# -- pending keys -----------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_pending_key_is_handed_out_until_its_first_signature(bench):
    keyring = bench.keyring()
    first = await keyring.create(GUN, "snapshot", "ecdsa")
    assert await keyring.create(GUN, "snapshot", "ecdsa") == first
    assert await bench.keyring().create(GUN, "snapshot", "ecdsa") == first
    others = [
        await keyring.create("example.com/other", "snapshot", "ecdsa"),
        await keyring.create(GUN, "timestamp", "ecdsa"),
        await keyring.create(GUN, "snapshot", "ed25519"),
    ]
    assert len({first.key_id, *(key.key_id for key in others)}) == 4

    await keyring.find(first.key_id)
    assert await keyring.create(GUN, "snapshot", "ecdsa") == first

    await keyring.sign(first.key_id, MESSAGE)
    second = await keyring.create(GUN, "snapshot", "ecdsa")
    assert second != first
    assert await keyring.create(GUN, "snapshot", "ecdsa") == second
    assert (await bench.store.get(first.key_id)).last_used == datetime(2030, 5, 17, 12, 30, 1, tzinfo=UTC)


@pytest.mark.parametrize("instances", [1, 2])
@pytest_twisted.ensureDeferred
async def test_concurrent_creations_leave_one_key(bench, instances):
    keyrings = [bench.keyring() for _ in range(instances)]
    keys = await gatherResults([start(keyrings[i % instances].create(GUN, "snapshot", "ed25519")) for i in range(20)])
    assert len({key.key_id for key in keys}) == 1
    assert bench.threads <= instances
    await keyrings[0].delete(keys[0].key_id)
    assert await bench.store.pending(GUN, "snapshot", "ed25519") is None


@pytest_twisted.ensureDeferred
async def test_only_the_first_signature_is_recorded(bench):
    store = Interrupted(bench.store, "mark_used")
    keyring = bench.keyring(store)
    key = await keyring.create(GUN, "snapshot", "ecdsa")
    first = [start(keyring.sign(key.key_id, MESSAGE)) for _ in range(5)]
    await store.reached
    assert not any(each.called for each in first), "a signature was given out before it was recorded"
    store.go.callback(None)
    await gatherResults(first)
    await keyring.sign(key.key_id, MESSAGE)
    assert store.calls == 1

    again = Interrupted(bench.store, "mark_used")
    await bench.keyring(again).sign(key.key_id, MESSAGE)
    assert again.calls == 0, "the store knew that this key is in use"


@pytest_twisted.ensureDeferred
async def test_a_first_signature_that_cannot_be_recorded_is_not_given_out(bench):
    store = Interrupted(bench.store, "mark_used")
    keyring = bench.keyring(store)
    key = await keyring.create(GUN, "snapshot", "ecdsa")
    store.go.errback(StorageFailed("the store is away"))
    with pytest.raises(StorageFailed):
        await keyring.sign(key.key_id, MESSAGE)
    store.go = Deferred()
    store.go.callback(None)
    await keyring.sign(key.key_id, MESSAGE)
    assert await keyring.create(GUN, "snapshot", "ecdsa") != key


# -- the cache --------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_key_is_unwrapped_once_whoever_asks_at_the_same_time(bench, unwrapped):
    key = await bench.keyring().create(GUN, "snapshot", "ecdsa")
    keyring = bench.keyring()  # as after a restart: new keys are kept unwrapped
    await gatherResults([start(keyring.sign(key.key_id, b"%d" % number)) for number in range(20)])
    await keyring.sign(key.key_id, MESSAGE)
    await keyring.find(key.key_id)
    assert list(unwrapped.values()) == [1]


@pytest_twisted.ensureDeferred
async def test_looking_up_a_key_unwraps_nothing(bench, unwrapped):
    keyring = bench.keyring()
    key = await keyring.create(GUN, "snapshot", "ecdsa")
    bench.passphrases.clear()
    for each in (keyring, bench.keyring()):
        assert (await each.find(key.key_id)).key == key
    assert not unwrapped


@pytest_twisted.ensureDeferred
async def test_a_new_key_signs_without_being_unwrapped(bench, unwrapped):
    keyring = bench.keyring()
    key = await keyring.create(GUN, "snapshot", "ecdsa")
    signed = await keyring.sign(key.key_id, MESSAGE)
    assert verify(key, Signature(key.key_id, signed.method, signed.signature), MESSAGE)
    assert not unwrapped
    assert (await bench.store.get(key.key_id)).last_used is not None
    assert await keyring.create(GUN, "snapshot", "ecdsa") != key


@pytest_twisted.ensureDeferred
async def test_a_new_key_that_another_instance_was_first_to_store_is_not_kept(bench, unwrapped):
    store = Interrupted(bench.store, "add")
    late = bench.keyring(store)
    creating = start(late.create(GUN, "snapshot", "ecdsa"))
    await store.reached
    key = await bench.keyring().create(GUN, "snapshot", "ecdsa")
    store.go.callback(None)
    assert await creating == key
    assert late.cached == 0
    assert (await late.sign(key.key_id, MESSAGE)).key == key
    assert list(unwrapped.values()) == [1]


@pytest_twisted.ensureDeferred
async def test_a_new_key_that_was_deleted_before_its_creation_ended_is_not_kept(bench):
    store = Interrupted(bench.store, "add", before=False)
    keyring = bench.keyring(store)
    creating = start(keyring.create(GUN, "snapshot", "ecdsa"))
    await store.reached  # the row is there
    key = await bench.keyring().create(GUN, "snapshot", "ecdsa")
    assert await keyring.delete(key.key_id) is True
    store.go.callback(None)
    assert await creating == key
    with pytest.raises(KeyNotFound):
        await keyring.sign(key.key_id, MESSAGE)


@pytest_twisted.ensureDeferred
async def test_the_cache_is_bounded_and_keeps_what_was_used_last(bench, unwrapped):
    keyring, other = bench.keyring(capacity=2), bench.keyring()
    one, two, three = [(await other.create(f"example.com/{i}", "snapshot", "ed25519")).key_id for i in range(3)]
    for key_id in (one, two, one, three):  # two was used least recently
        await keyring.sign(key_id, MESSAGE)
    assert sum(unwrapped.values()) == 3
    await keyring.sign(one, MESSAGE)
    await keyring.sign(three, MESSAGE)
    assert sum(unwrapped.values()) == 3
    await keyring.sign(two, MESSAGE)
    assert sum(unwrapped.values()) == 4


@pytest_twisted.ensureDeferred
async def test_a_signature_goes_on_when_the_first_to_ask_gives_up(bench, unwrapped):
    store = Interrupted(bench.store, "get")
    key = await bench.keyring().create(GUN, "snapshot", "ecdsa")
    keyring = bench.keyring(store)
    hasty, patient = (start(keyring.sign(key.key_id, MESSAGE)) for _ in range(2))
    await store.reached
    hasty.cancel()
    store.go.callback(None)
    assert (await patient).key == key
    with pytest.raises(CancelledError):
        await hasty
    assert store.calls == 1


@pytest_twisted.ensureDeferred
async def test_a_creation_that_was_given_up_leaves_its_key_for_the_next(bench):
    store = Interrupted(bench.store, "add")
    keyring = bench.keyring(store)
    hasty = start(keyring.create(GUN, "snapshot", "ecdsa"))
    await store.reached
    hasty.cancel()
    with pytest.raises(CancelledError):
        await hasty
    again = start(keyring.create(GUN, "snapshot", "ecdsa"))
    store.go.callback(None)
    assert (await again).key_type == "ecdsa"
    assert store.calls == 1


@pytest_twisted.ensureDeferred
async def test_a_key_that_was_deleted_while_it_was_unwrapped_is_not_kept(bench):
    store = Interrupted(bench.store, "get", before=False)
    keyring = bench.keyring(store)
    key = await bench.keyring().create(GUN, "snapshot", "ecdsa")
    signing = start(keyring.sign(key.key_id, MESSAGE))
    await store.reached  # the row is read, but not unwrapped
    assert await keyring.delete(key.key_id) is True
    store.go.callback(None)
    await signing  # it was asked for before the deletion
    with pytest.raises(KeyNotFound):
        await keyring.sign(key.key_id, MESSAGE)


@pytest_twisted.ensureDeferred
async def test_a_deletion_that_fails_leaves_the_key(bench):
    store = Interrupted(bench.store, "delete")
    keyring = bench.keyring(store)
    key = await keyring.create(GUN, "snapshot", "ecdsa")
    store.go.errback(StorageFailed("the store is away"))
    with pytest.raises(StorageFailed):
        await keyring.delete(key.key_id)
    assert (await keyring.sign(key.key_id, MESSAGE)).key == key


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key_id",
    [
        pytest.param(NO_KEY, id="unknown"),
        pytest.param("", id="empty"),
        pytest.param("F" * 64, id="capitals"),
        pytest.param("f" * 63, id="short"),
        pytest.param("f" * 64 + "\n", id="newline"),
        pytest.param("x" * 1_000_000, id="huge"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_keys_that_do_not_exist(bench, key_id):
    keyring = bench.keyring()
    for ask in (keyring.find(key_id), keyring.sign(key_id, MESSAGE)):
        with pytest.raises(KeyNotFound) as caught:
            await ask
        assert len(str(caught.value)) < 200
    assert await keyring.delete(key_id) is False


async def stored(bench, algorithm="ecdsa", passphrase="the first passphrase", **changes):
    """Put a row of ours into the store, changed; its key id."""
    key = private.generate(algorithm)
    row = StoredKey(
        key_id=key.public.key_id,
        algorithm=algorithm,
        public=key.public.public,
        private=jwe.wrap(key.encode(), passphrase),
        gun=GUN,
        role="snapshot",
        passphrase_alias="alias_one",
    )
    await bench.store.add(dataclasses.replace(row, **changes))
    return changes.get("key_id", row.key_id)


DAMAGE = [
    pytest.param({"passphrase": "another"}, "wrapped with passphrase alias 'alias_one': it does not open", id="secret"),
    pytest.param({"passphrase_alias": "gone"}, "no passphrase of alias 'gone', which key", id="alias"),
    pytest.param({"private": b"plain"}, "not a compact JWE", id="not wrapped"),
    pytest.param({"private": jwe.wrap(b"no key", "the first passphrase")}, "private half of ecdsa key", id="not a key"),
    pytest.param(
        {"private": jwe.wrap(private.generate("ecdsa").encode(), "the first passphrase")},
        "do not belong together",
        id="another key",
    ),
    pytest.param({"key_id": NO_KEY}, "its public half belongs to another id", id="id"),
    pytest.param({"public": b"other"}, "its public half belongs to another id", id="public half"),
]


@pytest.mark.parametrize(("changes", "message"), DAMAGE)
@pytest_twisted.ensureDeferred
async def test_a_key_that_cannot_be_used_is_named(bench, changes, message):
    key_id = await stored(bench, **changes)
    keyring = bench.keyring()
    for _ in range(2):
        with pytest.raises(SigningFailed, match=message) as caught:
            await keyring.sign(key_id, MESSAGE)
        assert key_id in str(caught.value)
        assert "first passphrase" not in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_a_row_whose_public_half_is_not_its_own_is_not_handed_out(bench):
    key_id = await stored(bench, public=b"other")
    keyring = bench.keyring()
    with pytest.raises(SigningFailed, match="belongs to another id"):
        await keyring.find(key_id)
    with pytest.raises(SigningFailed, match="belongs to another id"):
        await keyring.create(GUN, "snapshot", "ecdsa")


@pytest_twisted.ensureDeferred
async def test_old_aliases_are_readable_as_long_as_their_passphrase_is_there(bench):
    key = await bench.keyring(alias="alias_two").create(GUN, "snapshot", "ecdsa")
    later = await bench.keyring().create(GUN, "timestamp", "ecdsa")
    keyring = bench.keyring()
    assert (await keyring.sign(key.key_id, MESSAGE)).key == key
    assert (await bench.store.get(key.key_id)).passphrase_alias == "alias_two"
    assert (await bench.store.get(later.key_id)).passphrase_alias == "alias_one"
    del bench.passphrases["alias_two"]
    with pytest.raises(SigningFailed, match=f"no passphrase of alias 'alias_two', which key {key.key_id} needs"):
        await bench.keyring().sign(key.key_id, MESSAGE)
    assert (await bench.keyring().sign(later.key_id, MESSAGE)).key == later


@pytest_twisted.ensureDeferred
async def test_no_repr_shows_a_secret(bench):
    keyring = bench.keyring()
    key = await keyring.create(GUN, "snapshot", "ed25519")
    signed = await keyring.sign(key.key_id, b"a message")
    row = await bench.store.get(key.key_id)
    plaintext = jwe.unwrap(row.private, "the first passphrase")
    shown = " ".join(map(repr, [keyring, *vars(keyring).values(), signed, await keyring.find(key.key_id)]))
    assert "first passphrase" not in shown
    assert repr(plaintext)[2:-1] not in shown
    assert plaintext.hex() not in shown
    assert repr(signed.signature) not in shown
