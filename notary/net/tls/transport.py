"""Connections to a server with TLS.

Rules of this module: OpenSSL reads and writes the socket itself, a record at a time and never ahead, so unread input
stays in the socket, where the reactor sees it (docs/adr/0015-tls-on-the-socket.md); during the handshake this module
gives OpenSSL one record at a time. The work that a client causes in OpenSSL without sending data is counted and bounded
(docs/adr/0018-records-without-data.md). An unexpected exception is logged and ends its connection; none reaches the
reactor. A close loses no data of either side: the server sends its close_notify and waits for the peer's, as long as
the protocol above allows; and it reads all input first, because a socket that is closed with unread input drops the
data that it has sent.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
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

_HEAD_BYTES: Final = 5  # of a record; as many bytes tell what a client without TLS speaks
_CHANGE_CIPHER_SPEC: Final = 0x14  # the first byte of such a record, which ends no handshake
_FLIGHT_BYTES: Final = 1 << 14  # most bytes of a handshake that one read of the socket takes
_LETTERS: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")  # a protocol of text begins so
_SEALED_BYTES: Final = RECORD_BYTES + 2048  # most bytes of an encrypted record (RFC 5246, section 6.2.3)
_MIN_COUNTED_BYTES: Final = 512  # a smaller record counts as so many bytes of one read
_GREETING_RECORDS: Final = 64
"""The most records in a client's half of a handshake. With a chain of certificates there are a dozen; a client that
sends one byte a record would keep OpenSSL busy for a third of a second."""
_QUIET_MESSAGES: Final = 32
"""The most messages without data (in TLS 1.3: KeyUpdate) between two records of data, our answers included."""


def _record_bytes(heard: bytes, at: int) -> int:
    """Return the size of the record at ``at``; for one that OpenSSL will refuse, what has come of it."""
    come = len(heard) - at
    if come < _HEAD_BYTES and (not come or is_tls(heard[at]) or heard[at] in _LETTERS):
        return _HEAD_BYTES
    if not is_tls(heard[at]):
        return come
    size = heard[at + 3] << 8 | heard[at + 4]
    return come if size > _SEALED_BYTES else _HEAD_BYTES + size


@implementer(ISSLTransport)
class SecureServer(PlainServer):
    """A connection with TLS.

    ``options`` makes the OpenSSL side. ``on_refused`` is called if the handshake fails, unless we aborted it.
    """

    _up = False  # the handshake is done
    _reading = False
    _shaken = False  # OpenSSL has done the handshake; our last bytes of it may be unsent
    _stuck = False  # we must write before there is anything to read

    def __init__(self, options: ServerOptions, on_refused: OnRefused | None, over: socket.socket, *args: Any) -> None:
        self._on_refused = on_refused
        self._cause = Cause(options.wording)
        self._to_plaintext = options.to_plaintext
        self._tls: SSL.Connection = options.connection(self._cause)
        self._session = Session(self._tls)
        self._heard = b""  # the received part of a handshake record
        self._records = 0  # handshake records so far
        self._answered = False  # our half of the handshake has begun
        self._unsent = bytearray()  # bytes of our half
        self._quiet = 0  # messages since the last record of data
        self._quiet_most = _QUIET_MESSAGES
        super().__init__(over, *args)
        self._listener = self.protocol if isinstance(self.protocol, ReadListener) else None

    # -- for the protocol above ----------------------------------------------------------------------------------------

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """The protocol that both sides chose (ALPN)."""
        return self._tls.get_alpn_proto_negotiated() or None

    @property
    def offeredProtocols(self) -> Sequence[bytes]:
        """The protocols that the client offers (ALPN); none if the client knows nothing of ALPN."""
        return self._cause.offered

    def getPeerCertificate(self) -> X509 | None:
        """Return the certificate that the client showed."""
        return self._tls.get_peer_certificate()

    # -- reading ------------------------------------------------------------------------------------------------------

    def startReading(self) -> None:
        """Have the reactor call ``doRead`` when there is input."""
        self._reading = True
        super().startReading()

    def stopReading(self) -> None:
        """Leave further input in the socket."""
        self._reading = False
        super().stopReading()

    def doRead(self) -> Ending:
        """Continue the handshake, or read the input."""
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
        """Read a fair share of the available records.

        Only a protocol that needs the end of a read (ReadListener) pays for the last call, which finds nothing.
        """
        size, session = 0, self._session
        while True:
            data = session.read()
            if not data:
                return self._not_read()
            self._quiet = 0
            if not self.disconnecting:
                self.protocol.dataReceived(data)
            count = len(data)
            size += max(_MIN_COUNTED_BYTES, count)
            if not self._reading or size >= self.bufferSize or (self._listener is None and count < RECORD_BYTES):
                return None

    def _not_read(self) -> Ending:
        # The common cases are handled here: pyOpenSSL would raise an exception, which costs as much as a read.
        if self._quiet > self._quiet_most:
            what = "messages and no data" if self._quiet_most else "messages for another handshake, which is not done"
            return self._refuse(f"TLS: the peer sends {what}")
        error = self._session.error()
        if error == WANT_READ:
            return None
        if error == WANT_WRITE:
            self._wait_to_write()  # an answer to a KeyUpdate
            return None
        if error == ZERO_RETURN:
            return self._left()
        try:
            self._session.explain()
        except SSL.Error as reason:
            return self._failed(reason)
        return None

    def _wait_to_write(self) -> None:
        """Stop reading until the socket takes our bytes; meanwhile the reactor would call us in vain."""
        self._stuck = True
        super().stopReading()
        Server.startWriting(self)

    # -- the handshake ------------------------------------------------------------------------------------------------

    def _shake_hands(self) -> Ending:
        """Give OpenSSL the received records one by one, none beyond the handshake, and send its answers."""
        try:
            self._answer()
            while not self._shaken:
                ending = self._hear()
                if ending is not None:
                    return ending
                if self._answer() and not self._shaken:
                    return None  # the client has yet to read it
        except BlockingIOError:
            if self._unsent:
                self._wait_to_write()
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

    def _answer_plaintext(self, said: bytes) -> Exception:
        """Tell a client without TLS so, and end the connection."""
        with contextlib.suppress(OSError):
            self.socket.send(self._to_plaintext(said))
            self.socket.shutdown(socket.SHUT_WR)
        return self._failed(CONNECTION_LOST)

    def _hear(self) -> Ending:
        """Read what has come of the handshake, and have OpenSSL process it. Raises OSError and SSL.Error.

        What follows the handshake must stay in the socket. A client cannot end the handshake before we have answered;
        from then on the socket is looked at before it is read.
        """
        only_looked = self._answered
        piece = self.socket.recv(_FLIGHT_BYTES, socket.MSG_PEEK if only_looked else 0)
        if not piece:
            raise SSL.SysCallError(-1, "Unexpected EOF")
        heard, had = self._heard + piece, len(self._heard)
        if not self._records:
            self._cause.first = heard[:1]
        at = 0
        while not self._shaken and (end := at + _record_bytes(heard, at)) <= len(heard):
            if not self._records and heard[0] in _LETTERS:
                return self._answer_plaintext(heard[:_HEAD_BYTES])
            if self._records == _GREETING_RECORDS:
                return self._refuse(f"TLS: the peer cuts its handshake into more than {_GREETING_RECORDS} records")
            self._records += 1
            self._session.give(heard[at:end])
            if heard[at] != _CHANGE_CIPHER_SPEC or end == len(heard):
                self._step()
            at = end
        self._heard = b"" if self._shaken else heard[at:]
        if only_looked:
            self.socket.recv(at - had if self._shaken else len(piece))
        return None

    def _step(self) -> None:
        """Have OpenSSL process the given records. Raises SSL.Error."""
        session = self._session
        try:
            self._shaken = session.do_handshake()
            if not self._shaken and session.error() != WANT_READ:
                session.explain()
        finally:
            self._unsent += session.take()

    def _answer(self) -> bool:
        """Send our half. Returns False if there is none. Raises BlockingIOError if the socket does not take it."""
        if not self._unsent:
            return False
        self._answered = True
        while self._unsent:
            del self._unsent[: self.socket.send(self._unsent)]
        return True

    def _begin(self) -> None:
        """After the handshake: give OpenSSL the socket, and count its messages."""
        self._session.use_socket(self.fileno())
        self._up = True
        if self._tls.get_protocol_version() < SSL.TLS1_3_VERSION:
            self._quiet_most = 0  # such a message would be renegotiation, which we do not do
        self._session.listen(self)
        if self._waiting:
            super().startWriting()

    @property
    def refuses_messages(self) -> bool:
        """True if no message may come. Then the first step of a message counts, before OpenSSL reads the rest of it."""
        return not self._quiet_most

    def count_message(self) -> None:
        """Count a message without data. OpenSSL would read on as long as such messages come, so it is stopped."""
        self._quiet += 1
        if self._quiet > self._quiet_most:
            self._session.stop()

    # -- the end of reading -------------------------------------------------------------------------------------------

    def _left(self) -> Ending:
        """Answer the peer's close_notify: send the queued data, then our own close_notify."""
        if self._waiting:
            self.stopReading()
            self.disconnecting = 1
            return None
        with contextlib.suppress(SSL.Error):
            self._session.shutdown()
        return CONNECTION_DONE

    def _refuse(self, text: str) -> Exception:
        """End the connection because the peer broke one of our bounds."""
        self._failed(CONNECTION_LOST)
        return HandshakeFailed(RefusalKind.OTHER, text)

    def _failed(self, error: Exception) -> Exception:
        with contextlib.suppress(OSError):
            self.socket.recv(self.bufferSize)
        return self._cause.explain(error, self._tls.get_certificate()) or CONNECTION_LOST

    # -- writing ------------------------------------------------------------------------------------------------------

    def startWriting(self) -> None:
        """Have the reactor call ``doWrite`` when the socket is writable. Data is queued until then."""
        if self._up:
            super().startWriting()
        else:
            self._waiting = True

    def doWrite(self) -> Any:
        """Continue the handshake, or send the queued data."""
        if self._stuck:
            self._stuck = False
            if self._reading:
                super().startReading()
        if self._up:
            return super().doWrite()
        Server.stopWriting(self)
        return self.doRead()

    def writeSomeData(self, data: bytes | memoryview) -> Any:
        """Send as much of ``data`` as the socket takes. Returns the number of bytes, or why the connection ends."""
        sent, size, session = 0, len(data) if self._up else 0, self._session
        while sent < size:
            piece = bytes(data[sent : sent + RECORD_BYTES])  # no copy if that is all of it
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
        """Send close_notify after the queued data, then wait for the peer's. Input until then is dropped."""
        if not self.connected or self.disconnecting:
            return
        if not self._up and not self._waiting:
            self.abortConnection()
            return
        self.disconnecting = 1
        if not self._waiting and self._postLoseConnection() is not None:
            self.startWriting()  # then the reactor ends the connection

    def _postLoseConnection(self) -> Ending:
        """All data is sent: send close_notify once, then wait for the peer's."""
        if not self._writeDisconnected:
            try:
                if self._session.shutdown():
                    return CONNECTION_DONE
            except SSL.WantWriteError:
                self.startWriting()
                return None
            except SSL.Error:
                pass  # the next read finds the error
            self._writeDisconnected = True  # further data is dropped
        self.startReading()
        return None

    def readConnectionLost(self, reason: Failure) -> None:
        """End the connection: TLS cannot be half closed."""
        self.connectionLost(reason)

    def connectionLost(self, reason: Failure) -> None:
        """Report the end to the protocol, and a failed handshake to ``on_refused``."""
        if not hasattr(self, "socket"):
            return  # the end was reported
        self._session.forget()
        reported = self._aborting or (self._up and not isinstance(reason.value, HandshakeFailed))
        failed = None if reported else self._cause.ended(reason)
        super().connectionLost(reason if failed is None else Failure(failed))
        self._listener = None
        if failed is not None and self._on_refused is not None:
            try:
                self._on_refused(host_and_port(self.getPeer()), failed.kind, str(failed))
            except Exception:  # noqa: BLE001 - the last line of defence
                self._broken()


class SecureUnixServer(SecureServer, unix.Server):
    """A connection with TLS on a Unix socket."""
