"""How often a peer may do something that costs others.

Rules of this module: pure but for the clock that it is given; the number of peers that it remembers is bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from notary.work.lru import Lru

_HOUR_SECONDS: Final = 3600.0


class Allowance:
    """Lets each peer do something ``per_hour`` times in an hour, in a burst if the peer likes; 0 means no limit.

    ``seconds`` is the clock. The last ``peers`` that asked are remembered; a peer that is forgotten begins anew.
    """

    def __init__(self, per_hour: int, seconds: Callable[[], float], peers: int = 10_000) -> None:
        self._per_hour = per_hour
        self._seconds = seconds
        self._used: Lru[str, tuple[float, float]] = Lru(peers)  # how much of the allowance, and the time of that figure

    def __len__(self) -> int:
        """Return the number of peers that are remembered."""
        return len(self._used)

    def take(self, peer: str = "") -> float:
        """Count one use by ``peer`` and return 0; or return the seconds until ``peer`` may do it again."""
        if not self._per_hour:
            return 0.0
        now = self._seconds()
        used, since = self._used.get(peer) or (0.0, now)
        used = max(0.0, used - (now - since) * self._per_hour / _HOUR_SECONDS) + 1
        if used > self._per_hour:
            return (used - self._per_hour) * _HOUR_SECONDS / self._per_hour
        self._used.put(peer, (used, now))
        return 0.0
