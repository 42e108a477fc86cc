"""Connections to a server without TLS, and what both kinds of connection share.

Rules of this module: what is written is sent at once as far as the socket takes it.
"""

from __future__ import annotations

import socket
from typing import Any, TypeAlias

from twisted.internet import unix
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Server
from twisted.logger import Logger
from twisted.python.failure import Failure

from notary.net.address import host_and_port


class ReadListener(Protocol):
    """A protocol that is told when a read of the socket is over, which with TLS may be many pieces of data."""

    reading = False
    """Whether more of what was read may come: what is to be said can wait for :meth:`readEnded`."""

    def readEnded(self) -> None:
        """All that was read has come."""


def no_delay(listening: socket.socket) -> None:
    """Have what is accepted from this socket send at once; connections inherit it, which saves each a system call."""
    if listening.family != socket.AF_UNIX:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


Ending: TypeAlias = Any
"""What tells the reactor how a read or write went: an exception that ended the connection, or None."""

_log = Logger()


class PlainServer(Server):
    """A connection that sends at once what the socket takes.

    The stock one asks the reactor to be told when the socket is writable, for every write, although a socket that has
    nothing queued nearly always is: two system calls and a turn of the reactor for each answer.
    """

    _waiting = False  # for the reactor to say that the socket is writable: there is something in the queue

    def doRead(self) -> Ending:
        """Read what has come."""
        try:
            return super().doRead()
        except Exception:  # noqa: BLE001 - the last line of defence
            return self._broken()

    def doWrite(self) -> Ending:
        """Send what is in the queue."""
        try:
            return super().doWrite()
        except Exception:  # noqa: BLE001 - the last line of defence
            return self._broken()

    def connectionLost(self, reason: Failure) -> None:
        """Tell the protocol why."""
        try:
            super().connectionLost(reason)
        except Exception:  # noqa: BLE001 - the last line of defence
            self._broken()

    def _broken(self) -> Exception:
        """Log an exception that nobody expected; return what ends the connection."""
        _log.failure("the connection of {peer} fails unexpectedly and is ended", peer=host_and_port(self.getPeer()))
        return CONNECTION_LOST

    def setTcpNoDelay(self, enabled: object) -> None:
        """Do nothing: an answer never waits for the client to acknowledge its first half (see :func:`no_delay`)."""

    def write(self, data: bytes) -> None:
        """Write ``data``, now as far as possible."""
        if not self._waiting and self.connected:
            sent = self.writeSomeData(data)
            if sent == len(data):
                return
            if isinstance(sent, int) and sent > 0:
                data = data[sent:]
            # A lost connection is found again, and reported, when the reactor writes.
        super().write(data)

    def startWriting(self) -> None:
        """Ask to be told when the socket is writable; until then data is queued."""
        self._waiting = True
        super().startWriting()

    def stopWriting(self) -> None:
        """All that was queued is sent."""
        self._waiting = False
        super().stopWriting()


class PlainUnixServer(PlainServer, unix.Server):
    """A plain one on a socket of the Unix domain."""
