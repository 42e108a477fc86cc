"""PyMySQL behind the names, the arguments and the numbers of errors of mysqlclient: the driver where no C library is.

PyMySQL gives one number to every failure of a connection that the server has not explained. The cause decides here.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from pymysql import Error, OperationalError, connections, cursors
from pymysql.constants import CLIENT, CR, FIELD_TYPE
from pymysql.converters import conversions

from notary.storage.sql.backends.mysql import common
from notary.storage.sql.backends.mysql.common import apilevel, threadsafety

__all__ = ["Error", "apilevel", "connect", "threadsafety"]

_CONVERSIONS: Final = common.conversions(conversions, FIELD_TYPE)

_TLS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "DISABLED": {"ssl_disabled": True},
        "PREFERRED": {"ssl": None},
        "REQUIRED": {"ssl": {"verify_mode": False}},
        "VERIFY_IDENTITY": {},  # the trusted authorities are enough
    }
)
"""PyMySQL's arguments, by mysqlclient's ``ssl_mode``."""

_NO_TIMEOUT_SECONDS: Final = 31_536_000
"""The longest time that PyMySQL waits for a connection."""


_AS_BYTES: Final = "surrogateescape"
"""How bytes that are no ASCII stand in the text of a message."""


class _Cursor(common.Cursor, cursors.Cursor):  # type: ignore[misc]  # PyMySQL has no types
    def joined(self, statements: Sequence[tuple[str, Sequence[object]]]) -> str:
        """The statements with their values, as one message."""
        return ";".join([self.mogrify(sql, values or None) for sql, values in statements])


class _Connection(common.Connection, connections.Connection):  # type: ignore[misc]  # likewise
    def connect(self, sock: Any = None) -> None:
        """As PyMySQL's, with its time-out for the greeting of the server too."""
        self._read_timeout, afterwards = self.connect_timeout, self._read_timeout
        super().connect(sock)
        self._read_timeout = afterwards

    def escape(self, value: object, mapping: Any = None) -> Any:
        """As PyMySQL's, but bytes as a text: in hexadecimal, only half as much would go in one message."""
        if isinstance(value, bytes):
            return f"_binary{super().escape(value.decode('ascii', _AS_BYTES))}"
        if isinstance(value, str):
            value.encode()  # fails on what only bytes may become
        return super().escape(value, mapping)

    def query(self, message: str, **options: Any) -> Any:
        """As PyMySQL's, but that a connection that was lost before has a number of its own."""
        if not self.open:
            raise self.OperationalError(CR.CR_SERVER_GONE_ERROR, "the connection was lost before")
        return super().query(message.encode("utf-8", _AS_BYTES), **options)

    def rollback(self) -> None:
        """As PyMySQL's; a connection that was lost has nothing to roll back."""
        if self.open:
            super().rollback()


def _number(cause: OSError) -> int:
    """The number of an error that mysqlclient would have raised where no connection could be made."""
    if isinstance(cause, socket.gaierror):
        return int(CR.CR_UNKNOWN_HOST)
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return int(CR.CR_SSL_CONNECTION_ERROR)
    return int(CR.CR_CONN_HOST_ERROR)


def _arguments(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """PyMySQL's arguments, from those of mysqlclient: it neither compresses nor takes 0 for no time-out."""
    rest = {**given}
    several, mode = rest.pop("multi_statements", False), rest.pop("ssl_mode")
    rest.pop("compress", None)
    return {
        **rest,
        **_TLS[mode],
        "client_flag": CLIENT.MULTI_STATEMENTS if several else 0,
        "connect_timeout": given.get("connect_timeout") or _NO_TIMEOUT_SECONDS,
        "password": given["password"].encode(),  # PyMySQL would write it in Latin-1
        "read_timeout": given.get("read_timeout") or None,
        "write_timeout": given.get("write_timeout") or None,
    }


def connect(*, reject_read_only: bool = True, **arguments: Any) -> Any:
    """As ``MySQLdb.connect``, with the arguments of :func:`notary.storage.sql.backends.mysql.dsn.mysql`."""
    try:
        connection = _Connection(**_arguments(arguments), cursorclass=_Cursor, conv=dict(_CONVERSIONS))
    except OperationalError as error:
        cause = getattr(error, "original_exception", None)
        if cause is None:
            raise
        raise OperationalError(_number(cause), error.args[1]) from cause
    connection.reject_read_only = reject_read_only
    connection.ask()
    return connection
