"""Servers for the interoperability tests. They are started once and shared: every case has a collection of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import pytest
import pytest_twisted

from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, Daemon, daemon, mint_certificates
from tests.support.sides import Side


class Sides(NamedTuple):
    """The reference and the server under test."""

    go: Side
    ours: Side


@pytest.fixture(scope="session")
def reactor() -> Any:
    from twisted.internet import reactor

    return reactor


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return mint_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    """The Go server on memory (it has no embedded database), ours on SQLite, whose SQL is that of every database."""
    directory = tmp_path_factory.mktemp("sides")
    storage = {"backend": "sqlite3", "db_url": "notary.db"}
    with (
        daemon("go", GO_SERVER, directory) as go,
        daemon("ours", OUR_SERVER, directory, storage=storage) as ours,
    ):
        yield go, ours


@pytest_twisted.async_yield_fixture
async def sides(reactor: Any, daemons: tuple[Daemon, Daemon]) -> AsyncIterator[Sides]:
    """Both servers. The Go server is started afresh if a test before has killed it; ours must never die."""
    go, ours = daemons
    go.ensure()
    assert ours.alive, f"our server has died:\n{ours.output()[-4000:]}"
    async with Side(go, reactor) as reference, Side(ours, reactor) as tested:
        yield Sides(reference, tested)
