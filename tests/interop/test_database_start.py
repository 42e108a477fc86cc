"""Daemons that are started before their database: they wait, say so, and serve as soon as it answers."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import SERVER_RIGHTS, SIGNER_RIGHTS, DatabaseServer, MariaDB, PostgreSQL
from tests.support.peers import OUR_SERVER, Daemon, daemon
from tests.support.signer import OUR_SIGNER, SIGNER, Client, Pair, signer_daemon
from tests.support.waiting import until

NOT_SERVING, SERVING = 2, 1
HEALTH = "/_notary_server/health"


def get(server: Daemon, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.fixture(params=[MariaDB, PostgreSQL], scope="module")
def database(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    with request.param() as server:
        yield server


def prepared(database: DatabaseServer, rights: tuple[str, ...], bootstrap: Callable[[dict[str, str]], Daemon]) -> Any:
    """Storage of a daemon whose tables have been made, and whose database is down."""
    name = database.database()
    maker = bootstrap({"backend": database.backend, "db_url": database.db_url(name)})
    maker.spawn()
    assert maker.wait(60) == 0, maker.output()
    storage = {"backend": database.backend, "db_url": database.db_url(name, database.user(name, rights))}
    database.stop()
    return storage


def test_a_server_waits_for_its_database(database: DatabaseServer, tmp_path: Path) -> None:
    database.ensure()
    storage = prepared(
        database,
        SERVER_RIGHTS,
        lambda storage: daemon("maker", (*OUR_SERVER, "-bootstrap"), tmp_path, storage=storage),
    )
    with daemon("server", OUR_SERVER, tmp_path, storage=storage) as server:
        until(lambda: get(server, HEALTH)[1].keys() == {"DB operational", "DB takes writes"}, "the health page says so")
        assert get(server, HEALTH)[0] == 503
        status, answer = get(server, "/v2/_trust/changefeed?records=1")
        assert (status, answer["errors"][0]["code"]) == (500, "UNKNOWN")
        assert "; trying again in " in server.output()
        database.start()
        until(lambda: get(server, HEALTH) == (200, {}), "it serves")
        assert get(server, "/v2/_trust/changefeed?records=1")[0] == 200
        assert server.stop() == -15
    assert "traceback" not in server.output().lower()


def test_a_signer_waits_for_its_database(database: DatabaseServer, tmp_path: Path) -> None:
    database.ensure()
    pair = Pair.mint(tmp_path / "tls")
    environment = {"NOTARY_SIGNER_ALIAS_ONE": "a passphrase"}

    def signer(name: str, storage: dict[str, str], flags: str = "") -> Daemon:
        storage = storage | {"default_alias": "alias_one"}
        return signer_daemon(name, OUR_SIGNER, pair, tmp_path, storage, environment=environment, flags=flags)

    storage = prepared(database, SIGNER_RIGHTS, lambda storage: signer("maker", storage, "-bootstrap"))
    with signer("signer", storage) as waiting, Client(pair, waiting.port) as client:
        assert client.health(SIGNER) == NOT_SERVING
        database.start()
        until(lambda: client.health(SIGNER) == SERVING, "it serves")
        assert client.create("example.com/app", "timestamp", "ecdsa").publicKey
        assert waiting.stop() == -15


def test_a_stop_ends_the_waiting(database: DatabaseServer, tmp_path: Path) -> None:
    database.ensure()
    storage = {"backend": database.backend, "db_url": database.db_url(database.database())}
    database.stop()
    with daemon("server", OUR_SERVER, tmp_path, storage=storage) as server:
        assert server.stop() == -15
