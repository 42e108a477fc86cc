"""The types of configuration values: what a value must be, and what a message says was expected.

Rules of this module: a convert function takes a value of the JSON file, or a string of the environment, and raises
ValueError or TypeError if it is no such value. Numbers may be written as strings, as the reference tolerates.
"""

from __future__ import annotations

import ipaddress
import math
import posixpath
import re
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_CACHE_AGE = 31_536_000
"""The longest ``max-age`` that may be configured, in seconds (one year, as in the reference)."""

LOG_LEVELS = ("debug", "info", "warning", "error", "fatal", "panic")
"""The names of the log levels, most verbose first."""

_MAX_PORT = 0xFFFF
_MOST_WORKERS = 256


class Secret(str):
    """A string whose ``repr`` hides it, so that a printed configuration shows no passphrase."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>" if self else "''"


class Address(NamedTuple):
    """Where to listen. ``host`` is an IP address, a host name, or "" for every interface; ``port`` 0 means any."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Kind(NamedTuple):
    """A type of values: what messages say was expected, and how to convert. ``file``: relative to the configuration."""

    expected: str
    convert: Callable[[Any], Any]
    file: bool = False


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    return str(value)


def _file_name(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError
    return value


def _integer(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value, re.ASCII):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _boolean(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in {"1", "t", "true", "0", "f", "false"}:
        return value.lower() in {"1", "t", "true"}
    if not isinstance(value, bool):
        raise TypeError
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    seconds = float(value)
    if not (math.isfinite(seconds) and 0 < seconds <= MAX_CACHE_AGE):
        raise ValueError
    return seconds


def _workers(value: Any) -> int:
    return 0 if value == "auto" else _between(1, _MOST_WORKERS)(value)


def _between(low: int, high: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        number = _integer(value)
        if not low <= number <= high:
            raise ValueError
        return number

    return convert


def one_of(*choices: str) -> Kind:
    """Make the type of values that are one of a few strings, letter case included."""

    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    quoted = [f'"{choice}"' for choice in choices]
    return Kind(" or ".join(quoted) if len(quoted) < 3 else f"one of {', '.join(quoted)}", convert)  # noqa: PLR2004


def _host(value: Any) -> str:
    host = _text(value)
    if ":" in host or re.fullmatch(r"[0-9.]+", host):
        ipaddress.ip_address(host)  # raises ValueError
    elif not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})", host):
        raise ValueError
    return host


def _address(value: Any) -> Address:
    match = re.fullmatch(r"(?:\[([^][]+)\]|([^][:]*)):([0-9]{1,5})", value) if isinstance(value, str) else None
    if match is None or int(match[3]) > _MAX_PORT:
        raise ValueError
    if match[1] is not None:
        return Address(str(ipaddress.IPv6Address(match[1])), int(match[3]))
    return Address(_host(match[2]) if match[2] else "", int(match[3]))


DEBUG_ADDRESS = Address("localhost", 8080)
"""Where the debug server listens if its configuration does not say: the reference's address."""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _debug(value: Any) -> Address | None:
    """Where the debug server listens, or None for nowhere."""
    if isinstance(value, dict):
        if not set(value) <= {"address", "unsafe_any_interface"}:
            raise ValueError
        address = _address(value["address"]) if "address" in value else DEBUG_ADDRESS
        anywhere = _boolean(value.get("unsafe_any_interface", False))
    elif isinstance(value, str) and ":" in value:
        address, anywhere = _address(value), False
    else:
        return DEBUG_ADDRESS if _boolean(value) else None
    if not anywhere and not _is_loopback(address.host):
        raise ValueError
    return address


def _level(value: Any) -> str:
    name = str(value).lower()
    name = {"warn": "warning", "trace": "debug"}.get(name, name)
    if name not in LOG_LEVELS:
        raise ValueError
    return name


def _gun_prefixes(value: Any) -> tuple[str, ...]:
    prefixes = value.split() if isinstance(value, str) else value
    if not isinstance(prefixes, list):
        raise TypeError
    for prefix in prefixes:
        # The rule of the reference: a prefix is its own cleaned path plus one slash, and stays below the root.
        clean = posixpath.normpath(prefix.strip()) if isinstance(prefix, str) else ""
        if clean + "/" != prefix or clean == "." or clean.startswith(("/", "..")):
            raise ValueError
    return tuple(prefixes)


def _names(value: Any) -> tuple[str, ...]:
    names = value.split() if isinstance(value, str) else value
    if not isinstance(names, list):
        raise TypeError
    if not names:
        raise ValueError  # nobody, or everybody? It is a right: do not guess
    for name in names:
        if not isinstance(name, str) or not name or re.search(r"[\s*]", name):
            raise ValueError
    return tuple(names)


TEXT = Kind("a string", _text)
FILE = Kind("the path of a file, relative to the directory of the configuration file", _file_name, file=True)
BOOLEAN = Kind("true or false", _boolean)
BYTES = Kind("a whole number of bytes of at least 1", _between(1, 1 << 62))
COUNT = Kind("a whole number between 1 and 10000", _between(1, 10_000))
NUMBER_OR_NONE = Kind("a whole number, or 0", _between(0, 1 << 31))
BYTES_OR_NONE = Kind("a whole number of bytes, or 0", _between(0, 1 << 62))
WORKERS = Kind(f'a whole number between 1 and {_MOST_WORKERS}, or "auto"', _workers)
SECONDS = Kind(f"a number of seconds above 0, at most {MAX_CACHE_AGE}", _seconds)
MAX_AGE = Kind(f"a whole number of seconds between 0 and {MAX_CACHE_AGE}", _between(0, MAX_CACHE_AGE))
PORT = Kind("a port number between 1 and 65535", _between(1, _MAX_PORT))
HOST = Kind("a host name or an IP address", _host)
ADDRESS = Kind('"host:port", "[IPv6 address]:port" or ":port", with a port number between 0 and 65535', _address)
DEBUG = Kind(
    'true, false, "localhost:port" (or another loopback address), or '
    '{"address": "host:port", "unsafe_any_interface": true}',
    _debug,
)
LEVEL = Kind(f"one of {', '.join(LOG_LEVELS)}", _level)
GUN_PREFIXES = Kind(
    'a list of relative paths that end in one "/", such as "docker.io/", without "..", "//" or spaces around',
    _gun_prefixes,
)
NAMES = Kind("a list of one or more names, without spaces or wildcards in them", _names)
