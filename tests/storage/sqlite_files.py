"""SQLite files for tests: made, changed behind a store's back, and opened with special settings."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from twisted.internet import reactor

from notary.storage import StoredKey, Update
from notary.storage.open import open_database, open_key_store, open_metadata_store
from notary.storage.sql.backends.sqlite3 import SQLITE3
from notary.tuf.model import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Gun

GUN = Gun("docker.io/library/alpine")
ROLES = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
KEY = StoredKey("ab" * 32, "ecdsa", b"\x00\xffpublic", b"a.jwe", str(GUN), "timestamp", "alias1")
OPENERS = [pytest.param(open_metadata_store, id="server"), pytest.param(open_key_store, id="signer")]


def whole(version: int, size: int = 10) -> list[Update]:
    return [Update(role, version, f"{role} {version}".encode().ljust(size)) for role in ROLES]


def execute(path: Path, sql: str, *values: object) -> list[tuple]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(sql, values).fetchall()


def tables(path: Path) -> set[str]:
    """The names of the tables in a file."""
    return {table for table, _column in execute(path, SQLITE3.catalogue.columns)}


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

    def prepare(connection: sqlite3.Connection, pool) -> None:
        SQLITE3.prepare(connection, pool)
        also(connection)

    def arguments(db_url: str, pool) -> dict:
        return {**SQLITE3.arguments(db_url, pool), "timeout": patience}

    return await open_database(replace(SQLITE3, prepare=prepare, arguments=arguments), str(path), service, reactor)
