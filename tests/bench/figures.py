"""What is measured, and how many measurements become one figure.

Rules of this module: pure. A figure has samples of two sides, one a round; its value is their median, which one
disturbed round does not move. A ratio is always ours divided by the reference's, whichever direction is better. To add
a figure, add a row to the table in ``tests.bench.suites`` and let the work there return its key.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

GO, OURS, WORKERS = "go", "ours", "workers"
SIDES = (GO, OURS)
"""What every suite compares; ``WORKERS`` is ours with two processes, where that makes a difference."""


class BenchError(Exception):
    """The bench cannot go on; the text is for the user who started it."""


@dataclass(frozen=True)
class Goal:
    """What a figure shall reach, in words, and the check: ``met(go, ours)``. Words without a unit are of the ratio.

    ``gain`` is how many times better than the reference that is, if it is a matter of the ratio: 4 is four times as
    much of a rate, and a fourth of a time (``less`` says which of the two is better).
    """

    text: str
    met: Callable[[float, float], bool]
    gain: float | None = None
    less: bool = False


def at_least(times: float) -> Goal:
    """Ours is at least so many times the reference's."""
    return Goal(f"at least {times:g}", lambda go, ours: ours >= times * go, times)


def at_most(times: float) -> Goal:
    """Ours is at most so many times the reference's."""
    return Goal(f"at most {times:g}", lambda go, ours: ours <= times * go, 1 / times, less=True)


def under(value: float, unit: str) -> Goal:
    """Ours is below a fixed value."""
    return Goal(f"under {value:g} {unit}", lambda _go, ours: ours < value)


@dataclass(frozen=True)
class Row:
    """One figure: the ``key`` of its samples, its line in the table, its unit."""

    key: str
    label: str
    unit: str
    goal: Goal | None = None


@dataclass
class Samples:
    """All measurements so far, by key and side, in the order of the rounds."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, side: str, measured: Mapping[str, float]) -> None:
        for key, value in measured.items():
            self.values.setdefault(key, {}).setdefault(side, []).append(value)

    def of(self, key: str, side: str) -> list[float]:
        return self.values.get(key, {}).get(side, [])

    def median(self, key: str, side: str) -> float:
        """Raises BenchError if there is no sample: a row of the table names a key that nothing measures."""
        samples = self.of(key, side)
        if not samples:
            raise BenchError(f"nothing measured {key!r} of {side}")
        return statistics.median(samples)

    def ratio(self, key: str, side: str = OURS) -> float | None:
        """Ours divided by the reference's; None if that is nothing."""
        go = self.median(key, GO)
        return self.median(key, side) / go if go else None

    def gain(self, row: Row, side: str) -> float | None:
        """How many times better than the reference a side of ours is; None if the goal is not of the ratio."""
        ratio = self.ratio(row.key, side) if self.of(row.key, side) else None
        if not ratio or row.goal is None or row.goal.gain is None:
            return None
        return 1 / ratio if row.goal.less else ratio

    def met(self, row: Row) -> str:
        """The side of ours that reaches a row's goal, the plain one if it does; "" if none."""
        go = self.median(row.key, GO)
        sides = [side for side in (OURS, WORKERS) if self.of(row.key, side)]
        return next((side for side in sides if row.goal and row.goal.met(go, self.median(row.key, side))), "")


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that at least this share of them does not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 1)  # rounded up
    return ordered[max(0, int(rank) - 1)]


def order_of(round_number: int, sides: Sequence[str] = SIDES) -> Sequence[str]:
    """Who is measured first changes every round, so that a drift of the machine hits all alike."""
    first = round_number % len(sides)
    return (*sides[first:], *sides[:first])


def missed(rows: Iterable[Row], samples: Samples) -> list[Row]:
    """The rows whose goal none of ours meets."""
    return [row for row in rows if row.goal is not None and not samples.met(row)]
