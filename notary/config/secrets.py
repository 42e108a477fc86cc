"""Secrets that are kept in files, such as credentials of systemd and secrets of Docker.

Rules of this module: this is the only module of the package that reads files, and it reads only those that a
configuration names for a secret. No message shows the content of such a file, nor its path: a user who confuses
``db_url`` with ``db_url_file`` has written the secret itself in place of the path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from notary.errors import ConfigError

FILE_SUFFIX: Final = "_file"
"""The end of the key that names the file of a secret: ``storage.db_url_file`` in place of ``storage.db_url``."""

MAX_FILE_BYTES: Final = 1 << 16
"""The largest file that is read: a device or a mistaken path must not fill the memory."""


def read(name: str, path: Path, *, any_bytes: bool = False) -> str:
    """Return the secret that a file holds: its text without trailing newlines.

    ``name`` is the key or the variable that names the file, for messages. If ``any_bytes``, bytes that are not UTF-8
    are taken too, and stand in the text as ``surrogateescape`` has them, as in the environment. Raises ConfigError.
    """
    form = "" if any_bytes else " as UTF-8"
    expected = f"the path of a file of at most {MAX_FILE_BYTES} bytes that holds the secret{form}"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not a path"
        raise ConfigError(f"{name}: the file that it names cannot be read ({why}); expected {expected}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{name}: the file that it names is too large; expected {expected}")
    try:
        text = content.decode("utf-8", "surrogateescape" if any_bytes else "strict").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: the file that it names is not UTF-8; expected {expected}") from None
    if not text:
        raise ConfigError(f"{name}: the file that it names is empty; expected {expected}")
    if "\0" in text:
        raise ConfigError(f"{name}: the file that it names holds a NUL byte; expected {expected}")
    return text
