"""What is held of answers for clients that have not taken them yet.

Rules of this module: pure. A small answer goes to the transport at once and is held by nobody; what is counted here are
those that go out piece by piece, for as long as the slowest of their clients likes.
"""

from __future__ import annotations


class AnswerBudget:
    """At most ``size`` bytes of answers under way; one that is larger has room when there is no other.

    A body that several clients take is one object, and is counted once.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._takers: dict[int, int] = {}  # by the identity of a body
        self.held_bytes = 0
        """How many bytes are under way."""

    def take(self, body: bytes) -> bool:
        """Count one more client of ``body``, which the caller holds until ``give_back``; False if there is no room."""
        takers = self._takers.get(id(body), 0)
        if not takers:
            if self.held_bytes and self.held_bytes + len(body) > self._size:
                return False
            self.held_bytes += len(body)
        self._takers[id(body)] = takers + 1
        return True

    def give_back(self, body: bytes) -> None:
        """Count one client of ``body`` less."""
        takers = self._takers.pop(id(body)) - 1
        if takers:
            self._takers[id(body)] = takers
        else:
            self.held_bytes -= len(body)
