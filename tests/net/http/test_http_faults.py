"""No input gets an exception out of the HTTP layer, and a fault inside of it ends one connection alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from notary.net.http.chunked import ChunkedReader, is_field
from notary.net.http.site import Response
from notary.net.http.target import BadRequest, decode_path, parse_query, redirection, split_target
from notary.storage.memory import MemoryMetadataStore
from tests.support.inmemory import Server as InMemory
from tests.support.rawhttp import HOST, Peer, Server, Transport, chunked, get, post

ADDRESS = IPv4Address("TCP", "192.0.2.1", 1234)
CALL = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@contextmanager
def nothing_logged() -> Iterator[None]:
    """Fail if a traceback is logged, or anything above a warning."""
    events: list[dict] = []
    globalLogPublisher.addObserver(events.append)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert [event for event in events if event.get("log_failure") is not None] == []


# -- any input --------------------------------------------------------------------------------------------------------

ODD = st.integers(0, 255).map(lambda number: bytes([number]))
TEXTS = (
    rb"/ // /.. /. ? # % %00 %2f %ff %C3%A9 a & = ; + : \ @ * http:// https://h [::1] /v2/a/_trust/tuf/ /v2/ /metrics "
    rb"root.json timestamp.key /v2/_trust/changefeed records=1"
)
PIECE = st.sampled_from([*TEXTS.split(), b"\x7f", b"\x80", b"\xc3\xa9", b"\xb0", b"\xb1", b'"'])
TARGET = st.lists(PIECE | ODD, min_size=1, max_size=8).map(b"".join)
METHOD = st.sampled_from([b"GET"] * 3 + [b"HEAD", b"POST", b"DELETE", b"PUT", b"get", b"X!"])
NAME = st.sampled_from(
    [b"Host", b"Expect", b"Content-Length", b"Transfer-Encoding", b"Connection", b"If-None-Match"]
) | (st.sampled_from([b"Authorization", b"Content-Type", b"X", b"", b" ", b"\xc3", b"\0"]))
VALUE = st.lists(
    st.sampled_from([b"0", b"3", b"9" * 30, b"chunked", b"identity", b"100-continue", b"close", b'"', b",", b"*", b"a"])
    | ODD,
    max_size=4,
).map(b"".join)
FIELD = st.tuples(NAME, VALUE).map(b": ".join)
BODY = st.sampled_from(
    [b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"1;x\r\na\r\n0\r\nA: b\r\n\r\n", b"0\r\n\r\n"]
) | st.binary(max_size=20)
REQUEST = st.builds(
    lambda method, target, fields, body: method + b" " + target + b" HTTP/1.1\r\n" + b"\r\n".join(fields) + body,
    METHOD,
    TARGET,
    st.lists(FIELD, max_size=3).map(lambda fields: [HOST[:-2], *fields, b"", b""]),
    BODY,
)


@settings(max_examples=400)
@given(REQUEST, st.integers(0, 400), st.booleans())
@example(get(b"//x?\x7f"), 0, False)
@example(get(b"//x?\x7f", b"Content-Length: 3", method=b"POST", body=b"abc"), 0, True)
@example(get(b"http://a\x7fb//x"), 0, False)
def test_no_request_gets_an_exception_out(raw: bytes, cut: int, tcp: bool) -> None:
    server = Server(takes_body=lambda call: call.method == "POST")
    with nothing_logged():
        for pieces in ([raw], [raw[:cut], raw[cut:]]):
            peer = server.connect(tcp=tcp)
            for piece in pieces:
                peer.send(piece)
            server.wait(40)
            assert CALL.match(peer.transport.value())
            if not peer.closed:
                peer.transport.loseConnection()
    assert server.faults == []
    assert server.site.bodies.held == 0
    server.clock.advance(100)
    assert server.clock.getDelayedCalls() == []


@settings(max_examples=200)
@given(REQUEST)
def test_no_request_gets_an_exception_out_of_the_api(raw: bytes) -> None:
    """Its table of routes, its refusals and its log lines meet the same bytes."""
    server = InMemory(MemoryMetadataStore(Clock()))
    with nothing_logged():
        peer = Peer(server, ADDRESS, tcp=False)
        peer.send(raw)
        peer.transport.loseConnection()
    assert server.site.bodies.held == 0


@given(st.lists(PIECE | ODD, max_size=12).map(b"".join).map(lambda raw: raw.decode("latin-1")))
@example("//x?\x7f")
@example("http://a\x7fb//x")
def test_what_a_target_says_can_be_sent_back(target: str) -> None:
    try:
        origin, path, query = split_target(target)
        decoded = decode_path(path)
    except BadRequest:
        return
    assert all(isinstance(value, tuple) for value in parse_query(query[1:]).values())
    location = redirection(origin, decoded, query)
    if location is not None:
        Response(301, b"", (("Location", location),))


def test_a_query_of_many_values_takes_work_in_proportion() -> None:
    """Each value used to copy those before it."""
    values = parse_query("&".join(["a"] * 100_000))
    assert values == {"a": ("",) * 100_000}


# -- chunks, alone ----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.sampled_from([b"", b"T: x\r\n"]), st.binary(max_size=9)
)
def test_chunks_are_read_whatever_way_they_are_cut(pieces: list[bytes], trailer: bytes, rest: bytes) -> None:
    raw = b"".join(b"%x;e\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"
    whole = ChunkedReader(1000, 3, 100)
    assert b"".join(whole.feed(raw + rest)) == b"".join(pieces)
    assert (whole.ended, whole.rest) == (True, rest)
    bytewise = ChunkedReader(1000, 3, 100)
    assert b"".join(piece for n in range(len(raw)) for piece in bytewise.feed(raw[n : n + 1])) == b"".join(pieces)
    assert (bytewise.ended, bytewise.rest) == (True, b"")


@given(st.binary(max_size=60) | st.text("0123456789abcdefABCDEF;=\r\n \t:x", max_size=60).map(str.encode))
def test_chunks_are_read_or_refused_and_little_of_them_is_kept(raw: bytes) -> None:
    reader = ChunkedReader(30, 3, 100)
    try:
        content = reader.feed(raw)
    except BadRequest:
        return
    assert sum(map(len, content)) <= 30
    assert reader._line.size <= 1024


@pytest.mark.parametrize(
    ("line", "good"),
    [
        (b"a:", True),
        (b"a:b", True),
        (b"A-1!: \t~\x80\xff ", True),
        (b"", False),
        (b":", False),
        (b"a", False),
        (b"a b: c", False),
        (b"a : b", False),
        (b"\xc3: b", False),
        *((b"a: b%cc" % number, False) for number in (*range(9), *range(10, 32), 127)),
        (b"a: b\tc", True),
    ],
)
def test_what_a_field_is(line: bytes, good: bool) -> None:
    assert is_field(line) is good


# -- faults of ours ---------------------------------------------------------------------------------------------------


class Broken(Exception):
    """What goes wrong in these tests."""


class Failing(Transport):
    """A transport of which some methods fail from a certain moment on."""

    failing: frozenset[str] = frozenset()

    def _may(self, name: str) -> None:
        if name in self.failing:
            raise Broken(name)

    def write(self, data: bytes) -> None:
        self._may("write")
        super().write(data)

    def loseConnection(self) -> None:
        self._may("loseConnection")
        super().loseConnection()

    def abortConnection(self) -> None:
        self._may("abortConnection")
        self.aborted = True
        super().loseConnection()

    def loseWriteConnection(self) -> None:
        self._may("loseWriteConnection")
        super().loseWriteConnection()

    def pauseProducing(self) -> None:
        self._may("pauseProducing")
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self._may("resumeProducing")
        super().resumeProducing()

    def unregisterProducer(self) -> None:
        self._may("unregisterProducer")
        super().unregisterProducer()


def connect(server: Server) -> Peer:
    peer = server.connect(tcp=True)
    peer.transport.__class__ = Failing
    return peer


WRITING = ["write", "loseConnection", "loseWriteConnection", "unregisterProducer", "resumeProducing", "pauseProducing"]
LARGE = b"x" * 3_000_000
SCENES: dict[str, Callable[[Server, Peer], object]] = {
    "fast path": lambda _, peer: peer.send(get()),
    "fast path, later": lambda _, peer: peer.send(get(b"/later")),
    "full path": lambda _, peer: peer.send(get(), piecewise=True),
    "full path, later": lambda _, peer: peer.send(post(b"abc").replace(b"POST /", b"POST /later")),
    "last request": lambda _, peer: peer.send(get(b"/", b"Connection: close")),
    "large": lambda _, peer: peer.send(get(b"/large")),
    "sent ahead": lambda _, peer: peer.send(get(b"/later")).send(get() * 1000),
    "body": lambda _, peer: peer.send(post(b"abc")),
    "half a body": lambda _, peer: peer.send(post(b"abc")[:-1]),
    "chunks": lambda _, peer: peer.send(chunked(b"3\r\nabc\r\n0\r\n\r\n")),
    "told to go on": lambda _, peer: peer.send(post(b"abc", b"Expect: 100-continue")[:-3]),
    "refused": lambda _, peer: peer.send(b"\0\r\n"),
    "refused body": lambda _, peer: peer.send(post(b"x" * 1001)),
    "half-closed": lambda _, peer: peer.send(b"GET").end(),
    "too slow": lambda server, peer: (peer.send(b"GET"), server.wait(12)),
    "idle": lambda server, peer: (peer.send(get()), server.wait(80)),
    "blocked": lambda _, peer: (peer.protocol.pauseProducing(), peer.send(get()), peer.protocol.resumeProducing()),
    "stopped": lambda server, _: Deferred.fromCoroutine(server.site.stop(5)),
    "lost": lambda _, peer: (peer.send(post(b"abc")[:-1]), Transport.loseConnection(peer.transport)),
}


@pytest.mark.parametrize("failing", [*([name] for name in WRITING), [*WRITING, "abortConnection"]], ids="-".join)
@pytest.mark.parametrize("scene", SCENES)
def test_a_fault_ends_one_connection_alone(scene: str, failing: list[str]) -> None:
    waiting: list[Deferred[Response]] = []

    def handler(call):
        if call.path != "/later":
            return Response(200, LARGE if call.path == "/large" else b"hello")
        waiting.append(Deferred())
        return waiting[-1]

    server = Server(handler=handler)
    other = server.connect()
    peer = connect(server)
    peer.transport.failing = frozenset(failing)
    with nothing_logged():
        SCENES[scene](server, peer)
        while waiting:
            waiting.pop().callback(Response(200))
        server.wait(3)  # the turns of a large answer are timers
        if not server.site._connections.draining:
            assert other.closed or other.send(get()).answer.status == 200
            assert server.connect().send(get()).answer.status == 200
        peer.transport.failing = frozenset()
        server.wait(200)
        if not peer.closed:
            peer.transport.loseConnection()
    assert {type(fault) for fault in server.faults} <= {Broken}
    assert server.site.bodies.held == 0
    assert not server.site._connections.work
    for each in server.site._connections:
        each.transport.loseConnection()
    server.wait(2)
    assert server.clock.getDelayedCalls() == []


@pytest.mark.parametrize("piecewise", [False, True])
def test_a_client_is_told_of_a_fault_as_long_as_it_can_be(piecewise: bool) -> None:
    def takes_body(_: object) -> bool:
        raise Broken

    server = Server(takes_body=takes_body)
    peer = server.connect(tcp=True).send(post(b"abc"), piecewise=piecewise)
    assert (peer.answer.status, peer.answer.headers["connection"]) == (500, "close")
    assert [type(fault) for fault in server.faults] == [Broken]  # logged once
    assert [event[:3] for event in server.events] == [("POST", "/", 500)]
    assert server.calls == []
    server.wait(6)
    assert peer.closed


def test_a_fault_while_an_answer_goes_out_does_not_add_to_it() -> None:
    server = Server(handler=lambda _: Response(200, LARGE))
    peer = connect(server)
    peer.send(get())
    sent = len(peer.transport.value())
    peer.transport.failing = frozenset({"write"})
    server.wait(1)
    assert (peer.transport.aborted, len(peer.transport.value())) == (True, sent)
    assert [type(fault) for fault in server.faults] == [Broken]
    assert [event[2] for event in server.events] == [200]
