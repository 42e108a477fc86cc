"""From a libpq URL or keyword string to what psycopg takes.

Rules of this module: strings in, keyword arguments out; nothing is connected or resolved. The two forms are those of
libpq (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING), with the defaults of Go's lib/pq.
No error shows text of a ``db_url`` (:mod:`notary.storage.sql.db_url`). libpq parses the part of a URL before its
parameters; keywords are parsed here, because libpq's errors quote the text and do not tell where it is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from notary.storage.sql.db_url import check_text, decoded, system_roots, wrong


def postgres(db_url: str, roots: Callable[[], str] = system_roots) -> Mapping[str, Any]:
    """Keyword arguments for psycopg's ``connect``.

    A URL (``postgres://`` or ``postgresql://``) or a string of keywords and values, as libpq reads them. Where nothing
    is said, the defaults are those of Go's lib/pq: host ``localhost``, sslmode ``require``, and the certificate
    authorities of the system, whose file ``roots`` names. A name that libpq does not know is a setting of the session.
    :data:`_POSTGRES` and :data:`_POSTGRES_OURS` list the exceptions. With ``service``, what is not said is left to the
    service file.

    Raises ConfigError. psycopg must be installed.
    """
    check_text(db_url)
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
    """Return the parameters for libpq, with settings of the session in libpq's ``options``."""
    keywords = _libpq_keywords()
    arguments: dict[str, Any] = {}
    settings = []
    for name, (start, value) in given.items():
        rule = _POSTGRES.get(name)
        if rule is not None and not re.fullmatch(rule.pattern, value, re.ASCII):
            raise wrong(name, f"expected {rule.expected}")
        if not value or name.lower() in _POSTGRES_OURS:
            continue
        if name in keywords:
            arguments[name] = value
        elif re.fullmatch(r"[a-z_][a-z0-9_.]*", name, re.ASCII | re.IGNORECASE):
            settings.append("-c " + re.sub(r"([\\\s])", r"\\\1", f"{name}={value}"))
        else:
            raise wrong(start, "expected the name of a parameter or of a setting before =")
    if settings:
        arguments["options"] = " ".join([*filter(None, [arguments.get("options")]), *settings])
    return arguments


class _Value(NamedTuple):
    """The value of a parameter, and the index in the ``db_url`` where its name begins."""

    start: int
    text: str


def _libpq_keywords() -> frozenset[str]:
    """The names of all parameters of the libpq that psycopg uses."""
    from psycopg.pq import Conninfo

    return frozenset(option.keyword.decode() for option in Conninfo.get_defaults())


def _url_pairs(db_url: str, start: int) -> Iterator[tuple[str, _Value]]:
    """The pairs of a URL, decoded. libpq parses the part before the ``?``, which ends the path."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    credentials = re.compile(r"[^@/]*@").match(db_url, start)
    address = credentials.end() if credentials else start
    question = db_url.find("?", address)
    end = question if question >= 0 else len(db_url)
    stray = db_url.find("@", address, end)
    if stray >= 0:
        raise wrong(stray, "expected no second @; in a name or password, @ is written %40 and / is written %2F")
    decoded(db_url[start:end], unquote, "the part before the parameters")
    try:
        parts = conninfo_to_dict(db_url[:end])
    except ProgrammingError:
        raise wrong("the part before the parameters", "expected postgres://user:password@host:port/database") from None
    for name, value in parts.items():
        yield name, _Value(start, str(value))
    index = end + 1
    for piece in db_url[index:].split("&"):
        name, equals, value = piece.partition("=")
        if piece:
            if not name or not equals or "=" in value:
                raise wrong(index, "expected parameter=value, where = in a value is written %3D")
            name, value = decoded(name, unquote, index), decoded(value, unquote, index)
            if (name, value) == ("ssl", "true"):  # as JDBC has it, and libpq too
                name, value = "sslmode", "require"
            yield name, _Value(index, value)
        index += len(piece) + 1


_BLANKS: Final = " \t\n\v\f\r"
"""What libpq takes for white space. Python knows more of it, which libpq takes for a part of a value."""
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
            raise wrong(index, "expected keyword=value, or a URL that begins with postgres://")
        quoted = db_url.startswith("'", keyword.end())
        value = (_QUOTED if quoted else _BARE).match(db_url, keyword.end())
        if not value:
            raise wrong(keyword.end(), "expected a ' that ends this value")
        yield keyword[1], _Value(index, re.sub(r"\\(.)", r"\1", value[1], flags=re.DOTALL))
        gap = _GAP.match(db_url, value.end())
        index = gap.end() if gap else value.end()


class _Rule(NamedTuple):
    """The pattern that the value of a parameter must match, and its description for messages; "" is no value."""

    expected: str
    pattern: str


_SECONDS: Final = _Rule("a whole number", r"[0-9]{0,9}")

_POSTGRES: Final[Mapping[str, _Rule]] = MappingProxyType(
    {
        # -- passed on, and checked here because libpq would report an error with every connection
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
        # -- only this value is possible
        "client_encoding": _Rule("UTF8", r"(?i:(?:utf-?8|unicode)?)"),
        # -- refused, so that no operator believes that they have an effect
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
"""Ignored parameters: set by the store or the driver itself, or of meaning for Go programs only."""
