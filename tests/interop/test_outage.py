"""The database dies under publishing load, as by ``kill -9``, and comes back: nothing acknowledged is lost.

Rules of this module: the database has durable settings and a server of its own; server and signer both live on it, and
nobody touches them. The moment of the kill is counted in answers, not in seconds. What was answered with 200 must be in
the tables; a publish without an answer may be there or not, but whole.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from notary.storage.open import migrate_database
from notary.storage.sql.migrate import SERVER, SIGNER
from tests.support.databases import SERVER_RIGHTS, SIGNER_RIGHTS, DatabaseServer, MariaDB, PostgreSQL
from tests.support.newcomer import verify_collection
from tests.support.peers import OUR_SERVER, Certificates, Daemon, daemon, remote_signer
from tests.support.sides import MULTIPART, Collection, Side, clone, form_of, make_collection
from tests.support.signer import OUR_SIGNER, Pair, signer_daemon

PUBLISHERS = 4
BACK_SECONDS = 60.0
"""How long to wait for what must come back; it takes a second or two."""
AGAIN_SECONDS = 0.05
ENVIRONMENT = {"NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple"}


@dataclass
class Service:
    """A server and a signer, and the database server under both."""

    database: DatabaseServer
    metadata: str
    server: Daemon
    signer: Daemon

    def still_alive(self) -> None:
        for each in (self.server, self.signer):
            assert each.alive, f"{each.name} has died:\n{each.output()[-4000:]}"

    def stored(self, gun: str) -> list[str]:
        """The checksums of the targets that the tables hold, oldest first."""
        rows = self.database.execute(
            self.metadata, "SELECT sha256 FROM tuf_files WHERE gun = %s AND role = 'targets' ORDER BY version", gun
        )
        return [sha256 for (sha256,) in rows]


@pytest.fixture(params=[MariaDB, PostgreSQL], ids=lambda kind: kind.backend)
def service(request: pytest.FixtureRequest, certificates: Certificates, tmp_path: Path) -> Iterator[Service]:
    from twisted.internet import reactor

    pair = Pair.mint(tmp_path / "tls")
    ca, client = pair.authority.write(pair.folder, "root"), pair.client.write(pair.folder, "client")
    with request.param(fast=False) as database, ExitStack() as stack:
        metadata, keys = database.database(), database.database()
        for name, kind in ((metadata, SERVER), (keys, SIGNER)):
            migrated = migrate_database(database.backend, database.db_url(name), kind, reactor)
            pytest_twisted.blockon(Deferred.fromCoroutine(migrated))
        signer = signer_daemon(
            "signer",
            OUR_SIGNER,
            pair,
            tmp_path,
            {
                "backend": database.backend,
                "db_url": database.db_url(keys, database.user(keys, SIGNER_RIGHTS)),
                "default_alias": "alias_one",
            },
            environment=ENVIRONMENT,
        )
        server = daemon(
            "server",
            OUR_SERVER,
            tmp_path,
            tls=certificates,
            storage={
                "backend": database.backend,
                "db_url": database.db_url(metadata, database.user(metadata, SERVER_RIGHTS)),
            },
            extra=remote_signer(signer.port, ca, client),
        )
        for each in (signer, server):
            stack.callback(each.kill)
            each.start()
        yield Service(database, metadata, server, signer)


@dataclass
class Publisher:
    """Publishes version after version; knows what was acknowledged, and picks up what the server has when unsure."""

    collection: Collection
    acknowledged: list[str] = field(default_factory=list)
    unsure: bool = False

    async def once(self) -> bool:
        """One more version; whether the server has taken it."""
        if self.unsure and not await self._look():
            return False
        author = clone(self.collection.author)
        author.add("file", b"content" * len(self.acknowledged))
        files = self.collection.make(author, "targets")
        answer = await self.collection.side.request(
            "POST", self.collection.path(), form_of(files), {"Content-Type": MULTIPART}
        )
        if answer.status != 200:
            # A refusal would be a fault: this collection has no other publisher.
            assert answer.status >= 500, f"{answer}"
            self.unsure = True
            return False
        self.collection.took(files, author)
        self.acknowledged.append(hashlib.sha256(author.stored["targets"]).hexdigest())
        return True

    async def _look(self) -> bool:
        """Go on from what the server has: what was not answered is there as a whole, or not at all."""
        answers = {
            role: await self.collection.side.get(self.collection.path(f"{role}.json"))
            for role in self.collection.author.stored
        }
        if any(answer.status != 200 for answer in answers.values()):
            return False
        served = {role: answer.body for role, answer in answers.items()}
        versions = {role: int(json.loads(data)["signed"]["version"]) for role, data in served.items()}
        before = int(json.loads(self.collection.author.stored["targets"])["signed"]["version"])
        assert before <= versions["targets"] <= before + 1
        self.collection.author.stored |= served
        self.collection.author.versions |= versions
        self.unsure = False
        return True


@pytest.mark.parametrize("answers", [3, 25])
@pytest_twisted.ensureDeferred
async def test_killed_under_load(reactor: Any, service: Service, answers: int) -> None:
    counter = itertools.count(1)
    killed: Deferred[None] = Deferred()
    back = False

    async def publish(publisher: Publisher) -> None:
        """Until the database has died and come back, and has taken something more."""
        while True:
            if not await publisher.once():
                await deferLater(reactor, AGAIN_SECONDS)
            elif back:
                return
            elif next(counter) == answers:
                killed.callback(None)

    async def healthy(side: Side) -> None:
        """Wait until the health page says so: a check runs every two seconds."""
        while True:
            health = await side.get("/_notary_server/health")
            if (health.status, health.body) == (200, b"{}"):
                return
            await deferLater(reactor, AGAIN_SECONDS)

    async def fate() -> None:
        nonlocal back
        await killed
        await deferToThread(service.database.kill)
        await deferToThread(service.database.start)
        back = True

    async with Side(service.server, reactor) as side:
        publishers = [Publisher(await make_collection(side, server_snapshot=one % 2 == 0)) for one in range(PUBLISHERS)]
        everything = [fate(), *map(publish, publishers)]
        done = gatherResults([Deferred.fromCoroutine(each) for each in everything], consumeErrors=True)
        await done.addTimeout(BACK_SECONDS, reactor)
        service.still_alive()
        for publisher in publishers:
            stored = service.stored(publisher.collection.gun)
            assert set(publisher.acknowledged) <= set(stored)
            assert len(stored) <= len(publisher.acknowledged) + 2  # the first version, and one without an answer
            verify_collection(await publisher.collection.current())
        await Deferred.fromCoroutine(healthy(side)).addTimeout(BACK_SECONDS, reactor)


@pytest_twisted.ensureDeferred
async def test_gone_and_back_while_nobody_publishes(reactor: Any, service: Service) -> None:
    """Connections that have died in the pool are nobody's trouble; while it is away, health says so."""
    async with Side(service.server, reactor) as side:
        publisher = Publisher(await make_collection(side, server_snapshot=True))
        assert await publisher.once()
        await deferToThread(service.database.restart)
        assert await publisher.once()
        await deferToThread(service.database.kill)
        assert (await side.get(publisher.collection.path("timestamp.json"))).status == 500
        service.still_alive()
        await deferToThread(service.database.start)
        assert await publisher.once()
        verify_collection(await publisher.collection.current())
