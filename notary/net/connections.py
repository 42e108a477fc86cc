"""The open connections of one server: swept once a second, and drained when the server stops.

Rules of this module: it knows no protocol. HTTP and gRPC say in the methods of ``Connection`` what a sweep and a stop
mean to one of their connections. One timer serves all connections, because a timer for each request would cost more
than an answer from a cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

_SWEEP_SECONDS: Final = 1.0


class Connection(Protocol):
    """What a set of connections asks of each of them. None of these methods may raise."""

    def sweep(self, now: float) -> None:
        """End what has taken too long at ``now``."""

    def leave(self, first_seconds: float, idle_seconds: float) -> None:
        """Finish the requests that are under way, then close.

        A connection on which nothing has come yet has ``first_seconds`` for its first request, and one that waits for
        its next request ``idle_seconds``, as far as its protocol has no way to send a client elsewhere: an earlier
        close may meet a request that is on its way, and its client would take that for a failure.
        """

    def give_up(self) -> None:
        """Close at once; requests that are under way are lost."""


class Connections:
    """A set of connections, and of the work that may outlive its connection.

    Iterating goes over the connections that were open when it began.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.draining = False
        """True once ``drain`` was called."""
        self.first_seconds = 0.0
        """How long a connection that is new while the set drains has for its first request."""
        self.idle_seconds = 0.0
        """How long a connection that is idle while the set drains has for its next request."""
        self._clock = clock
        # Not sets, whose order is another in each process: a simulation repeats every step.
        self._open: dict[Connection, None] = {}
        self._work: dict[object, None] = {}
        self._sweeper: IDelayedCall | None = None
        self._drained: list[Deferred[None]] = []

    def __len__(self) -> int:
        """The number of open connections."""
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        """The open connections."""
        return iter(tuple(self._open))

    def add(self, connection: Connection) -> None:
        """Sweep ``connection`` from now on."""
        self._open[connection] = None
        if self._sweeper is None:
            self._sweeper = self._clock.callLater(_SWEEP_SECONDS, self._sweep)

    def discard(self, connection: Connection) -> None:
        """Forget a connection that is lost. One that was not added, or is forgotten already, is ignored."""
        self._open.pop(connection, None)
        self._finish_if_empty()

    @property
    def work(self) -> int:
        """The number of pieces of work that ``drain`` would wait for."""
        return len(self._work)

    def begin_work(self, work: object) -> None:
        """Have ``drain`` wait for ``work``, even if its connection is lost meanwhile."""
        self._work[work] = None

    def end_work(self, work: object) -> None:
        """Say that ``work`` has ended. Work that did not begin, or has ended already, is ignored."""
        self._work.pop(work, None)
        if self.draining:
            self._finish_if_empty()

    async def drain(self, grace_seconds: float, closing_seconds: float = 0.0) -> None:
        """Have all connections leave; return when none is open and no work is left.

        After ``grace_seconds`` the connections that are left are given up, and the work that is left is forgotten. The
        connections then have ``closing_seconds`` to say goodbye before they are forgotten too. A new connection has
        half of ``grace_seconds`` for its first request, an idle one a third for its next request. The caller closes the
        listening ports first.
        """
        self.draining = True
        self.first_seconds = grace_seconds / 2
        self.idle_seconds = grace_seconds / 3
        for connection in self:
            connection.leave(self.first_seconds, self.idle_seconds)
        if not self._open and not self._work:
            return
        drained: Deferred[None] = Deferred()
        self._drained.append(drained)
        timers = [
            self._clock.callLater(self.idle_seconds, self._look),
            self._clock.callLater(grace_seconds, self._give_up),
            self._clock.callLater(grace_seconds + closing_seconds, self._forget),
        ]
        await drained
        for timer in timers:
            if timer.active():
                timer.cancel()

    def _give_up(self) -> None:
        self._work.clear()
        for connection in self:
            connection.give_up()
        self._finish_if_empty()

    def _forget(self) -> None:
        self._open.clear()
        self._work.clear()
        self._finish_if_empty()

    def _sweep(self) -> None:
        self._sweeper = self._clock.callLater(_SWEEP_SECONDS, self._sweep)
        self._look()

    def _look(self) -> None:
        now = self._clock.seconds()
        for connection in self:
            connection.sweep(now)

    def _finish_if_empty(self) -> None:
        if self._open:
            return
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        if not self._work:
            drained, self._drained = self._drained, []
            for each in drained:
                each.callback(None)
