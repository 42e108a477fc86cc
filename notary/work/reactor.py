"""What is asked of a reactor and of a clock."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The time of day, aware."""
    return datetime.now(UTC)
