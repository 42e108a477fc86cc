"""psycopg with a limit on the time that a server may take to answer, and with binary results.

libpq by itself waits for ever for a server that holds its connection open and does nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from datetime import datetime
from time import monotonic
from typing import Any, Final, TypeVar

from psycopg import Connection, DataError, Error, OperationalError, apilevel, threadsafety
from psycopg.types.datetime import TimestampBinaryLoader, TimestamptzBinaryLoader

__all__ = ["Error", "apilevel", "connect", "threadsafety"]

_T = TypeVar("_T")

_NO_TIME: Final = datetime.min  # noqa: DTZ901  # the columns hold no zone


def _within(seconds: float, waiting: Generator[Any, Any, _T]) -> Generator[Any, Any, _T]:
    """Limit an exchange with the server to ``seconds``; psycopg 3.2.11 resumes this generator ten times a second.

    The C part of releases before it resumes no generator while nothing comes.
    """
    deadline = monotonic() + seconds
    try:
        wanted = next(waiting)
        while True:
            ready = yield wanted
            if not ready and monotonic() > deadline:
                raise OperationalError(f"no answer within {seconds:g} seconds")
            wanted = waiting.send(ready)
    except StopIteration as end:
        result: _T = end.value
        return result


class _Timestamp(TimestampBinaryLoader):
    """Loads times; one that Python cannot hold, such as infinity, becomes the first that it can."""

    def load(self, data: Any) -> datetime:
        try:
            return super().load(data)
        except DataError:
            return _NO_TIME


class _Timestamptz(TimestamptzBinaryLoader):
    """The same for times with a zone."""

    def load(self, data: Any) -> datetime:
        try:
            return super().load(data)
        except DataError:
            return _NO_TIME


class _Connection(Connection[Any]):
    answer_within = 60.0
    """The limit in seconds, which the dialect sets."""

    def wait(self, gen: Generator[Any, Any, _T], *arguments: Any, **options: Any) -> _T:
        return super().wait(_within(self.answer_within, gen), *arguments, **options)

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        return super().cursor(*arguments, **{"binary": True, **options})


def connect(**arguments: Any) -> Connection[Any]:
    """As ``psycopg.connect``."""
    connection = _Connection.connect(**arguments)
    connection.adapters.register_loader("timestamp", _Timestamp)
    connection.adapters.register_loader("timestamptz", _Timestamptz)
    return connection
