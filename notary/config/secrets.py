"""Secrets that are kept in files: systemd's credentials, Docker's secrets.

Rules of this module: it is the only one of this package that touches files, and only those that a configuration names
for a secret. No message shows what is in a file, or its path: whoever confuses ``db_url`` with ``db_url_file`` has
written the secret itself where the path belongs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from notary.errors import ConfigError

SUFFIX: Final = "_file"
"""What the key of a secret has behind it where a file holds the value: ``storage.db_url_file``."""

MOST_BYTES: Final = 1 << 16
"""The largest file that is read, in bytes: rather an error than memory filled by a device or a mistaken path."""


def read(name: str, path: Path) -> str:
    """Return the secret that a file holds: its text, without the line ends behind it.

    ``name`` is what named the file, a key or a variable, for messages. Raises ConfigError.
    """
    expected = f"the path of a file of at most {MOST_BYTES} bytes that holds the secret as UTF-8"
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a path"
        raise ConfigError(f"{name}: the file that it names cannot be read ({why}); expected {expected}") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{name}: the file that it names is too large; expected {expected}")
    try:
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: the file that it names is not UTF-8; expected {expected}") from None
    if not text:
        raise ConfigError(f"{name}: the file that it names is empty; expected {expected}")
    if "\0" in text:
        raise ConfigError(f"{name}: the file that it names holds a NUL byte; expected {expected}")
    return text
