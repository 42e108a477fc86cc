"""The budget of large answers: how many bytes are held for clients that are still reading.

Rules of this module: pure. A small answer is written at once and not counted. A large answer goes out piece by piece,
and is held until the slowest of its clients has read it.
"""

from __future__ import annotations


class AnswerBudget:
    """Holds at most ``size`` bytes of answers; a single larger answer has room when there is no other.

    A body that several clients read is one object, and is counted once.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._takers: dict[int, int] = {}  # by the identity of a body
        self.held_bytes = 0
        """The number of bytes that are held."""

    def take(self, body: bytes) -> bool:
        """Count one more client of ``body``, which the caller keeps until ``give_back``; False if there is no room."""
        takers = self._takers.get(id(body), 0)
        if not takers:
            if self.held_bytes and self.held_bytes + len(body) > self._size:
                return False
            self.held_bytes += len(body)
        self._takers[id(body)] = takers + 1
        return True

    def give_back(self, body: bytes) -> None:
        """Count one client less of ``body``."""
        takers = self._takers.pop(id(body)) - 1
        if takers:
            self._takers[id(body)] = takers
        else:
            self.held_bytes -= len(body)
