"""A network between simulated processes: every connection delays, splits and joins what is sent, and may break.

Rules of this module: a connection behaves as a TCP socket under Twisted does. What is sent arrives in order, or the
connection ends. Writing to a closed socket resets it, and a reset loses what was on its way.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    TimeoutError,
    UserError,
)
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IListeningPort,
    IPushProducer,
    ITCPTransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.simulation.scheduler import Event, Host, World

HIGH_BYTES = 1 << 16
"""How much a socket takes before its producer must pause."""


class Faults:
    """How the network behaves now."""

    def __init__(self) -> None:
        self.latency = 0.001
        self.split = 0.1
        """The chance that what has arrived is read in pieces."""


class Network:
    """All ports and connections."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.faults = Faults()
        self.parted: set[frozenset[str]] = set()
        """The pairs of names of hosts between which nothing goes."""
        self.links: dict[Link, None] = {}
        self._ports: dict[tuple[str, int], Port] = {}
        self._addresses: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._random = world.random("network")
        self._client_port = 20000
        self._number = 0

    def address(self, name: str) -> str:
        """Return the IP address of a host."""
        if name in self._names:
            return name
        if name not in self._addresses:
            self._addresses[name] = f"10.0.0.{len(self._addresses) + 1}"
            self._names[self._addresses[name]] = name
        return self._addresses[name]

    def name(self, address: str) -> str:
        return self._names.get(address, address)

    def listen(self, reactor: Any, port: int, factory: Any) -> Port:
        key = (reactor.host.name, port)
        assert key not in self._ports or self._ports[key].host.dead, f"{key} is in use"
        made = self._ports[key] = Port(self, reactor.host, port, factory)
        factory.doStart()
        return made

    def close_port(self, port: Port) -> None:
        if self._ports.get((port.host.name, port.port)) is port:
            del self._ports[port.host.name, port.port]

    def connect(self, reactor: Any, address: str, port: int, factory: Any, timeout: float) -> Connector:
        connector = Connector(self, reactor.host, self.name(address), port, factory, timeout)
        connector.begin()
        return connector

    def port_of(self, name: str, port: int) -> Port | None:
        found = self._ports.get((name, port))
        return None if found is None or found.host.dead else found

    def is_parted(self, one: str, other: str) -> bool:
        return bool(self.parted) and frozenset((one, other)) in self.parted

    def delay(self) -> float:
        return self._random.expovariate(1 / self.faults.latency)

    def next_port(self) -> int:
        self._client_port += 1
        return self._client_port

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def part(self, one: str, other: str) -> None:
        self.parted.add(frozenset((one, other)))

    def heal(self) -> None:
        """Let everything through again."""
        self.parted.clear()
        self.faults = Faults()
        for link in list(self.links):
            link.wake()

    def reset(self, link: Link) -> None:
        """End a connection on both sides."""
        for end in link.ends:
            end.reset_in(self.delay())

    def host_died(self, host: Host) -> None:
        for key in [key for key, port in self._ports.items() if port.host is host]:
            del self._ports[key]
        for link in list(self.links):
            for end, other in (link.ends, link.ends[::-1]):
                if end.host is host:
                    end.gone = True
                    other.reset_in(self.delay())
            link.forget_if_over()


@implementer(IListeningPort)
class Port:
    """A listening port."""

    def __init__(self, network: Network, host: Host, port: int, factory: Any) -> None:
        self.host = host
        self.port = port
        self.factory = factory
        self._network = network
        self._waiting: list[End] = []

    def queue(self, end: End) -> None:
        """The kernel has a new connection; the process accepts it in its next turn."""
        self._waiting.append(end)
        self._network.world.put(self.host, self._network.world.now, self._accept)

    def _accept(self) -> None:
        while self._waiting:
            end = self._waiting.pop(0)
            protocol = None if end.is_lost else self.factory.buildProtocol(end.far)
            if protocol is None:
                end.gone = True
                end.peer.reset_in(self._network.delay())
            else:
                end.protocol = protocol
                end.begin()

    def startListening(self) -> None:
        pass

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", self._network.address(self.host.name), self.port)

    def stopListening(self) -> Deferred[None]:
        self._accept()  # as the ports of notary.net.listen do
        self._network.close_port(self)
        self.factory.doStop()
        return succeed(None)


class Connector:
    """An attempt to connect, as Twisted's IConnector."""

    def __init__(self, network: Network, host: Host, name: str, port: int, factory: Any, timeout: float) -> None:
        self._network = network
        self._host = host
        self._name = name
        self._port = port
        self._timeout = timeout
        self.factory = factory
        self.transport: End | None = None
        self._timer: Event | None = None
        self._is_over = False

    def begin(self) -> None:
        world = self._network.world
        self.factory.doStart()
        self.factory.startedConnecting(self)
        self._timer = world.later(self._host, self._timeout, self._fail, TimeoutError())
        self._try()

    def _try(self) -> None:
        network = self._network
        if not self._is_over:
            if network.is_parted(self._host.name, self._name):
                network.world.later(self._host, 1.0, self._try)
            else:
                network.world.later(self._host, network.delay(), self._arrive)

    def _arrive(self) -> None:
        network = self._network
        if self._is_over:
            return
        port = network.port_of(self._name, self._port)
        if port is None:
            self._fail(ConnectionRefusedError())
            return
        self._end()
        link = Link(network, self._host, port.host)
        client, server = link.ends
        near = IPv4Address("TCP", network.address(self._host.name), network.next_port())
        client.near, client.far, server.near, server.far = near, port.getHost(), port.getHost(), near
        network.world.tell(f"connect {link.name}")
        port.queue(server)
        protocol = self.factory.buildProtocol(port.getHost())
        if protocol is None:
            link.forget()
            return
        client.protocol, client.connector = protocol, self
        self.transport = client
        client.begin()

    def _fail(self, error: Exception) -> None:
        if not self._is_over:
            self._end()
            self.factory.clientConnectionFailed(self, Failure(error))
            self.factory.doStop()

    def _end(self) -> None:
        self._is_over = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def stopConnecting(self) -> None:
        self._fail(UserError())

    def disconnect(self) -> None:
        if self.transport is None:
            self.stopConnecting()
        else:
            self.transport.loseConnection()

    def getDestination(self) -> IPv4Address:
        return IPv4Address("TCP", self._network.address(self._name), self._port)


class Link:
    """One connection: two ends."""

    def __init__(self, network: Network, one: Host, other: Host) -> None:
        self.network = network
        self.number = network.next_number()
        self.name = f"{one.name}>{other.name}#{self.number}"
        first, second = End(self, one), End(self, other)
        first.peer, second.peer = second, first
        self.ends = (first, second)
        network.links[self] = None

    def wake(self) -> None:
        for end in self.ends:
            end.schedule()

    def forget_if_over(self) -> None:
        if all(end.is_lost or end.gone for end in self.ends):
            self.forget()

    def forget(self) -> None:
        self.network.links.pop(self, None)


@implementer(ITCPTransport, IConsumer, IPushProducer)
class End:
    """One end of a connection: a transport. ``buffer`` holds what this end has written and the peer has not read."""

    peer: End
    near: IPv4Address
    far: IPv4Address

    def __init__(self, link: Link, host: Host) -> None:
        self.link = link
        self.world: World = link.network.world
        self.host = host
        self.protocol: Any = None
        self.connector: Connector | None = None
        self.buffer = bytearray()
        self.connected = 0
        self.disconnecting = False
        self.is_lost = False
        self.gone = False
        """True if the process of this end is dead: it has no protocol any more."""
        self.fin_sent = False
        self.fin_read = False
        self.paused = False
        self.producer: Any = None
        self.streaming = False
        self.producer_paused = False
        self._delivery: Event | None = None
        self._next_at = 0.0

    def begin(self) -> None:
        if self.is_lost:
            return
        self.connected = 1
        self.protocol.makeConnection(self)
        self.peer.schedule()

    # -- what is sent -------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self.is_lost or self.fin_sent or not data:
            return
        self.buffer += data
        if len(self.buffer) > HIGH_BYTES and self.producer is not None and not self.producer_paused and self.streaming:
            self.producer_paused = True
            self.producer.pauseProducing()
        self.schedule()

    def writeSequence(self, iovec: Any) -> None:
        self.write(b"".join(iovec))

    def schedule(self) -> None:
        """See that the peer reads what is there for it."""
        peer = self.peer
        if self._delivery is not None or not (self.buffer or (self.fin_sent and not peer.fin_read)):
            return
        network = self.link.network
        if network.is_parted(self.host.name, peer.host.name) or peer.paused or not (peer.connected or peer.gone):
            return
        self._next_at = max(self._next_at, self.world.now + network.delay())
        host = peer.host if not peer.gone else self.host
        self._delivery = self.world.put(host, self._next_at, self._deliver)

    def _deliver(self) -> None:
        self._delivery = None
        peer, network = self.peer, self.link.network
        if network.is_parted(self.host.name, peer.host.name) or self.gone_or_reset:
            return
        if peer.is_lost or peer.gone:
            if self.buffer:  # nobody reads this any more
                self.buffer.clear()
                self.reset_in(network.delay())
            self._drained()
            return
        if peer.paused:
            return
        if self.buffer:
            random = network._random
            size = len(self.buffer)
            if size > 1 and random.random() < network.faults.split:
                size = random.randrange(1, size)
            data = bytes(self.buffer[:size])
            del self.buffer[:size]
            self.world.tell(f"{self.link.name} {self.host.name} {size}")
            peer.protocol.dataReceived(data)
            self._drained()
            self.schedule()
        elif self.fin_sent and not peer.fin_read:
            peer.fin_read = True
            self.world.tell(f"{self.link.name} {self.host.name} end")
            peer.read_end()

    @property
    def gone_or_reset(self) -> bool:
        return self.is_lost and not self.fin_sent

    def _drained(self) -> None:
        """Go on after the buffer became smaller."""
        if self.is_lost:
            return
        if (
            self.producer is not None
            and len(self.buffer) <= HIGH_BYTES // 2
            and (self.producer_paused or not self.streaming)
        ):
            self.producer_paused = False
            self.producer.resumeProducing()
        elif self.disconnecting:
            self._close_if_sent()

    # -- what ends ----------------------------------------------------------------------------------------------------

    def read_end(self) -> None:
        """The peer sends no more."""
        if self.is_lost:
            return
        if IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.readConnectionLost()
            if self.fin_sent:
                self._lose(ConnectionDone())
        else:
            self.fin_sent = True
            self._lose(ConnectionDone())

    def loseConnection(self, _reason: Any = None) -> None:
        if self.is_lost or self.disconnecting:
            return
        self.disconnecting = True
        self.world.put(self.host, self.world.now, self._close_if_sent)

    def _close_if_sent(self) -> None:
        """Close once the kernel has taken everything."""
        if not self.is_lost and len(self.buffer) <= HIGH_BYTES and not self.producer_paused:
            unread = self.peer.buffer and self.paused
            self.fin_sent = True
            if unread:
                self.buffer.clear()
                self.peer.reset_in(self.link.network.delay())
            else:
                self.schedule()
            self._lose(ConnectionDone())

    def loseWriteConnection(self) -> None:
        if not self.fin_sent and not self.is_lost:
            self.fin_sent = True
            self.schedule()
            if self.fin_read:
                self.world.put(self.host, self.world.now, self._lose, (ConnectionDone(),))

    def abortConnection(self) -> None:
        if self.is_lost:
            return
        self.buffer.clear()
        self.peer.reset_in(self.link.network.delay())
        self.disconnecting = True
        self.fin_sent = False
        self.world.put(self.host, self.world.now, self._lose, (ConnectionAborted(),))

    def reset_in(self, seconds: float) -> None:
        """End this side by a reset, which loses what it has not read."""
        self.world.put(self.host, self.world.now + seconds, self._reset)

    def _reset(self) -> None:
        if self.link.network.is_parted(self.host.name, self.peer.host.name):
            self.reset_in(1.0)
            return
        self.peer.buffer.clear()
        if self.connected or self.protocol is None:
            self._lose(ConnectionLost())
        elif not self.is_lost:
            self.reset_in(0.001)

    def _lose(self, error: Exception) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        self.connected = 0
        if not self.fin_sent:
            self.buffer.clear()
        protocol, self.protocol = self.protocol, None
        self.producer = None
        self.world.tell(f"{self.link.name} {self.host.name} lost")
        self.link.forget_if_over()
        if protocol is None or self.gone:
            return
        protocol.connectionLost(Failure(error))
        if self.connector is not None:
            self.connector.factory.clientConnectionLost(self.connector, Failure(error))
            self.connector.factory.doStop()
        # What this side has not read answers the peer with a reset, as a kernel does.
        if self.peer.buffer and not self.peer.is_lost:
            self.peer.schedule()

    # -- producers and consumers --------------------------------------------------------------------------------------

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.producer is not None:
            raise RuntimeError("there is a producer already")
        self.producer, self.streaming = producer, streaming
        self.producer_paused = False
        if self.is_lost:
            producer.stopProducing()
        elif not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self.producer = None
        self.producer_paused = False
        if self.disconnecting:
            self.world.put(self.host, self.world.now, self._close_if_sent)

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        if not self.is_lost:
            self.peer.schedule()

    def stopProducing(self) -> None:
        self.loseConnection()

    # -- addresses ----------------------------------------------------------------------------------------------------

    def getPeer(self) -> IPv4Address:
        return self.far

    def getHost(self) -> IPv4Address:
        return self.near

    def setTcpNoDelay(self, enabled: Any) -> None:
        pass

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpKeepAlive(self, enabled: Any) -> None:
        pass

    def getTcpKeepAlive(self) -> bool:
        return False
