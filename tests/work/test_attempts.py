"""When a call is late, and how often calls may be repeated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notary.work.attempts import Budget, UsualTime

durations = st.floats(0, 1000, allow_nan=False)


def test_before_the_first_call_nothing_is_usual() -> None:
    usual = UsualTime()
    assert usual.seconds == 0
    assert usual.late_after(10, 0.05, 1.0) == 1.0


@pytest.mark.parametrize("seconds", [0.001, 0.02, 3.0])
def test_calls_that_take_the_same_time(seconds: float) -> None:
    usual = UsualTime()
    for _ in range(100):
        usual.observe(seconds)
    assert usual.seconds == pytest.approx(seconds)
    assert usual.late_after(10, 0.05, 1.0) == pytest.approx(max(0.05, 10 * seconds))


def test_a_few_that_hang_are_not_the_measure() -> None:
    usual = UsualTime()
    for number in range(1000):
        usual.observe(5.0 if number % 100 == 50 else 0.01)
    assert usual.seconds < 0.02


def test_a_slow_first_call_is_soon_forgotten() -> None:
    usual = UsualTime()
    usual.observe(1.0)
    for _ in range(150):
        usual.observe(0.005)
    assert usual.seconds < 0.01


def test_what_becomes_slow_for_good_becomes_usual() -> None:
    usual = UsualTime()
    for seconds in [0.0] * 50 + [0.4] * 200:
        usual.observe(seconds)
    assert usual.seconds == pytest.approx(0.4, rel=0.05)


@given(st.lists(durations, min_size=1))
def test_the_usual_time_is_never_beyond_what_was_seen(seen: list[float]) -> None:
    usual = UsualTime()
    for seconds in seen:
        usual.observe(seconds)
    assert 0 <= usual.seconds <= max(seen) * (1 + 1e-9)


def test_as_many_repeats_at_once_as_were_saved() -> None:
    budget = Budget(0.1, 5)
    assert [budget.take() for _ in range(7)] == [True] * 5 + [False] * 2


def test_calls_earn_repeats_up_to_the_most() -> None:
    budget = Budget(0.25, 2)
    for _ in range(100):
        budget.earn()
    assert budget.left == 2
    assert [budget.take() for _ in range(3)] == [True, True, False]
    for _ in range(4):
        budget.earn()
    assert [budget.take() for _ in range(2)] == [True, False]


@given(st.lists(st.booleans()))
def test_repeats_are_a_share_of_calls(calls: list[bool]) -> None:
    budget, taken = Budget(0.125, 3), 0
    for earns in calls:
        if earns:
            budget.earn()
        else:
            taken += budget.take()
    assert taken <= 3 + 0.125 * sum(calls)
