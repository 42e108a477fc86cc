"""Which row of a table of routes a request belongs to, and what its path names.

Rules of this module: pure. It knows the paths of Notary (docs/protocol.md, section 1) and no handler: a table is an
argument, and the type of its handlers is a parameter. The work for one path is bounded, however long the path is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Generic, TypeVar

from notary.errors import InvalidGun, InvalidRole, NotaryError, NotFound
from notary.server.auth import Access
from notary.server.faults import UNKNOWN, HttpFault
from notary.tuf.model import Gun, RoleName

H = TypeVar("H")
H_co = TypeVar("H_co", covariant=True)

ROLE: Final = r"(?P<role>root|targets(?:/[^/\s]+)*|snapshot|timestamp)"
"""Pattern of a role in a path. RoleName finds out which of the texts that match are no roles."""

SERVER_ROLE: Final = r"(?P<role>snapshot|timestamp)"
"""Pattern of a role whose key the server may hold."""

CHECKSUM: Final = r"(?P<checksum>[a-fA-F0-9]{64}|[a-fA-F0-9]{96}|[a-fA-F0-9]{128})"
"""Pattern of a checksum in hexadecimal digits: SHA-256, SHA-384 or SHA-512."""

VERSION: Final = r"(?P<version>[0-9]+)"
"""Pattern of a version."""

_CATALOG: Final[Access] = ("registry", "catalog", "*")
_BEFORE_GUN: Final = "/v2/"
_AFTER_GUN: Final = "/_trust/"

_TAIL_CHARACTERS: Final = 512
"""Longest text after a GUN that is matched: the longest role and the longest checksum need 400 characters."""

_REMEMBERED_PATHS: Final = 4096
"""Number of paths whose match is remembered; each of these paths has at most ``_TAIL_CHARACTERS``."""


@dataclass(frozen=True, slots=True)
class Route(Generic[H_co]):
    """One row of a table of routes.

    Args:
        operation: The label of the route in metrics and logs.
        method: The HTTP method.
        path: A regular expression that must match the whole decoded path if it begins with ``/``, or else the text
            that follows ``/v2/<gun>/_trust/``.
        handler: Answers the requests of this route.
        actions: The rights that a request needs on its collection, or on the catalogue if the path names none. None
            asks for no rights and no token.
        bad_prefix: The error for a collection outside the configured prefixes.
        bad_name: The error for a name that no collection can have.
        any_name: Such a name is like that of any collection that is not there; the match has no ``gun`` then.
        broken: The answer to a failure that the client did not cause.
        takes_body: The handler reads the request's body.
        counts_upload: The metrics of uploads count a refusal of this route.
    """

    operation: str
    method: str
    path: str
    handler: H_co
    actions: tuple[str, ...] | None = ()
    bad_prefix: type[NotaryError] = NotFound
    bad_name: type[NotaryError] = NotFound
    any_name: bool = False
    broken: HttpFault = UNKNOWN
    takes_body: bool = False
    counts_upload: bool = False
    pattern: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compile ``path``."""
        object.__setattr__(self, "pattern", re.compile(self.path, re.ASCII))

    @property
    def of_gun(self) -> bool:
        """Whether ``path`` is the text after a collection's name."""
        return not self.path.startswith("/")


@dataclass(frozen=True, slots=True)
class Match(Generic[H_co]):
    """The row that a request belongs to, and what the request's path names.

    Args:
        route: The row.
        names: The groups of the row's pattern, without the role.
        access: The rights that the request needs.
        name: The collection as the path spells it; None if the path names no collection.
        gun: The collection; None if ``name`` cannot be one.
        bad_name: Why ``name`` cannot be a collection.
        role: The role; None if the path names none, or one that cannot exist.
        bad_role: Why the role cannot exist.
    """

    route: Route[H_co]
    names: Mapping[str, str]
    access: Sequence[Access] = ()
    name: str | None = None
    gun: Gun | None = None
    bad_name: str = ""
    role: RoleName | None = None
    bad_role: str = ""

    def collection(self) -> Gun:
        """Return the collection. Raises NotFound if ``name`` cannot be one."""
        if self.gun is None:
            raise NotFound(self.bad_name)
        return self.gun

    def gun_and_role(self) -> tuple[Gun, RoleName]:
        """Return the collection and the role. Raises NotFound if one of them cannot exist."""
        if self.role is None:
            raise NotFound(self.bad_role)
        return self.collection(), self.role


class Router(Generic[H]):
    """Finds the row of a request in ``routes``, in their order; ``otherwise`` is the row of all other requests."""

    def __init__(self, routes: Sequence[Route[H]], otherwise: Route[H]) -> None:
        self._routes = routes
        self._otherwise = otherwise
        self._remembered = lru_cache(_REMEMBERED_PATHS)(self._find)

    def find(self, method: str, path: str) -> Match[H]:
        """Return the first row that fits ``method`` and the decoded ``path``. HEAD fits where GET does."""
        find = self._remembered if len(path) <= _TAIL_CHARACTERS else self._find
        return find("GET" if method == "HEAD" else method, path)

    def _find(self, method: str, path: str) -> Match[H]:
        for name, rest in _splits(path):
            for route in self._routes:
                if route.method == method and route.of_gun is bool(name) and (match := route.pattern.fullmatch(rest)):
                    return _match(route, name, match.groupdict())
        return Match(self._otherwise, {}, [_CATALOG])


def _match(route: Route[H], name: str, names: dict[str, str]) -> Match[H]:
    gun, bad_name, role, bad_role = None, "", None, ""
    if name:
        try:
            gun = Gun(name)
        except InvalidGun as error:
            bad_name = str(error)
    if "role" in names:
        try:
            role = RoleName(names.pop("role"))
        except InvalidRole as error:
            bad_role = str(error)
    access = [("repository", name, action) for action in route.actions or ()] if name else [_CATALOG]
    return Match(route, names, access, name or None, gun, bad_name, role, bad_role)


def _splits(path: str) -> Iterator[tuple[str, str]]:
    """The ways to read a path: as a whole, and as a GUN and the text after it, from the longest GUN to the shortest.

    A GUN never contains ``*``. A delegation may hold ``/_trust/`` too, so several GUNs may be possible. The text after
    a GUN is never longer than ``_TAIL_CHARACTERS``, which bounds the work.
    """
    yield "", path
    if not path.startswith(_BEFORE_GUN):
        return
    end = len(path)
    while (end := path.rfind(_AFTER_GUN, len(_BEFORE_GUN), end)) >= len(_BEFORE_GUN) and (
        len(path) - end <= _TAIL_CHARACTERS
    ):
        gun = path[len(_BEFORE_GUN) : end]
        if gun and "*" not in gun:
            yield gun, path[end + len(_AFTER_GUN) :]
