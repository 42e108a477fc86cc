"""One MariaDB under Go's server and signer and ours, at the same time and in every mixture: nobody may notice.

Rules of this module: four servers, Go's and ours with Go's signer and with ours, share one database of metadata, their
two signers one of keys. All runs once on tables that we made and once on tables that the reference made. A client
that has done something goes on to the next server. The daemons have the rights of the operator's guide, but for
Go's signer, which needs UPDATE too. Go's server may die under publishers of its own time; then it is started afresh.
"""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from notary.storage.open import migrate_database
from notary.storage.sql.migrate import SERVER, SIGNER
from tests.storage import historic
from tests.support.databases import SERVER_RIGHTS, SIGNER_RIGHTS, MariaDB
from tests.support.goclient import Machine, live
from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, Daemon, daemon, remote_signer
from tests.support.sides import Side, make_collection
from tests.support.signer import GO_SIGNER, OUR_SIGNER, Pair, signer_daemon

ENVIRONMENT = {"NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple"}
PUBLISHERS = 3
ROUNDS = 4


@dataclass(frozen=True)
class Mixture:
    """All that runs on one database server; ``servers`` by name, "ours-go" is our server with Go's signer."""

    mariadb: MariaDB
    metadata: str
    keys: str
    servers: Mapping[str, Daemon]
    signers: Mapping[str, Daemon]

    def tables(self) -> list[Any]:
        """All columns and indexes."""
        return [
            self.mariadb.execute(database, query)
            for database in (self.metadata, self.keys)
            for query in (
                (
                    "SELECT table_name, column_name, column_type, is_nullable, column_default "
                    "FROM information_schema.columns WHERE table_schema = DATABASE() ORDER BY 1, 2"
                ),
                (
                    "SELECT table_name, index_name, seq_in_index, column_name "
                    "FROM information_schema.statistics WHERE table_schema = DATABASE() ORDER BY 1, 2, 3"
                ),
            )
        ]

    def still_alive(self) -> None:
        """None of ours has died."""
        for each in (*self.servers.values(), *self.signers.values()):
            assert each.alive or each.name.startswith("go-"), f"{each.name} has died:\n{each.output()[-4000:]}"


class Wanderer(Machine):
    """A user of the stock client whose every command goes to the next server."""

    def __init__(self, directory: Path, servers: Sequence[Daemon], ca: Path) -> None:
        super().__init__(directory, servers[0].url, ca)
        self._there = [(server, Machine(directory, server.url, ca)) for server in servers]
        self._turns = itertools.count()

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run the command on the next server; again, if that dies of it and is Go's."""
        server, machine = self._there[next(self._turns) % len(self._there)]
        while True:
            done = machine.run(*arguments, stdin=stdin)
            if done.returncode == 0 or not server.name.startswith("go-") or not server.ensure():
                return done


async def made_by_us(mariadb: MariaDB, metadata: str, keys: str) -> None:
    from twisted.internet import reactor

    for database, service in ((metadata, SERVER), (keys, SIGNER)):
        await migrate_database("mysql", mariadb.db_url(database), service, reactor)


async def made_by_the_reference(mariadb: MariaDB, metadata: str, keys: str) -> None:
    for database, states in ((metadata, historic.MYSQL_SERVER), (keys, historic.MYSQL_SIGNER)):
        for statement in (*itertools.chain(*states.values()), *historic.recorded(max(states))):
            mariadb.execute(database, statement)


@pytest.fixture(scope="module", params=[made_by_us, made_by_the_reference], ids=lambda maker: maker.__name__)
def mixture(
    request: pytest.FixtureRequest,
    mariadb: MariaDB,
    certificates: Certificates,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Mixture]:
    folder = tmp_path_factory.mktemp("drop-in")
    metadata, keys = mariadb.database(), mariadb.database()
    pytest_twisted.blockon(Deferred.fromCoroutine(request.param(mariadb, metadata, keys)))
    pair = Pair.mint(folder / "tls")
    ca, client = pair.authority.write(pair.folder, "root"), pair.client.write(pair.folder, "client")
    rights = {"go": SERVER_RIGHTS, "ours": SIGNER_RIGHTS}
    signers = {
        name: signer_daemon(
            f"{name}-signer",
            command,
            pair,
            folder,
            {
                "backend": "mysql",
                "db_url": mariadb.db_url(keys, mariadb.user(keys, rights[name])),
                "default_alias": "alias_one",
            },
            environment=ENVIRONMENT,
        )
        for name, command in (("go", GO_SIGNER), ("ours", OUR_SIGNER))
    }
    url = mariadb.db_url(metadata, mariadb.user(metadata, SERVER_RIGHTS))
    servers = {
        f"{name}-{signer}": daemon(
            f"{name}-{signer}",
            command,
            folder,
            tls=certificates,
            storage={"backend": "mysql", "db_url": url},
            extra=remote_signer(signers[signer].port, ca, client),
        )
        for name, command in (("ours", OUR_SERVER), ("go", GO_SERVER))
        for signer in ("go", "ours")
    }
    with ExitStack() as stack:
        for each in (*signers.values(), *servers.values()):
            stack.callback(each.kill)
            each.start()
        yield Mixture(mariadb, metadata, keys, servers, signers)


@pytest.fixture
def wanderer(mixture: Mixture, certificates: Certificates, tmp_path: Path):
    """Makes, or finds, a machine by its name; each begins at another server."""
    starts = itertools.count()

    @functools.cache
    def make(name: str) -> Wanderer:
        servers = list(mixture.servers.values())
        first = next(starts) % len(servers)
        return Wanderer(tmp_path / name, servers[first:] + servers[:first], certificates.ca)

    return make


def test_the_whole_life_of_a_collection(mixture: Mixture, wanderer) -> None:
    before = mixture.tables()
    live(wanderer, "example.com/life")
    mixture.still_alive()
    assert mixture.tables() == before


def test_several_publishers_at_once(mixture: Mixture, wanderer, certificates: Certificates, tmp_path: Path) -> None:
    """Each has a collection of its own; all servers show all of it in the end."""

    def publish(number: int) -> None:
        machine, gun = wanderer(f"publisher-{number}"), f"example.com/publisher/{number}"
        content = machine.directory / "content"
        machine("init", gun)
        machine("publish", gun)
        for turn in range(ROUNDS):
            content.write_text(f"{number} {turn}")
            machine("add", gun, f"v{turn}", "content")
            machine("publish", gun)
            if turn == 1:
                machine("key", "rotate", gun, "snapshot", "-r")
            if turn == 2:
                machine("key", "rotate", gun, "timestamp", "-r")

    machines = [wanderer(f"publisher-{number}") for number in range(PUBLISHERS)]  # in this thread, one after the other
    with ThreadPoolExecutor(PUBLISHERS) as pool:
        for done in [pool.submit(publish, number) for number in range(len(machines))]:
            done.result()
    mixture.still_alive()
    for name, server in mixture.servers.items():
        server.ensure()
        for number in range(PUBLISHERS):
            newcomer = Machine(tmp_path / f"newcomer-{name}", server.url, certificates.ca)
            assert set(newcomer.targets(f"example.com/publisher/{number}")) == {f"v{turn}" for turn in range(ROUNDS)}


def test_one_collection_with_two_publishers(mixture: Mixture, certificates: Certificates, tmp_path: Path) -> None:
    """Both hold all keys; one goes to Go's server, one to ours. Who was too late tries again, and nothing is lost."""
    gun = "example.com/shared"
    ours, go = mixture.servers["ours-go"], mixture.servers["go-ours"]
    first = Machine(tmp_path / "first", ours.url, certificates.ca)
    first("init", gun)
    first("publish", gun)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    second = Machine(tmp_path / "second", go.url, certificates.ca)

    def publish(machine: Machine, server: Daemon, name: str) -> int:
        (machine.directory / name).write_text(name)
        for turn in range(ROUNDS):
            machine("add", gun, f"{name}-{turn}", name)
            for attempt in itertools.count(1):
                done = machine.run("publish", gun)
                if done.returncode == 0:
                    break
                server.ensure()
                assert attempt < 20, done
        return ROUNDS

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(publish, first, ours, "first"), pool.submit(publish, second, go, "second")]
        for done in both:
            done.result()
    wanted = {f"{name}-{turn}" for name in ("first", "second") for turn in range(ROUNDS)}
    for name, server in mixture.servers.items():
        server.ensure()
        assert set(Machine(tmp_path / f"newcomer-{name}", server.url, certificates.ca).targets(gun)) == wanted
    mixture.still_alive()


@pytest_twisted.ensureDeferred
async def test_what_was_marked_as_deleted_is_invisible_to_all(reactor: Any, mixture: Mixture) -> None:
    ours, go = mixture.servers["ours-ours"], mixture.servers["go-go"]
    go.ensure()
    async with Side(ours, reactor) as here, Side(go, reactor) as there:
        collection = await make_collection(here)
        gun = collection.quoted
        assert (await there.get(f"/v2/{gun}/_trust/tuf/timestamp.json")).status == 200
        mixture.mariadb.execute(
            mixture.metadata, "UPDATE tuf_files SET deleted_at = NOW() WHERE gun = %s", collection.gun
        )
        for side in (here, there):
            for role in ("root", "timestamp"):
                assert (await side.get(f"/v2/{gun}/_trust/tuf/{role}.json")).status == 404
        again = await make_collection(here, gun=collection.gun)
        await again.verify()
        assert json.loads((await there.get(f"/v2/{gun}/_trust/tuf/targets.json")).body)["signed"]["version"] == 1


@pytest_twisted.ensureDeferred
async def test_both_tell_the_same_changes(reactor: Any, mixture: Mixture) -> None:
    for server in mixture.servers.values():
        server.ensure()
    async with Side(mixture.servers["ours-go"], reactor) as here, Side(mixture.servers["go-ours"], reactor) as there:
        for side in (here, there, here):
            await make_collection(side)
        ours, go = [json.loads((await side.get("/v2/_trust/changefeed?records=-3")).body) for side in (here, there)]
        assert ours["count"] == 3
        for mine, theirs in zip(ours["records"], go["records"], strict=True):
            assert {k: v for k, v in mine.items() if k != "CreatedAt"} == {
                k: v for k, v in theirs.items() if k != "CreatedAt"
            }
