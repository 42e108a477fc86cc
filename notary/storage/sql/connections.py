"""The connection of a thread of the pool: when it is replaced, and when no new one is asked for.

Rules of this module: a connection ends when it is older than ``connection_lifetime``, and when its server takes no
writes any more. The server is asked before a use of the connection, if the last answer is older than ``trust_seconds``:
so reads do not stay with a primary that has become a standby either. Once a write has been refused by one server and
taken by another, all connections are asked before their next use: no publish is checked against what the old one has.
If the next server takes no writes as well, it is good enough until the next question: reads go on. A database that has
no connection left is asked for one again only after a pause, or its administrator could not get in.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from twisted.enterprise import adbapi

from notary.storage.sql.dialect import Dialect, PoolSettings, Trouble
from notary.work.machine import MACHINE, Machine

_T = TypeVar("_T")

_PAUSE_SECONDS: Final = 1.0
"""How long a database that had no connection left is not asked for one."""

_SPREAD_SECONDS: Final = 0.2
"""The threads that wait for the end of a pause go on within this time, so that the first may speak for the others."""


class Crowd:
    """Asks for connections, but not during a pause. Used from any thread."""

    def __init__(
        self,
        is_crowded: Callable[[Exception], bool],
        seconds: Callable[[], float] = time.monotonic,
        machine: Machine = MACHINE,
    ) -> None:
        self._is_crowded = is_crowded
        self._seconds = seconds
        self._machine = machine
        self._until = 0.0
        self._refusal: Exception | None = None

    def connect(self, connect: Callable[[], _T]) -> _T:
        """Return what ``connect`` does, tried a second time after a pause if there was no connection left.

        Raises what ``connect`` raises, or the refusal that another thread met after the pause.
        """
        waited = self._wait()
        while True:
            if waited and self._refusal is not None and self._seconds() < self._until:
                raise type(self._refusal)(*self._refusal.args) from self._refusal
            try:
                made = connect()
            except Exception as error:
                if not self._is_crowded(error):
                    raise
                self._refusal, self._until = error, self._seconds() + _PAUSE_SECONDS
                if waited:
                    raise
                waited = self._wait()
            else:
                self._refusal = None
                return made

    def _wait(self) -> bool:
        """Wait until the end of the pause; return whether there was one."""
        pause = self._until - self._seconds()
        if self._refusal is None or pause <= 0:
            return False
        self._machine.sleep(pause + self._machine.random.uniform(0, _SPREAD_SECONDS))
        return True


class _Moments(threading.local):
    """Of the connection of the thread that asks: the end of its life, and the time of the server's last answer."""

    ends_at = 0.0
    answered_at = 0.0


class Care:
    """What the threads of a pool know of their connections."""

    def __init__(
        self,
        dialect: Dialect,
        settings: PoolSettings,
        is_ours: Callable[[BaseException], bool],
        seconds: Callable[[], float] = time.monotonic,
        machine: Machine = MACHINE,
    ) -> None:
        self._dialect = dialect
        self._settings = settings
        self._is_ours = is_ours
        self._seconds = seconds
        self._chance = machine.random
        self._moments = _Moments()
        self._doubted_at = 0.0
        self._refused = False
        self.crowd = Crowd(lambda error: is_ours(error) and dialect.trouble(error) is Trouble.CROWDED, seconds, machine)

    def begin(self) -> None:
        """Note that this thread has made a connection."""
        now = self._seconds()
        # Not all at the same time: they were made at the same time.
        self._moments.ends_at = now + self._settings.connection_lifetime * self._chance.uniform(0.8, 1)
        self._moments.answered_at = now

    def refused(self) -> None:
        """Note that a server takes no writes."""
        self._refused = True

    def accepted(self) -> None:
        """Note that a server takes writes: if one took none before, have each connection asked before its next use."""
        if self._refused:
            self._refused = False
            self._doubted_at = self._seconds()

    def is_old(self) -> bool:
        """Whether this thread's connection has reached its age."""
        return self._seconds() >= self._moments.ends_at and self._dialect.embedded is None

    def is_to_be_asked(self, driver: Any) -> bool:
        """Whether the server of this thread's connection is to be asked whether it takes writes."""
        answered_at = self._moments.answered_at
        if self._seconds() < answered_at + self._settings.trust_seconds and answered_at > self._doubted_at:
            return False
        return bool(self._dialect.read_only and not self._settings.read_only and self._dialect.leaves_read_only(driver))

    def takes_writes(self, driver: Any) -> bool:
        """Ask the server of this thread's connection. Raises what the driver raises if it does not answer.

        False also if the connection was lost: the database was restarted, or has closed an idle connection.
        """
        now = self._seconds()
        try:
            cursor = driver.cursor()
            cursor.execute(self._dialect.read_only)
            (read_only,) = cursor.fetchone()
            cursor.close()
        except Exception as error:
            late = self._seconds() - now > self._settings.query_timeout / 2
            if late or not self._is_ours(error) or self._dialect.trouble(error) is not Trouble.LOST:
                raise
            return False
        if read_only:
            self.refused()
        else:
            self.accepted()
        self._moments.answered_at = self._seconds()
        return not read_only


class Pooled:
    """The pooled connection of the thread that makes this object. Raises what the driver raises if there is none.

    ``driver`` is the driver's own connection.
    """

    def __init__(self, pool: adbapi.ConnectionPool, care: Care) -> None:
        self._pool = pool
        self._care = care
        self.driver: Any = None
        self.reconnect()
        try:
            self._look()
        except BaseException:
            self.drop()
            raise

    def _look(self) -> None:
        """Replace a connection that is too old, or whose server takes no writes."""
        if self._care.is_old() or (self._care.is_to_be_asked(self.driver) and not self._care.takes_writes(self.driver)):
            self.drop()
            self.reconnect()

    def drop(self) -> None:
        """Close the connection, if there is one; the thread's next task gets a new one."""
        if self.driver is not None:
            self._pool.disconnect(self.driver)
            self.driver = None

    def reconnect(self) -> None:
        """Have the connection of this thread, or a new one if it was dropped."""
        self.driver = self._care.crowd.connect(self._pool.connect)
