"""Refused connections: the kinds of refusal, the error of a failed TLS handshake, and the log of refusals.

Rules of this module: both protocols and TLS use it, and it imports none of them. A listening port tells
:class:`Refusals` of every connection that it refused. Strangers can fill the log at a bounded rate only.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, TypeAlias
from typing import Protocol as Port

from twisted.logger import Logger, LogLevel

from notary.work import repeats
from notary.work.repeats import Repeats

_MOST_CHARACTERS: Final = 120  # of a text from a stranger's certificate that reach a log line


Level: TypeAlias = Any
"""A constant of :class:`twisted.logger.LogLevel`, whose library has no types."""


class RefusalKind(StrEnum):
    """The kinds of refusal. The log gets one line for each kind and peer at a time."""

    EXPIRED = "certificate expired"
    NOT_YET_VALID = "certificate not yet valid"
    UNKNOWN_ISSUER = "unknown issuer"
    BAD_CERTIFICATE = "bad certificate"
    WRONG_NAME = "wrong name"
    NO_CERTIFICATE = "no certificate"
    PLAINTEXT = "plaintext"
    PROTOCOL = "no common protocol"
    OURS_REFUSED = "our certificate refused"
    GONE = "gone"
    OTHER = "other"


class HandshakeFailed(Exception):
    """A TLS handshake failed. The message says the cause and what an operator can do about it."""

    def __init__(self, kind: RefusalKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def unreadable_certificate(error: Exception) -> HandshakeFailed:
    """Return the error for a peer's certificate that OpenSSL has read and our own parser refuses with ``error``."""
    return HandshakeFailed(
        RefusalKind.BAD_CERTIFICATE,
        f"the peer's certificate cannot be read ({shorten(str(error))}); the peer needs another one",
    )


def shorten(text: str) -> str:
    """Return the beginning of a text from a stranger's certificate, short enough for a log line."""
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


class OnRefused(Port):
    """A function that is called for each refused connection."""

    def __call__(self, peer: str, kind: str, message: str) -> None:
        """``peer`` is ``host:port``; ``message`` says the cause and what an operator can do about it."""


class Refusals:
    """Logs refusals: one line a minute for each kind and host, which counts the refusals since the line before it.

    Beyond ``MOST_HOSTS`` pairs of a kind and a host at a time, all further hosts share one line for each kind, so that
    neither the log nor this table can be flooded.
    """

    SECONDS: Final = repeats.SECONDS
    MOST_HOSTS: Final = 100

    def __init__(self, log: Logger, level: Level, seconds: Callable[[], float]) -> None:
        self.log = log
        self._level = level
        self._repeats = Repeats(self.MOST_HOSTS, seconds)

    def __call__(self, peer: str, kind: str, message: str) -> None:
        """Log a refusal, or only count it."""
        line = self._repeats.happened((kind, peer.rpartition(":")[0]), (kind, ""))
        if line is None:
            return
        self.log.emit(
            self._level,
            "connection from {peer} refused: {reason}{counted}",
            peer=peer,
            reason=message,
            counted=line.counted,
        )


def refusal_level(*, mutual: bool) -> Level:
    """Return the log level of refusals.

    With mutual TLS the peers are few and known, so a refusal is an error; without it any scanner causes refusals.
    """
    return LogLevel.error if mutual else LogLevel.info
