"""The signer goes away while others publish and read, comes back, or could never be reached; all are real processes.

Rules of this module: our server and our signer, both on SQLite. Publishers and readers go on through the whole of an
outage, and every answer counts: a publish is taken or refused with a server's error within ten seconds, a read is
answered with 200. When the signer ends is counted in answers, not in seconds.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from notary.proto import signer_pb2
from tests.support.author import Author, make_key
from tests.support.certs import Authority
from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, Daemon, daemon, remote_signer
from tests.support.sides import (
    MULTIPART,
    Answer,
    Collection,
    Side,
    form_of,
    make_collection,
)
from tests.support.signer import CALL_SECONDS, OUR_SIGNER, Client, Pair, signer_daemon
from tests.support.traffic import ANSWER_SECONDS, PATIENCE_SECONDS, TICK_SECONDS, Traffic

SERVER_STORAGE = {"backend": "sqlite3", "db_url": "notary.db"}
SIGNER_STORAGE = {"backend": "sqlite3", "db_url": "keys.db", "default_alias": "alias_one"}
ENVIRONMENT = {"NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple"}
PUBLISHERS = 4
CROWD = 200
HEALTH = "/_notary_server/health"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair.mint(tmp_path_factory.mktemp("signer-tls"))


@pytest.fixture(scope="module")
def daemons(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    directory = tmp_path_factory.mktemp("outage")
    signer = signer_daemon("signer", OUR_SIGNER, pair, directory, SIGNER_STORAGE, environment=ENVIRONMENT)
    ca, client = pair.authority.write(pair.folder, "root"), pair.client.write(pair.folder, "client")
    extra = remote_signer(signer.port, ca, client)
    with signer, daemon("server", OUR_SERVER, directory, storage=SERVER_STORAGE, extra=extra) as server:
        yield signer, server


@pytest.fixture
def signer(daemons: tuple[Daemon, Daemon]) -> Daemon:
    """A signer at work, even if a test before has stopped it."""
    daemons[0].ensure()
    return daemons[0]


@pytest.fixture
def server(daemons: tuple[Daemon, Daemon], signer: Daemon) -> Daemon:
    """A server that uses that signer, and that no test may end otherwise than by restarting it."""
    assert daemons[1].alive, daemons[1].output()
    return daemons[1]


async def unhealthy(side: Side) -> Answer:
    """The health page once it no longer says that all is well."""
    ends = side.reactor.seconds() + PATIENCE_SECONDS
    while (answer := await side.get(HEALTH)).status == 200:
        assert side.reactor.seconds() < ends, "the server has not noticed"
        await deferLater(side.reactor, TICK_SECONDS)
    return answer


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
async def test_a_signer_that_is_killed_and_comes_back(reactor: Any, signer: Daemon, server: Daemon) -> None:
    async with Side(server, reactor) as side:
        collections = [await make_collection(side, server_snapshot=one % 2 == 0) for one in range(PUBLISHERS)]
        quiet = await make_collection(side, server_snapshot=True)
        health = await side.get(HEALTH)
        assert (health.status, health.body) == (200, b"{}")
        async with Traffic(side, collections) as traffic:
            await traffic.answered(200, 2 * PUBLISHERS)
            signer.kill()
            await traffic.answered(500, PUBLISHERS)
            health = await unhealthy(side)
            assert health.status == 503
            failures = json.loads(health.body)
            assert list(failures) == ["Trust operational"]
            assert failures["Trust operational"].startswith(f"the signer at localhost:{signer.port}: UNAVAILABLE: ")
            signer.start()
            await traffic.everybody_publishes()
        assert traffic.reads > 0
        await check_everything(side, [*collections, quiet])

    for each in (server, signer):
        assert each.stop() == -signal.SIGTERM, each.output()
    for each in (server, signer):  # the server finds no signer at first
        each.start()
    async with Side(server, reactor) as side:
        await check_everything(side, [*collections, quiet])
        newcomer = await make_collection(side, server_snapshot=True)
        await newcomer.verify()


@pytest_twisted.ensureDeferred
async def test_a_signer_that_is_stopped_and_started_again_is_not_missed(
    reactor: Any, signer: Daemon, server: Daemon
) -> None:
    """It finishes what it was asked, and what it has not begun waits for its successor: no publish fails."""
    before = len(signer.output())
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
    assert "error" not in {json.loads(line)["level"] for line in signer.output()[before:].splitlines()}


def test_a_signer_that_is_stopped_finishes_what_it_was_asked(pair: Pair, signer: Daemon) -> None:
    """Stopped while it unwraps many keys, as after a start. What it has not begun is for its successor."""
    with Client(pair, signer.port) as client:
        ids = [client.create("example.com/crowd", f"targets/{one}", "ecdsa").keyInfo.keyID.ID for one in range(CROWD)]
    signer.stop()
    signer.start()
    with Client(pair, signer.port) as client:
        sign = client._channel.unary_unary("/proto.Signer/Sign", response_deserializer=signer_pb2.Signature.FromString)
        requests = [signer_pb2.SignatureRequest(keyID=signer_pb2.KeyID(ID=one), content=b"content") for one in ids]
        calls = [sign.future(one.SerializeToString(), timeout=CALL_SECONDS, wait_for_ready=True) for one in requests]
        calls[0].add_done_callback(lambda _: signer.signal(signal.SIGTERM))
        assert signer.wait() == -signal.SIGTERM, signer.output()
        signer.start()
        assert [call.result().keyInfo.keyID.ID for call in calls] == ids


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
    """What a server may be sent to by mistake, by name: our signers, and Go servers; and certificates, good and bad."""

    def __init__(self, pair: Pair, certificates: Certificates, directory: Path) -> None:
        self.ca = pair.authority.write(pair.folder, "root")
        self.other_ca = Authority.root("another root").write(pair.folder, "other-root")
        self.https_ca = certificates.ca
        self.client = pair.client.write(pair.folder, "client")
        self.expired = pair.intermediate.leaf("notary-server", ends=-timedelta(hours=1)).write(pair.folder, "expired")
        certificate, key = pair.intermediate.leaf("elsewhere.example").write(pair.folder, "elsewhere")
        signers: Mapping[str, Mapping[str, Any]] = {
            "signer": {},
            "picky": {"client_names": ["somebody-else"]},
            "elsewhere": {"tls_cert_file": str(certificate), "tls_key_file": str(key)},
        }
        self.daemons = {
            name: signer_daemon(name, OUR_SIGNER, pair, directory, {"backend": "memory"}, level="error", **changes)
            for name, changes in signers.items()
        }
        self.daemons["http"] = daemon("http", GO_SERVER, directory)
        self.daemons["https"] = daemon("https", GO_SERVER, directory, tls=certificates)

    def section(self, name: str, **changes: Any) -> Mapping[str, Any]:
        """The server's, right but for ``changes``."""
        return remote_signer(self.daemons[name].port, **{"ca": self.ca, "client": self.client} | changes)


CASES = {
    "another CA": Case(
        lambda world: world.section("signer", ca=world.other_ca),
        "issued by .* leads to no certificate in trust_service.tls_ca_file; add ",
        "signer",
        r"the peer does not trust the issuer of our certificate \(CN=.*alert unknown ca",
    ),
    "no client certificate": Case(
        lambda world: world.section("signer", client=None),
        "the peer demands a certificate and was shown none.*alert certificate required",
        "signer",
        "the peer showed no certificate, which server.client_ca_file demands",
    ),
    "expired client certificate": Case(
        lambda world: world.section("signer", client=world.expired),
        r"the peer says that our certificate \(CN=notary-server.* has expired",
        "signer",
        r"the peer's certificate \(CN=notary-server, .* expired at 20",
    ),
    "client that is not on the list": Case(
        lambda world: world.section("picky"),
        "PERMISSION_DENIED: the signer does not serve this client; its log says why",
        "picky",
        "server.client_names has none of the names in its certificate: notary-server",
    ),
    "signer of another name": Case(
        lambda world: world.section("elsewhere"),
        r"\(CN=elsewhere.example\) is for elsewhere.example and not for localhost",
        "elsewhere",
        "a name which our certificate .*elsewhere.example.* lacks",
    ),
    "plaintext port": Case(lambda world: world.section("http", ca=world.https_ca), "the peer does not speak TLS"),
    "wrong ALPN": Case(lambda world: world.section("https", ca=world.https_ca), "ALPN.* and not h2"),
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
        health = await unhealthy(side)
    return Outcome(publish, key, read, health, server, world.daemons.get(case.signer))


@pytest_twisted.async_yield_fixture(scope="module")
async def outcomes(
    reactor: Any, pair: Pair, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Mapping[str, Outcome]]:
    """Of all wrong configurations, tried at the same time: most of it is waiting."""
    directory = tmp_path_factory.mktemp("wrong")
    with ExitStack() as stack:
        world = World(pair, certificates, directory)
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
    denied = "PERMISSION_DENIED" in case.server_says
    assert outcome.key.brief == ("500 UNKNOWN" if denied else "503 UNAVAILABLE")
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
