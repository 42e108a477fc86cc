"""The backends that every contract test runs on: one row each."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from notary.storage.sql import open_key_store, open_metadata_store


def nowhere(directory: Path) -> str:
    return ""


def sqlite_file(directory: Path) -> str:
    return str(directory / "notary.db")


BACKENDS = [
    pytest.param(("memory", nowhere), id="memory"),
    pytest.param(("sqlite3", sqlite_file), id="sqlite3"),
]
"""A name of ``storage.backend``, and how to come by the ``db_url`` of an empty database."""


class Instances:
    """Opens stores on one set of data, as several daemons would; memory has one instance only."""

    def __init__(self, opener, backend: str, db_url: str) -> None:
        self.opener = opener
        self.backend = backend
        self.db_url = db_url
        self.stores = []

    async def another(self):
        if self.backend == "memory" and self.stores:
            return self.stores[0]
        store = await self.opener(self.backend, self.db_url, reactor)
        self.stores.append(store)
        return store

    async def close(self) -> None:
        for store in self.stores:
            await store.close()


@pytest.fixture(params=BACKENDS)
def fresh_database(request, tmp_path_factory):
    """Makes an empty database at each call: the backend's name and the ``db_url``."""
    backend, make_db_url = request.param
    return lambda: (backend, make_db_url(tmp_path_factory.mktemp(backend)))


@pytest.fixture
def database(fresh_database):
    return fresh_database()


@pytest_twisted.async_yield_fixture
async def metadata_stores(database):
    instances = Instances(open_metadata_store, *database)
    yield instances.another
    await instances.close()


@pytest_twisted.async_yield_fixture
async def key_stores(database):
    instances = Instances(open_key_store, *database)
    yield instances.another
    await instances.close()


@pytest.fixture
def path(tmp_path) -> Path:
    """Where a SQLite file may be made."""
    return tmp_path / "notary.db"
