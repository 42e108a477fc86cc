"""What holds after every step of a process: figures within their bounds, and nothing known that is not recorded.

Rules of this module: a watch looks at one process after each step of that process, when the program runs no code. It
costs a few microseconds: it reads numbers that the program counts anyway, and looks at each key once. Databases change
by commits only, so their invariants are those of :mod:`tests.simulation.history`, after each commit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from notary.observe.metrics import DaemonMetrics
from tests.simulation.scheduler import Host, Violation


class PoolWatch:
    """The connections of a process to its database."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def look_at_pool(self) -> None:
        usage = self._host.usage
        if usage is None:
            return
        if not usage.used:
            if usage.waiting > 0:
                raise Violation(f"{self._host.name}: {usage.waiting} calls wait for a connection, and none is in use")
            for connection in self._host.connections:
                if connection.in_transaction:
                    raise Violation(f"{self._host.name}: a connection that nobody uses is in a transaction")
        elif not 0 < usage.used <= usage.size or usage.waiting < 0:
            raise Violation(f"{self._host.name}: {usage}")


class ServerWatch(PoolWatch):
    """A server: its connections to the database and to signers, and what it counts as held for clients.

    All else that it holds is counted by a length, which is never negative.
    """

    def __init__(self, host: Host, metrics: DaemonMetrics) -> None:
        super().__init__(host)
        self._signers = host.signers
        (self._body_bytes,) = (each.read for each in metrics._watched if each.name == metrics.prefix + "body_bytes")

    def __call__(self) -> None:
        self.look_at_pool()
        if self._body_bytes()[()] < 0:
            raise Violation(f"{self._host.name}: body_bytes is {self._body_bytes()}")
        for call in self._signers.waiting:
            if any(link.ready and link not in call._tried for link in self._signers.links()):
                raise Violation(f"{self._host.name}: a call waits for a connection, and there is one")


class SignerWatch(PoolWatch):
    """A signer: its connections to the database, and that each key in memory is stored, and recorded if it was used."""

    def __init__(self, host: Host, keyring: Any, row_of: Callable[[str], tuple[str, str, str | None] | None]) -> None:
        super().__init__(host)
        self._keys: Mapping[str, Any] = keyring._open_keys._kept
        self._row_of = row_of
        self._count = 0
        self._recorded: set[str] = set()

    def __call__(self) -> None:
        self.look_at_pool()
        recorded = self._recorded
        if len(recorded) == len(self._keys) == self._count:
            return
        self._count = len(self._keys)
        for key_id, known in self._keys.items():
            if key_id in recorded:
                continue
            row = self._row_of(key_id)
            if row is None:
                raise Violation(f"{self._host.name}: key {key_id} is known and not stored")
            if not known.pending:
                if row[2] is None:
                    raise Violation(f"{self._host.name}: key {key_id} counts as used and is not recorded as used")
                recorded.add(key_id)
