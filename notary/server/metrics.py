"""What the server counts, in the text form that Prometheus reads.

Rules of this module: a :class:`Metrics` is complete in itself (its own registry, nothing global), belongs to one thread
and is cheap to update: plain integers in tables that grow with operations, methods and statuses, never with what
clients choose. Families are put together only when somebody reads them. Where the reference counts the same, the name
and the labels are the reference's, so that its dashboards go on working: its summaries have ``_sum`` and ``_count``
here as well (quantiles come from the histograms instead).
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The form of :meth:`Metrics.render`: the one that every version of Prometheus reads."""

SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of durations: from a cached file to a client that is given up."""

SIZES: Final = (256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0)
"""Upper bounds, in bytes, of the buckets of sizes."""

ACCEPTED: Final = "accepted"
"""The outcome of an upload that was published; of the others it is the code of the error."""

_METHODS: Final = {name: name.lower() for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}
_MICROSECONDS: Final = 1_000_000


class Metrics(Collector):
    """Everything that one server counts; ``version`` is that of the program."""

    def __init__(self, *, version: str) -> None:
        self._build = {"version": version, "python": platform.python_version()}
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._operations: dict[str, _Operation] = {}
        self._uploads = Counter({ACCEPTED: 0})
        self._upload_sizes = _Distribution(SIZES)
        self._refreshed = Counter({"timestamp": 0, "snapshot": 0})
        self._expired_roots = 0
        self._signing: dict[str, _Distribution] = {}
        self._signing_failures: Counter[str] = Counter()
        self._health: dict[str, bool] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    # -- counting -----------------------------------------------------------------------------------------------------

    def observe_request(
        self, operation: str, method: str, status: int, seconds: float, request_bytes: int, response_bytes: int
    ) -> None:
        """Count one request that was answered.

        ``operation`` is a name out of the route table (any string is taken, and kept for ever); ``method`` is as the
        client sent it; the sizes are those of the bodies.
        """
        self._requests[operation, _METHODS.get(method, "other"), status] += 1
        seen = self._operations.get(operation)
        if seen is None:
            seen = self._operations[operation] = _Operation()
        seen.seconds.observe(seconds)
        seen.response_bytes.observe(response_bytes)
        seen.request_bytes += request_bytes

    def uploaded(self, outcome: str, size: int) -> None:
        """Count one upload of ``size`` bytes: ACCEPTED, or the code of the error that refused it."""
        self._uploads[outcome] += 1
        self._upload_sizes.observe(size)

    def refreshed(self, role: str) -> None:
        """Count one expired ``role`` (timestamp or snapshot) that the server signed anew."""
        self._refreshed[role] += 1

    def expired_root(self) -> None:
        """Count one renewal of a collection whose root has expired."""
        self._expired_roots += 1

    def observe_signing(self, operation: str, seconds: float, *, ok: bool) -> None:
        """Count one call of the signing service; ``operation`` is the name of the port's method."""
        seen = self._signing.get(operation)
        if seen is None:
            seen = self._signing[operation] = _Distribution(SECONDS)
        seen.observe(seconds)
        self._signing_failures[operation] += not ok

    def set_health(self, check: str, ok: bool) -> None:
        """Remember the last result of a health check."""
        self._health[check] = ok

    # -- reading ------------------------------------------------------------------------------------------------------

    def render(self) -> tuple[str, bytes]:
        """The content type and the text of all metrics.

        It takes some 2.5 ms once every operation has been seen; the figures of the process are read from ``/proc``.
        """
        return CONTENT_TYPE, generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Put the families together: the registry's side of this class."""
        info = InfoMetricFamily("notary_server_build", "The program that runs")
        info.add_metric((), self._build)
        yield info
        yield from self._collect_requests()
        yield self._collect_uploads()
        sizes = HistogramMetricFamily("notary_server_upload_size_bytes", "Sizes of uploads, refused ones included")
        self._upload_sizes.add_to(sizes, ())
        yield sizes
        refreshed = CounterMetricFamily(
            "notary_server_metadata_refreshed", "Expired metadata that the server signed anew", labels=("role",)
        )
        for role, count in self._refreshed.items():
            refreshed.add_metric((role,), count)
        yield refreshed
        yield CounterMetricFamily(
            "notary_server_expired_root_renewals",
            "Renewals of metadata under a root that has expired: a publisher must act",
            value=self._expired_roots,
        )
        yield from self._collect_signing()
        health = GaugeMetricFamily(
            "notary_server_health_check", "1 if the last run of the check passed, else 0", labels=("check",)
        )
        for check, ok in self._health.items():
            health.add_metric((check,), int(ok))
        yield health

    def _collect_requests(self) -> Iterable[Metric]:
        prefix, labels = "notary_server_http_", ("operation",)
        requests = CounterMetricFamily(
            prefix + "requests", "Requests that were answered", labels=("operation", "method", "code")
        )
        for (operation, method, status), count in self._requests.items():
            requests.add_metric((operation, method, str(status)), count)
        seconds = HistogramMetricFamily(prefix + "request_duration_seconds", "Time to answer", labels=labels)
        microseconds = SummaryMetricFamily(
            prefix + "request_duration_microseconds", "Time to answer, as the reference names it", labels=labels
        )
        request_bytes = SummaryMetricFamily(prefix + "request_size_bytes", "Sizes of requests' bodies", labels=labels)
        response_bytes = HistogramMetricFamily(
            prefix + "response_size_bytes", "Sizes of responses' bodies", labels=labels
        )
        for operation, seen in self._operations.items():
            count = seen.seconds.count
            seen.seconds.add_to(seconds, (operation,))
            microseconds.add_metric((operation,), count, seen.seconds.total * _MICROSECONDS)
            request_bytes.add_metric((operation,), count, seen.request_bytes)
            seen.response_bytes.add_to(response_bytes, (operation,))
        yield from (requests, seconds, microseconds, request_bytes, response_bytes)

    def _collect_uploads(self) -> Metric:
        uploads = CounterMetricFamily(
            "notary_server_uploads", "Uploads, by the code of the error that refused them", labels=("outcome",)
        )
        for outcome, count in self._uploads.items():
            uploads.add_metric((outcome,), count)
        return uploads

    def _collect_signing(self) -> Iterable[Metric]:
        labels = ("operation",)
        seconds = HistogramMetricFamily(
            "notary_server_signing_duration_seconds", "Time that the signing service took", labels=labels
        )
        failures = CounterMetricFamily(
            "notary_server_signing_failures", "Calls of the signing service that failed", labels=labels
        )
        for operation, seen in self._signing.items():
            seen.add_to(seconds, (operation,))
            failures.add_metric((operation,), self._signing_failures[operation])
        yield from (seconds, failures)


class _Distribution:
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


class _Operation:
    """What is counted for one operation of the route table."""

    __slots__ = ("request_bytes", "response_bytes", "seconds")

    def __init__(self) -> None:
        self.seconds = _Distribution(SECONDS)
        self.response_bytes = _Distribution(SIZES)
        self.request_bytes = 0
