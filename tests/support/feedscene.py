"""Two of our servers and a Go server on one database, publishers that use all three, and a consumer of the changefeed.

Rules of this module: the consumer pages forward by the last id, asking our servers in turn. A publish that fails,
because its server was killed, ends the collection: its publisher begins another one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ConnectError
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.support.databases import DatabaseServer
from tests.support.migrated import migrated_database
from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, Daemon, daemon, remote_signer
from tests.support.sides import MULTIPART, Side, clone, form_of, make_collection
from tests.support.signer import OUR_SIGNER, Pair, signer_daemon

PASSPHRASE = {"NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple"}


@dataclass
class Scene:
    """``ours`` and ``go`` are the servers; ``seen`` the ids that the consumer was given, in order."""

    database: DatabaseServer
    name: str
    ours: list[Daemon]
    go: Daemon
    seen: list[int] = field(default_factory=list)
    acknowledged: int = 0
    failed: int = 0
    kills: int = 0
    done: bool = False

    async def publish(self, reactor: Any, number: int, total: int) -> None:
        """Publish until there are ``total`` acknowledged publishes of all publishers."""
        servers = itertools.cycle([*self.ours, self.go] if number % 2 else self.ours)
        while self.acknowledged < total:
            sides = [Side(next(servers), reactor) for _ in range(3)]
            try:
                collection = await make_collection(sides[0])
                for turn in itertools.count(1):
                    if self.acknowledged >= total:
                        break
                    collection.side = sides[turn % 3]
                    author = clone(collection.author)
                    author.add("file", b"content %d" % turn)
                    files = collection.make(author, "targets")
                    headers = {"Content-Type": MULTIPART}
                    answer = await collection.side.request("POST", collection.path(), form_of(files), headers)
                    if answer.status != 200:
                        self.failed += 1
                        break
                    collection.took(files, author)
                    self.acknowledged += 1
            except (AssertionError, ConnectError):  # nobody answers where there was a server
                self.failed += 1
                if not self.go.alive:
                    await deferToThread(self.go.ensure)
                await deferLater(reactor, 0.1)
            finally:
                for side in sides:
                    await side.pool.closeCachedConnections()

    async def consume(self, reactor: Any, pause_seconds: float) -> None:
        """Take what the feed holds, again and again, until the publishers have ended."""
        sides = itertools.cycle([Side(server, reactor) for server in self.ours])
        while not self.done:
            await self.take(next(sides))
            await deferLater(reactor, pause_seconds)
        for side in (next(sides) for _ in self.ours):
            await side.pool.closeCachedConnections()

    async def take(self, side: Side) -> int:
        """Take the next page; the number of its records."""
        start = self.seen[-1] if self.seen else 0
        try:
            answer = await side.get(f"/v2/_trust/changefeed?records=500&change_id={start}")
        except ConnectError:
            return 0
        if answer.status != 200:
            return 0
        found = [int(record["ID"]) for record in json.loads(answer.body)["records"]]
        self.seen += found
        return len(found)

    async def kill(self, reactor: Any, every_seconds: float) -> None:
        """Kill one of our servers after the other, as ``kill -9`` does, and start it again."""
        for server in itertools.cycle(self.ours):
            await deferLater(reactor, every_seconds)
            if self.done:
                return
            server.kill()
            self.kills += 1
            await deferToThread(server.start)

    async def run(
        self, reactor: Any, *, publishers: int, total: int, pause_seconds: float, kill_seconds: float
    ) -> None:
        """Publish ``total`` times, then compare what the consumer has seen with what the database holds."""
        others = [Deferred.fromCoroutine(self.consume(reactor, pause_seconds))]
        if kill_seconds:
            others.append(Deferred.fromCoroutine(self.kill(reactor, kill_seconds)))
        try:
            await gatherResults(
                [Deferred.fromCoroutine(self.publish(reactor, number, total)) for number in range(publishers)]
            )
        finally:
            self.done = True
            await gatherResults(others)
        earlier = {"mysql": "INTERVAL 1 HOUR", "postgres": "INTERVAL '1 hour'"}[self.database.backend]
        self.database.execute(self.name, f"UPDATE changefeed SET created_at = created_at - {earlier}")
        async with Side(self.ours[0], reactor) as side:
            while await self.take(side):
                pass
        written = [id_ for (id_,) in self.database.execute(self.name, "SELECT id FROM changefeed ORDER BY id")]
        assert len(written) >= self.acknowledged >= total
        assert sorted(set(written) - set(self.seen)) == []
        assert self.seen == written


@contextmanager
def scene(database: DatabaseServer, certificates: Certificates, folder: Path) -> Iterator[Scene]:
    """All of it, started."""
    name, url = migrated_database(database, "server")
    pair = Pair.mint(folder / "tls")
    ca, client = pair.authority.write(pair.folder, "root"), pair.client.write(pair.folder, "client")
    storage = {"backend": "sqlite3", "db_url": "keys.db", "default_alias": "alias_one"}
    signer = signer_daemon("signer", OUR_SIGNER, pair, folder, storage, environment=PASSPHRASE)
    servers = [
        daemon(
            called,
            command,
            folder,
            tls=certificates,
            storage={"backend": database.backend, "db_url": url},
            extra=remote_signer(signer.port, ca, client),
        )
        for called, command in (("ours-1", OUR_SERVER), ("ours-2", OUR_SERVER), ("go", GO_SERVER))
    ]
    with ExitStack() as stack:
        for each in (signer, *servers):
            stack.callback(each.kill)
            each.start()
        yield Scene(database, name, servers[:2], servers[2])
