"""How long a file is valid, found without parsing it: the files of a large collection have tens of megabytes.

Rules of this module: pure. The answer is never too late: a file whose expiry cannot be found in its text counts as
expired. A file of our store was validated once, so that one of the texts that look like its expiry is its expiry.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from notary.errors import InvalidMetadata
from notary.tuf.model import read_time

WINDOW_BYTES: Final = 1 << 18
"""How much is searched at once, in some 0.2 ms, during which no other thread runs."""

_NAME: Final = b'"expires"'
_VALUE: Final = re.compile(rb'[ \t\r\n]*+:[ \t\r\n]*+(?:"([^"\\]{1,64}+)")?+')
_ESCAPED_LETTER: Final = re.compile(rb"\\u00(?:6[59]|7[0238])")
"""A letter of the word "expires", as an escape: then the word may be there in another spelling."""

_ESCAPE_BYTES: Final = 6
EXPIRED: Final = datetime.min.replace(tzinfo=UTC)


def valid_until(data: bytes) -> datetime:
    """Return a time until which the file is valid (aware, UTC): that of its expiry, or an earlier one in rare cases.

    It is earlier if the file has another member ``expires``, in the custom data of a target, that names an earlier time
    or none; and if letters of "expires" are written as escapes.
    """
    earliest: datetime | None = None
    for begin in range(0, len(data), WINDOW_BYTES):
        end = begin + WINDOW_BYTES
        if _ESCAPED_LETTER.search(data, begin, end + _ESCAPE_BYTES - 1):
            return EXPIRED
        position = begin
        while (start := data.find(_NAME, position, end + len(_NAME) - 1)) >= 0:
            position = start + len(_NAME)
            found = _time_at(data, position)
            if found is not None and (earliest is None or found < earliest):
                earliest = found
    return EXPIRED if earliest is None else earliest


def _time_at(data: bytes, position: int) -> datetime | None:
    """Return the time after the name of a member; None if the name is only a text."""
    value = _VALUE.match(data, position)
    if value is None:
        return None
    if value[1] is None:
        return EXPIRED
    try:
        return read_time(value[1].decode(errors="replace"))
    except InvalidMetadata:
        return EXPIRED
