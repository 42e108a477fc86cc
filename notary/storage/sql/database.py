"""A pool of connections to one database, and the statements of one transaction, through ``twisted.enterprise.adbapi``.

Rules of this module: a transaction is a plain function that takes a :class:`Cursor` and values, and runs in a thread of
the pool. The function never touches the reactor, and an error that it raises rolls the transaction back. The function
may be run more than once: a transaction that another one undid, or whose connection was lost before the commit, is
repeated. The SQL is what MySQL, PostgreSQL and SQLite share, with ``?`` for each parameter, and ``column == ?`` where a
column must match byte for byte; what differs is in the :class:`notary.storage.sql.dialect.Dialect`. This module knows
no table.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from notary.errors import ConfigError, StorageFailed, StorageUnreachable
from notary.storage.sql.connections import Care, Pooled
from notary.storage.sql.cursor import MAX_ATTEMPTS, Cursor, Duplicate, OutcomeUnknown
from notary.storage.sql.dialect import Dialect, PoolSettings, Trouble
from notary.work.machine import MACHINE, Machine
from notary.work.reactor import Reactor
from notary.work.usage import PoolUsage

_P = ParamSpec("_P")
_T = TypeVar("_T")

_RETRY_SECONDS: Final = 0.01
"""The longest pause before the second attempt. It doubles with each attempt, and the real pause is a random part."""

_ERRORS: Final[Mapping[Trouble, type[StorageFailed]]] = MappingProxyType(
    {
        Trouble.LOST: StorageUnreachable,
        Trouble.READ_ONLY: StorageUnreachable,
        Trouble.CROWDED: StorageUnreachable,
        Trouble.REFUSED: StorageFailed,
        Trouble.BUSY: StorageUnreachable,
        Trouble.CONFLICT: StorageUnreachable,
        Trouble.DUPLICATE: Duplicate,
        Trouble.OTHER: StorageFailed,
    }
)
"""The error that the caller gets. A daemon that starts waits after StorageUnreachable, and ends after any other."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a transaction runs.

    ``begin`` holds the statements that begin it; with none, each statement is a transaction by itself. ``end`` ends it.
    """

    begin: Sequence[str]
    writes: bool = False
    end: str = "COMMIT"


class _ConnectionPool(adbapi.ConnectionPool):
    """A pool whose threads are those of a machine."""

    def __init__(self, machine: Machine, driver: str, **arguments: Any) -> None:
        self._machine = machine
        super().__init__(driver, **arguments)

    def start(self) -> None:
        """Start the threads. It is called before ``__init__`` has ended if the reactor runs."""
        if not self.running:
            self.threadpool = self._machine.thread_pool(self.min, self.max)
            self.threadID = self._machine.thread_id
        super().start()


@dataclass(slots=True)
class _Queue:
    """The tasks that wait for a connection, by number, in order of arrival.

    ``free`` is how many more tasks of this queue may run now.
    """

    free: int
    waiting: dict[int, _Task] = field(default_factory=dict)


@dataclass(slots=True)
class _Task:
    """Work for a connection; ``waiter`` gets the result.

    A task that must wait has a ``number`` in its queue, the time ``asked`` (seconds) at which it was queued, and the
    timer ``patience`` that ends its wait.
    """

    job: Callable[[Pooled], Any]
    queue: _Queue
    waiter: Deferred[Any]
    number: int = 0
    asked: float = 0.0
    patience: IDelayedCall | None = None


class Database:
    """A pool of connections to one database, from :func:`open_database` to :meth:`close`.

    A transaction that was begun runs to its end, even if the Deferred that waits for it is cancelled. Every method that
    runs a transaction raises StorageFailed, StorageUnreachable if there is no connection, and what ``work`` raises.
    """

    def __init__(
        self, dialect: Dialect, db_url: str, reactor: Reactor, pool: PoolSettings, machine: Machine = MACHINE
    ) -> None:
        try:
            self._driver: Any = importlib.import_module(dialect.driver)
        except ImportError as error:
            raise ConfigError(
                f'storage.backend: "{dialect.name}": its Python driver cannot be loaded ({error}); install '
                f"{dialect.needs}"
            ) from error
        self.dialect: Final = dialect
        self._reactor = reactor
        self._machine = machine
        self.chance: Final = machine.random
        """Where no secret depends on it."""
        self.beside: Callable[[PoolSettings], Database] = partial(Database, dialect, db_url, reactor, machine=machine)
        """Opens the same database a second time, with other settings."""
        self.settings: Final = pool
        self.is_full = False
        """Whether the disk of the database was full when something was last written. May be set to false."""
        self.care: Final = Care(
            dialect, pool, lambda error: isinstance(error, self._driver.Error), reactor.seconds, machine
        )
        connections = min(pool.connections, dialect.connections)
        self._pool: Any = _ConnectionPool(
            machine,
            dialect.driver,
            **dialect.arguments(db_url, pool),
            cp_reactor=reactor,
            cp_min=1,
            cp_max=connections,
            cp_openfun=self._prepare,
        )
        self._free = connections
        self._readers = _Queue(connections)
        self._writers = _Queue(min(dialect.writers, connections))
        self._numbers = itertools.count()
        self._usage = pool.usage or PoolUsage()
        self._usage.size = connections
        self._under_way = 0
        self._ending: Deferred[None] | None = None
        self._pool.start()

    def now(self) -> datetime:
        """The time, aware, UTC."""
        return self._machine.utc_now()

    def read(self, work: Callable[Concatenate[Cursor, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        """Run ``work``, which reads with one statement, or with several that may see different moments."""
        return self._transact(_Kind(()), work, *args, **kwargs)

    def snapshot(
        self, work: Callable[Concatenate[Cursor, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        """Run ``work`` in a transaction that only reads, and sees one moment."""
        return self._transact(_Kind(self.dialect.begin_read), work, *args, **kwargs)

    def write(self, work: Callable[Concatenate[Cursor, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        """Run ``work`` in a transaction that may write. Raises also OutcomeUnknown."""
        return self._transact(_Kind(self.dialect.begin_write, writes=True), work, *args, **kwargs)

    def undone(self, work: Callable[Concatenate[Cursor, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        """Run ``work`` in a transaction that may write, and is rolled back at the end."""
        kind = _Kind(self.dialect.begin_write, writes=True, end="ROLLBACK")
        return self._transact(kind, work, *args, **kwargs)

    def _transact(
        self, kind: _Kind, work: Callable[Concatenate[Cursor, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        return self._run(
            partial(self._attempts, kind, lambda cursor: work(cursor, *args, **kwargs)), writes=kind.writes
        )

    def on_connection(
        self, work: Callable[Concatenate[Any, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        """Run ``work`` once, with the driver's own connection; a transaction that it leaves open is committed."""

        def job(connection: Pooled) -> _T:
            try:
                result = work(connection.driver, *args, **kwargs)
                connection.driver.commit()
            except BaseException:
                connection.drop()
                raise
            return result

        return self._run(job, writes=False)

    def close(self) -> Deferred[None]:
        """Wait for running work, then end connections and threads. May be called again."""
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

    def _run(self, job: Callable[[Pooled], _T], *, writes: bool) -> Deferred[_T]:
        """Run ``job`` with a connection, as soon as one is free; a running job is never cancelled.

        A job that need not wait costs little more than its thread does: it has no Deferred but the caller's, no timer
        and no place in a queue.
        """
        waiter: Deferred[_T] = Deferred()
        if self._ending is not None:
            waiter.errback(StorageFailed("the store is closed"))
            return waiter
        self._under_way += 1
        queue = self._writers if writes else self._readers
        task = _Task(job, queue, waiter)
        if self._free and queue.free:
            self._begin(task)
        else:
            reactor = cast("IReactorTime", self._reactor)
            task.asked = self._reactor.seconds()
            task.patience = reactor.callLater(self.settings.query_timeout, self._give_up, task)
            task.number = next(self._numbers)
            queue.waiting[task.number] = task
            self._usage.waiting += 1
        return waiter

    def _begin(self, task: _Task) -> None:
        self._free -= 1
        task.queue.free -= 1
        self._usage.used += 1
        self._pool.threadpool.callInThread(self._work, task)

    def _ended(self, task: _Task, result: object) -> None:
        """Take the result of a task, a Failure if the task failed."""
        self._free += 1
        task.queue.free += 1
        self._usage.used -= 1
        if self._usage.waiting:
            self._begin_waiting()
        self._finish(task, result)

    def _begin_waiting(self) -> None:
        """Begin the task that has waited longest, of those that may run."""
        ready = [queue for queue in (self._readers, self._writers) if queue.free and queue.waiting]
        if not ready:
            return
        number = min(next(iter(queue.waiting)) for queue in ready)
        task = next(queue.waiting[number] for queue in ready if number in queue.waiting)
        self._stop_waiting(task)
        self._usage.waits += 1
        self._usage.wait_seconds += self._reactor.seconds() - task.asked
        self._begin(task)

    def _stop_waiting(self, task: _Task) -> None:
        del task.queue.waiting[task.number]
        self._usage.waiting -= 1
        if task.patience is not None and task.patience.active():
            task.patience.cancel()

    def _give_up(self, task: _Task) -> None:
        self._stop_waiting(task)
        error = StorageFailed(
            f"no connection to the database has become free for {self.settings.query_timeout:g} seconds: see what "
            "keeps the database busy, or raise storage.connections"
        )
        self._finish(task, Failure(error))

    def _finish(self, task: _Task, result: object) -> None:
        self._under_way -= 1
        if self._ending is not None:
            self._end_if_idle()
        task.waiter.callback(result)  # of a failure, Twisted makes an errback

    def _translated(self, error: BaseException) -> BaseException:
        """Turn an error of the driver into one of ours; return any other error unchanged."""
        if not isinstance(error, self._driver.Error):
            return error
        known = _ERRORS[self.dialect.trouble(error)](self.dialect.explain(error))
        known.__cause__ = error
        return known

    # -- in a thread of the pool --------------------------------------------------------------------------------------

    def _work(self, task: _Task) -> None:
        """Do ``task``, and pass its result to the reactor's thread."""
        try:
            result = task.job(Pooled(self._pool, self.care))
        except BaseException as error:  # noqa: BLE001  # the caller gets every error
            result = Failure(self._translated(error))
        self._reactor.callFromThread(self._ended, task, result)

    def _prepare(self, connection: Any) -> None:
        try:
            self.dialect.prepare(connection, self.settings)
        except BaseException:
            connection.close()  # adbapi forgets a connection that it could not prepare
            raise
        self.care.begin()

    def _attempts(self, kind: _Kind, work: Callable[[Cursor], _T], connection: Pooled) -> _T:
        """Run a transaction; repeat it if that is safe and may help."""
        started = self._reactor.seconds()
        moved = False
        for attempt in itertools.count(1):
            try:
                result = self._attempt(kind, work, connection.driver)
            except OutcomeUnknown as error:
                self.is_full = self.is_full or self.dialect.is_full(cast("Exception", error.__cause__))
                connection.drop()
                raise
            except self._driver.Error as error:
                trouble = self.dialect.trouble(error)
                ends = trouble in {Trouble.LOST, Trouble.READ_ONLY}
                self.is_full = self.is_full or self.dialect.is_full(error)
                if trouble is Trouble.READ_ONLY:
                    self.care.refused()
                if ends:
                    connection.drop()
                late = self._reactor.seconds() - started > self.settings.query_timeout / 2
                if ends and not moved and not late:
                    # The database was restarted, has closed an idle connection, or another server has its place now.
                    moved = True
                    connection.reconnect()
                elif trouble is Trouble.CONFLICT and attempt < MAX_ATTEMPTS and not late:
                    self._machine.sleep(self._machine.random.uniform(0, _RETRY_SECONDS * 2**attempt))
                else:
                    raise
            else:
                if kind.writes:
                    self.care.accepted()
                return result
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
                result = work(cursor)
                self._end(cursor, kind.end)
            except BaseException as error:
                if not isinstance(error, OutcomeUnknown) and not self._is_lost(error):
                    connection.rollback()
                raise
            return result
        finally:
            with suppress(self._driver.Error):  # the connection was lost
                driver.close()

    def _end(self, cursor: Cursor, statement: str) -> None:
        if not (cursor.begun and cursor.together):
            cursor.flush()  # if the connection is lost here, nothing has been committed
        cursor.later(statement)
        try:
            cursor.flush()
        except self._driver.Error as error:
            if statement == "COMMIT" and self._is_lost(error) and not cursor.refused_early:
                raise OutcomeUnknown(
                    "the connection was lost during a commit, which may be done or not: look, or try again. "
                    f"{self.dialect.explain(error)}"
                ) from error
            raise

    def _is_lost(self, error: BaseException) -> bool:
        return isinstance(error, self._driver.Error) and self.dialect.trouble(error) is Trouble.LOST


def _close_all(connections: dict[object, Any]) -> None:
    while connections:
        connections.popitem()[1].close()
