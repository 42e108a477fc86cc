"""Work that several callers want at once is done once, and ends even if some of them give up."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from notary.work.singleflight import SingleFlight


class Work:
    """Work that ends when the test says so; ``begun`` names what was started, ``landed`` what was kept."""

    def __init__(self):
        self.begun = []
        self.ends = []
        self.landed = []
        self.shared = SingleFlight(self.run, lambda name, result: self.landed.append((name, result)))

    async def run(self, name):
        self.begun.append(name)
        self.ends.append(Deferred())
        return await self.ends[-1]


@pytest_twisted.ensureDeferred
async def test_those_who_ask_at_the_same_time_share_one_outcome():
    work = Work()
    asked = [work.shared("a") for _ in range(3)]
    other = work.shared("b")
    assert work.begun == ["a", "b"]
    work.ends[0].callback(1)
    work.ends[1].callback(2)
    assert [await each for each in asked] == [1, 1, 1]
    assert await other == 2
    assert work.landed == [("a", 1), ("b", 2)]


@pytest_twisted.ensureDeferred
async def test_who_asks_later_starts_anew():
    work = Work()
    first = work.shared("a")
    work.ends[0].callback(1)
    second = work.shared("a")
    work.ends[1].callback(2)
    assert (await first, await second) == (1, 2)


@pytest_twisted.ensureDeferred
async def test_a_failure_is_shared_and_not_kept():
    work = Work()
    asked = [work.shared("a") for _ in range(2)]
    work.ends[0].errback(ValueError("no"))
    for each in asked:
        with pytest.raises(ValueError, match="no"):
            await each
    assert work.landed == []
    again = work.shared("a")
    work.ends[1].callback(1)
    assert await again == 1


@pytest_twisted.ensureDeferred
async def test_giving_up_concerns_nobody_else():
    work = Work()
    hasty, patient = work.shared("a"), work.shared("a")
    hasty.cancel()
    with pytest.raises(CancelledError):
        await hasty
    work.ends[0].callback(1)
    assert await patient == 1
    assert work.landed == [("a", 1)]


@pytest_twisted.ensureDeferred
async def test_work_goes_on_when_nobody_waits():
    work = Work()
    only = work.shared("a")
    only.cancel()
    with pytest.raises(CancelledError):
        await only
    work.ends[0].callback(1)
    assert work.landed == [("a", 1)]


@pytest_twisted.ensureDeferred
async def test_what_was_forgotten_lands_for_those_who_wait_only():
    work = Work()
    before = work.shared("a")
    work.shared.forget("a")
    after = work.shared("a")
    assert work.begun == ["a", "a"]
    work.ends[0].callback("old")
    assert await before == "old"
    assert work.landed == []
    assert not after.called
    work.ends[1].callback("new")
    assert await after == "new"
    assert work.landed == [("a", "new")]


def test_forgetting_what_does_not_run_is_nothing():
    work = Work()
    work.shared.forget("a")
    assert work.begun == []
