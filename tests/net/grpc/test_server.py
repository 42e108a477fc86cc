"""Our gRPC server against a client driven by hand, in memory: answers, refusals, deadlines, flow control, abuse."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import pytest_twisted
from h2.errors import ErrorCodes
from h2.events import PingAckReceived, PingReceived, RemoteSettingsChanged
from h2.settings import SettingCodes
from hpack import Encoder
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs

from notary.net.grpc import GrpcFactory, GrpcLimits, Status
from tests.support.rawgrpc import HEAD, PREFACE, SMALL, RawClient, Service, frame, packed, path, with_headers


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    for client in made.clients:
        client.transport.loseConnection()
    assert made.clock.getDelayedCalls() == []


# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_call(service: Service) -> None:
    client = service.client()
    stream = client.request(packed(b"hello"))
    assert client.headers(stream) == [(":status", "200"), ("content-type", "application/grpc")]
    assert client.data(stream) == packed(b"hello")
    assert client.trailers(stream) == {"grpc-status": "0"}
    ((method, status, seconds, peer),) = service.finished
    assert (method, status, seconds, peer.address, peer.certificate) == (
        "/test.Echo/Echo",
        Status.OK,
        0.0,
        "127.0.0.1:4321",
        None,
    )
    assert service.contexts[0].remaining() is None


@pytest.mark.parametrize("step", [1, 7, None])
def test_calls_arrive_in_pieces_of_any_size(service: Service, step: int | None) -> None:
    client = RawClient(service.factory, service.clock)
    service.clients.append(client)
    streams = [client.request(packed(b"%d" % number), say=False) for number in range(3)]
    client.feed(frame(6, 0, 0, b"trailing"), step=step)
    assert [client.data(stream) for stream in streams] == [packed(b"0"), packed(b"1"), packed(b"2")]
    assert [event.ping_data for event in client.events if isinstance(event, PingAckReceived)] == [b"trailing"]


def test_all_answers_of_a_turn_leave_in_one_write(service: Service) -> None:
    client = service.client()
    written: list[bytes] = []
    write = client.transport.write
    client.transport.write = lambda data: (written.append(data), write(data))
    for _ in range(5):
        client.request(packed(b"x"), say=False)
        client.protocol.dataReceived(client.h2.data_to_send())
    client.take()
    assert len(written) == 1
    assert service.statuses == [Status.OK] * 5


def test_an_empty_message(service: Service) -> None:
    client = service.client()
    stream = client.request(packed(b""))
    assert client.data(stream) == packed(b"")
    assert client.status(stream) == 0


def test_a_message_after_the_head_and_the_end_after_the_message(service: Service) -> None:
    client = service.client()
    stream = client.request(None, end=False)
    for byte in packed(b"hello"):
        client.h2.send_data(stream, bytes([byte]))
        client.feed()
    assert service.finished == []
    client.h2.end_stream(stream)
    client.feed()
    assert client.data(stream) == packed(b"hello")


def test_the_end_of_a_request_in_trailers(service: Service) -> None:
    client = service.client()
    stream = client.request(packed(b"hello"), end=False)
    client.h2.send_headers(stream, [("x", "y")], end_stream=True)
    client.feed()
    assert client.data(stream) == packed(b"hello")


def test_an_answer_that_comes_later(service: Service) -> None:
    client = service.client()
    streams = [client.request(packed(b"a"), path(name)) for name in ("Wait", "Async")]
    assert service.finished == []
    service.clock.advance(2)
    for pending in service.pending:
        pending.callback(b"b")
    client.take()
    assert [client.data(stream) for stream in streams] == [packed(b"b"), packed(b"ab")]
    assert [seconds for _, _, seconds, _ in service.finished] == [2.0, 2.0]


@pytest.mark.parametrize(
    ("method", "body", "status", "message"),
    [
        pytest.param("Refuse", packed("schlüssel 100%\n".encode()), 5, "schl%C3%BCssel 100%25%0A", id="raised"),
        pytest.param("Refuse", packed(b""), 5, None, id="raised-without-message"),
        pytest.param("Fault", packed(b""), 13, "internal error", id="fault"),
        pytest.param("None", packed(b""), 12, "unknown method /test.Echo/None", id="unknown-method"),
        pytest.param("Echo", None, 12, "no message: the method is unary", id="no-message"),
        pytest.param("Echo", b"", 12, "no message: the method is unary", id="no-bytes"),
        pytest.param("Echo", packed(b"abc")[:-1], 13, "the message is truncated", id="truncated"),
        pytest.param("Echo", packed(b"") * 2, 12, "more than one message: the method is unary", id="two"),
        pytest.param(
            "Echo", packed(b"x", 1), 12, "the message is compressed; only identity is supported", id="compressed"
        ),
        pytest.param("Echo", packed(b"x", 8), 13, "a message has the unknown flags 8", id="flags"),
        pytest.param(
            "Echo", b"\0\0\x40\0\1", 8, "a message of 4194305 bytes is over the limit of 4194304", id="too-large"
        ),
        pytest.param(
            "Large", packed(b"4194305"), 8, "an answer of 4194305 bytes is over the limit of 4194304", id="large-answer"
        ),
    ],
)
def test_calls_that_fail(service: Service, method: str, body: bytes | None, status: int, message: str | None) -> None:
    client = service.client()
    stream = client.request(body, path(method))
    assert client.status(stream) == status
    assert client.trailers(stream).get("grpc-message") == message
    assert client.headers(stream)[:2] == [(":status", "200"), ("content-type", "application/grpc")]
    assert service.statuses == [Status(status)]
    assert len(service.errors) == (method == "Fault")
    assert client.status(client.request(packed(b"the connection goes on"))) == 0


def test_faults_are_logged_by_default() -> None:
    clock = Clock()
    factory = GrpcFactory({"/test.Echo/Echo": Service.fault.__get__(object())}, clock)
    with capturedLogs() as logs:
        client = RawClient(factory, clock)
        assert client.status(client.request(packed(b""))) == 13
    assert [(event["path"], event["log_failure"].type) for event in logs] == [("/test.Echo/Echo", ZeroDivisionError)]
    client.transport.loseConnection()


def test_the_rest_of_a_refused_request_is_not_wanted(service: Service) -> None:
    client = service.client()
    stream = client.request(b"\0\0\x40\0\1", end=False)
    assert client.status(stream) == 8
    assert client.reset_code(stream) == ErrorCodes.NO_ERROR
    client.feed(frame(0, 1, stream, b"more"))
    assert client.connected


@pytest.mark.parametrize(
    ("head", "status", "more"),
    [
        pytest.param(with_headers(content_type="application/json"), "415", [], id="json"),
        pytest.param(with_headers(content_type=None), "415", [], id="no-content-type"),
        pytest.param(with_headers(__method="GET"), "405", [("allow", "POST")], id="get"),
    ],
)
def test_what_is_not_grpc_is_answered_as_http(
    service: Service, head: list[tuple[str, str]], status: str, more: list[tuple[str, str]]
) -> None:
    client = service.client()
    stream = client.request(None, head, end=False)
    assert client.headers(stream) == [(":status", status), *more]
    assert client.reset_code(stream) == ErrorCodes.NO_ERROR
    assert service.finished == []


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(with_headers(__path=None), id="no-path"),
        pytest.param(with_headers(te="gzip"), id="te"),
        pytest.param([*HEAD, ("connection", "close")], id="connection"),
        pytest.param([*HEAD, (":path", "/")], id="pseudo-after-regular"),
    ],
)
def test_malformed_heads_reset_their_stream(service: Service, head: list[tuple[str, str]]) -> None:
    client = service.client()
    assert client.reset_code(client.request(packed(b""), head)) == ErrorCodes.PROTOCOL_ERROR
    assert client.status(client.request(packed(b""))) == 0


# -- deadlines and cancelling -----------------------------------------------------------------------------------------


def test_a_deadline_cancels_the_handler(service: Service) -> None:
    client = service.client()
    stream = client.request(packed(b""), [*path("Wait"), ("grpc-timeout", "1500m")])
    assert service.contexts[0].remaining() == 1.5
    client.take(1.4)
    assert service.finished == []
    client.take(0.2)
    assert client.status(stream) == Status.DEADLINE_EXCEEDED
    assert service.cancelled == 1
    assert service.contexts[0].remaining() == 0


def test_a_deadline_is_forgotten_with_its_call(service: Service) -> None:
    client = service.client()
    stream = client.request(packed(b""), [*path("Wait"), ("grpc-timeout", "2S")])
    service.pending[0].callback(b"in time")
    client.take(5)
    assert client.status(stream) == 0
    assert service.statuses == [Status.OK]


def test_a_malformed_deadline(service: Service) -> None:
    client = service.client()
    assert client.status(client.request(packed(b""), [*HEAD, ("grpc-timeout", "soon")])) == Status.INTERNAL


@pytest.mark.parametrize("timeout", ["3S", None])
def test_a_request_that_never_ends(service: Service, timeout: str | None) -> None:
    client = service.client()
    stream = client.request(packed(b"abc")[:6], [*HEAD, *([("grpc-timeout", timeout)] if timeout else [])], end=False)
    client.take(2.5)
    assert service.finished == []
    for _ in range(60):
        client.take(1)
    assert client.status(stream) == Status.DEADLINE_EXCEEDED
    assert service.finished[0][2] == pytest.approx(4 if timeout else 60, abs=1)


def test_a_client_that_resets_a_call_cancels_it(service: Service) -> None:
    client = service.client()
    stream = client.request(packed(b""), path("Async"))
    client.h2.reset_stream(stream, ErrorCodes.CANCEL)
    client.feed()
    assert service.cancelled == 1
    assert service.statuses == [Status.CANCELLED]
    assert client.status(client.request(packed(b""))) == 0


def test_a_client_that_leaves_cancels_its_calls(service: Service) -> None:
    client = service.client()
    client.request(packed(b""), [*path("Wait"), ("grpc-timeout", "9S")])
    client.request(packed(b"half")[:7], end=False)
    client.transport.loseConnection()
    assert service.cancelled == 1
    assert service.statuses == [Status.CANCELLED] * 2


@pytest.mark.parametrize("end", [True, False])
def test_a_call_that_is_reset_in_the_same_breath_is_not_run(service: Service, end: bool) -> None:
    client = service.client()
    stream = client.request(packed(b""), end=end, say=False)
    client.h2.reset_stream(stream)
    client.request(packed(b"next"), say=False)
    client.feed()
    assert len(service.contexts) == 1


def test_a_call_whose_end_comes_with_a_reset_is_not_run(service: Service) -> None:
    client = service.client()
    stream = client.request(packed(b"abc")[:6], end=False)
    client.h2.send_data(stream, b"bc", end_stream=True)
    client.h2.reset_stream(stream)
    client.feed()
    assert service.contexts == []
    assert service.statuses == [Status.CANCELLED]


def test_a_bad_message_that_comes_with_a_reset_gets_no_answer(service: Service) -> None:
    client = service.client()
    stream = client.request(b"\0", end=False)
    client.h2.send_data(stream, b"\xff\xff\xff\xff", end_stream=False)
    client.h2.reset_stream(stream)
    client.feed()
    assert service.statuses == [Status.RESOURCE_EXHAUSTED]
    assert client.connected


# -- flow control -----------------------------------------------------------------------------------------------------


def test_a_large_request(service: Service) -> None:
    client = service.client()
    content = bytes(range(256)) * 16384
    body = packed(content)
    stream = client.request(None, end=False)
    sent = 0
    while sent < len(body):
        room = min(client.h2.local_flow_control_window(stream), 16384, len(body) - sent)
        assert room > 0, "the server gives no room"
        client.h2.send_data(stream, body[sent : sent + room])
        sent += room
        client.feed()
    client.h2.end_stream(stream)
    client.feed()
    assert service.statuses == [Status.OK]


@pytest.mark.parametrize("size", [16384, 100_000, 4 * 1024 * 1024])
def test_a_large_answer_waits_for_room(service: Service, size: int) -> None:
    client = service.client({SettingCodes.INITIAL_WINDOW_SIZE: 10_000})
    stream = client.request(packed(b"%d" % size), path("Large"))
    assert len(client.data(stream)) == 10_000
    other = client.request(packed(b"small ones go on"))
    assert client.status(other) == 0
    while len(client.data(stream)) < size + 5:
        before = len(client.data(stream))
        client.h2.increment_flow_control_window(30_000, stream)
        client.h2.increment_flow_control_window(30_000)
        client.feed()
        assert len(client.data(stream)) > before
    assert client.status(stream) == 0


def test_room_on_the_connection_serves_all_streams(service: Service) -> None:
    client = service.client({SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
    streams = [client.request(packed(b"50000"), path("Large")) for _ in range(4)]
    client.h2.increment_flow_control_window(1 << 20)
    client.feed()
    assert [len(client.data(stream)) for stream in streams] == [50_005] * 4


def test_a_smaller_table_of_headers_is_heeded(service: Service) -> None:
    client = service.client()
    client.request(packed(b""), path("Refuse"))
    client.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 0})
    client.feed()
    assert client.status(client.request(packed(b""))) == 0
    assert client.status(client.request(packed(b""))) == 0


def test_an_answer_that_is_never_taken(service: Service) -> None:
    client = service.client({SettingCodes.INITIAL_WINDOW_SIZE: 100})
    stream = client.request(packed(b"5000"), path("Large"))
    for _ in range(62):
        client.take(1)
    assert client.reset_code(stream) == ErrorCodes.CANCEL
    client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 10_000})
    client.feed()
    assert client.connected


def test_an_answer_that_is_not_wanted_any_more(service: Service) -> None:
    client = service.client({SettingCodes.INITIAL_WINDOW_SIZE: 100})
    stream = client.request(packed(b"5000"), path("Large"))
    client.h2.increment_flow_control_window(9000, stream)
    client.h2.reset_stream(stream)
    client.feed()
    assert client.connected
    assert len(client.data(stream)) == 100


def test_a_client_that_does_not_read_is_not_read_from(service: Service) -> None:
    client = service.client()
    client.transport.producer.pauseProducing()
    assert client.transport.producerState == "paused"
    client.transport.producer.resumeProducing()
    assert client.transport.producerState == "producing"


# -- limits -----------------------------------------------------------------------------------------------------------


def test_streams_beyond_the_limit_are_refused() -> None:
    service = Service(SMALL)
    client = service.client()
    (said,) = (e for e in client.events if isinstance(e, RemoteSettingsChanged))
    assert said.changed_settings[SettingCodes.MAX_CONCURRENT_STREAMS].new_value == 4
    client.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 100
    client.h2.remote_settings.acknowledge()
    streams = [client.request(packed(b""), path("Wait")) for _ in range(6)]
    assert [client.reset_code(stream) for stream in streams] == [None] * 4 + [ErrorCodes.REFUSED_STREAM] * 2
    service.pending[0].callback(b"")
    client.take()
    assert client.status(client.request(packed(b""))) == 0
    client.transport.loseConnection()


def test_incomplete_requests_are_bounded_together() -> None:
    service = Service(GrpcLimits(message=1000, buffered=2000))
    client = service.client()
    streams = [client.request(packed(bytes(1000))[:900], end=False) for _ in range(3)]
    assert client.status(streams[2]) == Status.RESOURCE_EXHAUSTED
    for stream in streams[:2]:
        client.h2.send_data(stream, bytes(105), end_stream=True)
    client.feed()
    assert [client.status(stream) for stream in streams[:2]] == [0, 0]
    again = [client.request(packed(bytes(1000))[:900], end=False) for _ in range(2)]
    assert service.statuses == [Status.RESOURCE_EXHAUSTED, Status.OK, Status.OK]
    client.h2.reset_stream(again[0])
    client.h2.send_data(again[1], bytes(105), end_stream=True)
    client.feed()
    assert client.status(client.request(packed(bytes(1000)))) == 0
    client.transport.loseConnection()


def test_a_thousand_parallel_calls(service: Service) -> None:
    client = service.client()
    client.h2.increment_flow_control_window(1 << 20)
    streams = [client.request(packed(b"%d" % number), path("Async"), say=False) for number in range(1000)]
    client.feed()
    assert len(service.pending) == 1000
    for number, pending in reversed(list(enumerate(service.pending))):
        pending.callback(b"!%d" % number)
    client.take()
    assert [client.data(stream) for stream in streams] == [packed(b"%d!%d" % (n, n)) for n in range(1000)]


# -- life and death ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", PREFACE[:10], PREFACE])
def test_a_client_that_does_not_begin_is_cut_off(service: Service, sent: bytes) -> None:
    client = RawClient(service.factory, service.clock, mute=True)
    with capturedLogs() as logs:
        client.feed(sent)
        for _ in range(9):
            client.take(1)
        assert client.connected
        client.take(2)
    assert not client.connected
    assert [event["reason"] for event in logs if "reason" in event] == ["HTTP/2 did not begin in time"]


@pytest.mark.parametrize(
    ("sent", "lines"),
    [
        pytest.param(b"", [], id="a-probe"),
        pytest.param(
            b"GET / HTTP/1.1\r\n", [(LogLevel.warn, "Invalid HTTP/2 preamble.", "127.0.0.1:4321")], id="http-1"
        ),
    ],
)
def test_connections_that_never_began_are_logged(service: Service, sent: bytes, lines: list[object]) -> None:
    with capturedLogs() as logs:
        client = RawClient(service.factory, service.clock, mute=True)
        client.feed(sent)
        client.transport.loseConnection()
    assert [(event["log_level"], event["reason"], event["peer"]) for event in logs if "reason" in event] == lines


def test_a_silent_client_is_asked_for_a_sign_of_life(service: Service) -> None:
    client = service.client()
    for _ in range(125):
        client.take(1)
    assert sum(isinstance(event, PingReceived) for event in client.events) == 1
    assert client.connected, "it answered"
    for _ in range(300):
        service.clock.advance(1)
    assert not client.connected, "it did not answer any more"


def test_a_client_that_does_not_let_itself_be_closed_is_cut_off(service: Service) -> None:
    client = service.client()
    aborted: list[bool] = []
    client.transport.loseConnection = lambda: None
    client.transport.abortConnection = lambda: aborted.append(True)
    client.feed(frame(0, 0, 0, b"x"))
    client.protocol.dataReceived(b"more")
    service.clock.advance(2)
    assert not aborted
    service.clock.advance(2)
    assert aborted
    client.protocol.connectionLost()


# -- the end ----------------------------------------------------------------------------------------------------------


def stop(service: Service, grace: float = 5.0) -> Deferred[None]:
    return Deferred.fromCoroutine(service.factory.stop(grace))


def test_a_server_that_stops_lets_calls_end(service: Service) -> None:
    client, idle = service.client(), service.client()
    stream = client.request(packed(b""), path("Wait"))
    done = stop(service)
    client.take()
    idle.take()
    assert client.goaway is not None
    assert client.goaway.last_stream_id == stream
    assert client.goaway.error_code == ErrorCodes.NO_ERROR
    assert not idle.connected
    assert not done.called
    client.protocol.dataReceived(frame(1, 5, stream + 2, Encoder().encode(HEAD)))
    service.clock.advance(0)
    assert frame(3, 0, stream + 2, b"\0\0\0\x07") in client.transport.value(), "a late call is refused"
    assert service.factory.buildProtocol(None) is None
    service.pending[0].callback(b"the last")
    client.clock.advance(0)
    assert packed(b"the last") in client.transport.value()
    assert not client.connected
    assert done.called
    assert service.statuses == [Status.OK]


def new_client(service: Service) -> RawClient:
    """A client that has connected and said nothing yet, as in the middle of TLS's handshake."""
    return RawClient(service.factory, service.clock)


def test_a_server_that_stops_serves_the_first_call_of_a_new_connection(service: Service) -> None:
    client, together = new_client(service), new_client(service)
    done = stop(service)
    client.feed()  # the preface, and no call yet
    assert client.goaway is None
    service.clock.advance(1)
    for each in (client, together):
        stream = each.request(packed(b"first"))
        each.take()
        assert (each.data(stream), each.status(stream)) == (packed(b"first"), Status.OK)
        assert each.goaway is not None
        assert (each.goaway.error_code, each.goaway.last_stream_id) == (ErrorCodes.NO_ERROR, stream)
        assert not each.connected
    assert done.called
    assert service.clock.getDelayedCalls() == []


def test_a_server_that_stops_waits_for_a_new_connection_a_moment_only(service: Service) -> None:
    silent, begun = new_client(service), new_client(service)
    begun.feed()
    with capturedLogs() as lines:
        done = stop(service, 10)
        assert (silent.connected, begun.connected) == (True, False)
        for _ in range(4):
            service.clock.advance(1)
        assert not done.called
        service.clock.advance(2)
    assert done.called
    assert lines == [], "it is the server that left: no client is refused"


def test_a_server_that_stops_lets_answers_leave(service: Service) -> None:
    client = service.client({SettingCodes.INITIAL_WINDOW_SIZE: 100})
    stream = client.request(packed(b"5000"), path("Large"))
    done = stop(service)
    service.clock.advance(1)
    assert not done.called
    client.protocol.dataReceived(frame(8, 0, stream, (9000).to_bytes(4, "big")))
    service.clock.advance(0)
    assert done.called


def test_a_server_that_stops_ends_calls_after_its_grace(service: Service) -> None:
    client = service.client()
    client.request(packed(b""), path("Wait"))
    half = client.request(packed(b"")[:2], end=False)
    done = stop(service, 3)
    again = stop(service, 3)
    client.transport.clear()
    service.clock.advance(2.9)
    assert not done.called
    service.clock.advance(0.2)
    assert service.statuses == [Status.UNAVAILABLE] * 2
    assert service.cancelled == 1
    assert b"the server is stopping" in client.transport.value() or half
    assert done.called
    assert again.called


@pytest_twisted.ensureDeferred
async def test_a_server_without_connections_stops_at_once(service: Service) -> None:
    await service.factory.stop()
    assert service.factory.buildProtocol(None) is None
