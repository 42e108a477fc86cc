"""Several scripted signers in memory, and the service that spreads a server's calls over them; a fake clock.

fleet = Fleet(2)                 # two signers of one process each
fleet = Fleet(1, processes=2)    # one signer of two processes at one address
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from zope.interface import implementer

from notary.config.values import Address
from notary.net.grpc import Channel
from notary.proto import instance_pb2
from notary.server.signing.directory import Directory
from notary.server.signing.spread import Signers
from tests.support.author import Key, make_key
from tests.support.scripted import DESCRIBE, SIGN, Scripted, result_of

PORT = 7899


@implementer(IStreamClientEndpoint)
class Listening:
    """One address: the kernel gives each connection to the process whose turn it is.

    ``turns`` are the numbers of the processes that get the next connections; after those, each in turn. A process that
    is down gets none while another is up.
    """

    def __init__(self, processes: Sequence[Scripted]) -> None:
        self.processes = processes
        self.turns: list[int] = []
        self.connections = 0

    def connect(self, factory: Any) -> Deferred[Any]:
        number = self.turns.pop(0) if self.turns else self.connections
        self.connections += 1
        alive = [each for each in self.processes if each.up] or self.processes
        return alive[number % len(alive)].connect(factory)


class Fleet:
    """``count`` signers of some processes each, which have the same keys; ``service`` is what a server calls."""

    def __init__(self, count: int, processes: int = 1, *, describes: bool = True) -> None:
        self.clock = Clock()
        self.key = make_key()
        self.keys: dict[str, Key] = {self.key.key_id: self.key}
        self.hosts = [f"192.0.2.{number}" for number in range(1, count + 1)]
        self.describes = describes
        self.addresses: dict[str, Listening] = {}
        for host in self.hosts:
            self.add(host, processes)
        self.service = Signers(
            Directory([Address("signers.example", PORT)], lambda _host: succeed(self.hosts), self.clock),
            self.connect,
            "ecdsa",
            self.clock,
            lambda: 0.5,
        )

    def add(self, host: str, processes: int = 1) -> Sequence[Scripted]:
        """Have a signer at ``host``, whether or not a name leads there."""
        made = [Scripted(self.clock, self.keys) for _ in range(processes)]
        for number, each in enumerate(made):
            if self.describes:
                description = instance_pb2.InstanceDescription(id=f"{host}#{number}", processes=processes)
                each.answers[DESCRIBE] = description.SerializeToString()
        self.addresses[host] = Listening(made)
        return made

    def connect(self, place: Address, on_ready: Callable[[], object], quiet: bool) -> Channel:
        host = place.host if place.host in self.addresses else self.hosts[0]
        return Channel(
            self.addresses[host], self.clock, name=str(place), chance=lambda: 0.5, on_ready=on_ready, quiet=quiet
        )

    @property
    def signers(self) -> list[Scripted]:
        """All processes of all signers."""
        return [each for address in self.addresses.values() for each in address.processes]

    def signed(self) -> list[int]:
        """How often each process was asked for a signature."""
        return [sum(path == SIGN for path, _ in each.requests) for each in self.signers]

    def let_pass(self, seconds: float = 0.0, step_seconds: float = 0.01) -> None:
        """Let time go on, and what is on the wires arrive."""
        for number in range(round(seconds / step_seconds) + 1):
            if number:
                self.clock.advance(step_seconds)
            moved = True
            while moved:
                due = any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls())
                self.clock.advance(0)
                moved = due or any([pump.pump() for each in self.signers for pump in each.pumps])  # noqa: C419

    def begin(self) -> None:
        """Connect everywhere."""
        self.result(self.service.check())
        self.let_pass(1.0)

    def sign(self) -> Deferred[Any]:
        """Ask for a signature."""
        return self.service.sign(self.key.key_id, b"payload")

    def result(self, deferred: Deferred[Any], seconds: float = 0.0) -> Any:
        """What a call comes to within ``seconds``, by the clock."""
        return result_of(deferred, self.let_pass, seconds)

    def close(self) -> None:
        """Close the service: nothing may be left."""
        self.result(self.service.close(), 1.0)
        left = [call for call in self.clock.getDelayedCalls() if call.active()]
        assert not left, left
