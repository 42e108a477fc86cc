"""Who may do what: the port, and what a scheme of authentication is.

Rules of this package: each scheme is a module beside this one and a row in :mod:`notary.server.auth.schemes`. Every
scheme passes the contract in ``tests/server/auth/test_contract.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias

from notary.config import Auth
from notary.server.sources import Source

Access: TypeAlias = tuple[str, str, str]
"""A right: (type of the resource, its name, action), for example ("repository", "example.com/app", "pull")."""


class AccessController(Protocol):
    """Decides whether a request may go on."""

    def authorize(self, authorization: str | None, host: str, access: Sequence[Access], now: datetime) -> str:
        """Let through a request that needs every right of ``access``; return its subject, "" if nobody is named.

        ``authorization`` and ``host`` are the request's headers of these names, ``now`` is aware. Raises Unauthorized.
        """
        ...


def _no_sources(_auth: Auth) -> Sequence[Source]:
    return ()


@dataclass(frozen=True, slots=True)
class Authentication:
    """An access controller that a scheme has built.

    Args:
        controller: The access controller.
        sources: The files that ``controller`` is to be read from by a configuration, which may be newer than the one
            that built ``controller``.
    """

    controller: AccessController
    sources: Callable[[Auth], Sequence[Source]] = _no_sources


Scheme: TypeAlias = Callable[[Auth], Authentication]
"""Builds the access controller of a configuration; reads files. Raises ConfigError."""
