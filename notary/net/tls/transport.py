"""Connections to a server with TLS.

Rules of this module: OpenSSL reads and writes the socket itself, a record at a time and never ahead, so what has not
been read is still in the socket, where the reactor sees it (docs/adr/0015-tls-on-the-socket.md). Neither side's last
words are lost: before a connection closes the server sends its goodbye and waits for the peer's, for as long as the
protocol above lets it; and what has come is read, because a socket that is closed with unread input takes back what it
has sent.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final, TypeAlias

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet import unix
from twisted.internet.interfaces import IHandshakeListener, ISSLTransport
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.tcp import Server
from twisted.python.failure import Failure
from zope.interface import implementer

from notary.net.address import host_and_port
from notary.net.tcp import PlainServer, ReadListener
from notary.net.tls.refusals import OnRefused
from notary.net.tls.verdicts import Cause

_RECORD: Final = 1 << 14  # bytes that a record of TLS holds at the most (RFC 8446, section 5.1)

# OpenSSL as pyOpenSSL calls it, which does so for handshakes and whatever goes wrong. For each record that is read or
# written it would call five functions more, a tenth of what a small answer costs.
_lib: Final = Binding.lib
_ffi: Final = Binding.ffi
_LATER: Final = frozenset({_lib.SSL_ERROR_WANT_READ, _lib.SSL_ERROR_WANT_WRITE})
_room: Final = _ffi.new("char[]", _RECORD)  # where records are read to, all in the reactor's thread

_Ending: TypeAlias = Any  # an exception, which tells the reactor that the connection is over, or None


@implementer(ISSLTransport)
class SecureServer(PlainServer):
    """A connection with TLS.

    ``options`` makes the OpenSSL side (:class:`notary.net.tls.contexts.ServerOptions`); ``on_refused`` hears if the
    handshake fails, except if we gave it up.
    """

    _up = False  # the handshake is done
    _reading = False

    def __init__(self, options: Any, on_refused: OnRefused | None, *args: Any) -> None:
        super().__init__(*args)
        self._on_refused = on_refused
        self._cause = Cause("server.client_ca_file")
        self._tls: SSL.Connection = options.connection(self.socket, self._cause)
        self._ssl: Any = self._tls._ssl  # noqa: SLF001
        self._listener = self.protocol if isinstance(self.protocol, ReadListener) else None

    # -- what the protocol may ask ------------------------------------------------------------------------------------

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """The protocol that both sides chose (ALPN)."""
        return self._tls.get_alpn_proto_negotiated() or None

    def getPeerCertificate(self) -> X509 | None:
        """Return the certificate that the client showed."""
        return self._tls.get_peer_certificate()

    # -- reading ------------------------------------------------------------------------------------------------------

    def startReading(self) -> None:
        """Ask to be told when there is something to read."""
        self._reading = True
        super().startReading()

    def stopReading(self) -> None:
        """Leave in the socket what comes."""
        self._reading = False
        super().stopReading()

    def doRead(self) -> _Ending:
        """Go on with the handshake, or read what has come."""
        if not self._up:
            return self._shake_hands()
        listener = self._listener
        if listener is None:
            return self._read()
        listener.reading = True
        try:
            ending = self._read()
        finally:
            listener.reading = False
        listener.readEnded()
        return ending

    def _read(self) -> _Ending:
        """Read a fair share of the records that are there; only who wants to know where they end pays for asking."""
        size = 0
        while True:
            count = _lib.SSL_read(self._ssl, _room, _RECORD)
            if count <= 0:
                return self._not_read(count)
            if not self.disconnecting:
                self.protocol.dataReceived(_ffi.buffer(_room, count)[:])
            size += count
            if not self._reading or size >= self.bufferSize or (self._listener is None and count < _RECORD):
                return None

    def _not_read(self, result: int) -> _Ending:
        # What every connection meets is told apart here: pyOpenSSL would raise an exception, which costs as much as a
        # read.
        why = _lib.SSL_get_error(self._ssl, result)
        if why in _LATER:
            return None
        if why == _lib.SSL_ERROR_ZERO_RETURN:
            return self._left()
        try:
            self._explain(result)
        except SSL.Error as error:
            return self._failed(error)
        return None

    def _explain(self, result: int) -> None:
        """Raise what a result of OpenSSL means that is no success."""
        self._tls._raise_ssl_error(self._ssl, result)  # noqa: SLF001

    def _shake_hands(self) -> _Ending:
        try:
            if not self._cause.first:
                self._cause.first = self.socket.recv(1, socket.MSG_PEEK)
            result = _lib.SSL_do_handshake(self._ssl)
            if result <= 0:
                if _lib.SSL_get_error(self._ssl, result) == _lib.SSL_ERROR_WANT_READ:
                    return None
                self._explain(result)
        except (SSL.WantReadError, BlockingIOError):
            return None
        except SSL.WantWriteError:
            super().startWriting()
            return None
        except (SSL.Error, OSError) as error:
            return self._failed(error)
        self._up = True
        if self._waiting:
            super().startWriting()
        if IHandshakeListener.providedBy(self.protocol):
            self.protocol.handshakeCompleted()
        # The first request has often come by now.
        return self.doRead() if self._reading else None

    def _left(self) -> _Ending:
        """The peer has said goodbye: it hears what is in the queue, and then ours."""
        if self._waiting:
            self.stopReading()
            self.disconnecting = 1
            return None
        with contextlib.suppress(SSL.Error):
            self._tls.shutdown()
        return CONNECTION_DONE

    def _failed(self, error: Exception) -> Exception:
        with contextlib.suppress(OSError):
            self.socket.recv(self.bufferSize)
        return self._cause.explain(error, self._tls.get_certificate()) or CONNECTION_LOST

    # -- writing ------------------------------------------------------------------------------------------------------

    def startWriting(self) -> None:
        """Ask to be told when the socket is writable; until then, and until the handshake is done, data is queued."""
        if self._up:
            super().startWriting()
        else:
            self._waiting = True

    def doWrite(self) -> Any:
        """Go on with the handshake, or send what is in the queue."""
        if self._up:
            return super().doWrite()
        Server.stopWriting(self)
        return self._shake_hands()

    def writeSomeData(self, data: bytes | memoryview) -> Any:
        """Send as much of ``data`` as the socket takes; return how much, or what ends the connection."""
        sent, size = 0, len(data) if self._up else 0
        while sent < size:
            piece = bytes(data[sent : sent + _RECORD])  # a copy only if it is not all of it
            count = _lib.SSL_write(self._ssl, piece, len(piece))
            if count <= 0:
                try:
                    self._explain(count)
                except (SSL.WantWriteError, SSL.WantReadError):
                    return sent
                except SSL.Error:
                    return CONNECTION_LOST
            sent += count
        return sent

    # -- the end ------------------------------------------------------------------------------------------------------

    def loseConnection(self, *_: object) -> None:
        """Say goodbye when all is sent, then wait for the peer's; what it says until then is dropped."""
        if not self.connected or self.disconnecting:
            return
        if not self._up and not self._waiting:
            self.abortConnection()
            return
        self.disconnecting = 1
        if not self._waiting and self._postLoseConnection() is not None:
            self.startWriting()  # so that the reactor ends it

    def _postLoseConnection(self) -> _Ending:
        """All is sent: say goodbye, once; then the peer's is awaited."""
        if not self._writeDisconnected:
            try:
                if self._tls.shutdown():
                    return CONNECTION_DONE
            except SSL.WantWriteError:
                self.startWriting()
                return None
            except SSL.Error:
                pass  # what is wrong shows when it is read
            self._writeDisconnected = True  # what is written from now on is dropped
        self.startReading()
        return None

    def readConnectionLost(self, reason: Failure) -> None:
        """End: TLS has no half of a connection."""
        self.connectionLost(reason)

    def connectionLost(self, reason: Failure) -> None:
        """Tell the protocol why, and who listens for refusals."""
        if not hasattr(self, "socket"):
            return  # it has been told
        failed = None if self._up or self._aborting else self._cause.ended(reason)
        peer = host_and_port(self.getPeer())
        super().connectionLost(reason if failed is None else Failure(failed))
        self._listener = None
        if failed is not None and self._on_refused is not None:
            self._on_refused(peer, failed.why, str(failed))


class SecureUnixServer(SecureServer, unix.Server):
    """One with TLS on a socket of the Unix domain."""
