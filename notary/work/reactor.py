"""notary.work.reactor: to be described."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The time of day, aware."""
    return datetime.now(UTC)
