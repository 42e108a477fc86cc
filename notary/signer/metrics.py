"""What the signer counts.

Rules of this module: those of :mod:`notary.observe.metrics`. It names methods and algorithms, never keys or
collections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from notary.net.grpc import Status
from notary.observe.metrics import SECONDS, DaemonMetrics, Distribution
from notary.signer.keyring import Keyring

_OTHER = "other"


class SignerMetrics(DaemonMetrics):
    """Everything that one signer counts; ``version`` is that of the program."""

    def __init__(self, *, version: str, together: Callable[[], Awaitable[bytes]] | None = None) -> None:
        super().__init__("notary_signer_", version, together)
        self._methods: frozenset[str] = frozenset()
        self._calls: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[str, Distribution] = {}
        self._signatures: Counter[str] = Counter()

    def serving(self, methods: Collection[str], keyring: Keyring) -> None:
        """Name the methods by which calls are counted (paths; all others are one), and the keyring to ask."""
        self._methods = frozenset(methods)
        self.counter(
            "key_cache",
            "Keys that were found unwrapped in memory (hit), and those that were not (miss)",
            lambda: {("hit",): keyring.hits, ("miss",): keyring.misses},
            ("result",),
        )
        self.counter(
            "key_creations",
            "Requests for new keys, by what came of them",
            lambda: {(result,): count for result, count in keyring.creations.items()},
            ("result",),
        )
        self.gauge("keys_waiting", "Keys that wait to be made", lambda: {(): keyring.waiting})
        self.gauge("cached_keys", "Unwrapped keys in memory", lambda: {(): keyring.cached})

    def observe_call(self, path: str, status: Status, seconds: float, _peer: object) -> None:
        """Count one gRPC call; ``path`` is as the client gave it."""
        method = path.rpartition("/")[2] if path in self._methods else _OTHER
        self._calls[method, status.name] += 1
        seen = self._seconds.get(method)
        if seen is None:
            seen = self._seconds[method] = Distribution(SECONDS)
        seen.observe(seconds)

    def signed(self, algorithm: str) -> None:
        """Count one signature by a key of this algorithm."""
        self._signatures[algorithm] += 1

    def collect(self) -> Iterable[Metric]:
        """Put the families together: the registry's side of this class."""
        yield from super().collect()
        calls = CounterMetricFamily(
            "notary_signer_grpc_requests", "gRPC calls that ended, by their status", labels=("method", "status")
        )
        for (method, status), count in self._calls.items():
            calls.add_metric((method, status), count)
        seconds = HistogramMetricFamily(
            "notary_signer_grpc_request_duration_seconds", "Time to answer", labels=("method",)
        )
        for method, seen in self._seconds.items():
            seen.add_to(seconds, (method,))
        signatures = CounterMetricFamily(
            "notary_signer_signatures", "Signatures that were made, by the algorithm of the key", labels=("algorithm",)
        )
        for algorithm, count in self._signatures.items():
            signatures.add_metric((algorithm,), count)
        yield from (calls, seconds, signatures)
