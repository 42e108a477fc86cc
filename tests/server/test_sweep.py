"""Sweeps: what nobody reads is renewed too, by any number of servers, and nothing is signed or stored twice."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta
from random import Random
from types import SimpleNamespace

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.task import Clock

from notary.errors import SigningUnavailable
from notary.server import sweep as sweeps
from notary.server.renewal import JITTER, SHARE, Schedule
from notary.server.repository import Repository
from notary.server.signing.local import LocalSigner
from notary.server.sweep import Sweep
from notary.storage import Update
from notary.storage.open import open_metadata_store
from notary.tuf.draft import Lifetimes
from notary.tuf.model import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Gun
from tests.support.api import new_author, new_store, published
from tests.support.inmemory import NOW, Server, maybe_now
from tests.support.migrated import migrated_database

DAY = timedelta(days=1)


class Signer(LocalSigner):
    def __init__(self):
        super().__init__()
        self.away = False
        self.payloads = Counter()
        self.waiting = None

    def sign(self, key_id, payload):
        if self.away:
            return fail(SigningUnavailable("the signer is away"))
        self.payloads[key_id] += 1
        if self.waiting is not None:
            return self.waiting.addCallback(lambda _: super(Signer, self).sign(key_id, payload))
        return super().sign(key_id, payload)


class Soon(Clock):
    """What is to be done later is done at once, after those that are waiting already."""

    def __init__(self):
        super().__init__()
        self.pauses = 0

    def callLater(self, delay, work, *args, **kw):
        self.pauses += delay > 0
        return reactor.callLater(0, work, *args, **kw)


class Fleet:
    """Servers on one store, with one signer, and a time of day that can be moved."""

    def __init__(self, stores, schedule=None, signer=None):
        self.now = NOW
        self.signer = signer or Signer()
        self.refreshed = Counter()
        self.members = []
        for number, store in enumerate(stores):
            clock = Soon()
            repository = Repository(
                store, self.signer, maybe_now, self.tell, self._refreshed, lambda: None, clock, schedule or Schedule()
            )
            sweep = Sweep(store, repository.renewals, maybe_now, self.tell, clock, Random(number))
            self.members.append(SimpleNamespace(repository=repository, sweep=sweep, clock=clock))
        self.sweep = self.members[0].sweep

    def tell(self) -> datetime:
        return self.now

    def _refreshed(self, role):
        self.refreshed[role] += 1

    async def together(self):
        return await gatherResults([Deferred.fromCoroutine(one.sweep.sweep()) for one in self.members])


def guns(count):
    return [Gun(f"example.com/app{number:05}") for number in range(count)]


async def fill(store, signer, count):
    """Collections that share their keys; published by a server of their own."""
    server = Server(new_store(), signing=signer)
    names = guns(count)
    author = await new_author(server, names[0])
    files = author.first()
    assert (await server.upload(names[0], files)).status == 200
    found = await server.repository._store.current(names[0], [ROOT, TARGETS, SNAPSHOT, TIMESTAMP])
    updates = [Update(role, each.version, each.data) for role, each in found.items()]
    for gun in names:
        await store.publish(gun, updates)
    return names


async def timestamps(store, names):
    return [(await store.current(gun, [TIMESTAMP]))[TIMESTAMP].version for gun in names]


@pytest_twisted.ensureDeferred
async def test_a_sweep_renews_what_nobody_reads():
    store = new_store()
    fleet = Fleet([store])
    names = await fill(store, fleet.signer, 250)
    assert await fleet.sweep.sweep()
    assert set(await timestamps(store, names)) == {1}
    fleet.now += 14 * DAY * (1 - SHARE * (1 - JITTER))
    assert await fleet.sweep.sweep()
    assert set(await timestamps(store, names)) == {2}
    assert fleet.refreshed == {"timestamp": 250}
    assert fleet.members[0].clock.pauses <= 250
    assert await fleet.sweep.sweep()
    assert fleet.refreshed == {"timestamp": 250}


@pytest_twisted.ensureDeferred
async def test_jitter_spreads_the_renewals_of_one_day():
    store = new_store()
    fleet = Fleet([store])
    names = await fill(store, fleet.signer, 300)
    fleet.now += 14 * DAY * (1 - SHARE * (1 - JITTER / 2))  # half of the jitter has passed
    assert await fleet.sweep.sweep()
    assert 100 < sum(version == 2 for version in await timestamps(store, names)) < 200


@pytest_twisted.ensureDeferred
async def test_a_sweep_reads_files_once():
    store = new_store()
    fleet = Fleet([store])
    await fill(store, fleet.signer, 20)
    read = []
    current = store.current
    store.current = lambda gun, roles: read.append(gun) or current(gun, roles)
    for _ in range(3):
        await fleet.sweep.sweep()
    assert len(read) == 1  # these collections have the same files


@pytest_twisted.ensureDeferred
async def test_a_signer_that_is_away_stops_no_figures_and_costs_few_tries():
    store = new_store()
    fleet = Fleet([store])
    names = await fill(store, fleet.signer, 50)
    assert fleet.sweep.seconds_to_expiry() == {}
    fleet.now += 11 * DAY
    fleet.signer.away = True
    assert not await fleet.sweep.sweep()
    assert fleet.members[0].repository.renewals.counts.failures == sweeps.MOST_FAILURES
    assert fleet.sweep.seconds_to_expiry()["timestamp",] == pytest.approx(3 * 86400, abs=2)
    assert fleet.sweep.seconds_to_expiry()["snapshot",] == pytest.approx((3 * 365 - 11) * 86400, abs=2)
    fleet.now += DAY
    assert fleet.sweep.seconds_to_expiry()["timestamp",] == pytest.approx(2 * 86400, abs=2)
    fleet.signer.away = False
    assert await fleet.sweep.sweep()
    assert fleet.sweep.seconds_to_expiry()["timestamp",] == pytest.approx(14 * 86400, abs=2)
    assert set(await timestamps(store, names)) == {2}


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_renewed_does_not_stop_the_others():
    store = new_store()
    fleet = Fleet([store])
    names = await fill(store, fleet.signer, 10)
    broken = [Gun(f"example.com/{name}") for name in ("aaa", "bbb", "zzz")]
    await store.publish(broken[0], [Update(TIMESTAMP, 1, b"no JSON"), Update(SNAPSHOT, 1, b"{}")])
    await store.publish(broken[1], [Update(TARGETS, 1, b"{}")])
    foreign = Server(store)  # its keys are not this signer's
    await published(foreign, broken[2])
    fleet.now += 12 * DAY
    assert await fleet.sweep.sweep()
    assert set(await timestamps(store, names)) == {2}
    assert await timestamps(store, broken[2:]) == [1]


@pytest.fixture
def shared_database(mariadb):
    return migrated_database(mariadb, "server")[1]


@pytest.mark.parametrize("servers", [2, 3])
@pytest_twisted.ensureDeferred
async def test_servers_share_the_work_on_one_database(shared_database, servers):
    db_url = shared_database
    stores = [await open_metadata_store("mysql", db_url, reactor) for _ in range(servers)]
    try:
        fleet = Fleet(stores)
        names = await fill(stores[0], fleet.signer, 120)
        before = fleet.signer.payloads.total()
        fleet.now += 12 * DAY
        for _ in range(20):
            await fleet.together()
            if set(await timestamps(stores[0], names)) == {2}:
                break
        assert set(await timestamps(stores[0], names)) == {2}, "each is renewed once, and none twice"
        assert fleet.refreshed == {"timestamp": 120}
        changes = await stores[0].changes(None, None, 1000)
        assert Counter(change.gun for change in changes) == dict.fromkeys(names, 2)
        signed = fleet.signer.payloads.total() - before
        assert signed <= 120 + 20 * servers, "two servers meet in a page now and then, and part"
    finally:
        for store in stores:
            await store.close()


@pytest_twisted.ensureDeferred
async def test_nothing_that_is_served_has_expired_although_the_signer_is_away_for_three_days(tmp_path):
    """A month, by steps of a sweep. Each collection is read at each step."""
    store = await open_metadata_store("sqlite3", str(tmp_path / "notary.db"), reactor)
    try:
        fleet = Fleet([store])
        names = await fill(store, fleet.signer, 100)
        step = timedelta(seconds=fleet.sweep.interval_seconds)
        answers = expired = 0
        while fleet.now < NOW + 30 * DAY:
            day = (fleet.now - NOW) / DAY
            fleet.signer.away = 9.4 <= day < 12.4 or 20 <= day < 23
            await fleet.sweep.sweep()
            fleet.now += step
            for gun in names:
                stored = await fleet.members[0].repository.current(gun, TIMESTAMP)
                answers += 1
                expired += _expires(stored.data) <= fleet.now
        assert (answers > 10_000, expired) == (True, 0)
        assert min(await timestamps(store, names)) >= 3
    finally:
        await store.close()


def _expires(data: bytes) -> datetime:
    return datetime.fromisoformat(json.loads(data)["signed"]["expires"])


@pytest_twisted.ensureDeferred
async def test_sweeps_follow_each_other_until_the_end():
    store, clock = new_store(), Clock()
    fleet = Fleet([store], Schedule(Lifetimes(timestamp=14 * DAY)))
    await fill(store, fleet.signer, 3)
    renewals = fleet.members[0].repository.renewals
    sweep = Sweep(store, renewals, maybe_now, fleet.tell, clock, Random(1))
    asked = []
    names = store.guns
    store.guns = lambda after, limit: asked.append(after) or names(after, limit)
    sweep.startService()
    clock.advance(sweeps.FIRST_SECONDS)
    assert asked == ["", "example.com/app00002"]
    clock.advance(sweep.interval_seconds * 1.1)
    assert asked[2:] == ["example.com/app00002", ""]  # from the chosen page on, then from the beginning
    store.guns = lambda *_: fail(SigningUnavailable("anything"))
    clock.advance(sweep.interval_seconds * 1.1)
    store.guns = lambda after, limit: asked.append(after) or names(after, limit)
    clock.advance(sweeps.AGAIN_SECONDS * 1.1)
    assert len(asked) == 6
    sweep.stopService()
    assert clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_a_stop_ends_a_sweep():
    store, clock = new_store(), Clock()
    fleet = Fleet([store])
    await fill(store, fleet.signer, 30)
    fleet.now += 12 * DAY
    renewals = fleet.members[0].repository.renewals
    sweep = Sweep(store, renewals, maybe_now, fleet.tell, clock, Random(1))
    fleet.signer.waiting = Deferred()
    sweep.startService()
    clock.advance(sweeps.FIRST_SECONDS)
    ended = sweep.stopService()
    assert not ended.called
    fleet.signer.waiting.callback(None)
    clock.advance(0)  # the pause
    assert ended.called
    assert fleet.refreshed == {"timestamp": 1}
    assert clock.getDelayedCalls() == []
