"""From a Go DSN of MySQL to what mysqlclient takes.

Rules of this module: strings in, keyword arguments out; nothing is connected or resolved. The form is that of Go's
driver (https://github.com/go-sql-driver/mysql, "DSN"). No error shows any text of a ``db_url``
(:mod:`notary.storage.sql.db_url`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from math import ceil
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, unquote_plus

from notary.errors import StorageFailed
from notary.storage.sql.db_url import check_text, decoded, system_roots, wrong

_MAX_PORT: Final = 0xFFFF

READ_ONLY: Final = (1290, 1792, 1836)
"""Numbers of errors after which Go's driver gives a connection up, if the ``db_url`` says ``rejectReadOnly=true``."""

GALERA_VARIABLES: Final = ("wsrep_on", "wsrep_provider")
"""The variables by which :func:`is_galera` knows a node of a cluster."""


def is_galera(variables: Mapping[str, str]) -> bool:
    """Return whether a server with these variables is a node of a Galera cluster."""
    return variables.get("wsrep_on") == "ON" and variables.get("wsrep_provider") not in {None, "", "none"}


def mysql(db_url: str, roots: Callable[[], str] = system_roots) -> Mapping[str, Any]:
    """Keyword arguments for mysqlclient's ``MySQLdb.connect``.

    The grammar is ``[user[:password]@][net[(address)]]/database[?parameter=value&…]``, split as Go splits it: at the
    last ``/``, the last ``@`` before it, the first ``:`` before that. So a password may hold anything but is never
    encoded. :data:`_MYSQL` says what becomes of each parameter; any other one is a session variable. ``roots`` names
    the file of trusted authorities, and is called only if there is something to verify.

    The argument ``reject_read_only`` is for our own driver, which passes the others on.

    MariaDB's client library falls back to plain text where TLS is asked for without verification and the server has
    none. So call :func:`demand_tls` on each new connection.

    Raises ConfigError.
    """
    check_text(db_url)
    slash = db_url.rfind("/")
    if slash < 0:
        raise wrong("its end", "expected / and the name of the database, as in user:password@tcp(host:port)/database")
    at = db_url.rfind("@", 0, slash)
    user, _, password = db_url[: max(at, 0)].partition(":")
    address = _address(db_url, at + 1, slash)
    database, _, parameters = db_url[slash + 1 :].partition("?")
    arguments: dict[str, Any] = {
        "user": user,
        "password": password,
        "database": decoded(database, unquote, "the name of the database"),
        **address,
        "charset": "utf8mb4",
        "ssl_mode": "DISABLED",
        "local_infile": 0,
        "multi_statements": True,
    }
    if not user:  # the client library would take the name of the operating system's user instead
        raise wrong("its beginning", "expected the name of a user, as in user:password@tcp(host:port)/database")
    if not database:
        raise wrong("its end", "expected the name of the database after the last /")
    arguments.update(_mysql_options(parameters, len(db_url) - len(parameters)))
    if arguments["ssl_mode"] == "VERIFY_IDENTITY":
        if "unix_socket" in arguments:
            raise wrong("tls", "expected no verification with a Unix socket, which has no host name to verify")
        arguments["ssl"] = {"ca": roots()}
    return MappingProxyType(arguments)


def demand_tls(connection: Any, arguments: Mapping[str, Any]) -> None:
    """Check that a connection opened with ``arguments`` of :func:`mysql` is encrypted if the ``db_url`` demands it.

    Raises StorageFailed. MariaDB's client library enforces TLS itself only when it verifies the server.
    """
    if arguments["ssl_mode"] != "REQUIRED":
        return
    cursor = connection.cursor()
    cursor.execute("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
    if not any(value for _, value in cursor.fetchall()):
        raise StorageFailed(
            "the database server does not offer TLS, and storage.db_url demands it (tls=skip-verify): set up TLS "
            "there, or say tls=preferred or tls=false"
        )


def _address(db_url: str, start: int, end: int) -> Mapping[str, Any]:
    """Parse the text between ``@`` and ``/``: ``net``, ``net(address)`` or nothing."""
    transport = db_url[start:end]
    net, parenthesis, address = transport.partition("(")
    if parenthesis and not transport.endswith(")"):
        if ")" in address:
            raise wrong(end, "expected ) before this /, the last one; in a parameter's value, / is written %2F")
        raise wrong(end, "expected ) before this /, to end the address")
    address = address[:-1]
    if net == "unix":
        return {"unix_socket": address or "/tmp/mysql.sock"}  # noqa: S108  # Go's default
    if net not in {"", "tcp"}:
        raise wrong(
            start,
            "expected tcp(host:port) or unix(path) between the @ after the password and the last /, as in "
            "user:password@tcp(host:port)/database",
        )
    host, port = _host_and_port(address, start + len(net) + 1)
    # Both client libraries take exactly this spelling for their Unix socket, and ignore the port.
    return {"host": "LOCALHOST" if host == "localhost" else host, "port": port}


def _host_and_port(address: str, start: int) -> tuple[str, int]:
    """Parse ``host``, ``host:port``, ``[IPv6]:port`` or an IPv6 address alone; ``start`` is its index in the whole."""
    found = re.fullmatch(
        r"\[([^\[\]()\s]+)\](?::([^:]+))?|([^:\[\]()\s]*)(?::([^:]+))?|([^:\[\]()\s]*(?::[^:\[\]()\s]*){2,})", address
    )
    if not found:
        raise wrong(start, "expected host:port, or [address]:port for IPv6, between the parentheses")
    bracketed, bracketed_port, name, name_port, bare = found.groups()
    port = bracketed_port or name_port or "3306"
    if not (re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) and 0 < int(port) <= _MAX_PORT):
        raise wrong("the port", f"expected a number from 1 to {_MAX_PORT}")
    return bracketed or name or bare or "127.0.0.1", int(port)


def _mysql_options(parameters: str, start: int) -> Mapping[str, Any]:
    """Parse the parameters after ``?``; ``start`` is their index in the whole."""
    arguments: dict[str, Any] = {}
    settings = []
    given = {name: (index, value) for index, name, value in _mysql_parameters(parameters, start)}
    for name, (index, value) in given.items():  # of each name, the last one
        known = _MYSQL.get(name)
        if known is not None:
            try:
                arguments.update(known.convert(decoded(value, unquote_plus, name)))
            except ValueError:
                raise wrong(name, f"expected {known.expected}") from None
        else:
            assignment = f"{_variable(name, index)}={decoded(value, unquote_plus, index)}"
            if _plain(name) not in _MYSQL_OURS:
                settings.append(assignment)
    if settings:
        arguments["init_command"] = f"SET {', '.join(settings)}"
    return arguments


def _mysql_parameters(text: str, start: int) -> Iterator[tuple[int, str, str]]:
    """Index in the whole, name and value (still encoded) of each parameter."""
    index = start
    for piece in text.split("&"):
        name, equals, value = piece.partition("=")
        if piece:
            if not (name and equals and value):
                raise wrong(index, "expected parameter=value")
            yield index, name, value
        index += len(piece) + 1


def _variable(name: str, index: int) -> str:
    """The name of a session variable."""
    if not re.fullmatch(r"(?:(?:@@)?(?:session|local)\.|@@)?[a-z_][a-z0-9_]*", name, re.ASCII | re.IGNORECASE):
        raise wrong(index, "expected the name of a parameter or of a session variable before =")
    for known in _MYSQL:
        if known.lower() == name.lower():
            raise wrong(index, f"expected {known}, in just these letters")
    return name


def _plain(variable: str) -> str:
    """A session variable's name alone, in lower case."""
    return variable.lower().lstrip("@").rpartition(".")[2]


class _Parameter(NamedTuple):
    """A parameter of a DSN.

    ``expected`` describes its value in messages; ``convert`` returns arguments of ``connect`` or raises ValueError.
    """

    expected: str
    convert: Callable[[str], Mapping[str, Any]]


def _boolean(value: str) -> bool:
    if value not in {"1", "true", "TRUE", "True", "0", "false", "FALSE", "False"}:
        raise ValueError
    return value.lower() in {"1", "true"}


def _ignored(check: Callable[[str], object]) -> Callable[[str], Mapping[str, Any]]:
    def convert(value: str) -> Mapping[str, Any]:
        check(value)
        return {}

    return convert


def _only(wanted: bool) -> Callable[[str], object]:
    def check(value: str) -> None:
        if _boolean(value) is not wanted:
            raise ValueError

    return check


def _refuse(_: str) -> Mapping[str, Any]:
    raise ValueError


def _count(value: str) -> None:
    if not re.fullmatch(r"[0-9]{1,18}", value, re.ASCII):
        raise ValueError


_UNITS: Final[Mapping[str, Fraction]] = MappingProxyType(
    {
        "ns": Fraction(1, 10**9),
        "us": Fraction(1, 10**6),
        "µs": Fraction(1, 10**6),
        "μs": Fraction(1, 10**6),
        "ms": Fraction(1, 10**3),
        "s": Fraction(1),
        "m": Fraction(60),
        "h": Fraction(3600),
    }
)
"""Seconds, by the name that Go gives a unit (two signs are in use for micro)."""

_DURATION: Final = rf"(?<![0-9.])([0-9]++\.?+[0-9]*+|\.[0-9]++)({'|'.join(_UNITS)})"
_MAX_TIMEOUT_SECONDS: Final = 31_536_000
"""The longest time-out: a year."""


def duration(value: str) -> Fraction:
    """The seconds of a Go duration, such as ``30s``, ``1m30s`` or ``500ms``. Raises ValueError.

    As Go's ``time.ParseDuration``, but for durations below zero and above a year: no time-out is one.
    """
    if value == "0":
        return Fraction(0)
    if len(value) > 64 or not re.fullmatch(rf"\+?(?:{_DURATION})+", value, re.ASCII):  # noqa: PLR2004
        raise ValueError
    seconds = sum((Fraction(number) * _UNITS[unit] for number, unit in re.findall(_DURATION, value)), Fraction(0))
    if seconds > _MAX_TIMEOUT_SECONDS:
        raise ValueError
    return seconds


def _timeout(argument: str) -> _Parameter:
    """A time-out. The driver counts whole seconds, and takes 0 for no time-out, as Go does."""

    def convert(value: str) -> Mapping[str, Any]:
        return {argument: ceil(duration(value))}

    return _Parameter("a duration such as 30s, 1m30s or 500ms, of a year at most", convert)


def _charset(value: str) -> None:
    """Accept the character sets of UTF-8: connections always use utf8mb4, which includes the smaller ones."""
    if not {"utf8mb4", "utf8mb3", "utf8"} & set(value.lower().split(",")):
        raise ValueError


def _collation(value: str) -> Mapping[str, Any]:
    """Ignore a collation of three-byte utf8: it cannot be set on our connections, and no statement depends on it."""
    if not re.fullmatch(r"utf8(?:mb[34])?_[a-z0-9_]+", value, re.ASCII):
        raise ValueError
    return {"collation": value} if value.startswith("utf8mb4_") else {}


def _tls(value: str) -> Mapping[str, Any]:
    with suppress(ValueError):
        value = "true" if _boolean(value) else "false"
    mode = _TLS_MODES.get(value.lower())
    if mode is None:
        raise ValueError
    return mode


_TLS_MODES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "true": {"ssl_mode": "VERIFY_IDENTITY"},
        "skip-verify": {"ssl_mode": "REQUIRED"},
        # MariaDB's client library tries TLS only if there is something to set it up with.
        "preferred": {"ssl_mode": "PREFERRED", "ssl": {"cipher": "HIGH:!aNULL"}},
        "false": {"ssl_mode": "DISABLED"},
    }
)

_BOOLEAN: Final = "true or false"
_IGNORED_BOOLEAN: Final = _Parameter(_BOOLEAN, _ignored(_boolean))

_MYSQL: Final[Mapping[str, _Parameter]] = MappingProxyType(
    {
        # -- honoured
        "charset": _Parameter("a list with utf8mb4, utf8mb3 or utf8 in it (utf8mb4 is used)", _ignored(_charset)),
        "collation": _Parameter("a collation of utf8mb4, utf8mb3 or utf8", _collation),
        "compress": _Parameter(_BOOLEAN, lambda value: {"compress": 1} if _boolean(value) else {}),
        "readTimeout": _timeout("read_timeout"),
        "rejectReadOnly": _Parameter(_BOOLEAN, lambda value: {"reject_read_only": _boolean(value)}),
        "timeout": _timeout("connect_timeout"),
        "tls": _Parameter("true, false, skip-verify or preferred (other names exist only inside Go programs)", _tls),
        "writeTimeout": _timeout("write_timeout"),
        # -- without effect here: always so, never so, or of meaning for Go programs only
        "allowAllFiles": _IGNORED_BOOLEAN,
        "allowCleartextPasswords": _IGNORED_BOOLEAN,
        "allowOldPasswords": _IGNORED_BOOLEAN,
        "checkConnLiveness": _IGNORED_BOOLEAN,
        "clientFoundRows": _IGNORED_BOOLEAN,
        "columnsWithAlias": _IGNORED_BOOLEAN,
        "connectionAttributes": _Parameter("a list", _ignored(str)),
        "interpolateParams": _IGNORED_BOOLEAN,
        "loc": _Parameter("a time zone", _ignored(str)),
        "maxAllowedPacket": _Parameter("a number of bytes", _ignored(_count)),
        "multiStatements": _IGNORED_BOOLEAN,
        "parseTime": _IGNORED_BOOLEAN,
        # -- refused, so that no operator believes that they have an effect
        "allowFallbackToPlaintext": _Parameter("false (for that, say tls=preferred)", _ignored(_only(False))),
        "allowNativePasswords": _Parameter("true: the driver cannot do without", _ignored(_only(True))),
        "serverPubKey": _Parameter("no such parameter: keys have names only inside Go programs; use tls=true", _refuse),
        "strict": _Parameter("no such parameter: it was removed; name a sql_mode on the server", _refuse),
    }
)
"""Every parameter of Go's driver, in this spelling. Any other name is that of a session variable."""

_MYSQL_OURS: Final = frozenset(
    {
        "autocommit",
        "character_set_client",
        "character_set_connection",
        "character_set_results",
        "collation_connection",
        "sql_mode",
        "time_zone",
        "transaction_isolation",
        "tx_isolation",
    }
)
"""Session variables that the store sets itself because its statements depend on them; a ``db_url``'s are ignored."""
