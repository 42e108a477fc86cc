"""The compose files: a stock client's whole life through each; containers come and go under load."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docker.engine import TREE, Compose, Engine
from tests.docker.load import Load
from tests.support.goclient import Machine, live

URL = "https://localhost:4443"
CA = TREE / "fixtures/root-ca.crt"


def machines(directory: Path) -> Callable[[str], Machine]:
    """Makes machines that talk to the composed service, and finds them again by name."""
    known: dict[str, Machine] = {}
    return lambda name: known.setdefault(name, Machine(directory / name, URL, CA))


FILES = {
    "mariadb": (),
    "postgres": ("-f", "docker-compose.yml", "-f", "docker-compose.postgres.yml"),
}


@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
def test_the_whole_life(engine: Engine, project: str, tmp_path: Path, files: tuple[str, ...]) -> None:
    with Compose(engine, project, *files) as compose:
        compose.wait_healthy("server", "signer", "database")
        handshake = subprocess.run(
            ("openssl", "s_client", "-connect", "localhost:4443", "-CAfile", str(CA), "-verify_return_error", "-brief"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )
        assert b"Verification: OK" in handshake.stderr
        live(machines(tmp_path), "example.com/team/app")

        # Data outlives the containers.
        owner = Machine(tmp_path / "keeper", URL, CA)
        (owner.directory / "file").write_bytes(b"content")
        owner("init", "example.com/kept", "-p")
        owner("add", "example.com/kept", "v1", "file", "-p")
        compose("down", "--timeout", "20")
        compose("up", "-d")
        compose.wait_healthy("server", "signer", "database")
        owner("add", "example.com/kept", "v2", "file", "-p")
        assert set(Machine(tmp_path / "newcomer", URL, CA).targets("example.com/kept")) == {"v1", "v2"}


def test_every_container_restarts_under_load(engine: Engine, project: str, tmp_path: Path) -> None:
    """Two of each behind HAProxy: any of them restarts, no read fails and no acknowledged publish is lost."""
    gun = "example.com/busy"
    owner = Machine(tmp_path / "owner", URL, CA)
    with Compose(engine, project, "--env-file", "docker/ha.env") as compose:
        daemons = ("server", "server-2", "signer", "signer-2")
        compose.wait_healthy(*daemons, "database")
        owner("init", gun, "-p")
        owner("key", "rotate", gun, "snapshot", "-r")  # so that each publish needs the signer twice
        with Load(owner, gun, CA) as load:
            load.goes_on()
            for name in daemons:
                before = load.reads.retried
                compose("restart", "--timeout", "20", name)
                compose.wait_healthy(name)
                load.goes_on()
                assert load.reads.retried == before, f"reads had to be tried again while {name} restarted"
            # These two are single: readers try again, and get what they want.
            for name in ("haproxy", "database"):
                compose("restart", "--timeout", "20", name)
                compose.wait_healthy(*daemons, "database")
                load.goes_on()
        assert load.reads.failed == []
        seen = Machine(tmp_path / "newcomer", URL, CA).targets(gun)
        assert load.publisher.acknowledged <= set(seen)
