"""The operators' port on the signer's keys: what others do to a row at the same time counts, on every database."""

from __future__ import annotations

import time
from dataclasses import replace
from threading import Event

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from notary.storage.keywrap import rewrap, unwrap
from notary.storage.sql import key_inventory
from tests.storage.conftest import BACKENDS
from tests.support.keyplace import NEW, OLD, PASSPHRASES, USED, make_key

GUN = "example.com/app"


def moved(row):
    return row, rewrap(row.key, unwrap(row.key, PASSPHRASES.get), NEW, PASSPHRASES.get)


@pytest_twisted.ensureDeferred
async def test_pages(key_place):
    keys = await key_place.fill(*(make_key(f"{GUN}/{n}") for n in range(5)))
    async with key_place.inventory() as inventory:
        first = await inventory.page(0, 3)
        rest = await inventory.page(first[-1].number, 3)
        assert await inventory.page(rest[-1].number, 3) == []
        assert [row.key for row in (*first, *rest)] == keys
        assert all(row.created.tzinfo and row.problem == "" for row in first)
        assert await inventory.count() == 5


@pytest_twisted.ensureDeferred
async def test_rows_that_a_go_signer_deleted_do_not_exist(key_place):
    kept, gone = await key_place.fill(make_key(GUN), make_key("example.com/b"))
    async with key_place.inventory() as inventory:
        pairs = [moved(row) for row in await inventory.page(0, 9)]
        columns = "key_id, algorithm, public, private, gun, role, passphrase_alias, encryption_alg, keywrap_alg"
        await key_place.execute("DELETE FROM private_keys WHERE key_id == ?", gone.key_id)
        await key_place.execute(
            f"INSERT INTO private_keys (id, {columns}, deleted_at) VALUES ({', '.join('?' * 11)})",
            pairs[1][0].number, gone.key_id, gone.algorithm, gone.public, gone.private, gone.gun, gone.role,
            gone.passphrase_alias, gone.encryption_alg, gone.keywrap_alg, "2030-01-01 00:00:00",
        )  # fmt: skip
        assert [row.key for row in await inventory.page(0, 9)] == [kept]
        assert await inventory.count() == 1
        assert await inventory.replace(pairs) == 1
        assert await inventory.remove_pending([row for row, _ in pairs]) == 1
        assert await inventory.count() == 0
    assert await key_place.all("SELECT COUNT(*) FROM private_keys") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_replace(key_place):
    keys = await key_place.fill(make_key(GUN), make_key("example.com/b"))
    async with key_place.inventory() as inventory:
        pairs = [moved(row) for row in await inventory.page(0, 9)]
        assert await inventory.replace(pairs) == 2
        assert await inventory.replace(pairs) == 0  # it is not any more what the rows say
        assert await inventory.replace([]) == 0
        after = await inventory.page(0, 9)
        assert [row.key for row in after] == [new for _, new in pairs]
        assert [(row.number, row.created) for row in after] == [(row.number, row.created) for row, _ in pairs]
    async with key_place.store() as store:
        assert await store.get(keys[0].key_id) == pairs[0][1]


@pytest_twisted.ensureDeferred
async def test_what_others_did_before_counts(key_place):
    names = ("used", "deleted", "moved", "left")
    keys = dict(zip(names, await key_place.fill(*(make_key(f"{GUN}/{name}") for name in names)), strict=True))
    async with key_place.inventory() as inventory, key_place.store() as store:
        pairs = [moved(row) for row in await inventory.page(0, 9)]
        await store.mark_used(keys["used"].key_id, USED)
        await store.delete(keys["deleted"].key_id)
        again = moved(pairs[2][0])
        assert await inventory.replace([again]) == 1
        assert await inventory.replace(pairs) == 2
        after = {row.key_id: row.key for row in await inventory.page(0, 9)}
        assert after[keys["used"].key_id] == replace(pairs[0][1], last_used=USED)
        assert keys["deleted"].key_id not in after
        assert after[keys["moved"].key_id] == again[1]
        assert after[keys["left"].key_id] == pairs[3][1]


@pytest_twisted.ensureDeferred
async def test_only_what_is_still_pending_is_removed(key_place):
    pending, used, _ = await key_place.fill(make_key(GUN), make_key("example.com/b"), make_key("example.com/c"))
    async with key_place.inventory() as inventory, key_place.store() as store:
        rows = (await inventory.page(0, 9))[:2]
        await store.mark_used(used.key_id, USED)
        assert await inventory.remove_pending(rows) == 1
        assert pending.key_id not in {row.key_id for row in await inventory.page(0, 9)}
        assert await inventory.count() == 2


# -- transactions that overlap: the second one waits for the row that the first one puts in again ----------------------

WAITING = {
    "mariadb": "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
    "postgresql": "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
}


@pytest.fixture
def somebody_waits(request, key_place):
    """Fires when a transaction waits for another one."""
    name = {"mysql": "mariadb", "postgres": "postgresql"}[key_place.backend]
    server = request.getfixturevalue(name)

    async def wait():
        while (await deferToThread(server.execute, "", WAITING[name]))[0][0] == 0:
            await deferToThread(time.sleep, 0.2)  # InnoDB shows the same picture for ever if asked more often

    return wait


async def while_replacing(inventory, pairs, somebody_waits, other):
    """Replace ``pairs``, and start ``other`` when that is done but not committed; what both returned."""
    done, go_on = Deferred(), Event()

    def work(cursor):
        count = key_inventory._replace(cursor, pairs, inventory._database.dialect.bind_time(USED))
        reactor.callFromThread(done.callback, None)
        go_on.wait(60)
        return count

    replacing = inventory._database.write(work)
    await done
    waiting = other()
    await somebody_waits()
    go_on.set()
    return await replacing, await waiting


ON_SERVERS = pytest.mark.parametrize(
    "key_place", [each for each in BACKENDS if each.id in {"mysql", "postgres"}], indirect=True
)


@ON_SERVERS
@pytest_twisted.ensureDeferred
async def test_a_deletion_is_not_lost(key_place, somebody_waits):
    (key,) = await key_place.fill(make_key(GUN))
    async with key_place.inventory() as inventory, key_place.store() as store:
        pairs = [moved(row) for row in await inventory.page(0, 9)]
        outcome = await while_replacing(inventory, pairs, somebody_waits, lambda: store.delete(key.key_id))
        assert outcome == (1, True)
        assert await inventory.count() == 0


@ON_SERVERS
@pytest_twisted.ensureDeferred
async def test_a_first_signature_is_not_lost_and_undoes_nothing(key_place, somebody_waits):
    (key,) = await key_place.fill(make_key(GUN))
    async with key_place.inventory() as inventory, key_place.store() as store:
        pairs = [moved(row) for row in await inventory.page(0, 9)]
        await while_replacing(inventory, pairs, somebody_waits, lambda: store.mark_used(key.key_id, USED))
        assert (await store.get(key.key_id)) == replace(pairs[0][1], last_used=USED)


@ON_SERVERS
@pytest_twisted.ensureDeferred
async def test_of_two_operators_one_gives_way(key_place, somebody_waits):
    await key_place.fill(make_key(GUN))
    async with key_place.inventory() as inventory, key_place.inventory() as another:
        rows = await inventory.page(0, 9)
        first, second = ([moved(row) for row in rows] for _ in range(2))
        outcome = await while_replacing(inventory, first, somebody_waits, lambda: another.replace(second))
        assert outcome == (1, 0)
        assert [row.key for row in await inventory.page(0, 9)] == [first[0][1]]


@ON_SERVERS
@pytest_twisted.ensureDeferred
async def test_a_key_that_is_replaced_is_still_removed(key_place, somebody_waits):
    await key_place.fill(make_key(GUN))
    async with key_place.inventory() as inventory, key_place.inventory() as another:
        rows = await inventory.page(0, 9)
        pairs = [moved(row) for row in rows]
        assert rows[0].key.passphrase_alias == OLD
        replaced, removed = await while_replacing(
            inventory, pairs, somebody_waits, lambda: another.remove_pending(rows)
        )
        assert replaced == 1
        assert removed + await inventory.count() == 1  # a database may see it as gone, and leave it for the next time
