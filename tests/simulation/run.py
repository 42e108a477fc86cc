"""One simulation: from a seed to a verdict.

Rules of this module: the seed decides the plan (who acts, how often, how fast), and the plan can be made smaller
without another change (``without``), so that a failing seed can be shrunk. After the actors have ended, everything is
healed; then the cluster must work, and hold nothing.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, FirstError
from twisted.logger import globalLogBeginner
from twisted.python.failure import Failure

from notary.server import repository
from notary.server.signing import SERVING
from notary.storage.sql.dialect import PoolSettings
from tests.simulation import actors, driver
from tests.simulation.actors import ACTORS
from tests.simulation.clients import Client
from tests.simulation.cluster import SERVERS, SIGNERS, Cluster, install
from tests.simulation.history import History
from tests.simulation.network import Faults as NetworkFaults
from tests.simulation.reactor import Reactor
from tests.simulation.scheduler import Host, Violation, World
from tests.simulation.stage import EVERYWHERE, GUNS, RETRY_SECONDS, Stage

ACTING_SECONDS = 400.0
"""How long the actors may take on the virtual clock."""

REQUESTS = {
    "publisher": 4.0,
    "reader": 1.8,
    "newcomer": 2.4,
    "follower": 1.0,
    "watcher": 1.0,
    "deleter": 5.1,
    "rotator": 1.9,
    "key-maker": 1.0,
    "intruder": 2.6,
}
"""How many requests an act of an actor is, on the average of many seeds; faults and the operator send none."""

REQUESTS_AT_END = (15.4, 21.3, 25.9)
"""How many requests the last look at one, two or three collections is, on the average."""

LEAST_REQUESTS = 74.0
MOST_REQUESTS = (76.0, 98.0)
"""How many requests a plan may be expected to be; the most is drawn for each seed."""

RECOVERY_SECONDS = 40.0
"""How long a cluster may take to recover from all faults: the longest pause between two tries is 30 seconds."""

IDLE_SECONDS = 9.0
"""How long a cluster is left alone: a server ends connections on which nothing has come for 8 seconds.

By then it has also ended the requests of clients that have left, and looked at its health again.
"""

END_SECONDS = 60.0 + 2 * RETRY_SECONDS
"""How long the last look at everything may take."""

AT_REST = ("body_bytes", "uploads_waiting", "pool_used", "pool_waiting", "unexpected_errors")
"""Figures of a server that are zero when all is quiet."""


@dataclass(frozen=True)
class Plan:
    """Who acts: the acts of each actor by its name. ``knobs`` are constants that the run uses."""

    acts: Mapping[str, int]
    pace: float
    knobs: Mapping[str, Any]
    guns: int


def plan_of(seed: int) -> Plan:
    """Return the plan of a seed."""
    random = Random(f"plan {seed}")
    acts: dict[str, int] = {}

    def add(kind: str, count: int, least: int, most: int) -> None:
        for number in range(count):
            acts[f"{kind}-{number + 1}"] = random.randint(least, most)

    add("publisher", random.randint(2, 3), 2, 5)
    add("reader", random.randint(1, 2), 4, 8)
    add("newcomer", 1, 1, 3)
    add("follower", 1, 3, 6)
    add("rotator", random.randint(0, 1), 2, 4)
    add("key-maker", random.randint(0, 2), 2, 4)
    add("intruder", int(random.random() < 0.5), 2, 4)
    add("watcher", random.randint(0, 1), 2, 4)
    add("deleter", int(random.random() < 0.5), 1, 4)
    add("operator", int(random.random() < 0.6), 2, 5)
    if random.random() < 0.8:
        for kind in ("killer", "network-fault", "database-fault", "staller"):
            add(kind, int(random.random() < 0.5), 1, 4)
    add("clock-stepper", int(random.random() < 0.5), 1, 4)
    knobs = {
        "signers": dict.fromkeys(SERVERS, SIGNERS)
        if random.random() < 0.7
        else dict(zip(SERVERS, ((signer,) for signer in SIGNERS), strict=True)),
        "renew_at": random.choice((0.33, 0.33, 0.0)),
        "connections": random.choice((4, 2)),
        "cache_bytes": random.choice((1 << 24, 1 << 24, 40_000, 0)),
        "statement_seconds": random.choice((0.0005, 0.003, 0.02)),
        "large": random.random() < 0.3,
        "LITTLE_MICROSECONDS": random.choice((3_000, 0)),
        "SMALL_BYTES": random.choice((8_192, 100)),
        "LARGE_BYTES": random.choice((2_000_000, 2_000_000, 2_000_000, 3_000)),
    }
    pace, guns = random.choice((0.003, 0.03, 0.3)), random.choice((1, 1, 2, 3))
    fit(acts, guns, random.uniform(*MOST_REQUESTS))
    return Plan(acts, pace, knobs, guns)


def fit(acts: dict[str, int], guns: int, most_requests: float) -> None:
    """Let the actors that act most act less often, or the first reader more often, until the plan has a fit length."""
    per_act = {name: REQUESTS.get(name.rpartition("-")[0], 0.0) for name in acts}

    def expected() -> float:
        return REQUESTS_AT_END[guns - 1] + sum(per_act[name] * count for name, count in acts.items())

    while expected() > most_requests:
        acts[max(acts, key=lambda name: acts[name] if per_act[name] else 0)] -= 1
    while expected() < LEAST_REQUESTS:
        acts["reader-1"] += 1


@dataclass
class Verdict:
    """What came of a seed."""

    seed: int
    error: str
    operations: int
    steps: int
    seconds: float
    hash: str
    published: int
    commits: int
    trace: list[str] = field(default_factory=list)


class Log:
    """Takes the log of the program: a failure with a traceback is an error that nobody planned for."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.late = ""
        """An error of which no run is known: one that nobody handled, found by a collection of garbage."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        failure = event.get("log_failure")
        if failure is None:
            return
        text = f"the log has an unexpected error: {event.get('log_format')}\n{failure.getTraceback()}"
        if self.run is not None:
            self.run.fail(Violation(text))
        else:
            self.late = text


LOG = Log()


def prepare() -> None:
    """Make this process one of simulations."""
    install()
    gc.collect()
    gc.freeze()  # no collection looks at the program again
    globalLogBeginner.beginLoggingTo([LOG], redirectStandardIO=False, discardBuffer=True)  # type: ignore[list-item]


class Run:
    """One run of a plan."""

    def __init__(self, seed: int, without: Collection[str] = (), *, keep_trace: bool = False) -> None:
        self.plan = plan_of(seed)
        self.knobs = self.plan.knobs
        self.guns = self.plan.guns
        self.world = World(seed, keep_trace=keep_trace)
        self.without = without
        self.violation: Violation | None = None
        self.published = 0
        self.settings = PoolSettings(connections=2, query_timeout=4.0)
        self._disturbed: list[tuple[float, float, Collection[str], str]] = []
        self._clients: list[Client] = []
        self._unfinished: dict[str, None] = {}

    # -- for actors ---------------------------------------------------------------------------------------------------

    def disturb(self, seconds: float, places: Collection[str], why: str = "") -> None:
        """Say that errors at some places have a cause for some time."""
        self._disturbed.append((self.world.now, self.world.now + seconds, places, why))

    def end_disturbance(self, why: str, seconds: float) -> None:
        """Say that a disturbance ends, and that errors have a cause for some more time."""
        last = max(place for place, each in enumerate(self._disturbed) if each[3] == why)
        start, _, places, _ = self._disturbed[last]
        self._disturbed[last] = (start, self.world.now + seconds, places, why)

    def was_disturbed(self, began: float, ended: float, places: Collection[str], but: str = "-") -> bool:
        """Return whether errors at one of these places had a cause, another one than ``but``."""
        return any(
            start <= ended and began <= end and why != but and not set(places).isdisjoint(where)
            for start, end, where, why in self._disturbed
        )

    def fail(self, violation: Violation) -> None:
        """Note the first broken invariant."""
        if self.violation is None:
            self.violation = violation
            self.world.tell(f"violation: {violation}")

    # -- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> Verdict:
        """Run, and return the verdict."""
        kept = {name: getattr(repository, name) for name in ("LITTLE_MICROSECONDS", "SMALL_BYTES", "LARGE_BYTES")}
        try:
            for name in kept:
                setattr(repository, name, self.knobs[name])
            LOG.run = self
            self._run()
        except Violation as violation:
            self.fail(violation)
        except Exception:  # noqa: BLE001 - a reactor would log it
            self.fail(Violation(f"an exception reached the reactor: {traceback.format_exc()}"))
        finally:
            LOG.run = None
            for name, value in kept.items():
                setattr(repository, name, value)
            self._close()
        world = self.world
        return Verdict(
            world.seed,
            "" if self.violation is None else str(self.violation),
            sum(client.asked for client in self._clients),
            world.steps,
            world.now,
            world.hash(),
            self.published,
            self.history.commits,
            world.trace or [],
        )

    def _run(self) -> None:
        world = self.world
        self.cluster = cluster = Cluster(world, self.knobs)
        self.history = History(cluster, self.fail)
        outside = Reactor(world, cluster.network, Host("clients"))
        admin = Reactor(world, cluster.network, Host("admin"))
        driver.hosts.update({"clients": outside.host, "admin": admin.host})
        for name in ("clients", "admin"):
            cluster.network.address(name)
        for process in cluster.processes.values():
            process.start()
        self._until(lambda: all(process.state == "up" for process in cluster.processes.values()), 10, "the start")
        for name, acts in self.plan.acts.items():
            kind = name.rpartition("-")[0]
            if kind in self.without or name in self.without:
                continue
            reactor = admin if kind == "operator" else outside
            self._start(name, ACTORS[kind](self.stage(name, reactor, acts)))
        self._until(lambda: not self._unfinished, ACTING_SECONDS, "actors")
        self._heal()
        self._until(lambda: all(process.state == "up" for process in cluster.processes.values()), 30, "the recovery")
        self._wait(IDLE_SECONDS)
        self._until(self._has_recovered, RECOVERY_SECONDS - IDLE_SECONDS, "the recovery of the servers")
        self._start("the end", self._settle(self.stage("the end", outside, 1)))
        self._until(lambda: not self._unfinished, END_SECONDS, "the end")
        for client in self._clients:
            client.close()
        self._wait(1.0)
        for process in cluster.processes.values():
            process.stop()
        self._until(lambda: all(each.state == "down" for each in cluster.processes.values()), 30, "the stop")
        if cluster.leftovers:
            raise Violation(f"left behind: {cluster.leftovers}")
        self.history.check_all()

    def stage(self, name: str, reactor: Reactor, acts: int) -> Stage:
        client = Client(self.cluster, reactor, name)
        self._clients.append(client)
        random = self.world.random(f"actor/{name}")
        return Stage(name, self.cluster, self.history, reactor, random, client, acts, self.plan.pace, self)

    def _start(self, name: str, coroutine: Any) -> None:
        self._unfinished[name] = None

        def ended(result: object) -> None:
            del self._unfinished[name]
            if isinstance(result, Failure):
                error = result.value.subFailure.value if isinstance(result.value, FirstError) else result.value
                self.fail(error if isinstance(error, Violation) else Violation(f"{name}: {result.getTraceback()}"))

        Deferred.fromCoroutine(coroutine).addBoth(ended)

    def _until(self, ended: Any, seconds: float, what: str) -> None:
        if not self.world.run(lambda: self.violation is not None or ended(), seconds):
            states = {name: each.state for name, each in self.cluster.processes.items()}
            raise Violation(f"{what} did not end: {list(self._unfinished)} {states}")
        if self.violation is not None:
            raise self.violation

    def _wait(self, seconds: float) -> None:
        self.world.run(lambda: self.violation is not None, seconds)
        if self.violation is not None:
            raise self.violation

    def _heal(self) -> None:
        """End all faults."""
        cluster = self.cluster
        for store in cluster.stores:
            store.heal()
        cluster.network.faults = NetworkFaults()
        cluster.network.heal()
        for process in cluster.processes.values():
            process.start_if_down()

    async def _settle(self, stage: Stage) -> None:
        """Without faults, every collection can be read and published by every server, and nothing is held."""
        stage.client.random = Random(0)
        stage.client.calm = True
        for number, gun in enumerate(GUNS[: self.guns]):
            for server in SERVERS if not number else SERVERS[number % 2 :][:1]:
                stage.server_of = partial(str, server)
                if self.history.gun(gun).now.files:
                    if not await actors.walk(stage, gun):
                        raise Violation(f"{gun} cannot be read although nothing is wrong")
                    now = self.world.now
                    if self._has_expired(gun) and self.was_disturbed(now - RETRY_SECONDS, now, EVERYWHERE):
                        await stage.sleep(RETRY_SECONDS)  # perhaps a renewal has failed
                        await actors.walk(stage, gun)
                    if self._has_expired(gun):
                        raise Violation(f"{gun} is served expired: {self.history.gun(gun).now.expires}")
                published = self.published
                await actors.publish_once(stage, gun, f"end-{server}")
                if self.published == published:
                    raise Violation(f"{gun} cannot be published although nothing is wrong")
        for server in SERVERS:
            stage.server_of = partial(str, server)
            answer = await stage.ask("GET", "/v2/_trust/changefeed?records=1000")
            self.history.check_page(None, 0, 1000, answer.body, answer.began, answer.ended)
            await self._come_to_rest(stage, server)
            answer = await stage.ask("GET", "/_notary_server/health")
            if answer.status != 200:
                raise Violation(f"{server} is not healthy although nothing is wrong: {answer.body!r}")

    def _has_expired(self, gun: str) -> bool:
        expires = self.history.gun(gun).now.expires
        return expires is None or expires <= self.world.utc_now()

    def _has_recovered(self) -> bool:
        """Return whether every server is ready and has all its signers."""
        for server in SERVERS:
            readiness = self.cluster.processes[server].service._health.readiness()
            signers = readiness.facts.get("signers", {"": ""})
            if readiness.status != "ok" or any(state != SERVING for state in signers.values()):
                return False
        return True

    async def _come_to_rest(self, stage: Stage, server: str) -> None:
        """A server holds nothing when all is quiet. A health check may need the database for a moment."""
        for _ in range(100):
            figures = self._figures(server)
            if not any(figures.values()):
                return
            await stage.sleep(0.05)
        raise Violation(f"{server} holds something although all is quiet: {figures}")

    def _figures(self, server: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for family in self.cluster.processes[server].service._metrics.collect():
            name = family.name.removeprefix("notary_server_")
            if name in AT_REST:
                found[name] = family.samples[0].value
                if len(found) == len(AT_REST):
                    return found
        raise Violation(f"{server} has no figures {set(AT_REST) - found.keys()}")

    def _close(self) -> None:
        self.world.bury()
        for store in self.cluster.stores:
            store.close()
        self.history.close()


def simulate(seed: int, without: Collection[str] = (), *, keep_trace: bool = False) -> Verdict:
    """Run one seed, without some actors."""
    return Run(seed, without, keep_trace=keep_trace).run()
