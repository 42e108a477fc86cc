"""Our gRPC channel, in memory: against our server, against a server driven by hand, and against nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from h2.errors import ErrorCodes
from h2.events import PingReceived, RequestReceived, StreamReset
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from notary.net.grpc import Channel, Context, GrpcFactory, GrpcLimits, RpcError, State, Status
from notary.work.backoff import Backoff
from tests.support.rawgrpc import Memory, RawServer, frame, packed

ECHO = "/test.Echo/Echo"


class Setup:
    """A clock, channels on it, and what becomes of their calls."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.channels: list[Channel] = []
        self.memories: list[Memory] = []
        self.pending: list[Deferred[bytes]] = []
        self.cancelled = 0

    def server(self, limits: GrpcLimits | None = None) -> GrpcFactory:
        def wait(_request: bytes, _context: Context) -> Deferred[bytes]:
            def cancelled(_: Deferred[bytes]) -> None:
                self.cancelled += 1

            self.pending.append(Deferred(cancelled))
            return self.pending[-1]

        methods = {ECHO: lambda request, _: request, "/test.Echo/Wait": wait}
        return GrpcFactory(methods, self.clock, limits=limits)

    def channel(
        self, server: Callable[[], RawServer] | GrpcFactory, *, fail: int | None = 0, **options: Any
    ) -> tuple[Channel, Memory]:
        memory = Memory(self.clock, server, fail=fail)
        options.setdefault("chance", lambda: 0.5)
        channel = Channel(memory, self.clock, name="signer:7899", **options)
        self.channels.append(channel)
        self.memories.append(memory)
        return channel, memory

    def close(self) -> None:
        closed = gatherResults([channel.close() for channel in self.channels])
        for memory in self.memories:
            memory.settle(5)
        assert closed.called


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = Setup()
    yield made
    made.close()
    assert made.clock.getDelayedCalls() == []


OUTCOMES: WeakKeyDictionary[Deferred[bytes], list[Any]] = WeakKeyDictionary()


def outcome(call: Deferred[bytes]) -> Any:
    """What a call has come to: bytes, RpcError, or None while it has come to nothing."""
    if call not in OUTCOMES:
        call.addBoth(OUTCOMES.setdefault(call, []).append)
    found = OUTCOMES[call]
    return (found or None) and (found[0].value if isinstance(found[0], Failure) else found[0])


def status(call: Deferred[bytes]) -> Status | None:
    found = outcome(call)
    assert found is None or isinstance(found, RpcError), found
    return found and found.status


# -- calls ------------------------------------------------------------------------------------------------------------


def test_a_call(setup: Setup) -> None:
    channel, memory = setup.channel(setup.server())
    assert channel.state is State.IDLE
    call = channel.call(ECHO, b"hello", 1)
    memory.settle()
    assert outcome(call) == b"hello"
    assert channel.state is State.READY
    assert outcome(channel.call(ECHO, b"", 1)) is None
    memory.settle()
    assert len(memory.attempts) == 1


def test_what_a_request_looks_like(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer)
    channel.call(ECHO, b"hello", 2.5)
    memory.settle()
    (request,) = (event for event in memory.servers[0].events if isinstance(event, RequestReceived))
    assert [(bytes(name), bytes(value)) for name, value in request.headers] == [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/test.Echo/Echo"),
        (b":authority", b"signer:7899"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"notary-service"),
        (b"grpc-timeout", b"2500m"),
    ]


def test_connecting_before_there_is_a_call(setup: Setup) -> None:
    channel, memory = setup.channel(setup.server())
    channel.connect()
    assert channel.state is State.CONNECTING
    memory.settle()
    assert channel.state is State.READY


def test_a_thousand_parallel_calls_and_more_than_the_server_takes(setup: Setup) -> None:
    channel, memory = setup.channel(setup.server(GrpcLimits(streams=300)))
    calls = [channel.call("/test.Echo/Wait", b"", 100) for _ in range(1000)]
    answered = 0
    while answered < 1000:
        memory.settle()
        assert 0 < len(setup.pending) - answered <= 300
        for pending in setup.pending[answered:]:
            pending.callback(b"done")
            answered += 1
    memory.settle()
    assert [outcome(call) for call in calls] == [b"done"] * 1000
    assert len(memory.attempts) == 1


@pytest.mark.parametrize("size", [0, 16384, 65536, 4 * 1024 * 1024])
def test_large_messages_in_both_directions(setup: Setup, size: int) -> None:
    channel, memory = setup.channel(setup.server())
    content = bytes(size)
    call, other = channel.call(ECHO, content, 10), channel.call(ECHO, b"small", 10)
    memory.settle()
    assert outcome(call) == content
    assert outcome(other) == b"small"


def test_a_request_that_is_too_large_is_not_sent(setup: Setup) -> None:
    channel, memory = setup.channel(setup.server(), limits=GrpcLimits(message=10))
    assert status(channel.call(ECHO, bytes(11), 1)) is Status.RESOURCE_EXHAUSTED
    assert memory.attempts == []


def test_a_call_without_time(setup: Setup) -> None:
    channel, _ = setup.channel(setup.server())
    assert status(channel.call(ECHO, b"", 0)) is Status.DEADLINE_EXCEEDED


# -- answers ----------------------------------------------------------------------------------------------------------

HEAD = [(":status", "200"), ("content-type", "application/grpc")]
Say = Callable[[RawServer, int], None]


def head(*headers: tuple[str, str], end: bool = False) -> Say:
    return lambda server, stream: server.h2.send_headers(stream, headers, end_stream=end)


def data(content: bytes, *, end: bool = False) -> Say:
    return lambda server, stream: server.h2.send_data(stream, content, end_stream=end)


def reset(code: int) -> Say:
    return lambda server, stream: server.h2.reset_stream(stream, code)


def raw(content: bytes) -> Say:
    return lambda server, _: server.say(content)


def trailers(*headers: tuple[str, str]) -> Say:
    return head(*headers, end=True)


OK = trailers(("grpc-status", "0"))


@pytest.mark.parametrize(
    ("said", "expected", "message"),
    [
        pytest.param(
            [head(*HEAD, ("grpc-status", "5"), ("grpc-message", "no%20key"), end=True)],
            Status.NOT_FOUND,
            "no key",
            id="only-trailers",
        ),
        pytest.param(
            [head(*HEAD), trailers(("grpc-status", "7"), ("grpc-message", "no"))],
            Status.PERMISSION_DENIED,
            "no",
            id="without-message",
        ),
        pytest.param(
            [head(*HEAD), data(packed(b"x")), trailers(("grpc-status", "10"))], Status.ABORTED, "", id="with-message"
        ),
        pytest.param([head(*HEAD), OK], Status.UNIMPLEMENTED, "no message", id="ok-without-message"),
        pytest.param([head(*HEAD), data(packed(b"x") * 2), OK], Status.UNIMPLEMENTED, "more than one", id="two"),
        pytest.param([head(*HEAD), data(packed(b"xy")[:-1]), OK], Status.INTERNAL, "truncated", id="truncated"),
        pytest.param([head(*HEAD), data(packed(b"x", 1))], Status.UNIMPLEMENTED, "compressed", id="compressed"),
        pytest.param([head(*HEAD), data(b"\0\0\x40\0\1")], Status.RESOURCE_EXHAUSTED, "over the limit", id="too-large"),
        pytest.param([head(*HEAD), data(packed(b"x"), end=True)], Status.UNKNOWN, "without a status", id="no-trailers"),
        pytest.param([head(*HEAD, end=True)], Status.UNKNOWN, "not gRPC", id="no-status"),
        pytest.param([head(*HEAD), trailers(("grpc-status", "x"))], Status.UNKNOWN, "", id="odd-status"),
        pytest.param([head((":status", "503"))], Status.UNAVAILABLE, "HTTP status 503", id="503"),
        pytest.param([head((":status", "5" * 5000))], Status.UNKNOWN, "HTTP status 555", id="5,000-digits"),
        pytest.param([head(*HEAD), trailers(("grpc-status", "5" * 5000))], Status.UNKNOWN, "", id="long-status"),
        pytest.param([head((":status", "404"), end=True)], Status.UNIMPLEMENTED, "HTTP status 404", id="404"),
        pytest.param(
            [head((":status", "200"), ("content-type", "text/html")), data(b"<html>", end=True)],
            Status.UNKNOWN,
            "not gRPC",
            id="html",
        ),
        pytest.param([reset(ErrorCodes.CANCEL)], Status.CANCELLED, "CANCEL", id="reset-cancel"),
        pytest.param([reset(ErrorCodes.ENHANCE_YOUR_CALM)], Status.RESOURCE_EXHAUSTED, "CALM", id="reset-calm"),
        pytest.param([reset(ErrorCodes.NO_ERROR)], Status.INTERNAL, "NO_ERROR", id="reset-no-error"),
        pytest.param([reset(4242)], Status.UNKNOWN, "4242", id="reset-unknown"),
        pytest.param(
            [head(*HEAD), data(b"\0"), reset(ErrorCodes.INTERNAL_ERROR)], Status.INTERNAL, "", id="reset-late"
        ),
        pytest.param(
            [head(*HEAD, ("grpc-status", "8"), end=True), raw(frame(3, 0, 1, bytes(4)))],
            Status.RESOURCE_EXHAUSTED,
            "",
            id="status-then-reset",
        ),
        pytest.param(
            [head((":status", "100")), head(*HEAD), data(packed(b"fine")), OK], b"fine", "", id="informational"
        ),
        pytest.param([head(*HEAD), data(packed(b"fine")[:3]), data(packed(b"fine")[3:]), OK], b"fine", "", id="pieces"),
    ],
)
def test_answers(setup: Setup, said: list[Say], expected: Status | bytes, message: str) -> None:
    channel, memory = setup.channel(RawServer)
    call = channel.call(ECHO, b"", 5)
    memory.settle()
    server = memory.servers[0]
    for say in said:
        say(server, 1)
    server.say()
    memory.settle()
    found = outcome(call)
    if isinstance(expected, bytes):
        assert found == expected
    else:
        assert found.status is expected
        assert message in found.message
    again = channel.call(ECHO, b"", 5)
    memory.settle()
    server.answer(3, b"the connection goes on")
    memory.settle()
    assert outcome(again) == b"the connection goes on"


def test_an_answer_before_the_request_is_sent(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer)
    channel.connect()
    memory.settle()
    server = memory.servers[0]
    server.gives_room = False
    call = channel.call(ECHO, bytes(100_000), 5)
    memory.settle()
    assert server.requests == []
    server.h2.send_headers(1, [*HEAD, ("grpc-status", "8")], end_stream=True)
    server.say()
    memory.settle()
    assert status(call) is Status.RESOURCE_EXHAUSTED
    assert [event.stream_id for event in server.events if isinstance(event, StreamReset)] == [1]


def test_what_comes_for_a_call_that_is_over_is_ignored(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer)
    call = channel.call(ECHO, b"", 5)
    memory.settle()
    call.cancel()
    memory.servers[0].h2.send_headers(1, HEAD)
    memory.servers[0].h2.send_data(1, packed(b"late"))
    memory.servers[0].h2.send_headers(1, [("grpc-status", "0")], end_stream=True)
    memory.servers[0].say()
    memory.settle()
    assert status(call) is Status.CANCELLED
    assert channel.state is State.READY


def test_a_server_that_breaks_the_rules(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer)
    call = channel.call(ECHO, b"", 5)
    memory.settle()
    memory.servers[0].say(frame(0, 0, 0, b"x"))
    memory.settle()
    assert status(call) is Status.UNAVAILABLE
    assert channel.state is State.TRANSIENT_FAILURE
    memory.settle(1)
    assert len(memory.attempts) == 2


# -- deadlines and cancelling -----------------------------------------------------------------------------------------


def test_a_call_that_is_not_answered_ends_at_its_deadline(setup: Setup) -> None:
    channel, memory = setup.channel(setup.server())
    call = channel.call("/test.Echo/Wait", b"", 3)
    memory.settle(2.5)
    assert outcome(call) is None
    memory.settle(1)
    assert status(call) is Status.DEADLINE_EXCEEDED
    assert setup.cancelled == 1


def test_a_call_that_finds_no_server_ends_at_its_deadline(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer, fail=None)
    call = channel.call(ECHO, b"", 3)
    memory.settle(2.5)
    assert outcome(call) is None
    memory.settle(1)
    found = outcome(call)
    assert found.status is Status.UNAVAILABLE
    assert found.message == "no connection to signer:7899: Connection was refused by other side: nobody listens."


def test_a_call_that_finds_no_room_ends_at_its_deadline(setup: Setup) -> None:
    channel, memory = setup.channel(setup.server(GrpcLimits(streams=1)))
    calls = [channel.call("/test.Echo/Wait", b"", seconds) for seconds in (9, 3)]
    memory.settle(4)
    assert outcome(calls[0]) is None
    assert outcome(calls[1]).message == "signer:7899 has too many calls open"


def test_a_caller_that_cancels_cancels_at_the_server(setup: Setup) -> None:
    channel, memory = setup.channel(setup.server(GrpcLimits(streams=1)))
    running, waiting = (channel.call("/test.Echo/Wait", b"", 9) for _ in range(2))
    memory.settle()
    waiting.cancel()
    assert status(waiting) is Status.CANCELLED
    running.cancel()
    memory.settle()
    assert status(running) is Status.CANCELLED
    assert setup.cancelled == 1


# -- connecting again -------------------------------------------------------------------------------------------------


def test_attempts_come_at_growing_distances(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer, fail=8, backoff=Backoff(first=1, most=10, factor=2, jitter=0.5))
    with capturedLogs() as logs:
        call = channel.call(ECHO, b"", 100)
        memory.settle()
        assert channel.state is State.TRANSIENT_FAILURE
        assert channel.last_error == "Connection was refused by other side: nobody listens."
        memory.settle(90)
    gaps = [b - a for a, b in pairwise(memory.attempts)]
    assert gaps == pytest.approx([1, 2, 4, 8, 10, 10, 10, 10])
    assert channel.state is State.READY
    assert channel.last_error == ""
    memory.servers[0].answer(1, b"at last")
    memory.settle()
    assert outcome(call) == b"at last"
    assert [event["log_format"] for event in logs if "name" in event] == [
        "no gRPC connection to {name}: {reason}",
        "connected to {name}",
    ]


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 0.8), (0.5, 1.0), (0.999999, 1.2)])
def test_chance_keeps_clients_out_of_step(chance: float, seconds: float) -> None:
    backoff = Backoff(first=1.0, most=5.0, factor=2.0, jitter=0.2)
    assert backoff.delay(0, chance) == 0
    assert backoff.delay(1, chance) == pytest.approx(seconds, rel=1e-4)
    assert backoff.delay(10_000, chance) == pytest.approx(5 * seconds, rel=1e-4)


def test_a_lost_connection_fails_its_calls_and_is_made_again_at_once(setup: Setup) -> None:
    channel, memory = setup.channel(setup.server())
    good = channel.call(ECHO, b"", 5)
    lost = channel.call("/test.Echo/Wait", b"", 5)
    memory.settle()
    assert outcome(good) == b""
    memory.lose()
    found = outcome(lost)
    assert found.status is Status.UNAVAILABLE
    assert found.message == "signer:7899: the peer closed the connection"
    assert memory.attempts == [0, 0]
    again = channel.call(ECHO, b"again", 5)
    memory.settle()
    assert outcome(again) == b"again"


def test_a_server_that_takes_connections_and_drops_them_is_not_hammered(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer, backoff=Backoff(first=1, most=10, factor=2, jitter=0))
    channel.connect()
    memory.settle()
    for _ in range(3):
        memory.lose()
        memory.settle(0.9)
        memory.settle(9)
    assert memory.attempts == pytest.approx([0, 1, 11.9 - 9 + 9, memory.attempts[3]], abs=3)
    assert len(memory.attempts) == 4


def test_a_server_that_does_not_begin_is_given_up(setup: Setup) -> None:
    class Silent(RawServer):
        def connectionMade(self) -> None:
            self.silent = True

    channel, memory = setup.channel(Silent)
    call = channel.call(ECHO, b"", 15)
    memory.settle(9)
    assert channel.state is State.CONNECTING
    memory.settle(3)
    assert channel.last_error == "HTTP/2 did not begin in time"
    assert len(memory.attempts) == 2
    memory.settle(4)
    assert status(call) is Status.UNAVAILABLE


def test_a_peer_that_is_no_http_2_server(setup: Setup) -> None:
    class Web(RawServer):
        def connectionMade(self) -> None:
            self.silent = True
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    channel, memory = setup.channel(Web)
    call = channel.call(ECHO, b"", 2)
    memory.settle(3)
    assert "a frame of" in outcome(call).message


# -- refused streams, GOAWAY ------------------------------------------------------------------------------------------


def test_a_refused_stream_is_sent_once_more(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer)
    call = channel.call(ECHO, b"hello", 5)
    memory.settle()
    server = memory.servers[0]
    server.h2.reset_stream(1, ErrorCodes.REFUSED_STREAM)
    server.say()
    memory.settle()
    assert server.requests == [1, 3]
    server.answer(3, b"now")
    memory.settle()
    assert outcome(call) == b"now"


def test_a_stream_that_is_refused_twice_fails(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer)
    call = channel.call(ECHO, b"", 5)
    memory.settle()
    for stream in (1, 3):
        memory.servers[0].h2.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
        memory.servers[0].say()
        memory.settle()
    assert status(call) is Status.UNAVAILABLE


def goaway(last_stream: int, code: int = 0, debug: bytes = b"") -> bytes:
    return frame(7, 0, 0, last_stream.to_bytes(4, "big") + code.to_bytes(4, "big") + debug)


def test_a_goaway_lets_calls_end_and_moves_the_others(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer)
    kept, moved = channel.call(ECHO, b"kept", 5), channel.call(ECHO, b"moved", 5)
    memory.settle()
    old = memory.servers[0]
    old.say(goaway(1))
    memory.settle(1)
    new = memory.servers[1]
    assert new.requests == [1]
    later = channel.call(ECHO, b"later", 5)
    memory.settle()
    assert (old.requests, new.requests) == ([1, 3], [1, 3])
    old.answer(1, b"from the old")
    new.answer(1, b"from the new")
    new.answer(3, b"from the new, too")
    memory.settle()
    assert [outcome(call) for call in (kept, moved, later)] == [b"from the old", b"from the new", b"from the new, too"]
    assert old.lost
    assert not new.lost


def test_a_goaway_and_an_answer_in_one_breath(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer)
    call = channel.call(ECHO, b"", 5)
    memory.settle()
    server = memory.servers[0]
    server.h2.send_headers(1, HEAD)
    server.h2.send_data(1, packed(b"the last"))
    begin = server.h2.data_to_send()
    server.h2.send_headers(1, [("grpc-status", "0")], end_stream=True)
    server.transport.write(begin + goaway((1 << 31) - 1) + goaway(1) + server.h2.data_to_send())
    memory.settle()
    assert outcome(call) == b"the last"


def test_a_goaway_with_an_error_is_logged(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer)
    channel.connect()
    memory.settle()
    with capturedLogs() as logs:
        memory.servers[0].say(goaway(0, 11, b"too_many_pings"))
        memory.settle()
    assert [(event["code"], event["text"]) for event in logs if "code" in event] == [(11, "too_many_pings")]


def test_a_stopping_server_and_its_successor(setup: Setup) -> None:
    first = setup.server()
    channel, memory = setup.channel(first)
    call = channel.call("/test.Echo/Wait", b"", 50)
    memory.settle()
    stopped = Deferred.fromCoroutine(first.stop(20))
    memory.server = setup.server()
    memory.settle(1)
    other = channel.call(ECHO, b"to the next", 5)
    memory.settle()
    assert outcome(other) == b"to the next"
    setup.pending[0].callback(b"to the end")
    memory.settle()
    assert outcome(call) == b"to the end"
    assert stopped.called


def test_a_connection_whose_streams_are_used_up_is_replaced(setup: Setup) -> None:
    channel, memory = setup.channel(setup.server())
    assert outcome(channel.call(ECHO, b"1", 5)) is None
    memory.settle()
    memory.clients[0]._h2.highest_outbound_stream_id = (1 << 31) - 7
    calls = [channel.call(ECHO, b"%d" % number, 5) for number in range(10)]
    memory.settle()
    assert [outcome(call) for call in calls] == [b"%d" % number for number in range(10)]
    assert len(memory.attempts) == 2


# -- signs of life ----------------------------------------------------------------------------------------------------


def pings(server: RawServer) -> int:
    return sum(isinstance(event, PingReceived) for event in server.events)


def test_a_server_that_owes_an_answer_is_asked_for_a_sign_of_life(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer)
    call = channel.call(ECHO, b"", 100)
    memory.settle(30)
    server = memory.servers[0]
    assert pings(server) == 1
    server.silent = True
    memory.settle(30)
    assert outcome(call).message == "signer:7899: no sign of life"
    assert len(memory.attempts) >= 2


def test_a_server_that_owes_nothing_is_left_alone(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer)
    channel.connect()
    memory.settle(300)
    assert pings(memory.servers[0]) == 0
    assert len(memory.attempts) == 1


def test_a_call_that_times_out_makes_its_server_suspect(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer)
    channel.connect()
    memory.settle(10)
    memory.servers[0].silent = True
    call = channel.call(ECHO, b"", 2)
    memory.settle(3)
    assert status(call) is Status.DEADLINE_EXCEEDED
    memory.settle(6)
    assert len(memory.attempts) == 2
    assert channel.state is State.READY


# -- the end ----------------------------------------------------------------------------------------------------------


def test_closing_fails_what_is_under_way(setup: Setup) -> None:
    channel, memory = setup.channel(setup.server(GrpcLimits(streams=1)))
    calls = [channel.call("/test.Echo/Wait", b"", 50) for _ in range(3)]
    memory.settle()
    closed = channel.close()
    assert [status(call) for call in calls] == [Status.CANCELLED] * 3
    memory.settle()
    assert closed.called
    assert channel.state is State.SHUTDOWN
    assert setup.cancelled == 1
    assert status(channel.call(ECHO, b"", 5)) is Status.CANCELLED
    channel.connect()
    assert len(memory.attempts) == 1
    assert channel.close().called


def test_closing_a_channel_that_was_never_used(setup: Setup) -> None:
    channel, _ = setup.channel(RawServer)
    assert channel.close().called


def test_closing_between_attempts(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer, fail=None)
    channel.connect()
    memory.settle(1)
    assert channel.close().called
    before = len(memory.attempts)
    memory.settle(100)
    assert len(memory.attempts) == before


def test_closing_during_an_attempt(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer)
    cancelled: list[bool] = []
    memory.connect = lambda _: Deferred(lambda _: cancelled.append(True))  # type: ignore[method-assign]
    channel.connect()
    memory.settle()
    assert channel.state is State.CONNECTING
    assert channel.close().called
    assert cancelled == [True]


def test_a_caller_that_reacts_to_the_end_with_more(setup: Setup) -> None:
    channel, memory = setup.channel(setup.server())
    calls = [channel.call("/test.Echo/Wait", b"", 50) for _ in range(3)]
    more: list[Deferred[bytes]] = []
    memory.settle()
    calls[0].addErrback(lambda _: (calls[2].cancel(), more.append(channel.call(ECHO, b"", 1)))[0])
    channel.close()
    memory.settle()
    assert status(calls[2]) is Status.CANCELLED
    assert status(more[0]) is Status.CANCELLED


def test_the_name_of_the_server() -> None:
    assert Channel.to(reactor, "::1", 7899).name == "[::1]:7899"
    assert Channel.to(reactor, "signer", 7899).name == "signer:7899"
    assert Channel.to(reactor, "schlüssel.example", 7899).name == "xn--schlssel-95a.example:7899"


# -- more than one connection -----------------------------------------------------------------------------------------


def test_what_waits_for_a_connection_is_told_of_it(setup: Setup) -> None:
    told: list[State] = []
    channel, memory = setup.channel(setup.server(), fail=1, on_ready=lambda: told.append(channel.state))
    call = channel.call(ECHO, b"x", 10)
    assert told == []
    memory.settle(5)
    assert told == [State.READY]
    assert outcome(call) == b"x"
    memory.lose()
    memory.settle(5)
    assert told == [State.READY] * 2


def test_a_channel_that_connects_anew_loses_no_call(setup: Setup) -> None:
    channel, memory = setup.channel(setup.server())
    channel.reconnect()  # without a connection there is nothing to do
    assert memory.attempts == []
    first = channel.call("/test.Echo/Wait", b"", 10)
    memory.settle()
    channel.reconnect()
    assert channel.state is State.CONNECTING
    second = channel.call(ECHO, b"y", 10)
    memory.settle(1)
    assert outcome(second) == b"y"
    assert len(memory.attempts) == 2
    assert outcome(first) is None
    setup.pending[0].callback(b"z")
    memory.settle(1)
    assert outcome(first) == b"z"
    assert memory.clients[0].transport.disconnected or memory.servers[0].transport.disconnected


def test_the_authority_may_be_another_name(setup: Setup) -> None:
    channel, memory = setup.channel(RawServer, authority="signers.example:7899")
    call = channel.call(ECHO, b"x", 1)
    memory.settle()
    (head,) = [event.headers for event in memory.servers[0].events if isinstance(event, RequestReceived)]
    assert dict(head)[b":authority"] == b"signers.example:7899"
    memory.settle(2)
    assert "signer:7899" in str(outcome(call))
