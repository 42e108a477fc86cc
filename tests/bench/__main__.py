"""``make bench``: ours beside the Go original, in alternation; writes docs/benchmarks.md and what goes with it.

Rules of this module: ``QUICK=1`` in the environment makes one short round, without workers, and writes no page;
``BENCH_ONLY=NAME`` runs one suite and writes its sections alone. Progress goes to standard error, tables to standard
output. Status 1 says that the bench could not run; a goal that is missed is said, and is no error: figures of one
machine are not a verdict. However it ends (interrupted, or after an hour because something hangs), no process is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.custodies import Custodies
from tests.bench.figures import GO, BenchError, Samples, missed, order_of
from tests.bench.growth import FULL, QUICK, TEXT, TITLE, Growth, tables
from tests.bench.pairs import Pairs
from tests.bench.places import FULL as MANY_KEYS
from tests.bench.places import QUICK as FEW_KEYS
from tests.bench.places import TITLE as PLACES
from tests.bench.places import Places
from tests.bench.places import text as text_of_places
from tests.bench.plot import plot, plot_growth
from tests.bench.report import machine, page, table, versions, with_sections
from tests.bench.suites import Pace, Servers, Signers, Suite
from tests.support.peers import GO_SERVER
from tests.support.signer import GO_SIGNER

SUITES: Sequence[type[Suite]] = (Pairs, Signers, Custodies, Servers)
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
CAPACITY = PAGE.parents[1] / "etc" / "capacity.py"
PICTURE, GROWTH = (PAGE.parent / "diagrams" / f"{name}.svg" for name in ("benchmarks", "growth"))
_FULL = (3, Pace(seconds=3, rest=1, uploads=200))
_QUICK = (1, Pace(seconds=1, rest=0.3, uploads=80, workers=False))
"""How many rounds, and what one is like."""
_LIMIT_SECONDS = 3600
_BEGUN = time.monotonic()
_BUSY = 0.7
_DEATHS = 10
"""How often Go's programs may die before the bench gives up."""


def _say(text: str) -> None:
    """Tell whoever waits, and how long that has been."""
    seconds = int(time.monotonic() - _BEGUN)
    sys.stderr.write(f"{seconds // 60}:{seconds % 60:02} {text}\n")


def _measure(suite: Suite, rounds: int, samples: Samples) -> int:
    """How often Go's server died: it may under load (a race in its cache), and is then started and measured again."""
    deaths = 0
    for number in range(rounds):
        for name, work in suite.works().items():
            _say(f"{suite.title}: round {number + 1} of {rounds}: {name}")
            for side in order_of(number, tuple(suite.sides)):
                try:
                    found = work(suite.sides[side])
                except BenchError as error:
                    if side != GO or deaths == _DEATHS or not suite.sides[side].revive():
                        raise
                    deaths += 1
                    _say(f"{str(error).partition(':')[0]}: it died, is started again and measured again")
                    found = work(suite.sides[side])
                samples.add(side, found)
    return deaths


def _require_programs() -> None:
    for program, package in ((GO_SERVER[0], "notary"), (GO_SIGNER[0], "notary"), ("wrk", "wrk")):
        if shutil.which(program) is None:
            raise BenchError(
                f"{program} is missing: it is in the Debian package {package}, which `make bench` installs"
            )


def bench(environ: Mapping[str, str]) -> None:
    """Do it all. Raises BenchError."""
    quick = environ.get("QUICK", "") not in {"", "0"}
    only = environ.get("BENCH_ONLY", "").lower()
    rounds, pace = _QUICK if quick else _FULL
    kinds = [kind for kind in SUITES if only in {"", kind.__name__.lower()}]
    if not kinds and only != "growth":
        names = ", ".join([*(kind.__name__.lower() for kind in SUITES), "growth"])
        raise BenchError(f"BENCH_ONLY={only}: the suites are {names}")
    _require_programs()
    load_before = os.getloadavg()[0]
    if load_before > _BUSY:
        _say(f"warning: the machine is busy (load {load_before:.2f}): figures will be noisy")
    samples, sections, deaths = Samples(), [], 0
    with tempfile.TemporaryDirectory(prefix="notary-bench-") as folder:
        for kind in kinds:
            _say(f"{kind.title}: starting and filling")
            with kind(Path(folder) / kind.__name__, pace) as suite:
                deaths += _measure(suite, rounds, samples)
            sections.append((kind.title, kind.text, table(kind.rows, samples)))
            sys.stdout.write("\n{}\n\n{}\n".format(*sections[-1][::2]))
        if only in {"", "custodies"}:
            sizes = FEW_KEYS if quick else MANY_KEYS
            with Places(Path(folder) / "places", sizes, _say) as places:
                sections.append((PLACES, text_of_places(sizes), places.run()))
            sys.stdout.write("\n{}\n\n{}\n".format(*sections[-1][::2]))
        if only in {"", "growth"}:
            with Growth(Path(folder) / "growth", QUICK if quick else FULL, _say) as growth:
                lines, fsck = growth.run()
            sections.append((TITLE, TEXT, tables(lines, fsck)))
            sys.stdout.write("\n{}\n\n{}\n".format(*sections[-1][::2]))
    for row in missed([row for kind in kinds for row in kind.rows], samples):
        _say(f"goal missed: {row.label}: {row.goal.text}")
    if only and not quick:
        apart = f"\n\nMeasured apart from the other sections; the load of the machine before it was {load_before:.2f}."
        written = [(title, text + apart, found) for title, text, found in sections]
        PAGE.write_text(with_sections(PAGE.read_text(encoding="utf-8"), written), encoding="utf-8")
        subprocess.run([sys.executable, str(CAPACITY)], check=True)
        _say(f"wrote {', '.join(title for title, *_ in sections)} into {PAGE.relative_to(PAGE.parents[1])}")
    if not quick and not only:
        facts = {"machine": machine(load_before), "versions": versions()}
        if deaths:
            facts["machine"]["Go's server died and was started again"] = f"{deaths} times"
        picture = plot([(kind.title, kind.rows) for kind in kinds], samples)
        PICTURE.write_text(picture, encoding="utf-8")
        GROWTH.write_text(plot_growth([(f"{line.label}, by {line.of}", line.figures) for line in lines]), "utf-8")
        PAGE.write_text(page(sections, rounds=rounds, seconds=pace.seconds, **facts), encoding="utf-8")
        subprocess.run([sys.executable, str(CAPACITY)], check=True)  # its tables follow from the page's
        _say(f"wrote {PAGE.relative_to(PAGE.parents[1])} and {PICTURE.relative_to(PAGE.parents[1])}")


if __name__ == "__main__":
    # By an exception, so that what runs is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"error: not done after {_LIMIT_SECONDS} s: what hangs?"))
    signal.alarm(_LIMIT_SECONDS)
    try:
        bench(os.environ)
    except (BenchError, AssertionError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
