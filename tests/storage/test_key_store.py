"""The contract of KeyStore, on every backend."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults

from notary.errors import KeyNotFound, StorageFailed
from notary.storage import StoredKey

WHEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
"""Some databases store whole seconds."""


def key(number: int = 1, **changes: str) -> StoredKey:
    plain = StoredKey(
        key_id=f"{number:064x}",
        algorithm="ecdsa",
        public=bytes(range(256)),
        private=b"a.compact.jwe" + bytes([number]),
        gun="docker.io/library/alpine",
        role="timestamp",
        passphrase_alias="alias1",
    )
    return replace(plain, **changes)


@pytest_twisted.ensureDeferred
async def test_an_empty_store_holds_nothing(key_stores):
    store = await key_stores()
    with pytest.raises(KeyNotFound):
        await store.get(key().key_id)
    assert await store.pending(key().gun, key().role, key().algorithm) is None
    assert await store.delete(key().key_id) is False
    await store.mark_used(key().key_id, WHEN)
    with pytest.raises(KeyNotFound):
        await store.get(key().key_id)
    await store.check()


@pytest_twisted.ensureDeferred
async def test_a_key_comes_back_as_it_went_in(key_stores):
    store = await key_stores()
    mine = replace(key(), encryption_alg="A128GCM", keywrap_alg="PBES2-HS512+A256KW")
    assert await store.add(mine) == mine
    assert await store.get(mine.key_id) == mine
    assert await store.pending(mine.gun, mine.role, mine.algorithm) == mine
    assert mine.last_used is None


@pytest_twisted.ensureDeferred
async def test_a_sample_has_the_newest_keys_and_the_oldest(key_stores):
    store = await key_stores()
    assert list(await store.sample()) == []
    keys = [key(number, gun=f"example.com/{number}") for number in range(1, 7)]
    for count, each in enumerate(keys, start=1):
        await store.add(each)
        expected = keys[:count] if count < 4 else [keys[0], *keys[count - 3 : count]]
        assert sorted(one.key_id for one in await store.sample()) == [one.key_id for one in expected]


@pytest_twisted.ensureDeferred
async def test_a_new_key_is_pending_whatever_it_says(key_stores):
    store = await key_stores()
    assert await store.add(replace(key(), last_used=WHEN)) == key()
    assert await store.get(key().key_id) == key()


@pytest_twisted.ensureDeferred
async def test_the_first_pending_key_is_kept(key_stores):
    store = await key_stores()
    await store.add(key(2))
    assert await store.add(key(1)) == key(2)
    assert await store.add(key(2)) == key(2)
    with pytest.raises(KeyNotFound):
        await store.get(key(1).key_id)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"gun": "docker.io/library/busybox"}, id="gun"),
        pytest.param({"gun": "docker.io/library/Alpine"}, id="case-of-the-gun"),
        pytest.param({"role": "snapshot"}, id="role"),
        pytest.param({"algorithm": "ed25519"}, id="algorithm"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_key_that_differs_is_another_one(key_stores, changes):
    store = await key_stores()
    other = key(2, **changes)
    await store.add(key(1))
    assert await store.pending(other.gun, other.role, other.algorithm) is None
    assert await store.add(other) == other
    assert await store.pending(other.gun, other.role, other.algorithm) == other
    assert await store.pending(key().gun, key().role, key().algorithm) == key(1)


@pytest_twisted.ensureDeferred
async def test_a_used_key_is_no_longer_pending(key_stores):
    store = await key_stores()
    await store.add(key(1))
    await store.mark_used(key(1).key_id, WHEN)
    assert await store.get(key(1).key_id) == replace(key(1), last_used=WHEN)
    assert await store.pending(key().gun, key().role, key().algorithm) is None
    assert await store.add(key(2)) == key(2)
    assert await store.get(key(1).key_id) == replace(key(1), last_used=WHEN)


@pytest_twisted.ensureDeferred
async def test_only_the_first_use_is_written_down(key_stores):
    store = await key_stores()
    await store.add(key())
    for later in (0, 1, 2):
        await store.mark_used(key().key_id, WHEN + timedelta(hours=later))
    assert (await store.get(key().key_id)).last_used == WHEN


@pytest_twisted.ensureDeferred
async def test_the_time_of_use_is_utc(key_stores):
    store = await key_stores()
    await store.add(key())
    await store.mark_used(key().key_id, WHEN.astimezone(timezone(timedelta(hours=-7))))
    used = (await store.get(key().key_id)).last_used
    assert used == WHEN
    assert used.utcoffset() == timedelta(0)


@pytest_twisted.ensureDeferred
async def test_the_id_of_a_used_key_is_taken(key_stores):
    store = await key_stores()
    await store.add(key())
    await store.mark_used(key().key_id, WHEN)
    with pytest.raises(StorageFailed):
        await store.add(key())
    assert await store.get(key().key_id) == replace(key(), last_used=WHEN)


@pytest.mark.parametrize("used", [False, True], ids=["pending", "used"])
@pytest_twisted.ensureDeferred
async def test_delete(key_stores, used):
    store = await key_stores()
    await store.add(key(1))
    if used:
        await store.mark_used(key(1).key_id, WHEN)
    await store.add(key(2, role="snapshot"))
    assert await store.delete(key(1).key_id) is True
    assert await store.delete(key(1).key_id) is False
    with pytest.raises(KeyNotFound):
        await store.get(key(1).key_id)
    assert await store.pending(key().gun, key().role, key().algorithm) is None
    assert await store.get(key(2).key_id) == key(2, role="snapshot")
    assert await store.add(key(1)) == key(1)


@pytest_twisted.ensureDeferred
async def test_those_who_race_get_the_same_key(key_stores):
    stores = [await key_stores(), await key_stores()]
    kept = await gatherResults([stores[n % 2].add(key(n)) for n in range(20)])
    assert len(set(kept)) == 1
    for n in range(20):
        if key(n) != kept[0]:
            with pytest.raises(KeyNotFound):
                await stores[0].get(key(n).key_id)


@pytest_twisted.ensureDeferred
async def test_first_uses_that_race(key_stores):
    stores = [await key_stores(), await key_stores()]
    await stores[0].add(key())
    times = [WHEN + timedelta(seconds=n) for n in range(10)]
    await gatherResults([stores[n % 2].mark_used(key().key_id, when) for n, when in enumerate(times)])
    found = await stores[0].get(key().key_id)
    assert found.last_used in times
    assert replace(found, last_used=None) == key()
