"""From ``storage.db_url`` to what the drivers of MySQL and PostgreSQL take.

Rules of this module: strings in, keyword arguments out; nothing is connected, resolved or read (:func:`system_roots`
looks which file there is). MySQL's form is that of Go's driver (https://github.com/go-sql-driver/mysql, "DSN"),
PostgreSQL's are the two of libpq (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING), with
the defaults of Go's lib/pq. Where a password was not written as it must be, it may turn up in any other part: so no
error shows any text of a ``db_url``, only the name of a part or parameter that we know, or the number of a character.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, unquote_plus

from notary.errors import ConfigError, StorageFailed

_MAX_PORT: Final = 0xFFFF


def _wrong(where: str | int, expected: str) -> ConfigError:
    """``where`` is the name of a part, or the index of a character (shown as its number, counted from 1)."""
    part = f"character {where + 1}" if isinstance(where, int) else where
    return ConfigError(f"storage.db_url: {part}: {expected}")


def _check_text(db_url: str) -> None:
    """Refuse what no driver can pass on: NUL, and what is not Unicode (an environment may hold any bytes)."""
    found = re.search(r"[\0\ud800-\udfff]", db_url)
    if found:
        raise _wrong(found.start(), "expected text, without NUL and in UTF-8")


def _decoded(text: str, decode: Callable[..., str], where: str | int) -> str:
    """Undo percent-encoding. Go and libpq refuse a lone ``%``, Python lets it pass."""
    if not re.search(r"%(?![0-9A-Fa-f]{2})", text):
        try:
            decoded = decode(text, errors="strict")
        except UnicodeDecodeError:
            pass
        else:
            if "\0" not in decoded:
                return decoded
    raise _wrong(where, "expected percent-encoded UTF-8, where % is written %25")


def system_roots(environ: Mapping[str, str] = os.environ) -> str:
    """The file of the certificate authorities that the system trusts; ``SSL_CERT_FILE`` names another one, as for Go.

    The client libraries' own defaults do not do: that of psycopg's wheels is a directory that nobody has, and MySQL's
    library has none. Raises ConfigError if there is no such file.
    """
    named = environ.get("SSL_CERT_FILE")
    for path in [named] if named else _ROOTS:
        if Path(path).is_file():
            return path
    raise ConfigError(
        "storage.db_url: TLS with verification needs the system's certificate authorities, and their file was not "
        "found: install the package ca-certificates, or set SSL_CERT_FILE to a file of your own"
    )


_ROOTS: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
    "/etc/pki/tls/certs/ca-bundle.crt",  # older RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # BSD, macOS
)


# -- MySQL ------------------------------------------------------------------------------------------------------------


def mysql(db_url: str, roots: Callable[[], str] = system_roots) -> Mapping[str, Any]:
    """Keyword arguments for mysqlclient's ``MySQLdb.connect``.

    The grammar is ``[user[:password]@][net[(address)]]/database[?parameter=value&…]``, split as Go splits it: at the
    last ``/``, the last ``@`` before it, the first ``:`` before that. So a password may hold anything but is never
    encoded. :data:`_MYSQL` says what becomes of each parameter; any other one is a session variable. ``roots`` names
    the file of trusted authorities, and is called only if there is something to verify.

    MariaDB's client library falls back to plain text where TLS is asked for without verification and the server has
    none. So call :func:`demand_tls` on each new connection.

    Raises ConfigError.
    """
    _check_text(db_url)
    slash = db_url.rfind("/")
    if slash < 0:
        raise _wrong("its end", "expected / and the name of the database, as in user:password@tcp(host:port)/database")
    at = db_url.rfind("@", 0, slash)
    user, _, password = db_url[: max(at, 0)].partition(":")
    address = _address(db_url, at + 1, slash)
    database, _, parameters = db_url[slash + 1 :].partition("?")
    arguments: dict[str, Any] = {
        "user": user,
        "password": password,
        "database": _decoded(database, unquote, "the name of the database"),
        **address,
        "charset": "utf8mb4",
        "ssl_mode": "DISABLED",
        "local_infile": 0,
        "multi_statements": True,
    }
    if not user:  # the client library would take the name of the operating system's user instead
        raise _wrong("its beginning", "expected the name of a user, as in user:password@tcp(host:port)/database")
    if not database:
        raise _wrong("its end", "expected the name of the database after the last /")
    arguments.update(_mysql_options(parameters, len(db_url) - len(parameters)))
    if arguments["ssl_mode"] == "VERIFY_IDENTITY":
        if "unix_socket" in arguments:
            raise _wrong("tls", "expected no verification with a Unix socket, which has no host name to verify")
        arguments["ssl"] = {"ca": roots()}
    return MappingProxyType(arguments)


def demand_tls(connection: Any, arguments: Mapping[str, Any]) -> None:
    """See that a connection that was opened with ``arguments`` of :func:`mysql` is encrypted if it must be.

    Raises StorageFailed. MariaDB's client library sees to it itself only when it verifies the server.
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
    """What stands between ``@`` and ``/``: ``net``, ``net(address)`` or nothing."""
    transport = db_url[start:end]
    net, parenthesis, address = transport.partition("(")
    if parenthesis and not transport.endswith(")"):
        if ")" in address:
            raise _wrong(end, "expected ) before this /, the last one; in a parameter's value, / is written %2F")
        raise _wrong(end, "expected ) before this /, to end the address")
    address = address[:-1]
    if net == "unix":
        return {"unix_socket": address or "/tmp/mysql.sock"}  # noqa: S108  # Go's default
    if net not in {"", "tcp"}:
        raise _wrong(
            start,
            "expected tcp(host:port) or unix(path) between the @ after the password and the last /, as in "
            "user:password@tcp(host:port)/database",
        )
    host, port = _host_and_port(address, start + len(net) + 1)
    # Both client libraries take exactly this spelling to mean their Unix socket, whatever the port.
    return {"host": "LOCALHOST" if host == "localhost" else host, "port": port}


def _host_and_port(address: str, start: int) -> tuple[str, int]:
    """``host``, ``host:port``, ``[IPv6]:port``, or an IPv6 address alone."""
    found = re.fullmatch(
        r"\[([^\[\]()\s]+)\](?::([^:]+))?|([^:\[\]()\s]*)(?::([^:]+))?|([^:\[\]()\s]*(?::[^:\[\]()\s]*){2,})", address
    )
    if not found:
        raise _wrong(start, "expected host:port, or [address]:port for IPv6, between the parentheses")
    bracketed, bracketed_port, name, name_port, bare = found.groups()
    port = bracketed_port or name_port or "3306"
    if not (re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) and 0 < int(port) <= _MAX_PORT):
        raise _wrong("the port", f"expected a number from 1 to {_MAX_PORT}")
    return bracketed or name or bare or "127.0.0.1", int(port)


def _mysql_options(parameters: str, start: int) -> Mapping[str, Any]:
    """What the part after ``?`` asks for. ``start`` is its index in the whole."""
    arguments: dict[str, Any] = {}
    settings = []
    given = {name: (index, value) for index, name, value in _mysql_parameters(parameters, start)}
    for name, (index, value) in given.items():  # of each name, the last one
        known = _MYSQL.get(name)
        if known is not None:
            try:
                arguments.update(known.convert(_decoded(value, unquote_plus, name)))
            except ValueError:
                raise _wrong(name, f"expected {known.expected}") from None
        else:
            assignment = f"{_variable(name, index)}={_decoded(value, unquote_plus, index)}"
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
                raise _wrong(index, "expected parameter=value")
            yield index, name, value
        index += len(piece) + 1


def _variable(name: str, index: int) -> str:
    """The name of a session variable."""
    if not re.fullmatch(r"(?:(?:@@)?(?:session|local)\.|@@)?[a-z_][a-z0-9_]*", name, re.ASCII | re.IGNORECASE):
        raise _wrong(index, "expected the name of a parameter or of a session variable before =")
    for known in _MYSQL:
        if known.lower() == name.lower():
            raise _wrong(index, f"expected {known}, in just these letters")
    return name


def _plain(variable: str) -> str:
    """A session variable's name alone, in lower case."""
    return variable.lower().lstrip("@").rpartition(".")[2]


class _Parameter(NamedTuple):
    """What a message says was expected; ``convert`` makes arguments of ``MySQLdb.connect``, or raises ValueError."""

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
_LONGEST: Final = 31_536_000
"""Seconds that a time-out may last: a year."""


def duration(value: str) -> Fraction:
    """The seconds of a Go duration, such as ``30s``, ``1m30s`` or ``500ms``. Raises ValueError.

    As Go's ``time.ParseDuration``, but for durations below zero and above a year: no time-out is one.
    """
    if value == "0":
        return Fraction(0)
    if len(value) > 64 or not re.fullmatch(rf"\+?(?:{_DURATION})+", value, re.ASCII):  # noqa: PLR2004
        raise ValueError
    seconds = sum((Fraction(number) * _UNITS[unit] for number, unit in re.findall(_DURATION, value)), Fraction(0))
    if seconds > _LONGEST:
        raise ValueError
    return seconds


def _timeout(argument: str) -> _Parameter:
    """The driver counts whole seconds, and takes 0 for none as Go does."""

    def convert(value: str) -> Mapping[str, Any]:
        return {argument: ceil(duration(value))}

    return _Parameter("a duration such as 30s, 1m30s or 500ms, of a year at most", convert)


def _charset(value: str) -> None:
    """All of Unicode is what we send, which the smaller sets of the same kind are parts of."""
    if not {"utf8mb4", "utf8mb3", "utf8"} & set(value.lower().split(",")):
        raise ValueError


def _collation(value: str) -> Mapping[str, Any]:
    """One of utf8 (three bytes) cannot be set on our connections, and matters to none of our statements."""
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
        "timeout": _timeout("connect_timeout"),
        "tls": _Parameter("true, false, skip-verify or preferred (other names exist only inside Go programs)", _tls),
        "writeTimeout": _timeout("write_timeout"),
        # -- without effect here: it is so already, or never, or matters to Go programs only
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
        "rejectReadOnly": _IGNORED_BOOLEAN,
        # -- refused, rather than have somebody believe that they are obeyed
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
"""Session variables that the store sets itself, since its statements count on them; a ``db_url``'s are ignored."""


# -- PostgreSQL -------------------------------------------------------------------------------------------------------


def postgres(db_url: str, roots: Callable[[], str] = system_roots) -> Mapping[str, Any]:
    """Keyword arguments for psycopg's ``connect``.

    A URL (``postgres://`` or ``postgresql://``) or a string of keywords and values, as libpq reads them. Where nothing
    is said, the defaults are those of Go's lib/pq: host ``localhost``, sslmode ``require``, and the certificate
    authorities of the system, whose file ``roots`` names. A name that libpq does not know is a setting of the session.
    :data:`_POSTGRES` and :data:`_POSTGRES_OURS` list the exceptions. With ``service``, what is not said is left to the
    service file.

    Raises ConfigError. psycopg must be installed.
    """
    _check_text(db_url)
    scheme = re.match(r"postgres(?:ql)?://", db_url)
    given = _url_pairs(db_url, scheme.end()) if scheme else _keyword_pairs(db_url)
    arguments = _postgres_arguments(dict(given))
    if "service" not in arguments:
        if "hostaddr" not in arguments:
            arguments.setdefault("host", "localhost")
        arguments.setdefault("sslmode", "require")
    if arguments.get("sslmode") in {"verify-ca", "verify-full"} and "sslrootcert" not in arguments:
        arguments["sslrootcert"] = roots()
    return MappingProxyType({**arguments, "client_encoding": "UTF8"})


def _postgres_arguments(given: Mapping[str, _Value]) -> dict[str, Any]:
    """What libpq shall be told, with the settings of the session in its own ``options``."""
    keywords = _libpq_keywords()
    arguments: dict[str, Any] = {}
    settings = []
    for name, (start, value) in given.items():
        rule = _POSTGRES.get(name)
        if rule is not None and not re.fullmatch(rule.pattern, value, re.ASCII):
            raise _wrong(name, f"expected {rule.expected}")
        if not value or name.lower() in _POSTGRES_OURS:
            continue
        if name in keywords:
            arguments[name] = value
        elif re.fullmatch(r"[a-z_][a-z0-9_.]*", name, re.ASCII | re.IGNORECASE):
            settings.append("-c " + re.sub(r"([\\\s])", r"\\\1", f"{name}={value}"))
        else:
            raise _wrong(start, "expected the name of a parameter or of a setting before =")
    if settings:
        arguments["options"] = " ".join([*filter(None, [arguments.get("options")]), *settings])
    return arguments


class _Value(NamedTuple):
    """A value, and where in ``db_url`` its name begins."""

    start: int
    text: str


def _libpq_keywords() -> frozenset[str]:
    """What the libpq that psycopg was built with knows."""
    from psycopg.pq import Conninfo

    return frozenset(option.keyword.decode() for option in Conninfo.get_defaults())


def _url_pairs(db_url: str, start: int) -> Iterator[tuple[str, _Value]]:
    """What a URL says, decoded. libpq takes it apart, up to the ``?`` that ends the path."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    credentials = re.compile(r"[^@/]*@").match(db_url, start)
    address = credentials.end() if credentials else start
    question = db_url.find("?", address)
    end = question if question >= 0 else len(db_url)
    stray = db_url.find("@", address, end)
    if stray >= 0:
        raise _wrong(stray, "expected no second @; in a name or password, @ is written %40 and / is written %2F")
    _decoded(db_url[start:end], unquote, "the part before the parameters")
    try:
        parts = conninfo_to_dict(db_url[:end])
    except ProgrammingError:
        raise _wrong("the part before the parameters", "expected postgres://user:password@host:port/database") from None
    for name, value in parts.items():
        yield name, _Value(start, str(value))
    index = end + 1
    for piece in db_url[index:].split("&"):
        name, equals, value = piece.partition("=")
        if piece:
            if not name or not equals or "=" in value:
                raise _wrong(index, "expected parameter=value, where = in a value is written %3D")
            name, value = _decoded(name, unquote, index), _decoded(value, unquote, index)
            if (name, value) == ("ssl", "true"):  # as JDBC has it, and libpq too
                name, value = "sslmode", "require"
            yield name, _Value(index, value)
        index += len(piece) + 1


_BLANKS: Final = " \t\n\v\f\r"
"""What libpq takes for white space. To Python there is more of it, which may as well be a part of a password."""
_KEYWORD: Final = re.compile(rf"([^{_BLANKS}=]+)[{_BLANKS}]*=[{_BLANKS}]*")
_QUOTED: Final = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)
_BARE: Final = re.compile(rf"((?:[^{_BLANKS}\\]|\\.)*)", re.DOTALL)
_GAP: Final = re.compile(rf"[{_BLANKS}]*+")


def _keyword_pairs(db_url: str) -> Iterator[tuple[str, _Value]]:
    """The pairs of ``keyword = value keyword = 'value'``, where a backslash takes the next character as it is."""
    index = len(db_url) - len(db_url.lstrip(_BLANKS))
    while index < len(db_url):
        keyword = _KEYWORD.match(db_url, index)
        if not keyword:
            raise _wrong(index, "expected keyword=value, or a URL that begins with postgres://")
        quoted = db_url.startswith("'", keyword.end())
        value = (_QUOTED if quoted else _BARE).match(db_url, keyword.end())
        if not value:
            raise _wrong(keyword.end(), "expected a ' that ends this value")
        yield keyword[1], _Value(index, re.sub(r"\\(.)", r"\1", value[1], flags=re.DOTALL))
        gap = _GAP.match(db_url, value.end())
        index = gap.end() if gap else value.end()


class _Rule(NamedTuple):
    """What the value of a parameter must look like; "" stands for none."""

    expected: str
    pattern: str


_SECONDS: Final = _Rule("a whole number", r"[0-9]{0,9}")

_POSTGRES: Final[Mapping[str, _Rule]] = MappingProxyType(
    {
        # -- honoured, and checked here because libpq's own message comes with every connection
        "connect_timeout": _SECONDS,
        "keepalives_count": _SECONDS,
        "keepalives_idle": _SECONDS,
        "keepalives_interval": _SECONDS,
        "port": _Rule("a number, or one for each host, with commas", r"[0-9]{0,5}(?:,[0-9]{0,5})*"),
        "sslmode": _Rule(
            "disable, allow, prefer, require, verify-ca or verify-full",
            r"(?:disable|allow|prefer|require|verify-ca|verify-full)?",
        ),
        "tcp_user_timeout": _SECONDS,
        # -- ours is the only one possible
        "client_encoding": _Rule("UTF8", r"(?i:(?:utf-?8|unicode)?)"),
        # -- refused, rather than have somebody believe that they are obeyed
        "krbspn": _Rule("no such parameter: it exists only inside Go programs; use krbsrvname", ""),
        "replication": _Rule("no such parameter: it is for replicas", ""),
        "sslinline": _Rule("no such parameter: name the files of the certificates instead", r"(?:false)?"),
    }
)
"""Parameters whose values are checked."""

_POSTGRES_OURS: Final = frozenset(
    {
        "binary_parameters",
        "client_encoding",
        "datestyle",
        "default_transaction_isolation",
        "disable_prepared_binary_result",
        "extra_float_digits",
        "intervalstyle",
        "sslinline",
        "standard_conforming_strings",
        "timezone",
    }
)
"""What the store or the driver sets itself, or what means something to Go programs only; it is ignored."""
