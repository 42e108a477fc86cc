"""What holds for sections of both daemons: paths, connections to databases, secrets, frozen values."""

from __future__ import annotations

import dataclasses

import pytest

from notary.config import Address, Secret
from notary.errors import ConfigError
from tests.support.configurations import (
    HIDDEN,
    MYSQL,
    SIGNER_STORAGE,
    assert_one_line,
    read_server,
    read_signer,
    server,
    signer,
)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("var/notary.db", "/etc/notary/var/notary.db", id="relative"),
        pytest.param("/srv/notary.db", "/srv/notary.db", id="absolute"),
        pytest.param(":memory:", ":memory:", id="in memory"),
        pytest.param("file:notary.db?mode=rwc", "file:notary.db?mode=rwc", id="URI"),
    ],
)
def test_paths_of_sqlite_files(url: str, expected: str) -> None:
    storage = {"backend": "sqlite3", "db_url": url}
    assert read_server(server(storage=storage)).storage.db_url == expected
    stored = read_signer(signer(storage={**storage, "default_alias": "a"}), NOTARY_SIGNER_A="p").storage
    assert stored.db_url == expected


def test_connections_and_time_outs_of_a_database():
    tree = server(storage={**MYSQL, "connections": 40, "connect_timeout": 2, "query_timeout": "1.5"})
    storage = read_server(tree, NOTARY_SERVER_STORAGE_CONNECTIONS="50").storage
    assert (storage.connections, storage.connect_timeout, storage.query_timeout) == (50, 2.0, 1.5)


def test_they_are_the_same_for_the_signer_and_have_defaults():
    tree = signer(storage={**SIGNER_STORAGE, "default_alias": "a", "connections": 3})
    storage = read_signer(tree, NOTARY_SIGNER_A=HIDDEN).storage
    assert (storage.connections, storage.connect_timeout, storage.query_timeout) == (3, 5.0, 10.0)


def test_an_sqlite_file_has_no_such_settings():
    tree = server(storage={"backend": "sqlite3", "db_url": "f", "connections": "many", "query_timeout": -1})
    assert read_server(tree).storage.connections == 10


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("connections", 0, id="none"),
        pytest.param("connections", 10_001, id="too-many"),
        pytest.param("connections", "ten", id="words"),
        pytest.param("connect_timeout", 0, id="no-time"),
        pytest.param("query_timeout", -1, id="negative"),
        pytest.param("query_timeout", "soon", id="no-number"),
    ],
)
def test_settings_of_connections_that_cannot_be_used(key, value):
    with pytest.raises(ConfigError) as caught:
        read_server(server(storage={**MYSQL, key: value}))
    assert_one_line(str(caught.value), f"storage.{key}", ["expected", "number"])


def test_repr_hides_secrets() -> None:
    tree = server(storage=MYSQL, reporting={"bugsnag": {"api_key": HIDDEN}})
    assert HIDDEN not in repr(read_server(tree))
    loaded = read_signer(signer(storage={**SIGNER_STORAGE, "default_alias": "a"}), NOTARY_SIGNER_A=HIDDEN)
    assert HIDDEN not in repr(loaded)


def test_configurations_are_frozen() -> None:
    loaded = read_server(server())
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.server.http_addr = Address("", 1)  # type: ignore[misc]
    with pytest.raises(TypeError):
        read_signer(signer(), NOTARY_SIGNER_A="x").passphrases["B"] = Secret("y")  # type: ignore[index]
