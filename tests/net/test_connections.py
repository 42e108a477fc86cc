"""A set of connections, of any protocol: the sweep, the drain, and what ends a drain."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from notary.net.connections import Connections


class Toy:
    """Remembers what is asked of it. It closes when it leaves or is given up, as far as the test says."""

    def __init__(self, connections: Connections, *closes: str) -> None:
        self.seen: list[tuple] = []
        self.connections = connections
        self.closes = closes
        connections.add(self)

    def _do(self, name: str, *what: float) -> None:
        self.seen.append((name, *what))
        if name in self.closes:
            self.connections.discard(self)

    def sweep(self, now: float) -> None:
        self._do("sweep", now)

    def leave(self, first_seconds: float, idle_seconds: float) -> None:
        self._do("leave", first_seconds, idle_seconds)

    def give_up(self) -> None:
        self._do("give_up")


@pytest.fixture
def clock():
    made = Clock()
    yield made
    assert made.getDelayedCalls() == []


def drained(connections: Connections, *seconds: float) -> list[str]:
    done: list[str] = []
    Deferred.fromCoroutine(connections.drain(*seconds)).addCallback(lambda _: done.append("done"))
    return done


def test_all_are_swept_once_a_second_by_one_timer(clock):
    connections = Connections(clock)
    one, other = Toy(connections, "sweep"), Toy(connections)
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(0.5)
    late = Toy(connections)
    clock.pump([0.5, 1])
    assert (one.seen, other.seen, late.seen) == ([("sweep", 1.0)], *[[("sweep", 1.0), ("sweep", 2.0)]] * 2)
    assert (len(connections), set(connections)) == (2, {other, late})
    for each in connections:
        connections.discard(each)
    assert clock.getDelayedCalls() == []


def test_without_connections_a_drain_ends_at_once(clock):
    connections = Connections(clock)
    assert (drained(connections, 10), connections.draining) == (["done"], True)


def test_a_drain_waits_for_those_that_are_open_also_for_one_that_is_new(clock):
    connections = Connections(clock)
    quick, slow = Toy(connections, "leave"), Toy(connections)
    done = drained(connections, 12)
    assert quick.seen == slow.seen == [("leave", 6.0, 4.0)]
    assert (connections.first_seconds, connections.idle_seconds) == (6, 4)
    new = Toy(connections)
    connections.discard(slow)
    assert done == []
    connections.discard(new)
    assert done == ["done"]


def test_a_drain_waits_for_work_that_has_lost_its_connection(clock):
    connections = Connections(clock)
    toy, work = Toy(connections), object()
    connections.begin_work(work)
    connections.discard(toy)
    done = drained(connections, 10)
    assert (done, connections.work) == ([], 1)
    connections.end_work(work)
    connections.end_work(work)
    assert (done, connections.work) == (["done"], 0)


def test_idle_connections_are_looked_at_when_their_time_is_over(clock):
    connections = Connections(clock)
    idle = Toy(connections, "sweep")
    done = drained(connections, 2.4)
    clock.advance(0.8)
    assert (done, idle.seen) == (["done"], [("leave", 1.2, pytest.approx(0.8)), ("sweep", pytest.approx(0.8))])


def test_a_drain_gives_up_in_the_end(clock):
    connections = Connections(clock)
    closes, stays = Toy(connections, "give_up"), Toy(connections)
    connections.begin_work("work")
    done = drained(connections, 2.5)
    clock.pump([2.4, 0.1])
    assert closes.seen[-1] == stays.seen[-1] == ("give_up",)
    assert (done, len(connections), connections.work) == (["done"], 0, 0)


def test_those_that_are_given_up_may_have_time_to_close(clock):
    connections = Connections(clock)
    closes, stays = Toy(connections), Toy(connections)
    done = drained(connections, 2.5, 2)
    clock.pump([2.5, 1])
    assert stays.seen[-2:] == [("give_up",), ("sweep", 3.5)]
    connections.discard(closes)
    assert done == []
    clock.advance(1)
    assert (done, len(connections)) == (["done"], 0)


def test_two_drains_end_together(clock):
    connections = Connections(clock)
    toy = Toy(connections)
    done = [drained(connections, 10), drained(connections, 20)]
    connections.discard(toy)
    assert done == [["done"], ["done"]]
