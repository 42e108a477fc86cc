"""Another release beside this one, on the same databases: docs/upgrading.md, one after the other and back.

Rules of this module: the other release is in ``build/older``, where ``make test-upgrade`` installs it. Both run behind
the HAProxy of docs/high-availability.md. Who publishes and who reads is the stock client, and readers who read all the
time, of whom none may fail.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.interop.test_high_availability import DRAIN, GUN, READY, Cluster, behind_haproxy
from tests.support.databases import SERVER_RIGHTS, SIGNER_RIGHTS, DatabaseServer
from tests.support.goclient import Machine
from tests.support.peers import clean_environment, server_config
from tests.support.signer import Pair, signer_config
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
OLDER, NEWER = ROOT / "build/older/venv/bin", Path(sys.executable).parent
READERS = 4
STEP_READS = 20
"""So many reads are done, at least, after each step."""
COMMAND_SECONDS = 300.0
ALIAS = "NOTARY_SIGNER_ONE"
RIGHTS = {"server": SERVER_RIGHTS, "signer": SIGNER_RIGHTS}


class Databases:
    """The two databases of a pair, with a user for each daemon, and one who may change tables."""

    def __init__(self, engine: DatabaseServer) -> None:
        names = {service: engine.database() for service in RIGHTS}
        self.admin = {service: engine.db_url(name) for service, name in names.items()}
        self.storage = {
            service: {"backend": engine.backend, "db_url": engine.db_url(name, engine.user(name, RIGHTS[service]))}
            for service, name in names.items()
        }

    def run_admin(self, release: Path, service: str, config: Path, *command: str) -> str:
        """What ``notary-admin`` of a release prints, run as one who may change tables."""
        environment = {f"NOTARY_{service.upper()}_STORAGE_DB_URL": self.admin[service], ALIAS: "correct horse"}
        done = subprocess.run(
            (release / "notary-admin", *command, "--config", config),
            env=clean_environment(environment),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def migrate(self, release: Path, directory: Path) -> None:
        """Make the tables of a release, before there is a daemon and its configuration."""
        alias = {"default_alias": "one"}
        configs = {
            "server": server_config(0, storage=self.storage["server"]),
            "signer": signer_config(Pair.mint(directory / "tables"), 0, self.storage["signer"] | alias),
        }
        for service, config in configs.items():
            path = directory / f"tables-{service}.json"
            path.write_text(json.dumps(config))
            self.run_admin(release, service, path, "migrate")


@pytest.fixture(params=["mariadb", "postgresql"])
def databases(request: pytest.FixtureRequest) -> Databases:
    return Databases(request.getfixturevalue(request.param))


class Releases:
    """Two servers and two signers, whose release changes, and clients that use them."""

    def __init__(self, cluster: Cluster, databases: Databases, directory: Path) -> None:
        self.cluster, self.databases, self.directory = cluster, databases, directory
        self.published: dict[str, dict[str, bytes]] = {}
        self._newcomers = itertools.count()

    def admin(self, release: Path, service: str, *command: str) -> str:
        return self.databases.run_admin(release, service, self.directory / f"{service}-1.json", *command)

    def machine(self, name: str, server: str) -> Machine:
        daemon = self.cluster.daemons[server]
        assert daemon.tls is not None
        return Machine(self.directory / name, daemon.url, daemon.tls.ca)

    def begin(self, gun: str, server: str) -> None:
        """A new collection, of which the signer holds two keys."""
        owner = self.machine(f"owner of {gun.replace('/', ' ')}", server)
        self.published[gun] = {}
        stored(owner, "init", gun)
        stored(owner, "publish", gun)
        stored(owner, "key", "rotate", gun, "snapshot", "--server-managed")

    def publish(self, server: str, name: str) -> None:
        """One more target of each collection, all through one server."""
        for gun, contents in self.published.items():
            owner = self.machine(f"owner of {gun.replace('/', ' ')}", server)
            contents[name] = f"{name} of {gun}".encode()
            (owner.directory / "content").write_bytes(contents[name])
            owner("add", gun, name, "content")
            stored(owner, "publish", gun)

    def read(self) -> None:
        """From each server, one who has seen nothing yet sees, and verifies, all that was published."""
        for server in ("server-1", "server-2"):
            newcomer = self.machine(f"newcomer-{next(self._newcomers)}", server)
            for gun, contents in self.published.items():
                assert newcomer.targets(gun) == {
                    name: (hashlib.sha256(content).hexdigest(), len(content), "targets")
                    for name, content in contents.items()
                }

    def replace(self, name: str, release: Path) -> None:
        """Restart a daemon with the program of another release, as docs/high-availability.md says."""
        server = name.startswith("server")
        check = "L7OK" if server else "L4OK"
        daemon = self.cluster.daemons[name]
        self.cluster.type(DRAIN, name)
        if server:
            self.cluster.await_stand(name, status="DRAIN", scur="0")
        daemon.stop()
        program, *rest = daemon.command
        daemon.command = (str(release / Path(program).name), *rest)
        daemon.start()
        self.cluster.await_stand(name, status="DRAIN", check_status=check)
        self.cluster.type(READY, name)
        self.cluster.await_stand(name, status="UP", check_status=check)

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """While a signer is stopped, so that servers call the other one."""
        self.cluster.daemons[name].stop()
        yield
        self.cluster.daemons[name].start()
        self.cluster.await_running(name)

    @contextmanager
    def readers(self) -> Iterator[Callable[[], None]]:
        """While readers read through the balancer; what is given waits until they have read a few times more."""
        done = threading.Event()
        threads = [threading.Thread(target=self.cluster.read_until, args=[done]) for _ in range(READERS)]
        for thread in threads:
            thread.start()

        def go_on() -> None:
            wanted = self.cluster.reads + STEP_READS
            until(lambda: self.cluster.reads >= wanted or bool(self.cluster.failures), "readers go on")
            assert self.cluster.failures == [], self.cluster.balancer.output()

        try:
            yield go_on
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert self.cluster.failures == [], self.cluster.balancer.output()


def stored(owner: Machine, *command: str) -> None:
    """Run a command that publishes, and again as long as it fails: a signer may be about to be found away."""
    until(lambda: owner.run(*command).returncode == 0, f"{command} succeeds")


def test_one_after_the_other_and_back(databases: Databases, tmp_path: Path) -> None:
    assert (OLDER / "notary-server").exists(), "this is run by `make test-upgrade`, which installs the other release"
    programs = {service: [str(OLDER / f"notary-{service}")] for service in RIGHTS}
    with ExitStack() as stack:
        databases.migrate(OLDER, tmp_path)
        cluster = stack.enter_context(behind_haproxy(databases.storage, tmp_path, **programs))
        releases = Releases(cluster, databases, tmp_path)
        releases.begin(GUN, "server-1")
        releases.publish("server-2", "v1")
        releases.read()
        go_on = stack.enter_context(releases.readers())
        go_on()

        # The tables first, while the older release serves; then one signer and one server.
        for service in RIGHTS:
            releases.admin(NEWER, service, "check-config")
            releases.admin(NEWER, service, "migrate")
        go_on()
        for name in ("signer-1", "server-1"):
            releases.replace(name, NEWER)
            go_on()

        # Each server with each signer: collections begun there, and all of them continued there.
        for stopped, server in itertools.product(("signer-2", "signer-1"), ("server-1", "server-2")):
            with releases.without(stopped):
                releases.begin(f"example.com/{server}/without-{stopped}", server)
                releases.publish(server, f"{server}-without-{stopped}")
                releases.read()
                go_on()

        # The rest, and all of the way back: servers, then signers.
        for name in ("signer-2", "server-2"):
            releases.replace(name, NEWER)
            go_on()
        releases.begin("example.com/newer", "server-2")
        releases.publish("server-1", "newer")
        releases.read()
        for name in ("server-1", "server-2", "signer-1", "signer-2"):
            releases.replace(name, OLDER)
            releases.publish("server-1", f"back-{name}")
            releases.read()
            go_on()
        releases.begin("example.com/older", "server-1")
        releases.publish("server-2", "older")
        releases.read()
        assert "0 errors" in releases.admin(NEWER, "server", "fsck")
        assert "0 do not open" in releases.admin(NEWER, "signer", "keys", "verify")
