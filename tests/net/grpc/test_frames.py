"""The pure half of gRPC: messages, deadlines, messages of statuses, heads, frames, budgets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from h2.errors import ErrorCodes
from hypothesis import given
from hypothesis import strategies as st

from notary.net.grpc.frames import (
    Budget,
    Malformed,
    Message,
    NotGrpc,
    Scanner,
    Violation,
    check_answer,
    check_trailers,
    decode_timeout,
    encode_timeout,
    pack,
    parse_request,
)
from notary.net.grpc.status import RpcError, Status, decode_message, decode_status, encode_message, of_http, of_reset
from tests.support.rawgrpc import HEAD, frame, packed

# -- messages ---------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=600), st.lists(st.integers(0, 605)))
def test_a_message_arrives_in_pieces_of_any_size(content: bytes, cuts: list[int]) -> None:
    message = Message(1000)
    data = pack(content)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for begin, end in pairwise(edges):
        message.feed(data[begin:end])
    assert len(message) == len(data)
    assert message.finish() == content


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"", Status.UNIMPLEMENTED, id="nothing"),
        pytest.param(b"\0\0\0", Status.INTERNAL, id="half-a-prefix"),
        pytest.param(packed(b"abc")[:-1], Status.INTERNAL, id="truncated"),
        pytest.param(packed(b"abc", 1), Status.UNIMPLEMENTED, id="compressed"),
        pytest.param(packed(b"abc", 2), Status.INTERNAL, id="unknown-flags"),
        pytest.param(packed(b"x" * 101), Status.RESOURCE_EXHAUSTED, id="too-large"),
        pytest.param(b"\0\xff\xff\xff\xff", Status.RESOURCE_EXHAUSTED, id="four-gigabytes"),
        pytest.param(packed(b"abc") + b"\0", Status.UNIMPLEMENTED, id="trailing-byte"),
        pytest.param(packed(b"") + packed(b""), Status.UNIMPLEMENTED, id="two-empty"),
        pytest.param(packed(b"abc") + packed(b"abc"), Status.UNIMPLEMENTED, id="two"),
    ],
)
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_bytes_that_are_not_one_message(data: bytes, status: Status, step: int) -> None:
    message = Message(100)

    def read() -> None:
        for position in range(0, len(data), step):
            message.feed(data[position : position + step])
        message.finish()

    with pytest.raises(RpcError) as caught:
        read()
    assert caught.value.status is status


def test_a_message_of_exactly_the_limit() -> None:
    message = Message(100)
    message.feed(packed(b"x" * 100))
    assert message.finish() == b"x" * 100


# -- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        pytest.param(b"2H", 7200, id="hours"),
        pytest.param(b"3M", 180, id="minutes"),
        pytest.param(b"10S", 10, id="seconds"),
        pytest.param(b"250m", 0.25, id="milli"),
        pytest.param(b"99999999u", 99.999999, id="micro"),
        pytest.param(b"5n", 5e-9, id="nano"),
    ],
)
def test_timeouts_are_read(value: bytes, seconds: float) -> None:
    assert decode_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [b"", b"1", b"S", b"1s", b"-1S", b"1.5S", b"123456789S", b" 1S", b"1S\n", b"\xb2S"])
def test_timeouts_that_are_none(value: bytes) -> None:
    with pytest.raises(RpcError) as caught:
        decode_timeout(value)
    assert caught.value.status is Status.INTERNAL


@given(st.floats(1e-6, 1e7))
def test_timeouts_survive_the_wire(seconds: float) -> None:
    value = encode_timeout(seconds)
    assert len(value) <= 9
    assert decode_timeout(value) == pytest.approx(seconds, rel=1e-2, abs=1e-6)
    assert decode_timeout(value) <= seconds * (1 + 1e-9) or seconds < 2e-6


def test_a_timeout_is_never_nothing_and_never_too_long() -> None:
    assert encode_timeout(1e-12) == b"1u"
    assert encode_timeout(1e12) == b"99999999S"


# -- statuses ---------------------------------------------------------------------------------------------------------


@given(st.text(max_size=300))
def test_messages_survive_the_wire(text: str) -> None:
    value = encode_message(text)
    assert all(0x20 <= byte < 0x7F for byte in value)
    assert decode_message(value) == text.encode("utf-8", "replace").decode()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("no key", b"no key", id="plain"),
        pytest.param("100%", b"100%25", id="percent"),
        pytest.param("a\nb", b"a%0Ab", id="line-feed"),
        pytest.param("ключ", b"%D0%BA%D0%BB%D1%8E%D1%87", id="utf-8"),
        pytest.param("x" * 5000, b"x" * 1024, id="long"),
        pytest.param("\ud800", b"?", id="surrogate"),
    ],
)
def test_messages_are_percent_encoded(text: str, value: bytes) -> None:
    assert encode_message(text) == value


@pytest.mark.parametrize(("value", "text"), [(b"50%", "50%"), (b"%zz", "%zz"), (b"%ff", "\ufffd")])
def test_messages_that_are_not_well_encoded_are_kept(value: bytes, text: str) -> None:
    assert decode_message(value) == text


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (b"0", Status.OK),
        (b"16", Status.UNAUTHENTICATED),
        (b"17", Status.UNKNOWN),
        (b"-1", Status.UNKNOWN),
        (b"", Status.UNKNOWN),
        (b"x", Status.UNKNOWN),
        (b"9" * 5000, Status.UNKNOWN),
    ],
)
def test_statuses_are_read(value: bytes, status: Status) -> None:
    assert decode_status(value) is status


def test_what_lower_layers_mean() -> None:
    assert of_http(b"404") is Status.UNIMPLEMENTED
    assert of_http(b"503") is Status.UNAVAILABLE
    assert of_http(b"500") is Status.UNKNOWN
    assert of_http(b"") is Status.UNKNOWN
    assert of_reset(ErrorCodes.REFUSED_STREAM) is Status.UNAVAILABLE
    assert of_reset(ErrorCodes.CANCEL) is Status.CANCELLED
    assert of_reset(12345) is Status.UNKNOWN


def test_ok_is_not_an_error() -> None:
    with pytest.raises(ValueError, match="OK"):
        RpcError(Status.OK)
    assert str(RpcError(Status.ABORTED)) == "ABORTED"
    assert str(RpcError(Status.ABORTED, "why")) == "ABORTED: why"


# -- heads ------------------------------------------------------------------------------------------------------------

GOOD = [(name.encode(), value.encode()) for name, value in HEAD]


def changed(name: bytes, value: bytes | None) -> list[tuple[bytes, bytes]]:
    return [(n, v if n != name else value) for n, v in GOOD if n != name or value is not None]


def test_the_head_of_a_request() -> None:
    assert parse_request(GOOD) == ("/test.Echo/Echo", None)
    assert parse_request([*GOOD, (b"grpc-timeout", b"1S")]) == ("/test.Echo/Echo", b"1S")
    assert parse_request(changed(b"te", None)) == ("/test.Echo/Echo", None)
    assert parse_request(changed(b"content-type", b"application/grpc+proto")) == ("/test.Echo/Echo", None)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param([], id="empty"),
        pytest.param(changed(b":path", None), id="no-path"),
        pytest.param(changed(b":path", b""), id="empty-path"),
        pytest.param(changed(b":method", None), id="no-method"),
        pytest.param(changed(b":scheme", None), id="no-scheme"),
        pytest.param([*GOOD, (b":path", b"/x")], id="pseudo-after-regular"),
        pytest.param([(b":path", b"/x"), *GOOD], id="two-paths"),
        pytest.param([(b":status", b"200"), *GOOD], id="pseudo-of-answer"),
        pytest.param([*GOOD, (b"X-Y", b"z")], id="upper-case"),
        pytest.param([*GOOD, (b"connection", b"close")], id="connection"),
        pytest.param([*GOOD, (b"transfer-encoding", b"chunked")], id="transfer-encoding"),
        pytest.param(changed(b"te", b"gzip"), id="te"),
    ],
)
def test_heads_that_are_malformed(head: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Malformed):
        parse_request(head)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(changed(b":method", b"GET"), b"405", id="get"),
        pytest.param(changed(b"content-type", None), b"415", id="no-content-type"),
        pytest.param(changed(b"content-type", b"application/json"), b"415", id="json"),
        pytest.param(changed(b"content-type", b"application/grpc-web"), b"415", id="grpc-web"),
    ],
)
def test_requests_that_are_not_grpc(head: list[tuple[bytes, bytes]], status: bytes) -> None:
    with pytest.raises(NotGrpc) as caught:
        parse_request(head)
    assert caught.value.status == status


ANSWER = [(b":status", b"200"), (b"content-type", b"application/grpc")]


@pytest.mark.parametrize(
    ("head", "ended", "status"),
    [
        pytest.param([*ANSWER, (b"grpc-status", b"5"), (b"grpc-message", b"a%20b")], True, Status.NOT_FOUND, id="only"),
        pytest.param([*ANSWER, (b"grpc-status", b"0")], True, Status.UNIMPLEMENTED, id="ok-without-message"),
        pytest.param(ANSWER, True, Status.UNKNOWN, id="no-status"),
        pytest.param([(b":status", b"200")], False, Status.UNKNOWN, id="no-content-type"),
        pytest.param([(b":status", b"200"), (b"content-type", b"text/html")], False, Status.UNKNOWN, id="html"),
        pytest.param([(b":status", b"503")], False, Status.UNAVAILABLE, id="503"),
        pytest.param([(b":status", b"415")], True, Status.UNKNOWN, id="415"),
        pytest.param([], True, Status.UNKNOWN, id="empty"),
    ],
)
def test_answers_that_fail_at_once(head: list[tuple[bytes, bytes]], ended: bool, status: Status) -> None:
    with pytest.raises(RpcError) as caught:
        check_answer(head, ended=ended)
    assert caught.value.status is status


def test_answers_that_go_on() -> None:
    check_answer(ANSWER, ended=False)
    check_trailers([(b"grpc-status", b"0")])
    with pytest.raises(RpcError, match="UNKNOWN"):
        check_trailers([])
    with pytest.raises(RpcError, match="ABORTED: why"):
        check_trailers([(b"grpc-status", b"10"), (b"grpc-message", b"why")])


# -- frames -----------------------------------------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = frame(4, 0, 0)
GOAWAY = frame(7, 0, 0, (7).to_bytes(4, "big") + (11).to_bytes(4, "big") + b"calm")
CALL = frame(1, 4, 1, b"\x82") + frame(0, 1, 1, b"hello")


@given(st.lists(st.integers(0, 200), max_size=30))
def test_frames_pass_in_pieces_of_any_size_and_goaways_are_taken(cuts: list[int]) -> None:
    scanner = Scanner(preface=True, headers=1000)
    data = PREFACE + SETTINGS + CALL + GOAWAY + frame(3, 0, 1, b"\0\0\0\x08") + GOAWAY
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    passed = b"".join(scanner.feed(data[a:b]) for a, b in pairwise(edges))
    assert passed == PREFACE + SETTINGS + CALL + frame(3, 0, 1, b"\0\0\0\x08")
    assert scanner.goaways == [(7, 11, b"calm")] * 2
    assert (scanner.controls, scanner.settings, scanner.resets, scanner.claims) == (2, 1, 1, 2)


@pytest.mark.parametrize(
    ("data", "controls"),
    [
        pytest.param(frame(6, 0, 0, bytes(8)), 1, id="ping"),
        pytest.param(frame(2, 0, 1, bytes(5)), 1, id="priority"),
        pytest.param(frame(8, 0, 0, bytes(4)), 1, id="window-update"),
        pytest.param(frame(99, 0, 0), 1, id="unknown"),
        pytest.param(frame(0, 0, 1), 1, id="empty-data"),
        pytest.param(frame(0, 0, 1, b"x"), 1, id="tiny-data"),
        pytest.param(frame(0, 0, 1, bytes(1000)), 0, id="data"),
        pytest.param(frame(0, 1, 1), 0, id="end"),
        pytest.param(frame(0, 8, 1, b"\xff" + bytes(255)), 1, id="padding-only"),
        pytest.param(frame(1, 0, 1) + frame(9, 0, 1) * 3, 3, id="continuations"),
    ],
)
def test_frames_that_carry_nothing_are_counted(data: bytes, controls: int) -> None:
    scanner = Scanner(preface=False, headers=1000)
    assert scanner.feed(data) == data
    assert scanner.controls == controls


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(0, 0, 1, length=16385), ErrorCodes.FRAME_SIZE_ERROR, id="large"),
        pytest.param(frame(7, 0, 0, length=0xFFFFFF), ErrorCodes.FRAME_SIZE_ERROR, id="large-goaway"),
        pytest.param(frame(7, 0, 0, bytes(7)), ErrorCodes.FRAME_SIZE_ERROR, id="short-goaway"),
        pytest.param(frame(7, 0, 0), ErrorCodes.FRAME_SIZE_ERROR, id="empty-goaway"),
        pytest.param(frame(4, 0, 0, bytes(6 * 65)), ErrorCodes.ENHANCE_YOUR_CALM, id="many-settings"),
        pytest.param(frame(5, 4, 1, b"\0\0\0\2"), ErrorCodes.PROTOCOL_ERROR, id="push"),
        pytest.param(frame(1, 4, 1, bytes(1001)), ErrorCodes.ENHANCE_YOUR_CALM, id="large-headers"),
        pytest.param(
            frame(1, 0, 1, bytes(500)) + frame(9, 0, 1, bytes(501)), ErrorCodes.ENHANCE_YOUR_CALM, id="in-two-parts"
        ),
    ],
)
@pytest.mark.parametrize("step", [1, 100000])
def test_frames_that_end_a_connection(data: bytes, code: ErrorCodes, step: int) -> None:
    scanner = Scanner(preface=False, headers=1000)

    def feed() -> None:
        for position in range(0, len(data), step):
            scanner.feed(data[position : position + step])
        scanner.feed(SETTINGS)

    with pytest.raises(Violation) as caught:
        feed()
    assert caught.value.code == code


def test_a_goaway_inside_a_header_block_is_left_to_h2() -> None:
    data = frame(1, 0, 1, b"\x82") + GOAWAY
    scanner = Scanner(preface=False, headers=1000)
    assert scanner.feed(data) == data
    assert scanner.goaways == []


def test_a_budget_is_spent_refilled_and_earned() -> None:
    budget = Budget(10, 2.0, 100.0)
    assert budget.spend(10, 100.0)
    assert not budget.spend(1, 100.0)
    assert budget.spend(1, 101.0)
    assert not budget.spend(5, 101.5)
    budget.earn(100)
    assert budget.spend(10, 101.5)
    assert not budget.spend(1, 101.5)
