"""One clock and one queue of events for all processes of a simulated cluster, and what was done, step by step.

Rules of this module: the seed is the only source of chance. Nothing here depends on the real time, on addresses of
objects or on the order of sets, so that the same seed gives the same steps in every process.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall
from zope.interface import implementer

from notary.work.usage import PoolUsage

EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
"""The time of day at the start of each simulation."""


_NO_KW: dict[str, Any] = {}


class Violation(AssertionError):
    """An invariant does not hold."""


class Host:
    """A process of the cluster: what it schedules is dropped when it is killed, and waits while it stalls."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.stalled_until = 0.0
        self.after_step: Callable[[], None] = _nothing
        """Looks at the process after each of its steps."""
        self.connections: list[Any] = []
        """The open connections of its pool."""
        self.usage: PoolUsage | None = None
        """How it uses its pool."""
        self.signers: Any = None
        """Its signers, if it is a server."""


def _nothing() -> None:
    """A process at which nobody looks."""


@implementer(IDelayedCall)
class Event:
    """A call that is due at a time. It is Twisted's IDelayedCall too."""

    __slots__ = ("args", "called", "cancelled", "due", "func", "host", "is_timer", "kw", "number", "world")

    def __init__(self, world: World, host: Host, due: float, number: int, func: Callable[..., Any], args: Any, kw: Any):
        self.world = world
        self.host = host
        self.due = due
        self.number = number
        self.func = func
        self.args = args
        self.kw = kw
        self.called = self.cancelled = False
        self.is_timer = False

    def __lt__(self, other: Event) -> bool:
        return (self.due, self.number) < (other.due, other.number)

    def getTime(self) -> float:
        return self.due

    def active(self) -> bool:
        return not (self.called or self.cancelled)

    def cancel(self) -> None:
        if self.cancelled:
            raise AlreadyCancelled
        if self.called:
            raise AlreadyCalled
        self.cancelled = True
        self.world.timers.pop(self, None)

    def reset(self, seconds: float) -> None:
        self._move(self.world.now + seconds)

    def delay(self, seconds: float) -> None:
        self._move(self.due + seconds)

    def _move(self, due: float) -> None:
        if not self.active():
            raise AlreadyCalled
        again = self.world.put(self.host, due, self.func, self.args, self.kw)
        # The queue keeps the old place; the object stays the one that the caller knows.
        again.func, again.args, again.kw = _run_moved, (self, again.number), {}
        self.number, self.due = again.number, due


def _run_moved(event: Event, number: int) -> None:
    if event.active() and event.number == number:
        event.world.timers.pop(event, None)
        event.called = True
        event.func(*event.args, **event.kw)


class World:
    """The clock, the queue and the chance of one simulation.

    ``knobs`` are not chance of the run, but of the plan: see :mod:`tests.simulation.plan`.
    """

    def __init__(self, seed: int, *, keep_trace: bool = False) -> None:
        self.seed = seed
        self.now = 0.0
        self.time_shift = timedelta(0)
        self.leaps: list[float] = []
        """When the time of day leaped."""
        self.steps = 0
        self.timers: dict[Event, None] = {}
        self.thread: VirtualThread | None = None
        self.hub = getcurrent()
        self.trace: list[str] | None = [] if keep_trace else None
        self.graveyard: list[object] = []
        self._queue: list[tuple[float, int, Event]] = []
        self._number = 0
        self._streams: dict[str, Random] = {}
        self._digest = hashlib.sha256()
        self._threads: dict[VirtualThread, None] = {}
        self._resting: list[VirtualThread] = []
        self._thread_number = 0

    def random(self, name: str) -> Random:
        """Return the stream of chance of this name: what one actor draws does not change the others."""
        found = self._streams.get(name)
        if found is None:
            found = self._streams[name] = Random(f"{self.seed}/{name}")
        return found

    def utc_now(self) -> datetime:
        """The time of day, which steps of the clock shift."""
        return EPOCH + timedelta(seconds=self.now) + self.time_shift

    @property
    def leaped_at(self) -> float:
        """When the time of day leaped last."""
        return self.leaps[-1] if self.leaps else -1e9

    # -- events -------------------------------------------------------------------------------------------------------

    def put(self, host: Host, due: float, func: Callable[..., Any], args: Any = (), kw: Any = None) -> Event:
        self._number = number = self._number + 1
        event = Event(self, host, due, number, func, args, kw or _NO_KW)
        if not host.dead:
            heapq.heappush(self._queue, (due, number, event))
        return event

    def later(self, host: Host, seconds: float, func: Callable[..., Any], *args: Any) -> Event:
        """Call ``func`` in ``seconds``, unless ``host`` is dead by then."""
        return self.put(host, self.now + seconds, func, args)

    def run(self, ended: Callable[[], bool], seconds: float) -> bool:
        """Run until ``ended`` returns True; False if it does not within ``seconds`` of the virtual clock."""
        limit = self.now + seconds
        queue, pop = self._queue, heapq.heappop
        while not ended():
            if not queue or queue[0][0] > limit:
                self.now = max(self.now, limit)
                return ended()
            due, number, event = pop(queue)
            host = event.host
            if event.cancelled or host.dead or (event.called and event.number == number):
                continue
            if event.number != number and event.func is not _run_moved:
                continue  # it was moved
            if host.stalled_until > due:
                event.number = self._number = self._number + 1
                event.due = host.stalled_until
                heapq.heappush(queue, (event.due, event.number, event))
                continue
            self.now = max(self.now, due)
            self.steps += 1
            event.called = True
            if event.is_timer:
                self.timers.pop(event, None)
            event.func(*event.args, **event.kw)
            if not host.dead:
                host.after_step()
        return True

    def tell(self, text: str) -> None:
        """Add a line to the trace."""
        line = f"{self.now:.6f} {text}"
        self._digest.update(line.encode())
        if self.trace is not None:
            self.trace.append(line)

    def hash(self) -> str:
        """Return the hash of the whole trace."""
        return self._digest.hexdigest()

    # -- threads ------------------------------------------------------------------------------------------------------

    def spawn(self, host: Host, slot: str, work: Callable[[], object]) -> None:
        """Run ``work`` in a thread: it stops at each :meth:`pause`, and other events go on meanwhile."""
        thread = self._resting.pop() if self._resting else VirtualThread(self)
        thread.take(host, slot, work)
        self._threads[thread] = None
        thread.resume_in(self.random(f"threads/{host.name}").expovariate(1000))

    def pause(self, seconds: float) -> None:
        """Let the running thread wait; outside of threads, do nothing."""
        thread = self.thread
        if thread is not None and not thread.host.dead:
            thread.resume_in(seconds)
            self.hub.switch()

    def thread_id(self) -> object:
        """Return the name of the running thread, as adbapi asks for it."""
        return "main" if self.thread is None else self.thread.slot

    def threads_of(self, host: Host) -> list[str]:
        """Return the names of the threads of a process that have not ended."""
        return [thread.slot for thread in self._threads if thread.host is host]

    def ended(self, thread: VirtualThread) -> None:
        del self._threads[thread]
        self._resting.append(thread)

    def bury(self) -> None:
        """End the threads that will not run any more."""
        # Work that catches the end of its thread leaves the thread at rest.
        for threads in (self._threads, self._resting):
            for thread in tuple(threads):
                thread.end()
        self._threads.clear()
        self._resting.clear()
        self.graveyard.clear()


class VirtualThread:
    """A thread of a simulated process: one greenlet, which runs when the scheduler says so.

    The greenlet takes the next work, of any process, when it has ended one: a new one costs calls of the kernel.
    """

    host: Host
    slot: str

    def __init__(self, world: World) -> None:
        self.world = world
        self._greenlet = greenlet(self._run, world.hub)
        self._work: Callable[[], object] = _nothing

    def take(self, host: Host, slot: str, work: Callable[[], object]) -> None:
        self.host, self.slot, self._work = host, slot, work

    def resume_in(self, seconds: float) -> None:
        self.world.put(self.host, self.world.now + seconds, self._resume)

    def _resume(self) -> None:
        world = self.world
        world.thread = self
        world.hub = getcurrent()
        try:
            self._greenlet.switch()
        finally:
            world.thread = None

    def _run(self) -> None:
        while True:
            self._work()
            self._work = _nothing
            self.world.ended(self)
            self.world.hub.switch()

    def end(self) -> None:
        if self._greenlet and not self._greenlet.dead:
            with suppress(Exception):  # of a process that was killed
                self._greenlet.throw(GreenletExit)
