"""The backends that every contract test runs on: one row each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from notary.storage import open as opening
from notary.storage.open import open_key_store, open_metadata_store
from notary.storage.sql.backends import DIALECTS
from tests.support.keyplace import KeyPlace
from tests.support.migrated import SERVICES, migrated_database


def nowhere(request, service: str):
    return lambda: ""


def sqlite_file(request, service: str):
    factory = request.getfixturevalue("tmp_path_factory")
    return lambda: str(factory.mktemp("sqlite3") / "notary.db")


def on_server(fixture: str):
    """One migrated database a daemon for all tests, emptied for each; used with the rights of the guide."""

    def prepare(request, service: str):
        server = request.getfixturevalue(fixture)
        prepared = request.getfixturevalue("prepared_databases")
        if (fixture, service) not in prepared:
            prepared[fixture, service] = migrated_database(server, service)
        database, db_url = prepared[fixture, service]

        def empty() -> str:
            server.empty(database, SERVICES[service][2])
            return db_url

        return empty

    return prepare


def by_pymysql(prepare):
    """The same with the driver that is used where mysqlclient is missing."""
    dialect = replace(DIALECTS["mysql"], driver="notary.storage.sql.backends.mysql.pymysql")

    def prepare_both(request, service: str):
        request.getfixturevalue("monkeypatch").setattr(opening, "DIALECTS", {**DIALECTS, "mysql": dialect})
        return prepare(request, service)

    return prepare_both


BACKENDS = [
    pytest.param(("memory", nowhere), id="memory"),
    pytest.param(("sqlite3", sqlite_file), id="sqlite3"),
    pytest.param(("mysql", on_server("mariadb")), id="mysql"),
    pytest.param(("postgres", on_server("postgresql")), id="postgres"),
]
"""A name of ``storage.backend``, and how to come by something that gives the ``db_url`` of an empty database."""

STORES = [*BACKENDS, pytest.param(("mysql", by_pymysql(on_server("mariadb"))), id="pymysql")]
"""What the contracts of the stores hold for: every backend, with every driver."""


@pytest.fixture(scope="session")
def prepared_databases() -> dict:
    return {}


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


@pytest.fixture(params=STORES)
def fresh_database(request):
    """Makes an empty database for the server at each call: the backend's name and the ``db_url``."""
    backend, prepare = request.param
    empty = prepare(request, "server")
    return lambda: (backend, empty())


@pytest_twisted.async_yield_fixture
async def metadata_stores(fresh_database):
    instances = Instances(open_metadata_store, *fresh_database())
    yield instances.another
    await instances.close()


@pytest.fixture(params=STORES)
def key_database(request):
    """An empty database for the signer: the backend's name and the ``db_url``."""
    backend, prepare = request.param
    return backend, prepare(request, "signer")()


@pytest_twisted.async_yield_fixture
async def key_stores(key_database):
    instances = Instances(open_key_store, *key_database)
    yield instances.another
    await instances.close()


@pytest.fixture(params=[each for each in BACKENDS if each.id != "memory"])
def key_place(request) -> KeyPlace:
    """An empty database for the signer, on each server and in a file."""
    backend, prepare = request.param
    made = KeyPlace(backend, prepare(request, "signer")())
    pytest_twisted.blockon(Deferred.fromCoroutine(made.make()))
    return made


@pytest.fixture
def path(tmp_path) -> Path:
    """Where a SQLite file may be made."""
    return tmp_path / "notary.db"
