"""What only databases with a server of their own can do to a store: go away, hang, close connections, undo work."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import DeferredList, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread

from notary.errors import ConfigError, InvalidGun, OldVersion, StorageFailed, StorageUnreachable
from notary.storage import StoredKey, Update
from notary.storage.open import open_database, open_key_store, open_metadata_store
from notary.storage.sql.backends import DIALECTS
from notary.storage.sql.dialect import PoolSettings
from notary.storage.sql.metadata import SQLMetadataStore
from notary.storage.sql.migrate import SERVER
from notary.tuf.model import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Gun
from notary.work.usage import PoolUsage
from tests.support.api import new_author, published
from tests.support.inmemory import Server
from tests.support.migrated import SERVICES, migrated_database

GUN = Gun("docker.io/library/alpine")
OTHER = Gun("docker.io/library/busybox")
ROLES = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
KEY = StoredKey("ab" * 32, "ecdsa", b"\x00\xffpublic", b"a.jwe", str(GUN), "timestamp", "alias1")
IMPATIENT = PoolSettings(connections=3, connect_timeout=1.0, query_timeout=1.0)


def whole(version: int, by: str = "") -> list[Update]:
    return [Update(role, version, f"{role} {version} {by}".encode()) for role in ROLES]


class Prepared:
    """A database of a server, empty, with the ``db_url`` of a user who has that daemon's rights."""

    def __init__(self, server, service: str) -> None:
        self.server = server
        self.name, self.db_url = migrated_database(server, service)

    @property
    def backend(self) -> str:
        return self.server.backend

    @property
    def user(self) -> str:
        return self.db_url.removeprefix("postgres://").partition(":")[0]

    @property
    def password(self) -> str:
        return self.db_url.split("@")[0].rpartition(":")[2]

    def execute(self, sql: str, *values: object) -> list[tuple]:
        return self.server.execute(self.name, sql, *values)

    def sessions(self) -> list[int]:
        """The connections of this database's user."""
        if self.backend == "mysql":
            sql = "SELECT id FROM information_schema.processlist WHERE user = %s"
        else:
            sql = "SELECT pid FROM pg_stat_activity WHERE usename = %s"
        return [number for (number,) in self.execute(sql, self.user)]

    def end_sessions(self) -> int:
        """Close every connection to it, as an administrator or a time-out may; how many there were."""
        sessions = self.sessions()
        for number in sessions:
            self.execute("KILL %s" if self.backend == "mysql" else "SELECT pg_terminate_backend(%s)", number)
        return len(sessions)


@pytest.fixture(params=["mariadb", "postgresql"])
def server(request):
    server = request.getfixturevalue(request.param)
    yield server
    server.ensure()


@pytest.fixture
def prepared(server) -> Prepared:
    return Prepared(server, "server")


@pytest.fixture
def prepared_keys(server) -> Prepared:
    return Prepared(server, "signer")


@pytest_twisted.async_yield_fixture
async def open_stores():
    """Opens stores that are closed after the test."""
    stores = []

    async def open_store(opener, prepared: Prepared, pool: PoolSettings = IMPATIENT, **change: str):
        store = await opener(prepared.backend, change.get("db_url", prepared.db_url), reactor, pool)
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        await store.close()


# -- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["restart", "kill -9", "closed connections"])
@pytest_twisted.ensureDeferred
async def test_what_became_of_idle_connections_is_nobodys_concern(prepared, open_stores, event):
    store = await open_stores(open_metadata_store, prepared)

    async def happens() -> None:
        # Every connection of the pool is there, and idle.
        await gatherResults([store.current(GUN, ROLES) for _ in range(20)])
        if event == "closed connections":
            assert prepared.end_sessions() > 0
        else:
            if event == "restart":
                prepared.server.stop()
            else:
                prepared.server.kill()
            prepared.server.start()

    await happens()
    await gatherResults([store.publish(Gun(f"a/{n}"), whole(1)) for n in range(20)])
    await happens()
    found = await gatherResults([store.current(Gun(f"a/{n}"), ROLES) for n in range(20)])
    assert all(len(files) == 4 for files in found)
    assert len(await store.changes(None, 0, 100)) == 20


@pytest_twisted.ensureDeferred
async def test_a_database_that_is_down_and_comes_back(prepared, open_stores):
    store = await open_stores(open_metadata_store, prepared)
    await store.publish(GUN, whole(1))
    prepared.server.stop()
    for attempt in (
        lambda: store.current(GUN, ROLES),
        lambda: store.publish(GUN, whole(2)),
        store.check,
        lambda: open_metadata_store(prepared.backend, prepared.db_url, reactor, IMPATIENT),
    ):
        with pytest.raises(StorageUnreachable, match=r"start it|see its log") as caught:
            await attempt()
        assert prepared.password not in str(caught.value)
    prepared.server.start()
    await store.check()
    assert (await store.current(GUN, [ROOT]))[ROOT].version == 1
    await store.publish(GUN, whole(2))


@pytest_twisted.ensureDeferred
async def test_a_database_that_hangs_fails_the_request(prepared, open_stores):
    store = await open_stores(open_metadata_store, prepared)
    await store.publish(GUN, whole(1))
    prepared.server.pause()
    try:
        # More than there are connections: some hang, some cannot connect, some wait for their turn.
        reads = DeferredList([store.current(GUN, ROLES) for _ in range(20)], consumeErrors=True)
        results = await reads
        with pytest.raises(StorageUnreachable):
            await open_metadata_store(prepared.backend, prepared.db_url, reactor, IMPATIENT)
    finally:
        prepared.server.resume()
    assert all(not success and failure.check(StorageFailed) for success, failure in results)
    assert any(failure.check(StorageUnreachable) for _, failure in results)
    assert any("storage.connections" in failure.getErrorMessage() for _, failure in results)
    assert len(await store.current(GUN, ROLES)) == 4
    await store.publish(GUN, whole(2))


@pytest_twisted.ensureDeferred
async def test_the_pool_is_bounded_and_serves_everybody(prepared, open_stores):
    usage = PoolUsage()
    store = await open_stores(open_metadata_store, prepared, PoolSettings(connections=3, usage=usage))
    for n in range(20):
        await store.publish(Gun(f"a/{n}"), whole(1))
    assert usage == PoolUsage(size=3)
    reads = gatherResults([store.current(Gun(f"a/{n % 20}"), ROLES) for n in range(400)])
    assert (usage.used, usage.waiting) == (3, 397)
    seen = set()
    while not reads.called:
        seen.add(len(await deferToThread(prepared.sessions)))
    assert all(len(files) == 4 for files in await reads)
    assert max(seen) == 3
    assert (usage.used, usage.waiting, usage.waits) == (0, 0, 397)
    assert usage.wait_seconds > 0


@pytest_twisted.ensureDeferred
async def test_who_gives_up_waiting_waits_no_more(prepared, open_stores):
    usage = PoolUsage()
    store = await open_stores(
        open_metadata_store, prepared, PoolSettings(connections=1, query_timeout=1.0, usage=usage)
    )
    prepared.server.pause()
    try:
        await DeferredList([store.current(GUN, ROLES) for _ in range(5)], consumeErrors=True)
    finally:
        prepared.server.resume()
    assert (usage.used, usage.waiting) == (0, 0)


# -- transactions that others get in the way of ----------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_transaction_that_another_one_undoes_is_run_again(prepared):
    database = await open_database(DIALECTS[prepared.backend], prepared.db_url, SERVER, reactor, PoolSettings())
    store = SQLMetadataStore(database)
    for gun in (GUN, OTHER):
        await store.publish(gun, whole(1))
    both = threading.Barrier(2, timeout=30)
    attempts = []

    def rename(cursor, first: str, second: str, by: str) -> None:
        attempts.append(by)
        for gun in (first, second):
            cursor.run("UPDATE tuf_files SET data = ? WHERE gun = ?", by.encode(), str(gun))
            if attempts.count(by) == 1 and gun == first:
                both.wait()  # each holds what the other one wants

    await gatherResults([database.write(rename, GUN, OTHER, "one"), database.write(rename, OTHER, GUN, "two")])
    assert sorted(attempts) in (["one", "one", "two"], ["one", "two", "two"])
    contents = {row[0] for row in prepared.execute("SELECT data FROM tuf_files")}
    assert len(contents) == 1
    await database.close()


@pytest_twisted.ensureDeferred
async def test_who_waits_too_long_for_a_lock_is_told(prepared, open_stores):
    store = await open_stores(open_metadata_store, prepared, PoolSettings(query_timeout=2.0))
    await store.publish(GUN, whole(1))
    database = await open_database(DIALECTS[prepared.backend], prepared.db_url, SERVER, reactor, PoolSettings())
    holding, release = threading.Event(), threading.Event()

    def hold(cursor) -> None:
        cursor.all("SELECT id FROM tuf_files WHERE gun = ? FOR UPDATE", str(GUN))
        holding.set()
        release.wait(30)

    holder = database.write(hold)
    await deferToThread(holding.wait, 30)
    try:
        with pytest.raises(StorageFailed, match="has kept a row locked for too long"):
            await store.publish(GUN, whole(2))
        assert len(await store.current(GUN, ROLES)) == 4
    finally:
        release.set()
    await holder
    await database.close()
    await store.publish(GUN, whole(2))


@pytest_twisted.ensureDeferred
async def test_many_publishers_of_many_collections(prepared, open_stores):
    """First publishes of names that lie side by side, and races for each: nothing fails but those who lose."""
    stores = [await open_stores(open_metadata_store, prepared, PoolSettings(connections=8)) for _ in range(2)]
    guns = [Gun(f"a/{n}") for n in range(12)]
    for version in (1, 2):
        results = await DeferredList(
            [stores[n % 2].publish(gun, whole(version, str(n))) for gun in guns for n in range(6)], consumeErrors=True
        )
        assert sum(success for success, _ in results) == len(guns)
        assert all(failure.check(OldVersion) for success, failure in results if not success)
    for gun in guns:
        found = await stores[0].current(gun, ROLES)
        assert {stored.version for stored in found.values()} == {2}
        assert len({stored.data.split()[-1] for stored in found.values()}) == 1
        assert [change.version for change in await stores[0].changes(gun, 0, 10)] == [1, 2]


# -- a commit that nobody knows the outcome of -----------------------------------------------------------------------


class Cutter(Factory):
    """A way to the database that is cut when a commit comes by: before or after the database has got it."""

    def __init__(self, port: int) -> None:
        self.target = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        self.passes = True
        self.armed = False
        self.connections = []

    def buildProtocol(self, addr) -> Protocol:
        return _Inside(self)

    async def listen(self) -> int:
        self.port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(self)
        return self.port.getHost().port

    async def close(self) -> None:
        await self.port.stopListening()
        for connection in self.connections:
            connection.transport.abortConnection()


class _Outside(Protocol):
    """The half that talks to the database."""

    def __init__(self, inside: _Inside) -> None:
        self.inside = inside

    def dataReceived(self, data: bytes) -> None:
        if self.inside.cut:  # the database has done it
            self.inside.transport.abortConnection()
        else:
            self.inside.transport.write(data)

    def connectionLost(self, reason) -> None:
        self.inside.transport.loseConnection()


class _Inside(Protocol):
    """The half that talks to the store."""

    def __init__(self, cutter: Cutter) -> None:
        self.cutter = cutter
        self.cut = False
        self.waiting = b""
        self.outside = None
        cutter.connections.append(self)

    def connectionMade(self) -> None:
        def connected(outside: _Outside) -> None:
            self.outside = outside
            self.outside.transport.write(self.waiting)

        connectProtocol(self.cutter.target, _Outside(self)).addCallback(connected)

    def dataReceived(self, data: bytes) -> None:
        if self.cutter.armed and re.search(rb"COMMIT(?!TED)", data, re.IGNORECASE):
            self.cutter.armed = False
            self.cut = True
            if not self.cutter.passes:
                self.transport.abortConnection()
                return
        if self.outside is None:
            self.waiting += data
        else:
            self.outside.transport.write(data)

    def connectionLost(self, reason) -> None:
        if self.outside is not None:
            self.outside.transport.loseConnection()


@pytest_twisted.async_yield_fixture
async def cutter(server):
    cutter = Cutter(server.port)
    cutter.port_number = await cutter.listen()
    yield cutter
    await cutter.close()


def through(cutter: Cutter, prepared: Prepared) -> str:
    return prepared.db_url.replace(str(prepared.server.port), str(cutter.port_number))


@pytest.mark.parametrize("passes", [True, False], ids=["done", "not-done"])
@pytest_twisted.ensureDeferred
async def test_a_publish_whose_commit_is_cut_off_is_looked_up(prepared, open_stores, cutter, passes):
    store = await open_stores(open_metadata_store, prepared, db_url=through(cutter, prepared))
    await store.publish(GUN, whole(1))
    cutter.armed, cutter.passes = True, passes
    if passes:
        await store.publish(GUN, whole(2))
    else:
        with pytest.raises(StorageUnreachable, match="may be done or not"):
            await store.publish(GUN, whole(2))
    assert not cutter.armed
    assert {stored.version for stored in (await store.current(GUN, ROLES)).values()} == {2 if passes else 1}
    assert len(await store.changes(GUN, 0, 10)) == (2 if passes else 1)


@pytest.mark.parametrize("passes", [True, False], ids=["done", "not-done"])
@pytest_twisted.ensureDeferred
async def test_a_key_whose_commit_is_cut_off_is_stored_once(prepared_keys, open_stores, cutter, passes):
    store = await open_stores(open_key_store, prepared_keys, db_url=through(cutter, prepared_keys))
    assert await store.pending(KEY.gun, KEY.role, KEY.algorithm) is None
    cutter.armed, cutter.passes = True, passes
    assert await store.add(KEY) == KEY
    assert not cutter.armed
    assert prepared_keys.execute("SELECT key_id FROM private_keys") == [(KEY.key_id,)]


# -- what the tables hold ---------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_times_are_utc_whatever_the_servers_zone_is(prepared, open_stores):
    zone = "SELECT @@global.time_zone" if prepared.backend == "mysql" else "SHOW timezone"
    assert prepared.execute(zone)[0][0] not in {"UTC", "+00:00", "SYSTEM"}
    store = await open_stores(open_metadata_store, prepared)
    before = time.time()
    await store.publish(GUN, whole(1))
    epoch = "UNIX_TIMESTAMP({})" if prepared.backend == "mysql" else "EXTRACT(EPOCH FROM {})"
    for table in ("tuf_files", "changefeed"):
        for (written,) in prepared.execute(f"SELECT {epoch.format('created_at')} FROM {table}"):
            assert int(before) <= float(written) <= time.time()
    assert int(before) <= (await store.current(GUN, [ROOT]))[ROOT].modified.timestamp() <= time.time()


@pytest_twisted.ensureDeferred
async def test_rows_that_are_marked_deleted_do_not_exist(prepared, open_stores):
    store = await open_stores(open_metadata_store, prepared)
    await store.publish(GUN, whole(1))
    await store.publish(GUN, whole(2))
    prepared.execute("UPDATE tuf_files SET deleted_at = created_at WHERE version = 2")
    assert {stored.version for stored in (await store.current(GUN, ROLES)).values()} == {1}
    await store.publish(GUN, whole(2, "again"))
    assert (await store.by_version(GUN, ROOT, 2)).data == b"root 2 again"
    prepared.execute("UPDATE tuf_files SET deleted_at = created_at")
    assert await store.current(GUN, ROLES) == {}
    assert await store.delete(GUN) is False
    assert prepared.execute("SELECT 1 FROM tuf_files") == []


@pytest_twisted.ensureDeferred
async def test_keys_that_are_marked_deleted_do_not_exist(prepared_keys, open_stores):
    store = await open_stores(open_key_store, prepared_keys)
    await store.add(KEY)
    prepared_keys.execute("UPDATE private_keys SET deleted_at = created_at")
    assert await store.pending(KEY.gun, KEY.role, KEY.algorithm) is None
    assert await store.add(KEY) == KEY
    assert await store.get(KEY.key_id) == KEY


@pytest_twisted.ensureDeferred
async def test_a_checksum_that_was_never_written_is_worked_out(prepared, open_stores):
    store = await open_stores(open_metadata_store, prepared)
    await store.publish(GUN, whole(1))
    followed = (await store.current(GUN, [TIMESTAMP]))[TIMESTAMP].sha256
    prepared.execute("UPDATE tuf_files SET sha256 = NULL")
    assert (await store.current(GUN, [TIMESTAMP]))[TIMESTAMP].sha256 == followed
    await store.publish(GUN, whole(2), followed)


# -- rights and configuration -----------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_users_rights_end_at_its_own_database(server, prepared):
    url = prepared.db_url.replace(f"/{prepared.name}?", f"/{server.database()}?")
    with pytest.raises(StorageFailed, match=r"storage.db_url: .*(grant|refuses)") as caught:
        await open_metadata_store(prepared.backend, url, reactor, IMPATIENT)
    assert not isinstance(caught.value, StorageUnreachable)


@pytest_twisted.ensureDeferred
async def test_a_right_that_is_missing_is_named(server, prepared, open_stores):
    url = server.db_url(prepared.name, server.user(prepared.name, ["SELECT"]))
    store = await open_stores(open_metadata_store, prepared, db_url=url)
    await store.check()
    with pytest.raises(StorageFailed, match="the database user lacks a right: grant it"):
        await store.publish(GUN, whole(1))


@pytest.mark.parametrize("change", ["password", "user", "database"])
@pytest_twisted.ensureDeferred
async def test_who_is_not_let_in_is_told_why(prepared, change):
    old = {"password": prepared.password, "user": f"{prepared.user}:", "database": f"/{prepared.name}?"}[change]
    url = prepared.db_url.replace(old, old[0] + "x" + old[1:])
    with pytest.raises(StorageFailed, match=r"correct storage.db_url") as caught:
        await open_metadata_store(prepared.backend, url, reactor, IMPATIENT)
    assert not isinstance(caught.value, StorageUnreachable)
    assert prepared.password not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("backend", ["mysql", "postgres"])
@pytest_twisted.ensureDeferred
async def test_a_missing_driver_is_named_with_its_extra(backend):
    dialect = replace(DIALECTS[backend], driver="no_such_driver")
    with pytest.raises(ConfigError, match=rf'"{backend}".*pip install "notary-service\[{backend}\]"'):
        await open_database(dialect, "", SERVER, reactor)


WITHOUT = """
import sys
from importlib import import_module
sys.modules.update(dict.fromkeys(sys.argv[1:]))  # as if they were not installed

from twisted.internet import reactor
from notary.errors import ConfigError
from notary.storage.sql.backends import DIALECTS
from notary.storage.sql.database import Database
from notary.storage.sql.dialect import PoolSettings

try:
    print(import_module(DIALECTS["mysql"].driver).connect.__module__)
except ImportError:
    try:
        Database(DIALECTS["mysql"], "", reactor, PoolSettings())
    except ConfigError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ([], "notary.storage.sql.backends.mysql.mysqlclient"),
        (["MySQLdb"], "notary.storage.sql.backends.mysql.pymysql"),
        (["MySQLdb", "pymysql"], r'MySQLdb.*pymysql.*"notary-service\[mysql\]".*"notary-service\[pymysql\]"'),
    ],
)
def test_mysqlclient_is_preferred_and_pymysql_is_enough(missing, expected):
    done = subprocess.run([sys.executable, "-c", WITHOUT, *missing], capture_output=True, text=True, check=True)
    assert re.search(expected, done.stdout), done


# -- MySQL only -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mysql(mariadb) -> Prepared:
    return Prepared(mariadb, "server")


@pytest.fixture
def mysql_keys(mariadb) -> Prepared:
    return Prepared(mariadb, "signer")


@pytest_twisted.ensureDeferred
async def test_content_that_is_too_large_for_the_server(mysql, open_stores):
    mysql.execute("SET GLOBAL max_allowed_packet = 1048576")
    try:
        store = await open_stores(open_metadata_store, mysql)
        parts = [Update(role, 1, b"x" * 900_000) for role in ROLES]
        await store.publish(GUN, parts)
        with pytest.raises(StorageFailed, match="raise its max_allowed_packet") as caught:
            await store.publish(GUN, [Update(TIMESTAMP, 2, b"x" * 2_000_000)])
        assert not isinstance(caught.value, StorageUnreachable)
        assert (await store.current(GUN, [TIMESTAMP]))[TIMESTAMP].data == b"x" * 900_000
    finally:
        mysql.execute("SET GLOBAL max_allowed_packet = 16777216")


@pytest_twisted.ensureDeferred
async def test_what_a_go_notary_wrote_under_a_name_in_other_letters(mysql, open_stores):
    """It takes both names for one collection; we read what is under ours, and write nothing that would collide."""
    store = await open_stores(open_metadata_store, mysql)
    await store.publish(GUN, whole(1))
    mysql.execute(
        "INSERT INTO tuf_files (created_at, gun, role, version, data) VALUES (NOW(), %s, 'root', 2, 'x')", GUN.upper()
    )
    assert (await store.current(GUN, [ROOT]))[ROOT].version == 1
    assert (await store.current(Gun(GUN.upper()), ROLES))[ROOT].version == 2
    for gun in (GUN, Gun(GUN.upper())):
        with pytest.raises(InvalidGun, match="cannot tell this name from"):
            await store.publish(gun, whole(3))
    assert await store.delete(Gun(GUN.upper())) is True
    assert len(await store.current(GUN, ROLES)) == 4
    await store.publish(GUN, whole(3))


@pytest_twisted.ensureDeferred
async def test_a_key_for_a_name_that_the_table_cannot_hold(mysql_keys, open_stores):
    store = await open_stores(open_key_store, mysql_keys)
    smile = replace(KEY, gun="\U0001f600")
    with pytest.raises(InvalidGun, match="cannot hold"):
        await store.add(smile)
    assert await store.pending(smile.gun, smile.role, smile.algorithm) is None


def test_each_daemons_tables_are_those_that_the_tests_empty():
    assert {name: set(service.tables) for name, (service, _, _) in SERVICES.items()} == {
        name: set(tables) for name, (_, _, tables) in SERVICES.items()
    }


@pytest_twisted.ensureDeferred
async def test_what_a_client_hears_of_a_name_that_cannot_be_told_from_another(mysql, open_stores):
    server = Server(await open_stores(open_metadata_store, mysql))
    taken, alike = "example.com/app", "example.com/App"
    too_late = await new_author(server, alike)
    await published(server, taken)
    for answer in (
        await server.upload(alike, too_late.first()),
        await server.get(f"/v2/{alike}/_trust/tuf/timestamp.key"),
        await server.request("POST", f"/v2/{alike}/_trust/tuf/snapshot.key"),
    ):
        assert (answer.status, answer.code) == (400, "INVALID_GUN")
    for name in ("root.json", "1.root.json", "timestamp.json"):
        assert (await server.get(f"/v2/{alike}/_trust/tuf/{name}")).status == 404
        assert (await server.get(f"/v2/{taken}/_trust/tuf/{name}")).status == 200
    assert (await server.get(f"/v2/{taken}/_trust/tuf/timestamp.key")).status == 200
