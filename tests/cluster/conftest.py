"""Clusters that live as long as a run of these tests, and databases in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import pytest_twisted
from twisted.internet import reactor

from notary.storage.open import open_key_store, open_metadata_store
from notary.storage.sql.dialect import PoolSettings
from tests.support.galera import Galera
from tests.support.migrated import SERVICES, migrated_database


@pytest.fixture(scope="session")
def galera() -> Iterator[Galera]:
    """A cluster of two nodes, both of which take writes."""
    with Galera(2) as cluster:
        yield cluster


class Replicated:
    """A database of one daemon on every node: its name, and a ``db_url`` for each node."""

    def __init__(self, cluster: Galera, service: str) -> None:
        self.cluster = cluster
        first = cluster.nodes[0]
        self.name, url = migrated_database(first, service)
        self.tables = SERVICES[service][2]
        self.urls = [url.replace(str(first.port), str(node.port)) for node in cluster.nodes]
        for number in range(len(self.urls)):
            self.execute(number, f"SELECT 1 FROM {self.tables[0]} LIMIT 1")

    def execute(self, number: int, sql: str, *values: object) -> list[tuple]:
        """Run one statement on a node, once the node has everything that was committed anywhere."""
        return self.cluster.nodes[number].execute(self.name, f"SET STATEMENT wsrep_sync_wait = 15 FOR {sql}", *values)

    def everywhere(self, sql: str, *values: object) -> list[tuple]:
        """Run one query on every node, which must all answer the same."""
        answers: Sequence[list[tuple]] = [self.execute(number, sql, *values) for number in range(len(self.urls))]
        assert all(answer == answers[0] for answer in answers)
        return answers[0]


@pytest.fixture
def metadata(galera) -> Replicated:
    return Replicated(galera, "server")


@pytest.fixture
def keys(galera) -> Replicated:
    return Replicated(galera, "signer")


def opener(open_store, fixture: str):
    """Makes a fixture that opens one store on each node."""

    @pytest_twisted.async_yield_fixture
    async def stores(request):
        replicated = request.getfixturevalue(fixture)
        opened = [await open_store("mysql", url, reactor, PoolSettings(connections=10)) for url in replicated.urls]
        yield opened
        for store in opened:
            await store.close()

    return stores


metadata_stores = opener(open_metadata_store, "metadata")
key_stores = opener(open_key_store, "keys")
