"""What both drivers do alike: times, several statements in one message, and the questions to a new server.

Rules of this module: pure but for statements on the connection at hand; it knows what the two libraries have in common,
and imports neither. A class here is mixed in before a library's own.

A server ends the connection in the middle of a statement that is too large, which looks like the server's death. So
such a statement is refused before it is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from notary.storage.sql.backends.mysql import dsn

apilevel: Final = "2.0"
threadsafety: Final = 1

_TOO_LARGE: Final = 1153

_OF_THE_CLIENT: Final = 2000
"""The lowest number of an error that is not the server's."""

_NO_TIME: Final = datetime.min  # noqa: DTZ901  # the columns hold no zone
"""Stands for a date of zeros, which is not NULL, and which neither library returns as a time."""


def _to_time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return _NO_TIME


def _from_time(when: datetime, _: object) -> str:
    return "'0000-00-00 00:00:00'" if when == _NO_TIME else f"'{when.isoformat(' ')}'"


def conversions(theirs: Mapping[Any, Any], field_type: Any) -> Mapping[object, Callable[..., Any]]:
    """Return how values are converted, by the type of a column and by the type of a parameter.

    ``theirs`` are the conversions of a library, ``field_type`` is its module with the numbers of types.
    """
    return MappingProxyType(
        {**theirs, field_type.TIMESTAMP: _to_time, field_type.DATETIME: _to_time, datetime: _from_time}
    )


def _number(error: Exception) -> int:
    number = error.args[0] if error.args else 0
    return number if isinstance(number, int) else 0


class Cursor:
    """Runs several statements in one message. The class that it is mixed into has ``joined``."""

    connection: Any
    description: Any
    execute: Callable[..., Any]
    fetchall: Callable[[], Sequence[Any]]
    joined: Callable[[Sequence[tuple[str, Sequence[object]]]], bytes | str]
    nextset: Callable[[], Any]

    refused_early = False
    """Whether the server has refused a statement of a message that had others behind it, which it then did not run."""

    def execute_together(self, statements: Sequence[tuple[str, Sequence[object], list[Any]]]) -> None:
        """Run statements in one message to the server: the text of each, its values, and where its rows go.

        Values are escaped into the text as for a single statement, so no value can end its statement.
        """
        number = 0
        try:
            self.execute(self.joined([(sql, values) for sql, values, _ in statements]))
            for number, (_, _, rows) in enumerate(statements):
                if number:
                    self.nextset()
                if self.description is not None:
                    rows.extend(self.fetchall())
        except self.connection.Error as error:
            self.refused_early = number < len(statements) - 1 and 0 < _number(error) < _OF_THE_CLIENT
            raise


class Connection:
    """Refuses a message that is too large, and says of errors whether the connection may stay."""

    Error: type[Exception]
    OperationalError: type[Exception]
    cursor: Callable[[], Any]

    max_allowed_packet = 1 << 20

    reject_read_only = True
    """Whether a connection to a server that takes no writes is to be given up."""

    is_clustered = False
    """Whether the server is a node of a Galera cluster, which aborts transactions from outside."""

    def ask(self) -> None:
        """Ask the server for its limit, and for its kind."""
        cursor = self.cursor()
        # In this way a variable may be missing.
        cursor.execute(f"SHOW VARIABLES WHERE Variable_name IN {('max_allowed_packet', *dsn.GALERA_VARIABLES)}")
        found = dict(cursor.fetchall())
        cursor.close()
        self.max_allowed_packet = int(found["max_allowed_packet"])
        self.is_clustered = dsn.is_galera(found)

    def query(self, message: Any, **options: Any) -> Any:
        """As the library's own."""
        if len(message) >= self.max_allowed_packet:
            raise self.OperationalError(_TOO_LARGE, f"{len(message)} bytes, and at most {self.max_allowed_packet} go")
        try:
            return super().query(message, **options)  # type: ignore[misc]  # the library's
        except self.Error as error:
            self._mark(error)
            raise

    def next_result(self, **options: Any) -> Any:
        """As the library's own."""
        try:
            return super().next_result(**options)  # type: ignore[misc]  # the library's
        except self.Error as error:
            self._mark(error)
            raise

    def _mark(self, error: Exception) -> None:
        """Say of an error whether the ``db_url`` wants the connection to stay with a server that takes no writes."""
        error.stays = _number(error) in dsn.READ_ONLY and not self.reject_read_only  # type: ignore[attr-defined]
