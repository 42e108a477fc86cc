"""A bounded table that keeps the entries used last.

Rules of this module: pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_LARGEST_SHARE: Final = 4


class Lru(Generic[K, V]):
    """Keeps at most ``most`` entries, and drops those that were used longest ago.

    With ``weigh``, the values also weigh at most ``weight`` together; a value of more than a fourth of that is not
    kept.
    """

    def __init__(self, most: int, weigh: Callable[[V], int] | None = None, weight: int = 0) -> None:
        self._most = most
        self._weigh = weigh
        self._weight = weight
        self._free_weight = weight
        self._kept: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._kept)

    def __contains__(self, key: K) -> bool:
        """Return True if ``key`` has an entry. That is no use of the entry."""
        return key in self._kept

    def get(self, key: K) -> V | None:
        """Use an entry: return its value, or None if there is no such entry."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def put(self, key: K, value: V) -> None:
        """Keep ``value``, in place of the entries that were used longest ago."""
        self.pop(key)
        if self._weigh is not None:
            weight = self._weigh(value)
            if weight * _LARGEST_SHARE > self._weight:
                return
            self._free_weight -= weight
        self._kept[key] = value
        while len(self._kept) > self._most or self._free_weight < 0:
            self.pop(next(iter(self._kept)))

    def pop(self, key: K) -> V | None:
        """Drop an entry and return its value, or None if there is no such entry."""
        if key not in self._kept:
            return None
        value = self._kept.pop(key)
        if self._weigh is not None:
            self._free_weight += self._weigh(value)
        return value
