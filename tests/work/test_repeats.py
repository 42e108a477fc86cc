"""Counting what is alike: what is written, what is counted, and that no flood takes more than a bounded table."""

from __future__ import annotations

from notary.work.repeats import SECONDS, Line, Repeats, Seldom


class Counted(dict):
    """A table that counts how often all of it was looked through."""

    looks = 0

    def items(self):
        Counted.looks += 1
        return super().items()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_is_written_then_one_a_minute_that_counts() -> None:
    clock = Clock()
    repeats = Repeats(3, clock)
    assert repeats.happened("a", None) == Line(0, first=True)
    assert [repeats.happened("a", None) for _ in range(5)] == [None] * 5
    assert repeats.happened("b", None) == Line(0, first=True)
    clock.now += SECONDS
    assert repeats.happened("a", None) == Line(5, first=False)
    assert repeats.happened("a", None) is None
    clock.now += SECONDS
    assert repeats.happened("a", None) == Line(1, first=False)


def test_a_flood_of_kinds_shares_a_line_and_is_little_work() -> None:
    clock = Clock()
    repeats = Repeats(10, clock)
    repeats._kinds = Counted()
    written = [repeats.happened(number, None) for number in range(10_000)]
    assert sum(line is not None for line in written) == 11
    assert len(repeats._kinds) == 11
    assert Counted.looks <= 1
    clock.now += SECONDS
    assert repeats.happened(10_000, None) == Line(0, first=True)
    assert len(repeats._kinds) == 1


def test_a_line_is_written_once_a_minute_and_counts_the_others() -> None:
    clock, lines = Clock(), []
    seldom = Seldom(lines.append, clock)
    for _ in range(100):
        seldom("no")
    clock.now += 61
    seldom("no")
    clock.now += 61
    seldom("no")
    assert lines == ["no", "no (and 99 more like it since the last such line)", "no"]
