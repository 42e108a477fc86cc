"""How late the event loop runs what is due: the one figure that says whether something blocks it.

Rules of this module: one timer, twice a second, under any load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime

INTERVAL_SECONDS: Final = 0.5
"""Seconds between two looks."""


class Lag(Service):
    """Tells ``observe`` by how many seconds each call of a timer of ``clock`` came too late."""

    def __init__(self, clock: IReactorTime, observe: Callable[[float], None]) -> None:
        self._clock = clock
        self._observe = observe
        self._timer: IDelayedCall | None = None

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        self._wait()

    def stopService(self) -> None:
        """Look no more."""
        super().stopService()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = self._clock.callLater(INTERVAL_SECONDS, self._look, self._clock.seconds() + INTERVAL_SECONDS)

    def _look(self, due: float) -> None:
        self._observe(max(0.0, self._clock.seconds() - due))
        self._wait()
