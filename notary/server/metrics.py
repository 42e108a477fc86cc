"""What the server counts.

Rules of this module: those of :mod:`notary.observe.metrics`. Where the reference counts the same, the name and the
labels are the reference's, so that its dashboards go on working: its summaries have ``_sum`` and ``_count`` here as
well (quantiles come from the histograms instead).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric, SummaryMetricFamily

from notary.observe.metrics import SECONDS, SIZES, Calls, DaemonMetrics, Distribution

ACCEPTED: Final = "accepted"
"""The outcome of a published upload. The outcome of a refused upload is the code of its error."""

_METHODS: Final = {name: name.lower() for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}
_MICROSECONDS: Final = 1_000_000


class ServerMetrics(DaemonMetrics):
    """Everything that one server counts; ``version`` is that of the program."""

    def __init__(self, *, version: str, together: Callable[[], Awaitable[bytes]] | None = None) -> None:
        super().__init__("notary_server_", version, together)
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._operations: dict[str, _Operation] = {}
        self._uploads = Counter({ACCEPTED: 0})
        self._upload_sizes = Distribution(SIZES)
        self._refreshed = Counter({"timestamp": 0, "snapshot": 0})
        self._expired_roots = 0
        self._errors: Counter[str] = Counter()
        self._signing = Calls()
        self._asked_keys = Counter({"asked": 0, "refused": 0})

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
        self._signing.observe(operation, seconds, ok=ok)

    def asked_for_key(self, *, refused: bool) -> None:
        """Count one request for a key that may have to be made; ``refused`` if its peer has used up its allowance."""
        self._asked_keys["refused" if refused else "asked"] += 1

    def refused(self, code: str) -> None:
        """Count one request that was answered with an error; ``code`` is that of the protocol."""
        self._errors[code] += 1

    # -- reading ------------------------------------------------------------------------------------------------------

    def collect(self) -> Iterable[Metric]:
        """Put the families together: the registry's side of this class."""
        yield from super().collect()
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
        keys = CounterMetricFamily(
            "notary_server_key_requests", "Requests for keys that may have to be made", labels=("result",)
        )
        for result, count in self._asked_keys.items():
            keys.add_metric((result,), count)
        yield keys
        yield from self._signing.families("notary_server_signing", "the signing service")

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
        errors = CounterMetricFamily(
            "notary_server_errors", "Requests that were answered with an error, by its code", labels=("code",)
        )
        for code, count in self._errors.items():
            errors.add_metric((code,), count)
        yield from (requests, errors, seconds, microseconds, request_bytes, response_bytes)

    def _collect_uploads(self) -> Metric:
        uploads = CounterMetricFamily(
            "notary_server_uploads", "Uploads, by the code of the error that refused them", labels=("outcome",)
        )
        for outcome, count in self._uploads.items():
            uploads.add_metric((outcome,), count)
        return uploads


class _Operation:
    """What is counted for one operation of the route table."""

    __slots__ = ("request_bytes", "response_bytes", "seconds")

    def __init__(self) -> None:
        self.seconds = Distribution(SECONDS)
        self.response_bytes = Distribution(SIZES)
        self.request_bytes = 0
