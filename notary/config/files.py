"""The settings of a configuration one by one, and those that name files of certificates.

Rules of this module: pure; no file is read. The kind of a key says whether its file holds certificates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from notary.config.table import Key, keys, value_at


def settings(config: object) -> Iterator[tuple[str, Key, object]]:
    """Yield every key of a configuration: its path, its row in the table, its value."""
    for path, key, _ in keys(type(config)):
        yield path, key, value_at(config, path)


def certificate_files(config: object) -> Mapping[str, Path]:
    """Return the files of certificates that a configuration names, by the paths of their keys."""
    return {path: value for path, key, value in settings(config) if key.kind.certificates and isinstance(value, Path)}
