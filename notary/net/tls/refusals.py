"""The log of refused connections.

Rules of this module: a listening port tells :class:`Refusals` of every connection that it refused. Strangers can fill
the log at a bounded rate only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from typing import Protocol as Port

from twisted.logger import Logger, LogLevel


class OnRefused(Port):
    """Hears of a connection that was refused."""

    def __call__(self, peer: str, why: str, message: str) -> None:
        """``peer`` is ``host:port``, ``why`` the kind of refusal, ``message`` the cause and the way out."""


@dataclass(slots=True)
class _Line:
    until: float  # when the next one may be written
    more: int = 0  # refusals since the last one


class Refusals:
    """Logs refusals: of each kind and each host one line in ``SECONDS``, which counts those that came since the last.

    Hosts beyond ``HOSTS`` at a time share their lines, so that neither the log nor this table can be flooded.
    """

    SECONDS: Final = 60.0
    HOSTS: Final = 100

    def __init__(self, log: Logger, level: Any, seconds: Callable[[], float]) -> None:
        self.log = log
        self._level = level
        self._seconds = seconds
        self._lines: dict[tuple[str, str], _Line] = {}

    def __call__(self, peer: str, why: str, message: str) -> None:
        """Log a refusal, or count it."""
        now = self._seconds()
        key = (why, peer.rpartition(":")[0])
        if key not in self._lines and len(self._lines) >= self.HOSTS:
            self._lines = {each: line for each, line in self._lines.items() if line.until > now}
            if len(self._lines) >= self.HOSTS:
                key = (why, "")
        line = self._lines.get(key)
        if line is not None and line.until > now:
            line.more += 1
            return
        more = line.more if line is not None else 0
        self._lines[key] = _Line(now + self.SECONDS)
        self.log.emit(
            self._level,
            "connection from {peer} refused: {reason}{counted}",
            peer=peer,
            reason=message,
            counted=f" (and {more} more like it since the last such line)" if more else "",
        )


def refusal_level(*, mutual: bool) -> Any:
    """Return the log level of refusals: with mutual TLS the peers are few and known, else any scanner causes them."""
    return LogLevel.error if mutual else LogLevel.info
