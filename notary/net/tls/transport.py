"""Connections to a server with TLS.

Rules of this module: OpenSSL reads and writes the socket itself, a record at a time and never ahead, so what has not
been read is still in the socket, where the reactor sees it (docs/adr/0015-tls-on-the-socket.md); during the handshake
this module hands it one record at a time. What a client can have OpenSSL do without sending data is counted and bounded
(docs/adr/0018-records-without-data.md). An exception that nobody expected is logged and ends its
connection; none reaches the reactor. Neither side's last words are lost: before a connection closes the server sends
its goodbye and waits for the peer's, for as long as the protocol above lets it; and what has come is read, because a
socket that is closed with unread input takes back what it has sent.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final

from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet import unix
from twisted.internet.interfaces import IHandshakeListener, ISSLTransport
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.tcp import Server
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from notary.net.address import host_and_port
from notary.net.refusals import HandshakeFailed, OnRefused, RefusalKind
from notary.net.tcp import Ending, PlainServer, ReadListener
from notary.net.tls.contexts import ServerOptions
from notary.net.tls.openssl import RECORD_BYTES, WANT_READ, WANT_WRITE, ZERO_RETURN, Session
from notary.net.tls.verdicts import Cause, is_tls

_log = Logger()

_HEAD: Final = 5  # bytes of the head of a record
_SEALED: Final = RECORD_BYTES + 2048  # bytes that follow it at the most, encrypted (RFC 5246, section 6.2.3)
_LEAST: Final = 512  # bytes that a record counts for, at least, when a share of the socket is read
_GREETING_RECORDS: Final = 64
"""Records that a client's half of a handshake may take. With a chain of certificates it is a dozen; who sends it a byte
at a time keeps OpenSSL busy for a third of a second."""
_QUIET_MESSAGES: Final = 32
"""Messages (of TLS 1.3: KeyUpdate) that there may be between two records of data, the client's and our answers."""


@implementer(ISSLTransport)
class SecureServer(PlainServer):
    """A connection with TLS.

    ``options`` makes the OpenSSL side (:class:`notary.net.tls.contexts.ServerOptions`); ``on_refused`` hears if the
    handshake fails, except if we gave it up.
    """

    _up = False  # the handshake is done
    _reading = False
    _shaken = False  # OpenSSL has what it needs for that; the last of what it says may be unsent
    _stuck = False  # OpenSSL must write before it can read on

    def __init__(self, options: ServerOptions, on_refused: OnRefused | None, over: socket.socket, *args: Any) -> None:
        self._on_refused = on_refused
        self._cause = Cause(options.wording)
        self._tls: SSL.Connection = options.connection(self._cause)
        self._session = Session(self._tls)
        self._heard = b""  # of a record of the handshake that has not come whole
        self._records = 0  # of the handshake
        self._unsent = bytearray()  # of our half of the handshake
        self._quiet = 0  # messages since the last data
        self._quiet_most = _QUIET_MESSAGES
        super().__init__(over, *args)
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

    def doRead(self) -> Ending:
        """Go on with the handshake, or read what has come."""
        try:
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
        except Exception:  # noqa: BLE001 - the last line of defence
            return self._broken()
        return ending

    def _read(self) -> Ending:
        """Read a fair share of the records that are there; only who wants to know where they end pays for asking."""
        size, session = 0, self._session
        while True:
            data = session.read()
            if not data:
                return self._not_read()
            self._quiet = 0
            if not self.disconnecting:
                self.protocol.dataReceived(data)
            count = len(data)
            size += max(_LEAST, count)
            if not self._reading or size >= self.bufferSize or (self._listener is None and count < RECORD_BYTES):
                return None

    def _not_read(self) -> Ending:
        # What every connection meets is told apart here: pyOpenSSL would raise an exception, which costs as much as a
        # read.
        if self._quiet > self._quiet_most:
            said = "messages and no data" if self._quiet_most else "messages for another handshake, which is not done"
            return self._refuse(f"TLS: the peer sends {said}")
        error = self._session.error()
        if error == WANT_READ:
            return None
        if error == WANT_WRITE:
            # It owes an answer (to a KeyUpdate) that the socket does not take: until it does, the reactor would ask
            # again and again for what nobody can read.
            self._stuck = True
            super().stopReading()
            super().startWriting()
            return None
        if error == ZERO_RETURN:
            return self._left()
        try:
            self._session.explain()
        except SSL.Error as reason:
            return self._failed(reason)
        return None

    # -- the handshake ------------------------------------------------------------------------------------------------

    def _shake_hands(self) -> Ending:
        """Hand OpenSSL the records that have come, one at a time and none beyond the handshake; send what it says."""
        try:
            while self._unsent or not self._shaken:
                if self._unsent:
                    del self._unsent[: self.socket.send(self._unsent)]
                    continue
                piece = self.socket.recv(self._missing())
                if not piece:
                    return self._failed(SSL.SysCallError(-1, "Unexpected EOF"))
                self._cause.first = self._cause.first or piece[:1]
                self._heard += piece
                if self._missing():
                    continue
                self._records += 1
                if self._records > _GREETING_RECORDS:
                    text = f"TLS: the peer cuts its handshake into more than {_GREETING_RECORDS} records"
                    return self._refuse(text)
                self._step()
        except BlockingIOError:
            if self._unsent:
                Server.startWriting(self)
            return None
        except (SSL.Error, OSError) as error:
            with contextlib.suppress(OSError):
                self.socket.send(self._unsent)  # the alert that says why
            return self._failed(error)
        self._begin()
        if IHandshakeListener.providedBy(self.protocol):
            self.protocol.handshakeCompleted()
        # The first request has often come by now.
        return self.doRead() if self._reading else None

    def _missing(self) -> int:
        """Bytes that are missing of the record that comes; none of one that OpenSSL will not take."""
        heard = self._heard
        if heard and not is_tls(heard):
            return 0
        if len(heard) < _HEAD:
            return _HEAD - len(heard)
        size = heard[3] << 8 | heard[4]
        return 0 if size > _SEALED else _HEAD + size - len(heard)

    def _step(self) -> None:
        """Have OpenSSL take a record of the handshake. Raises SSL.Error."""
        record, self._heard = self._heard, b""
        session = self._session
        session.give(record)
        try:
            self._shaken = session.do_handshake()
            if not self._shaken and session.error() != WANT_READ:
                session.explain()
        finally:
            self._unsent += session.take()

    def _begin(self) -> None:
        """The handshake is done: from now on OpenSSL has the socket, and its messages are counted."""
        self._session.use_socket(self.fileno())
        self._up = True
        if self._tls.get_protocol_version() < SSL.TLS1_3_VERSION:
            self._quiet_most = 0  # what may come is renegotiation, which we do not do
        self._session.listen(self)
        if self._waiting:
            super().startWriting()

    @property
    def refuses_messages(self) -> bool:
        """Whether no message may come: then the first step of one counts, before OpenSSL reads the rest of it."""
        return not self._quiet_most

    def count_message(self) -> None:
        """Count a message that is no data. OpenSSL reads on as long as such messages come, if it is not stopped."""
        self._quiet += 1
        if self._quiet > self._quiet_most:
            self._session.stop()

    # -- the end of reading -------------------------------------------------------------------------------------------

    def _left(self) -> Ending:
        """The peer has said goodbye: it hears what is in the queue, and then ours."""
        if self._waiting:
            self.stopReading()
            self.disconnecting = 1
            return None
        with contextlib.suppress(SSL.Error):
            self._session.shutdown()
        return CONNECTION_DONE

    def _refuse(self, text: str) -> Exception:
        """End the connection for a reason of ours."""
        self._failed(CONNECTION_LOST)
        return HandshakeFailed(RefusalKind.OTHER, text)

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
            if self._stuck:
                self._stuck = False
                if self._reading:
                    super().startReading()
            return super().doWrite()
        Server.stopWriting(self)
        return self.doRead()

    def writeSomeData(self, data: bytes | memoryview) -> Any:
        """Send as much of ``data`` as the socket takes; return how much, or what ends the connection."""
        sent, size, session = 0, len(data) if self._up else 0, self._session
        while sent < size:
            piece = bytes(data[sent : sent + RECORD_BYTES])  # a copy only if it is not all of it
            count = session.write(piece)
            if count <= 0:
                try:
                    session.explain()
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

    def _postLoseConnection(self) -> Ending:
        """All is sent: say goodbye, once; then the peer's is awaited."""
        if not self._writeDisconnected:
            try:
                if self._session.shutdown():
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
        self._session.forget()
        told = self._aborting or (self._up and not isinstance(reason.value, HandshakeFailed))
        failed = None if told else self._cause.ended(reason)
        peer = host_and_port(self.getPeer())
        super().connectionLost(reason if failed is None else Failure(failed))
        self._listener = None
        if failed is not None and self._on_refused is not None:
            self._on_refused(peer, failed.kind, str(failed))


class SecureUnixServer(SecureServer, unix.Server):
    """One with TLS on a socket of the Unix domain."""
