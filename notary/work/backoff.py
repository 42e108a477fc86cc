"""Growing delays between attempts.

Rules of this module: pure.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """The delays between attempts, in seconds: ``first``, then each ``factor`` times the last, up to ``most``.

    Each delay is up to ``jitter`` (a fraction) longer or shorter by chance, so that clients do not retry in step.
    """

    first: float = 0.2
    most: float = 5.0
    factor: float = 1.6
    jitter: float = 0.2

    def delay(self, failures: int, chance: float) -> float:
        """Return the delay after ``failures`` failures in a row; ``chance`` is in [0, 1)."""
        if failures == 0:
            return 0.0
        grown = min(self.most, self.first * self.factor ** min(failures - 1, 100))
        return grown * (1 + self.jitter * (2 * chance - 1))
