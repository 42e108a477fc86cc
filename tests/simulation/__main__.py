"""The command behind ``make simulate``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from tests.simulation import run
from tests.simulation.batch import CHUNK, run_alone, run_seeds, shrink

PROGRESS = 500
"""After how many seeds a line says how far the run is."""


def command(seed: int, without: Sequence[str]) -> str:
    """Return the command that repeats a seed."""
    rest = f" WITHOUT={','.join(without)}" if without else ""
    return f"make simulate SEED={seed}{rest}"


def _verdicts(seeds: Sequence[int], without: Sequence[str], jobs: int, *, stop: bool) -> Iterator[run.Verdict]:
    """Run seeds, in this process or in several; their verdicts are in order."""
    run.prepare()
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    if jobs == 1:
        for chunk in chunks:
            yield from run_seeds(chunk, without, stop=stop)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=run.prepare) as pool:
        try:
            for verdicts in pool.map(partial(run_seeds, without=without, stop=stop), chunks):
                yield from verdicts
        finally:
            pool.shutdown(cancel_futures=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run seeds; return 1 if one of them fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, help="run this seed only, and print its trace")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds to run")
    parser.add_argument("--first", type=int, help="the first seed; by default one that nobody has tried")
    parser.add_argument("--without", default="", help="actors to leave out, separated by commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--hash", action="store_true", help="print the hash of each trace")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--stop", action="store_true", help="stop at the first seed that fails")
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="begin no seed after so many seconds of the processor, with --jobs 1",
    )
    options = parser.parse_args(arguments)
    without = [name for name in options.without.split(",") if name]
    run_seconds = time.monotonic()
    if options.seed is not None:
        run.prepare()
        verdict = run_alone(options.seed, without, keep_trace=not options.hash)
        print(*verdict.trace, sep="\n")
        print(f"seed {verdict.seed}: {verdict.error or 'ok'}")
        print(
            f"{verdict.operations} operations, {verdict.published} publishes, {verdict.commits} commits, "
            f"{verdict.steps} steps, {verdict.seconds:.1f} virtual seconds, trace {verdict.hash[:16]}"
        )
        return bool(verdict.error)
    first = options.first if options.first is not None else time.time_ns() // 1000 % 10**9
    seeds = range(first, first + options.seeds)
    failed = operations = done = 0
    for verdict in _verdicts(seeds, without, options.jobs, stop=options.stop):
        done += 1
        operations += verdict.operations
        if options.hash:
            print(verdict.seed, verdict.hash)
        if verdict.error:
            failed += 1
            left_out = without if options.no_shrink else shrink(verdict.seed, without)
            print(f"seed {verdict.seed}: {verdict.error}\n  {command(verdict.seed, left_out)}", flush=True)
            if options.stop:
                break
        if done % PROGRESS == 0:
            print(
                f"{done} seeds, {failed} failed, in {time.monotonic() - run_seconds:.0f} s", file=sys.stderr, flush=True
            )
        if time.process_time() > options.seconds:
            break
    seconds = time.monotonic() - run_seconds
    print(f"{done} seeds from {first}, {operations} operations, {failed} failed, in {seconds:.1f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
