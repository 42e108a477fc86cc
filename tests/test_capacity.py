"""The capacity model: its sums, its simulation against theory, and that the page is what it writes."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_SPEC = importlib.util.spec_from_file_location("capacity", ROOT / "etc" / "capacity.py")
capacity = importlib.util.module_from_spec(_SPEC)
sys.modules["capacity"] = capacity
_SPEC.loader.exec_module(capacity)

FIGURES = {
    "current": {"server": 0.1, "database": 0.05},
    "checksum": {"server": 0.1, "database": 0.01},
    "publish": {"server": 4.0, "signer": 0.5, "database": 2.0},
    "create": {"server": 4.0, "signer": 3.0, "database": 2.0},
    "sign": {"signer": 0.1, "database": 0.0},
    "handshake": {"server": 0.5},
}
DAYS = 86_400.0


def test_the_page_is_what_the_figures_say() -> None:
    figures = capacity.read_figures((ROOT / "docs/benchmarks.md").read_text())
    page = (ROOT / "docs/capacity.md").read_text()
    assert capacity.renewed(page, figures) == page, "run `make capacity`"


def test_the_page_says_what_is_assumed() -> None:
    page = (ROOT / "docs/capacity.md").read_text()
    assumed = capacity.ASSUMED
    for text in (
        f"| pulls of a collection a day | {assumed.pulls:g},",
        f"| publishes of a collection a day | {assumed.publishes:g},",
        f"| the peak | {assumed.peak:g} times",
        f"{assumed.cdn:.0%}".replace("%", " %"),
        f"{assumed.cdn_checksum:.0%}".replace("%", " %"),
        f"| {assumed.full:.0%}".replace("%", " %"),
        f"| {assumed.processors} processors,",
        f"| {assumed.database_processors} processors, {assumed.commits:,.0f} commits",
        f"| {assumed.first_bytes / 1000:g} KB for its first publish, {assumed.publish_bytes / 1000:g} KB",
    ):
        assert text in page


def test_what_is_needed() -> None:
    assumed = replace(capacity.ASSUMED, pulls=1.0, publishes=0.5, peak=2.0, cdn=0.5, cdn_checksum=1.0)
    bare = capacity.need(86_400, FIGURES, assumed, cdn=False)
    assert (bare.reads, bare.connections, bare.publishes) == pytest.approx((8, 2, 1))
    assert bare.server == pytest.approx((8 * 0.1 + 2 * 0.5 + 1 * 4) / 1000)
    assert bare.signer == pytest.approx(0.0005)
    assert bare.database == pytest.approx((6 * 0.05 + 2 * 0.01 + 2) / 1000)
    behind = capacity.need(86_400, FIGURES, assumed, cdn=True)
    assert (behind.reads, behind.publishes) == pytest.approx((3, 1))
    assert behind.gigabytes == bare.gigabytes
    assert capacity.need(172_800, FIGURES, assumed, cdn=True).server == pytest.approx(2 * behind.server)


def test_there_is_always_one_more_than_needed() -> None:
    small = capacity.need(1, FIGURES, capacity.ASSUMED, cdn=True)
    assert capacity.instances(small, capacity.ASSUMED) == 2
    large = replace(small, server=24.0, signer=0.0)  # at 60 %: ten machines of four
    assert capacity.instances(large, capacity.ASSUMED) == 11


@pytest.mark.parametrize(
    ("part", "why"),
    [({"database": 1000.0}, "processors"), ({"publishes": 1e5}, "commits"), ({"gigabytes": 1e6}, "size")],
)
def test_what_is_full_first(part: dict[str, float], why: str) -> None:
    one = replace(capacity.need(1, FIGURES, capacity.ASSUMED, cdn=True), **part)
    found = capacity.shards(one, capacity.ASSUMED)
    assert max(found, key=found.get) == why
    assert found[why] > 1


def test_the_simulation_agrees_with_theory() -> None:
    """One process, M/G/1: the mean wait by Pollaczek and Khinchine bounds the median; alone, nobody waits."""
    alone, _ = capacity.simulate(0.001, 2.0, 1, 2_000)
    assert alone == pytest.approx(2.0)
    median, p99 = capacity.simulate(250, 2.0, 1, 40_000)
    busy = 250 * 0.0021
    mean_square = 0.95 * 2.0**2 + 0.05 * 4.0**2
    wait = 250 / 1000 * mean_square / (2 * (1 - busy))
    assert 2.0 <= median <= 2.1 + wait
    assert p99 > median
    assert capacity.simulate(250, 2.0, 1, 40_000) == (median, p99)
    assert capacity.simulate(250, 2.0, 2, 40_000)[1] < p99


def test_a_page_without_a_row_says_which() -> None:
    with pytest.raises(KeyError, match="GET current timestamp"):
        capacity.read_figures("# Benchmarks\n")
