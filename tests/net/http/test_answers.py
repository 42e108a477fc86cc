"""Large answers that clients are still taking: how much of them is held, and what happens beyond it."""

from __future__ import annotations

import pytest

from notary.net.http.answers import AnswerBudget
from notary.net.http.site import HttpLimits, Response
from tests.support.rawhttp import Peer, Server, get, post

MIB = 1 << 20


def test_a_body_is_counted_once_however_many_take_it():
    budget = AnswerBudget(10)
    one, other = b"1" * 6, b"2" * 6
    assert [budget.take(one) for _ in range(100)] == [True] * 100
    assert (budget.held_bytes, budget.take(other)) == (6, False)
    for _ in range(100):
        budget.give_back(one)
    assert (budget.held_bytes, budget.take(other), budget.take(b"3" * 4), budget.take(b"4")) == (0, True, True, False)


def test_the_only_answer_always_has_room():
    budget = AnswerBudget(10)
    large = b"1" * 100
    assert budget.take(large)
    assert budget.take(large)
    assert not budget.take(b"2")


FILES = {name: name.encode() * MIB for name in "abc"}


@pytest.fixture
def server():
    """Gives files of a mebibyte, and has room for two of them; when all clients are gone, it holds nothing."""
    made = Server(limits=HttpLimits(answers=2 * MIB + 1))
    made.handler = lambda call: Response(200, FILES.get(call.path[1:], b"small"), (), call.path[1:])
    yield made
    made.clock.advance(1000)
    made.clock.advance(1000)
    assert made.site.answers.held_bytes == 0
    assert made.clock.getDelayedCalls() == []


def slow(server: Server, request: bytes) -> Peer:
    """A client that takes nothing of its answer."""
    peer = server.connect()
    peer.protocol.pauseProducing()
    return peer.send(request)


def with_body(target: bytes, *fields: bytes, method: bytes = b"GET") -> bytes:
    """A request that the fast path leaves to the reader."""
    return get(target, *fields, b"Content-Length: 1", method=method, body=b"x")


REQUESTS = pytest.mark.parametrize("ask", [pytest.param(get, id="fast-path"), pytest.param(with_body, id="full-path")])


@REQUESTS
def test_what_clients_are_taking_has_a_bound(server, ask):
    readers = [slow(server, ask(b"/a")) for _ in range(50)]
    assert server.site.answers.held_bytes == MIB
    readers += [slow(server, ask(b"/b")) for _ in range(50)]
    assert server.site.answers.held_bytes == 2 * MIB
    assert server.connect().send(ask(b"/c")).answer.status == 503
    # What holds nothing is answered as ever, and so is who asks for what is held already.
    assert server.connect().send(ask(b"/d")).answer.body == b"small"
    assert server.connect().send(ask(b"/c", b'If-None-Match: "c"')).answer.status == 304
    assert server.connect().send(ask(b"/c", method=b"HEAD")).transport.value().startswith(b"HTTP/1.1 200")
    readers.append(slow(server, ask(b"/a")))
    assert server.site.answers.held_bytes == 2 * MIB
    for reader in readers[:50]:
        reader.transport.loseConnection()
    assert server.site.answers.held_bytes == 2 * MIB
    readers[100].protocol.resumeProducing()
    server.clock.advance(0)
    assert readers[100].answer.body == FILES["a"]
    assert server.site.answers.held_bytes == MIB
    third = server.connect().send(ask(b"/c"))
    server.clock.advance(0)
    assert third.answer.body == FILES["c"]
    assert server.site.answers.held_bytes == MIB


def test_a_client_that_does_not_read_is_dropped_and_its_answer_let_go(server):
    reader = slow(server, get(b"/a"))
    server.wait(30)
    assert reader.transport.aborted
    assert server.site.answers.held_bytes == 0


def test_an_answer_to_a_client_that_has_gone_is_not_counted(server):
    peer = server.connect().send(post(b"x" * 10)[:-1])
    peer.transport.loseConnection()
    assert server.site.answers.held_bytes == 0
