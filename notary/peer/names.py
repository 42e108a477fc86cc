"""Names of collections as people write them: GUNs, and names of Docker repositories.

Rules of this module: pure. ``alpine`` may be a GUN or the repository ``docker.io/library/alpine``: the server knows
which, so both are candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from notary.tuf.model import Gun

_DOCKER: Final = "docker.io"
_OFFICIAL: Final = "library"


def candidates(name: str) -> tuple[Gun, ...]:
    """Return the GUNs that a name may mean, the most literal one first. Raises InvalidGun if it can be none."""
    found = [Gun(name)]
    repository = _repository(name)
    if repository != name:
        found.append(Gun(repository))
    return tuple(found)


def _repository(name: str) -> str:
    """Return the GUN of a Docker repository: without tag and digest, with the registry."""
    name = name.partition("@")[0]
    path, slash, last = name.rpartition("/")
    name = path + slash + last.partition(":")[0]
    first, slash, rest = name.partition("/")
    if slash and (set(".:") & set(first) or first == "localhost"):
        if first in ("index.docker.io", _DOCKER):
            return f"{_DOCKER}/{rest if '/' in rest else f'{_OFFICIAL}/{rest}'}"
        return name
    return f"{_DOCKER}/{name}" if slash else f"{_DOCKER}/{_OFFICIAL}/{name}"


def read_list(lines: Iterable[str]) -> Iterator[str]:
    """Yield the names in a list: one a line; blank lines and what follows a ``#`` do not count."""
    for line in lines:
        name = line.partition("#")[0].strip()
        if name:
            yield name
