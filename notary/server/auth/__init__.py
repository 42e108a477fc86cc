"""Who may do what: the port, no authentication at all, and the Docker registry's bearer tokens.

Rules of this module: checking a token is pure (text and the time in; a subject out, or Unauthorized) and bounded in
work, and nothing that a caller sends makes it raise anything but Unauthorized. No part of a token gets into an error,
but for the subject of one that was accepted. A key that the token itself brings is used only when the bundle vouches
for it. (docs/protocol.md, section 8; RFC 6750, RFC 7515, RFC 7519)
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol, TypeAlias

Access: TypeAlias = tuple[str, str, str]
"""A right: (type of the resource, its name, action), for example ("repository", "example.com/app", "pull")."""


class AccessController(Protocol):
    """Decides whether a request may go on."""

    def authorize(self, authorization: str | None, host: str, access: Sequence[Access], now: datetime) -> str:
        """Let through a request that needs every right of ``access``; return its subject, "" if nobody is named.

        ``authorization`` and ``host`` are the request's headers of these names, ``now`` is aware. Raises Unauthorized.
        """
        ...
