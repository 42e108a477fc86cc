"""The changefeed of all collections loses no record of a slow writer, of a Go Notary, of a crowd of writers."""

from __future__ import annotations

import itertools
import threading
from contextlib import closing, suppress
from typing import Any, NamedTuple

import MySQLdb
import psycopg
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from notary.errors import StorageFailed
from notary.storage import Update
from notary.storage.open import open_database, open_metadata_store
from notary.storage.sql.backends import DIALECTS
from notary.storage.sql.dialect import PoolSettings
from notary.storage.sql.feed import SETTLED_SECONDS, Horizon
from notary.storage.sql.migrate import SERVER
from notary.tuf.model import TIMESTAMP, Gun
from tests.support.migrated import migrated_database

SLOW, QUICK = Gun("example.com/slow"), Gun("example.com/quick")


class Feed(NamedTuple):
    """An empty database of a server, and how others write to it."""

    server: Any
    name: str
    db_url: str

    def connect(self) -> Any:
        """Connect as another server does; a transaction begins with the first statement."""
        if self.server.backend == "mysql":
            return MySQLdb.connect(unix_socket=str(self.server.socket), user="root", database=self.name)
        return psycopg.connect(host=str(self.server.directory), port=self.server.port, user="root", dbname=self.name)

    def age(self, first_id: int = 1) -> None:
        """Let all records from ``first_id`` on be old."""
        earlier = {"mysql": "INTERVAL 1 HOUR", "postgres": "INTERVAL '1 hour'"}[self.server.backend]
        update = f"UPDATE changefeed SET created_at = created_at - {earlier} WHERE id >= %s"
        self.server.execute(self.name, update, first_id)


@pytest.fixture(params=["mariadb", "postgresql"])
def feed(request) -> Feed:
    server = request.getfixturevalue(request.param)
    return Feed(server, *migrated_database(server, "server"))


@pytest_twisted.async_yield_fixture
async def stores(feed):
    """Opens stores that are closed after the test."""
    opened = []

    async def another():
        opened.append(await open_metadata_store(feed.server.backend, feed.db_url, reactor, PoolSettings(connections=8)))
        return opened[-1]

    yield another
    for store in opened:
        await store.close()


def begin(connection: Any, gun: Gun, version: int = 1) -> None:
    """Publish as a Go Notary does, up to the commit."""
    with closing(connection.cursor()) as cursor:
        cursor.execute(
            "INSERT INTO tuf_files (created_at, updated_at, gun, role, version, sha256, data) "
            "VALUES (NOW(), NOW(), %s, 'timestamp', %s, %s, %s)",
            (str(gun), version, "a" * 64, b"{}"),
        )
        cursor.execute(
            "INSERT INTO changefeed (created_at, gun, version, sha256, category) "
            "VALUES (CURRENT_TIMESTAMP, %s, %s, %s, 'update')",
            (str(gun), version, "a" * 64),
        )


async def publish(store, gun: Gun, version: int = 1) -> None:
    await store.publish(gun, [Update(TIMESTAMP, version, f"{gun} {version}".encode())])


async def page(store, after: int, records: int = 100) -> list[str]:
    return [change.gun for change in await store.changes(None, after, records)]


@pytest_twisted.ensureDeferred
async def test_a_record_whose_writer_is_slow_is_not_passed_by(feed, stores):
    store = await stores()
    with closing(feed.connect()) as other:
        begin(other, SLOW)
        await publish(store, QUICK)
        assert await page(store, 0) == []
        assert await page(store, -1, 1) == []  # where a reader begins that wants what is new
        assert await page(store, 1000, -10) == []
        assert len(await store.changes(QUICK, 0, 10)) == 1
        other.commit()
    assert await page(store, 0) == [SLOW, QUICK]
    assert await page(store, -1, 1) == [QUICK]
    assert await page(store, 1, -10) == []
    assert await page(store, 2, -10) == [SLOW]


@pytest_twisted.ensureDeferred
async def test_a_page_ends_where_a_record_may_still_appear(feed, stores):
    store = await stores()
    await publish(store, QUICK)
    with closing(feed.connect()) as other:
        begin(other, SLOW)
        for version in (2, 3):
            await publish(store, QUICK, version)
        (first,) = await store.changes(None, 0, 100)
        assert first.gun == QUICK
        assert await store.changes(None, first.id, 100) == []
        feed.age(first.id + 2)  # what is open is open, however old what follows is
        assert await store.changes(None, first.id, 100) == []
        assert [change.id for change in await store.changes(None, -1, 100)] == [first.id]
        other.commit()
    assert await page(store, first.id) == [SLOW, QUICK, QUICK]


@pytest_twisted.ensureDeferred
async def test_an_id_that_was_given_up_holds_nobody_up_for_good(feed, stores):
    store = await stores()
    with closing(feed.connect()) as other:
        begin(other, SLOW)
        await publish(store, QUICK)
        other.rollback()
    if feed.server.backend == "mysql":  # it cannot tell yet that nobody will use it
        assert await page(store, 0) == []
        feed.age()
    assert await page(store, 0) == [QUICK]
    assert await page(store, -1, 1) == [QUICK]


@pytest.mark.parametrize("feed", ["mariadb"], indirect=True)
@pytest_twisted.ensureDeferred
async def test_missing_ids_of_many_pages_are_waited_for_once(feed, stores):
    """On a cluster, each node numbers with gaps; a reader that is behind by many pages waits no longer than others."""
    store = await stores()
    now = 1000.0
    store._horizon = Horizon(lambda: now)
    ids = list(range(2, 22, 2))
    insert = (
        "INSERT INTO changefeed (id, created_at, gun, version, category) VALUES (%s, UTC_TIMESTAMP(), %s, 1, 'update')"
    )
    for id_ in ids:
        feed.server.execute(feed.name, insert, id_, str(QUICK))
    assert await store.changes(None, 0, 2) == []
    now += SETTLED_SECONDS
    seen = [0]
    while found := await store.changes(None, seen[-1], 2):
        seen += [change.id for change in found]
    assert seen == [0, *ids]


@pytest_twisted.ensureDeferred
async def test_the_end_of_a_feed_whose_beginning_was_removed(feed, stores):
    store = await stores()
    for version in range(1, 6):
        await publish(store, QUICK, version)
    feed.server.execute(feed.name, "DELETE FROM changefeed WHERE id < 4")
    feed.age()
    assert [change.version for change in await store.changes(None, 0, 100)] == [4, 5]
    assert [change.version for change in await store.changes(None, -1, 100)] == [4, 5]


@pytest_twisted.ensureDeferred
async def test_readers_of_a_crowd_of_writers_miss_nothing(feed, stores):
    """Two servers and a Go Notary write as fast as they can; readers page forward from the beginning and the end."""
    ours = [await stores() for _ in range(2)]
    readers = [await stores() for _ in range(2)]
    await publish(ours[0], QUICK)
    feed.age()
    seen: list[list[int]] = [[], [(await readers[1].changes(None, -1, 1))[0].id]]

    async def write(number: int) -> None:
        for version in range(1, 16):
            await publish(ours[number % 2], Gun(f"example.com/{number}"), version)

    async def read(number: int) -> int:
        found = await readers[number].changes(None, seen[number][-1] if seen[number] else 0, 7)
        seen[number] += [change.id for change in found]
        return len(found)

    writing = DeferredList([Deferred.fromCoroutine(write(number)) for number in range(12)])
    with closing(feed.connect()) as other:
        for turn in itertools.count(1):
            begin(other, SLOW, turn)
            await gatherResults([Deferred.fromCoroutine(read(number)) for number in range(2)])
            if turn % 5:
                other.commit()
            else:
                other.rollback()
            if writing.called:
                break
    for success, failure in await writing:
        assert success, failure
    feed.age()
    for number in range(2):
        while await read(number):
            pass
    written = [id_ for (id_,) in feed.server.execute(feed.name, "SELECT id FROM changefeed ORDER BY id")]
    assert len(written) > 12 * 15
    assert seen[0] == written
    assert seen[1] == [id_ for id_ in written if id_ >= seen[1][0]]


@pytest_twisted.ensureDeferred
async def test_a_server_that_hangs_in_a_transaction_holds_nobody_up_for_good(feed, stores):
    database = await open_database(
        DIALECTS[feed.server.backend], feed.db_url, SERVER, reactor, PoolSettings(connections=1, query_timeout=1.0)
    )
    store = await stores()
    holding, release = threading.Event(), threading.Event()

    def hang(cursor) -> None:
        cursor.run("INSERT INTO changefeed (gun, version, category) VALUES (?, 1, 'update')", str(SLOW))
        holding.set()
        release.wait(30)
        cursor.run("INSERT INTO changefeed (gun, version, category) VALUES (?, 2, 'update')", str(SLOW))

    hanging = database.write(hang)
    await deferToThread(holding.wait, 30)
    await publish(store, QUICK)
    assert await page(store, 0) == []
    try:
        await deferToThread(feed.age)  # MariaDB waits here for the end of it
        while not (found := await page(store, 0)):
            await deferLater(reactor, 0.05)
        assert found == [QUICK]
    finally:
        release.set()
    with suppress(StorageFailed):
        await hanging
    assert len(await store.changes(SLOW, 0, 10)) in {0, 2}
    await database.close()


# -- how long an id is waited for -------------------------------------------------------------------------------------


def test_an_id_is_settled_once_a_later_one_was_known_long_enough():
    now = 1000.0
    horizon = Horizon(lambda: now)
    assert horizon.settled(10) == 0
    now += SETTLED_SECONDS - 1
    assert horizon.settled(20) == 0
    now += 1
    assert horizon.settled(30) == 10
    now += SETTLED_SECONDS - 1
    assert horizon.settled(40) == 20
    now += 100
    assert horizon.settled(40) == 40


def test_what_is_known_takes_no_more_room_the_longer_it_is_asked_for():
    now = 1000.0
    horizon = Horizon(lambda: now)
    for newest in range(100_000):
        now += 0.001
        horizon.settled(newest)
    assert len(horizon._seen) <= SETTLED_SECONDS + 1
    assert 75_000 < horizon.settled(100_000) <= 80_000
