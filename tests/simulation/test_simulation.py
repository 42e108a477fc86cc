"""The whole cluster from one seed: a hundred fixed seeds, some new ones, and the promises of the test itself.

Simulations run in processes of their own, without the measurement of coverage, which would take longer than they do.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.simulation.actors import ACTORS, FAULTS
from tests.simulation.planted import BUGS, apply, environment, patched
from tests.simulation.regressions import SEEDS

ROOT = Path(__file__).parents[2]
FIXED_SEEDS = 100
FRESH_SEEDS = 50


def simulate(*arguments: str, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command of ``make simulate``."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=folder,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("--first", "1", "--seeds", str(FIXED_SEEDS)), id="fixed"),
        pytest.param(("--first", str(time.time_ns() // 10**6 % 10**9), "--seeds", str(FRESH_SEEDS)), id="fresh"),
    ],
)
def test_the_cluster_keeps_its_promises(arguments: tuple[str, ...]) -> None:
    done = simulate(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("seed", "without", "bug"), SEEDS)
def test_faults_that_were_found_do_not_come_back(seed, without, bug) -> None:
    assert bug in {each.name for each in BUGS}
    done = simulate("--seed", str(seed), "--without", without)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_same_seed_gives_the_same_trace_in_every_process() -> None:
    hashes = {
        simulate("--first", "3", "--seeds", "4", "--hash", PYTHONHASHSEED=seed).stdout.rpartition("4 seeds")[0]
        for seed in "01"
    }
    assert len(hashes) == 1
    (lines,) = hashes
    assert len(set(lines.split())) == 8  # four seeds, and four traces that differ


def test_a_seed_can_be_repeated_without_some_actors() -> None:
    done = simulate("--seed", "3", "--without", ",".join(FAULTS))
    assert done.returncode == 0
    assert " kill " not in done.stdout.partition(" stop ")[0]


def test_a_planted_bug_is_found_and_shrunk(tmp_path: Path) -> None:
    bug = next(bug for bug in BUGS if bug.name == "pending-key-not-looked-for")
    apply(bug, tmp_path)
    done = simulate("--first", "1", "--seeds", "30", "--stop", "--jobs", "1", folder=tmp_path)
    assert done.returncode == 1
    assert "make simulate SEED=" in done.stdout


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_each_planted_bug_fits_the_code(bug) -> None:
    assert patched(bug) != (ROOT / bug.file).read_text()


def test_all_actors_that_are_faults_exist() -> None:
    assert set(FAULTS) <= set(ACTORS)
