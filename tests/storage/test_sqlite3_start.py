"""What a store on SQLite refuses when it is opened, and what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from notary.errors import ConfigError, StorageFailed
from notary.storage.open import open_database, open_key_store, open_metadata_store
from notary.storage.sql.backends.sqlite3 import SQLITE3
from notary.storage.sql.migrate import SERVER
from tests.storage.sqlite_files import (
    OPENERS,
    execute,
    make,
    tables,
)


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
        pytest.param((6, 1), "version 6, which broke off, made by a newer release", id="newer-and-dirty"),
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
    assert tables(path) == {"bookmarks"}


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
    with pytest.raises(
        ConfigError,
        match=r"nosuchsql.*cannot be loaded .No module named 'no_such_driver'.; install notary-service.nosuchsql",
    ):
        await open_database(dialect, str(path), SERVER, reactor)
    assert not path.exists()
