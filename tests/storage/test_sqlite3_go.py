"""SQLite files that a Go Notary wrote, and what it will find in ours."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
import pytest_twisted

from notary.errors import KeyNotFound, NotFound, OldVersion
from notary.storage.open import open_key_store, open_metadata_store
from notary.storage.sql.values import UNKNOWN_TIME
from notary.tuf.model import ROOT, TIMESTAMP
from tests.storage.sqlite_files import (
    GUN,
    KEY,
    ROLES,
    execute,
    key_store,
    make,
    metadata_store,
    tables,
    whole,
)

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
        assert (await store.by_version(GUN, ROOT, 1)).modified == UNKNOWN_TIME


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
async def test_a_checksum_that_was_never_written_is_that_of_the_content(path):
    """Rows from before Go's migration that added the column."""
    async with metadata_store(path) as store:
        await store.publish(GUN, whole(1))
        before = await store.current(GUN, ROLES)
        execute(path, "UPDATE tuf_files SET sha256 = NULL")
        assert await store.current(GUN, ROLES) == before
        with pytest.raises(OldVersion):
            await store.publish(GUN, whole(2), before[ROOT].sha256)
        await store.publish(GUN, whole(2), before[TIMESTAMP].sha256)


@pytest_twisted.ensureDeferred
async def test_tables_without_recorded_migrations_are_judged_by_their_columns(path):
    """Go's own code makes such files, without a schema_migrations."""
    await make(open_metadata_store, path)
    execute(path, "DROP TABLE schema_migrations")
    async with metadata_store(path) as store:
        await store.publish(GUN, whole(1))
    assert "schema_migrations" not in tables(path)


@pytest_twisted.ensureDeferred
async def test_an_empty_table_of_migrations_records_nothing(path):
    await make(open_metadata_store, path)
    execute(path, "DELETE FROM schema_migrations")
    async with metadata_store(path) as store:
        await store.publish(GUN, whole(1))
