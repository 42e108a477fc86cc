"""The settings of a configuration one by one, and which of them name files of certificates.

Rules of this module: pure; no file is read. The kind of a key in the table says that its file holds certificates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from notary.config.table import Key, keys


def settings(config: Any) -> Iterator[tuple[str, Key, object]]:
    """Return every key of a configuration: its path, its row in the table, its value."""
    for path, key, _ in keys(type(config)):
        value: object = config
        for name in path.split("."):
            value = getattr(value, name)
        yield path, key, value


def certificate_files(config: Any) -> Mapping[str, Path]:
    """Return the files of certificates that a configuration names, by the path of their keys."""
    return {path: value for path, key, value in settings(config) if key.kind.certificates and isinstance(value, Path)}
