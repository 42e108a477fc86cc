"""How fast something blocking is: calls a second, and the time of one, in one thread or in several.

Rules of this module: the functions block; call them in a thread, while the reactor runs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """What was measured: ``per_second`` calls in all threads, and the time of one call in seconds."""

    per_second: float
    median_seconds: float
    worst_seconds: float


def rate_of(work: Callable[[], object], threads: int, seconds: float, clock: Callable[[], float]) -> Rate:
    """Call ``work`` again and again for some seconds, in a number of threads; at least once in each.

    Raises what ``work`` raises.
    """
    work()  # the first call connects, or fills what is remembered
    begin = clock()
    end = begin + seconds

    def many() -> list[float]:
        times: list[float] = []
        before = clock()
        while not times or before < end:
            work()
            after = clock()
            times.append(after - before)
            before = after
        return times

    with ThreadPoolExecutor(threads) as pool:
        taken = sorted(each for times in [pool.submit(many) for _ in range(threads)] for each in times.result())
    return Rate(len(taken) / (clock() - begin), taken[len(taken) // 2], taken[-1])
