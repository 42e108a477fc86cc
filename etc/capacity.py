"""What a service of a given size needs: ``python etc/capacity.py`` writes the tables of docs/capacity.md anew.

Rules of this script: what an operation costs is read from docs/benchmarks.md, so that the page follows the bench; what
people do (how often they pull and publish, what a CDN keeps) is assumed, in one table, and said in the page. The
simulation has a fixed seed: the same figures make the same page. Only the standard library is used.
"""

from __future__ import annotations

import heapq
import random
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
PAGE: Final = DOCS / "capacity.md"
BEGIN, END = "<!-- capacity: begin -->", "<!-- capacity: end -->"

DAY: Final = 86_400.0

FIGURES: Final = {
    "current": "GET current timestamp of 50 collections in turn, 32 connections, CPU of the {part}",
    "checksum": "GET by checksum, 0.5 KB, 32 connections, CPU of the {part}",
    "publish": "second publish, 8 in flight, CPU of the {part}",
    "create": "first publish, 8 in flight, CPU of the {part}",
    "sign": "Sign, 16 in flight, CPU of the {part}",
    "handshake": "a new TLS connection per request, CPU of the {part}",
}
"""Rows of docs/benchmarks.md: milliseconds of CPU for each operation, by part of the service."""


@dataclass(frozen=True)
class Assumptions:
    """What people do, and what machines are like."""

    pulls: float = 5.0  # of each collection a day: one connection, three current files, one by checksum
    publishes: float = 0.2  # of each collection a day
    peak: float = 4.0  # times the average
    cdn: float = 0.9  # of all reads of current files: answered by a CDN within max-age
    cdn_checksum: float = 0.99  # of reads by checksum
    full: float = 0.6  # how busy a processor may be at the peak
    processors: int = 4  # of a machine that serves
    database_processors: int = 16  # of a primary
    commits: float = 3_000.0  # a second that a primary's disk takes
    first_bytes: float = 9_000.0  # of a first publish in the tables, with indexes
    publish_bytes: float = 4_500.0  # of each further one
    kept_days: float = 365.0  # that versions are kept (notary-admin gc)
    answer_bytes: float = 1_500.0  # of an answer, with its head and TLS


ASSUMED: Final = Assumptions()
SIZES: Final = (10_000, 10_000_000, 1_000_000_000)


def read_figures(text: str) -> Mapping[str, Mapping[str, float]]:
    """Milliseconds by operation and part, from the column "ours" of docs/benchmarks.md. Raises KeyError."""
    rows: dict[str, float] = {}
    for label, ours in re.findall(r"^\| ([^|]+) \| ms/\w+ \| [^|]+ \| ([0-9.,]+) ", text, re.MULTILINE):
        rows[label] = float(ours.replace(",", ""))
    found: dict[str, dict[str, float]] = {}
    for name, label in FIGURES.items():
        parts = ("server", "signer", "database")
        found[name] = {part: rows[row] for part in parts if (row := label.format(part=part)) in rows}
        if not found[name]:
            raise KeyError(label)
    return found


@dataclass(frozen=True)
class Need:
    """What a service of one size needs, at the peak: rates a second, processors, bytes."""

    collections: int
    reads: float
    connections: float
    publishes: float
    server: float
    signer: float
    database: float
    gigabytes: float
    egress: float


def need(collections: int, figures: Mapping[str, Mapping[str, float]], assumed: Assumptions, *, cdn: bool) -> Need:
    """Work out what ``collections`` need, with or without a CDN before the servers."""
    kept, kept_checksum = (assumed.cdn, assumed.cdn_checksum) if cdn else (0.0, 0.0)
    pulls = collections * assumed.pulls / DAY * assumed.peak
    current, checksum = pulls * 3 * (1 - kept), pulls * (1 - kept_checksum)
    # A CDN keeps its connections; clients that come by themselves make one for each pull.
    connections = pulls if not cdn else (current + checksum) / 100
    publishes = collections * assumed.publishes / DAY * assumed.peak
    rates = {"current": current, "checksum": checksum, "handshake": connections, "publish": publishes}

    def processors(part: str) -> float:
        return sum(rate * figures[name].get(part, 0.0) for name, rate in rates.items()) / 1000

    rows = collections * (assumed.first_bytes + assumed.publishes * assumed.kept_days * assumed.publish_bytes)
    return Need(
        collections=collections,
        reads=current + checksum,
        connections=connections,
        publishes=publishes,
        server=processors("server"),
        signer=processors("signer"),
        database=processors("database"),
        gigabytes=rows / 1e9,
        egress=pulls * 4 / assumed.peak * DAY * assumed.answer_bytes / 1e9,
    )


def instances(one: Need, assumed: Assumptions) -> int:
    """How many machines serve, one more than needed, so that one may be away."""
    return 1 + max(1, round_up((one.server + one.signer) / (assumed.full * assumed.processors)))


def shards(one: Need, assumed: Assumptions) -> Mapping[str, int]:
    """How many primaries the database needs, by what makes it need them."""
    return {
        "processors": round_up(one.database / (assumed.full * assumed.database_processors)),
        "commits": round_up(one.publishes / (assumed.full * assumed.commits)),
        "size": round_up(one.gigabytes / 2_000),
    }


def round_up(value: float) -> int:
    """The next whole number."""
    return int(-(-value // 1))


# -- the simulation ---------------------------------------------------------------------------------------------------


def simulate(rate: float, service: float, processes: int, requests: int, seed: int = 1) -> tuple[float, float]:
    """Median and 99th percentile, in milliseconds, of the time in a service of so many processes.

    Requests come at random (Poisson) at ``rate`` a second, each to the process that is free first. Each takes
    ``service`` milliseconds of that process, twice that in one case of twenty (garbage collections, renewals).
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    free = [0.0] * processes
    now, spent = 0.0, []
    for _ in range(requests):
        now += chance.expovariate(rate)
        begin = max(now, heapq.heappop(free))
        end = begin + service / 1000 * (2 if chance.random() < 0.05 else 1)  # noqa: PLR2004
        heapq.heappush(free, end)
        spent.append(end - now)
    spent.sort()
    return 1000 * spent[len(spent) // 2], 1000 * spent[len(spent) * 99 // 100]


# -- the page ---------------------------------------------------------------------------------------------------------


def shown(value: float) -> str:
    """Two significant digits; what is next to nothing as such."""
    if value < 0.01:  # noqa: PLR2004
        return "under 0.01"
    if value >= 100:  # noqa: PLR2004
        return f"{float(f'{value:.2g}'):,.0f}"
    return f"{float(f'{value:.2g}'):g}"


def _needs(figures: Mapping[str, Mapping[str, float]], assumed: Assumptions, *, cdn: bool) -> list[str]:
    all_needs = [need(size, figures, assumed, cdn=cdn) for size in SIZES]
    rows: tuple[tuple[str, Callable[[Need], str]], ...] = (
        ("reads a second that reach the servers", lambda one: shown(one.reads)),
        ("new TLS connections a second", lambda one: shown(one.connections)),
        ("publishes a second", lambda one: shown(one.publishes)),
        ("processors busy: servers", lambda one: shown(one.server)),
        ("processors busy: signers", lambda one: shown(one.signer)),
        ("processors busy: database", lambda one: shown(one.database)),
        ("machines that serve", lambda one: str(instances(one, assumed))),
        ("database, GB", lambda one: shown(one.gigabytes)),
        ("primaries of the database", lambda one: str(max(shards(one, assumed).values()))),
        ("because of", lambda one: max(shards(one, assumed), key=lambda why: shards(one, assumed)[why])),
        ("publishes a day", lambda one: shown(one.publishes / assumed.peak * DAY)),
        ("answers to clients, GB a day", lambda one: shown(one.egress)),
    )
    found = ["| at the peak | " + " | ".join(f"{size:,} collections" for size in SIZES) + " |"]
    found.append("|---|" + "---:|" * len(SIZES))
    found += [f"| {label} | {' | '.join(write(one) for one in all_needs)} |" for label, write in rows]
    return found


def tables(figures: Mapping[str, Mapping[str, float]], assumed: Assumptions = ASSUMED) -> str:
    """All that is between the marks of the page."""
    service = figures["current"]["server"]
    lines = ["### Behind a CDN", "", *_needs(figures, assumed, cdn=True), ""]
    lines += ["### Without a CDN", "", *_needs(figures, assumed, cdn=False), ""]
    lines += ["### How busy is too busy", ""]
    lines += [f"A current read takes {service:.3g} ms of a process. Simulated, milliseconds in the service:", ""]
    lines += ["| busy | 1 process: p50 | p99 | 2 processes: p50 | p99 | 8 processes: p50 | p99 |"]
    lines += ["|---:|" + "---:|" * 6]
    for busy in (0.3, 0.6, 0.8, 0.9, 0.95):
        cells = [f"{busy:.0%}"]
        for processes in (1, 2, 8):
            rate = busy * processes * 1000 / (service * 1.05)
            cells += [f"{value:.2f}" for value in simulate(rate, service, processes, 40_000)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def renewed(page: str, figures: Mapping[str, Mapping[str, float]]) -> str:
    """The page with its tables written anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(figures)}\n{END}{after}"


def main() -> int:
    """Write the page."""
    try:
        figures = read_figures((DOCS / "benchmarks.md").read_text("utf-8"))
    except KeyError as error:
        sys.stderr.write(f"docs/benchmarks.md has no row {error}: run `make bench`\n")
        return 1
    PAGE.write_text(renewed(PAGE.read_text("utf-8"), figures), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
