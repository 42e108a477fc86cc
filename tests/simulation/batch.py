"""Many seeds, in several processes.

Rules of this module: everything here can be sent to a worker process.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

from tests.simulation import run
from tests.simulation.actors import FAULTS

CHUNK = 10
"""How many seeds a worker runs at a time."""


def run_seeds(seeds: Sequence[int], without: Sequence[str], *, stop: bool = False) -> list[run.Verdict]:
    """Run some seeds in this process, with ``stop`` until one fails.

    The collection of garbage waits until they have ended. It finds failures that nobody has handled; then each seed is
    run again, to tell which it was.
    """
    gc.disable()
    verdicts = []
    for seed in seeds:
        verdicts.append(run.simulate(seed, without))
        if stop and verdicts[-1].error:
            break
    gc.collect()
    if run.LOG.late:
        return [verdict if verdict.error else run_alone(verdict.seed, without) for verdict in verdicts]
    return verdicts


def run_alone(seed: int, without: Sequence[str], *, keep_trace: bool = False) -> run.Verdict:
    """Run a seed, and look at what it leaves for the collection of garbage."""
    gc.collect()
    run.LOG.late = ""
    verdict = run.simulate(seed, without, keep_trace=keep_trace)
    gc.collect()
    verdict.error = verdict.error or run.LOG.late
    run.LOG.late = ""
    return verdict


def shrink(seed: int, without: Sequence[str]) -> list[str]:
    """Leave out one actor after the other as long as the seed still fails; return those left out."""
    left_out = list(without)
    names = list(run.plan_of(seed).acts)
    for name in sorted(names, key=lambda name: name.rpartition("-")[0] not in FAULTS):
        if name not in left_out and run_alone(seed, [*left_out, name]).error:
            left_out.append(name)
    return left_out
