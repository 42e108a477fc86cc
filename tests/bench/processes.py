"""What a process costs: CPU and memory, from /proc (Linux), and how long it takes to start.

Rules of this module: the parsers are pure. Times are in seconds, memory in megabytes (10^6 bytes). CPU is that of the
process with all its threads, in user and system mode, and of its living children; memory that of the largest of them.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.bench.figures import BenchError
from tests.support.databases import DatabaseServer
from tests.support.peers import READY_SECONDS, Daemon, is_open

_TICKS = os.sysconf("SC_CLK_TCK")
_POLL_SECONDS = 0.002
_SHOWN = 4000


def parse_cpu(stat: str, ticks: int = _TICKS) -> float:
    """The CPU seconds in a /proc/PID/stat; the name in it may hold blanks and brackets."""
    fields = stat[stat.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / ticks


def parse_memory(status: str, field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of a /proc/PID/status."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise BenchError(f"/proc says nothing of {field}: has the process ended?")
    return int(found[1]) * 1024 / 1e6


def family(pid: int) -> Sequence[int]:
    """A process and what it has started, directly or not."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            with suppress(OSError):
                found += [int(child) for child in children.read_text().split()]
    return found


def texts(pid: int, name: str) -> Iterator[str]:
    """What /proc/PID/``name`` says of a process and its children. A child that ends at this moment is left out."""
    yield Path(f"/proc/{pid}/{name}").read_text()
    for child in family(pid)[1:]:
        with suppress(OSError):
            yield Path(f"/proc/{child}/{name}").read_text()


def cpu(pid: int) -> float:
    """Of a process and its living children."""
    return sum(map(parse_cpu, texts(pid, "stat")))


def memory(pid: int, field: str) -> float:
    """Of the process that takes most, of one and its living children."""
    return max(parse_memory(status, field) for status in texts(pid, "status"))


def start(daemon: Daemon) -> float:
    """Start a server; the seconds until its port accepts. Raises BenchError with its output if it does not start."""
    begun = time.perf_counter()
    daemon.spawn()
    while not is_open(daemon.port):
        if not daemon.alive or time.perf_counter() - begun > READY_SECONDS:
            raise BenchError(f"{daemon.name} does not start:\n{daemon.output()}")
        time.sleep(_POLL_SECONDS)
    return time.perf_counter() - begun


class Process(Protocol):
    """What is measured: a :class:`tests.support.peers.Daemon`, or :class:`DatabaseProcess`."""

    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def alive(self) -> bool: ...
    def output(self) -> str: ...


class DatabaseProcess:
    """A database server that was started for the bench."""

    alive = True  # or its clients fail

    def __init__(self, server: DatabaseServer) -> None:
        self.name = server.backend
        self.pid = server.pid
        self.output = server.log


@dataclass(frozen=True)
class Side:
    """One side of the comparison: its processes by their part in it (``server``, ``signer``, …)."""

    name: str
    processes: Mapping[str, Process]

    def peak(self) -> dict[str, float]:
        """The most memory of each process so far."""
        return {f"{part} peak": memory(daemon.pid, "VmHWM") for part, daemon in self.processes.items()}

    def revive(self) -> bool:
        """Start again what has died; whether there was anything."""
        died = [daemon for daemon in self.processes.values() if isinstance(daemon, Daemon) and not daemon.alive]
        for daemon in died:
            start(daemon)
        return bool(died)

    def measure(self, work: str, load: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """What ``load`` returns, as ``WORK NAME``; and, as ``WORK PART cpu``, milliseconds a request of each process.

        ``load`` returns how many ``requests`` it made, among others. Raises BenchError, with what the processes have
        printed, if it failed or one of them has died.
        """
        before = {part: cpu(daemon.pid) for part, daemon in self.processes.items()}
        try:
            loaded = dict(load())
        except BenchError as error:
            printed = "".join(f"\n-- {one.name} --\n{one.output()[-_SHOWN:]}" for one in self.processes.values())
            raise BenchError(f"{self.name}, {work}: {error}{printed}") from error
        for daemon in self.processes.values():
            if not daemon.alive:
                raise BenchError(f"{daemon.name} died under load:\n{daemon.output()}")
        requests = loaded.pop("requests")
        used = {part: cpu(daemon.pid) - before[part] for part, daemon in self.processes.items()}
        return {f"{work} {name}": value for name, value in loaded.items()} | {
            f"{work} {part} cpu": 1000 * seconds / requests for part, seconds in used.items()
        }
