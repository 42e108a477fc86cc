"""What the URIs of key-encrypting keys have in common: their length, their attributes, and the names of their keys.

Rules of this module: pure.
"""

from __future__ import annotations

import hashlib
from typing import Final
from urllib.parse import parse_qsl

MAX_CHARACTERS: Final = 2048
"""The longest URI."""

_NAME_DIGITS: Final = 12


def name_of(scheme: str, place: str) -> str:
    """Return the name of the key at a place, which rows show as the alias of the key."""
    return f"{scheme}-{hashlib.sha256(place.encode()).hexdigest()[:_NAME_DIGITS]}"


def attributes(query: str) -> dict[str, str]:
    """Return what stands behind a question mark, which is at least one attribute. Raises ValueError."""
    pairs = parse_qsl(query, strict_parsing=True)
    found = dict(pairs)
    if len(found) != len(pairs) or not all(map(str.isprintable, found.values())):
        raise ValueError("an attribute that is given twice, or a character that is not printable")
    return found
