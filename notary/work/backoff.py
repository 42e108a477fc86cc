"""How long to wait before the next try."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before connecting again, in seconds: ``first``, then ``factor`` times more, up to ``most``.

    Each wait is made up to ``jitter`` (a fraction) longer or shorter by chance, so that clients do not come in step.
    """

    first: float = 0.2
    most: float = 5.0
    factor: float = 1.6
    jitter: float = 0.2

    def delay(self, failures: int, chance: float) -> float:
        """Return the wait after so many failures in a row; ``chance`` is in [0, 1)."""
        if failures == 0:
            return 0.0
        grown = min(self.most, self.first * self.factor ** min(failures - 1, 100))
        return grown * (1 + self.jitter * (2 * chance - 1))
