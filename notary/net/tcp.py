"""Connections to a server without TLS, and what both kinds of connection share.

Rules of this module: what is written is sent at once as far as the socket takes it.
"""

from __future__ import annotations

import socket

from twisted.internet import unix
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Server


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


class PlainServer(Server):
    """A connection that sends at once what the socket takes.

    The stock one asks the reactor to be told when the socket is writable, for every write, although a socket that has
    nothing queued nearly always is: two system calls and a turn of the reactor for each answer.
    """

    _waiting = False  # for the reactor to say that the socket is writable: there is something in the queue

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
