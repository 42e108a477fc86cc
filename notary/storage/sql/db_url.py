"""What the parsers of ``storage.db_url`` share.

Rules of this module: strings in, values out; nothing is connected, resolved or read (:func:`system_roots` checks which
file exists). A password that is not escaped correctly may be read as any other part of a ``db_url``; so no error shows
text of a ``db_url``, only the name of a known part or parameter, or the number of a character.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from notary.errors import ConfigError


def wrong(where: str | int, expected: str) -> ConfigError:
    """Return the error for a part of the ``db_url``.

    ``where`` is the name of the part, or the index of a character, which is shown as a number counted from 1.
    """
    part = f"character {where + 1}" if isinstance(where, int) else where
    return ConfigError(f"storage.db_url: {part}: {expected}")


def check_text(db_url: str) -> None:
    """Refuse what no driver can pass on: NUL, and text that is not Unicode (an environment may hold any bytes)."""
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
    """The file of the certificate authorities that the system trusts. ``SSL_CERT_FILE`` overrides it, as for Go.

    The defaults of the client libraries are useless: psycopg's wheels name a directory that does not exist, and MySQL's
    library has no default. Raises ConfigError if there is no such file.
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
