"""The signer goes away while others publish and read, comes back, or could never be reached; all are real processes.

Rules of this module: our server and our signer, both on SQLite. Publishers and readers go on through the whole of an
outage, and every answer counts: a publish is taken or refused with a server's error within ten seconds, a read is
answered with 200. When the signer ends is counted in answers, not in seconds.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.support.author import Author, make_key
from tests.support.certs import Authority
from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, Daemon, daemon, remote_signer
from tests.support.sides import (
    BASE_ROLES,
    MULTIPART,
    Answer,
    Collection,
    Side,
    clone,
    form_of,
    make_collection,
)
from tests.support.signer import OUR_SIGNER, Pair, signer_daemon

SERVER_STORAGE = {"backend": "sqlite3", "db_url": "notary.db"}
SIGNER_STORAGE = {"backend": "sqlite3", "db_url": "keys.db", "default_alias": "alias_one"}
ENVIRONMENT = {"NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple"}
PUBLISHERS = 4
ANSWER_SECONDS = 10.0
"""Within this a publish must be answered, whatever has become of the signer."""
TICK_SECONDS = 0.05
PATIENCE_SECONDS = 60.0
"""What has not come to pass after so long never will."""
HEALTH = "/_notary_server/health"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair.mint(tmp_path_factory.mktemp("signer-tls"))


def start_pair(pair: Pair, directory: Path, stack: ExitStack) -> tuple[Daemon, Daemon]:
    """A signer and a server that uses it; ``stack`` ends them."""
    signer = signer_daemon("signer", OUR_SIGNER, pair, directory, SIGNER_STORAGE, environment=ENVIRONMENT)
    ca, client = pair.authority.write(pair.folder, "root"), pair.client.write(pair.folder, "client")
    server = daemon(
        "server", OUR_SERVER, directory, storage=SERVER_STORAGE, extra=remote_signer(signer.port, ca, client)
    )
    for each in (signer, server):
        stack.callback(each.kill)
        each.start()
    return signer, server


# -- traffic ----------------------------------------------------------------------------------------------------------


class Traffic:
    """Publishers, one a collection, and readers; what one of them finds wrong ends all and fails the test."""

    def __init__(self, side: Side, collections: list[Collection]) -> None:
        self.side = side
        self.collections = collections
        self.statuses: Counter[int] = Counter()
        self.reads = 0
        self._taken: Counter[str] = Counter()
        self._over = False
        self._workers: list[Deferred[None]] = []

    async def __aenter__(self) -> Self:
        self._workers = [
            Deferred.fromCoroutine(self._guarded(work(one)))
            for one in self.collections
            for work in (self._publish, self._read)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await gatherResults(self._workers, consumeErrors=True)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            self._over = True

    async def _publish(self, collection: Collection) -> None:
        """Publish again and again, as one who knows nothing of the outage."""
        clock = self.side.reactor
        for number in itertools.count():
            if self._over:
                return
            author = clone(collection.author)
            author.add("file", b"content" * number)
            files = collection.make(author, "targets", "targets/releases")
            begun = clock.seconds()
            answer = await self.side.request("POST", collection.path(), form_of(files), {"Content-Type": MULTIPART})
            took = clock.seconds() - begun
            assert took < ANSWER_SECONDS, f"answered after {took} s: {answer}"
            assert answer.brief in {"200", "500 UPDATING"}, answer
            self.statuses[answer.status] += 1
            if answer.status == 200:
                collection.took(files, author)
                self._taken[collection.gun] += 1

    async def _read(self, collection: Collection) -> None:
        """Read all there is, again and again."""
        names = [f"{role}.json" for role in (*BASE_ROLES, "targets/releases")] + ["1.root.json", "1.targets.json"]
        while not self._over:
            for name in names:
                answer = await self.side.get(collection.path(name))
                assert answer.status == 200, f"{name}: {answer}"
                self.reads += 1
            await deferLater(self.side.reactor, TICK_SECONDS)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so, while publishers and readers go on."""
        ends = self.side.reactor.seconds() + PATIENCE_SECONDS
        while not condition():
            assert not self._over, "a publisher or a reader has ended"
            assert self.side.reactor.seconds() < ends, f"it never came to that: {self.statuses}"
            await deferLater(self.side.reactor, TICK_SECONDS)

    async def answered(self, status: int, count: int) -> None:
        """Wait until ``count`` more publishes have got this answer."""
        wanted = self.statuses[status] + count
        await self.until(lambda: self.statuses[status] >= wanted)

    async def everybody_publishes(self) -> None:
        """Wait until each publisher has had a publish taken that began after this call."""
        wanted = {one.gun: self._taken[one.gun] + 2 for one in self.collections}
        await self.until(lambda: all(self._taken[gun] >= count for gun, count in wanted.items()))


async def check_everything(side: Side, collections: list[Collection]) -> None:
    """All roles can be read, fit together and are those of the last publish that was taken; another one is taken."""
    for collection in collections:
        collection.side = side
        await collection.verify()
        beyond = json.loads(collection.author.stored["targets"])["signed"]["version"] + 1
        assert (await side.get(collection.path(f"{beyond}.targets.json"))).status == 404
        answer = await collection.publish()
        assert answer.status == 200, answer
        await collection.verify()


# -- outages ----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_signer_that_is_killed_and_comes_back(reactor: Any, pair: Pair, tmp_path: Path) -> None:
    with ExitStack() as stack:
        signer, server = start_pair(pair, tmp_path, stack)
        async with Side(server, reactor) as side:
            collections = [await make_collection(side, server_snapshot=one % 2 == 0) for one in range(PUBLISHERS)]
            quiet = await make_collection(side, server_snapshot=True)
            health = await side.get(HEALTH)
            assert (health.status, health.body) == (200, b"{}")
            async with Traffic(side, collections) as traffic:
                await traffic.answered(200, 2 * PUBLISHERS)
                signer.kill()
                await traffic.answered(500, PUBLISHERS)
                while (health := await side.get(HEALTH)).status == 200:
                    await traffic.answered(500, 1)
                assert health.status == 503
                assert list(json.loads(health.body)) == ["Trust operational"]
                assert "UNAVAILABLE" in json.loads(health.body)["Trust operational"]
                signer.start()
                await traffic.everybody_publishes()
            assert traffic.reads > 0
            await check_everything(side, [*collections, quiet])

        for each in (server, signer):
            assert each.stop() == -signal.SIGTERM, each.output()
        for each in (server, signer):  # in the order in which the server finds no signer at first
            each.start()
        async with Side(server, reactor) as side:
            await check_everything(side, [*collections, quiet])
            newcomer = await make_collection(side, server_snapshot=True)
            await newcomer.verify()


@pytest_twisted.ensureDeferred
async def test_a_signer_that_is_stopped_and_started_again_is_not_missed(
    reactor: Any, pair: Pair, tmp_path: Path
) -> None:
    """It finishes what it was asked, and what it has not begun waits for its successor: no publish fails."""
    with ExitStack() as stack:
        signer, server = start_pair(pair, tmp_path, stack)
        async with Side(server, reactor) as side:
            collections = [await make_collection(side, server_snapshot=one % 2 == 0) for one in range(PUBLISHERS)]
            async with Traffic(side, collections) as traffic:
                for _ in range(3):
                    await traffic.everybody_publishes()
                    assert await deferToThread(signer.stop) == -signal.SIGTERM, signer.output()
                    signer.start()
                await traffic.everybody_publishes()
            assert traffic.statuses.keys() == {200}, traffic.statuses
            await check_everything(side, collections)
    assert "error" not in {json.loads(line)["level"] for line in signer.output().splitlines()}


# -- a signer that cannot be reached, or does not want this server ----------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of a wrong configuration: the answers to a publish, for a key, to a read and of the health page."""

    publish: Answer
    key: Answer
    read: Answer
    health: Answer
    server: Daemon
    signer: Daemon | None


@dataclass(frozen=True)
class Case:
    """One wrong configuration.

    ``section`` makes the server's; the server's log must hold ``server_says`` and, where ``signer`` names one, that
    signer's log ``signer_says`` (regular expressions).
    """

    section: Callable[[World], Mapping[str, Any]]
    server_says: str
    signer: str = ""
    signer_says: str = ""


class World:
    """What a server may be sent to by mistake, all at work; and certificates, good and bad."""

    def __init__(self, pair: Pair, certificates: Certificates, directory: Path, stack: ExitStack) -> None:
        self.ca = pair.authority.write(pair.folder, "root")
        self.other_ca = Authority.root("another root").write(pair.folder, "other-root")
        self.client = pair.client.write(pair.folder, "client")
        self.expired = pair.intermediate.leaf("notary-server", ends=-timedelta(hours=1)).write(pair.folder, "expired")
        self.stranger = Authority.root("another root").leaf("notary-server").write(pair.folder, "stranger")
        self.certificates = certificates
        for name, leaf in (
            ("elsewhere", pair.intermediate.leaf("elsewhere.example")),
            ("too-late", pair.intermediate.leaf("localhost", ends=-timedelta(hours=1))),
        ):
            leaf.write(pair.folder, name)
        changes: dict[str, dict[str, Any]] = {
            "signer": {},
            "picky": {"client_names": ["somebody-else"]},
            **{
                name: {
                    "tls_cert_file": str(pair.folder / f"{name}.crt"),
                    "tls_key_file": str(pair.folder / f"{name}.key"),
                }
                for name in ("elsewhere", "too-late")
            },
        }
        self.daemons = {
            name: signer_daemon(name, OUR_SIGNER, pair, directory, {"backend": "memory"}, level="warning", **more)
            for name, more in changes.items()
        }
        self.daemons["plain"] = daemon("plain", GO_SERVER, directory)
        self.daemons["https"] = daemon("https", GO_SERVER, directory, tls=certificates)
        self.daemons["our-https"] = daemon("our-https", OUR_SERVER, directory, tls=certificates)
        self.silent = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as closed:
            self.closed = closed.getsockname()[1]

    def section(self, to: str | int, **changes: Any) -> Mapping[str, Any]:
        """The server's, right but for ``changes``."""
        port = to if isinstance(to, int) else self.daemons[to].port
        return remote_signer(port, **{"ca": self.ca, "client": self.client} | changes)


CASES = {
    "another CA": Case(
        lambda world: world.section("signer", ca=world.other_ca),
        r"certificate verify failed",
        "signer",
        r"alert unknown ca",
    ),
    "no client certificate": Case(
        lambda world: world.section("signer", client=None),
        r"certificate required",
        "signer",
        r"peer did not return a certificate",
    ),
    "expired client certificate": Case(
        lambda world: world.section("signer", client=world.expired),
        r"alert certificate expired",
        "signer",
        r"certificate",
    ),
    "client certificate of another CA": Case(
        lambda world: world.section("signer", client=world.stranger),
        r"alert unknown ca",
        "signer",
        r"certificate",
    ),
    "client that is not on the list": Case(
        lambda world: world.section("picky"),
        r"PERMISSION_DENIED: the signer does not serve this client",
        "picky",
        r"client_names has none of the names in its certificate: notary-server",
    ),
    "signer of another name": Case(
        lambda world: world.section("elsewhere"), r"the certificate is for another name", "elsewhere", r"certificate"
    ),
    "expired signer certificate": Case(
        lambda world: world.section("too-late"), r"certificate verify failed", "too-late", r"alert certificate expired"
    ),
    "plaintext port": Case(lambda world: world.section("plain", ca=world.certificates.ca), r"wrong version number"),
    "wrong ALPN": Case(lambda world: world.section("https", ca=world.certificates.ca), r"no application protocol"),
    "wrong ALPN, ours": Case(
        lambda world: world.section("our-https", ca=world.certificates.ca), r"no application protocol|not h2"
    ),
    "closed port": Case(lambda world: world.section(world.closed), r"[Cc]onnection (was )?refused"),
    "silent port": Case(lambda world: world.section(world.silent), r"no connection to localhost"),
}


async def misfortune(case: Case, world: World, server: Daemon, reactor: Any) -> Outcome:
    """Try everything with a server whose configuration is wrong."""
    async with Side(server, reactor) as side:
        author = Author("example.com/app", timestamp=make_key("ed25519"))
        path = "/v2/example.com/app/_trust/tuf/"
        begun = reactor.seconds()
        publish, key, read = await gatherResults(
            [
                Deferred.fromCoroutine(one)
                for one in (
                    side.request("POST", path, form_of(author.first()), {"Content-Type": MULTIPART}),
                    side.get(f"{path}timestamp.key"),
                    side.get("/v2/_trust/changefeed?records=10"),
                )
            ]
        )
        took = reactor.seconds() - begun
        assert took < ANSWER_SECONDS, f"answered after {took} s: {publish}"
        while (health := await side.get(HEALTH)).status == 200 and reactor.seconds() < begun + PATIENCE_SECONDS:
            await deferLater(reactor, TICK_SECONDS)
    return Outcome(publish, key, read, health, server, world.daemons.get(case.signer))


@pytest_twisted.async_yield_fixture(scope="module")
async def outcomes(
    reactor: Any, pair: Pair, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Mapping[str, Outcome]]:
    """Of all wrong configurations, tried at the same time: most of it is waiting."""
    directory = tmp_path_factory.mktemp("wrong")
    with ExitStack() as stack:
        world = World(pair, certificates, directory, stack)
        servers = {
            name: daemon(
                f"server {name}", OUR_SERVER, directory, storage={"backend": "memory"}, extra=case.section(world)
            )
            for name, case in CASES.items()
        }
        everything = [*world.daemons.values(), *servers.values()]
        for each in everything:
            stack.callback(each.kill)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(Daemon.start, everything))
        tried = [
            Deferred.fromCoroutine(misfortune(case, world, servers[name], reactor)) for name, case in CASES.items()
        ]
        yield dict(zip(CASES, await gatherResults(tried, consumeErrors=True), strict=True))


def lines_that_say(daemon: Daemon, what: str) -> list[str]:
    return [said for line in daemon.output().splitlines() if re.search(what, said := json.loads(line)["msg"])]


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_configuration_is_told_and_hangs_nothing(outcomes: Mapping[str, Outcome], name: str) -> None:
    case, outcome = CASES[name], outcomes[name]
    assert outcome.publish.brief == "500 UPDATING"
    assert outcome.key.brief == "500 UNKNOWN"
    assert outcome.read.brief == "200 changes"
    assert outcome.health.status == 503, outcome.health
    failures = json.loads(outcome.health.body)
    assert list(failures) == ["Trust operational"]
    assert re.search(case.server_says, failures["Trust operational"]), failures
    told = lines_that_say(outcome.server, case.server_says)
    assert any(line.startswith("health check failed: Trust operational: the signer at localhost:") for line in told)
    assert any(line.startswith("UPDATING: the signer at localhost:") for line in told), outcome.server.output()
    if outcome.signer is not None:
        assert lines_that_say(outcome.signer, case.signer_says), outcome.signer.output()
    assert "traceback" not in outcome.server.output().lower()
    assert outcome.server.stop() == -signal.SIGTERM, outcome.server.output()
