"""Clocks of tests."""

from __future__ import annotations


class Time:
    """A clock that stands until it is set forward."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
