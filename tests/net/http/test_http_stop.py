"""The end of a site: what is answered, what is waited for and how long, and what is closed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred, maybeDeferred

from notary.net.http.site import Call, Response
from tests.support.rawhttp import Server, get, post, served

LARGE = bytes(range(256)) * 4096


@pytest.fixture
def server() -> Iterator[Server]:
    yield from served()


def stop(server: Server, seconds: float = 10) -> list[str]:
    done: list[str] = []
    maybeDeferred(lambda: Deferred.fromCoroutine(server.site.stop(seconds))).addCallback(lambda _: done.append("done"))
    return done


def test_stopping_without_clients(server: Server) -> None:
    assert stop(server) == ["done"]


def test_stopping_closes_what_waits_and_finishes_what_runs(server: Server) -> None:
    waiting: Deferred[Response] = Deferred()
    server.handler = lambda call: waiting if call.path == "/slow" else Response(200)
    idle, half = server.connect().send(get()), server.connect().send(b"GET / HT")
    body = server.connect().send(post(b"abc")[:-1])
    busy = server.connect().send(get(b"/slow") + get(b"/not-any-more"))
    done = stop(server)
    assert (idle.closed, half.closed, body.closed, busy.closed) == (False, False, False, False)
    half.send(b"TP/1.1\r\nHost: a\r\n\r\n")
    body.send(b"c")
    assert done == []
    waiting.callback(Response(200))
    for peer in (half, body, busy):
        assert (peer.answer.status, peer.answer.headers["connection"]) == (200, "close")
    server.wait(3)
    assert (done, idle.closed) == ([], False)
    server.wait(1)
    assert (done, idle.closed, idle.transport.aborted) == (["done"], True, False)
    assert server.clock.getDelayedCalls() == []


@pytest.mark.parametrize("first", [get(), post(b"abc")], ids=["get", "post"])
@pytest.mark.parametrize("then", [get(), post(b"abc"), get() * 2], ids=["get", "post", "two"])
@pytest.mark.parametrize("piecewise", [False, True], ids=["whole", "bytewise"])
def test_stopping_answers_the_next_request_of_an_idle_connection(
    server: Server, first: bytes, then: bytes, piecewise: bool
) -> None:
    idle = server.connect().send(first)
    done = stop(server)
    server.wait(3)
    idle.send(then, piecewise=piecewise)
    assert [(answer.status, answer.headers.get("connection")) for answer in idle.answers] == [
        (200, None),
        (200, "close"),
    ]
    assert (done, idle.closed) == (["done"], True)
    assert server.clock.getDelayedCalls() == []


def test_an_answer_that_has_begun_before_the_stop_is_not_the_last_one(server: Server) -> None:
    server.handler = lambda _: Response(200, LARGE)
    peer = server.connect()
    peer.protocol.pauseProducing()
    peer.send(get())
    done = stop(server)
    peer.protocol.resumeProducing()
    server.wait(2)
    peer.send(get())
    assert [answer.headers.get("connection") for answer in peer.answers] == [None, "close"]
    server.wait(2)
    assert done == ["done"]


@pytest.mark.parametrize("stops", [False, True], ids=["serves", "stops"])
@pytest.mark.parametrize("new", [False, True], ids=["idle", "new"])
def test_what_has_arrived_before_a_time_is_over_is_read_first(server: Server, stops: bool, new: bool) -> None:
    """A reactor that was busy looks at its clock before it reads."""
    peer = server.connect() if new else server.connect().send(get())
    if stops:
        stop(server, 30)
    before = len(peer.answers)
    server.clock.rightNow = peer.protocol.deadline
    peer.protocol.sweep(server.clock.seconds())  # one turn of a reactor: its timers, then what has arrived
    peer.send(get())
    server.clock.advance(0)
    assert len(peer.answers) == before + 1
    assert peer.closed == stops


def test_stopping_gives_a_new_connection_a_moment_for_its_first_request(server: Server) -> None:
    early, silent = server.connect(), server.connect()
    done = stop(server)
    late = server.connect()  # it was in the queue of the port
    for peer in (early, late):
        assert not peer.closed
        peer.send(get())
        assert (peer.answer.status, peer.answer.headers["connection"]) == (200, "close")
    assert (done, silent.closed) == ([], False)
    server.wait(6)
    assert (done, silent.closed) == (["done"], True)
    assert server.clock.getDelayedCalls() == []


def test_stopping_waits_for_a_handler_whose_client_is_gone(server: Server) -> None:
    waiting: Deferred[Response] = Deferred()
    server.handler = lambda _: waiting
    server.connect().send(get()).transport.loseConnection()
    done = stop(server)
    assert done == []
    waiting.callback(Response(200))
    assert done == ["done"]


def test_stopping_does_not_wait_for_ever(server: Server) -> None:
    waiting: Deferred[Response] = Deferred()
    server.handler = lambda _: waiting
    busy, half = server.connect().send(get()), server.connect().send(b"GET")
    gone = server.connect().send(get())
    gone.transport.loseConnection()
    done = stop(server, 3)
    server.clock.advance(3)
    assert (done, busy.transport.aborted, half.transport.aborted) == (["done"], True, True)
    assert server.clock.getDelayedCalls() == []
    waiting.callback(Response(200))


def test_stopping_does_not_wait_for_a_client_that_does_not_say_goodbye(server: Server) -> None:
    idle = server.connect().send(get())
    lose = idle.transport.loseConnection
    idle.transport.loseConnection = lambda: None
    done = stop(server, 60)
    server.wait(20)
    idle.transport.loseConnection = lose
    assert (done, idle.closed) == ([], False)
    server.clock.advance(1)
    assert (done, idle.transport.aborted) == (["done"], True)


def test_a_client_that_is_given_up_is_gone(server: Server) -> None:
    calls: list[Call] = []
    waiting: Deferred[Response] = Deferred()
    server.handler = lambda call: calls.append(call) or waiting
    server.connect().send(get())
    stop(server, 3)
    assert not calls[0].gone
    server.clock.advance(3)
    assert calls[0].gone
    waiting.callback(Response(200))
