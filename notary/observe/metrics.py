"""What both daemons count, in the text form that Prometheus reads, and what they count with.

Rules of this module: a :class:`DaemonMetrics` is complete in itself (its own registry, nothing global), belongs to one
thread and is cheap to update: plain numbers in tables that grow with operations, never with what clients choose.
Families are put together only when somebody reads them. What another object knows anyway is not counted twice: it is
asked (``gauge``, ``counter``). docs/monitoring.md has a row for each name.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from notary.work.usage import PoolUsage

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The form of :meth:`DaemonMetrics.render`: the one that every version of Prometheus reads."""

SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of durations: from a cached file to a client that is given up."""

SIZES: Final = (256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0)
"""Upper bounds, in bytes, of the buckets of sizes."""


Across: TypeAlias = Literal["sum", "min", "max"]
"""How the values of several workers become the one of their daemon."""

ACROSS_MARK: Final = "# ACROSS "
"""Begins a comment line that gives a family's name and its :data:`Across`, where that is not "sum"."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A figure that is asked for when somebody reads: ``read`` gives values by labels."""

    name: str
    doc: str
    labels: tuple[str, ...]
    family: type[CounterMetricFamily | GaugeMetricFamily]
    read: Callable[[], Mapping[tuple[str, ...], float]]


class DaemonMetrics(Collector):
    """What both daemons count; every name of theirs begins with ``prefix``, ``version`` is that of the program.

    ``together`` gives the text of all workers, if this process is one of several.
    """

    def __init__(self, prefix: str, version: str, together: Callable[[], Awaitable[bytes]] | None = None) -> None:
        self.prefix = prefix
        self._build = {"version": version, "python": platform.python_version()}
        self._together = together
        self._across: dict[str, Across] = {
            prefix + "health_check": "min",  # the worst is what matters
            prefix + "build_info": "max",
            "python_info": "max",
            "process_start_time_seconds": "min",
            "process_max_fds": "min",
        }
        self.lag = Distribution(SECONDS)
        self._unexpected = 0
        self._storage = Calls()
        self._health: dict[str, bool] = {}
        self._watched: list[Watched] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    # -- counting -----------------------------------------------------------------------------------------------------

    def observe_storage(self, operation: str, seconds: float, *, ok: bool) -> None:
        """Count one call of the store; ``operation`` is the name of the port's method."""
        self._storage.observe(operation, seconds, ok=ok)

    def unexpected(self) -> None:
        """Count one failure that nobody planned for."""
        self._unexpected += 1

    def set_health(self, check: str, ok: bool) -> None:
        """Remember the last result of a health check."""
        self._health[check] = ok

    def gauge(
        self,
        name: str,
        doc: str,
        read: Callable[[], Mapping[tuple[str, ...], float]],
        labels: Sequence[str] = (),
        *,
        across_workers: Across = "sum",
    ) -> None:
        """Show what ``read`` says, by the values of ``labels``; it may rise and fall.

        ``across_workers`` says how the values of several workers become one.
        """
        self._watched.append(Watched(self.prefix + name, doc, tuple(labels), GaugeMetricFamily, read))
        if across_workers != "sum":
            self._across[self.prefix + name] = across_workers

    def counter(
        self, name: str, doc: str, read: Callable[[], Mapping[tuple[str, ...], float]], labels: Sequence[str] = ()
    ) -> None:
        """Show what ``read`` says, by the values of ``labels``; it never falls. Workers' counters are added up."""
        self._watched.append(Watched(self.prefix + name, doc, tuple(labels), CounterMetricFamily, read))

    def watch_pool(self, pool: PoolUsage) -> None:
        """Show how the connections to the database are used."""
        self.gauge("pool_size", "Connections to the database that there may be", lambda: {(): pool.size})
        self.gauge("pool_used", "Connections to the database that work for somebody", lambda: {(): pool.used})
        self.gauge("pool_waiting", "Who waits for a connection to the database", lambda: {(): pool.waiting})
        waits = "Calls that had to wait for a connection to the database"
        self.counter("pool_waits", waits, lambda: {(): pool.waits})
        seconds = "How long they waited, together"
        self.counter("pool_wait_seconds", seconds, lambda: {(): pool.wait_seconds})

    # -- reading ------------------------------------------------------------------------------------------------------

    async def whole(self) -> tuple[str, bytes]:
        """Return what :meth:`render` does, of all workers if this process is one of several."""
        return self.render() if self._together is None else (CONTENT_TYPE, await self._together())

    def render(self) -> tuple[str, bytes]:
        """Return the content type and the text of all metrics.

        It takes some 2.5 ms once every operation has been seen; the figures of the process are read from ``/proc``.
        """
        return CONTENT_TYPE, generate_latest(self._registry)

    def render_for_totals(self) -> bytes:
        """The text of :meth:`render`, after lines that say how the values of several workers become one."""
        marks = "".join(f"{ACROSS_MARK}{name} {across}\n" for name, across in self._across.items())
        return marks.encode() + self.render()[1]

    def counters(self) -> Mapping[str, float]:
        """Every counter of the daemon's own, by its name and labels as Prometheus writes them."""
        found = {}
        for family in self.collect():
            for sample in family.samples if family.type == "counter" else ():
                labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found

    def collect(self) -> Iterable[Metric]:
        """Put the families together: the registry's side of this class."""
        prefix = self.prefix
        info = InfoMetricFamily(prefix + "build", "The program that runs")
        info.add_metric((), self._build)
        yield info
        health = GaugeMetricFamily(
            prefix + "health_check", "1 if the last run of the check passed, else 0", labels=("check",)
        )
        for check, ok in self._health.items():
            health.add_metric((check,), int(ok))
        yield health
        yield from self._storage.families(prefix + "storage", "the store")
        lag = HistogramMetricFamily(prefix + "reactor_lag_seconds", "How late the event loop ran what was due")
        self.lag.add_to(lag, ())
        yield lag
        yield CounterMetricFamily(
            prefix + "unexpected_errors",
            "Failures that nobody planned for; each has an id in the log",
            value=self._unexpected,
        )
        for each in self._watched:
            family = each.family(each.name, each.doc, labels=each.labels)
            for labels, value in each.read().items():
                family.add_metric(labels, value)
            yield family


class Calls:
    """Calls of a service behind this one, by operation: how long they took, and how many failed."""

    def __init__(self) -> None:
        self._seconds: dict[str, Distribution] = {}
        self._failures: Counter[str] = Counter()

    def observe(self, operation: str, seconds: float, *, ok: bool) -> None:
        """Count one call."""
        seen = self._seconds.get(operation)
        if seen is None:
            seen = self._seconds[operation] = Distribution(SECONDS)
        seen.observe(seconds)
        self._failures[operation] += not ok

    def families(self, prefix: str, callee: str) -> Iterable[Metric]:
        """Return two families, whose names begin with ``prefix``."""
        labels = ("operation",)
        seconds = HistogramMetricFamily(prefix + "_duration_seconds", f"Time that {callee} took", labels=labels)
        failures = CounterMetricFamily(prefix + "_failures", f"Calls of {callee} that failed", labels=labels)
        for operation, seen in self._seconds.items():
            seen.add_to(seconds, (operation,))
            failures.add_metric((operation,), self._failures[operation])
        yield from (seconds, failures)


class Distribution:
    """How many values fell between which bounds, and their sum."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self._counts)

    def observe(self, value: float) -> None:
        """Count one value; a bound belongs to the bucket below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def add_to(self, family: HistogramMetricFamily, labels: tuple[str, ...]) -> None:
        """Add this as one histogram; its buckets hold what is at or below their bound, all of it."""
        buckets: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            below += count
            buckets.append((bound, below))
        family.add_metric(labels, buckets, self.total)
