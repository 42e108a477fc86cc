"""The log of refused connections.

Rules of this module: a listening port tells :class:`Refusals` of every connection that it refused. Strangers can fill
the log at a bounded rate only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from typing import Protocol as Port

from twisted.logger import Logger, LogLevel

from notary.work import repeats
from notary.work.repeats import Repeats


class OnRefused(Port):
    """Hears of a connection that was refused."""

    def __call__(self, peer: str, why: str, message: str) -> None:
        """``peer`` is ``host:port``, ``why`` the kind of refusal, ``message`` the cause and the way out."""


class Refusals:
    """Logs refusals: of each kind and each host one line a minute, which counts those that came since the last.

    Hosts beyond ``HOSTS`` at a time share their lines, so that neither the log nor this table can be flooded.
    """

    SECONDS: Final = repeats.SECONDS
    HOSTS: Final = 100

    def __init__(self, log: Logger, level: Any, seconds: Callable[[], float]) -> None:
        self.log = log
        self._level = level
        self._repeats = Repeats(self.HOSTS, seconds)

    def __call__(self, peer: str, why: str, message: str) -> None:
        """Log a refusal, or count it."""
        line = self._repeats.happened((why, peer.rpartition(":")[0]), (why, ""))
        if line is None:
            return
        self.log.emit(
            self._level,
            "connection from {peer} refused: {reason}{counted}",
            peer=peer,
            reason=message,
            counted=f" (and {line.more} more like it since the last such line)" if line.more else "",
        )


def refusal_level(*, mutual: bool) -> Any:
    """Return the log level of refusals: with mutual TLS the peers are few and known, else any scanner causes them."""
    return LogLevel.error if mutual else LogLevel.info
