"""What each actor of a simulation has: its name, its chance, its client, and checks of every answer that it gets.

Rules of this module: what an actor sees is checked at once (Violation), and an answer may fail only if a place behind
it was disturbed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from tests.simulation import metadata
from tests.simulation.clients import Answer, Client
from tests.simulation.cluster import SERVERS, SIGNERS, Cluster, between
from tests.simulation.history import History
from tests.simulation.reactor import Reactor
from tests.simulation.scheduler import Violation

RETRY_SECONDS = 65.0
"""How long a server may serve what has expired after a renewal failed (notary.server.repository.RETRY)."""

FINE = frozenset({200, 304, 404})
"""The statuses of which nothing more is to be said."""

GUNS = ("sim/a", "sim/b", "sim/c")
EVERYWHERE = frozenset(
    {*SERVERS, *SIGNERS, "server", "signer", "latency"}
    | {between(server, other) for server in SERVERS for other in (*SIGNERS, "clients")}
)
"""All places of faults: processes, databases, and the network between two hosts."""

PUBLISHERS_SNAPSHOT = frozenset({"sim/b"})
"""The collections whose publishers sign their snapshots."""


PUBLISHED = ("root", "targets"), ("root", "targets", "snapshot")
"""The roles that an upload depends on; the server renews all others."""


@dataclass
class Stage:
    """What one actor has: its name, its chance, its HTTP client, and how often it acts."""

    name: str
    cluster: Cluster
    history: History
    reactor: Reactor
    random: Random
    client: Client
    acts: int
    pace: float
    run: Any
    server_of: Callable[[], str] | None = None
    """Chooses the server for each request, if it is not chosen by chance."""

    async def sleep(self, seconds: float) -> None:
        await deferLater(self.reactor, seconds)

    async def rest(self) -> None:
        await self.sleep(self.random.expovariate(1 / self.pace))

    def server(self) -> str:
        return self.random.choice(SERVERS) if self.server_of is None else self.server_of()

    def gun(self) -> str:
        return self.random.choice(GUNS[: self.run.guns])

    async def together(self, *works: Callable[[], Awaitable[object]]) -> None:
        """Do several things at nearly the same time: each begins some statements of SQL later, or earlier."""

        async def begin(work: Callable[[], Awaitable[object]]) -> None:
            await self.sleep(self.random.expovariate(1 / (5 * self.run.knobs["statement_seconds"])))
            await work()

        await gatherResults([Deferred.fromCoroutine(begin(work)) for work in works])

    async def stored_gun(self) -> str:
        """Wait a while for a collection that is stored; return one."""
        for _ in range(20):
            stored = [gun for gun in GUNS[: self.run.guns] if self.history.gun(gun).now.files]
            if stored:
                return self.random.choice(stored)
            await self.rest()
        return self.gun()

    async def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        answer = await self.client.ask(self.server(), method, path, dict(headers or {}), body)
        self.check(answer)
        return answer

    def check(self, answer: Answer) -> None:
        """Nothing fails without a cause, and no answer is one that no client understands."""
        if answer.status in FINE:
            return
        what = f"{self.name}: {answer.server}: {answer.request}: {answer.status} {answer.body!r}"
        if answer.status >= 500 and not self.is_excused(answer, answer.began):
            raise Violation(f"{what} without a cause")
        if answer.status == 400 and not answer.request.startswith("POST") and not answer.is_odd:
            raise Violation(f"{what} for a request that is in order")
        lost = answer.status in {0, 408} and not answer.is_odd and not answer.is_raced
        if (lost or answer.gave_up) and not self.is_excused(answer, answer.began):
            before = {between("clients", answer.server), "latency"}
            if not self.run.was_disturbed(answer.began, answer.ended, before):
                raise Violation(f"{what} although nothing was wrong")
        if answer.status not in {0, 200, 304, 400, 404, 408, 429, 500, 503}:
            raise Violation(what)

    def is_excused(self, answer: Answer, began: float) -> bool:
        """Return whether a fault since ``began`` may have failed a request.

        That is a fault of the server or its database; and if the request needs a signer, one of the signers' database,
        or of every signer that the server has.
        """

        def faulty(*places: str) -> bool:
            return self.run.was_disturbed(began, answer.ended, places)

        if faulty(answer.server, "server"):
            return True
        method, path = answer.request.split(" ")
        if method != "POST" and not path.endswith((".key", "timestamp.json", "snapshot.json")):
            return False
        signers = self.run.knobs["signers"][answer.server]
        return faulty("signer", "latency") or all(faulty(each, between(answer.server, each)) for each in signers)

    def path(self, gun: str, rest: str) -> str:
        return f"/v2/{gun}/_trust/tuf/{rest}"

    async def current(self, gun: str, role: str) -> Answer:
        """Read the current file of a role."""
        answer = await self.ask("GET", self.path(gun, f"{role}.json"))
        self.history.check_read(gun, role, answer.status, answer.sha256, answer.began, answer.ended)
        if role in {"timestamp", "snapshot"} and answer.status == 200:
            self.check_fresh(gun, role, answer)
        return answer

    def check_fresh(self, gun: str, role: str, answer: Answer) -> None:
        """What has expired is served only if it could not be renewed."""
        world, signed = self.cluster.world, metadata.parsed(answer.body)
        excused = self.is_excused(answer, answer.began - RETRY_SECONDS) or world.leaped_at > answer.began - 1
        theirs = role == "snapshot" and gun in PUBLISHERS_SNAPSHOT
        if metadata.expiry(signed) <= world.utc_now() and not excused and not theirs:
            raise Violation(f"{gun}: {role} {signed['version']} is served expired, and could have been renewed")

    async def key(self, gun: str, role: str, method: str = "GET") -> metadata.Key | None:
        answer = await self.ask(method, self.path(gun, f"{role}.key"))
        if answer.status != 200:
            return None
        key = metadata.server_key_from(answer.body)
        if key.key_id not in self.history.keys:
            raise Violation(f"{gun}: the key {key.key_id} was handed out and is not stored")
        made_for = self.history.keys[key.key_id][:2]
        if made_for != (gun, role):
            raise Violation(f"{gun}: the key for {role} was made for {made_for}")
        states = self.history.gun(gun).between(answer.began, answer.ended)
        named = [self.history.key_of(gun, role, state) for state in states]
        if method == "GET" and all(named) and key.key_id not in named:
            raise Violation(f"{gun}: the key for {role} is {key.key_id}, and the root names {named}")
        if method == "POST" and key.key_id == named[0]:
            raise Violation(f"{gun}: the new key for {role} is the one that the root names")
        return key
