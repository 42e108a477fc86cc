"""mysqlclient that refuses a connection without TLS where TLS is demanded, and a statement that is too large.

The server ends the connection in the middle of a statement that is too large, which looks like the death of the server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from MySQLdb import Error, OperationalError, apilevel, threadsafety
from MySQLdb.connections import Connection
from MySQLdb.constants import FIELD_TYPE
from MySQLdb.converters import conversions
from MySQLdb.cursors import Cursor

from notary.storage.sql.backends.mysql import dsn

__all__ = ["Error", "apilevel", "connect", "threadsafety"]

_TOO_LARGE = 1153

_OF_THE_CLIENT: Final = 2000
"""The lowest number of an error that is not the server's."""

_NO_TIME: Final = datetime.min  # noqa: DTZ901  # the columns hold no zone
"""Stands for a date of zeros, which is not NULL, and which the driver itself would return as None."""


def _to_time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return _NO_TIME


def _from_time(when: datetime, _: object) -> str:
    return "'0000-00-00 00:00:00'" if when == _NO_TIME else f"'{when.isoformat(' ')}'"


_CONVERSIONS: Final[Mapping[object, Callable[..., Any]]] = MappingProxyType(
    {**conversions, FIELD_TYPE.TIMESTAMP: _to_time, FIELD_TYPE.DATETIME: _to_time, datetime: _from_time}
)
"""How values are converted, by the type of a column and by the type of a parameter."""


def _number(error: Exception) -> int:
    number = error.args[0] if error.args else 0
    return number if isinstance(number, int) else 0


class _Cursor(Cursor):  # type: ignore[misc]  # mysqlclient has no types
    """A cursor that knows the size limit of the server, and can run several statements in one message."""

    def execute_together(self, statements: Sequence[tuple[str, Sequence[object], list[Any]]]) -> None:
        """Run statements in one message to the server: the text of each, its values, and where its rows go.

        Values are escaped into the text as for a single statement, so no value can end its statement.
        """
        self._discard()
        number = 0
        try:
            self._query(b";".join([self._mogrify(sql, values or None) for sql, values, _ in statements]))
            for number, (_, _, rows) in enumerate(statements):
                if number:
                    self.nextset()
                if self.description is not None:
                    rows.extend(self.fetchall())
        except Error as error:
            self.refused_early = number < len(statements) - 1 and 0 < _number(error) < _OF_THE_CLIENT
            raise

    refused_early = False
    """Whether the server has refused a statement of a message that had others behind it, which it then did not run."""

    def nextset(self) -> int | None:
        """As that of MySQLdb."""
        try:
            more: int | None = super().nextset()
        except Error as error:
            self._mark(error)
            raise
        return more

    def _query(self, q: bytes) -> int:
        if len(q) >= self.connection.max_allowed_packet:
            raise OperationalError(_TOO_LARGE, f"{len(q)} bytes, and at most {self.connection.max_allowed_packet} go")
        try:
            rows: int = super()._query(q)
        except Error as error:
            self._mark(error)
            raise
        return rows

    def _mark(self, error: Exception) -> None:
        """Say of an error whether the ``db_url`` wants the connection to stay with a server that takes no writes."""
        error.stays = _number(error) in dsn.READ_ONLY and not self.connection.reject_read_only  # type: ignore[attr-defined]


class _Connection(Connection):  # type: ignore[misc]  # likewise
    max_allowed_packet = 1 << 20

    reject_read_only = True
    """Whether a connection to a server that takes no writes is to be given up."""

    is_clustered = False
    """Whether the server is a node of a Galera cluster, which aborts transactions from outside."""

    def __init__(self, *, reject_read_only: bool = True, **arguments: Any) -> None:
        super().__init__(**arguments, cursorclass=_Cursor, conv=dict(_CONVERSIONS))
        self.reject_read_only = reject_read_only
        cursor = self.cursor()
        # In this way a variable may be missing.
        cursor.execute(f"SHOW VARIABLES WHERE Variable_name IN {('max_allowed_packet', *dsn.GALERA_VARIABLES)}")
        found = dict(cursor.fetchall())
        cursor.close()
        self.max_allowed_packet = int(found["max_allowed_packet"])
        self.is_clustered = dsn.is_galera(found)


def connect(**arguments: Any) -> Connection:
    """As ``MySQLdb.connect``."""
    connection = _Connection(**arguments)
    dsn.demand_tls(connection, arguments)
    return connection
