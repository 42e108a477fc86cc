"""A pool of connections to one database, and the statements of one transaction, through ``twisted.enterprise.adbapi``.

Rules of this module: one plain function a transaction, which takes a :class:`Cursor` and values and runs in a thread of
the pool; it never touches the reactor, and what it raises rolls the transaction back. It may be run more than once: a
transaction that another one undid, or whose connection was lost before the commit, is begun again. The SQL is what
MySQL, PostgreSQL and SQLite share, with ``?`` for each parameter and ``column == ?`` where that must match byte for
byte; what they do not share is in their :class:`notary.storage.sql.dialect.Dialect`. No table is known here.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from notary.errors import ConfigError, StorageFailed, StorageUnreachable
from notary.storage.sql.cursor import ATTEMPTS, Cursor, Duplicate, OutcomeUnknown
from notary.storage.sql.dialect import Dialect, Pool, Trouble, Usage
from notary.work.reactor import Reactor

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PAUSE: Final = 0.01
"""Seconds: the longest pause before the second attempt; it doubles each time, and chance shortens it."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a transaction runs: the statements that begin it, none if each of its statements is one by itself.

    ``turn`` is the name that it has to itself, if any.
    """

    begin: Sequence[str]
    writes: bool = False
    turn: str = ""


class _Connection(adbapi.Connection):
    """A pooled connection. What adbapi would commit or roll back, :class:`Database` has done."""

    def commit(self) -> None:
        pass

    def rollback(self) -> None:
        pass

    @property
    def driver(self) -> Any:
        """The driver's own connection."""
        return self._connection

    def drop(self) -> None:
        """Close it; whoever comes next gets a new one."""
        self._pool.disconnect(self._connection)
        self._connection = None


@dataclass(slots=True)
class _Line:
    """Those who wait for a connection, by number, in the order in which they came; ``free`` of them may have one."""

    free: int
    waiting: dict[int, _Task] = field(default_factory=dict)


@dataclass(slots=True)
class _Task:
    """Work for a connection, and who waits for it; the last three are of one that has to wait for its turn.

    ``asked`` is when it was asked for, in seconds; ``patience`` ends when it has waited for too long.
    """

    job: Callable[[_Connection], Any]
    line: _Line
    waiter: Deferred[Any]
    number: int = 0
    asked: float = 0.0
    patience: IDelayedCall | None = None


class Database:
    """A pool of connections to one database, from :func:`open_database` to :meth:`close`.

    A transaction that was begun runs to its end, whatever becomes of the Deferred that waits for it. Every method that
    runs one raises StorageFailed, StorageUnreachable if there is no connection, and what ``work`` raises.
    """

    def __init__(self, dialect: Dialect, db_url: str, reactor: Reactor, pool: Pool) -> None:
        try:
            self._driver: Any = importlib.import_module(dialect.driver)
        except ImportError as error:
            raise ConfigError(
                f'storage.backend: "{dialect.name}": its Python driver cannot be loaded ({error}); install '
                f"{dialect.needs}"
            ) from error
        self.dialect: Final = dialect
        self._reactor = reactor
        self._settings = pool
        connections = min(pool.connections, dialect.connections)
        self._pool: Any = adbapi.ConnectionPool(
            dialect.driver,
            **dialect.arguments(db_url, pool),
            cp_reactor=reactor,
            cp_min=1,
            cp_max=connections,
            cp_openfun=self._prepare,
        )
        self._pool.connectionFactory = _Connection
        self._free = connections
        self._readers = _Line(connections)
        self._writers = _Line(min(dialect.writers, connections))
        self._numbers = itertools.count()
        self._usage = pool.usage or Usage()
        self._usage.size = connections
        self._under_way = 0
        self._ending: Deferred[None] | None = None
        self._pool.start()

    def now(self) -> datetime:
        """The time, aware, UTC."""
        return datetime.fromtimestamp(self._reactor.seconds(), UTC)

    def read(self, work: Callable[Concatenate[Cursor, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        """Run ``work``, which reads with one statement, or with several that need not see the same moment."""
        return self._transact(_Kind(()), work, *args, **kwargs)

    def snapshot(
        self, work: Callable[Concatenate[Cursor, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        """Run ``work`` in a transaction that only reads, and sees one moment."""
        return self._transact(_Kind(self.dialect.begin_read), work, *args, **kwargs)

    def write(self, work: Callable[Concatenate[Cursor, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        """Run ``work`` in a transaction that may write. Raises OutcomeUnknown also."""
        return self._transact(_Kind(self.dialect.begin_write, writes=True), work, *args, **kwargs)

    def write_in_turn(
        self, name: str, work: Callable[Concatenate[Cursor, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        """As :meth:`write`, and nobody else who names the same runs at the same time, on any instance."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return self._transact(_Kind(self.dialect.begin_write, writes=True, turn=digest), work, *args, **kwargs)

    def _transact(
        self, kind: _Kind, work: Callable[Concatenate[Cursor, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        return self._run(
            partial(self._attempts, kind, lambda cursor: work(cursor, *args, **kwargs)), writes=kind.writes
        )

    def on_connection(
        self, work: Callable[Concatenate[Any, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        """Run ``work`` once, with the driver's own connection; what it leaves open is committed."""

        def job(connection: _Connection) -> _T:
            try:
                result = work(connection.driver, *args, **kwargs)
                connection.driver.commit()
            except BaseException:
                connection.drop()
                raise
            return result

        return self._run(job, writes=False)

    def close(self) -> Deferred[None]:
        """Wait for the work that is under way, then end connections and threads. May be called again."""
        if self._ending is None:
            self._ending = Deferred()
            self._ending.addCallback(self._disconnect)
            self._end_if_idle()
        waiter: Deferred[None] = Deferred()

        def pass_on(result: Failure | None) -> None:
            waiter.callback(result)

        self._ending.addBoth(pass_on)
        return waiter

    def _end_if_idle(self) -> None:
        if self._ending is not None and not self._under_way:
            self._ending.callback(None)

    def _disconnect(self, _: None) -> Deferred[None]:
        # adbapi would close the connections in the reactor's thread, and SQLite then copies its whole log.
        reactor = cast("IReactorFromThreads", self._reactor)
        done = deferToThreadPool(reactor, self._pool.threadpool, _close_all, self._pool.connections)

        def stop(result: Failure | None) -> Failure | None:
            self._pool.close()
            return result

        def translate(failure: Failure) -> None:
            raise self._translated(cast("BaseException", failure.value))

        return done.addBoth(stop).addErrback(translate)

    # -- in the reactor's thread --------------------------------------------------------------------------------------

    def _run(self, job: Callable[[_Connection], _T], *, writes: bool) -> Deferred[_T]:
        """Run ``job`` with a connection, when there is one; never cancelled half-way.

        A read that nobody has to wait for costs little more than its thread does: no Deferred but the caller's, no
        timer, no line.
        """
        waiter: Deferred[_T] = Deferred()
        if self._ending is not None:
            waiter.errback(StorageFailed("the store is closed"))
            return waiter
        self._under_way += 1
        line = self._writers if writes else self._readers
        task = _Task(job, line, waiter)
        if self._free and line.free:
            self._begin(task)
        else:
            reactor = cast("IReactorTime", self._reactor)
            task.asked = self._reactor.seconds()
            task.patience = reactor.callLater(self._settings.query_timeout, self._give_up, task)
            task.number = next(self._numbers)
            line.waiting[task.number] = task
            self._usage.waiting += 1
        return waiter

    def _begin(self, task: _Task) -> None:
        self._free -= 1
        task.line.free -= 1
        self._usage.used += 1
        self._pool.threadpool.callInThread(self._work, task)

    def _ended(self, task: _Task, result: object) -> None:
        """A task is done; ``result`` is a Failure if it is not."""
        self._free += 1
        task.line.free += 1
        self._usage.used -= 1
        if self._usage.waiting:
            self._begin_next()
        self._leave(task, result)

    def _begin_next(self) -> None:
        """Begin what has waited longest of what can begin."""
        ready = [line for line in (self._readers, self._writers) if line.free and line.waiting]
        if not ready:
            return
        number = min(next(iter(line.waiting)) for line in ready)
        task = next(line.waiting[number] for line in ready if number in line.waiting)
        self._stop_waiting(task)
        self._usage.waits += 1
        self._usage.wait_seconds += self._reactor.seconds() - task.asked
        self._begin(task)

    def _stop_waiting(self, task: _Task) -> None:
        del task.line.waiting[task.number]
        self._usage.waiting -= 1
        if task.patience is not None and task.patience.active():
            task.patience.cancel()

    def _give_up(self, task: _Task) -> None:
        self._stop_waiting(task)
        error = StorageFailed(
            f"no connection to the database has become free for {self._settings.query_timeout:g} seconds: see what "
            "keeps the database busy, or raise storage.connections"
        )
        self._leave(task, Failure(error))

    def _leave(self, task: _Task, result: object) -> None:
        self._under_way -= 1
        if self._ending is not None:
            self._end_if_idle()
        task.waiter.callback(result)  # of a failure, Twisted makes an errback

    def _translated(self, error: BaseException) -> BaseException:
        """What an error of the driver comes to; any other error as it is."""
        if not isinstance(error, self._driver.Error):
            return error
        kinds = {Trouble.DUPLICATE: Duplicate, Trouble.LOST: StorageUnreachable}
        known = kinds.get(self.dialect.trouble(error), StorageFailed)(self.dialect.explain(error))
        known.__cause__ = error
        return known

    # -- in a thread of the pool --------------------------------------------------------------------------------------

    def _work(self, task: _Task) -> None:
        """Do ``task``, and have its result told."""
        try:
            result = task.job(_Connection(self._pool))
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is the caller's
            result = Failure(self._translated(error))
        self._reactor.callFromThread(self._ended, task, result)

    def _prepare(self, connection: Any) -> None:
        try:
            self.dialect.prepare(connection, self._settings)
        except BaseException:
            connection.close()  # adbapi forgets a connection that it could not prepare
            raise

    def _attempts(self, kind: _Kind, work: Callable[[Cursor], _T], connection: _Connection) -> _T:
        """Run a transaction, again if that is safe and may help."""
        started = time.monotonic()
        lost = False
        for attempt in itertools.count(1):
            try:
                return self._attempt(kind, work, connection.driver)
            except OutcomeUnknown:
                connection.drop()
                raise
            except self._driver.Error as error:
                trouble = self.dialect.trouble(error)
                if trouble is Trouble.LOST:
                    connection.drop()
                late = time.monotonic() - started > self._settings.query_timeout / 2
                if trouble is Trouble.LOST and not lost and not late:
                    lost = True  # the database has been restarted since, or has closed what was idle
                    connection.reconnect()
                elif trouble is Trouble.CONFLICT and attempt < ATTEMPTS and not late:
                    time.sleep(random.uniform(0, _PAUSE * 2**attempt))  # noqa: S311  # no secret
                else:
                    raise
        raise AssertionError

    def _attempt(self, kind: _Kind, work: Callable[[Cursor], _T], connection: Any) -> _T:
        """Run a transaction once."""
        driver = connection.cursor()
        cursor = Cursor(driver, self.dialect)
        try:
            if not kind.begin:
                return work(cursor)
            try:
                for statement in kind.begin:
                    cursor.later(statement)
                cursor.take_turn(kind.turn)
                result = work(cursor)
                self._commit(cursor, kind.turn)
            except BaseException as error:
                if not isinstance(error, OutcomeUnknown) and not self._is_lost(error):
                    self._undo(connection, Cursor(driver, self.dialect), kind.turn)
                raise
            return result
        finally:
            with suppress(self._driver.Error):  # the connection was lost
                driver.close()

    def _commit(self, cursor: Cursor, turn: str) -> None:
        if not (cursor.begun and self.dialect.together):
            cursor.flush()  # if the connection is lost here, nothing has been committed
        cursor.later("COMMIT")
        cursor.give_turn_back(turn)
        try:
            cursor.flush()
        except self._driver.Error as error:
            if self._is_lost(error):
                raise OutcomeUnknown(
                    "the connection was lost during a commit, which may be done or not: look, or try again. "
                    f"{self.dialect.explain(error)}"
                ) from error
            raise

    def _undo(self, connection: Any, cursor: Cursor, turn: str) -> None:
        connection.rollback()
        with suppress(self._driver.Error):  # the connection was lost, and the turn with it
            cursor.give_turn_back(turn)
            cursor.flush()

    def _is_lost(self, error: BaseException) -> bool:
        return isinstance(error, self._driver.Error) and self.dialect.trouble(error) is Trouble.LOST


def _close_all(connections: dict[object, Any]) -> None:
    while connections:
        connections.popitem()[1].close()
