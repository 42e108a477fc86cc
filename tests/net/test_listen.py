"""What a fault of our own in the first or last step of a connection ends: that connection, with one line in the log."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import gatherResults, maybeDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import LogEvent, capturedLogs

from notary.net.listen import adopt, listen
from notary.net.tls.contexts import ServerOptions, client_options, server_context
from tests.support.certs import Authority
from tests.support.tlsclient import connected
from tests.support.waiting import PATIENCE_SECONDS

QUEUED = 40
"""More than a port begins to serve in one turn of the reactor when it stops."""


class Greeter(Protocol):
    def connectionMade(self) -> None:
        self.transport.write(b"welcome")
        self.transport.loseConnection()


def failing_once(then: Callable[..., Any]) -> Callable[..., Any]:
    """A function that fails the first time that it is called."""
    outcomes: Iterator[Exception | None] = iter([ZeroDivisionError("of ours")])

    def called(*args: Any) -> Any:
        error = next(outcomes, None)
        if error is not None:
            raise error
        return then(*args)

    return called


def faults(logs: Iterable[LogEvent]) -> list[type[BaseException]]:
    """The exceptions that the lines which end a connection tell of. Twisted's own would not name the connection."""
    return [each["log_failure"].type for each in logs if each.get("log_failure") and "{peer}" in each["log_format"]]


class World:
    """``context`` and ``trusting`` are the two sides' TLS."""

    def __init__(self, folder: Path) -> None:
        root = Authority.root("root")
        self.context = server_context(*root.leaf("localhost").write(folder, "server"))
        self.trusting = client_options("localhost", root.write(folder, "root"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest_twisted.ensureDeferred
async def test_a_connection_for_which_no_protocol_can_be_made(world: World, tls: bool) -> None:
    factory = Factory.forProtocol(Greeter)
    factory.buildProtocol = failing_once(factory.buildProtocol)
    server, trusting = (ServerOptions(world.context), world.trusting) if tls else (None, None)
    port = await listen(reactor, "127.0.0.1", 0, factory, server)
    with capturedLogs() as logs:
        clients = [await connected(port.getHost().port, trusting) for _ in range(2)]
        for client in clients:
            await client.done
    await maybeDeferred(port.stopListening)
    assert [client.received for client in clients] == [b"", b"welcome"]
    assert faults(logs) == [ZeroDivisionError]


@pytest_twisted.ensureDeferred
async def test_such_a_connection_does_not_cost_others_theirs_when_a_port_stops() -> None:
    factory = Factory.forProtocol(Greeter)
    factory.buildProtocol = failing_once(factory.buildProtocol)
    with socket.create_server(("127.0.0.1", 0), backlog=10) as listening, ExitStack() as stack:
        port = adopt(reactor, listening, factory)
        clients = [
            stack.enter_context(socket.create_connection(listening.getsockname(), PATIENCE_SECONDS)) for _ in range(3)
        ]
        with capturedLogs() as logs:
            await maybeDeferred(port.stopListening)
        assert [client.recv(100) for client in clients] == [b"", b"welcome", b"welcome"]
    assert faults(logs) == [ZeroDivisionError]


@pytest_twisted.ensureDeferred
async def test_a_connection_whose_protocol_of_tls_cannot_be_chosen(world: World) -> None:
    world.context.set_alpn_select_callback(failing_once(lambda _, offered: offered[0]))
    port = await listen(reactor, "127.0.0.1", 0, Factory.forProtocol(Greeter), ServerOptions(world.context))
    with capturedLogs() as logs:
        clients = [await connected(port.getHost().port, world.trusting) for _ in range(2)]
        for client in clients:
            await client.done
    await maybeDeferred(port.stopListening)
    assert [client.received for client in clients] == [b"", b"welcome"]
    assert faults(logs) == [ZeroDivisionError]


@pytest_twisted.ensureDeferred
async def test_a_refusal_that_cannot_be_told(world: World) -> None:
    told: list[str] = []
    on_refused = failing_once(lambda peer, why, message: told.append(why))
    port = await listen(reactor, "127.0.0.1", 0, Factory.forProtocol(Greeter), ServerOptions(world.context), on_refused)
    with capturedLogs() as logs:
        for _ in range(2):
            client = await connected(port.getHost().port)
            client.transport.write(b"GET / HTTP/1.1\r\n\r\n")
            await client.done
        client = await connected(port.getHost().port, world.trusting)
        await client.done
    await maybeDeferred(port.stopListening)
    assert len(told) == 1
    assert client.received == b"welcome"
    assert faults(logs) == [ZeroDivisionError]


@pytest_twisted.ensureDeferred
async def test_a_port_is_closed_before_a_stop_serves_its_queue() -> None:
    """Clients that are served connect again: a queue that is emptied by serving it may never be empty."""
    again: list[type[OSError] | None] = []

    class Returning(Protocol):
        def connectionMade(self) -> None:
            try:
                socket.create_connection(("127.0.0.1", port.getHost().port), PATIENCE_SECONDS).close()
            except OSError as error:
                again.append(type(error))
            else:
                again.append(None)
            self.transport.loseConnection()

    port: Any = await listen(reactor, "127.0.0.1", 0, Factory.forProtocol(Returning))
    address = ("127.0.0.1", port.getHost().port)
    port.getHost = lambda: IPv4Address("TCP", *address)
    with ExitStack() as stack:
        for _ in range(QUEUED):
            stack.enter_context(socket.create_connection(address))
        await gatherResults([port.stopListening(), port.stopListening()])
    assert again == [ConnectionRefusedError] * QUEUED


@pytest_twisted.ensureDeferred
async def test_a_port_closes_in_the_turn_in_which_it_accepts_for_the_last_time() -> None:
    """A connection that arrived in a turn between the two would be reset."""
    made: list[Protocol] = []

    class Counting(Protocol):
        def connectionMade(self) -> None:
            made.append(self)

    port: Any = await listen(reactor, "127.0.0.1", 0, Factory.forProtocol(Counting))
    with socket.create_connection(("127.0.0.1", port.getHost().port)):
        stopped = port.stopListening()  # no turn of the reactor has passed since the client has connected
        assert (len(made), port.connected, stopped.called) == (1, False, True)
        for each in made:
            each.transport.abortConnection()
    await stopped
