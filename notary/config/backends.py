"""The table of storage backends: whether each of them keeps data, and what its ``db_url`` names.

Rules of this module: pure. This table is the one list of the values of ``storage.backend``. The databases themselves
are rows of :mod:`notary.storage.sql.backends`; a test compares the names in both tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One value of ``storage.backend``.

    Args:
        persistent: Data outlives the process; ``storage.db_url`` names the database.
        remote: The database is a server, and the daemon connects to it.
        file: The database is a file; its path may be relative to the configuration file.
    """

    name: str
    persistent: bool = True
    remote: bool = False
    file: bool = False


BACKENDS: Final[Mapping[str, Backend]] = MappingProxyType(
    {
        backend.name: backend
        for backend in (
            Backend(name="mysql", remote=True),
            Backend(name="postgres", remote=True),
            Backend(name="sqlite3", file=True),
            Backend(name="memory", persistent=False),
        )
    }
)
"""The backends by their name in ``storage.backend``."""

PERSISTENT: Final = tuple(backend.name for backend in BACKENDS.values() if backend.persistent)
REMOTE: Final = tuple(backend.name for backend in BACKENDS.values() if backend.remote)
