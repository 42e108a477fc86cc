"""Another server takes the place of the one that a store is connected to: the store goes there by itself."""

from __future__ import annotations

import dataclasses
import time

import MySQLdb
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from notary.errors import StorageFailed, StorageUnreachable
from notary.storage import Update
from notary.storage.open import open_metadata_store
from notary.storage.sql.backends import DIALECTS
from notary.storage.sql.connections import Crowd
from notary.storage.sql.dialect import PoolSettings
from notary.tuf.model import ROOT, TIMESTAMP, Gun
from notary.work.machine import Machine
from tests.support.databases import SERVER_RIGHTS, PostgreSQL
from tests.support.migrated import migrate_new_database, migrated_database
from tests.support.replicas import Address, MariaDBPrimary, MariaDBReplica, PostgreSQLStandby, hold_connections

GUN = Gun("docker.io/library/alpine")
FEW = PoolSettings(connections=3, connect_timeout=2.0, query_timeout=2.0)
ASKED_AT_ONCE = dataclasses.replace(FEW, trust_seconds=0.0)
NEVER_ASKED = dataclasses.replace(FEW, trust_seconds=3600.0)
WAIT_SECONDS = 30.0


def version(number: int) -> list[Update]:
    return [Update(TIMESTAMP, number, f"timestamp {number}".encode())]


async def newest(store) -> int:
    return (await store.current(GUN, [TIMESTAMP]))[TIMESTAMP].version


async def use_every_connection(store) -> None:
    await gatherResults([store.current(GUN, [ROOT]) for _ in range(20)])


class Pair:
    """Two MariaDBs; ``primary`` takes the writes, and ``address`` leads to it."""

    def __init__(self, one: MariaDBPrimary, two: MariaDBReplica) -> None:
        self.primary, self.follower = one, two
        self.database, _ = migrated_database(one, "server")
        self.user = one.user(self.database, SERVER_RIGHTS)
        two.catch_up(one)
        self.address = Address(one).listen(reactor)

    @property
    def url(self) -> str:
        return self.address.url(self.primary, self.database, self.user)

    def demote(self) -> None:
        """Let the primary take no more writes."""
        self.primary.execute("", "SET GLOBAL read_only = 1")

    def switch(self, *, address: bool = True) -> None:
        """Let the two change places, as an operator does; all connections stay open."""
        old, new = self.primary, self.follower
        self.demote()
        new.catch_up(old)
        new.promote()
        old.follow(new)
        self.primary, self.follower = new, old
        if address:
            self.address.lead_to(new)


@pytest.fixture(scope="module")
def servers():
    with MariaDBPrimary() as one, MariaDBReplica(one) as two:
        yield one, two


@pytest.fixture
def pair(servers):
    one, two = servers
    if one.execute("", "SELECT @@read_only") == [(1,)]:
        one, two = two, one
    made = Pair(one, two)
    yield made
    pytest_twisted.blockon(made.address.close())


@pytest_twisted.async_yield_fixture
async def open_stores():
    stores = []

    async def open_store(url: str, pool: PoolSettings, backend: str = "mysql"):
        stores.append(await open_metadata_store(backend, url, reactor, pool))
        return stores[-1]

    yield open_store
    for store in stores:
        await store.close()


# -- MariaDB: a switch by read_only -----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_no_write_fails_after_a_switch(pair, open_stores):
    store = await open_stores(pair.url, NEVER_ASKED)
    await store.publish(GUN, version(1))
    await use_every_connection(store)
    pair.switch()
    for number in range(2, 10):
        await store.publish(GUN, version(number))
    assert pair.primary.execute(pair.database, "SELECT MAX(version) FROM tuf_files") == [(9,)]
    assert await store.delete(GUN) is True
    await store.check_writes()


@pytest_twisted.ensureDeferred
async def test_a_reader_does_not_stay_with_what_has_become_a_replica(pair, open_stores):
    store = await open_stores(pair.url, ASKED_AT_ONCE)
    await store.publish(GUN, version(1))
    await use_every_connection(store)
    pair.switch()
    with pair.follower.lagging():
        elsewhere = await open_stores(pair.primary.db_url(pair.database, pair.user), FEW)
        await elsewhere.publish(GUN, version(2))
        assert [await newest(store) for _ in range(20)] == [2] * 20


@pytest_twisted.ensureDeferred
async def test_without_another_server_reads_go_on(pair, open_stores):
    store = await open_stores(pair.url, ASKED_AT_ONCE)
    await store.publish(GUN, version(1))
    await store.check_writes()
    pair.demote()
    try:
        with pytest.raises(StorageUnreachable, match="is read-only: name its primary"):
            await store.publish(GUN, version(2))
        with pytest.raises(StorageUnreachable, match="is read-only: name its primary"):
            await store.check_writes()
        assert [await newest(store) for _ in range(20)] == [1] * 20
        await store.check()
    finally:
        pair.primary.execute("", "SET GLOBAL read_only = 0")
    await store.publish(GUN, version(2))
    await store.check_writes()


@pytest_twisted.ensureDeferred
async def test_a_db_url_can_ask_for_what_go_does_by_default(pair, open_stores):
    """``rejectReadOnly=false``: the connection stays, and every write fails."""
    store = await open_stores(f"{pair.url}&rejectReadOnly=false", dataclasses.replace(ASKED_AT_ONCE, connections=1))
    await store.publish(GUN, version(1))
    made = pair.address.made
    pair.switch()
    for _ in range(3):
        with pytest.raises(StorageFailed, match="is read-only: name its primary"):
            await store.publish(GUN, version(2))
    assert pair.address.made == made
    for value in ("true", "1"):
        healing = await open_stores(f"{pair.url}&rejectReadOnly={value}", FEW)
        await healing.publish(GUN, version(2 + int(value == "1")))


@pytest_twisted.ensureDeferred
async def test_connections_are_replaced_with_age(pair, open_stores):
    """Nothing says so to a store that its address leads elsewhere, and the old place works as well."""
    store = await open_stores(pair.url, dataclasses.replace(FEW, connection_lifetime=0.5))
    await use_every_connection(store)
    made = pair.address.made
    deadline = time.monotonic() + WAIT_SECONDS
    while pair.address.made < made + 5:
        assert time.monotonic() < deadline
        await use_every_connection(store)
        await deferLater(reactor, 0.05)


# -- PostgreSQL: a standby --------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_standby_of_a_primary_that_died_takes_over(open_stores):
    with PostgreSQL() as primary, PostgreSQLStandby(primary) as standby:
        database, url = await migrate_new_database(primary, "server")
        both = url.replace(f"127.0.0.1:{primary.port}", f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}")
        both += "&target_session_attrs=read-write&connect_timeout=1"
        store = await open_stores(both, FEW, "postgres")
        standby.catch_up(primary)  # which has just made the user
        for_reading = await open_stores(
            url.replace(str(primary.port), str(standby.port)), dataclasses.replace(FEW, read_only=True), "postgres"
        )
        await store.publish(GUN, version(1))
        standby.catch_up(primary)
        assert await newest(for_reading) == 1
        on_standby = await open_stores(url.replace(str(primary.port), str(standby.port)), ASKED_AT_ONCE, "postgres")
        for write in (on_standby.check_writes(), on_standby.publish(GUN, version(2))):
            with pytest.raises(StorageUnreachable, match="is read-only: name its primary"):
                await write
        await on_standby.check()
        await use_every_connection(store)
        await deferToThread(primary.kill)
        standby.promote()
        for number in range(2, 6):
            await store.publish(GUN, version(number))
        assert standby.execute(database, "SELECT MAX(version) FROM tuf_files") == [(5,)]
        await on_standby.publish(GUN, version(6))
        await on_standby.check_writes()


# -- what the probe finds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mariadb", "postgresql"])
@pytest_twisted.ensureDeferred
async def test_what_the_probe_writes_is_never_there(request, kind, open_stores):
    server = request.getfixturevalue(kind)
    database, url = await migrate_new_database(server, "server")
    store = await open_stores(url, FEW, server.backend)
    for number in range(1, 6):
        await store.publish(GUN, version(number))
        for _ in range(3):
            store._database.is_full = True  # else a probe of PostgreSQL writes no row
            await store.check_writes()
    rows = server.execute(database, "SELECT id, version FROM tuf_files ORDER BY id")
    assert [number for _, number in rows] == [1, 2, 3, 4, 5]
    first, *ids = [id_ for id_, _ in rows]  # InnoDB takes one number the first time
    assert ids == list(range(ids[0], ids[0] + 4))
    assert ids[0] <= first + 2
    assert [change.id for change in await store.changes(None, 0, 10)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("limit", ["", "64kB"], ids=["free", "limited"])
@pytest_twisted.ensureDeferred
async def test_a_probe_of_postgresql_looks_for_room(postgresql, open_stores, limit):
    """By a temporary file, if the user may write one; tests/cluster/test_full_disk.py has a disk that gets full."""
    database, url = await migrate_new_database(postgresql, "server")
    if limit:
        postgresql.execute("", f"ALTER DATABASE {database} SET temp_file_limit = '{limit}'")
    store = await open_stores(url, FEW, "postgres")
    await store.check_writes()
    await store.close()  # then the server counts what was written
    written = f"SELECT temp_bytes FROM pg_stat_database WHERE datname = '{database}'"
    deadline = time.monotonic() + WAIT_SECONDS
    while not limit and postgresql.execute("", written)[0][0] < 1 << 20:
        assert time.monotonic() < deadline
        await deferLater(reactor, 0.05)
    assert len(postgresql.execute(database, "SELECT 1 FROM tuf_files")) == 0


@pytest.mark.parametrize("kind", ["mariadb", "postgresql"])
@pytest_twisted.ensureDeferred
async def test_a_database_that_hangs_is_known_by_a_probe(request, kind, open_stores):
    server = request.getfixturevalue(kind)
    store = await open_stores((await migrate_new_database(server, "server"))[1], FEW, server.backend)
    await store.check_writes()
    try:
        server.pause()
        for ask in (store.check, store.check_writes):
            with pytest.raises(StorageUnreachable):
                await ask()
    finally:
        server.resume()
    await store.check()
    await store.check_writes()


@pytest_twisted.ensureDeferred
async def test_the_probe_does_not_wait_for_the_stores_own_work(mariadb, open_stores):
    database, url = await migrate_new_database(mariadb, "server")
    store = await open_stores(url, dataclasses.replace(FEW, connections=1, query_timeout=WAIT_SECONDS), "mysql")
    sleeping = store._database.read(lambda cursor: cursor.all("SELECT SLEEP(60)"))
    sleeping.addErrback(lambda _: None)
    await store.check()
    await store.check_writes()
    assert not sleeping.called
    for (number,) in mariadb.execute(
        database, "SELECT id FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP%%'"
    ):
        mariadb.execute("", "KILL QUERY %s", number)
    await sleeping


# -- errors -----------------------------------------------------------------------------------------------------------


class _MySQLError(Exception):
    """As the driver makes one: a number and a text."""


class _PostgresError(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__("text")
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "trouble", "advice", "full"),
    [
        (_MySQLError(1290, "--read-only"), "READ_ONLY", "name its primary", False),
        (_MySQLError(1792, "READ ONLY transaction"), "READ_ONLY", "name its primary", False),
        (_MySQLError(1836, "Running in read-only mode"), "READ_ONLY", "name its primary", False),
        (_MySQLError(1047, "WSREP has not yet prepared node"), "LOST", "has lost the others", False),
        (_MySQLError(3100, "Error on observer"), "LOST", "has lost the others", False),
        (_MySQLError(3101, "Plugin instructed the server to rollback"), "CONFLICT", "try again", False),
        (_MySQLError(1114, "The table 'tuf_files' is full"), "LOST", "make room", True),
        (_MySQLError(1021, "Disk full (/tmp)"), "LOST", "free some space", True),
        (_MySQLError(1030, 'Got error 28 "No space left on device" from storage'), "LOST", "free some space", True),
        (_MySQLError(3, 'Error writing file (Errcode: 28 "No space left on device")'), "LOST", "free some", True),
        (_MySQLError(1030, "Got error 128 from storage engine"), "OTHER", "could not do its work", False),
        (_MySQLError(1040, "Too many connections"), "CROWDED", "raise its max_connections", False),
        (_MySQLError(1203, "max_user_connections"), "CROWDED", "raise its limit", False),
        (_PostgresError("25006"), "READ_ONLY", "name its primary", False),
        (_PostgresError("53100"), "LOST", "free some space", True),
        (_PostgresError("53300"), "CROWDED", "raise its max_connections", False),
        (_PostgresError("57P01"), "LOST", "has closed the connection", False),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, Exception) else "",
)
def test_what_an_error_of_a_node_means(error, trouble, advice, full):
    dialect = DIALECTS["postgres" if isinstance(error, _PostgresError) else "mysql"]
    assert dialect.trouble(error).name == trouble
    assert advice in dialect.explain(error)
    assert dialect.is_full(error) is full


# -- no connection left -----------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_database_without_a_connection_is_left_alone_for_a_while(mariadb, open_stores):
    database, url = await migrate_new_database(mariadb, "server")
    user = mariadb.user(database, SERVER_RIGHTS)
    store = await open_stores(url, dataclasses.replace(FEW, connections=8), "mysql")
    ((limit,),) = mariadb.execute("", "SELECT @@max_connections")
    held = hold_connections(mariadb, database, user, 5)
    refused = "SHOW GLOBAL STATUS LIKE 'Connection_errors_max_connections'"
    before = int(mariadb.execute("", refused)[0][1])
    mariadb.execute("", "SET GLOBAL max_connections = 10")
    try:
        while True:
            try:
                held += hold_connections(mariadb, database, user, 1)
            except MySQLdb.OperationalError:
                break
        asked = [store.current(GUN, [ROOT]) for _ in range(40)]
        results = await gatherResults([each.addErrback(lambda failure: failure.value) for each in asked])
        assert all(result == {} or isinstance(result, StorageFailed) for result in results)
        assert any(isinstance(result, StorageUnreachable) for result in results)
        for each in held:
            each.close()
        held.clear()
        await use_every_connection(store)
    finally:
        mariadb.execute("", "SET GLOBAL max_connections = %s", limit)
        for each in held:
            each.close()
    # One by the loop above. Without a pause there are two for each request.
    found = int(mariadb.execute("", refused)[0][1]) - before
    assert found <= 1 + 3 * 8, results


def test_a_pause_is_waited_for_and_one_speaks_for_all():
    now, slept, calls = [0.0], [], []

    class Full(Exception):
        pass

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    def refuse():
        calls.append(now[0])
        raise Full("none left")

    crowd = Crowd(lambda error: isinstance(error, Full), lambda: now[0], Machine(sleep=sleep))
    with pytest.raises(Full):
        crowd.connect(refuse)
    assert len(calls) == 2
    assert 1.0 <= calls[1] - calls[0] <= 1.2
    with pytest.raises(Full, match="none left"):
        crowd.connect(refuse)  # waits first, and then is the one that asks
    assert len(calls) == 3
    now[0] += 5
    assert crowd.connect(lambda: "made") == "made"
    assert crowd.connect(lambda: "made") == "made"
    assert len(slept) == 2

    def others_were_refused(seconds: float) -> None:
        now[0] += seconds
        crowd._until = now[0] + 1

    crowd = Crowd(lambda error: isinstance(error, Full), lambda: now[0], Machine(sleep=others_were_refused))
    with pytest.raises(Full):
        crowd.connect(refuse)
    assert len(calls) == 4
