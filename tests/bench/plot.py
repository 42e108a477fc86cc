"""The picture of docs/benchmarks.md: how many times better than Go each figure is whose goal is a ratio.

Rules of this module: pure; the same figures make the same bytes. A heading a suite, a line a figure, a mark a side of
ours, on a logarithmic axis on which 1 is Go. It looks alike on light and dark pages, for it brings its own white
ground, and asks for no font but the reader's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from tests.bench.figures import OURS, WORKERS, BenchError, Row, Samples

_SIDES = {OURS: ("ours", "#1f5fa8"), WORKERS: ("ours, 2 workers", "#3a9a5b")}
_GOAL, _GO, _GRID, _INK = "#c0392b", "#555", "#ddd", "#222"
_LABELS, _AXIS, _MARGIN, _TOP, _LINE = 450, 420, 30, 46, 24
"""Pixels: where the axis begins, its length, what is right of it and below, what is above, a line."""
_TICKS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class _Bar:
    label: str
    goal: float
    gains: Mapping[str, float]


def plot(suites: Iterable[tuple[str, Sequence[Row]]], samples: Samples) -> str:
    """An SVG of these suites, each a title and its rows.

    Raises BenchError if no row has a goal that is a ratio, or if one that has was not measured.
    """
    groups = [(title, bars) for title, rows in suites if (bars := _bars(rows, samples))]
    if not groups:
        raise BenchError("no row has a goal that is a ratio: there is nothing to draw")
    bars = [bar for _, group in groups for bar in group]
    x, ticks = _axis([value for bar in bars for value in (bar.goal, *bar.gains.values())])
    lines: list[str] = []
    y = _TOP + _LINE / 2
    for title, group in groups:
        lines.append(_text(_LABELS - 12, y + 4, title, ' font-weight="bold"'))
        for bar in group:
            y += _LINE
            lines.append(_drawn(bar, x, y))
        y += 1.25 * _LINE
    bottom = y - _LINE / 2
    width, height = _LABELS + _AXIS + _MARGIN, bottom + _MARGIN
    grid = "".join(_tick(tick, x(tick), bottom) for tick in ticks)
    seen = [side for side in _SIDES if any(side in bar.gains for bar in bars)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif" font-size="12">\n<title>How many times better than Go 0.7.0'
        f'</title>\n<rect width="{width:g}" height="{height:g}" fill="white"/>\n'
        f"{_legend(seen)}{grid}{''.join(lines)}</svg>\n"
    )


def plot_growth(lines: Iterable[tuple[str, Mapping[int, float]]]) -> str:
    """An SVG of how work grows: each line a label and milliseconds by size, as multiples of those at the smallest."""
    drawn = [(label, sorted(figures.items())) for label, figures in lines]
    most = max([2.0, *(value / points[0][1] for _, points in drawn for _, value in points)])
    smallest = min(points[0][0] for _, points in drawn)
    decades = math.log10(max(points[-1][0] for _, points in drawn) / smallest)
    height = 320

    def at(size: float, times: float) -> str:
        x = 60 + 460 * math.log10(size / smallest) / decades
        return f"{x:.1f} {_TOP + height * (1 - times / most):.1f}"

    found = ""
    for times in range(math.floor(most) + 1):
        colour = _GO if times == 1 else _GRID
        y = at(smallest, times).split()[1]
        found += f'<path d="M60 {y}H520" stroke="{colour}"/>\n' + _text(52, float(y) + 4, f"{times} x")
    for power in range(math.ceil(math.log10(smallest)), math.floor(math.log10(smallest) + decades) + 1):
        x = at(10**power, 0).split()[0]
        found += _text(float(x), _TOP + height + 18, f"{10**power:,}", anchor="middle")
    for number, (label, points) in enumerate(drawn):
        colour = f"hsl({360 * number // len(drawn)} 60% 40%)"
        path = "L".join(at(size, value / points[0][1]) for size, value in points)
        y = _TOP + 12 + 18 * number
        found += (
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"><title>{escape(label)}</title></path>\n'
        )
        found += f'<path d="M540 {y - 8}h10v10h-10z" fill="{colour}"/>\n' + _text(556, y, label, anchor="start")
    width, bottom = 860, _TOP + max(height, 18 * len(drawn)) + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom}" width="{width}" height="{bottom}" '
        f'font-family="sans-serif" font-size="12">\n<title>What work takes as the database grows</title>\n'
        f'<rect width="{width}" height="{bottom}" fill="white"/>\n{found}</svg>\n'
    )


def _bars(rows: Sequence[Row], samples: Samples) -> list[_Bar]:
    bars = []
    for row in rows:
        if row.goal is None or row.goal.gain is None:
            continue
        gains = {side: gain for side in _SIDES if (gain := samples.gain(row, side)) is not None}
        if OURS not in gains:
            raise BenchError(f"there is no ratio of {row.label!r} to draw")
        bars.append(_Bar(row.label, row.goal.gain, gains))
    return bars


def _axis(values: Sequence[float]) -> tuple[Callable[[float], float], Sequence[float]]:
    """Where a value is, and the ticks, which reach from below the smallest to above the largest value, and over 1.

    What is beyond the last tick is drawn at it.
    """
    low = max((tick for tick in _TICKS if tick < min(1, *values)), default=_TICKS[0])
    high = min((tick for tick in _TICKS if tick > max(1, *values)), default=_TICKS[-1])

    def x(value: float) -> float:
        return _LABELS + _AXIS * math.log(min(max(value, low), high) / low) / math.log(high / low)

    return x, [tick for tick in _TICKS if low <= tick <= high]


def _drawn(bar: _Bar, x: Callable[[float], float], y: float) -> str:
    found = _text(_LABELS - 12, y + 4, bar.label)
    apart = 8 / len(bar.gains)
    for number, (side, gain) in enumerate(bar.gains.items()):
        name, colour = _SIDES[side]
        middle = y + apart * (number - (len(bar.gains) - 1) / 2)
        found += (
            f'<g stroke="{colour}" fill="{colour}" stroke-width="2"><title>{escape(bar.label)}: {name}, {gain:.2f}'
            f'</title><path d="M{x(1):.1f} {middle:g}H{x(gain):.1f}"/>'
            f'<circle cx="{x(gain):.1f}" cy="{middle:g}" r="2.5"/></g>\n'
        )
    return found + f'<path d="M{x(bar.goal):.1f} {y - 8:g}v16" stroke="{_GOAL}" stroke-width="2"/>\n'


def _tick(tick: float, x: float, bottom: float) -> str:
    colour, name = (_GO, "Go") if tick == 1 else (_GRID, f"{tick:g} x")
    return f'<path d="M{x:.1f} {_TOP}V{bottom:g}" stroke="{colour}"/>\n' + _text(x, bottom + 18, name, anchor="middle")


def _legend(sides: Sequence[str]) -> str:
    found = _text(_LABELS - 12, 26, "how many times better than Go 0.7.0")
    for number, (name, colour) in enumerate([*(_SIDES[side] for side in sides), ("goal", _GOAL)]):
        x = _LABELS + 140 * number
        found += f'<path d="M{x} 17h10v10h-10z" fill="{colour}"/>\n' + _text(x + 16, 26, name, anchor="start")
    return found


def _text(x: float, y: float, text: str, more: str = "", anchor: str = "end") -> str:
    return f'<text x="{x:.1f}" y="{y:g}" text-anchor="{anchor}" fill="{_INK}"{more}>{escape(text)}</text>\n'
