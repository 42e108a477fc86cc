"""How much of something a peer may have in an hour."""

from __future__ import annotations

import pytest

from notary.work.allowance import Allowance
from tests.support.clocks import Time


def test_a_share_is_used_up_and_grows_again() -> None:
    time = Time(1000.0)
    allowance = Allowance(60, time)
    assert [allowance.take("a") for _ in range(60)] == [0.0] * 60
    assert allowance.take("a") == pytest.approx(60)  # seconds: one a minute
    assert allowance.take("b") == 0.0
    time.now += 59
    assert allowance.take("a") == pytest.approx(1)
    time.now += 1
    assert allowance.take("a") == 0.0
    assert allowance.take("a") == pytest.approx(60)
    time.now += 3600
    assert [bool(allowance.take("a")) for _ in range(61)] == [False] * 60 + [True]


def test_nought_means_any_number() -> None:
    allowance = Allowance(0, Time(1000.0))
    assert not any(allowance.take() for _ in range(1000))
    assert len(allowance) == 0


def test_however_many_peers_there_are_few_are_remembered() -> None:
    allowance = Allowance(2, Time(1000.0), peers=100)
    for _ in range(3):
        allowance.take("busy")
    for number in range(10_000):
        assert allowance.take(str(number)) == 0.0
        assert allowance.take("busy") > 0.0  # it asks, and so is not forgotten
        assert len(allowance) <= 100
