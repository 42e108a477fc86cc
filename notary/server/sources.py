"""Files that a part of the server was made from, and how the part takes over what is in them later.

Rules of this module: types only. An authentication scheme or a signing service says here which files it reads, so that
the daemon watches and reloads them without knowing the scheme or the service.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Source(NamedTuple):
    """Files that are read again while the server runs.

    Args:
        keys: The keys of the configuration that name the files.
        files: The files; None for a key that is not given.
        load: Reads the files, in a thread. Raises ConfigError.
        use: Takes the result of ``load``, on the reactor's thread. Cannot fail.
    """

    keys: tuple[str, ...]
    files: tuple[Path | None, ...]
    load: Callable[[], Any]
    use: Callable[[Any], None]
