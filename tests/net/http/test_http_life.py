"""Connections over time: slow clients, slow readers, and clients that leave."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import ClassVar

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from notary.net.http.site import Call, HttpLimits, Response
from notary.net.listen import listen
from tests.support.rawhttp import (
    Server,
    answers,
    chunked,
    get,
    post,
    served,
)


@pytest.fixture
def server() -> Iterator[Server]:
    yield from served()


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "seconds", "status"),
    [
        pytest.param([b""], 10, None, id="silence"),
        pytest.param([b"G"] + [b"E"] * 20, 10, 408, id="head-in-drops"),
        pytest.param([get()[:-2]], 10, 408, id="half-a-head"),
        pytest.param([get(b"/", b"Content-Length: 9")], 30, 408, id="no-body"),
        pytest.param([get(b"/", b"Content-Length: 99", method=b"POST")] + [b"x"] * 60, 31, 408, id="body-in-drops"),
        pytest.param([chunked(b"")] + [b"1\r\nx\r\n"] * 60, 31, 408, id="chunks-in-drops"),
    ],
)
def test_slow_requests(server: Server, sent: list[bytes], seconds: int, status: int | None) -> None:
    peer = server.connect(tcp=True)
    for second in range(seconds):
        assert not peer.transport.value(), second
        peer.send(sent[second] if second < len(sent) else b"")
        server.clock.advance(1)
    if status is None:
        assert peer.transport.value() == b""
        assert server.events == []
    else:
        assert peer.answer.status == status
        assert [event[2] for event in server.events] == [status]
        assert peer.transport.write_closed
        server.wait(5)
    assert peer.closed


def test_a_body_that_makes_progress_has_time() -> None:
    server = Server(limits=HttpLimits(body=100_000, body_rate=64))
    body = b"x" * 29 * 64 * 50
    peer = server.connect().send(post(body)[: -len(body)])
    for _ in range(50):
        server.wait(29)
        peer.send(b"x" * 29 * 64)
    assert peer.answer.status == 200
    assert server.calls[0].body == body
    peer.transport.loseConnection()


@pytest.mark.parametrize(
    ("first", "drops"),
    [
        pytest.param(b"", [b"x" * 1024] + [b""] * 24, id="a-kilobyte-now-and-then"),
        pytest.param(b"x" * 900_000, [b"x" * 500], id="a-little-too-slowly-after-a-quick-start"),
        pytest.param(b"", [b"x"], id="byte-by-byte"),
    ],
)
def test_a_body_must_keep_up_a_rate(first: bytes, drops: list[bytes]) -> None:
    """Progress is not enough: a client that may hold what it sent for hours needs to send very little."""
    server = Server(limits=HttpLimits(body=1_000_000, body_rate=1024, body_seconds=30))
    peer = server.connect().send(post(b"x" * 1_000_000)[:-1_000_000] + first)
    sent = 0
    while not peer.answers and sent < 99_999:
        drop = drops[sent % len(drops)]
        peer.send(drop)
        server.clock.advance(1)
        sent += 1
    assert peer.answer.status == 408
    slack = 1 - sum(map(len, drops)) / len(drops) / 1024  # of each second, what is not paid for by bytes
    assert sent <= 30 / slack + 1 + len(drops)
    assert server.site.bodies.held == 0
    peer.transport.loseConnection()


def test_an_idle_connection_is_closed(server: Server) -> None:
    peer = server.connect().send(get())
    server.wait(74)
    peer.send(get())
    server.wait(74)
    assert not peer.closed
    server.wait(1)
    assert peer.closed
    assert len(peer.answers) == 2


@pytest.mark.parametrize("raw", [get(), post(b"abc"), chunked(b"0\r\n\r\n")], ids=["get", "length", "chunks"])
def test_a_connection_may_be_idle_for_long_after_any_request(server: Server, raw: bytes) -> None:
    peer = server.connect().send(raw)
    assert peer.answer.status == 200
    server.wait(74)
    assert not peer.closed
    server.wait(1)
    assert peer.closed


def test_the_second_head_has_as_long_as_the_first(server: Server) -> None:
    peer = server.connect().send(get())
    server.wait(70)
    peer.send(b"GET")
    server.wait(9)
    assert len(peer.answers) == 1
    server.wait(1)
    assert [answer.status for answer in peer.answers] == [200, 408]


def test_a_handler_may_take_its_time(server: Server) -> None:
    waiting: Deferred[Response] = Deferred()
    server.handler = lambda _: waiting
    peer = server.connect().send(get())
    server.wait(1000)
    waiting.callback(Response(200))
    assert peer.answer.status == 200
    assert server.events == [("GET", "/", 200, 0, 1000.0)]


def test_a_connection_that_does_not_close_is_dropped(server: Server) -> None:
    peer = server.connect()
    peer.transport.loseConnection = lambda: None
    peer.send(get(b"/", b"Connection: close"))
    server.wait(19)
    assert not peer.transport.aborted
    peer.transport.__dict__.pop("loseConnection")
    server.wait(1)
    assert peer.transport.aborted


# -- slow readers -----------------------------------------------------------------------------------------------------

LARGE = bytes(range(256)) * 4096


def test_a_large_answer_goes_out_as_the_client_takes_it(server: Server) -> None:
    server.handler = lambda _: Response(200, LARGE)
    peer = server.connect()
    write = peer.transport.write

    def full(data: bytes) -> None:
        write(data)
        peer.protocol.pauseProducing()

    peer.transport.write = full
    peer.send(get() + get(b"/next"))
    sizes = [len(peer.transport.value())]
    while len(server.calls) == 1:
        server.wait(19)
        peer.protocol.resumeProducing()
        sizes.append(len(peer.transport.value()))
    assert max(later - earlier for earlier, later in pairwise([0, *sizes])) < 70 * 1024
    peer.transport.write = write
    peer.protocol.resumeProducing()
    assert [answer.body for answer in peer.answers] == [LARGE, LARGE]
    assert [event[3] for event in server.events] == [len(LARGE)] * 2


@pytest.mark.parametrize("body", [pytest.param(LARGE, id="large"), pytest.param(b"small", id="small")])
def test_a_client_that_does_not_read_is_dropped(server: Server, body: bytes) -> None:
    server.handler = lambda _: Response(200, body)
    peer = server.connect()
    peer.protocol.pauseProducing()
    peer.send(get() + get(b"/next"))
    server.wait(19)
    assert not peer.closed
    server.wait(1)
    assert peer.transport.aborted
    assert len(server.calls) == 1
    ((*_, status, sent, seconds),) = server.events
    assert (status, 0 < sent <= len(body), seconds) == (200, True, 20.0)


def test_an_answer_without_the_rest_of_a_large_body(server: Server) -> None:
    server.handler = lambda _: Response(200, LARGE)
    peer = server.connect().send(get(method=b"HEAD") + get())
    head, whole = answers(peer.transport.value(), heads=(0,))
    assert (head.headers["content-length"], head.body, whole.body) == (str(len(LARGE)), b"", LARGE)


def test_a_client_that_takes_all_gets_a_large_answer_in_turns(server: Server) -> None:
    body = LARGE * 3
    server.handler = lambda call: Response(200, body if call.path == "/" else b"hello")
    peer = server.connect().send(get() + get(b"/next"))
    written = [len(peer.transport.value())]
    peer.protocol.resumeProducing()  # the transport is ready: that is no reason to write more at once
    assert len(peer.transport.value()) == written[0]

    def another() -> None:
        written.append(len(peer.transport.value()))
        if len(server.calls) == 1:
            server.clock.callLater(0, another)

    server.clock.callLater(0, another)
    server.clock.advance(0)
    assert len(written) == 3
    assert max(later - earlier for earlier, later in pairwise([0, *written])) < len(LARGE) + 70 * 1024
    assert [answer.body for answer in peer.answers] == [body, b"hello"]
    assert [event[3] for event in server.events] == [len(body), 5]


def test_a_turn_waits_for_a_client_that_is_slow_again(server: Server) -> None:
    body = LARGE * 2
    server.handler = lambda _: Response(200, body)
    peer = server.connect().send(get())
    peer.protocol.pauseProducing()
    written = len(peer.transport.value())
    server.clock.advance(0)
    assert len(peer.transport.value()) == written
    peer.protocol.resumeProducing()
    assert peer.answer.body == body


def test_no_turn_comes_when_the_client_is_gone(server: Server) -> None:
    server.handler = lambda _: Response(200, LARGE * 3)
    peer = server.connect().send(get())
    peer.transport.loseConnection()
    assert server.clock.getDelayedCalls() == []
    ((*_, status, sent, _),) = server.events
    assert (status, len(LARGE) <= sent < len(LARGE) * 2) == (200, True)


# -- memory -----------------------------------------------------------------------------------------------------------


class Body(bytes):
    """An answer's body that can be watched."""

    __slots__ = ()
    freed: ClassVar[list[int]] = []

    def __del__(self) -> None:
        self.freed.append(len(self))


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Without the cyclic garbage collector, so that only what nothing refers to is freed."""
    gc.collect()
    gc.disable()
    Body.freed.clear()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("late", [pytest.param(False, id="at-once"), pytest.param(True, id="late")])
@pytest.mark.parametrize("leaves", [None, "before-the-answer", "in-the-answer", "after-the-answer"])
def test_bodies_are_freed_when_a_request_is_done(late: bool, leaves: str | None) -> None:
    server = Server(limits=HttpLimits())
    bodies: list[bytes] = []
    waiting: Deferred[Response] = Deferred()
    requests: list[weakref.ref] = []
    connections: list[weakref.ref] = []

    def handler(call: Call):
        bodies.append(call.body)
        requests.append(weakref.ref(peer.protocol.exchange))
        return waiting if late else Response(200, Body(LARGE))

    server.site.application.handler = handler
    peer = server.connect()
    connections.append(weakref.ref(peer.protocol))
    if leaves == "in-the-answer":
        peer.protocol.pauseProducing()
    peer.send(post(b"x" * 100_000))
    if late:
        if leaves == "before-the-answer":
            peer.transport.loseConnection()
            references = sys.getrefcount(bodies[0])
            assert references > 2  # the handler may still need it
        waiting.callback(Response(200, Body(LARGE)))
        waiting.result = None
    if leaves is not None and not peer.closed:
        peer.transport.loseConnection()
    references = sys.getrefcount(bodies[0])
    assert references == 2  # of the list and of the argument
    assert Body.freed == [len(LARGE)]
    assert requests[0]() is None
    assert [event[2] for event in server.events] == [200]
    if leaves is not None:
        del peer.transport.protocol
        del peer
        assert connections[0]() is None


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("raw", [post(b"x" * 1000)[:-1], chunked(b"3\r\nabc\r\n"), get()[:-2], get() + b"X", b""])
@pytest.mark.parametrize("refused", [False, True])
def test_what_is_left_of_a_lost_connection_is_freed(server: Server, raw: bytes, refused: bool) -> None:
    peer = server.connect().send(raw)
    connection = weakref.ref(peer.protocol)
    requests = [weakref.ref(peer.protocol.exchange)] if peer.protocol.exchange else []
    if refused:
        peer.end()
    if not peer.closed:
        peer.transport.loseConnection()
    del peer.transport.protocol
    del peer
    assert connection() is None
    assert [request() for request in requests] == [None] * len(requests)


@pytest.mark.usefixtures("uncollected")
def test_a_refused_body_is_dropped_at_once(server: Server) -> None:
    peer = server.connect().send(chunked(b"3E8\r\n" + b"x" * 1000 + b"\r\n"))
    request = peer.protocol.exchange
    assert (server.site.bodies.held, request._body.size) == (1000, 1000)
    peer.send(b"1\r\nx\r\n" * 3)
    assert peer.answer.status == 413
    assert (server.site.bodies.held, request._body) == (0, None)
    peer.transport.loseConnection()


# -- clients that go away ---------------------------------------------------------------------------------------------


def test_a_handler_runs_on_when_its_client_is_gone(server: Server) -> None:
    cancelled = []
    waiting: Deferred[Response] = Deferred(cancelled.append)
    server.handler = lambda _: waiting
    peer = server.connect().send(get())
    peer.transport.loseConnection()
    server.clock.advance(2)
    assert server.events == []
    waiting.callback(Response(200, b"hello"))
    assert cancelled == []
    assert server.events == [("GET", "/", 200, 0, 2.0)]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param([get()], id="fast-path"),
        pytest.param([get()[:9], get()[9:]], id="full-path"),
        pytest.param([post(b"abc")], id="with-a-body"),
    ],
)
def test_a_handler_can_see_that_its_client_is_gone(server: Server, raw: list[bytes]) -> None:
    calls: list[Call] = []
    waiting: Deferred[Response] = Deferred()

    def handler(call: Call) -> Deferred[Response]:
        calls.append(call)
        return waiting

    server.handler = handler
    peer = server.connect(tcp=True)
    for each in raw:
        peer.send(each)
    (call,) = calls
    peer.end()
    assert not call.gone  # it may still read
    peer.transport.loseConnection()
    assert call.gone
    waiting.callback(Response(200))


def test_a_client_that_was_answered_is_never_gone(server: Server) -> None:
    calls: list[Call] = []
    waiting: Deferred[Response] = Deferred()
    server.handler = lambda call: calls.append(call) or waiting
    peer = server.connect().send(get())
    waiting.callback(Response(200))
    peer.transport.loseConnection()
    assert [call.gone for call in calls] == [False]


def test_a_client_that_leaves_in_a_body_is_logged(server: Server) -> None:
    server.connect().send(post(b"abc")[:-1]).transport.loseConnection()
    assert server.events == [("POST", "/", 499, 0, 0.0)]


@pytest.mark.parametrize("sent", [pytest.param(b"", id="nothing"), pytest.param(b"GET / HT", id="half-a-head")])
def test_a_client_that_leaves_before_is_not(server: Server, sent: bytes) -> None:
    server.connect().send(sent).transport.loseConnection()
    assert server.events == []


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(get(), [200], id="whole"),
        pytest.param(get() + get(), [200, 200], id="two"),
        pytest.param(b"GET", [400], id="half-a-head"),
        pytest.param(get() + b"GET", [200, 400], id="one-and-a-half"),
        pytest.param(post(b"abc")[:-1], [400], id="half-a-body"),
        pytest.param(chunked(b"5\r\n"), [400], id="half-a-chunk"),
        pytest.param(get(b"/", b"X : y"), [400], id="bad"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_a_client_that_has_said_all_still_gets_its_answers(server: Server, sent, statuses, late: bool) -> None:
    waiting: Deferred[Response] = Deferred()
    server.handler = lambda _: waiting if late and len(server.calls) == 1 else Response(200)
    peer = server.connect(tcp=True).send(sent).end()
    if not waiting.called:
        waiting.callback(Response(200))
    assert [answer.status for answer in peer.answers] == statuses
    assert peer.closed


def test_a_client_that_has_sent_ahead_and_said_all_gets_every_answer(server: Server) -> None:
    waiting: Deferred[Response] = Deferred()
    server.handler = lambda call: waiting if len(server.calls) == 1 else Response(200, call.path.encode())
    peer = server.connect(tcp=True).send(b"".join(get(b"/%d" % number) for number in range(4))).end()
    waiting.callback(Response(200))
    assert [answer.body for answer in peer.answers] == [b"", b"/1", b"/2", b"/3"]
    assert peer.closed


def test_what_a_refused_client_still_sends_is_bounded(server: Server) -> None:
    peer = server.connect().send(post(b"x" * 1001)[:-1001])
    assert peer.answer.status == 413
    for _ in range(20):
        peer.send(b"x" * 100)
    assert not peer.closed
    peer.send(b"x")
    assert peer.closed


def test_a_refused_client_that_leaves_is_let_go(server: Server) -> None:
    peer = server.connect(tcp=True).send(b"\0\r\n")
    assert peer.transport.write_closed
    assert peer.end().closed


def test_requests_behind_the_last_are_dropped(server: Server) -> None:
    peer = server.connect().send(get(b"/", b"Connection: close") + get(b"/more"))
    assert peer.answer.status == 200
    assert peer.closed
    assert len(server.calls) == 1


def test_a_client_that_sent_ahead_is_refused_in_its_turn(server: Server) -> None:
    waiting: Deferred[Response] = Deferred()
    server.handler = lambda _: waiting
    peer = server.connect().send(get()).send(b"\0" * 70_000)
    assert peer.transport.producerState == "paused"
    waiting.callback(Response(200))
    assert [answer.status for answer in peer.answers] == [200, 414]
    assert peer.transport.producerState == "producing"


# -- over loopback ----------------------------------------------------------------------------------------------------


class Collector(Protocol):
    def __init__(self) -> None:
        self.received = b""
        self.done: Deferred[type[Exception]] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.done.callback(reason.type)


@pytest.fixture
def loopback() -> Iterator[tuple[Server, Callable]]:
    """A site behind a real port; the second value connects a client to it."""
    server = Server(limits=HttpLimits(body=1_000_000), clock=reactor)
    port = pytest_twisted.blockon(listen(reactor, "127.0.0.1", 0, server.site))

    async def connect() -> Collector:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        return await connectProtocol(endpoint, Collector())

    yield server, connect
    pytest_twisted.blockon(maybeDeferred(port.stopListening))
    pytest_twisted.blockon(Deferred.fromCoroutine(server.site.stop(1)))


@pytest_twisted.ensureDeferred
async def test_a_client_reads_why_its_upload_is_refused_although_it_still_sends(loopback) -> None:
    """Closing at once would reset the connection: the client would see that instead of the answer."""
    _, connect = loopback
    client = await connect()
    client.transport.write(get(b"/", b"Content-Length: 1500000", method=b"POST"))
    for _ in range(15):
        client.transport.write(b"x" * 100_000)
    client.transport.loseWriteConnection()
    assert await client.done is ConnectionDone
    assert [answer.status for answer in answers(client.received)] == [413]


@pytest_twisted.ensureDeferred
async def test_a_client_that_closes_its_half_reads_a_large_answer(loopback) -> None:
    server, connect = loopback
    body = LARGE * 10
    server.handler = lambda _: Response(200, body)
    client = await connect()
    client.transport.pauseProducing()
    client.transport.write(get())
    client.transport.loseWriteConnection()
    await pytest_twisted_pause()
    client.transport.resumeProducing()
    await client.done
    assert [answer.body for answer in answers(client.received)] == [body]


@pytest_twisted.ensureDeferred
async def test_an_abort_is_noticed(loopback) -> None:
    server, connect = loopback
    waiting: Deferred[Response] = Deferred()
    arrived: Deferred[None] = Deferred()

    def handler(_: Call) -> Deferred[Response]:
        arrived.callback(None)
        return waiting

    server.handler = handler
    client = await connect()
    client.transport.write(get())
    await arrived
    client.transport.abortConnection()
    await client.done
    await pytest_twisted_pause()
    waiting.callback(Response(200, b"hello"))
    assert [event[2:4] for event in server.events] == [(200, 0)]


async def pytest_twisted_pause() -> None:
    """Let the reactor turn a few times."""
    turned: Deferred[None] = Deferred()
    reactor.callLater(0.05, turned.callback, None)
    await turned


def test_the_protocol_says_what_it_can_do(server: Server) -> None:
    assert IHalfCloseableProtocol.providedBy(server.connect().protocol)
