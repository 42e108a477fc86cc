"""Our gRPC server against input that is malformed, and against clients that make work for nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
from h2.errors import ErrorCodes
from h2.events import PingAckReceived
from h2.settings import SettingCodes
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogLevel, capturedLogs

from notary.net.grpc import GrpcLimits
from tests.support.rawgrpc import HEAD, PREFACE, SETTINGS, SMALL, RawClient, Service, frame, packed, path, with_headers


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    for client in made.clients:
        client.transport.loseConnection()
    assert made.clock.getDelayedCalls() == []


# -- malformed frames and abuse ---------------------------------------------------------------------------------------


def block(*headers: tuple[str, str]) -> bytes:
    return Encoder().encode(headers)


def bomb() -> bytes:
    """A header block of a few hundred bytes that stands for a megabyte."""
    return b"\x40\x01a\x7f\xc1\x1e" + b"b" * 4000 + b"\xbe" * 256


GOOD = block(*HEAD)

BAD_INPUT = [
    pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", ErrorCodes.PROTOCOL_ERROR, id="http-1"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ErrorCodes.PROTOCOL_ERROR, id="tls"),
    pytest.param(PREFACE + frame(0, 0, 1, length=16385), ErrorCodes.FRAME_SIZE_ERROR, id="too-long-a-frame"),
    pytest.param(PREFACE + frame(4, 0, 1), ErrorCodes.PROTOCOL_ERROR, id="settings-on-a-stream"),
    pytest.param(PREFACE + frame(4, 0, 0, b"abc"), ErrorCodes.FRAME_SIZE_ERROR, id="settings-of-odd-size"),
    pytest.param(
        PREFACE + frame(4, 0, 0, b"\0\x04\xff\xff\xff\xff"), ErrorCodes.FLOW_CONTROL_ERROR, id="settings-of-odd-value"
    ),
    pytest.param(PREFACE + SETTINGS + frame(0, 0, 0, b"x"), ErrorCodes.PROTOCOL_ERROR, id="data-on-no-stream"),
    pytest.param(PREFACE + SETTINGS + frame(0, 0, 1, b"x"), ErrorCodes.PROTOCOL_ERROR, id="data-on-idle-stream"),
    pytest.param(PREFACE + SETTINGS + frame(0, 8, 1, b"\xff"), ErrorCodes.PROTOCOL_ERROR, id="padding"),
    pytest.param(PREFACE + SETTINGS + frame(1, 5, 2, GOOD), ErrorCodes.PROTOCOL_ERROR, id="even-stream"),
    pytest.param(PREFACE + SETTINGS + frame(1, 5, 0, GOOD), ErrorCodes.PROTOCOL_ERROR, id="headers-on-no-stream"),
    pytest.param(
        PREFACE + SETTINGS + frame(1, 4, 3, GOOD) + frame(1, 4, 1, GOOD), ErrorCodes.PROTOCOL_ERROR, id="backwards"
    ),
    pytest.param(PREFACE + SETTINGS + frame(9, 4, 1, GOOD), ErrorCodes.PROTOCOL_ERROR, id="naked-continuation"),
    pytest.param(
        PREFACE + SETTINGS + frame(1, 0, 1, GOOD) + frame(6, 0, 0, bytes(8)),
        ErrorCodes.PROTOCOL_ERROR,
        id="interleaved",
    ),
    pytest.param(PREFACE + SETTINGS + frame(5, 4, 1, b"\0\0\0\2"), ErrorCodes.PROTOCOL_ERROR, id="push"),
    pytest.param(PREFACE + SETTINGS + frame(6, 0, 0, b"short"), ErrorCodes.FRAME_SIZE_ERROR, id="short-ping"),
    pytest.param(PREFACE + SETTINGS + frame(7, 0, 0, b"short"), ErrorCodes.FRAME_SIZE_ERROR, id="short-goaway"),
    pytest.param(PREFACE + SETTINGS + frame(8, 0, 0, bytes(4)), ErrorCodes.PROTOCOL_ERROR, id="no-window"),
    pytest.param(
        PREFACE + SETTINGS + frame(8, 0, 0, b"\x7f\xff\xff\xff"), ErrorCodes.FLOW_CONTROL_ERROR, id="window-too-large"
    ),
    pytest.param(PREFACE + SETTINGS + frame(1, 5, 1, b"\xff\xff\xff"), ErrorCodes.PROTOCOL_ERROR, id="hpack-garbage"),
    pytest.param(
        PREFACE + SETTINGS + frame(1, 5, 1, block(*HEAD, ("content-length", "x"))),
        ErrorCodes.PROTOCOL_ERROR,
        id="content-length",
    ),
    pytest.param(PREFACE + SETTINGS + frame(1, 5, 1, bomb()), ErrorCodes.ENHANCE_YOUR_CALM, id="hpack-bomb"),
    pytest.param(
        PREFACE + SETTINGS + frame(1, 5, 1, b"\xbe" * 600), ErrorCodes.PROTOCOL_ERROR, id="hpack-index-of-nothing"
    ),
    pytest.param(
        PREFACE + SETTINGS + frame(1, 0, 1, bytes(9000)) + frame(9, 0, 1, bytes(9000)),
        ErrorCodes.ENHANCE_YOUR_CALM,
        id="large-header-block",
    ),
    pytest.param(
        PREFACE + SETTINGS + frame(1, 0, 1) + frame(9, 0, 1) * 70, ErrorCodes.PROTOCOL_ERROR, id="continuations"
    ),
]


@pytest.mark.parametrize(("data", "code"), BAD_INPUT)
@pytest.mark.parametrize("step", [1, None])
def test_malformed_input_ends_the_connection(service: Service, data: bytes, code: ErrorCodes, step: int | None) -> None:
    client = RawClient(service.factory, service.clock, mute=True)
    client.feed(data, step=step)
    assert client.goaway is not None
    assert client.goaway.error_code == code
    assert not client.connected
    assert service.contexts == []


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(6, 0, 0, bytes(8)), id="ping"),
        pytest.param(frame(4, 0, 0), id="settings"),
        pytest.param(frame(2, 0, 1, bytes(5)), id="priority"),
        pytest.param(frame(8, 0, 0, b"\0\0\0\1"), id="window-update"),
        pytest.param(frame(0, 0, 1), id="empty-data"),
        pytest.param(frame(99, 0, 0), id="unknown"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_floods_are_told_to_calm_down(service: Service, data: bytes, at_once: bool) -> None:
    client = service.client()
    client.request(None, end=False)
    for _ in range(100):
        if not client.connected:
            break
        client.feed(data * (3000 if at_once else 30))
    assert client.goaway is not None
    assert client.goaway.error_code == ErrorCodes.ENHANCE_YOUR_CALM
    assert not client.connected


def test_pings_between_calls_are_no_flood(service: Service) -> None:
    client = service.client()
    for _ in range(1000):
        client.feed(frame(6, 0, 0, bytes(8)) * 3)
        client.request(packed(b""))
    assert client.connected
    assert sum(isinstance(event, PingAckReceived) for event in client.events) == 3000


def _open_and_reset(client: RawClient) -> None:
    client.h2.reset_stream(client.request(packed(b""), path("Wait"), say=False))


def _malformed(client: RawClient) -> None:
    client.request(packed(b""), with_headers(te="gzip"), say=False)


@pytest.mark.parametrize("abuse", [_open_and_reset, _malformed])
def test_rapid_resets_are_told_to_calm_down(abuse: Callable[[RawClient], None]) -> None:
    service = Service(GrpcLimits(resets=20, resets_per_second=1))
    client = service.client()
    for _ in range(15):
        abuse(client)
        client.feed()
    assert client.connected
    client.take(15)
    for _ in range(30):
        abuse(client)
        client.feed()
        if not client.connected:
            break
    assert client.goaway is not None
    assert client.goaway.error_code == ErrorCodes.ENHANCE_YOUR_CALM
    assert service.clock.getDelayedCalls() == []


def test_a_client_that_ignores_the_stream_limit_is_told_to_calm_down() -> None:
    service = Service(SMALL)
    client = service.client()
    client.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 100
    client.h2.remote_settings.acknowledge()
    for _ in range(12):
        if client.connected:
            client.request(packed(b""), path("Wait"))
    assert client.goaway is not None
    assert client.goaway.error_code == ErrorCodes.ENHANCE_YOUR_CALM
    assert service.cancelled == 4


@given(st.lists(st.tuples(st.sampled_from(range(12)), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=40))))
def test_no_input_breaks_the_server(frames: Iterable[tuple[int, int, int, bytes]]) -> None:
    service = Service(SMALL)
    client = RawClient(service.factory, service.clock)
    with capturedLogs() as logs:
        data = PREFACE + SETTINGS + frame(1, 4, 1, GOOD) + b"".join(frame(*each) for each in frames)
        client.protocol.dataReceived(data)
        service.clock.advance(200)
        if client.connected:
            client.transport.loseConnection()
    assert [event for event in logs if event["log_level"] >= LogLevel.error] == []
    assert service.clock.getDelayedCalls() == []


_NAMES = st.sampled_from(
    [*(name.encode() for name, _ in HEAD), b"grpc-timeout", b"content-length", b"grpc-encoding", b"x-bin", b""]
)
_FIELDS = st.lists(st.tuples(_NAMES | st.binary(max_size=20), st.binary(max_size=60)), max_size=12)


@given(_FIELDS, st.binary(max_size=40), st.booleans())
def test_no_metadata_breaks_the_server(fields: list[tuple[bytes, bytes]], body: bytes, ahead: bool) -> None:
    service = Service(SMALL)
    client = RawClient(service.factory, service.clock, mute=True)
    good = [(name.encode(), value.encode()) for name, value in HEAD]
    head = Encoder().encode([*fields, *good] if ahead else [*good, *fields])
    with capturedLogs() as logs:
        client.protocol.dataReceived(PREFACE + SETTINGS + frame(1, 4, 1, head) + frame(0, 1, 1, packed(body)))
        service.clock.advance(200)
        if client.connected:
            client.transport.loseConnection()
    assert [event for event in logs if event["log_level"] >= LogLevel.error] == []
    assert service.errors == []
    assert service.clock.getDelayedCalls() == []
