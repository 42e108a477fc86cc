"""The set-ups of docs/high-availability.md, with its HAProxy: what is acknowledged is there, and what is read is fresh.

A writer publishes one version after the other, and a reader of its own store reads after each; both as servers do.
Meanwhile a node dies, hangs or changes places. What was seen is written to standard error.

``NOTARY_SETUP_PUBLISHES`` says how many publishes there are at least after the last event.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from notary.errors import OldVersion, StorageFailed
from notary.storage import MetadataStore, Update
from notary.storage.open import open_metadata_store
from notary.storage.sql.dialect import PoolSettings
from notary.tuf.model import TIMESTAMP, Gun
from tests.support.databases import SERVER_RIGHTS, DatabaseServer, PostgreSQL
from tests.support.doc_haproxy import DatabaseProxy
from tests.support.galera import Galera
from tests.support.migrated import migrate_new_database
from tests.support.replicas import MariaDBPrimary, MariaDBReplica, PostgreSQLStandby

MORE = int(os.environ.get("NOTARY_SETUP_PUBLISHES", "100"))
POOL = PoolSettings(connections=4, connect_timeout=2.0, query_timeout=5.0)
GUN = Gun("example.com/app")
PATIENCE_SECONDS = 120.0


@dataclass
class History:
    """What a writer was told, and what a reader has seen."""

    writer: MetadataStore
    reader: MetadataStore
    acknowledged: set[int] = field(default_factory=set)
    failed: list[tuple[float, str]] = field(default_factory=list)
    stale: list[tuple[int, int]] = field(default_factory=list)
    reads: int = 0
    ended: bool = False
    wanted: int | None = None

    async def run(self) -> None:
        """Publish and read until ``end`` was called, and ``MORE`` publishes were acknowledged after that."""
        version = 0
        while not (self.ended and len(self.acknowledged) >= (self.wanted or 0)):
            version += 1
            try:
                await self.writer.publish(GUN, [Update(TIMESTAMP, version, b"%d" % version)])
                self.acknowledged.add(version)
            except OldVersion:
                pass  # of a publish whose outcome was unknown
            except StorageFailed as error:
                self.failed.append((time.monotonic(), str(error)))
                await deferLater(reactor, 0.05)
            await self.read()

    async def read(self) -> None:
        """Read what must be there."""
        newest = max(self.acknowledged, default=0)
        try:
            found = await self.reader.current(GUN, [TIMESTAMP])
        except StorageFailed:
            return
        self.reads += 1
        seen = found[TIMESTAMP].version if found else 0
        if seen < newest:
            self.stale.append((seen, newest))

    def end(self) -> None:
        """Stop after some more publishes."""
        self.wanted = len(self.acknowledged) + MORE
        self.ended = True

    def missing(self, node: DatabaseServer, database: str) -> set[int]:
        """The acknowledged versions that a node does not have."""
        return self.acknowledged - {version for (version,) in node.execute(database, "SELECT version FROM tuf_files")}

    def say(self, what: str) -> None:
        """Write what was seen."""
        seconds = self.failed[-1][0] - self.failed[0][0] if self.failed else 0.0
        sys.stderr.write(
            f"\n{what}: {len(self.acknowledged)} acknowledged, {len(self.failed)} failed within {seconds:.1f} s, "
            f"{len(self.stale)} of {self.reads} reads stale\n"
        )


async def open_history(backend: str, url: str) -> History:
    return History(*[await open_metadata_store(backend, url, reactor, POOL) for _ in range(2)])


async def lived_through(history: History, *events: Any) -> None:
    """Run the history, and the events in a thread, one after the other, each while publishes are acknowledged."""
    running = Deferred.fromCoroutine(history.run()).addTimeout(PATIENCE_SECONDS, reactor)
    try:
        for event in events:
            wanted = len(history.acknowledged) + MORE // 2
            while len(history.acknowledged) < wanted and not running.called:
                await deferLater(reactor, 0.02)
            await deferToThread(event)
        history.end()
        await running
    finally:
        await gatherResults([history.writer.close(), history.reader.close()])


# -- MariaDB: a primary and a semi-synchronous replica ----------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[MariaDBPrimary, MariaDBReplica]]:
    with MariaDBPrimary() as one, MariaDBReplica(one) as two:
        yield one, two


@asynccontextmanager
async def before(
    pair: tuple[MariaDBPrimary, MariaDBReplica], folder: Path
) -> AsyncIterator[tuple[DatabaseProxy, str, str]]:
    one, two = pair
    database, _ = await migrate_new_database(one, "server")
    user = one.user(database, SERVER_RIGHTS)
    with DatabaseProxy("primary", folder, {"db-1": one, "db-2": two}) as proxy:
        proxy.await_states(db_1="UP", db_2="DOWN")
        yield proxy, database, proxy.url(one, database, user)


@pytest_twisted.ensureDeferred
async def test_a_primary_hands_over(pair: Any, tmp_path: Path) -> None:
    one, two = pair

    async with before(pair, tmp_path) as (proxy, database, url):

        def hand_over() -> None:
            one.execute("", "SET GLOBAL read_only = 1")
            proxy.await_states(db_1="DOWN")
            two.catch_up(one)
            two.promote()
            one.follow(two)

        history = await open_history("mysql", url)
        await lived_through(history, hand_over)
        history.say("MariaDB, a planned switch")
        assert history.missing(two, database) == set()
        assert history.stale == []


@pytest_twisted.ensureDeferred
async def test_a_primary_dies(pair: Any, tmp_path: Path) -> None:
    one, two = pair
    async with before(pair, tmp_path) as (_, database, url):
        history = await open_history("mysql", url)

        def fail_over() -> None:
            one.kill()
            two.take_over()

        await lived_through(history, fail_over)
        history.say("MariaDB, semi-synchronous, kill -9 of the primary")
        assert history.missing(two, database) == set()
        assert history.stale == []


# -- Galera -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three() -> Iterator[Galera]:
    with Galera(3) as cluster:
        yield cluster


async def on_galera(cluster: Galera) -> tuple[str, Any]:
    first = cluster.nodes[0]
    database, _ = await migrate_new_database(first, "server")
    return database, first.user(database, SERVER_RIGHTS)


def rejoin(cluster: Galera, number: int) -> None:
    node = cluster.nodes[number]
    node.start()
    while not node.is_synced():
        time.sleep(0.1)


@pytest_twisted.ensureDeferred
async def test_one_writer_of_galera_dies_and_comes_back(three: Galera, tmp_path: Path) -> None:
    one, two, other = three.nodes
    database, user = await on_galera(three)
    with DatabaseProxy("galera", tmp_path, {"db-1": one, "db-2": two, "db-3": other}) as proxy:
        proxy.await_states(db_1="UP", db_2="UP", db_3="UP")
        history = await open_history("mysql", proxy.url(one, database, user, "&wsrep_sync_wait=1"))
        try:
            await lived_through(
                history, one.kill, lambda: rejoin(three, 0), lambda: proxy.await_states(db_1="UP"), lambda: None
            )
        finally:
            one.ensure()
        history.say("Galera, one writer, kill -9 and back")
        for node in three.nodes:
            assert history.missing(node, database) == set()
        assert history.stale == []


@pytest_twisted.ensureDeferred
async def test_the_writer_of_galera_is_cut_off(three: Galera, tmp_path: Path) -> None:
    """The other two die: the writer has no majority, and does no work until one of them is back."""
    one, two, other = three.nodes
    database, user = await on_galera(three)
    with DatabaseProxy("galera", tmp_path, {"db-1": one, "db-2": two, "db-3": other}) as proxy:
        proxy.await_states(db_1="UP", db_2="UP", db_3="UP")
        history = await open_history("mysql", proxy.url(one, database, user, "&wsrep_sync_wait=1"))

        def cut_off() -> None:
            two.kill()
            other.kill()
            proxy.await_states(db_1="DOWN")
            # Nobody else can say that this is not the smaller part of a network that was cut.
            one.execute("", "SET GLOBAL wsrep_provider_options = 'pc.bootstrap=YES'")
            two.start()
            other.start()

        await lived_through(history, cut_off, lambda: rejoin_all(three))
        history.say("Galera, no majority")
        for node in three.nodes:
            assert history.missing(node, database) == set()
        assert history.stale == []


def rejoin_all(cluster: Galera) -> None:
    for node in cluster.nodes:
        while not node.is_synced():
            time.sleep(0.1)


@pytest.mark.parametrize("waits", [True, False], ids=["sync-wait", "no-wait"])
@pytest_twisted.ensureDeferred
async def test_several_writers_of_galera(three: Galera, waits: bool) -> None:
    one, two, _ = three.nodes
    database, user = await on_galera(three)
    more = "&wsrep_sync_wait=1" if waits else ""
    for node in three.nodes:
        node.execute(database, "SET STATEMENT wsrep_sync_wait = 15 FOR SELECT 1 FROM tuf_files LIMIT 1")
    stores = [
        await open_metadata_store("mysql", node.db_url(database, user) + more, reactor, POOL) for node in (one, two)
    ]
    history = History(*stores)
    started = time.monotonic()
    await lived_through(history, lambda: None, lambda: None)
    seconds = time.monotonic() - started
    history.say(f"Galera, several writers, {'wsrep_sync_wait=1' if waits else 'no wait'}, {seconds:.1f} s")
    for node in three.nodes:
        rejoin_all(three)
        node.execute(database, "SET STATEMENT wsrep_sync_wait = 15 FOR SELECT 1 FROM tuf_files LIMIT 1")
        assert history.missing(node, database) == set()
    if waits:
        assert history.stale == []


# -- PostgreSQL -------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_standby_of_postgresql_takes_over() -> None:
    with PostgreSQL() as primary, PostgreSQLStandby(primary) as standby:
        database, url = await migrate_new_database(primary, "server")
        primary.execute("", "ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.execute("", "SELECT pg_reload_conf()")
        both = url.replace(f"127.0.0.1:{primary.port}", f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}")
        history = await open_history("postgres", both + "&target_session_attrs=read-write&connect_timeout=1")

        def fail_over() -> None:
            primary.kill()
            standby.promote()

        await lived_through(history, fail_over)
        history.say("PostgreSQL, a synchronous standby, kill -9 of the primary")
        assert history.missing(standby, database) == set()
        assert history.stale == []
