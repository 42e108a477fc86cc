"""The metrics of several workers as those of one daemon.

Rules of this module: pure, but for the parser of Prometheus' text form. Counters and histograms are added up, those of
workers that have ended included, so that they only grow. Gauges are added up as well (connections, memory), save where
a line of the text says otherwise (:meth:`notary.observe.metrics.DaemonMetrics.render_for_totals`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from notary.observe.metrics import ACROSS_MARK

_GROWING: Final = frozenset({"counter", "histogram", "summary"})

_COMBINE: Final[Mapping[str, Callable[[float, float], float]]] = MappingProxyType(
    {"sum": operator.add, "min": min, "max": max}
)

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]
"""Values by the name and the labels of a sample."""


class Totals:
    """What all workers have counted."""

    def __init__(self) -> None:
        self._past: dict[str, tuple[Metric, Samples]] = {}

    def retire(self, text: bytes) -> None:
        """Keep the counters of a worker that has ended; ``text`` is the last one that it wrote."""
        for family, samples in _families(text):
            if family.type in _GROWING:
                _add(self._past, family, samples, operator.add)

    def of(self, texts: Iterable[bytes]) -> bytes:
        """The metrics of the workers that live, each in Prometheus' text form, as one."""
        sums = dict(self._past)
        for text in texts:
            across = _across(text)
            for family, samples in _families(text):
                _add(sums, family, samples, _COMBINE[across.get(family.name, "sum")])
        return generate_latest(_Families(sums))


class _Families:
    def __init__(self, sums: Mapping[str, tuple[Metric, Samples]]) -> None:
        self._sums = sums

    def collect(self) -> Iterable[Metric]:
        for family, samples in self._sums.values():
            metric = Metric(family.name, family.documentation, family.type)
            for (name, labels), value in samples.items():
                metric.add_sample(name, dict(labels), value)
            yield metric


def _families(text: bytes) -> Iterable[tuple[Metric, Samples]]:
    for family in text_string_to_metric_families(text.decode()):
        yield family, {(sample.name, tuple(sample.labels.items())): sample.value for sample in family.samples}


def _across(text: bytes) -> Mapping[str, str]:
    """How each family of a text becomes one with those of other workers, where it is not added up."""
    lines = (line for line in text.decode().splitlines() if line.startswith(ACROSS_MARK))
    return dict(line.removeprefix(ACROSS_MARK).split() for line in lines)


def _add(
    sums: dict[str, tuple[Metric, Samples]], family: Metric, samples: Samples, combine: Callable[[float, float], float]
) -> None:
    _, so_far = sums.get(family.name, (family, {}))
    together = dict(so_far)
    for key, value in samples.items():
        together[key] = combine(together[key], value) if key in together else value
    sums[family.name] = (family, together)
