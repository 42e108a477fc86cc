"""When a call is late, and how often calls may be repeated.

Rules of this module: pure. Durations are arguments, in seconds.
"""

from __future__ import annotations

from typing import Final

_MEMORY: Final = 32
"""About how many of the last durations the usual one is a mean of."""

_LARGEST_STEP: Final = 4.0
"""A duration counts as at most so many times the usual one, so that a few that hang do not become the measure."""

_LEAST_STEP_SECONDS: Final = 0.001
"""A duration up to this counts as it is."""


class UsualTime:
    """The usual duration of a call: a running mean of the last ones, in which outliers weigh little."""

    def __init__(self) -> None:
        self._mean_seconds = 0.0
        self._seen = 0

    @property
    def seconds(self) -> float:
        """The usual duration; 0 before the first call."""
        return self._mean_seconds

    def observe(self, seconds: float) -> None:
        """Count a call that took ``seconds``."""
        self._seen = min(self._seen + 1, _MEMORY)
        if self._seen > 1:
            seconds = min(seconds, max(_LEAST_STEP_SECONDS, self._mean_seconds * _LARGEST_STEP))
        self._mean_seconds += (seconds - self._mean_seconds) / self._seen

    def late_after(self, factor: float, least: float, unknown: float) -> float:
        """Return after how long a call is late: ``factor`` times the usual, at least ``least``.

        Before the first call has ended that is ``unknown``.
        """
        return max(least, factor * self._mean_seconds) if self._seen else unknown


class Budget:
    """Bounds repeats to a ``share`` of all calls.

    Each call earns ``share`` of a repeat. At most ``most`` repeats can be saved, which is also how many there are at
    first: so many calls may fail at the same time, as when a peer dies, and be repeated.
    """

    def __init__(self, share: float, most: float) -> None:
        self._share = share
        self._most = most
        self._left = most

    @property
    def left(self) -> float:
        """The repeats that are saved."""
        return self._left

    def earn(self) -> None:
        """Count one call."""
        self._left = min(self._most, self._left + self._share)

    def take(self) -> bool:
        """Take one repeat; False if none is left."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
