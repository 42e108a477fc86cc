"""A reactor for each simulated process: timers, threads, processes and TCP of the simulated world.

Rules of this module: it has the interfaces that the program asks for (notary.work.reactor), and no others.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable
from io import BytesIO
from types import SimpleNamespace
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import (
    IHostnameResolver,
    IReactorCore,
    IReactorPluggableNameResolver,
    IReactorProcess,
    IReactorTCP,
    IReactorThreads,
    IReactorTime,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from notary.work import processes
from notary.work.machine import Machine
from tests.simulation.network import Network
from tests.simulation.scheduler import Event, Host, World


class ThreadPool:
    """A pool of virtual threads: at most ``most`` run at a time."""

    def __init__(self, world: World, host: Host, name: str, most: int) -> None:
        self._world = world
        self._host = host
        self._name = name
        self._free = list(range(most, 0, -1))
        self._waiting: deque[Callable[[], object]] = deque()
        self._busy = 0
        self.started = False
        self.stopped = False

    def start(self) -> None:
        self.started = True
        self._next()

    def stop(self) -> None:
        """Wait for the given work, in a thread of another pool, as Twisted's own pool does."""
        self.stopped = True
        while self._world.thread is not None and not self._host.dead and (self._waiting or self._busy):
            self._world.pause(0.001)

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def adjustPoolsize(self, minthreads: Any = None, maxthreads: Any = None) -> None:
        pass

    def callInThread(self, func: Callable[..., Any], *args: Any, **kw: Any) -> None:
        self.callInThreadWithCallback(None, func, *args, **kw)

    def callInThreadWithCallback(self, on_result: Any, func: Callable[..., Any], *args: Any, **kw: Any) -> None:
        if self.stopped:
            return

        def work() -> None:
            try:
                result = func(*args, **kw)
                ok = True
            except Exception:  # noqa: BLE001 - as Twisted's own pool does
                result, ok = Failure(), False
            if on_result is not None:
                on_result(ok, result)

        self._waiting.append(work)
        if self.started:
            self._next()

    def _next(self) -> None:
        while self._waiting and self._free:
            slot, work = self._free.pop(), self._waiting.popleft()

            def run(slot: int = slot, work: Callable[[], object] = work) -> None:
                try:
                    work()
                finally:
                    self._free.append(slot)
                    self._busy -= 1
                    self._next()

            self._busy += 1
            self._world.spawn(self._host, f"{self._name}/{slot}", run)


@implementer(IHostnameResolver)
class Resolver:
    """Knows the addresses of all processes by their names."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Any = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        found = SimpleNamespace(name=hostName, cancel=lambda: None)
        resolutionReceiver.resolutionBegan(found)
        resolutionReceiver.addressResolved(IPv4Address("TCP", self._network.address(hostName), portNumber))
        resolutionReceiver.resolutionComplete()
        return found


@implementer(IReactorCore, IReactorTime, IReactorThreads, IReactorProcess, IReactorTCP, IReactorPluggableNameResolver)
class Reactor:
    """The event loop of one process."""

    running = True
    installNameResolver = None

    def __init__(self, world: World, network: Network, host: Host) -> None:
        self.world = world
        self.host = host
        self._network = network
        self.nameResolver = Resolver(network)
        self._pools = 0
        self._triggers: list[object] = []
        self._pool = self.make_pool(0, 10)
        self._pool.start()

    def machine(self) -> Machine:
        """The machine of this process."""
        world = self.world
        return Machine(
            time_of_day=lambda: world.utc_now().timestamp(),
            random=world.random(f"machine/{self.host.name}"),
            thread_pool=self.make_pool,
            thread_id=world.thread_id,
            sleep=world.pause,
        )

    def make_pool(self, _least: int, most: int) -> ThreadPool:
        self._pools += 1
        return ThreadPool(self.world, self.host, f"{self.host.name}/{self._pools}", most)

    # -- time ---------------------------------------------------------------------------------------------------------

    def seconds(self) -> float:
        return self.world.now

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kw: Any) -> Event:
        assert delay >= 0, delay
        event = self.world.put(self.host, self.world.now + delay, callable, args, kw)
        if not self.host.dead:
            event.is_timer = True
            self.world.timers[event] = None
        return event

    def getDelayedCalls(self) -> list[Event]:
        return [event for event in self.world.timers if event.host is self.host]

    # -- the core -----------------------------------------------------------------------------------------------------

    def callWhenRunning(self, callable: Callable[..., Any], *args: Any, **kw: Any) -> object:
        return callable(*args, **kw)

    def addSystemEventTrigger(self, phase: str, eventType: str, callable: Any, *args: Any, **kw: Any) -> object:
        trigger = (phase, eventType, callable)
        self._triggers.append(trigger)
        return trigger

    def removeSystemEventTrigger(self, triggerID: Any) -> None:
        self._triggers.remove(triggerID)

    # -- threads ------------------------------------------------------------------------------------------------------

    def callFromThread(self, callable: Callable[..., Any], *args: Any, **kw: Any) -> None:
        world = self.world
        delay = world.random(f"threads/{self.host.name}").expovariate(2000)
        world.put(self.host, world.now + delay, callable, args, kw)

    callInThread = callFromThread

    def getThreadPool(self) -> ThreadPool:
        return self._pool

    # -- processes ----------------------------------------------------------------------------------------------------

    def spawnProcess(self, processProtocol: Any, executable: Any, args: Any = (), **_: Any) -> Any:
        """Run the child of :mod:`notary.work.processes`; no other program is started by a daemon."""
        child = _Child(self, processProtocol)
        processProtocol.makeConnection(child)
        return child

    # -- TCP ----------------------------------------------------------------------------------------------------------

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        return self._network.listen(self, port, factory)

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None) -> Any:
        return self._network.connect(self, host, port, factory, timeout)


class _Child:
    """A process that computes one function; what it is sent is read when all of it is there."""

    def __init__(self, reactor: Reactor, protocol: Any) -> None:
        self._reactor = reactor
        self._protocol = protocol
        self._input = BytesIO()
        self._producer: Any = None
        self._killed = False

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._producer = producer
        self._reactor.callFromThread(self._pull)

    def unregisterProducer(self) -> None:
        self._producer = None

    def _pull(self) -> None:
        if self._producer is not None and not self._killed:
            self._producer.resumeProducing()
            self._reactor.callFromThread(self._pull)

    def write(self, data: bytes) -> None:
        self._input.write(data)

    def closeStdin(self) -> None:
        self._reactor.callFromThread(self._compute)

    def signalProcess(self, signal: str) -> None:
        if not self._killed:
            self._killed = True
            error = processes.OffloadFailed("killed")
            self._reactor.callFromThread(self._protocol.processEnded, Failure(error))

    def _compute(self) -> None:
        if self._killed:
            return
        self._killed = True
        source = BytesIO(self._input.getvalue())
        _, _, size, count = processes._HEAD.unpack(source.read(processes._HEAD.size))
        answer, large = processes._called(source, size, count)
        numbers = {id(value): number for number, value in enumerate(large)}
        written = BytesIO()
        processes._Pickler(written, lambda value: numbers.get(id(value))).dump(answer)
        assert pickle.HIGHEST_PROTOCOL
        self._protocol.outReceived(written.getvalue())
        self._reactor.callFromThread(self._protocol.processEnded, Failure(ProcessDone(0)))
