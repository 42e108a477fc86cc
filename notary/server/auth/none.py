"""No authentication: every caller may do everything. This scheme is the default, as in the reference."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from notary.config import Auth
from notary.server.auth import Access, Authentication


class NoAuth:
    """Lets every request through."""

    def authorize(self, authorization: str | None, host: str, access: Sequence[Access], now: datetime) -> str:  # noqa: ARG002 - the port's
        """Let the request through."""
        return ""


def build(_auth: Auth) -> Authentication:
    """Build the controller, which has no options."""
    return Authentication(NoAuth())
