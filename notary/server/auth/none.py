"""No authentication: every caller may do everything. It is the default, as in the reference."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from notary.server.auth import Access


class NoAuth:
    """Everybody may do everything."""

    def authorize(self, authorization: str | None, host: str, access: Sequence[Access], now: datetime) -> str:  # noqa: ARG002 - the port's
        """Let the request through."""
        return ""
