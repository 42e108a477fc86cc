"""The fast path of gRPC does what h2 and hpack would do: first by itself, then in our whole server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import pytest
from h2.errors import ErrorCodes
from hpack import Decoder, Encoder, HPACKDecodingError, HPACKError, NeverIndexedHeaderTuple, OversizedHeaderListError
from hypothesis import given
from hypothesis import strategies as st

from notary.net.grpc import GrpcLimits
from notary.net.grpc.fast import FastDecoder, Request, answer, end_of_frame, find_request
from notary.net.grpc.frames import LARGEST_FRAME, Scanner
from tests.support.rawgrpc import PREFACE, RawClient, Service, frame, packed, path, with_headers

# -- blocks of headers ------------------------------------------------------------------------------------------------

names = st.sampled_from([b":path", b":method", b"te", b"grpc-timeout", b"x"])
fields = st.lists(st.tuples(names, st.sampled_from([b"POST", b"trailers", b"1S", b"/a"]), st.booleans()), max_size=8)


def fast_decoder(limit: int = 65536) -> FastDecoder[int]:
    """Its meaning of a block is how many fields it has."""
    made = FastDecoder(len)
    made.max_header_list_size = limit
    return made


@given(st.lists(fields, max_size=8), st.integers(0, 200))
def test_the_quick_decoder_says_what_the_library_says(blocks: list[list[tuple[bytes, bytes, bool]]], size: int) -> None:
    encoder, slow, quick = Encoder(), Decoder(), fast_decoder()
    for number, block in enumerate(blocks * 2):
        if number == 3:
            encoder.header_table_size = size
        data = encoder.encode(block)
        assert list(quick.decode(data, raw=True)) == list(slow.decode(data, raw=True))
        assert quick.header_table.dynamic_entries == slow.header_table.dynamic_entries


@given(st.lists(st.binary(max_size=12), max_size=8))
def test_the_quick_decoder_refuses_what_the_library_refuses(blocks: list[bytes]) -> None:
    slow, quick = Decoder(max_header_list_size=300), fast_decoder(300)
    for block in [each for each in blocks for _ in range(2)]:
        try:
            expected = list(slow.decode(block, raw=True))
        except HPACKError:
            with pytest.raises(HPACKError):
                quick.decode(block, raw=True)
            return
        assert list(quick.decode(block, raw=True)) == expected
        assert quick.header_table.dynamic_entries == slow.header_table.dynamic_entries


def test_a_block_is_known_until_the_table_changes() -> None:
    quick = fast_decoder()
    add_x, add_y, newest = b"\x40\x01x\x011", b"\x40\x01y\x012", b"\xbe"
    assert quick.decode(add_x, raw=True) == ((b"x", b"1"),)
    assert quick.known == {}, "it has changed the table"
    assert quick.decode(newest, raw=True) == ((b"x", b"1"),)
    assert quick.known == {newest: (((b"x", b"1"),), 1)}
    assert quick.decode(add_y, raw=True) == ((b"y", b"2"),)
    assert quick.known == {}
    assert quick.decode(newest, raw=True) == ((b"y", b"2"),)
    assert quick.decode(b"\x20" + newest[:0], raw=True) == (), "the table has no room any more"
    assert quick.known == {}
    with pytest.raises(HPACKDecodingError):
        quick.decode(newest, raw=True)


def test_a_block_that_fails_half_way_makes_what_is_known_forgotten() -> None:
    quick = fast_decoder()
    quick.decode(b"\x82", raw=True)
    with pytest.raises(HPACKDecodingError):
        quick.decode(b"\x40\x01x\x011\xff", raw=True)
    assert quick.known == {}


def test_what_is_known_is_bounded() -> None:
    quick = fast_decoder()
    for number in range(1000):
        value = b"%d" % number
        quick.decode(b"\x10\x01t%c%b" % (len(value), value), raw=True)
        assert len(quick.known) <= 64
    quick.decode(b"\x10\x01t\x7f\x81\x04" + bytes(640), raw=True)
    assert max(map(len, quick.known)) < 10


def test_the_quick_decoder_keeps_the_limits() -> None:
    quick = fast_decoder(100)
    for _ in range(2):
        with pytest.raises(OversizedHeaderListError):
            quick.decode(b"\x82\x83\x84", raw=True)
    with pytest.raises(HPACKDecodingError):
        quick.decode(b"\x82\x20", raw=True)
    assert quick.decode(b"\x82", raw=True) == ((b":method", b"GET"),)
    assert quick.decode(b"\x82", raw=False) == ((":method", "GET"),)


# -- requests ---------------------------------------------------------------------------------------------------------

BLOCK = b"\x83\x86"
KNOWN = {BLOCK: ((), "meant"), b"\x82": ((), None)}
CALL_HEAD = frame(1, 4, 7, BLOCK)
ROOM, MORE_ROOM = frame(8, 0, 7, (30).to_bytes(4, "big")), frame(8, 0, 0, (40).to_bytes(4, "big"))
BODY = frame(0, 1, 7, packed(b"abc"))


@pytest.mark.parametrize(
    ("data", "room", "more_room"),
    [
        pytest.param(CALL_HEAD + BODY, 0, 0, id="two-frames"),
        pytest.param(CALL_HEAD + ROOM + BODY, 30, 0, id="room-for-the-stream"),
        pytest.param(CALL_HEAD + BODY + MORE_ROOM, 0, 40, id="room-for-all"),
        pytest.param(CALL_HEAD + ROOM + BODY + MORE_ROOM, 30, 40, id="both"),
    ],
)
@pytest.mark.parametrize("behind", [b"", MORE_ROOM[:9], CALL_HEAD + BODY, b"x"])
def test_a_request_is_found(data: bytes, room: int, more_room: int, behind: bytes) -> None:
    found = find_request(b"before" + data + behind, 6, KNOWN)
    assert found == Request(7, "meant", b"abc", 8, 6 + len(data), room, more_room)
    whole = len(data) - (13 if more_room else 0)
    assert all(find_request(data[:cut], 0, KNOWN) is None for cut in range(whole))


def test_the_largest_request_is_found() -> None:
    message = bytes(LARGEST_FRAME - 5)
    found = find_request(CALL_HEAD + frame(0, 1, 7, packed(message)), 0, KNOWN)
    assert found is not None
    assert (found.message, found.size) == (message, LARGEST_FRAME)
    assert find_request(CALL_HEAD + frame(0, 1, 7, packed(bytes(LARGEST_FRAME - 4))), 0, KNOWN) is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(1, 0, 7, BLOCK) + BODY, id="headers-go-on"),
        pytest.param(frame(1, 5, 7, BLOCK) + BODY, id="headers-end-the-stream"),
        pytest.param(frame(1, 4 | 8, 7, b"\0" + BLOCK) + BODY, id="padded-headers"),
        pytest.param(frame(1, 4 | 0x20, 7, bytes(5) + BLOCK) + BODY, id="priority"),
        pytest.param(frame(1, 4, 8, BLOCK) + frame(0, 1, 8, packed(b"abc")), id="even-stream"),
        pytest.param(frame(1, 4, 1 << 31 | 7, BLOCK) + frame(0, 1, 1 << 31 | 7, packed(b"abc")), id="reserved-bit"),
        pytest.param(frame(1, 4, 0, BLOCK) + frame(0, 1, 0, packed(b"abc")), id="no-stream"),
        pytest.param(frame(1, 4, 7, b"\x84") + BODY, id="unknown-block"),
        pytest.param(frame(1, 4, 7, b"\x82") + BODY, id="block-without-meaning"),
        pytest.param(frame(9, 4, 7, BLOCK) + BODY, id="continuation"),
        pytest.param(CALL_HEAD + frame(0, 0, 7, packed(b"abc")), id="data-goes-on"),
        pytest.param(CALL_HEAD + frame(0, 9, 7, b"\0" + packed(b"abc")), id="padded-data"),
        pytest.param(CALL_HEAD + frame(0, 1, 5, packed(b"abc")), id="data-of-another-stream"),
        pytest.param(CALL_HEAD + frame(1, 5, 7, b"\x10\x01a\x01b"), id="trailers"),
        pytest.param(CALL_HEAD + frame(3, 0, 7, bytes(4)) + BODY, id="reset"),
        pytest.param(CALL_HEAD + frame(0, 1, 7), id="no-message"),
        pytest.param(CALL_HEAD + frame(0, 1, 7, b"\0\0\0\0") + b"\0", id="short-prefix"),
        pytest.param(CALL_HEAD + frame(0, 1, 7, packed(b"abc", 1)), id="compressed"),
        pytest.param(CALL_HEAD + frame(0, 1, 7, packed(b"abc") + b"d"), id="more-than-one"),
        pytest.param(CALL_HEAD + frame(0, 1, 7, packed(b"abc")[:-1]) + b"c", id="truncated"),
        pytest.param(CALL_HEAD + ROOM + ROOM + BODY, id="room-twice"),
        pytest.param(CALL_HEAD + MORE_ROOM + BODY, id="room-for-all-between"),
        pytest.param(CALL_HEAD + frame(8, 0, 5, b"\0\0\0\1") + BODY, id="room-for-another"),
        pytest.param(CALL_HEAD + frame(8, 0, 7, bytes(4)) + BODY, id="no-room"),
        pytest.param(CALL_HEAD + frame(8, 0, 7, b"\xff\xff\xff\xff") + BODY, id="room-with-reserved-bit"),
        pytest.param(CALL_HEAD + frame(8, 1, 7, b"\0\0\0\1") + BODY, id="room-with-a-flag"),
        pytest.param(CALL_HEAD + frame(8, 0, 7, b"\0\0\1") + BODY, id="short-room"),
        pytest.param(CALL_HEAD + BODY + frame(8, 0, 0, bytes(4)), id="no-room-for-all"),
    ],
)
def test_what_is_in_any_way_different_goes_the_general_way(data: bytes) -> None:
    assert find_request(data, 0, KNOWN) is None


def test_frames_are_stepped_over() -> None:
    data = b"before" + CALL_HEAD + BODY
    assert end_of_frame(data, 6) == 6 + len(CALL_HEAD)
    assert end_of_frame(data, 6 + len(CALL_HEAD)) == len(data)
    assert end_of_frame(data[:-1], 6 + len(CALL_HEAD)) == len(data) - 1
    assert end_of_frame(b"\0", 0) == 1


# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_short_answer_is_what_it_should_be() -> None:
    data = answer(7, packed(b"abc"))
    scanner = Scanner(preface=False, headers=1000)
    assert scanner.feed(data) == data
    head = data[9 : 9 + data[2]]
    assert list(Decoder().decode(head, raw=True)) == [(b":status", b"200"), (b"content-type", b"application/grpc")]
    assert data.endswith(b"grpc-status\x010")
    assert packed(b"abc") in data


# -- with and without -------------------------------------------------------------------------------------------------

Frames = Callable[["Peer", int], bytes]


class Peer:
    """Writes the frames of a client; its table of headers is its own."""

    def __init__(self) -> None:
        self.encoder = Encoder()
        self.stream = 9

    def head(self, name: str, stream: int, *more: tuple[str, str], flags: int = 4) -> bytes:
        return frame(1, flags, stream, self.encoder.encode([*path(name), *more]))


def call(name: str, message: bytes = b"message") -> Frames:
    return lambda peer, stream: peer.head(name, stream) + frame(0, 1, stream, packed(message))


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def never_indexed(peer: Peer, stream: int) -> bytes:
    timeout = NeverIndexedHeaderTuple("grpc-timeout", f"{stream}S")
    block = peer.encoder.encode([*path("Echo"), timeout])
    return frame(1, 4, stream, block) + frame(0, 1, stream, packed(b"timed"))


def continued(peer: Peer, stream: int) -> bytes:
    block = peer.encoder.encode(path("Echo"))
    return frame(1, 0, stream, block[:3]) + frame(9, 4, stream, block[3:]) + frame(0, 1, stream, packed(b"continued"))


GOOD: dict[str, Frames] = {
    "echo": call("Echo"),
    "empty": call("Echo", b""),
    "refuse": call("Refuse", b"why"),
    "fault": call("Fault"),
    "wait": call("Wait"),
    "async": call("Async"),
    "large": call("Large", b"30000"),
    "too-large": call("Large", b"5000000"),
    "unknown-method": call("Nothing"),
    "over-the-limit": call("Echo", bytes(1001)),
    "timeout": never_indexed,
    "a-bad-timeout": lambda peer, stream: (
        peer.head("Echo", stream, ("grpc-timeout", "soon")) + frame(0, 1, stream, packed(b"x"))
    ),
    "new-field": lambda peer, stream: (
        peer.head("Echo", stream, ("x-new", f"{stream}")) + frame(0, 1, stream, packed(b"new"))
    ),
    "smaller-table": lambda peer, stream: (
        setattr(peer.encoder, "header_table_size", 60 + stream) or call("Echo")(peer, stream)
    ),
    "content-length": lambda peer, stream: (
        peer.head("Echo", stream, ("content-length", "6")) + frame(0, 1, stream, packed(b"x"))
    ),
    "get": lambda peer, stream: frame(1, 4, stream, peer.encoder.encode(with_headers(__method="GET"))),
    "malformed-head": lambda peer, stream: (
        frame(1, 4, stream, peer.encoder.encode(with_headers(te="gzip"))) + frame(0, 1, stream, packed(b"x"))
    ),
    "grpcio": lambda peer, stream: (
        peer.head("Echo", stream)
        + frame(8, 0, stream, number(5))
        + frame(0, 1, stream, packed(b"like grpcio"))
        + frame(8, 0, 0, number(7))
    ),
    "too-much-room": lambda peer, stream: (
        peer.head("Echo", stream) + frame(8, 0, stream, number((1 << 31) - 1)) + frame(0, 1, stream, packed(b"x"))
    ),
    "padded": lambda peer, stream: (
        peer.head("Echo", stream) + frame(0, 9, stream, b"\2" + packed(b"padded") + bytes(2))
    ),
    "padded-head": lambda peer, stream: (
        frame(1, 4 | 8, stream, b"\1" + peer.encoder.encode(path("Echo")) + b"\0") + frame(0, 1, stream, packed(b"x"))
    ),
    "priority": lambda peer, stream: (
        frame(1, 4 | 0x20, stream, bytes(5) + peer.encoder.encode(path("Echo"))) + frame(0, 1, stream, packed(b"x"))
    ),
    "continuation": continued,
    "two-frames-of-data": lambda peer, stream: (
        peer.head("Echo", stream) + frame(0, 0, stream, packed(b"ab")[:6]) + frame(0, 1, stream, b"b")
    ),
    "compressed": lambda peer, stream: peer.head("Echo", stream) + frame(0, 1, stream, packed(b"x", 1)),
    "two-messages": lambda peer, stream: peer.head("Echo", stream) + frame(0, 1, stream, packed(b"x") * 2),
    "no-message": lambda peer, stream: peer.head("Echo", stream, flags=5),
    "a-call-around-another": lambda peer, stream: (
        peer.head("Echo", stream) + call("Echo")(peer, stream + 2) + frame(0, 1, stream, packed(b"around"))
    ),
    "crossing-calls": lambda peer, stream: (
        peer.head("Echo", stream)
        + peer.head("Wait", stream + 2)
        + frame(0, 1, stream, packed(b"crossing"))
        + frame(0, 1, stream + 2, packed(b"x"))
    ),
    "ping": lambda _peer, _stream: frame(6, 0, 0, b"pingpong"),
    "room": lambda _peer, _stream: frame(8, 0, 0, number(40_000)),
    "no-room-on-streams": lambda _peer, _stream: frame(4, 0, 0, b"\0\4" + number(3)),
    "room-on-streams": lambda _peer, _stream: frame(4, 0, 0, b"\0\4" + number(60_000)),
    "small-table-for-answers": lambda _peer, _stream: frame(4, 0, 0, b"\0\1" + number(0)),
}
"""What leaves a connection as it is."""

BAD: dict[str, Frames] = {
    "reset": lambda _peer, stream: frame(3, 0, stream - 4, number(8)),
    "data-behind-the-end": lambda _peer, stream: frame(0, 1, stream - 4, packed(b"x")),
    "the-same-stream-again": lambda peer, stream: call("Echo")(peer, stream - 4),
    "backwards": lambda peer, stream: call("Echo")(peer, stream - 6),
    "even": lambda peer, stream: call("Echo")(peer, stream + 1),
    "room-beyond-all": lambda _peer, _stream: frame(8, 0, 0, number((1 << 31) - 1)),
    "room-beyond-all-behind-a-call": lambda peer, stream: (
        call("Echo")(peer, stream) + frame(8, 0, 0, number((1 << 31) - 1))
    ),
    "no-room": lambda peer, stream: call("Echo")(peer, stream) + frame(8, 0, 0, number(0)),
    "in-a-block": lambda peer, stream: peer.head("Echo", stream, flags=0) + call("Echo")(peer, stream + 2),
    "index-of-nothing": lambda _peer, stream: frame(1, 4, stream, b"\xfd") + frame(0, 1, stream, packed(b"x")),
    "too-long": lambda peer, stream: peer.head("Echo", stream) + frame(0, 1, stream, length=20_000),
}
"""What does not, or depends on what is read together. The thing before had the streams from ``stream - 4`` on."""


class Pair:
    """Our server and a client that says what it is told, for one of the ways to be told."""

    def __init__(self, *, fast: bool) -> None:
        self.service = Service(GrpcLimits(message=1000))
        self.client = RawClient(self.service.factory, self.service.clock, mute=True)
        if not fast:
            self.client.protocol.meaning = lambda _fields: None
            self.client.protocol._decoder._meaning = self.client.protocol.meaning
        self.said = b""
        self.feed(PREFACE + frame(4, 0, 0))

    def feed(self, data: bytes, step: int = 1 << 20) -> None:
        transport = self.client.transport
        for begin in range(0, len(data), step):
            if transport.connected:
                self.client.protocol.dataReceived(data[begin : begin + step])
        self.service.clock.advance(0)
        self.said += transport.value()
        transport.clear()

    def finish(self) -> dict[str, Any]:
        """All that can be seen from outside, and what h2 thinks of the connection."""
        for pending in self.service.pending:
            if not pending.called:
                pending.callback(b"at last")
        self.feed(b"")
        h2 = self.client.protocol._h2
        seen = {
            "streams": self.streams(),
            "finished": sorted((path, status) for path, status, _, _ in self.service.finished),
            "deadlines": sorted(context.remaining() or 0 for context in self.service.contexts),
            "faults": len(self.service.errors),
            "connected": self.client.connected,
            "windows": (h2.inbound_flow_control_window, h2.outbound_flow_control_window),
            "last": h2.highest_inbound_stream_id,
            "consumed": self.client.protocol._consumed,
        }
        if self.client.connected:
            self.client.transport.loseConnection()
        assert self.service.clock.getDelayedCalls() == []
        return seen

    def streams(self) -> dict[int, list[Any]]:
        """What was said on each stream; pieces of DATA are joined, and so is room for the connection."""
        frames: dict[int, list[Any]] = {}
        decoder = Decoder()
        at = 0
        while at < len(self.said):
            size, kind, flags = int.from_bytes(self.said[at : at + 3], "big"), self.said[at + 3], self.said[at + 4]
            stream = int.from_bytes(self.said[at + 5 : at + 9], "big")
            payload: Any = self.said[at + 9 : at + 9 + size]
            at += 9 + size
            if kind == 1:
                payload = list(decoder.decode(payload))
            elif kind == 7:
                payload = payload[:8]
            frames.setdefault(stream, []).append((kind, flags, payload))
        return {
            stream: [
                (kind, b"".join(each[2] for each in group) if kind == 0 else list(group))
                for kind, group in groupby(said, key=lambda each: each[0])
            ]
            for stream, said in frames.items()
        }


def told(names: list[str]) -> list[bytes]:
    """The frames of a client that does these things one after the other."""
    peer = Peer()
    said = []
    for name in names:
        said.append((GOOD | BAD)[name](peer, peer.stream))
        peer.stream += 4
    return said


def outcome(said: list[bytes], *, fast: bool, step: int = 1 << 20) -> dict[str, Any]:
    pair = Pair(fast=fast)
    for data in said:
        pair.feed(data, step)
    return pair.finish()


def why_it_ended(seen: dict[str, Any]) -> ErrorCodes:
    kind, goaways = seen["streams"][0][-1]
    assert kind == 7
    return ErrorCodes(int.from_bytes(goaways[0][2][4:8], "big"))


LIKELY = st.sampled_from(["echo", "grpcio", "wait", "new-field"])


@given(st.lists(LIKELY | st.sampled_from(sorted(GOOD)), max_size=12))
def test_calls_are_answered_alike_however_they_come(names: list[str]) -> None:
    apart, together = told(names), [b"".join(told(names))]
    assert outcome(apart, fast=False)["connected"]
    assert outcome(apart, fast=True) == outcome(apart, fast=False)
    assert outcome(together, fast=True) == outcome(together, fast=False)
    assert outcome(together, fast=True, step=1) == outcome(together, fast=False, step=1)


@given(st.lists(LIKELY | st.sampled_from(sorted(GOOD | BAD)), max_size=12))
def test_what_breaks_the_rules_is_met_alike(names: list[str]) -> None:
    said = told(names)
    assert outcome(said, fast=True) == outcome(said, fast=False)
    assert outcome(said, fast=True, step=1) == outcome(said, fast=False, step=1)
    outcome([b"".join(said)], fast=True)  # which h2 may judge in another way; it only must have an end


@pytest.mark.parametrize("name", sorted(GOOD | BAD))
def test_each_thing_is_met_alike_between_calls(name: str) -> None:
    said = told(["echo", "echo", name, "echo", "grpcio"])
    assert outcome(said, fast=True) == outcome(said, fast=False)


class Familiar(Pair):
    """A server that knows the head of a call; ``heard`` is what its h2 is told from now on."""

    def __init__(self) -> None:
        super().__init__(fast=True)
        self.peer = Peer()
        for name, stream in (("Wait", 1), ("Echo", 3), ("Wait", 5), ("Echo", 7)):
            self.feed(call(name)(self.peer, stream))
        self.heard: list[bytes] = []
        h2 = self.client.protocol._h2
        receive = h2.receive_data
        h2.receive_data = lambda data: self.heard.append(data) or receive(data)

    def call(self, name: str, stream: int, message: bytes = b"message") -> bytes:
        return call(name, message)(self.peer, stream)


@pytest.fixture
def server() -> Iterator[Familiar]:
    made = Familiar()
    yield made
    made.client.transport.loseConnection()
    assert made.service.clock.getDelayedCalls() == []


def test_calls_that_come_whole_never_reach_h2(server: Familiar) -> None:
    server.feed(b"".join(server.call("Echo", stream, b"%d" % stream) for stream in range(9, 109, 2)))
    assert server.heard == []
    assert len(server.service.finished) == 52
    assert server.streams()[107][1] == (0, packed(b"107"))


def test_the_window_of_the_connection_is_kept_and_renewed(server: Familiar) -> None:
    h2 = server.client.protocol._h2
    server.feed(frame(8, 0, 0, number(1 << 20)))
    window = h2.inbound_flow_control_window
    server.said = b""
    server.heard.clear()
    for stream in range(9, 1209, 2):
        server.feed(server.call("Echo", stream, bytes(995)))
    assert server.heard == []
    ((_, renewed),) = server.streams()[0]
    ((kind, _, more),) = renewed
    assert kind == 8
    assert h2.inbound_flow_control_window == window - 600 * 1000 + int.from_bytes(more, "big")
    assert h2.inbound_flow_control_window > 1 << 19


def test_a_call_beyond_the_window_is_not_answered(server: Familiar) -> None:
    h2 = server.client.protocol._h2
    h2._inbound_flow_control_window_manager.window_consumed(h2.inbound_flow_control_window - 11)
    server.feed(server.call("Echo", 9))
    assert len(server.service.contexts) == 4
    assert why_it_ended({"streams": server.streams()}) is ErrorCodes.FLOW_CONTROL_ERROR


def test_an_answer_that_there_is_no_room_for_waits(server: Familiar) -> None:
    server.feed(frame(4, 0, 0, b"\0\4" + number(3)))
    server.heard.clear()
    data = server.call("Echo", 9)
    server.feed(data)
    assert server.heard == [data]
    assert server.streams()[9][-1] == (0, packed(b"message")[:3])
    server.feed(server.call("Echo", 11) + frame(8, 0, 9, number(100)))
    assert server.streams()[9][1] == (0, packed(b"message"))
    assert len(server.service.contexts) == 6


def test_a_call_that_waits_can_be_reset(server: Familiar) -> None:
    server.feed(server.call("Wait", 9) + server.call("Wait", 11))
    assert len(server.heard) == 2
    server.feed(frame(3, 0, 9, number(8)) + frame(3, 0, 11, number(8)))
    assert server.service.cancelled == 2
    assert sorted(server.client.protocol.streams) == [1, 5]


def test_streams_beyond_the_limit_are_refused_on_the_short_way_too(server: Familiar) -> None:
    server.client.protocol.limits = GrpcLimits(streams=3)
    server.feed(server.call("Wait", 9) + server.call("Wait", 11))
    assert len(server.service.pending) == 3
    assert server.streams()[11] == [(3, [(3, 0, number(ErrorCodes.REFUSED_STREAM))])]


def test_a_server_that_leaves_takes_no_calls_on_the_short_way_either(server: Familiar) -> None:
    server.client.protocol.leave(5.0, 3.0)
    server.feed(server.call("Wait", 9))
    assert len(server.service.pending) == 2
    assert server.streams()[9] == [(3, [(3, 0, number(ErrorCodes.REFUSED_STREAM))])]


def test_answers_leave_when_a_read_has_ended(server: Familiar) -> None:
    protocol, transport = server.client.protocol, server.client.transport
    protocol.reading = True
    for stream in (9, 11):
        protocol.dataReceived(server.call("Echo", stream))
    assert transport.value() == b""
    assert [each for each in server.service.clock.getDelayedCalls() if each.getTime() == 0] == []
    protocol.reading = False
    protocol.readEnded()
    assert transport.value().count(packed(b"message")) == 2
