"""The time of day is read in few places, each for a reason; every duration is measured by a clock that only grows."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.selectreactor import SelectReactor

import notary
from notary.net.grpc.frames import Budget
from notary.work.allowance import Allowance
from notary.work.reactor import installed_reactor, use_monotonic_time

ROOT = Path(notary.__file__).parent
DAYS_SECONDS = 20 * 86400.0

WALL_CLOCK = {
    "admin/session.py": "what has expired, for an operator",
    "net/http/site.py": "the Date field of answers",
    "net/tls/files.py": "certificates that have expired",
    "net/tls/peers.py": "certificates of peers that have expired",
    "observe/bugsnag.py": "the time of a report",
    "observe/debug/__init__.py": "the text of an error: when another profile ends",
    "observe/debug/cpu.py": "the time of a profile",
    "observe/debug/heap.py": "the time of a profile",
    "observe/debug/tasks.py": "the time of a profile",
    "observe/expiry.py": "days until certificates expire",
    "observe/logs.py": "the time of a line",
    "server/tap.py": "the expiry of metadata and of tokens",
    "signer/tap.py": "last_used of keys",
    "storage/memory.py": "created_at and updated_at of rows",
    "storage/sql/database.py": "created_at and updated_at of rows",
    "work/machine.py": "the time of day itself",
}
"""Where the time of day is read, and what for: expiry and records, never a duration."""

_READS = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "datetime.now", "datetime.utcnow"}


def wall_clock_reads(source: str) -> Iterator[str]:
    """Yield each expression that names a function of the time of day."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Name):
            name = ast.unparse(node)
            if name in _READS or name.endswith((".utc_now", ".time_of_day")):  # of a machine
                yield name
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"time.{alias.name}" for alias in node.names if f"time.{alias.name}" in _READS)


def test_the_time_of_day_is_read_for_expiry_and_records_only() -> None:
    found = {
        str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if any(wall_clock_reads(path.read_text("utf-8")))
    }
    assert found == set(WALL_CLOCK)


@pytest.mark.parametrize(
    "source",
    ["time.time()", "x = machine.utc_now()", "x = machine.time_of_day", "datetime.now(UTC)", "from time import time"],
)
def test_a_read_of_the_time_of_day_is_found(source: str) -> None:
    assert list(wall_clock_reads(source))


def test_no_duration_becomes_a_time_of_day() -> None:
    """A reactor's ``seconds`` has no relation to the time of day."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("fromtimestamp"):
                assert "seconds()" not in ast.unparse(node), path


def test_the_installed_reactor_is_on_monotonic_time() -> None:
    assert installed_reactor().seconds is time.monotonic


class Stepping:
    """A time of day that is set back or forth."""

    def __init__(self) -> None:
        self.by = 0.0

    def __call__(self) -> float:
        return time.time() + self.by


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> tuple[SelectReactor, Stepping]:
    """A reactor of Twisted's, by the time of day that Twisted gives it; never run by its own loop."""
    wall = Stepping()
    monkeypatch.setattr(SelectReactor, "seconds", staticmethod(wall))
    reactor = SelectReactor()
    yield reactor, wall
    for reader in reactor.removeAll():
        reader.connectionLost(None)


@pytest.mark.parametrize("by", [-DAYS_SECONDS, DAYS_SECONDS])
def test_calls_that_are_scheduled_before_and_after_keep_their_time(stepped: object, by: float) -> None:
    reactor, wall = stepped
    called = []
    reactor.callLater(0.0, called.append, "early")
    reactor.callLater(3600.0, called.append, "never")
    use_monotonic_time(reactor)
    use_monotonic_time(reactor)  # a second call changes nothing
    reactor.callLater(0.0, called.append, "late")
    reactor.callLater(3600.0, called.append, "never")
    wall.by = by
    time.sleep(0.001)
    reactor.runUntilCurrent()
    assert called == ["early", "late"]
    assert reactor.timeout() > 3500 or reactor.timeout() == 0  # waits in the selector for what comes next, not for days


@pytest.mark.parametrize("by", [-DAYS_SECONDS, DAYS_SECONDS])
def test_without_monotonic_time_a_step_moves_timers(stepped: object, by: float) -> None:
    """What the tests above and below guard against: it is so in Twisted."""
    reactor, wall = stepped
    called = []
    reactor.callLater(0.0, called.append, "due")
    reactor.callLater(3600.0, called.append, "not due")
    wall.by = by
    time.sleep(0.001)
    reactor.runUntilCurrent()
    assert called == ([] if by < 0 else ["due", "not due"])


def test_a_peer_never_pays_for_a_clock_that_steps_back() -> None:
    """A budget of a gRPC connection was overdrawn for days, and the connection ended at its next frame."""
    budget = Budget(100, 10.0, now=DAYS_SECONDS)
    assert budget.spend(1, now=DAYS_SECONDS)
    assert budget.spend(1, now=0.0)
    assert budget.spend(97, now=0.0)
    assert not budget.spend(2, now=0.0)
    now = [DAYS_SECONDS]
    allowance = Allowance(2, lambda: now[0])
    assert not allowance.take()
    now[0] = 0.0
    assert not allowance.take()
