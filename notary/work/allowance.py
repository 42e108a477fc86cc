"""How often peers may do what costs others something, and a line for the log that is not written as often.

Rules of this module: pure but for the clock that it is given; what it remembers of peers is bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from notary.work.lru import Lru

_HOUR_SECONDS: Final = 3600.0


class Allowance:
    """Lets each peer do something ``per_hour`` times in an hour, all of them at once if it likes; 0 means any number.

    ``seconds`` is the clock. The ``peers`` that asked last are remembered; one that is forgotten begins anew.
    """

    def __init__(self, per_hour: int, seconds: Callable[[], float], peers: int = 10_000) -> None:
        self._per_hour = per_hour
        self._seconds = seconds
        self._used: Lru[str, tuple[float, float]] = Lru(peers)  # how much of the allowance, and the time of that figure

    def __len__(self) -> int:
        """How many peers are remembered."""
        return len(self._used)

    def take(self, peer: str = "") -> float:
        """Count one for ``peer`` and return 0; or, if it has had its share, return the seconds until the next one."""
        if not self._per_hour:
            return 0.0
        now = self._seconds()
        used, since = self._used.get(peer) or (0.0, now)
        used = max(0.0, used - (now - since) * self._per_hour / _HOUR_SECONDS) + 1
        if used > self._per_hour:
            return (used - self._per_hour) * _HOUR_SECONDS / self._per_hour
        self._used.put(peer, (used, now))
        return 0.0


class Seldom:
    """Writes a line for the first event of a kind and then one in ``SECONDS`` at most, which counts those between."""

    SECONDS: Final = 60.0

    def __init__(self, write: Callable[[str], object], seconds: Callable[[], float]) -> None:
        self._write = write
        self._seconds = seconds
        self._until = float("-inf")
        self._more = 0

    def __call__(self, line: str) -> None:
        """Write ``line``, or count it."""
        now = self._seconds()
        if now < self._until:
            self._more += 1
            return
        counted = f" (and {self._more} more like it since the last such line)" if self._more else ""
        self._until, self._more = now + self.SECONDS, 0
        self._write(line + counted)
