"""Conversion of values from the drivers, some of them written by a Go Notary, to ours. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from notary.errors import InvalidRow

UNKNOWN_TIME: Final = datetime.min.replace(tzinfo=UTC)
"""Stands for a time that a row lacks: what Go's drivers make of NULL, of MySQL's date of zeros and of other text."""


def to_written(value: Any) -> datetime:
    """Convert the time at which a row was written, which is only shown to clients; UNKNOWN_TIME if there is none."""
    try:
        return to_time(value)
    except InvalidRow:
        return UNKNOWN_TIME


def to_time(value: Any) -> datetime:
    """Convert a time from any of the drivers, or as Go's SQLite driver wrote it; without a zone it is UTC."""
    try:
        when: datetime = datetime.fromisoformat(value) if isinstance(value, str) else value
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except (ValueError, OverflowError, AttributeError) as error:
        raise InvalidRow(f"the database holds {value!r} where a time belongs: correct that row") from error


def to_bytes(value: Any) -> bytes:
    """Convert binary content, some of which a Go Notary writes as text."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise InvalidRow("the database holds something else where binary content belongs: correct that row")


def to_version(value: Any) -> int:
    """Check a version number: SQLite accepts text in an integer column, and sorts it above every number."""
    if isinstance(value, int):
        return value
    raise InvalidRow("the database holds something else where a version number belongs: correct that row")
