"""Who may do what: the port. Each scheme is a module beside this one."""

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
