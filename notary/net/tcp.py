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
    """A protocol that is told the end of each read of the socket. With TLS a read may be many pieces of data."""

    reading = False
    """True during a read. Output can then wait for :meth:`readEnded`."""

    def readEnded(self) -> None:
        """The read is over."""


def no_delay(listening: socket.socket) -> None:
    """Set TCP_NODELAY on a listening socket. Its connections inherit it, which saves a system call for each."""
    if listening.family != socket.AF_UNIX:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


Ending: TypeAlias = Any
"""The result of a read or write for the reactor: an exception if the connection has ended, or None."""

_log = Logger()


class PlainServer(Server):
    """A connection that sends at once as much as the socket takes.

    Twisted's own connection waits for the reactor before every write, although a socket with nothing queued is nearly
    always writable: two system calls and a reactor turn for each answer.
    """

    _waiting = False  # data is queued until the reactor says that the socket is writable

    def doRead(self) -> Ending:
        """Read the input."""
        try:
            return super().doRead()
        except Exception:  # noqa: BLE001 - the last line of defence
            return self._broken()

    def doWrite(self) -> Ending:
        """Send the queued data."""
        try:
            return super().doWrite()
        except Exception:  # noqa: BLE001 - the last line of defence
            return self._broken()

    def connectionLost(self, reason: Failure) -> None:
        """Report the end to the protocol."""
        try:
            super().connectionLost(reason)
        except Exception:  # noqa: BLE001 - the last line of defence
            self._broken()

    def _broken(self) -> Exception:
        """Log an unexpected exception, and return the error that ends the connection."""
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
            # If the connection is lost, the next write of the reactor finds and reports it.
        super().write(data)

    def startWriting(self) -> None:
        """Have the reactor call ``doWrite`` when the socket is writable. Data is queued until then."""
        self._waiting = True
        super().startWriting()

    def stopWriting(self) -> None:
        """Stop the calls of ``doWrite``: the queue is empty."""
        self._waiting = False
        super().stopWriting()


class PlainUnixServer(PlainServer, unix.Server):
    """A connection without TLS on a Unix socket."""
