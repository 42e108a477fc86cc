"""Which of many lines that are alike are written: what strangers do may fill the log at a bounded rate only.

Rules of this module: pure. Work and memory are bounded by the number of kinds that are told apart, whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, NamedTuple

SECONDS: Final = 60.0
"""How long after a line the next one of its kind is written, at the earliest."""


class Line(NamedTuple):
    """A line that is written: ``more`` were not, since the last one of its kind; ``first`` if there was none before."""

    more: int
    first: bool


@dataclass(slots=True)
class _Kind:
    until: float  # when the next one may be written
    more: int = 0  # those since the last one


class Repeats:
    """Counts what happens, by kind. ``most`` kinds at a time are told apart; ``seconds`` is the time, in seconds."""

    def __init__(self, most: int, seconds: Callable[[], float]) -> None:
        self._most = most
        self._seconds = seconds
        self._kinds: dict[Hashable, _Kind] = {}
        self._next_look = 0.0  # when there may be room again

    def happened(self, kind: Hashable, otherwise: Hashable) -> Line | None:
        """Say how something of a ``kind`` is written; None if it is only counted.

        Beyond the number of kinds it counts as ``otherwise``, of which there are few.
        """
        now = self._seconds()
        if kind not in self._kinds and len(self._kinds) >= self._most:
            if now >= self._next_look:  # not each time: that would be work for every one of a flood
                self._kinds = {each: known for each, known in self._kinds.items() if known.until > now}
                self._next_look = now + 1.0
            if len(self._kinds) >= self._most:
                kind = otherwise
        known = self._kinds.get(kind)
        if known is not None and known.until > now:
            known.more += 1
            return None
        self._kinds[kind] = _Kind(now + SECONDS)
        return Line(0 if known is None else known.more, known is None)
