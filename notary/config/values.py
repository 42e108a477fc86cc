"""The types of configuration values: what a value must be, and what a message says was expected.

Rules of this module: pure. A convert function takes a value of the JSON file, or a string of the environment, and
raises ValueError or TypeError if the value is not of its type. Numbers may be written as strings, as in the reference.
"""

from __future__ import annotations

import ipaddress
import math
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

from notary.config import awskms, pkcs11, vault

LOG_LEVELS: Final = ("debug", "info", "warning", "error", "fatal", "panic")
"""The names of the log levels, most verbose first."""

_MAX_SECONDS: Final = 31_536_000
"""The longest time that a key may have: one year, the reference's limit of ``max-age``."""

_MAX_LIFETIME_SECONDS: Final = 3_153_600_000
"""The longest time that what the server signs may be valid: 100 years."""

_MAX_SHARE: Final = 0.9
"""The largest share of a lifetime that may be left at a renewal."""

FILE_SCHEME: Final = "file"
"""The scheme of a key-encrypting key in a file."""

_MAX_PORT: Final = 0xFFFF
_MAX_WORKERS: Final = 256

_T_co = TypeVar("_T_co", covariant=True)


class Secret(str):
    """A string whose ``repr`` hides it, so that a printed configuration shows no passphrase."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>" if self else "''"


class Address(NamedTuple):
    """An address to listen on. ``host`` is an IP address, a host name, or "" for every interface; ``port`` 0 is any."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class KekUri(NamedTuple):
    """The address of a key-encrypting key: its scheme, and the place in terms of the scheme. Neither is a secret."""

    scheme: str
    place: str

    def __str__(self) -> str:
        return f"{self.scheme}:{self.place}"

    @property
    def inside(self) -> bool:
        """Whether this is no key-encrypting key, but a token in which private keys are made."""
        return self.scheme == pkcs11.SCHEME and pkcs11.parse(self.place).inside

    def resolved(self, directory: Path) -> KekUri:
        """Return this address with the relative path of a file made absolute."""
        return self._replace(place=str(directory / self.place)) if self.scheme == FILE_SCHEME else self


class Kind(NamedTuple, Generic[_T_co]):
    """A type of values.

    Args:
        expected: The words of messages and of docs/configuration.md for such a value.
        convert: Makes the value. Raises ValueError or TypeError.
        secret: The value is never shown.
        file: The value is a path, relative to the directory of the configuration file.
        certificates: That file holds certificates, as PEM: their dates must be watched.
        hides: Whether a bad value is not shown, since there is a secret in it.
    """

    expected: str
    convert: Callable[[object], _T_co]
    secret: bool = False
    file: bool = False
    certificates: bool = False
    hides: Callable[[object], bool] = lambda _value: False


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    return str(value)


def _secret(value: object) -> Secret:
    return Secret(_text(value))


def _path(value: object) -> Path:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError
    return Path(value)


def _integer(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value, re.ASCII):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _boolean(value: object) -> bool:
    if isinstance(value, str) and value.lower() in {"1", "t", "true", "0", "f", "false"}:
        return value.lower() in {"1", "t", "true"}
    if not isinstance(value, bool):
        raise TypeError
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    seconds = float(value)
    if not (math.isfinite(seconds) and 0 < seconds <= _MAX_SECONDS):
        raise ValueError
    return seconds


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    share = float(value)
    if not 0 <= share <= _MAX_SHARE:
        raise ValueError
    return share


def _workers(value: object) -> int:
    return 0 if value == "auto" else _between(1, _MAX_WORKERS)(value)


def _between(low: int, high: int) -> Callable[[object], int]:
    def convert(value: object) -> int:
        number = _integer(value)
        if not low <= number <= high:
            raise ValueError
        return number

    return convert


def one_of(*choices: str) -> Kind[str]:
    """Return the type of values that are one of these strings; letter case matters."""

    def convert(value: object) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    quoted = [f'"{choice}"' for choice in choices]
    return Kind(" or ".join(quoted) if len(quoted) < 3 else f"one of {', '.join(quoted)}", convert)  # noqa: PLR2004


def _host(value: object) -> str:
    host = _text(value)
    if ":" in host or re.fullmatch(r"[0-9.]+", host):
        ipaddress.ip_address(host)  # raises ValueError
    elif not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})", host):
        raise ValueError
    return host


def _address(value: object) -> Address:
    match = re.fullmatch(r"(?:\[([^][]+)\]|([^][:]*)):([0-9]{1,5})", value) if isinstance(value, str) else None
    if match is None or int(match[3]) > _MAX_PORT:
        raise ValueError
    if match[1] is not None:
        return Address(str(ipaddress.IPv6Address(match[1])), int(match[3]))
    return Address(_host(match[2]) if match[2] else "", int(match[3]))


DEBUG_ADDRESS = Address("localhost", 8080)
"""The default address of the debug server, which is the reference's."""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _debug(value: object) -> Address | None:
    """Return the address of the debug server, or None for no debug server."""
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


def _level(value: object) -> str:
    name = str(value).lower()
    name = {"warn": "warning", "trace": "debug"}.get(name, name)
    if name not in LOG_LEVELS:
        raise ValueError
    return name


def _gun_prefixes(value: object) -> tuple[str, ...]:
    prefixes = value.split() if isinstance(value, str) else value
    if not isinstance(prefixes, list):
        raise TypeError
    for prefix in prefixes:
        # The rule of the reference: a prefix is a cleaned path and one slash, and does not lead above its start.
        clean = posixpath.normpath(prefix.strip()) if isinstance(prefix, str) else ""
        if clean + "/" != prefix or clean == "." or clean.startswith(("/", "..")):
            raise ValueError
    return tuple(prefixes)


def _names(value: object) -> tuple[str, ...]:
    names = value.split() if isinstance(value, str) else value
    if not isinstance(names, list):
        raise TypeError
    if not names:
        raise ValueError  # It could mean nobody or everybody, and it grants a right.
    for name in names:
        if not isinstance(name, str) or not name or re.search(r"[\s*]", name):
            raise ValueError
    return tuple(names)


def _kek_uri(value: object) -> KekUri:
    scheme, _, place = value.partition(":") if isinstance(value, str) else ("", "", "")
    if scheme not in _KEK_PLACES or not place.isprintable():
        raise ValueError
    return KekUri(scheme, _KEK_PLACES[scheme](place))


def _kek_file(place: str) -> str:
    path = place.removeprefix("//") if place.startswith("///") else place
    if not path or path.startswith("//"):
        raise ValueError
    return path


def _kek(parse: Callable[[str], object]) -> Callable[[str], str]:
    def checked(place: str) -> str:
        parse(place)  # raises ValueError
        return place

    return checked


_KEK_PLACES: Final = {
    FILE_SCHEME: _kek_file,
    pkcs11.SCHEME: _kek(pkcs11.parse),
    vault.SCHEME: _kek(vault.parse),
    awskms.SCHEME: _kek(awskms.parse),
}
"""For each scheme of key-encrypting keys, what checks the place and returns it. Raises ValueError."""

_KEK_FORMS: Final = " or ".join(f'"{form}"' for form in ("file:PATH", pkcs11.EXPECTED, vault.EXPECTED, awskms.EXPECTED))


def _has_secret(value: object) -> bool:
    """Return whether a value that should be a URI, or a list of URIs, has a secret in it, or seems to."""
    return re.search(r"pin-value|secret-id=|[?&](?:jwt|token)=|://[^/]*@", str(value).lower()) is not None


def _kek_uris(value: object) -> tuple[KekUri, ...]:
    uris = value.split() if isinstance(value, str) else value
    if not isinstance(uris, list):
        raise TypeError
    return tuple(map(_kek_uri, uris))


def _signers(value: object) -> tuple[str, ...]:
    places = value.split() if isinstance(value, str) else value
    if not isinstance(places, list):
        raise TypeError
    found = tuple(_text(place) for place in places)
    if not found or len({signer_address(place, 0) for place in found}) != len(found):
        raise ValueError
    return found


def signer_address(text: str, port: int) -> Address:
    """Return the address of a signer: "host:port", or "host" and ``port``. Raises ValueError."""
    if text.count(":") > 1 and "[" not in text:
        return Address(_host(text), port)  # an IPv6 address without brackets
    if ":" not in text or text.endswith("]"):
        bare = re.fullmatch(r"\[([^][]+)\]|([^][]+)", text)
        if bare is None:
            raise ValueError
        return Address(str(ipaddress.IPv6Address(bare[1])) if bare[1] else _host(bare[2]), port)
    address = _address(text)
    if not address.host or not address.port:
        raise ValueError
    return address


TEXT: Final = Kind("a string", _text)
SECRET: Final = Kind("a string", _secret, secret=True)
FILE: Final = Kind("the path of a file, relative to the directory of the configuration file", _path, file=True)
CERTIFICATE_FILE: Final = FILE._replace(certificates=True)
BOOLEAN: Final = Kind("true or false", _boolean)
BYTES: Final = Kind("a whole number of bytes, at least 1", _between(1, 1 << 62))
BYTES_OR_NONE: Final = Kind("a whole number of bytes, or 0", _between(0, 1 << 62))
COUNT: Final = Kind("a whole number between 1 and 10000", _between(1, 10_000))
COUNT_OR_NONE: Final = Kind("a whole number, or 0", _between(0, 1 << 31))
WORKERS: Final = Kind(f'a whole number between 1 and {_MAX_WORKERS}, or "auto"', _workers)
SECONDS: Final = Kind(f"a number of seconds above 0, at most {_MAX_SECONDS}", _seconds)
MAX_AGE: Final = Kind(f"a whole number of seconds between 0 and {_MAX_SECONDS}", _between(0, _MAX_SECONDS))
LIFETIME: Final = Kind(
    f"a whole number of seconds between 1 and {_MAX_LIFETIME_SECONDS}", _between(1, _MAX_LIFETIME_SECONDS)
)
SHARE: Final = Kind(f"a number between 0 and {_MAX_SHARE}", _share)
PORT: Final = Kind("a port number between 1 and 65535", _between(1, _MAX_PORT))
HOST: Final = Kind("a host name or an IP address", _host)
ADDRESS: Final = Kind('"host:port", "[IPv6 address]:port" or ":port", with a port number between 0 and 65535', _address)
DEBUG: Final = Kind(
    'true, false, "localhost:port" (or another loopback address), or '
    '{"address": "host:port", "unsafe_any_interface": true}',
    _debug,
)
LEVEL: Final = Kind(f"one of {', '.join(LOG_LEVELS)}", _level)
GUN_PREFIXES: Final = Kind(
    'a list of relative paths that end in one "/", such as "docker.io/", without "..", "//" or outer spaces',
    _gun_prefixes,
)
SIGNERS: Final = Kind('a list of one or more different "host" or "host:port"', _signers)
NAMES: Final = Kind("a list of one or more names, without spaces or wildcards in them", _names)
KEK_URI: Final = Kind(f"the URI of a key-encrypting key: {_KEK_FORMS}", _kek_uri, hides=_has_secret)
KEK_URIS: Final = Kind(f"a list of URIs of key-encrypting keys: {_KEK_FORMS}", _kek_uris, hides=_has_secret)
