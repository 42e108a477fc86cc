"""What a gRPC connection keeps, and walks over, for its peer: the same after a hundred frames as after thousands."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hpack import Encoder
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from notary.net.grpc import Channel, GrpcLimits, RpcError, Status
from tests.support.rawgrpc import (
    HEAD,
    PREFACE,
    SETTINGS,
    Memory,
    RawClient,
    RawServer,
    Service,
    frame,
    packed,
    path,
    with_headers,
)
from tests.support.weighing import calls, held

WAIT = Encoder().encode(path("Wait"))
ROUND = 40  # frames, or calls, a second: fewer than any budget allows in the long run


def say(client: RawClient, data: bytes) -> None:
    """Send frames, and leave what our side says unread: it may be about streams of which the client's h2 knows not."""
    if client.connected:
        client.protocol.dataReceived(data)
        client.clock.advance(0)


def is_told_to_calm_down(client: RawClient) -> bool:
    said, code = client.transport.value(), ErrorCodes.ENHANCE_YOUR_CALM
    _, _, goaway = said.rpartition(b"\x07\0\0\0\0\0")
    return not client.connected and goaway[4:8] == code.to_bytes(4, "big")


def setting(code: int, value: int) -> bytes:
    return code.to_bytes(2, "big") + value.to_bytes(4, "big")


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    for client in made.clients:
        client.transport.loseConnection()
    assert made.clock.getDelayedCalls() == []


# -- what is kept -----------------------------------------------------------------------------------------------------


def repeated(data: bytes) -> Callable[[RawClient, int], None]:
    return lambda client, _number: client.feed(data)


def unknown_setting(client: RawClient, number: int) -> None:
    client.feed(frame(4, 0, 0, setting(16 + number, number)))


def known_setting(client: RawClient, number: int) -> None:
    client.feed(frame(4, 0, 0, setting(3, number)))


def table_size(client: RawClient, number: int) -> None:
    client.feed(frame(4, 0, 0, setting(1, number)))


def one_call(client: RawClient, number: int) -> None:
    client.request(packed(b"%d" % number))


def refused_call(client: RawClient, number: int) -> None:
    client.request(packed(b"no %d" % number), path("Refuse"))


def unknown_method(client: RawClient, number: int) -> None:
    client.request(packed(b""), with_headers(__path=f"/no/{number}"))


def new_header(client: RawClient, number: int) -> None:
    client.request(packed(b""), with_headers(trace=str(number)))


def unlike_grpc(client: RawClient, number: int) -> None:
    client.request(None, with_headers(__method="GET", trace=str(number)))


def cancelled_call(client: RawClient, _number: int) -> None:
    client.h2.reset_stream(client.request(packed(b""), path("Wait")))
    client.feed()


def starved_call(client: RawClient, _number: int) -> None:
    """Its answer waits for room on the connection, which never comes, until it is cancelled."""
    client.h2.reset_stream(client.request(packed(b"100000"), path("Large")))
    client.feed()


KINDS = {
    "unknown settings": unknown_setting,
    "known settings": known_setting,
    "sizes of the table": table_size,
    "acknowledgements": repeated(frame(4, 1, 0)),
    "pings": repeated(frame(6, 0, 0, bytes(8))),
    "answers to pings": repeated(frame(6, 1, 0, bytes(8))),
    "priorities": lambda client, number: client.feed(frame(2, 0, 2 * number + 1, bytes(5))),
    "priority updates": lambda client, number: client.feed(frame(16, 0, 0, (2 * number + 1).to_bytes(4, "big"))),
    "unknown frames": lambda client, number: client.feed(frame(200, 0, 2 * number + 1, bytes(100))),
    "alternative services": repeated(frame(10, 0, 0, b"\0\1a" + bytes(50))),
    "goaways": repeated(frame(7, 0, 0, bytes(8) + b"because")),
    "resets of streams that are over": repeated(frame(3, 0, 1, bytes(4))),
    "calls": one_call,
    "refused calls": refused_call,
    "unknown methods": unknown_method,
    "calls with a new header each": new_header,
    "requests that are no calls": unlike_grpc,
    "cancelled calls": cancelled_call,
    "starved calls": starved_call,
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_client_sends_is_not_kept(service: Service, kind: str) -> None:
    client = service.client({SettingCodes.HEADER_TABLE_SIZE: 1 << 30})
    client.request(packed(b""))
    number = 0

    def rounds(count: int) -> int:
        nonlocal number
        for _ in range(count):
            for _ in range(ROUND):
                number += 1
                KINDS[kind](client, number)
            service.clock.advance(1)
        client.take()
        for noted in (service.contexts, service.pending, service.finished, client.events):
            noted.clear()
        return held(client.protocol, without=[service.clock, service, client.transport, service.factory])

    before = rounds(40)  # 1,600: more than the number of closed streams that are remembered
    grown = rounds(40) - before
    assert client.connected
    assert grown < 2_000, f"{grown} bytes more after {40 * ROUND} more"


def test_what_a_server_sends_is_not_kept() -> None:
    clock = Clock()
    memory = Memory(clock, RawServer)
    channel = Channel(memory, clock, name="signer:7899")
    channel.connect()
    memory.settle()
    server, client = memory.servers[0], memory.clients[0]
    number = 0

    def rounds(count: int) -> int:
        nonlocal number
        for _ in range(count):
            for _ in range(ROUND // 2):
                number += 1
                server.say(frame(4, 0, 0, setting(16 + number, 1)) + frame(4, 0, 0, setting(1, number)))
            memory.settle(1)
        server.events.clear()
        return held(client, without=[clock, client.transport, memory, channel])

    before = rounds(10)
    assert rounds(40) - before < 2_000
    assert not server.lost
    channel.close()
    memory.settle(5)
    assert clock.getDelayedCalls() == []


def test_messages_are_counted_until_they_are_answered() -> None:
    service = Service(GrpcLimits(message=1000, buffered=2500, all_buffered=4000))
    one, other = service.client(), service.client()
    whole = packed(bytes(990))
    for client in (one, one, other, other):
        client.request(whole, path("Wait"))
    refused = one.request(whole, path("Wait"))
    assert one.status(refused) == Status.RESOURCE_EXHAUSTED  # 2,985 bytes on this connection
    third = service.client()
    refused = third.request(whole, path("Wait"))
    assert third.status(refused) == Status.RESOURCE_EXHAUSTED  # 4,975 on all
    while service.pending:
        service.pending.pop(0).callback(b"")
    assert service.factory.buffered == 0
    for client in (one, third):
        client.take()
        assert client.status(client.request(whole)) == 0
    for client in service.clients:
        client.transport.loseConnection()


# -- what is walked over ----------------------------------------------------------------------------------------------


def opened(service: Service, count: int) -> RawClient:
    """A client with ``count`` calls that are not answered."""
    client = RawClient(service.factory, service.clock, mute=True)
    service.clients.append(client)
    say(client, PREFACE + SETTINGS)
    for number in range(count):
        say(client, frame(1, 4, 2 * number + 1, WAIT))
    return client


def test_a_new_stream_costs_no_walk_over_those_that_are_open(service: Service) -> None:
    def cost(client: RawClient, first: int) -> int:
        heads = b"".join(frame(1, 4, 2 * number + 1, WAIT) for number in range(first, first + 50))
        return calls(lambda: client.protocol.dataReceived(heads))

    few, many = cost(opened(service, 50), 50), cost(opened(service, 900), 900)
    assert many < 2 * few


def test_room_on_the_connection_costs_no_walk_over_answers_that_wait(service: Service) -> None:
    def cost(count: int, window: int) -> int:
        """What a WINDOW_UPDATE costs while ``count`` answers wait, each for the connection or for its own stream."""
        client = RawClient(service.factory, service.clock, mute=True)
        service.clients.append(client)
        say(client, PREFACE + frame(4, 0, 0, setting(4, window)))
        large = Encoder().encode(path("Large"))
        for number in range(count):
            stream = 2 * number + 1
            say(client, frame(1, 4, stream, large) + frame(0, 1, stream, packed(b"70000")))
        assert client.connected
        return calls(lambda: client.protocol.dataReceived(frame(8, 0, 0, b"\0\0\0\1")))

    for window in (0, 1 << 20):
        assert cost(800, window) < 2 * cost(20, window)


def test_settings_that_walk_over_streams_are_charged_for_it(service: Service) -> None:
    def taken(streams: int) -> int:
        """How many changes of the window are taken from a client with so many streams."""
        client = opened(service, streams)
        number = 0
        while client.connected:
            number += 1
            say(client, frame(4, 0, 0, setting(4, number)))
        assert is_told_to_calm_down(client)
        return number

    assert taken(900) < taken(10) / 8


# -- what is sent for nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(1, 4, 1, WAIT), id="headers"),
        pytest.param(frame(0, 1, 1), id="end"),
        pytest.param(frame(0, 9, 1, b"\xff" + bytes(255)), id="padded-end"),
    ],
)
def test_frames_on_a_stream_that_was_reset_are_counted(service: Service, data: bytes) -> None:
    client = opened(service, 1)
    say(client, frame(3, 0, 1, bytes(4)))
    for _ in range(100):
        say(client, data * 50)
    assert is_told_to_calm_down(client)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(1, 4, 1, b"\x08\x03100"), id="informational"),
        pytest.param(frame(4, 0, 0, b"".join(setting(20 + n, n) for n in range(60))), id="settings"),
        pytest.param(frame(6, 0, 0, bytes(8)), id="ping"),
        pytest.param(frame(2, 0, 1, bytes(5)), id="priority"),
        pytest.param(frame(8, 0, 1, b"\0\0\0\1"), id="window-update"),
        pytest.param(frame(10, 0, 0, b"\0\1a"), id="alternative-service"),
        pytest.param(frame(7, 0, 0, b"\x7f\xff\xff\xff\0\0\0\1"), id="goaway"),
        pytest.param(frame(0, 0, 1), id="empty-data"),
    ],
)
def test_a_server_that_makes_work_for_nothing_is_left(data: bytes) -> None:
    clock = Clock()
    memory = Memory(clock, RawServer)
    channel = Channel(memory, clock, name="signer:7899")
    failures: list[RpcError] = []
    channel.call("/test.Echo/Echo", b"", 60).addErrback(lambda failure: failures.append(failure.value))
    memory.settle()
    server = memory.servers[0]
    server.silent = True
    with capturedLogs() as logs:
        for _ in range(100):
            if not server.lost:
                server.transport.write(data * 40)
                memory.settle()
    assert server.lost
    assert [error.status for error in failures] == [Status.UNAVAILABLE]
    assert len(logs) < 5
    channel.close()
    memory.settle(5)
    assert clock.getDelayedCalls() == []


def test_answers_that_are_taken_a_byte_at_a_time_are_counted(service: Service) -> None:
    client = RawClient(service.factory, service.clock, mute=True)
    service.clients.append(client)
    say(client, PREFACE + frame(4, 0, 0, setting(4, 0)))
    say(client, frame(1, 4, 1, Encoder().encode(path("Large"))) + frame(0, 1, 1, packed(b"100000")))
    for _ in range(100):
        say(client, frame(8, 0, 1, b"\0\0\0\1") * 50)
    assert is_told_to_calm_down(client)


def test_a_whole_connection_of_honest_calls_is_no_flood(service: Service) -> None:
    """As many as may be open, in one go and with all that clients of the C core send around them."""
    client = service.client()
    head = Encoder()
    data = b"".join(
        frame(1, 4, stream, head.encode([*HEAD, ("grpc-timeout", f"{stream}m")]))
        + frame(8, 0, stream, b"\0\0\0\5")
        + frame(0, 1, stream, packed(b"x"))
        + frame(8, 0, 0, b"\0\0\0\5")
        for stream in range(1, 2001, 2)
    )
    for begin in range(0, len(data), 16384):
        client.protocol.dataReceived(data[begin : begin + 16384])
    assert client.connected
    assert [status for _, status, _, _ in service.finished] == [Status.OK] * 1000
