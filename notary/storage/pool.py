"""A pool of connections to one database, and the statements of one transaction, through ``twisted.enterprise.adbapi``.

Rules of this module: one plain function a transaction, which takes a :class:`Cursor` and values and runs in a thread of
the pool; it never touches the reactor, and what it raises rolls the transaction back. The SQL is what MySQL, PostgreSQL
and SQLite share, with ``?`` for each parameter; what they do not share is in ``dialect.py``. No table is known here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, cast

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred, DeferredSemaphore, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from notary.errors import ConfigError, StorageFailed
from notary.storage.dialect import Dialect

_P = ParamSpec("_P")
_T = TypeVar("_T")
Row = Sequence[Any]


class Reactor(Protocol):
    """What a store needs of the reactor itself; ``adbapi`` also starts and stops with it (IReactorCore)."""

    def seconds(self) -> float:
        """The time in seconds since the epoch."""
        ...

    def callFromThread(self, call: Callable[..., object], *args: object, **kwargs: object) -> object:
        """Run ``call`` in the reactor's thread."""
        ...


class Duplicate(StorageFailed):
    """A unique key was violated."""


class Cursor:
    """The statements of one transaction; each method says how many rows it expects."""

    def __init__(self, transaction: Any, dialect: Dialect) -> None:
        self._transaction = transaction
        self._placeholder = dialect.placeholder

    def run(self, sql: str, *values: object) -> int:
        """Run a statement; the number of rows it changed."""
        self._transaction.execute(sql.replace("?", self._placeholder), values)
        count: int = self._transaction.rowcount
        return count

    def all(self, sql: str, *values: object) -> Sequence[Row]:
        """Run a query; every row."""
        self.run(sql, *values)
        rows: Sequence[Row] = self._transaction.fetchall()
        return rows

    def first(self, sql: str, *values: object) -> Row | None:
        """Run a query that gives one row or none."""
        rows = self.all(sql, *values)
        return rows[0] if rows else None


class Database:
    """A pool of connections to one database, from :func:`open_database` to :meth:`close`.

    A transaction that was begun runs to its end, whatever becomes of the Deferred that waits for it.
    """

    def __init__(self, dialect: Dialect, db_url: str, reactor: Reactor) -> None:
        try:
            self._driver: Any = importlib.import_module(dialect.driver)
        except ImportError as error:
            raise ConfigError(
                f'storage.backend: "{dialect.name}": the Python module {dialect.driver} is missing; install '
                f"{dialect.needs}"
            ) from error
        self.dialect: Final = dialect
        self._reactor = reactor
        self._pool: Any = adbapi.ConnectionPool(
            dialect.driver,
            **dialect.arguments(db_url),
            cp_reactor=reactor,
            cp_min=1,
            cp_max=dialect.connections,
            cp_openfun=self._prepare,
        )
        self._turns = DeferredSemaphore(dialect.writers)
        self._under_way = 0
        self._ending: Deferred[None] | None = None
        self._pool.start()

    def now(self) -> datetime:
        """The time, aware, UTC."""
        return datetime.fromtimestamp(self._reactor.seconds(), UTC)

    def read(self, work: Callable[Concatenate[Cursor, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        """Run ``work`` in a transaction that sees one moment. Raises StorageFailed, and what ``work`` raises."""
        return self._run(lambda: self._begin(self.dialect.begin_read, lambda cursor: work(cursor, *args, **kwargs)))

    def write(self, work: Callable[Concatenate[Cursor, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        """Run ``work`` in a transaction that may write. Raises StorageFailed, and what ``work`` raises."""
        return self._run(
            lambda: self._turns.run(self._begin, self.dialect.begin_write, lambda cursor: work(cursor, *args, **kwargs))
        )

    def on_connection(
        self, work: Callable[Concatenate[Any, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        """Run ``work``, which begins its own transactions. Raises StorageFailed, and what ``work`` raises."""
        return self._run(lambda: self._pool.runWithConnection(work, *args, **kwargs))

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

        return done.addBoth(stop).addErrback(self._translate)

    def _begin(self, begin: str, work: Callable[[Cursor], _T]) -> Deferred[_T]:
        def interaction(transaction: Any) -> _T:
            transaction.execute(begin)
            return work(Cursor(transaction, self.dialect))

        return cast("Deferred[_T]", self._pool.runInteraction(interaction))

    def _run(self, start: Callable[[], Deferred[_T]]) -> Deferred[_T]:
        """Count what is under way, translate the driver's errors, and keep the work from being cancelled half-way."""
        if self._ending is not None:
            return fail(StorageFailed("the store is closed"))
        waiter: Deferred[_T] = Deferred()
        self._under_way += 1

        def done(result: _T | Failure) -> _T | Failure:
            self._under_way -= 1
            self._end_if_idle()
            return result

        start().addErrback(self._translate).addBoth(done).addCallbacks(waiter.callback, waiter.errback)
        return waiter

    def _translate(self, failure: Failure) -> None:
        failure.trap(self._driver.Error)
        error = cast("Exception", failure.value)
        kind = Duplicate if self.dialect.duplicate(error) else StorageFailed
        raise kind(self.dialect.explain(error)) from error

    def _prepare(self, connection: Any) -> None:
        try:
            self.dialect.prepare(connection)
        except BaseException:
            connection.close()  # adbapi forgets a connection that it could not prepare
            raise


def _close_all(connections: dict[object, Any]) -> None:
    while connections:
        connections.popitem()[1].close()


def insert(cursor: Cursor, table: str, values: Mapping[str, object]) -> None:
    """Insert a row; table and columns are always written out in our own modules."""
    marks = ", ".join("?" * len(values))
    cursor.run(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", *values.values())  # noqa: S608
