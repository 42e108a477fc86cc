"""Listening ports: bound here, or passed by a service manager.

Rules of this module: a port that cannot be bound is an error that names the address. Connections of a port write at
once (:mod:`notary.net.tcp`); with TLS they are those of :mod:`notary.net.tls.transport`.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast

from twisted.internet import unix
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, ILoggingContext, IProtocolFactory
from twisted.internet.main import CONNECTION_DONE
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.task import deferLater
from twisted.internet.tcp import Port, Server
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from notary.net.address import host_and_port, join
from notary.net.refusals import OnRefused
from notary.net.tcp import PlainServer, PlainUnixServer, no_delay
from notary.net.tls.contexts import ServerOptions
from notary.net.tls.peers import is_address
from notary.net.tls.transport import SecureServer, SecureUnixServer
from notary.work.reactor import Reactor

_log = Logger()

_BACKLOG: Final = 1024
_MOST_TAKEN: Final = 4 * _BACKLOG  # connections that a stopping port takes from its queue
_ACCEPTS_PER_TURN: Final = 16  # of these, connections that it begins to serve in one reactor turn
_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


@implementer(IProtocolFactory, ILoggingContext)
class _Contained:
    """A factory whose faults end the one connection that was to have a protocol: Twisted would leave it open."""

    def __init__(self, factory: IProtocolFactory) -> None:
        self._factory = factory
        self.doStart = factory.doStart
        self.doStop = factory.doStop

    def buildProtocol(self, addr: IAddress) -> Any:
        """Return the protocol of a new connection, None to close it."""
        try:
            return self._factory.buildProtocol(addr)
        except Exception:  # noqa: BLE001 - the last line of defence
            _log.failure("a connection of {peer} cannot be served and is ended", peer=host_and_port(addr))
            return None

    def logPrefix(self) -> str:
        """Return the name of the factory."""
        return type(self._factory).__name__


class _Closed:
    """Stands for a listening socket that is closed: the connections that its queue held can be accepted still."""

    def __init__(self, listening: socket.socket, *, empty: bool) -> None:
        self._queue: deque[tuple[socket.socket, Any]] = deque()
        if empty:
            self._take(listening)
        # At once: a connection that arrives after the last one was taken is reset. And without a shutdown, which would
        # end the port of other processes that share the socket, and of a service manager.
        listening.close()

    def _take(self, listening: socket.socket) -> None:
        # Clients that wait for an answer do not connect again: the queue has an end.
        for _ in range(_MOST_TAKEN):
            try:
                self._queue.append(listening.accept())
            except ConnectionAbortedError:
                continue
            except OSError:
                return

    def __len__(self) -> int:
        return len(self._queue)

    def accept(self) -> tuple[socket.socket, Any]:
        """Return a connection and its address."""
        if not self._queue:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return self._queue.popleft()

    def shutdown(self, how: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _AcceptsAll(Port):
    """A port that accepts the connections in its queue before it closes; a close of the socket would reset them.

    A port that does not read (the parent of workers has one) leaves the queue to the processes that share the socket.
    """

    def stopListening(self) -> Deferred[None]:  # type: ignore[override]
        """Take the queued connections and close, then serve these, a few in each reactor turn."""
        return Deferred.fromCoroutine(self._close_and_serve())

    async def _close_and_serve(self) -> None:
        if not self.connected or self.disconnecting:
            return
        self.disconnecting = True
        clock: Any = self.reactor
        readers: list[Any] = clock.getReaders()
        is_reading = self in readers
        self.stopReading()
        taken = _Closed(self.socket, empty=is_reading)
        self.socket = cast("Any", taken)
        while taken:
            self.numberAccepts = _ACCEPTS_PER_TURN
            super().doRead()
            if taken:
                await deferLater(clock, 0)
        self.connectionLost(Failure(CONNECTION_DONE))


class _Port(_AcceptsAll):
    """A port whose connections write at once. On "::" it takes IPv4 too, on every system."""

    def createInternetSocket(self) -> socket.socket:
        """Return a socket that is not bound yet."""
        made: socket.socket = super().createInternetSocket()
        if self.interface == "::":
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        no_delay(made)
        return made

    def doRead(self) -> None:
        """Accept one connection, so that another worker can accept the next while this one does the handshake."""
        self.numberAccepts = 1
        super().doRead()


class _UnixPort(_AcceptsAll, unix.Port):
    """A Unix socket that a service manager passed. Its file belongs to the service manager and stays."""

    def connectionLost(self, reason: Failure) -> None:
        """Close the port."""
        Port.connectionLost(self, reason)


class CannotUseAddress(CannotListenError):
    """An address cannot be listened on. ``name`` is the setting that gave the address."""

    def __init__(self, name: str, error: CannotListenError) -> None:
        super().__init__(error.interface, error.port, error.socketError)
        self.name = name

    def __str__(self) -> str:
        """Name the setting, the address and the cause."""
        cause = getattr(self.socketError, "strerror", None) or str(self.socketError)
        address = join(self.interface or "", self.port)
        return f"{self.name}: {address} cannot be used ({cause}); expected an address of this host, and a free port"


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Raise CannotUseAddress, which names the setting, in place of CannotListenError."""
    try:
        yield
    except CannotListenError as error:
        raise CannotUseAddress(name, error) from None


def listen(
    reactor: Reactor,
    host: str,
    port: int,
    factory: IProtocolFactory,
    tls: ServerOptions | None = None,
    on_refused: OnRefused | None = None,
) -> Deferred[IListeningPort]:
    """Listen on ``host`` and ``port``, with TLS if ``tls`` is given; ``on_refused`` is called for failed handshakes.

    ``host`` is an IP address, a name, or "" for every interface, IPv6 and IPv4 (IPv4 alone where there is no IPv6);
    ``port`` 0 means any. Fails with CannotListenError.
    """
    return maybeDeferred(_listen, reactor, host, port, factory, _transport(PlainServer, SecureServer, tls, on_refused))


def adopt(
    reactor: Reactor,
    listening: socket.socket,
    factory: IProtocolFactory,
    tls: ServerOptions | None = None,
    on_refused: OnRefused | None = None,
) -> IListeningPort:
    """Serve a socket that listens already, of TCP or of the Unix domain; otherwise as `listen`.

    The port has a descriptor of its own: ``listening`` stays open, and listening, when the port stops.
    """
    number, family = listening.fileno(), listening.family
    # As reactor.adoptStreamPort does, which makes ports of the stock kinds only.
    port: Any
    if family == socket.AF_UNIX:
        port = _UnixPort._fromListeningDescriptor(reactor, number, _Contained(factory))  # noqa: SLF001
        port.transport = _transport(PlainUnixServer, SecureUnixServer, tls, on_refused)
    else:
        port = _Port._fromListeningDescriptor(reactor, number, family, _Contained(factory))  # noqa: SLF001
        port.transport = _transport(PlainServer, SecureServer, tls, on_refused)
    no_delay(listening)
    listening.setblocking(False)  # several processes share it, and only one of them gets each connection
    port.startListening()
    return cast("IListeningPort", port)


def _transport(
    plain: type[PlainServer], secure: type[SecureServer], tls: ServerOptions | None, on_refused: OnRefused | None
) -> Callable[..., Server]:
    """Return the class, or the function, that makes the connections of a port."""
    return plain if tls is None else partial(secure, tls, on_refused)


def _listen(
    reactor: Reactor, host: str, port: int, factory: IProtocolFactory, transport: Callable[..., Server]
) -> IListeningPort:
    if host:
        return _bind(reactor, _resolve(host, port), port, factory, transport)
    try:
        return _bind(reactor, "::", port, factory, transport)
    except CannotListenError as error:
        if error.socketError.errno not in _NO_IPV6:
            raise
        return _bind(reactor, "0.0.0.0", port, factory, transport)  # noqa: S104 - what "every interface" means


def _bind(
    reactor: Reactor, interface: str, port: int, factory: IProtocolFactory, transport: Callable[..., Server]
) -> IListeningPort:
    if not isinstance(cast("object", reactor), PosixReactorBase):
        if transport is not PlainServer:
            raise TypeError("TLS is there for the reactors of POSIX only")
        return reactor.listenTCP(port, cast("Any", factory), _BACKLOG, interface)
    bound: Any = _Port(port, _Contained(factory), _BACKLOG, interface, reactor)
    bound.transport = transport
    bound.startListening()
    return cast("IListeningPort", bound)


def _resolve(host: str, port: int) -> str:
    """Return one address of a host, IPv4 if it has one, as Go does."""
    if is_address(host):
        return host
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise CannotListenError(host, port, error) from None
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(found[0][4][0])
