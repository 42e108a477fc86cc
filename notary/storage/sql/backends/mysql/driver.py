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


class _Cursor(Cursor):  # type: ignore[misc]  # mysqlclient has no types
    """A cursor that knows the size limit of the server, and can run several statements in one message."""

    def execute_together(self, statements: Sequence[tuple[str, Sequence[object], list[Any]]]) -> None:
        """Run statements in one message to the server: the text of each, its values, and where its rows go.

        Values are escaped into the text as for a single statement, so no value can end its statement.
        """
        self._discard()
        self._query(b";".join([self._mogrify(sql, values or None) for sql, values, _ in statements]))
        for number, (_, _, rows) in enumerate(statements):
            if number:
                self.nextset()
            if self.description is not None:
                rows.extend(self.fetchall())

    def _query(self, q: bytes) -> int:
        if len(q) >= self.connection.max_allowed_packet:
            raise OperationalError(_TOO_LARGE, f"{len(q)} bytes, and at most {self.connection.max_allowed_packet} go")
        rows: int = super()._query(q)
        return rows


class _Connection(Connection):  # type: ignore[misc]  # likewise
    max_allowed_packet = 1 << 20

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments, cursorclass=_Cursor, conv=dict(_CONVERSIONS))
        cursor = self.cursor()
        cursor.execute("SELECT @@max_allowed_packet")
        (self.max_allowed_packet,) = cursor.fetchone()
        cursor.close()


def connect(**arguments: Any) -> Connection:
    """As ``MySQLdb.connect``."""
    connection = _Connection(**arguments)
    dsn.demand_tls(connection, arguments)
    return connection
