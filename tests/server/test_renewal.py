"""Renewal in the background: what expires soon is signed anew, and no reader waits for it."""

from __future__ import annotations

from datetime import timedelta

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, fail

from notary.errors import SigningUnavailable
from notary.server.renewal import JITTER, SHARE, Schedule
from notary.server.signing.local import LocalSigner
from notary.tuf.draft import Lifetimes
from notary.tuf.model import Gun
from notary.tuf.refresh import Expiries
from tests.support.api import GUN, TUF, new_store, published
from tests.support.inmemory import Server

DAY = timedelta(days=1)


class Signer(LocalSigner):
    """A signer that may be away, or take its time."""

    def __init__(self):
        super().__init__()
        self.away = False
        self.waiting = None
        self.signed = 0

    def sign(self, key_id, payload):
        if self.away:
            return fail(SigningUnavailable("the signer is away"))
        self.signed += 1
        if self.waiting is None:
            return super().sign(key_id, payload)
        waiting = Deferred()
        self.waiting.append(waiting)
        return waiting.addCallback(lambda _: super(Signer, self).sign(key_id, payload))


@pytest.fixture
def signer():
    return Signer()


@pytest.fixture
def server(signer):
    return Server(new_store(), signing=signer)


async def version(server, role="timestamp"):
    return (await server.get(f"{TUF}{role}.json")).json["signed"]["version"]


def settle(server):
    """What is to be done in the background at once is done."""
    for _ in range(3):
        server.clock.advance(0)


@pytest_twisted.ensureDeferred
async def test_a_timestamp_is_renewed_once_a_third_of_its_life_is_left(server, signer):
    await published(server)
    before = signer.signed
    server.advance(days=14 * (1 - SHARE) - 0.01)
    assert await version(server) == 1
    settle(server)
    assert signer.signed == before
    server.advance(days=14 * SHARE * JITTER + 0.02)
    assert await version(server) == 1, "the reader gets what is stored"
    settle(server)
    assert await version(server) == 2
    assert signer.signed == before + 1
    assert await version(server, "snapshot") == 1


@pytest_twisted.ensureDeferred
async def test_no_reader_waits_for_a_renewal_that_takes_long(server, signer):
    await published(server)
    server.advance(days=12)
    signer.waiting = []
    for _ in range(5):
        assert await version(server) == 1
        settle(server)
    assert len(signer.waiting) == 1, "and it is begun once"
    signer.waiting[0].callback(None)
    settle(server)
    assert await version(server) == 2


@pytest_twisted.ensureDeferred
async def test_a_publish_that_a_renewal_overtakes_is_stored(server, signer):
    author = await published(server)
    server.advance(days=12)
    signer.waiting = []
    publishing = Deferred.fromCoroutine(server.upload(GUN, author.publish("targets")))
    assert len(signer.waiting) == 1, "the upload is valid, and its timestamp is being signed"
    assert await version(server) == 1
    settle(server)
    waiting, signer.waiting = signer.waiting, None
    waiting[1].callback(None)
    settle(server)
    assert await version(server) == 2, "which is the renewal"
    waiting[0].callback(None)
    assert (await publishing).status == 200
    assert (await version(server), await version(server, "targets")) == (3, 2)


@pytest_twisted.ensureDeferred
async def test_a_publish_that_another_one_overtakes_is_refused(server, signer):
    author = await published(server)
    files = author.publish("targets")
    signer.waiting = []
    publishing = Deferred.fromCoroutine(server.upload(GUN, files))
    waiting, signer.waiting = signer.waiting, None
    assert (await server.upload(GUN, files)).status == 200
    waiting[0].callback(None)
    answer = await publishing
    assert (answer.status, answer.json["errors"][0]["code"]) == (400, "VERSION")
    assert (await version(server), await version(server, "targets")) == (2, 2)


@pytest_twisted.ensureDeferred
async def test_a_signer_that_is_away_for_days_is_not_missed(server, signer):
    await published(server)
    server.advance(days=10.5)
    signer.away = True
    for _ in range(3 * 24):
        server.advance(hours=1)
        server.clock.advance(3600)
        assert await version(server) == 1
        settle(server)
    signer.away = False
    server.advance(minutes=2)
    server.clock.advance(120)
    await version(server)
    settle(server)
    assert await version(server) == 2
    failures = await server.get("/metrics")
    assert server.repository.renewals.counts.failures > 0
    assert failures.status == 200


@pytest_twisted.ensureDeferred
async def test_after_a_failure_reads_try_no_more_for_a_minute(server, signer):
    await published(server)
    server.advance(days=12)
    signer.away = True
    for _ in range(10):
        await version(server)
        settle(server)
        server.advance(minutes=2)  # the time of day alone: pauses are on the other clock
    assert server.repository.renewals.counts.failures == 1


@pytest_twisted.ensureDeferred
async def test_a_snapshot_of_the_server_is_renewed_with_the_timestamp_before_it(signer):
    schedule = Schedule(Lifetimes(timestamp=14 * DAY, snapshot=30 * DAY))
    server = Server(new_store(), signing=signer, schedule=schedule)
    await published(server)
    server.advance(days=12)  # the snapshot has 18 of 30 days left
    await version(server)
    settle(server)
    assert (await version(server), await version(server, "snapshot")) == (2, 1)
    server.advance(days=11)  # and now 7
    await version(server)
    settle(server)
    assert (await version(server), await version(server, "snapshot")) == (3, 2)
    snapshot = (await server.get(TUF + "snapshot.json")).json["signed"]
    assert snapshot["expires"] == (server.now + 30 * DAY).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest_twisted.ensureDeferred
async def test_a_snapshot_that_expires_before_its_timestamp_is_renewed_too(signer):
    schedule = Schedule(Lifetimes(timestamp=14 * DAY, snapshot=3 * DAY))
    server = Server(new_store(), signing=signer, schedule=schedule)
    await published(server)
    server.advance(days=2.5)
    await version(server)
    settle(server)
    assert (await version(server), await version(server, "snapshot")) == (2, 2)


@pytest_twisted.ensureDeferred
async def test_what_the_publisher_signs_is_left_to_the_publisher(signer):
    schedule = Schedule(Lifetimes(snapshot=30 * DAY))
    server = Server(new_store(), signing=signer, schedule=schedule)
    author = await published(server, snapshot="client")
    server.advance(days=3 * 365 - 2)
    await version(server)
    settle(server)
    await version(server)
    settle(server)
    assert (await server.get(TUF + "snapshot.json")).body == author.stored["snapshot"]


@pytest.mark.parametrize(("hours", "timestamp"), [(1, "in an hour"), (24 * 100, "in 100 days")])
@pytest_twisted.ensureDeferred
async def test_lifetimes_are_those_of_the_configuration(signer, hours, timestamp):
    schedule = Schedule(Lifetimes(timestamp=timedelta(hours=hours), snapshot=7 * DAY))
    server = Server(new_store(), signing=signer, schedule=schedule)
    await published(server)
    for role, lifetime in (("timestamp", timedelta(hours=hours)), ("snapshot", 7 * DAY)):
        expires = (await server.get(f"{TUF}{role}.json")).json["signed"]["expires"]
        assert expires == (server.now + lifetime).strftime("%Y-%m-%dT%H:%M:%SZ"), timestamp


@pytest_twisted.ensureDeferred
async def test_without_a_share_only_what_has_expired_is_renewed(signer):
    server = Server(new_store(), signing=signer, schedule=Schedule(share=0))
    await published(server)
    server.advance(days=13.9)
    await version(server)
    settle(server)
    assert await version(server) == 1
    server.advance(days=0.2)
    assert await version(server) == 2


@pytest_twisted.ensureDeferred
async def test_a_server_that_renews_nothing_serves_what_is_stored():
    store = new_store()
    author = Server(store)
    await published(author)
    signer = Signer()
    server = Server(store, signing=signer, schedule=Schedule(renews=False))
    for days in (0, 12, 20, 4 * 365):
        server.now = author.now + days * DAY
        assert await version(server) == 1
        settle(server)
    assert signer.signed == 0


@pytest_twisted.ensureDeferred
async def test_closing_waits_for_the_renewal_that_runs(server, signer):
    await published(server)
    server.advance(days=12)
    signer.waiting = []
    await version(server)
    settle(server)
    closing = Deferred.fromCoroutine(server.repository.renewals.close())
    assert not closing.called
    signer.waiting[0].callback(None)
    await closing
    assert await version(server) == 2


def test_servers_renew_a_collection_at_different_times():
    """So one of them does it, and the others find it done; and not all collections of a day on one day."""
    expires = Server(new_store()).now + 14 * DAY
    seen = set()
    for _ in range(20):
        renewals = Server(new_store()).repository.renewals
        for gun in (GUN, "example.com/other"):
            left = expires - renewals.due(Gun(gun), Expiries(expires, expires + 900 * DAY))
            assert 14 * DAY * SHARE * (1 - JITTER) <= left <= 14 * DAY * SHARE
            seen.add(left)
    assert len(seen) == 40
