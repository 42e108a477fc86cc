"""mysqlclient that refuses a connection without TLS where TLS is demanded.

MariaDB's client library, on which mysqlclient is built, enforces TLS itself only when it verifies the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from MySQLdb import Error, connections, cursors
from MySQLdb.constants import FIELD_TYPE
from MySQLdb.converters import conversions

from notary.storage.sql.backends.mysql import common, dsn
from notary.storage.sql.backends.mysql.common import apilevel, threadsafety

__all__ = ["Error", "apilevel", "connect", "threadsafety"]

_CONVERSIONS: Final = common.conversions(conversions, FIELD_TYPE)


class _Cursor(common.Cursor, cursors.Cursor):  # type: ignore[misc]  # mysqlclient has no types
    def joined(self, statements: Sequence[tuple[str, Sequence[object]]]) -> bytes:
        """The statements with their values, as one message."""
        return b";".join([self._mogrify(sql, values or None) for sql, values in statements])


class _Connection(common.Connection, connections.Connection):  # type: ignore[misc]  # likewise
    pass


def connect(*, reject_read_only: bool = True, **arguments: Any) -> Any:
    """As ``MySQLdb.connect``, with the arguments of :func:`notary.storage.sql.backends.mysql.dsn.mysql`."""
    connection = _Connection(
        **arguments, use_unicode=True, binary_prefix=True, cursorclass=_Cursor, conv=dict(_CONVERSIONS)
    )
    connection.reject_read_only = reject_read_only
    connection.ask()
    dsn.demand_tls(connection, arguments)
    return connection
