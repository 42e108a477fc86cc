"""How far a mirror has come: a file that the mirror's process writes and a read-only server beside it reads.

Rules of this module: the file is replaced in one step, so that a reader never sees half of it. Times are times of day,
because two processes compare them. The functions block.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from notary.work.files import replace_file

MAX_BYTES: Final = 4096
"""A longer file is not a status."""


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """``complete_at`` is when the last round began that took over everything, in seconds since 1970.

    ``due`` is the number of collections that have changed at the peer and could not be taken over.
    """

    complete_at: float
    due: int

    def write(self, path: Path) -> None:
        """Replace the file. Raises OSError."""
        replace_file(path, (json.dumps({"complete_at": self.complete_at, "due": self.due}) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file. Raises OSError, and ValueError if it is not a status."""
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        found = None if len(data) > MAX_BYTES else _parsed(data)
        if found is None:
            raise ValueError("the file is not what notary-admin mirror --status-file writes")
        return cls(*found)


def _parsed(data: bytes) -> tuple[float, int] | None:
    try:
        found = json.loads(data)
        complete_at, due = float(found["complete_at"]), int(found["due"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return (complete_at, due) if math.isfinite(complete_at) and due >= 0 else None
