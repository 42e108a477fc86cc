"""Two sides of a talk: questions both ways, answers out of order, and what goes wrong."""

from __future__ import annotations

import json
import os
from threading import Thread

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from notary.daemon.workers.pipe import NoReply, Pipe, request_at_once


class Pair:
    """Two sides, ``a`` and ``b``; what one says reaches the other in pieces of ``step`` bytes."""

    def __init__(self, step: int = 1 << 20) -> None:
        self.clock = Clock()
        self.lost: list[str] = []
        self.held: Deferred[bytes] = Deferred()
        self.told: list[bytes] = []
        answers = {
            "echo": lambda body: body,
            "later": lambda _: self.held,
            "broken": self._broken,
            "tell": self._told,
        }
        self.a, self.b = (Pipe(self.clock, answers, lambda name=name: self.lost.append(name)) for name in "ab")
        self.step = step
        for side in (self.a, self.b):
            side.makeConnection(StringTransport())

    def _broken(self, _: bytes) -> bytes:
        raise ZeroDivisionError("of all things")

    def _told(self, body: bytes) -> bytes:
        self.told.append(body)
        return b""

    def run(self) -> None:
        """Carry everything over until nothing is said any more."""
        while True:
            carried = 0
            for speaker, listener in ((self.a, self.b), (self.b, self.a)):
                data = speaker.transport.value()
                speaker.transport.clear()
                carried += len(data)
                for start in range(0, len(data), self.step):
                    listener.dataReceived(data[start : start + self.step])
            if not carried:
                return


@pytest.mark.parametrize("step", [1, 3, 1 << 20])
@pytest.mark.parametrize("body", [b"", b"x", b"\n", b"a b\nc,", bytes(range(256)) * 400])
def test_both_may_ask(step: int, body: bytes) -> None:
    pair = Pair(step)
    asked = [side.request("echo", body) for side in (pair.a, pair.b)]
    pair.run()
    assert [one.result for one in asked] == [body, body]
    assert pair.clock.getDelayedCalls() == []


def test_answers_come_in_any_order() -> None:
    pair = Pair()
    first, second = pair.a.request("later"), pair.a.request("echo", b"2")
    pair.run()
    assert not first.called
    assert second.result == b"2"
    pair.held.callback(b"1")
    pair.run()
    assert first.result == b"1"


@pytest.mark.parametrize(("name", "says"), [("broken", "of all things"), ("unknown", "unknown")])
def test_what_cannot_be_answered(name: str, says: str) -> None:
    pair = Pair()
    asked = pair.a.request(name)
    pair.run()
    asked.addErrback(lambda failure: failure.trap(NoReply) and failure.getErrorMessage())
    assert says in asked.result


def test_who_waits_too_long_waits_no_more() -> None:
    pair = Pair()
    asked = pair.a.request("later", seconds=2.0)
    pair.run()
    pair.clock.advance(1.9)
    assert not asked.called
    pair.clock.advance(0.2)
    asked.addErrback(lambda failure: failure.trap(NoReply) and failure.getErrorMessage())
    assert asked.result == "no answer in 2 s"
    pair.held.callback(b"too late")
    pair.run()
    assert pair.clock.getDelayedCalls() == []


def test_what_is_told_gets_no_answer() -> None:
    pair = Pair()
    pair.a.notify("tell", b"news")
    pair.run()
    assert pair.told == [b"news"]
    assert pair.b.transport.value() == b""


def test_the_other_side_is_gone() -> None:
    from twisted.internet.error import ConnectionLost
    from twisted.python.failure import Failure

    pair = Pair()
    asked = pair.a.request("later")
    pair.a.connectionLost(Failure(ConnectionLost()))
    asked.addErrback(lambda failure: failure.trap(NoReply) and failure.getErrorMessage())
    assert "gone" in asked.result
    assert pair.lost == ["a"]
    assert pair.clock.getDelayedCalls() == []


def answered(handlers: dict) -> tuple[int, int, Thread]:
    """Descriptors of a side that answers one question, given in pieces, and then is gone."""
    (reading, to_us), (from_us, writing) = os.pipe(), os.pipe()

    def answer() -> None:
        other = Pipe(Clock(), handlers, lambda: None)
        transport = StringTransport()
        other.makeConnection(transport)
        while not transport.value() and (data := os.read(from_us, 3)):
            other.dataReceived(data)
        for byte in transport.value():
            os.write(to_us, bytes([byte]))
        os.close(to_us)
        os.close(from_us)

    thread = Thread(target=answer)
    thread.start()
    return reading, writing, thread


def test_one_may_ask_before_there_is_an_event_loop() -> None:
    secret = {"NOTARY_SIGNER_A": "p\udcff,:\n" * 100}
    reading, writing, thread = answered({"environment": lambda _: json.dumps(secret).encode()})
    assert json.loads(request_at_once(reading, writing, "environment")) == secret
    with pytest.raises(NoReply, match="gone"):
        os.read(reading, 1) or request_at_once(reading, os.open(os.devnull, os.O_WRONLY), "environment")
    thread.join()
    for descriptor in (reading, writing):
        os.close(descriptor)


def test_what_the_other_side_does_not_know_is_no_answer() -> None:
    reading, writing, thread = answered({})
    with pytest.raises(NoReply):
        request_at_once(reading, writing, "environment")
    thread.join()
    for descriptor in (reading, writing):
        os.close(descriptor)
