"""What is SQLite's own: its file, its locks, its failures at work, and how it stops."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, DeferredList, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue

from notary.errors import OldVersion, StorageFailed
from notary.storage import Update
from notary.storage.open import open_database, open_key_store, open_metadata_store
from notary.storage.sql.backends.sqlite3 import SQLITE3
from notary.storage.sql.dialect import Trouble
from notary.storage.sql.metadata import SQLMetadataStore
from notary.storage.sql.migrate import SERVER
from notary.tuf.model import ROOT, Gun
from tests.storage.sqlite_files import (
    GUN,
    OPENERS,
    ROLES,
    execute,
    make,
    metadata_store,
    special_database,
    tables,
    whole,
)

# -- the file ---------------------------------------------------------------------------------------------------------

COLUMNS = {
    "server": {
        "tuf_files": "id created_at updated_at deleted_at gun role version sha256 data",
        "changefeed": "id created_at gun version sha256 category",
        "change_category": "category",
        "schema_migrations": "version dirty",
    },
    "signer": {
        "private_keys": "id created_at updated_at deleted_at key_id encryption_alg keywrap_alg algorithm"
        " passphrase_alias public private gun role last_used",
        "schema_migrations": "version dirty",
    },
}


@pytest.mark.parametrize(
    ("opener", "service", "version"),
    [
        pytest.param(open_metadata_store, "server", 5, id="server"),
        pytest.param(open_key_store, "signer", 2, id="signer"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_new_file_gets_the_tables_of_protocol_section_5(path, opener, service, version):
    await make(opener, path)
    assert tables(path) == set(COLUMNS[service])
    for table, columns in COLUMNS[service].items():
        found = {row[1] for row in execute(path, f"PRAGMA table_info({table})")}
        assert found == set(columns.split())
    assert execute(path, "SELECT version, dirty FROM schema_migrations") == [(version, 0)]
    assert execute(path, "PRAGMA journal_mode") == [("wal",)]


@pytest.mark.parametrize("opener", OPENERS)
@pytest_twisted.ensureDeferred
async def test_an_empty_file_is_a_new_one(path, opener):
    path.touch()
    await make(opener, path)
    await make(opener, path)


@pytest_twisted.ensureDeferred
async def test_only_the_owner_may_read_the_file_and_its_journals(path):
    async with metadata_store(path) as store:
        await store.publish(GUN, whole(1))
        modes = {each.name: each.stat().st_mode & 0o777 for each in path.parent.iterdir()}
    assert modes == {"notary.db": 0o600, "notary.db-wal": 0o600, "notary.db-shm": 0o600}
    assert [each.name for each in path.parent.iterdir()] == ["notary.db"]


@pytest_twisted.ensureDeferred
async def test_a_file_made_through_a_link_is_the_owners_too(path):
    target = path.with_name("elsewhere.db")
    path.symlink_to(target)
    await make(open_metadata_store, path)
    assert target.stat().st_mode & 0o777 == 0o600


@pytest_twisted.ensureDeferred
async def test_what_was_stored_is_there_after_a_restart(path):
    async with metadata_store(path) as store:
        await store.publish(GUN, whole(1))
        before = await store.current(GUN, ROLES), await store.changes(None, None, 10)
    async with metadata_store(path) as store:
        assert (await store.current(GUN, ROLES), await store.changes(None, None, 10)) == before


@pytest_twisted.ensureDeferred
async def test_many_may_start_at_once(path):
    stores = await gatherResults([open_metadata_store("sqlite3", str(path), reactor) for _ in range(8)])
    await gatherResults([store.publish(Gun(f"gun/{n}"), whole(1)) for n, store in enumerate(stores)])
    assert len(await stores[0].changes(None, None, 100)) == 8
    for store in stores:
        await store.close()


OPEN_AND_CLOSE = """
import sys
from twisted.internet import task
from notary.storage.open import open_metadata_store

async def main(reactor):
    await (await open_metadata_store("sqlite3", sys.argv[1], reactor)).close()

task.react(main)
"""


@pytest_twisted.ensureDeferred
async def test_many_processes_may_start_at_once(path):
    arguments = ["-W", "error", "-c", OPEN_AND_CLOSE, str(path)]
    ends = await gatherResults(
        [getProcessOutputAndValue(sys.executable, arguments, env=dict(os.environ)) for _ in range(4)]
    )
    assert ends == [(b"", b"", 0)] * 4
    assert execute(path, "SELECT version, dirty FROM schema_migrations") == [(5, 0)]


LOOK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(connection.execute("SELECT max(version) FROM tuf_files").fetchone()[0])
connection.close()
"""


@pytest_twisted.ensureDeferred
async def test_another_process_that_looks_at_the_file_costs_no_publish(path):
    """The last process to close a database deletes its log: SQLite's locks must tell it that we are still here."""
    await make(open_metadata_store, path)
    database = await open_database(SQLITE3, str(path), SERVER, reactor)
    store = SQLMetadataStore(database)
    everyone = threading.Barrier(SQLITE3.connections, timeout=30)
    log = path.with_name("notary.db-wal")
    seen = []
    for version in (1, 2, 3):
        await store.publish(GUN, whole(version))
        # They wait for each other, so the pool must open every connection it may have.
        await gatherResults([database.read(lambda _: everyone.wait()) for _ in range(SQLITE3.connections)])
        inode = log.stat().st_ino
        seen.append(
            await getProcessOutputAndValue(sys.executable, ["-W", "error", "-c", LOOK, str(path)], env=dict(os.environ))
        )
        assert log.stat().st_ino == inode
    await store.close()
    assert seen == [(b"1\n", b"", 0), (b"2\n", b"", 0), (b"3\n", b"", 0)]


@pytest_twisted.ensureDeferred
async def test_acknowledged_is_durable(path):
    database = await open_database(SQLITE3, str(path), SERVER, reactor)
    pragmas = ("synchronous", "foreign_keys", "journal_mode", "busy_timeout")
    found = [(await database.read(lambda cursor, name=name: cursor.first(f"PRAGMA {name}")))[0] for name in pragmas]
    await database.close()
    assert found == [2, 1, "wal", 10_000]


# -- failures at work -------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_full_disk_changes_nothing(path):
    await make(open_metadata_store, path)

    def small(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA max_page_count = 100")

    store = SQLMetadataStore(await special_database(SERVER, path, also=small))
    await store.publish(GUN, whole(1))
    with pytest.raises(StorageFailed, match="no room for the SQLite file to grow: free some space"):
        await store.publish(GUN, whole(2, size=200_000))
    assert {stored.version for stored in (await store.current(GUN, ROLES)).values()} == {1}
    assert len(await store.changes(None, None, 10)) == 1
    await store.publish(GUN, whole(2))
    await store.close()


@pytest_twisted.ensureDeferred
async def test_a_writer_waits_for_a_lock_and_nobody_else_does(path):
    async with metadata_store(path) as store:
        await store.publish(GUN, whole(1))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = [store.publish(GUN, whole(version)) for version in (2, 3)]
            for _ in range(5):
                await store.check()
                assert {stored.version for stored in (await store.current(GUN, ROLES)).values()} == {1}
                await deferLater(reactor, 0.01)
            assert not any(deferred.called for deferred in waiting)
            other.execute("COMMIT")
        await gatherResults(waiting)
        assert (await store.current(GUN, [ROOT]))[ROOT].version == 3


@pytest_twisted.ensureDeferred
async def test_a_lock_that_stays_is_an_error_that_passes(path):
    await make(open_metadata_store, path)
    store = SQLMetadataStore(await special_database(SERVER, path, patience=0.05))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageFailed, match="another process has kept the SQLite file locked"):
            await store.publish(GUN, whole(1))
    await store.publish(GUN, whole(1))
    await store.close()


@pytest.mark.parametrize("lock", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
@pytest_twisted.ensureDeferred
async def test_a_start_waits_for_a_lock(path, lock):
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE private_keys (x)")
        other.execute(lock)
        opening = open_metadata_store("sqlite3", str(path), reactor)
        await deferLater(reactor, 0.05)
        assert not opening.called
        other.execute("COMMIT")
    with pytest.raises(StorageFailed, match="not the server's"):
        await opening


@pytest.mark.parametrize("lock", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
@pytest_twisted.ensureDeferred
async def test_a_start_does_not_wait_for_ever(path, lock):
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE tuf_files (x)")
        other.execute(lock)
        with pytest.raises(StorageFailed, match="another process has kept the SQLite file locked"):
            await special_database(SERVER, path, patience=0.05)


@pytest_twisted.ensureDeferred
async def test_a_damaged_file_says_so(path):
    async with metadata_store(path) as store:
        await store.publish(GUN, whole(1, size=100_000))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(StorageFailed, match="damaged: stop the service and restore the file from a backup"):
        await open_metadata_store("sqlite3", str(path), reactor)


def read_only(path: Path) -> None:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (1, 0)")


def other_unique_key(path: Path) -> None:
    execute(path, "INSERT INTO tuf_files (gun, role, version, data) VALUES ('', '', 1, ''), ('', '', 1, '')")


def unknown_statement(path: Path) -> None:
    execute(path, "SELEKT")


@pytest.mark.parametrize(
    ("fail", "trouble", "advice"),
    [
        pytest.param(read_only, Trouble.OTHER, "the SQLite file is read-only: the service must", id="read-only"),
        pytest.param(other_unique_key, Trouble.DUPLICATE, "SQLite could not do its work: UNIQUE", id="duplicate"),
        pytest.param(unknown_statement, Trouble.OTHER, 'SQLite could not do its work: near "SEL', id="anything-else"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_errors_are_explained(path, fail, trouble, advice):
    await make(open_metadata_store, path)
    with pytest.raises(sqlite3.Error) as caught:
        fail(path)
    assert SQLITE3.trouble(caught.value) is trouble
    assert SQLITE3.explain(caught.value).startswith(advice)


@pytest_twisted.ensureDeferred
async def test_a_key_that_appears_between_looking_and_writing_is_an_old_version(path):
    """On SQLite a transaction that writes is alone; elsewhere the unique key is what tells, so it must."""
    await make(open_metadata_store, path)
    execute(
        path,
        "CREATE TRIGGER race BEFORE INSERT ON tuf_files WHEN NEW.role = 'timestamp' AND NEW.data <> x'00' BEGIN"
        " INSERT INTO tuf_files (gun, role, version, data) VALUES (NEW.gun, NEW.role, NEW.version, x'00'); END",
    )
    async with metadata_store(path) as store:
        with pytest.raises(OldVersion, match="somebody else published the same version first"):
            await store.publish(GUN, whole(1))
        assert await store.current(GUN, ROLES) == {}


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        pytest.param("version", "many", "where a version number belongs", id="version"),
        pytest.param("data", 17, "where binary content belongs", id="data"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_damaged_row_is_not_the_clients_fault(path, column, value, match):
    async with metadata_store(path) as store:
        await store.publish(GUN, whole(1))
        execute(path, f"UPDATE tuf_files SET {column} = ? WHERE role = 'timestamp'", value)
        with pytest.raises(StorageFailed, match=match):
            await store.current(GUN, ROLES)


@pytest_twisted.ensureDeferred
async def test_a_version_that_is_text_does_not_pass_for_a_newer_one(path):
    async with metadata_store(path) as store:
        await store.publish(GUN, whole(1))
        execute(path, "UPDATE tuf_files SET version = 'many' WHERE role = 'root'")
        before = execute(path, "SELECT * FROM tuf_files")
        with pytest.raises(StorageFailed, match="where a version number belongs"):
            await store.publish(GUN, whole(2))
        assert execute(path, "SELECT * FROM tuf_files") == before


@pytest_twisted.ensureDeferred
async def test_a_version_that_no_table_holds(path):
    async with metadata_store(path) as store:
        with pytest.raises(StorageFailed, match="2147483647, the largest"):
            await store.publish(GUN, [Update(ROOT, 2**31, b"")])


# -- stopping ---------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_close_finishes_the_work_under_way(path):
    store = await open_metadata_store("sqlite3", str(path), reactor)
    writes = [store.publish(GUN, whole(version)) for version in range(1, 20)]
    await store.close()
    assert all(deferred.called for deferred in writes)
    await gatherResults(writes)
    async with metadata_store(path) as store:
        assert (await store.current(GUN, [ROOT]))[ROOT].version == 19


@pytest_twisted.ensureDeferred
async def test_nothing_happens_after_close(path):
    store = await open_metadata_store("sqlite3", str(path), reactor)
    triggers = len(reactor._eventTriggers["shutdown"].during)
    await store.close()
    await store.close()
    assert len(reactor._eventTriggers["shutdown"].during) == triggers - 1
    for call in (store.check, lambda: store.publish(GUN, whole(1)), lambda: store.current(GUN, ROLES)):
        with pytest.raises(StorageFailed, match="the store is closed"):
            await call()


@pytest_twisted.ensureDeferred
async def test_close_can_be_abandoned_and_still_closes(path):
    store = await open_metadata_store("sqlite3", str(path), reactor)
    write = store.publish(GUN, whole(1))
    closing_ = store.close()
    closing_.cancel()
    with pytest.raises(CancelledError):
        await closing_
    await store.close()
    await write


@pytest_twisted.ensureDeferred
async def test_an_abandoned_start_leaves_nothing_behind(path):
    opening = open_metadata_store("sqlite3", str(path), reactor)
    opening.cancel()
    with pytest.raises(CancelledError):
        await opening
    await make(open_metadata_store, path)


@pytest_twisted.ensureDeferred
async def test_abandoned_calls_leave_whole_publishes(path):
    async with metadata_store(path) as store:
        writes = [store.publish(GUN, whole(version)) for version in range(1, 31)]
        for write in writes[::2]:
            write.cancel()
        # The last one is not abandoned, and they take turns.
        results = await DeferredList(writes, consumeErrors=True)
        assert [success for success, _ in results] == [False, True] * 15
        assert all(result.check(CancelledError) for success, result in results if not success)
        reads = [store.current(GUN, ROLES) for _ in range(10)]
        for read in reads:
            read.cancel()
        await DeferredList(reads, consumeErrors=True)
        assert {stored.version for stored in (await store.current(GUN, ROLES)).values()} == {30}
        assert [change.version for change in await store.changes(GUN, None, 100)] == list(range(1, 31))
