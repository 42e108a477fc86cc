"""Migrations of one database by several nodes of a cluster take turns, without a lock by name."""

from __future__ import annotations

import threading

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from notary.storage.open import migrate_database, survey_database
from notary.storage.sql.backends.mysql.turns import TABLE
from notary.storage.sql.dialect import PoolSettings
from notary.storage.sql.migrate import SERVER

TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = %s ORDER BY table_name"


def urls(galera, database: str) -> list[str]:
    return [node.db_url(database) for node in galera.nodes]


@pytest.fixture
def asked(galera):
    """What the nodes were asked."""
    for node in galera.nodes:
        node.execute("", "SET GLOBAL log_output = 'TABLE', general_log = 1")
        node.execute("", "TRUNCATE mysql.general_log")

    def statements() -> list[str]:
        sql = "SELECT CONVERT(argument USING utf8) FROM mysql.general_log"
        return [text for node in galera.nodes for (text,) in node.execute("", sql)]

    yield statements
    for node in galera.nodes:
        node.execute("", "SET GLOBAL general_log = 0, log_output = 'FILE'")


@pytest_twisted.ensureDeferred
async def test_nodes_take_turns(galera, asked):
    database = galera.nodes[0].database()
    lines: list[str] = []
    done = await gatherResults(
        [
            Deferred.fromCoroutine(migrate_database("mysql", url, SERVER, reactor, report=lines.append))
            for url in urls(galera, database) * 2
        ]
    )
    assert sorted(done)[:-1] == [0, 0, 0]
    assert max(done) > 0
    found = {name for (name,) in galera.nodes[0].execute("", TABLES, database)}
    assert {name for name in found if name.startswith("notary")} == set()
    assert {"tuf_files", "changefeed", "schema_migrations"} < found
    assert [text for text in asked() if "GET_LOCK" in text and "general_log" not in text] == []


@pytest_twisted.ensureDeferred
async def test_the_turn_of_one_that_has_died_is_taken(galera):
    """On its own node; a session of another node cannot be seen, so an operator has to say that it has ended."""
    one, two = galera.nodes
    database = one.database()
    name, port = one.execute("", "SELECT @@hostname, @@port")[0]
    lines: list[str] = []
    told = threading.Event()

    def report(line: str) -> None:
        lines.append(line)
        told.set()

    def dead(session: int) -> None:
        one.execute(database, f"CREATE TABLE {TABLE} (id int NOT NULL PRIMARY KEY, owner varchar(255))")
        owner = f"session {session} of {one.admin.name}@% on {name} port {port}"
        one.execute(database, f"INSERT INTO {TABLE} VALUES (1, %s)", owner)

    dead(4_000_000)
    migrating = Deferred.fromCoroutine(migrate_database("mysql", two.db_url(database), SERVER, reactor, report=report))
    await deferToThread(told.wait, 30)
    assert not migrating.called
    assert f"session 4000000 of {one.admin.name}@% on {name} port {port}" in lines[0]
    assert f"empty the table {TABLE}" in lines[0]
    two.execute(database, f"DELETE FROM {TABLE}")
    assert await migrating > 0
    dead(4_000_000)
    assert await migrate_database("mysql", one.db_url(database), SERVER, reactor) == 0
    assert (TABLE,) not in one.execute("", TABLES, database)


@pytest_twisted.ensureDeferred
async def test_a_node_says_what_it_is(galera):
    database = galera.nodes[0].database()
    found = await survey_database("mysql", urls(galera, database)[0], reactor, PoolSettings())
    by_subject = {fact.subject: fact for fact in found}
    assert by_subject["kind"].value == "Galera, 2 nodes, Primary"
    assert by_subject["wsrep_cluster_size"].risk
    assert by_subject["wsrep_sync_wait"].risk
    assert by_subject["auto_increment_increment"].value == "2"
    waiting = await survey_database("mysql", urls(galera, database)[0] + "&wsrep_sync_wait=1", reactor, PoolSettings())
    assert not next(fact for fact in waiting if fact.subject == "wsrep_sync_wait").risk
