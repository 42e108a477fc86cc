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


def run_seeds(seeds: Sequence[int], without: Sequence[str]) -> list[run.Verdict]:
    """Run some seeds in this process; the collection of garbage waits until they have ended."""
    gc.disable()
    verdicts = [run.simulate(seed, without) for seed in seeds]
    if len(seeds) > 1 or not seeds[0] % CHUNK:
        gc.collect()
    return verdicts


def shrink(seed: int, without: Sequence[str]) -> list[str]:
    """Leave out one actor after the other as long as the seed still fails; return those left out."""
    left_out = list(without)
    names = list(run.plan_of(seed).acts)
    for name in sorted(names, key=lambda name: name.rpartition("-")[0] not in FAULTS):
        if name not in left_out and run.simulate(seed, [*left_out, name]).error:
            left_out.append(name)
    return left_out
