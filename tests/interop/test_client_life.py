"""The stock ``notary`` 0.7.0 client lives its whole life against a server; see ``tests.support.goclient.live``.

The Go server goes through the same life, so that a step which no server could pass is told from a fault of ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.goclient import Machine, live
from tests.support.migrated import migrated_database
from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, Daemon, daemon


@pytest.fixture(
    params=[
        pytest.param((GO_SERVER, {"backend": "memory"}), id="go-memory"),
        pytest.param((OUR_SERVER, {"backend": "memory"}), id="ours-memory"),
        pytest.param((OUR_SERVER, {"backend": "sqlite3", "db_url": "notary.db"}), id="ours-sqlite3"),
        pytest.param((OUR_SERVER, "mariadb"), id="ours-mysql"),
        pytest.param((OUR_SERVER, "postgresql"), id="ours-postgres"),
    ]
)
def server(request: pytest.FixtureRequest, tmp_path: Path, certificates: Certificates) -> Iterator[Daemon]:
    command, storage = request.param
    if isinstance(storage, str):  # the fixture of a database server
        database_server = request.getfixturevalue(storage)
        _, db_url = migrated_database(database_server, "server")
        storage = {"backend": database_server.backend, "db_url": db_url}
    with daemon("server", command, tmp_path / "server", tls=certificates, storage=storage) as started:
        yield started


def machines(server: Daemon, certificates: Certificates, directory: Path) -> Callable[[str], Machine]:
    """Makes machines that talk to ``server``, and finds them again by name."""
    known: dict[str, Machine] = {}

    def machine(name: str) -> Machine:
        return known.setdefault(name, Machine(directory / name, server.url, certificates.ca))

    return machine


def test_the_whole_life(server: Daemon, certificates: Certificates, tmp_path: Path) -> None:
    live(machines(server, certificates, tmp_path / "machines"), "example.com/team/app")
    assert server.alive


def test_two_collections_do_not_mix(server: Daemon, certificates: Certificates, tmp_path: Path) -> None:
    """One owner, one root key, two names of which one begins with the other."""
    machine = machines(server, certificates, tmp_path / "machines")
    owner = machine("owner")
    for gun, content in (("example.com/app", b"one"), ("example.com/app/two", b"two two")):
        (owner.directory / "file").write_bytes(content)
        owner("init", gun)
        owner("add", gun, "v1", "file", "-p")
    for gun, content in (("example.com/app", b"one"), ("example.com/app/two", b"two two")):
        expected = {"v1": (hashlib.sha256(content).hexdigest(), len(content), "targets")}
        assert machine("consumer").targets(gun) == expected
    owner("delete", "example.com/app/two", "--remote")
    assert machine("newcomer").targets("example.com/app") == {"v1": (hashlib.sha256(b"one").hexdigest(), 3, "targets")}
    assert "does not have trust data" in machine("newcomer").refused("list", "example.com/app/two")


def test_two_owners_race(server: Daemon, certificates: Certificates, tmp_path: Path) -> None:
    """Two machines with the same keys stage changes on the same version; the client makes both land."""
    machine = machines(server, certificates, tmp_path / "machines")
    owner, twin = machine("owner"), machine("twin")
    gun = "example.com/race"
    for who in (owner, twin):
        (who.directory / "file").write_bytes(b"content")
    owner("init", gun, "-p")
    owner("key", "export", "-o", "keys.pem")
    twin("key", "import", str(owner.directory / "keys.pem"))
    owner("add", gun, "mine", "file")
    twin("add", gun, "yours", "file")
    owner("publish", gun)
    twin("publish", gun)
    assert set(machine("consumer").targets(gun)) == {"mine", "yours"}
