"""The client's side of TLS, which tells the protocol above why a handshake failed.

Rules of this module: the protocol above gets a :class:`~notary.net.refusals.HandshakeFailed` in place of OpenSSL's
error, as from the server's side (:mod:`notary.net.tls.transport`).
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IProtocolFactory, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from notary.net.tcp import ReadListener
from notary.net.tls.verdicts import Cause
from notary.net.tls.wording import PLAIN, Wording


class Handshake(TLSMemoryBIOProtocol):
    """The client's side of TLS, as Twisted does it, with an explanation when it fails.

    Twisted's default protocol collects small writes for a reactor turn; our writes are collected already.
    """

    factory: HandshakeFactory

    # Twisted has no public way to see the cause of a failure before the connection is lost, or whether a handshake is
    # done. Its own subclass uses these names.
    _handshakeDone: bool
    _aborted: bool
    _reason: Failure | None
    _tlsConnection: SSL.Connection

    def __init__(self, factory: HandshakeFactory, *args: Any) -> None:
        super().__init__(factory, *args)
        self.cause = Cause(factory.wording)

    def dataReceived(self, data: bytes) -> None:
        """Process received bytes: note the first one, and tell a ReadListener the end of the read."""
        if not self.cause.first:
            self.cause.first = data[:1]
        protocol = self.wrappedProtocol
        if not isinstance(protocol, ReadListener):
            super().dataReceived(data)
            return
        protocol.reading = True
        try:
            super().dataReceived(data)
        finally:
            protocol.reading = False
        protocol.readEnded()

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        if reason is not None and self._reason is None:
            explained = self.cause.explain(reason.value, self._tlsConnection.get_certificate())
            if explained is not None:
                self._reason = Failure(explained)
                reason = None
        super()._tlsShutdownFinished(reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Report the end to the protocol above, with the reason of a failed handshake."""
        if not self._handshakeDone and not self._aborted:
            failed = self.cause.ended(self._reason or reason)
            if failed is not None:
                self._reason = Failure(failed)
        super().connectionLost(reason)


class HandshakeFactory(TLSMemoryBIOFactory):
    """Puts :class:`Handshake` under the client's protocols of another factory.

    ``creator`` makes the OpenSSL side; its ``wording``, if it has one, names the settings in messages.
    """

    protocol = Handshake

    def __init__(
        self, creator: IOpenSSLClientConnectionCreator, wrapped: IProtocolFactory, clock: IReactorTime
    ) -> None:
        super().__init__(creator, isClient=True, wrappedFactory=wrapped, clock=clock)
        self.wording: Wording = getattr(creator, "wording", PLAIN)
