"""What the readers of ``storage.db_url`` share.

Rules of this module: strings in, values out; nothing is connected, resolved or read (:func:`system_roots` looks which
file there is). Where a password was not written as it must be, it may turn up in any other part of a ``db_url``: so no
error shows any text of it, only the name of a part or parameter that we know, or the number of a character.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from notary.errors import ConfigError

_MAX_PORT: Final = 0xFFFF


def wrong(where: str | int, expected: str) -> ConfigError:
    """``where`` is the name of a part, or the index of a character (shown as its number, counted from 1)."""
    part = f"character {where + 1}" if isinstance(where, int) else where
    return ConfigError(f"storage.db_url: {part}: {expected}")


def check_text(db_url: str) -> None:
    """Refuse what no driver can pass on: NUL, and what is not Unicode (an environment may hold any bytes)."""
    found = re.search(r"[\0\ud800-\udfff]", db_url)
    if found:
        raise wrong(found.start(), "expected text, without NUL and in UTF-8")


def decoded(text: str, decode: Callable[..., str], where: str | int) -> str:
    """Undo percent-encoding. Go and libpq refuse a lone ``%``, Python lets it pass."""
    if not re.search(r"%(?![0-9A-Fa-f]{2})", text):
        try:
            decoded = decode(text, errors="strict")
        except UnicodeDecodeError:
            pass
        else:
            if "\0" not in decoded:
                return decoded
    raise wrong(where, "expected percent-encoded UTF-8, where % is written %25")


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


def host_and_port(address: str, start: int) -> tuple[str, int]:
    """``host``, ``host:port``, ``[IPv6]:port``, or an IPv6 address alone."""
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
