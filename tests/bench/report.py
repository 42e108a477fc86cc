"""The page docs/benchmarks.md: a table a suite, the machine, the versions, how to read and repeat it.

Rules of this module: :func:`page` and :func:`table` are pure; :func:`machine` and :func:`versions` look at this
computer and name nothing that identifies it.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from OpenSSL import SSL

from tests.bench.figures import GO, OURS, WORKERS, Row, Samples

_MET = {OURS: "yes", WORKERS: "with 2 workers", "": "**no**"}

_INTRODUCTION = """\
# Benchmarks

Written by `make bench`; do not edit. `make bench QUICK=1` prints the same tables, without those of workers, after one
short round, which takes two minutes, and leaves this page alone.

The Go 0.7.0 programs of Debian and ours run on one machine with the same configuration: TLS with the certificates of
`fixtures/`, log level error. They are measured in alternation, and the order changes every round. Each figure is
the median of {rounds} rounds of {seconds:g} s; in brackets stand the lowest and the highest round. A ratio is ours
divided by Go's: for rates more is better, for times, memory and CPU less. CPU is what the process used, in user and
system mode, divided by the number of requests. Server, signer and load generator share the cores, so rates of programs
that use more than one core are lower than they would be with a load from elsewhere.

The picture shows the figures whose goal is a ratio to Go's: to the right of Go ours is better, whether that is more of
a rate or less of a time.

![How many times better than Go, figure by figure](diagrams/benchmarks.svg)
"""


def number(value: float) -> str:
    """Three significant digits, thousands separated."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"


def _cell(samples: Samples, key: str, side: str) -> str:
    """The median, the lowest and the highest. Raises BenchError if there is none but may not be missing."""
    if side == WORKERS and not samples.of(key, side):
        return ""
    median, seen = samples.median(key, side), samples.of(key, side)
    return f"{number(median)} ({number(min(seen))}–{number(max(seen))})"  # noqa: RUF001 - a range


def table(rows: Sequence[Row], samples: Samples) -> str:
    """The rows as a Markdown table. Raises BenchError if one of them was not measured."""
    more = [WORKERS] if any(samples.of(row.key, WORKERS) for row in rows) else []
    head = ["", "unit", "Go 0.7.0", "ours", "÷ Go", *(["2 workers", "÷ Go"] if more else []), "goal", "met"]
    lines = [_line(head), "|---|---|" + "---:|" * (len(head) - 3) + "---|"]
    for row in rows:
        cells = [row.label, row.unit, _cell(samples, row.key, GO)]
        for side in (OURS, *more):
            cells += [_cell(samples, row.key, side), _ratio(samples, row.key, side)]
        cells += [row.goal.text, _MET[samples.met(row)]] if row.goal else ["", ""]
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio(samples: Samples, key: str, side: str) -> str:
    ratio = samples.ratio(key, side) if samples.of(key, side) else None
    return "" if ratio is None else f"{ratio:.2f}"


def facts(values: Mapping[str, str]) -> str:
    """A Markdown list of names and values."""
    return "".join(f"- {name}: {value}\n" for name, value in values.items())


def page(
    sections: Sequence[tuple[str, str, str]],
    *,
    rounds: int,
    seconds: float,
    machine: Mapping[str, str],
    versions: Mapping[str, str],
) -> str:
    """The whole page. A section is its title, what to know about it, and its table."""
    parts = [_INTRODUCTION.format(rounds=rounds, seconds=seconds)]
    parts += ["## {}\n\n{}\n\n{}".format(*section) for section in sections]
    parts += ["## Machine\n\n" + facts(machine), "## Versions\n\n" + facts(versions)]
    return "\n".join(parts)


def with_sections(page: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """A page with these sections in the place of those of the same titles, or in front of the machine."""
    for title, text, tables in sections:
        there = re.search(rf"^## {re.escape(title)}\n.*?(?=^## )", page, re.MULTILINE | re.DOTALL)
        start, end = there.span() if there else (page.index("## Machine\n"),) * 2
        page = f"{page[:start]}## {title}\n\n{text}\n\n{tables}\n{page[end:]}"
    return page


def machine(load_before: float) -> dict[str, str]:
    """Cores, processor, memory, kernel; the load of the minute before the bench tells whether others were at work."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "memory": f"{int(memory[1]) / 1024**2:.1f} GiB" if memory else "unknown",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load before the bench": f"{load_before:.2f}",
    }


def versions() -> dict[str, str]:
    """Of all that takes part."""
    ours = ("notary-service", "twisted", "h2", "hpack", "cryptography", "pyopenssl", "mysqlclient", "protobuf")
    return {
        "Go programs": _debian("notary") or "0.7.0, of unknown packaging",
        "MariaDB": _debian("mariadb-server") or "of unknown packaging",
        "Python": _python(),
        "OpenSSL": SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode("ascii"),
        **{name: importlib.metadata.version(name) for name in ours},
        "wrk": _debian("wrk") or "of unknown packaging",
    }


def _python() -> str:
    """Which build it is: one that its builder has optimised takes two thirds of the time of one that is not."""
    debian = Path(sys.executable).resolve().parent == Path("/usr/bin")
    package = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return (debian and _debian(package)) or f"{platform.python_version()}, {' '.join(platform.python_build())}"


def _debian(package: str) -> str:
    if shutil.which("dpkg-query") is None:
        return ""
    found = subprocess.run(
        ["dpkg-query", "--show", "--showformat=Debian ${Package} ${Version}", package],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() if found.returncode == 0 else ""
