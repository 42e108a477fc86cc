"""What a process takes from its machine besides the event loop: the time of day, chance, threads and their pauses.

Rules of this module: everything that needs one of these gets a :class:`Machine` as an argument, so that a simulation
can run many processes, and all their threads, on one clock of its own (docs/development.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

from twisted.python.threadable import getThreadID
from twisted.python.threadpool import ThreadPool


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine under a process.

    Args:
        time_of_day: Returns the time of day, in seconds since the epoch.
        random: Chance, where no secret depends on it; in each process another.
        thread_pool: Makes a pool of threads; its arguments are the least and the largest number of threads.
        thread_id: Returns what tells the thread that calls from all others.
        sleep: Lets the thread that calls wait for some seconds.
    """

    time_of_day: Callable[[], float] = time.time
    random: Random = field(default_factory=Random)
    thread_pool: Callable[[int, int], Any] = ThreadPool
    thread_id: Callable[[], object] = getThreadID
    sleep: Callable[[float], None] = time.sleep

    def utc_now(self) -> datetime:
        """The time of day, aware."""
        return datetime.fromtimestamp(self.time_of_day(), UTC)


MACHINE: Final = Machine()
"""The machine that this process runs on."""
