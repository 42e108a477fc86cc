"""The pauses of a key-encrypting key, or of a token, that cannot be used now.

Rules of this module: pure. A pause begins with each failure, and is longer after each failure in a row. Until a pause
is over, requests are refused with the reason of the failure, so that no request waits for what has just failed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

from notary.work.backoff import Backoff

_PAUSES: Final = Backoff(first=1.0, most=60.0, factor=2.0, jitter=0.2)
"""The pauses, in seconds."""


class Pauses:
    """Counts failures in a row; ``seconds`` is a monotonic clock. One thread at a time may call."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._failures = 0
        self.ends_at = -math.inf
        """When the last pause ends, in seconds of the clock."""
        self._reason = ""

    def reason(self) -> str | None:
        """Return why there is a pause; None if there is none."""
        return self._reason if self._seconds() < self.ends_at else None

    def failed(self, reason: str) -> None:
        """Begin a pause."""
        self._failures += 1
        self._reason = reason
        self.ends_at = self._seconds() + _PAUSES.delay(self._failures, random.random())  # noqa: S311 - jitter

    def worked(self) -> None:
        """Forget the failures."""
        self._failures = 0
