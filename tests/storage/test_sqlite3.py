"""What is SQLite's own: its file, its locks, its failures, and files that a Go Notary wrote."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, DeferredList, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue

from notary.errors import ConfigError, KeyNotFound, NotFound, OldVersion, StorageFailed
from notary.storage import StoredKey, Update
from notary.storage.dialect import SQLITE3
from notary.storage.sql import (
    SERVER,
    SIGNER,
    SQLKeyStore,
    SQLMetadataStore,
    open_database,
    open_key_store,
    open_metadata_store,
)
from notary.tuf.model import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Gun

GUN = Gun("docker.io/library/alpine")
ROLES = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
KEY = StoredKey("ab" * 32, "ecdsa", b"\x00\xffpublic", b"a.jwe", str(GUN), "timestamp", "alias1")
OPENERS = [pytest.param(open_metadata_store, id="server"), pytest.param(open_key_store, id="signer")]


def whole(version: int, size: int = 10) -> list[Update]:
    return [Update(role, version, f"{role} {version}".encode().ljust(size)) for role in ROLES]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "notary.db"


def execute(path: Path, sql: str, *values: object) -> list[tuple]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(sql, values).fetchall()


async def make(opener, path: Path) -> None:
    """Make the file with its tables."""
    await (await opener("sqlite3", str(path), reactor)).close()


class _Using:
    """A store for the length of an ``async with``."""

    def __init__(self, deferred) -> None:
        self.deferred = deferred

    async def __aenter__(self):
        self.store = await self.deferred
        return self.store

    async def __aexit__(self, *error: object) -> None:
        await self.store.close()


def metadata_store(path: Path) -> _Using:
    return _Using(open_metadata_store("sqlite3", str(path), reactor))


def key_store(path: Path) -> _Using:
    return _Using(open_key_store("sqlite3", str(path), reactor))


async def special_database(service, path: Path, *, patience: float = 10.0, also=lambda connection: None):
    """A database with less patience, or with something done to each connection."""

    def prepare(connection: sqlite3.Connection) -> None:
        SQLITE3.prepare(connection)
        also(connection)

    def arguments(db_url: str) -> dict:
        return {**SQLITE3.arguments(db_url), "timeout": patience}

    return await open_database(replace(SQLITE3, prepare=prepare, arguments=arguments), str(path), service, reactor)


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
    names = {name for (name,) in execute(path, SQLITE3.tables)}
    assert names == set(COLUMNS[service])
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
from notary.storage.sql import open_metadata_store

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


@pytest_twisted.ensureDeferred
async def test_acknowledged_is_durable(path):
    database = await open_database(SQLITE3, str(path), SERVER, reactor)
    pragmas = ("synchronous", "foreign_keys", "journal_mode", "busy_timeout")
    found = [(await database.read(lambda cursor, name=name: cursor.first(f"PRAGMA {name}")))[0] for name in pragmas]
    await database.close()
    assert found == [2, 1, "wal", 10_000]


@pytest_twisted.ensureDeferred
async def test_every_statement_uses_an_index(path):
    statements: list[str] = []

    def trace(connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(statements.append)

    await make(open_metadata_store, path)
    store = SQLMetadataStore(await special_database(SERVER, path, also=trace))
    await store.publish(GUN, whole(1))
    await store.current(GUN, ROLES)
    await store.by_version(GUN, ROOT, 1)
    await store.by_checksum(GUN, ROOT, hashlib.sha256(whole(1)[0].data).hexdigest())
    for gun in (None, GUN):
        await store.changes(gun, 1, 5)
        await store.changes(gun, 7, -5)
    await store.delete(GUN)
    await store.close()

    signer = path.with_name("signer.db")
    await make(open_key_store, signer)
    keys = SQLKeyStore(await special_database(SIGNER, signer, also=trace))
    await keys.add(KEY)
    await keys.pending(KEY.gun, KEY.role, KEY.algorithm)
    await keys.get(KEY.key_id)
    await keys.mark_used(KEY.key_id, datetime.now(UTC))
    await keys.delete(KEY.key_id)
    await keys.close()

    plans: dict[str, set[str]] = {"tuf_files": set(), "changefeed": set(), "private_keys": set()}
    for statement in statements:
        table = re.search("(?:SELECT .* FROM|DELETE FROM) (tuf_files|changefeed|private_keys)", statement)
        if table and "1 = 0" not in statement:
            database = signer if table[1] == "private_keys" else path
            plans[table[1]].update(row[3] for row in execute(database, f"EXPLAIN QUERY PLAN {statement}"))
    files = "SEARCH tuf_files USING INDEX idx_tuf_files"
    assert plans["tuf_files"] == {
        f"{files}_gun_role_version (gun=?)",  # delete
        f"{files}_gun_role_version (gun=? AND role=?)",
        f"{files}_gun_role_version (gun=? AND role=? AND version=?)",
        f"{files}_gun_role_version (gun=? AND role=? AND version>?)",
        f"{files}_sha256 (sha256=? AND gun=? AND role=?)",
    }
    assert plans["changefeed"] == {
        "SEARCH changefeed USING INTEGER PRIMARY KEY (rowid>?)",
        "SEARCH changefeed USING INTEGER PRIMARY KEY (rowid<?)",
        "SEARCH changefeed USING INDEX idx_changefeed_gun (gun=? AND rowid>?)",
        "SEARCH changefeed USING INDEX idx_changefeed_gun (gun=? AND rowid<?)",
    }
    assert all("INDEX" in plan or "PRIMARY KEY" in plan or "TEMP B-TREE" in plan for plan in plans["private_keys"])
    assert any("idx_private_keys_pending (gun=? AND role=? AND algorithm=?)" in plan for plan in plans["private_keys"])


# -- refused at the start ---------------------------------------------------------------------------------------------


async def refused(opener, path: Path, match: str) -> None:
    with pytest.raises(StorageFailed, match=match) as caught:
        await opener("sqlite3", str(path), reactor)
    assert str(caught.value).startswith("storage.db_url: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "match"),
    [
        pytest.param((5, 1), "migration 5 of the database broke off.*dirty", id="dirty"),
        pytest.param((6, 0), "version 6, made by a newer release.*version 5.*run the newer release", id="newer"),
        pytest.param((6, 1), "migration 6 of the database broke off", id="newer-and-dirty"),
        pytest.param((4, 0), "version 4, and version 5 is needed", id="older"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_schema_that_is_not_ours_to_use(path, state, match):
    await make(open_metadata_store, path)
    execute(path, "UPDATE schema_migrations SET version = ?, dirty = ?", *state)
    before = path.read_bytes()
    await refused(open_metadata_store, path, match)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        pytest.param(open_metadata_store, open_key_store, "not the signer's", id="signer-on-the-server's"),
        pytest.param(open_key_store, open_metadata_store, "not the server's", id="server-on-the-signer's"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_each_daemon_needs_a_file_of_its_own(path, first, second, match):
    await make(first, path)
    await refused(second, path, match)
    await make(first, path)


@pytest_twisted.ensureDeferred
async def test_a_file_of_another_program_is_left_alone(path):
    execute(path, "CREATE TABLE bookmarks (url text)")
    await refused(open_metadata_store, path, "a database of its own")
    assert execute(path, SQLITE3.tables) == [("bookmarks",)]


@pytest_twisted.ensureDeferred
async def test_a_table_that_lacks_a_column(path):
    await make(open_metadata_store, path)
    execute(path, "ALTER TABLE changefeed DROP COLUMN category")
    await refused(open_metadata_store, path, "no such column: category")


def is_directory(path: Path) -> Path:
    path.mkdir()
    return path


def in_no_directory(path: Path) -> Path:
    return path.parent / "missing" / path.name


def below_a_file(path: Path) -> Path:
    path.touch()
    return path / "notary.db"


def text(path: Path) -> Path:
    path.write_text("This is a letter, and no database at all.\n" * 100)
    return path


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize(
    ("place", "match"),
    [
        pytest.param(is_directory, "cannot be opened: its directory must exist", id="a-directory"),
        pytest.param(in_no_directory, "cannot be opened: its directory must exist", id="in-no-directory"),
        pytest.param(below_a_file, "cannot be opened: its directory must exist", id="below-a-file"),
        pytest.param(text, "not a SQLite database", id="text"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_file_that_cannot_be_used(path, opener, place, match):
    await refused(opener, place(path), match)


@pytest_twisted.ensureDeferred
async def test_a_failed_start_can_be_repeated(path):
    path = in_no_directory(path)
    await refused(open_metadata_store, path, "cannot be opened")
    path.parent.mkdir()
    await make(open_metadata_store, path)


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("db_url", ["", ":memory:", "file:notary.db?mode=memory", "a\0b"])
@pytest_twisted.ensureDeferred
async def test_only_a_plain_path_will_do(opener, db_url):
    with pytest.raises(ConfigError, match=r"^storage\.db_url: .* expected the path of a SQLite file"):
        await opener("sqlite3", db_url, reactor)


@pytest.mark.parametrize("opener", OPENERS)
@pytest_twisted.ensureDeferred
async def test_an_unknown_backend(opener):
    with pytest.raises(ConfigError, match=r'^storage\.backend: "oracle": expected one of .*memory.*sqlite3'):
        await opener("oracle", "", reactor)


@pytest_twisted.ensureDeferred
async def test_a_missing_driver_is_named_with_what_to_install(path):
    dialect = replace(SQLITE3, name="nosuchsql", driver="no_such_driver", needs="notary-service[nosuchsql]")
    with pytest.raises(ConfigError, match=r'"nosuchsql".*no_such_driver is missing; install notary-service\[nosuchsql'):
        await open_database(dialect, str(path), SERVER, reactor)
    assert not path.exists()


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
    ("fail", "duplicate", "advice"),
    [
        pytest.param(read_only, False, "the SQLite file is read-only: the service must be allowed", id="read-only"),
        pytest.param(other_unique_key, True, "SQLite could not do its work: UNIQUE constraint", id="duplicate"),
        pytest.param(unknown_statement, False, 'SQLite could not do its work: near "SELEKT"', id="anything-else"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_errors_are_explained(path, fail, duplicate, advice):
    await make(open_metadata_store, path)
    with pytest.raises(sqlite3.Error) as caught:
        fail(path)
    assert SQLITE3.duplicate(caught.value) is duplicate
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
        writes = [store.publish(GUN, whole(version)) for version in range(1, 30)]
        for write in writes[::2]:
            write.cancel()
        results = await DeferredList(writes, consumeErrors=True)
        assert [success for success, _ in results] == [False, True] * 14 + [False]
        assert all(result.check(CancelledError) for success, result in results if not success)
        reads = [store.current(GUN, ROLES) for _ in range(10)]
        for read in reads:
            read.cancel()
        await DeferredList(reads, consumeErrors=True)
        assert {stored.version for stored in (await store.current(GUN, ROLES)).values()} == {29}
        assert [change.version for change in await store.changes(GUN, None, 100)] == list(range(1, 30))


# -- files that a Go Notary wrote -------------------------------------------------------------------------------------

GO_TIMES = [
    pytest.param("2024-05-06 07:08:09.123456789+00:00", datetime(2024, 5, 6, 7, 8, 9, 123456, UTC), id="nanoseconds"),
    pytest.param("2024-05-06 07:08:09.5-07:00", datetime(2024, 5, 6, 14, 8, 9, 500000, UTC), id="local-time"),
    pytest.param("2024-05-06 07:08:09+05:30", datetime(2024, 5, 6, 1, 38, 9, 0, UTC), id="whole-seconds"),
    pytest.param("2024-05-06T07:08:09.25Z", datetime(2024, 5, 6, 7, 8, 9, 250000, UTC), id="RFC-3339"),
    pytest.param("2024-05-06 07:08:09", datetime(2024, 5, 6, 7, 8, 9, 0, UTC), id="CURRENT_TIMESTAMP"),
    pytest.param("2024-05-06", datetime(2024, 5, 6, 0, 0, 0, 0, UTC), id="date"),
    pytest.param("0001-01-01 00:00:00+00:00", datetime(1, 1, 1, 0, 0, 0, 0, UTC), id="zero"),
]


@pytest.mark.parametrize(("written", "meant"), GO_TIMES)
@pytest_twisted.ensureDeferred
async def test_times_as_go_writes_them(path, written, meant):
    await make(open_metadata_store, path)
    execute(
        path,
        "INSERT INTO tuf_files (created_at, gun, role, version, sha256, data) VALUES (?, ?, 'root', 1, '', '{}')",
        written,
        GUN,
    )
    execute(
        path,
        "INSERT INTO changefeed (created_at, gun, version, sha256, category) VALUES (?, ?, 1, NULL, 'update')",
        written,
        GUN,
    )
    async with metadata_store(path) as store:
        stored = await store.by_version(GUN, ROOT, 1)
        (change,) = await store.changes(None, None, 1)
    assert (stored.modified, stored.data) == (meant, b"{}")
    assert (change.created, change.sha256) == (meant, "")
    assert stored.modified.utcoffset() == change.created.utcoffset() == timedelta(0)


@pytest.mark.parametrize("written", ["yesterday", "0001-01-01 00:00:00+05:00", 17, None])
@pytest_twisted.ensureDeferred
async def test_a_time_that_is_none(path, written):
    await make(open_metadata_store, path)
    execute(
        path, "INSERT INTO tuf_files (created_at, gun, role, version, data) VALUES (?, ?, 'root', 1, '')", written, GUN
    )
    async with metadata_store(path) as store:
        with pytest.raises(StorageFailed, match="where a time belongs"):
            await store.by_version(GUN, ROOT, 1)


@pytest_twisted.ensureDeferred
async def test_times_as_go_reads_them(path):
    """Text with a zone, in columns that are declared as times."""
    async with metadata_store(path) as store:
        await store.publish(GUN, whole(1))
    for table in ("tuf_files", "changefeed"):
        types = {row[1]: row[2] for row in execute(path, f"PRAGMA table_info({table})")}
        ((written, kind),) = execute(path, f"SELECT DISTINCT created_at, typeof(created_at) FROM {table}")
        assert (kind, types["created_at"]) == ("text", "datetime")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,9})?\+00:00", written)


@pytest_twisted.ensureDeferred
async def test_deleted_rows_do_not_exist_but_for_their_place(path):
    async with metadata_store(path) as store:
        await store.publish(GUN, whole(1))
        await store.publish(GUN, whole(2))
        execute(path, "UPDATE tuf_files SET deleted_at = CURRENT_TIMESTAMP WHERE version = 2")
        assert {stored.version for stored in (await store.current(GUN, ROLES)).values()} == {1}
        with pytest.raises(NotFound):
            await store.by_version(GUN, ROOT, 2)
        with pytest.raises(NotFound):
            await store.by_checksum(GUN, ROOT, hashlib.sha256(whole(2)[0].data).hexdigest())
        await store.publish(GUN, whole(2, size=99))
        assert (await store.by_version(GUN, ROOT, 2)).data == whole(2, size=99)[0].data
        execute(path, "UPDATE tuf_files SET deleted_at = CURRENT_TIMESTAMP")
        assert await store.current(GUN, ROLES) == {}
        assert await store.delete(GUN) is False
        assert execute(path, "SELECT count(*) FROM tuf_files") == [(0,)]
        assert [change.category for change in await store.changes(None, None, 10)] == ["update"] * 3


@pytest_twisted.ensureDeferred
async def test_deleted_keys_do_not_exist_but_for_their_place(path):
    async with key_store(path) as store:
        await store.add(KEY)
        execute(path, "UPDATE private_keys SET deleted_at = CURRENT_TIMESTAMP")
        with pytest.raises(KeyNotFound):
            await store.get(KEY.key_id)
        assert await store.pending(KEY.gun, KEY.role, KEY.algorithm) is None
        assert await store.delete(KEY.key_id) is False
        await store.mark_used(KEY.key_id, datetime.now(UTC))
        assert await store.add(KEY) == KEY
        assert await store.get(KEY.key_id) == KEY


@pytest_twisted.ensureDeferred
async def test_keys_that_go_wrote_as_text(path):
    """Its model says string, so its driver binds text: bytes that are not UTF-8, and zeros, included."""
    await make(open_key_store, path)
    public = bytes(range(256))
    execute(
        path,
        "INSERT INTO private_keys (created_at, updated_at, key_id, encryption_alg, keywrap_alg, algorithm,"
        " passphrase_alias, public, private, gun, role) VALUES ('2024-05-06 07:08:09.5+02:00',"
        " '2024-05-06 07:08:09.5+02:00', ?, 'A256GCM', 'PBES2-HS256+A128KW', 'ecdsa', 'alias1',"
        f" CAST(x'{public.hex()}' AS TEXT), 'a.jwe', ?, 'timestamp')",
        KEY.key_id,
        KEY.gun,
    )
    mine = replace(KEY, public=public)
    when = datetime(2024, 5, 6, 9, 10, tzinfo=timezone(timedelta(hours=2)))
    async with key_store(path) as store:
        assert await store.get(KEY.key_id) == mine
        assert await store.pending(KEY.gun, KEY.role, KEY.algorithm) == mine
        await store.mark_used(KEY.key_id, when)
        assert await store.get(KEY.key_id) == replace(mine, last_used=when)
    assert execute(path, "SELECT id, created_at, updated_at, last_used, deleted_at FROM private_keys") == [
        (1, "2024-05-06 07:08:09.5+02:00", "2024-05-06 07:10:00+00:00", "2024-05-06 07:10:00+00:00", None)
    ]


@pytest_twisted.ensureDeferred
async def test_of_several_pending_keys_the_first_by_id_is_handed_out(path):
    await make(open_key_store, path)
    for name in ("cc", "aa", "bb"):
        execute(
            path,
            "INSERT INTO private_keys (key_id, encryption_alg, keywrap_alg, algorithm, passphrase_alias, public,"
            " private, gun, role) VALUES (?, '', '', 'ecdsa', '', '', '', 'gun', 'timestamp')",
            name,
        )
    async with key_store(path) as store:
        assert (await store.pending("gun", "timestamp", "ecdsa")).key_id == "aa"
        assert (await store.add(replace(KEY, gun="gun"))).key_id == "aa"


@pytest_twisted.ensureDeferred
async def test_tables_without_recorded_migrations_are_judged_by_their_columns(path):
    """Go's own code makes such files, without a schema_migrations."""
    await make(open_metadata_store, path)
    execute(path, "DROP TABLE schema_migrations")
    async with metadata_store(path) as store:
        await store.publish(GUN, whole(1))
    assert ("schema_migrations",) not in execute(path, SQLITE3.tables)


@pytest_twisted.ensureDeferred
async def test_an_empty_table_of_migrations_records_nothing(path):
    await make(open_metadata_store, path)
    execute(path, "DELETE FROM schema_migrations")
    async with metadata_store(path) as store:
        await store.publish(GUN, whole(1))
