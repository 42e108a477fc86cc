"""Log lines that repeat: one of a kind is written a minute, so that strangers fill the log at a bounded rate only.

Rules of this module: pure. The number of kinds bounds the work and the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, NamedTuple

SECONDS: Final = 60.0
"""The shortest time between two lines of a kind."""


class Line(NamedTuple):
    """A line to write. ``more`` lines of its kind were only counted since the last one; ``first`` if there was none."""

    more: int
    first: bool

    @property
    def counted(self) -> str:
        """What to add to the text of the line."""
        return f" (and {self.more} more like it since the last such line)" if self.more else ""


@dataclass(slots=True)
class _Kind:
    until: float  # the earliest time of the next line
    more: int = 0  # lines that were only counted since the last one


class Repeats:
    """Counts events by kind. At most ``most`` kinds are told apart at a time; ``seconds`` is the clock."""

    def __init__(self, most: int, seconds: Callable[[], float]) -> None:
        self._most = most
        self._seconds = seconds
        self._kinds: dict[Hashable, _Kind] = {}
        self._next_look = 0.0  # when a kind may be forgotten

    def happened(self, kind: Hashable, otherwise: Hashable) -> Line | None:
        """Return the line for an event of a ``kind``, or None if the event is only counted.

        An event beyond the number of kinds counts as ``otherwise``, of which there must be few.
        """
        now = self._seconds()
        if kind not in self._kinds and len(self._kinds) >= self._most:
            if now >= self._next_look:  # not at each event: that would be much work in a flood
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


class Seldom:
    """Writes lines of one kind, at most one a minute; each says how many lines were only counted before it."""

    def __init__(self, write: Callable[[str], object], seconds: Callable[[], float]) -> None:
        self._write = write
        self._repeats = Repeats(1, seconds)

    def __call__(self, text: str) -> None:
        """Write ``text``, or count it."""
        line = self._repeats.happened("", "")
        if line is not None:
            self._write(text + line.counted)
