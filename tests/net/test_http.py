"""The HTTP layer, fed with raw bytes: whole and byte by byte, in memory and over loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import directlyProvides

from notary.net.http import Call, Limits, Response, Site, clean_path
from notary.net.tls import listen

LIMITS = Limits(
    body=1000,
    other_body=100,
    request_line=200,
    head=600,
    fields=10,
    head_seconds=10,
    idle_seconds=75,
    body_seconds=30,
    write_seconds=20,
    linger_seconds=5,
)
HOST = b"Host: example.com\r\n"


def edge_error(status: int, message: str) -> Response:
    return Response(status, json.dumps({"error": message}).encode(), (("Content-Type", "application/json"),))


def on_error(error: Exception) -> Response:
    return edge_error(500, f"handler: {error}")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def answers(data: bytes, *, heads: tuple[int, ...] = ()) -> list[Answer]:
    """Split what a server sent; ``heads`` are the positions of answers to HEAD."""
    found: list[Answer] = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, head
        first, *fields = head.decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in fields)}
        assert len(headers) == len(fields)
        length = 0 if len(found) in heads else int(headers.get("content-length", "0"))
        assert len(data) >= length
        found.append(Answer(int(status), headers, data[:length]))
        data = data[length:]
    return found


class Transport(StringTransportWithDisconnection):
    """Remembers what happens to it; with ``tcp`` it can be half closed."""

    def __init__(self, peer=None, *, tcp: bool = False) -> None:
        super().__init__(peerAddress=peer)
        self.write_closed = False
        self.aborted = False
        if tcp:
            directlyProvides(self, ITCPTransport)

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Part of ITCPTransport."""

    def loseWriteConnection(self) -> None:
        self.write_closed = True
        self.protocol.writeConnectionLost()

    def abortConnection(self) -> None:
        self.aborted = True
        self.loseConnection()


@dataclass
class Server:
    """A site with a clock of its own; ``calls`` is what reached the handler, ``events`` what `on_finish` was told."""

    handler: Callable = lambda _: Response(200, b"hello", (("Content-Type", "text/plain"),))
    limits: Limits = LIMITS
    calls: list[Call] = field(default_factory=list)
    events: list[tuple] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = Clock()
        self.site = Site(
            self._handle,
            self.clock,
            edge_error=edge_error,
            on_error=on_error,
            on_finish=self._finished,
            limits=self.limits,
        )

    def _handle(self, call: Call):
        self.calls.append(call)
        return self.handler(call)

    def _finished(self, call: Call, status: int, sent: int, seconds: float) -> None:
        self.events.append((call.method, call.path, status, sent, seconds))

    def connect(self, address=None, *, tcp: bool = False) -> Peer:
        address = address or IPv4Address("TCP", "192.0.2.1", 1234)
        return Peer(self, address, tcp=tcp)

    def wait(self, seconds: float) -> None:
        """Let time pass second by second."""
        for _ in range(int(seconds)):
            self.clock.advance(1)


class Peer:
    def __init__(self, server: Server, address, *, tcp: bool) -> None:
        self.protocol = server.site.buildProtocol(address)
        self.transport = Transport(address, tcp=tcp)
        self.transport.protocol = self.protocol
        self.protocol.makeConnection(self.transport)

    def send(self, data: bytes, *, piecewise: bool = False) -> Peer:
        for piece in [data[n : n + 1] for n in range(len(data))] if piecewise else [data]:
            if self.transport.connected:
                self.protocol.dataReceived(piece)
        return self

    def end(self) -> Peer:
        self.protocol.readConnectionLost()
        return self

    @property
    def closed(self) -> bool:
        return not self.transport.connected

    @property
    def answers(self) -> list[Answer]:
        return answers(self.transport.value())

    @property
    def answer(self) -> Answer:
        (answer,) = self.answers
        return answer


@pytest.fixture
def server() -> Iterator[Server]:
    """A server; when the test is over, no timer of it may be left once its clients are gone."""
    server = Server()
    yield server
    server.clock.advance(1000)
    server.clock.advance(1000)
    assert server.clock.getDelayedCalls() == []


@pytest.fixture
def logged() -> Iterator[list[dict]]:
    events: list[dict] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


def get(
    target: bytes = b"/", *fields: bytes, method: bytes = b"GET", version: bytes = b"1.1", body: bytes = b""
) -> bytes:
    lines = b"".join(line + b"\r\n" for line in fields)
    return method + b" " + target + b" HTTP/" + version + b"\r\n" + HOST + lines + b"\r\n" + body


def post(body: bytes, *fields: bytes) -> bytes:
    return get(b"/", b"Content-Length: %d" % len(body), *fields, method=b"POST", body=body)


def chunked(body: bytes, *fields: bytes, method: bytes = b"POST") -> bytes:
    return get(b"/", b"Transfer-Encoding: chunked", *fields, method=method, body=body)


PIECEWISE = pytest.mark.parametrize("piecewise", [pytest.param(False, id="whole"), pytest.param(True, id="bytewise")])


# -- good requests ----------------------------------------------------------------------------------------------------


@PIECEWISE
def test_a_request_and_its_answer(server: Server, piecewise: bool) -> None:
    server.clock.advance(784111777)
    peer = server.connect()
    peer.send(get(b"/a%2Fb/%C3%A9?x=1&y", b"X-One:  1 ", b"x-one: 2"), piecewise=piecewise)
    assert peer.answer == Answer(
        200,
        {"content-type": "text/plain", "content-length": "5", "date": "Sun, 06 Nov 1994 08:49:37 GMT"},
        b"hello",
    )
    (call,) = server.calls
    assert call == Call(
        method="GET",
        path="/a/b/é",
        raw_path=b"/a%2Fb/%C3%A9",
        query={"x": ("1",), "y": ("",)},
        headers={"host": "example.com", "x-one": "1, 2"},
        remote="192.0.2.1:1234",
        secure=False,
        body=b"",
    )
    assert not peer.closed
    assert server.events == [("GET", "/a/b/é", 200, 5, 0.0)]


@PIECEWISE
@pytest.mark.parametrize(
    ("raw", "body"),
    [
        pytest.param(post(b""), b"", id="empty"),
        pytest.param(post(b"x" * 1000), b"x" * 1000, id="as-large-as-may-be"),
        pytest.param(chunked(b"3\r\nabc\r\n0\r\n\r\n"), b"abc", id="chunk"),
        pytest.param(chunked(b"3\r\nabc\r\nA;x=y;z\r\n0123456789\r\n0\r\n\r\n"), b"abc0123456789", id="extensions"),
        pytest.param(chunked(b"0003\r\nabc\r\n000\r\n\r\n"), b"abc", id="leading-zeros"),
        pytest.param(chunked(b"3\r\nabc\r\n0\r\nX-T: 1\r\nY: 2\r\n\r\n"), b"abc", id="trailers"),
        pytest.param(chunked(b"0\r\n\r\n"), b"", id="no-chunk"),
        pytest.param(chunked(b"2\r\n\r\n\r\n0\r\n\r\n"), b"\r\n", id="line-end-as-content"),
        pytest.param(chunked(b"1\r\na\r\n" * 1000 + b"0\r\n\r\n"), b"a" * 1000, id="small-chunks"),
        pytest.param(get(b"/", b"Content-Length: 3", body=b"abc"), b"abc", id="body-of-get"),
        pytest.param(get(b"/", b"Transfer-Encoding: Chunked", body=b"1\r\na\r\n0\r\n\r\n"), b"a", id="chunked-get"),
    ],
)
def test_bodies(server: Server, raw: bytes, body: bytes, piecewise: bool) -> None:
    peer = server.connect().send(raw + get(b"/next"), piecewise=piecewise)
    assert [answer.status for answer in peer.answers] == [200, 200]
    assert [(call.path, call.body) for call in server.calls] == [("/", body), ("/next", b"")]
    assert not peer.closed


@PIECEWISE
@pytest.mark.parametrize(
    ("raw", "path", "query", "host"),
    [
        pytest.param(get(b"/?"), "/", {}, "example.com", id="empty-query"),
        pytest.param(get(b"/a?b?c=d"), "/a", {"b?c": ("d",)}, "example.com", id="two-question-marks"),
        pytest.param(get(b"/?a=1&a=2&b"), "/", {"a": ("1", "2"), "b": ("",)}, "example.com", id="repeated"),
        pytest.param(get(b"/?a=%zz&b=%4&%=1&c=1"), "/", {"c": ("1",)}, "example.com", id="bad-escapes-are-ignored"),
        pytest.param(get(b"/?a=1;b=2&c=3"), "/", {"c": ("3",)}, "example.com", id="semicolons-are-ignored"),
        pytest.param(get(b"/?a+b=c%20d%2B"), "/", {"a b": ("c d+",)}, "example.com", id="spaces"),
        pytest.param(get(b"/?a=%ff&&"), "/", {"a": ("�",)}, "example.com", id="query-not-utf-8"),
        pytest.param(get(b"/?=x"), "/", {"": ("x",)}, "example.com", id="empty-name"),
        pytest.param(get(b"/%ff/a"), "", {}, "example.com", id="not-utf-8"),
        pytest.param(get(b"/%ED%A0%80"), "", {}, "example.com", id="surrogate"),
        pytest.param(get(b"/%00"), "/\0", {}, "example.com", id="nul"),
        pytest.param(get(b"/a+b"), "/a+b", {}, "example.com", id="plus-stays"),
        pytest.param(get(b"/a#b"), "/a#b", {}, "example.com", id="fragment-stays"),
        pytest.param(get(b"http://other:80/x?y"), "/x", {"y": ("",)}, "other:80", id="absolute"),
        pytest.param(get(b"HTTPS://other?y"), "/", {"y": ("",)}, "other", id="absolute-without-path"),
        pytest.param(get(b"*", method=b"OPTIONS"), "", {}, "example.com", id="asterisk"),
        pytest.param(get(b"/\x80"), "", {}, "example.com", id="raw-not-utf-8"),
        pytest.param(b"\r\n" + get(), "/", {}, "example.com", id="empty-line-in-front"),
        pytest.param(b"GET / HTTP/1.1\r\nhost:\r\n\r\n", "/", {}, "", id="empty-host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost:\t[::1]:80 \t\r\n\r\n", "/", {}, "[::1]:80", id="white-space"),
    ],
)
def test_targets(server: Server, raw: bytes, path: str, query: dict, host: str, piecewise: bool) -> None:
    assert server.connect().send(raw, piecewise=piecewise).answer.status == 200
    (call,) = server.calls
    assert (call.path, dict(call.query), call.headers["host"]) == (path, query, host)


@pytest.mark.parametrize(
    ("fields", "version", "kept", "connection"),
    [
        pytest.param((), b"1.1", True, None, id="1.1"),
        pytest.param((b"Connection: close",), b"1.1", False, "close", id="1.1-close"),
        pytest.param((b"Connection: x, Close",), b"1.1", False, "close", id="1.1-close-in-list"),
        pytest.param((b"Connection: x", b"Connection: close"), b"1.1", False, "close", id="1.1-close-in-second"),
        pytest.param((b"Connection: closed",), b"1.1", True, None, id="1.1-another-option"),
        pytest.param((), b"1.0", False, "close", id="1.0"),
        pytest.param((b"Connection: Keep-Alive",), b"1.0", False, "close", id="1.0-keep-alive"),
        pytest.param((b"Connection: keep-alive, close",), b"1.0", False, "close", id="1.0-both"),
    ],
)
def test_whether_a_connection_stays_open(server: Server, fields, version: bytes, kept: bool, connection) -> None:
    peer = server.connect().send(get(b"/", *fields, version=version))
    assert peer.answer.headers.get("connection") == connection
    assert peer.closed is not kept


def test_http_1_0_needs_no_host(server: Server) -> None:
    assert server.connect().send(b"GET / HTTP/1.0\r\n\r\n").answer.status == 200


@pytest.mark.parametrize(
    ("address", "remote"),
    [
        pytest.param(IPv4Address("TCP", "192.0.2.1", 1), "192.0.2.1:1", id="ipv4"),
        pytest.param(IPv6Address("TCP", "2001:db8::1", 2), "[2001:db8::1]:2", id="ipv6"),
        pytest.param(IPv6Address("TCP", "::ffff:192.0.2.1", 3), "192.0.2.1:3", id="ipv4-in-ipv6"),
        pytest.param(UNIXAddress(b"/x"), "", id="neither"),
    ],
)
def test_remote_is_the_peer_whatever_it_says(server: Server, address, remote: str) -> None:
    server.connect(address).send(get(b"/", b"X-Forwarded-For: 203.0.113.9"))
    assert server.calls[0].remote == remote


def test_requests_sent_at_once_are_answered_in_order(server: Server) -> None:
    waiting: dict[str, Deferred[Response]] = {}

    def handler(call: Call):
        if call.path.startswith("/later"):
            waiting[call.path] = Deferred()
            return waiting[call.path]
        return Response(200, call.path.encode())

    server.handler = handler
    peer = server.connect().send(get(b"/1") + get(b"/later1") + get(b"/2") + get(b"/later2") + get(b"/3"))
    assert [answer.body for answer in peer.answers] == [b"/1"]
    assert list(waiting) == ["/later1"]
    waiting["/later1"].callback(Response(200, b"first"))
    waiting["/later2"].callback(Response(200, b"second"))
    assert [answer.body for answer in peer.answers] == [b"/1", b"first", b"/2", b"second", b"/3"]


def test_reading_stops_while_a_client_sends_ahead(server: Server) -> None:
    waiting: Deferred[Response] = Deferred()
    server.handler = lambda call: waiting if call.path == "/" else Response(200)
    peer = server.connect().send(get())
    request = get(b"/more")
    for _ in range(16 * 1024 // len(request)):
        peer.send(request)
    assert peer.transport.producerState == "producing"
    peer.send(request).send(request)
    assert peer.transport.producerState == "paused"
    waiting.callback(Response(200))
    assert peer.transport.producerState == "producing"
    assert len(server.calls) == 16 * 1024 // len(request) + 3


@pytest.mark.parametrize(
    "handler",
    [
        pytest.param(lambda _: Response(200, b"x"), id="at-once"),
        pytest.param(lambda _: succeed(Response(200, b"x")), id="deferred"),
    ],
)
def test_handlers_that_are_not_coroutines(server: Server, handler) -> None:
    server.handler = handler
    assert server.connect().send(get()).answer.body == b"x"


def test_a_coroutine_handler_and_its_notes(server: Server) -> None:
    seen = []
    waiting: Deferred[None] = Deferred()

    async def handler(call: Call) -> Response:
        call.notes["gun"] = "a"
        await waiting
        return Response(201)

    server.handler = handler
    server.site._on_finish = lambda call, status, sent, seconds: seen.append((call.notes, status, sent, seconds))
    peer = server.connect().send(get())
    server.clock.advance(0.25)
    assert seen == []
    waiting.callback(None)
    assert peer.answer.status == 201
    assert seen == [({"gun": "a"}, 201, 0, 0.25)]


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        pytest.param(lambda _: 1 // 0, "handler: integer division or modulo by zero", id="raises"),
        pytest.param(lambda _: fail(ValueError("no")), "handler: no", id="fails"),
        pytest.param(lambda _: fail(Failure(GeneratorExit())), "handler: GeneratorExit()", id="not-an-exception"),
        pytest.param(lambda _: succeed("x"), "handler: a handler returned str, not a Response", id="wrong-result"),
        pytest.param(lambda _: None, "handler: None is not a coroutine or a Deferred", id="nothing"),
        pytest.param(
            lambda _: Response(200, b"", (("X", "a\nb"),)), "handler: the header 'X' cannot be sent", id="header"
        ),
    ],
)
def test_what_a_handler_raises_is_the_applications(server: Server, handler, message: str) -> None:
    server.handler = handler
    peer = server.connect().send(get())
    assert (peer.answer.status, json.loads(peer.answer.body)) == (500, {"error": message})
    assert not peer.closed


@pytest.mark.parametrize(
    "broken", [pytest.param(("_on_error",), id="on"), pytest.param(("_on_error", "_edge_error"), id="both")]
)
def test_an_answer_is_owed_even_if_the_error_hooks_fail(server: Server, broken, logged: list[dict]) -> None:
    def bad(*_: object) -> Response:
        raise KeyError("hook")

    server.handler = bad
    for hook in broken:
        setattr(server.site, hook, bad)
    peer = server.connect().send(get())
    assert peer.answer.status == 500
    assert peer.answer.headers["content-length"] == str(len(peer.answer.body))
    assert [event["log_failure"].type for event in logged if "log_failure" in event] == [KeyError] * len(broken)


def test_a_log_that_fails_does_not_break_the_next_request(server: Server, logged: list[dict]) -> None:
    def bad(*_: object) -> None:
        raise KeyError("hook")

    server.site._on_finish = bad
    assert len(server.connect().send(get() + get()).answers) == 2
    assert [event["log_failure"].type for event in logged if "log_failure" in event] == [KeyError] * 2


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((100,), id="informational"),
        pytest.param((1000,), id="four-digits"),
        pytest.param((200, b"", (("Bad Name", "x"),)), id="name"),
        pytest.param((200, b"", (("X", "a\r\nb: c"),)), id="splitting"),
        pytest.param((200, b"", (("X", "\u20ac"),)), id="not-latin-1"),
        pytest.param((200, b"", (), 'a"b'), id="etag"),
        pytest.param((200, b"", (), "a\r\n"), id="etag-line-end"),
    ],
)
def test_answers_that_cannot_be_sent(arguments) -> None:
    with pytest.raises(ValueError):
        Response(*arguments)


@pytest.mark.parametrize(
    ("status", "first"),
    [
        pytest.param(404, b"HTTP/1.1 404 Not Found", id="known"),
        pytest.param(599, b"HTTP/1.1 599 Unknown", id="unknown"),
    ],
)
def test_the_status_line(server: Server, status: int, first: bytes) -> None:
    server.handler = lambda _: Response(status)
    peer = server.connect().send(get())
    assert peer.transport.value().split(b"\r\n")[0] == first


def test_no_content_has_no_length(server: Server) -> None:
    server.handler = lambda _: Response(204, b"dropped")
    answer = server.connect().send(get()).answer
    assert (answer.status, answer.headers.keys(), answer.body) == (204, {"date"}, b"")


def test_head_is_get_without_the_body(server: Server) -> None:
    peer = server.connect().send(get(method=b"HEAD") + get())
    head, whole = answers(peer.transport.value(), heads=(0,))
    assert (head.status, head.headers, head.body) == (whole.status, whole.headers, b"")
    assert [event[3] for event in server.events] == [0, 5]


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize(
    ("condition", "status"),
    [
        pytest.param(b'"abc"', 304, id="same"),
        pytest.param(b'W/"abc"', 304, id="weak"),
        pytest.param(b'"x", "abc"', 304, id="in-list"),
        pytest.param(b"*", 304, id="any"),
        pytest.param(b'"x,abc"', 200, id="not-in-list"),
        pytest.param(b'"ab"', 200, id="other"),
        pytest.param(b"abc", 200, id="unquoted"),
        pytest.param(b"", 200, id="empty"),
    ],
)
def test_conditional_requests(server: Server, method: bytes, condition: bytes, status: int) -> None:
    headers = (("Content-Type", "x/y"), ("Cache-Control", "max-age=1"), ("Last-Modified", "then"), ("pragma", "p"))
    server.handler = lambda _: Response(200, b"body", headers, "abc")
    peer = server.connect().send(get(b"/", b"If-None-Match: " + condition, method=method))
    (answer,) = answers(peer.transport.value(), heads=(0,) if method == b"HEAD" else ())
    assert (answer.status, answer.headers["etag"]) == (status, '"abc"')
    if status == 304:
        assert answer.headers.keys() == {"etag", "cache-control", "pragma", "date"}
        assert answer.body == b""


@pytest.mark.parametrize(
    ("method", "response"),
    [
        pytest.param(b"POST", Response(200, b"body", (), "abc"), id="post"),
        pytest.param(b"GET", Response(404, b"body", (), "abc"), id="not-found"),
        pytest.param(b"GET", Response(200, b"body"), id="no-etag"),
    ],
)
def test_conditions_that_do_not_count(server: Server, method: bytes, response: Response) -> None:
    server.handler = lambda _: response
    answer = server.connect().send(get(b"/", b"If-None-Match: *", method=method)).answer
    assert (answer.status, answer.body) == (response.status, b"body")
    assert not response.matches('"abc"') or response.etag == "abc"


# Seen on the router of the reference server.
@pytest.mark.parametrize(
    ("target", "location"),
    [
        pytest.param(b"//v2/", "/v2/", id="double-slash"),
        pytest.param(b"/v2/../v2/?a=b&c=%2f", "/v2/?a=b&c=%2f", id="dots-keep-the-query"),
        pytest.param(b"/v2/..", "/", id="to-the-root"),
        pytest.param(b"/../../..", "/", id="above-the-root"),
        pytest.param(b"/v2/.", "/v2", id="dot"),
        pytest.param(b"/v2/a//b?", "/v2/a/b?", id="empty-query-is-kept"),
        pytest.param(b"/v2/...//", "/v2/.../", id="three-dots-are-a-name"),
        pytest.param(b"/v2/%2e%2e/x%2f%2fy!*'()%c3%a9", "/x/y%21%2A%27%28%29%C3%A9", id="encoded"),
        pytest.param(b"/a#b//", "/a%23b/", id="fragment"),
        pytest.param(b"http://foo:1/v2//?x", "http://foo:1/v2/?x", id="absolute"),
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE"])
def test_paths_that_are_not_clean_are_redirected(server: Server, target: bytes, location: str, method: bytes) -> None:
    answer = server.connect().send(get(target, method=method)).answer
    assert (answer.status, answer.headers["location"], answer.body) == (301, location, b"")
    assert server.calls == []
    assert server.events[0][2] == 301


@pytest.mark.parametrize("target", [b"/", b"/v2/..;/x", b"/.hidden/..x/", b"/a/%ff//"])
def test_paths_that_are_clean_are_not(server: Server, target: bytes) -> None:
    assert server.connect().send(get(target)).answer.status == 200


@given(st.text("ab/.", max_size=12))
def test_a_clean_path_is_clean(path: str) -> None:
    clean = clean_path(path)
    assert clean_path(clean) == clean
    assert clean.startswith("/")
    assert not {"", ".", ".."} & set(clean[1:].removesuffix("/").split("/")) or clean == "/"


# -- bad requests -----------------------------------------------------------------------------------------------------

BAD = [
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", None, id="tls"),
    pytest.param(b"\0", None, id="nul"),
    pytest.param(b"\0\r\n", 400, id="nul-line"),
    pytest.param(get(b"/\xc3\xa9"), 400, id="raw-utf-8"),
    pytest.param(get(b"other:443", method=b"CONNECT"), 400, id="connect"),
    pytest.param(get(version=b"1.2"), 400, id="version-1.2"),
    pytest.param(b"G\0T / HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="nul-in-method"),
    pytest.param(b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="nul-in-target"),
    pytest.param(get(b"/", b"X: \0"), 400, id="nul-in-field"),
    pytest.param(b"GET /\r\n", 400, id="http-0.9"),
    pytest.param(b"GET\r\n\r\n", 400, id="only-a-method"),
    pytest.param(b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n", 400, id="space-behind"),
    pytest.param(b" GET / HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="space-in-front"),
    pytest.param(b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="two-spaces"),
    pytest.param(b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="space-in-target"),
    pytest.param(b"GET / http/1.1\r\n" + HOST + b"\r\n", 400, id="version-in-lower-case"),
    pytest.param(b"GET / HTTP/1.1.1\r\n" + HOST + b"\r\n", 400, id="malformed-version"),
    pytest.param(b"G(T / HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="method-is-no-token"),
    pytest.param(b"GET / HTTP/1.1\n" + HOST + b"\r\n", 400, id="bare-line-feed"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\n\n", None, id="bare-line-feeds-at-the-end"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400, id="bare-line-feed-in-a-field"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", 400, id="bare-carriage-return"),
    pytest.param(b"\r\n\r\n" + get(), 400, id="two-empty-lines"),
    pytest.param(b"\rGET / HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="carriage-return-in-front"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="http-2"),
    pytest.param(get(version=b"2.0"), 400, id="version-2"),
    pytest.param(get(version=b"0.9"), 400, id="version-0.9"),
    pytest.param(get(b"/" + b"a" * 200), 414, id="long-target"),
    pytest.param(b"GET /" + b"a" * 700, 414, id="endless-target"),
    pytest.param(b"A" * 700, 414, id="endless-method"),
    pytest.param(get(b"x"), 400, id="relative-target"),
    pytest.param(get(b"?x"), 400, id="only-a-query"),
    pytest.param(get(b"ftp://a/"), 400, id="another-scheme"),
    pytest.param(get(b"http:///x"), 400, id="absolute-without-host"),
    pytest.param(get(b"http://user@a\xff/"), 400, id="absolute-with-a-bad-host"),
    pytest.param(get(b"/%zz"), 400, id="bad-escape"),
    pytest.param(get(b"/%4"), 400, id="short-escape"),
    pytest.param(get(b"/%"), 400, id="lone-percent"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no-host"),
    pytest.param(get(b"/", b"Host: b"), 400, id="two-hosts"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, id="bad-host"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, id="host-with-path"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\"b\r\n\r\n", 400, id="host-with-quote"),
    pytest.param(get(b"/", b"no colon"), 400, id="no-colon"),
    pytest.param(get(b"/", b"X : y"), 400, id="space-before-colon"),
    pytest.param(get(b"/", b": y"), 400, id="no-name"),
    pytest.param(get(b"/", b"X\xc3: y"), 400, id="name-is-no-token"),
    pytest.param(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, id="folded-first"),
    pytest.param(get(b"/", *[b"X: y"] * 10), 431, id="many-fields"),
    pytest.param(get(b"/", b"X: " + b"y" * 600), 431, id="large-field"),
    pytest.param(b"GET / HTTP/1.1\r\nX: " + b"y" * 700, 431, id="endless-field"),
    pytest.param(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200, 431, id="endless-fields"),
    pytest.param(post(b"", b"Content-Length: 0"), 400, id="two-lengths"),
    pytest.param(get(b"/", b"Content-Length: 1, 1", method=b"POST"), 400, id="a-list-of-lengths"),
    pytest.param(get(b"/", b"Content-Length: +1", method=b"POST"), 400, id="signed-length"),
    pytest.param(get(b"/", b"Content-Length: -1", method=b"POST"), 400, id="negative-length"),
    pytest.param(get(b"/", b"Content-Length: 0x1", method=b"POST"), 400, id="hexadecimal-length"),
    pytest.param(get(b"/", b"Content-Length: 1_0", method=b"POST"), 400, id="length-with-underscore"),
    pytest.param(get(b"/", b"Content-Length: \xb2", method=b"POST"), 400, id="superscript-length"),
    pytest.param(get(b"/", b"Content-Length:", method=b"POST"), 400, id="empty-length"),
    pytest.param(post(b"abc", b"Transfer-Encoding: chunked"), 400, id="length-and-chunks"),
    pytest.param(chunked(b"", b"Transfer-Encoding: chunked"), 400, id="two-codings"),
    pytest.param(get(b"/", b"Transfer-Encoding: chunked", version=b"1.0"), 400, id="chunks-in-1.0"),
    pytest.param(get(b"/", b"Transfer-Encoding: gzip, chunked"), 400, id="gzip"),
    pytest.param(get(b"/", b"Transfer-Encoding: identity"), 400, id="identity"),
    pytest.param(get(b"/", b"Transfer-Encoding: \x0bchunked"), 400, id="vertical-tab"),
    pytest.param(get(b"/", b"Transfer-Encoding: xchunked"), 400, id="unknown-coding"),
    pytest.param(get(b"/", b"Expect: a-pony"), 417, id="expectation"),
    pytest.param(post(b"x" * 1001), 413, id="large-body"),
    pytest.param(get(b"/", b"Content-Length: 1001", b"Expect: 100-continue", method=b"POST"), 413, id="large-expected"),
    pytest.param(get(b"/", b"Content-Length: 101"), 413, id="large-body-of-get"),
    pytest.param(get(b"/", b"Content-Length: " + b"9" * 100, method=b"PUT"), 413, id="absurd-length"),
    pytest.param(chunked(b"3E9\r\n" + b"x" * 1001), 413, id="large-chunk"),
    pytest.param(chunked(b"fffffffffffffff\r\n" + b"x" * 1001), 413, id="absurd-chunk"),
    pytest.param(chunked(b"1F4\r\n" + b"x" * 500 + b"\r\n1F5\r\n" + b"x" * 501), 413, id="large-in-chunks"),
    pytest.param(chunked(b"65\r\n" + b"x" * 101, method=b"DELETE"), 413, id="large-body-of-delete"),
    pytest.param(chunked(b"\r\n"), 400, id="empty-chunk-size"),
    pytest.param(chunked(b"x\r\n"), 400, id="bad-chunk-size"),
    pytest.param(chunked(b"0x1\r\n"), 400, id="prefixed-chunk-size"),
    pytest.param(chunked(b"-1\r\n"), 400, id="negative-chunk-size"),
    pytest.param(chunked(b"1 1\r\n"), 400, id="two-chunk-sizes"),
    pytest.param(chunked(b"1\n"), None, id="chunk-size-without-end"),
    pytest.param(chunked(b"1\na\r\n"), 400, id="chunk-size-with-bare-line-feed"),
    pytest.param(chunked(b"10000000000000000\r\n" + b"x" * 1001), 413, id="chunk-size-beyond-64-bits"),
    pytest.param(chunked(b"1;" + b"x" * 1100 + b"\r\n"), 400, id="long-chunk-extension"),
    pytest.param(chunked(b"1;" + b"x" * 1100), 400, id="endless-chunk-extension"),
    pytest.param(chunked(b"1\r\nab\r\n"), 400, id="chunk-longer-than-it-says"),
    pytest.param(chunked(b"1\r\na\nb"), 400, id="chunk-with-bare-line-feed"),
    pytest.param(chunked(b"1\r\na\rb"), 400, id="chunk-with-half-a-line-end"),
    pytest.param(chunked(b"0\r\n" + b"X: y\r\n" * 11_000), 400, id="many-trailers"),
    pytest.param(chunked(b"0\r\nX: " + b"y" * 66_000), 400, id="endless-trailer"),
]


@PIECEWISE
@pytest.mark.parametrize(("raw", "status"), BAD)
def test_bad_requests(server: Server, raw: bytes, status: int | None, piecewise: bool) -> None:
    peer = server.connect().send(raw, piecewise=piecewise)
    if status is None:  # not wrong yet: the client must go on, or run out of time
        server.wait(32)
        status = 408
    assert peer.answer.status == status
    assert peer.answer.headers["connection"] == "close"
    assert peer.answer.headers["content-type"] == "application/json"
    assert json.loads(peer.answer.body)["error"]
    assert server.calls == []
    assert [event[2] for event in server.events] == [status]
    server.wait(6)
    assert peer.closed
    # The server still serves.
    assert server.connect().send(get()).answer.status == 200


@PIECEWISE
def test_what_follows_a_bad_request_is_not_a_request(server: Server, piecewise: bool) -> None:
    peer = server.connect().send(get(b"/", b"X : y") + get(b"/smuggled"), piecewise=piecewise)
    assert peer.answer.status == 400
    assert server.calls == []


def test_no_body_for_a_refused_head(server: Server) -> None:
    peer = server.connect().send(get(b"/" + b"a" * 50, b"X: " + b"y" * 600, method=b"HEAD"))
    head, _, body = peer.transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert body == b""


@pytest.mark.parametrize(
    ("raw", "method", "path"),
    [
        pytest.param(b"\0\r\n", "", "", id="nothing"),
        pytest.param(get(b"/%zz?b", method=b"HEAD"), "HEAD", "/%zz", id="bad-target"),
        pytest.param(get(b"/a", b"X : y"), "GET", "/a", id="request-line"),
        pytest.param(get(b"/a?b", b"Content-Length: 1001", method=b"PUT"), "PUT", "/a", id="whole-head"),
    ],
)
def test_what_is_known_of_a_refused_request_is_logged(server: Server, raw: bytes, method: str, path: str) -> None:
    server.connect().send(raw)
    ((*seen, _, _, seconds),) = server.events
    assert (*seen, seconds) == (method, path, 0.0)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_no_input_breaks_the_server(noise: bytes, position: int) -> None:
    good = chunked(b"5;x\r\nhello\r\n0\r\nA: b\r\n\r\n", b"Accept: */*")
    for raw in (noise, good[:position] + noise + good[position:], good[:position] + noise):
        server = Server()
        whole, bytewise = server.connect().send(raw), server.connect().send(raw, piecewise=True)
        assert [answer.status for answer in whole.answers] == [answer.status for answer in bytewise.answers]
        whole.transport.loseConnection()
        bytewise.transport.loseConnection()
        assert server.clock.getDelayedCalls() == []


# -- Expect: 100-continue ---------------------------------------------------------------------------------------------

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def test_a_client_that_asks_is_told_to_go_on(server: Server) -> None:
    peer = server.connect().send(get(b"/", b"Content-Length: 3", b"Expect: 100-Continue", method=b"POST"))
    assert peer.transport.value() == CONTINUE
    peer.send(b"abc")
    assert [answer.status for answer in peer.answers] == [100, 200]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(post(b"abc", b"Expect: 100-continue"), id="body-came-along"),
        pytest.param(get(b"/", b"Expect: 100-continue"), id="no-body"),
        pytest.param(get(b"/", b"Expect: 100-continue", version=b"1.0"), id="http-1.0"),
    ],
)
def test_a_client_that_need_not_ask_is_not_told(server: Server, raw: bytes) -> None:
    assert server.connect().send(raw).answer.status == 200


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "seconds", "status"),
    [
        pytest.param([b""], 10, None, id="silence"),
        pytest.param([b"G"] + [b"E"] * 20, 10, 408, id="head-in-drops"),
        pytest.param([get()[:-2]], 10, 408, id="half-a-head"),
        pytest.param([get(b"/", b"Content-Length: 9")], 30, 408, id="no-body"),
        pytest.param([get(b"/", b"Content-Length: 99", method=b"POST")] + [b"x"] * 60, 30, 408, id="body-in-drops"),
        pytest.param([chunked(b"")] + [b"1\r\nx\r\n"] * 60, 30, 408, id="chunks-in-drops"),
    ],
)
def test_slow_requests(server: Server, sent: list[bytes], seconds: int, status: int | None) -> None:
    peer = server.connect(tcp=True)
    for second in range(seconds):
        assert not peer.transport.value(), second
        peer.send(sent[second] if second < len(sent) else b"")
        server.clock.advance(1)
    if status is None:
        assert peer.transport.value() == b""
        assert server.events == []
    else:
        assert peer.answer.status == status
        assert [event[2] for event in server.events] == [status]
        assert peer.transport.write_closed
        server.wait(5)
    assert peer.closed


def test_a_body_that_makes_progress_has_time() -> None:
    server = Server(limits=Limits(body=100_000))
    body = b"x" * 61 * 1024
    peer = server.connect().send(post(body)[: -len(body)])
    for _ in range(61):
        server.wait(29)
        peer.send(b"x" * 1024)
    assert peer.answer.status == 200
    assert server.calls[0].body == body
    peer.transport.loseConnection()


def test_an_idle_connection_is_closed(server: Server) -> None:
    peer = server.connect().send(get())
    server.wait(74)
    peer.send(get())
    server.wait(74)
    assert not peer.closed
    server.wait(1)
    assert peer.closed
    assert len(peer.answers) == 2


def test_the_second_head_has_as_long_as_the_first(server: Server) -> None:
    peer = server.connect().send(get())
    server.wait(70)
    peer.send(b"GET")
    server.wait(9)
    assert len(peer.answers) == 1
    server.wait(1)
    assert [answer.status for answer in peer.answers] == [200, 408]


def test_a_handler_may_take_its_time(server: Server) -> None:
    waiting: Deferred[Response] = Deferred()
    server.handler = lambda _: waiting
    peer = server.connect().send(get())
    server.wait(1000)
    waiting.callback(Response(200))
    assert peer.answer.status == 200
    assert server.events == [("GET", "/", 200, 0, 1000.0)]


def test_a_connection_that_does_not_close_is_dropped(server: Server) -> None:
    peer = server.connect()
    peer.transport.loseConnection = lambda: None
    peer.send(get(b"/", b"Connection: close"))
    server.wait(19)
    assert not peer.transport.aborted
    peer.transport.__dict__.pop("loseConnection")
    server.wait(1)
    assert peer.transport.aborted


# -- slow readers -----------------------------------------------------------------------------------------------------

LARGE = bytes(range(256)) * 4096


def test_a_large_answer_goes_out_as_the_client_takes_it(server: Server) -> None:
    server.handler = lambda _: Response(200, LARGE)
    peer = server.connect()
    write = peer.transport.write

    def full(data: bytes) -> None:
        write(data)
        peer.protocol.pauseProducing()

    peer.transport.write = full
    peer.send(get() + get(b"/next"))
    sizes = [len(peer.transport.value())]
    while len(server.calls) == 1:
        server.wait(19)
        peer.protocol.resumeProducing()
        sizes.append(len(peer.transport.value()))
    assert max(later - earlier for earlier, later in pairwise([0, *sizes])) < 70 * 1024
    peer.transport.write = write
    peer.protocol.resumeProducing()
    assert [answer.body for answer in peer.answers] == [LARGE, LARGE]
    assert [event[3] for event in server.events] == [len(LARGE)] * 2


@pytest.mark.parametrize("body", [pytest.param(LARGE, id="large"), pytest.param(b"small", id="small")])
def test_a_client_that_does_not_read_is_dropped(server: Server, body: bytes) -> None:
    server.handler = lambda _: Response(200, body)
    peer = server.connect()
    peer.protocol.pauseProducing()
    peer.send(get() + get(b"/next"))
    server.wait(19)
    assert not peer.closed
    server.wait(1)
    assert peer.transport.aborted
    assert len(server.calls) == 1
    ((*_, status, sent, seconds),) = server.events
    assert (status, 0 < sent <= len(body), seconds) == (200, True, 20.0)


def test_an_answer_without_the_rest_of_a_large_body(server: Server) -> None:
    server.handler = lambda _: Response(200, LARGE)
    peer = server.connect().send(get(method=b"HEAD") + get())
    head, whole = answers(peer.transport.value(), heads=(0,))
    assert (head.headers["content-length"], head.body, whole.body) == (str(len(LARGE)), b"", LARGE)


# -- clients that go away ---------------------------------------------------------------------------------------------


def test_a_handler_runs_on_when_its_client_is_gone(server: Server) -> None:
    cancelled = []
    waiting: Deferred[Response] = Deferred(cancelled.append)
    server.handler = lambda _: waiting
    peer = server.connect().send(get())
    peer.transport.loseConnection()
    server.clock.advance(2)
    assert server.events == []
    waiting.callback(Response(200, b"hello"))
    assert cancelled == []
    assert server.events == [("GET", "/", 200, 0, 2.0)]


def test_a_client_that_leaves_in_a_body_is_logged(server: Server) -> None:
    server.connect().send(post(b"abc")[:-1]).transport.loseConnection()
    assert server.events == [("POST", "/", 499, 0, 0.0)]


@pytest.mark.parametrize("sent", [pytest.param(b"", id="nothing"), pytest.param(b"GET / HT", id="half-a-head")])
def test_a_client_that_leaves_before_is_not(server: Server, sent: bytes) -> None:
    server.connect().send(sent).transport.loseConnection()
    assert server.events == []


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(get(), [200], id="whole"),
        pytest.param(get() + get(), [200, 200], id="two"),
        pytest.param(b"GET", [400], id="half-a-head"),
        pytest.param(get() + b"GET", [200, 400], id="one-and-a-half"),
        pytest.param(post(b"abc")[:-1], [400], id="half-a-body"),
        pytest.param(chunked(b"5\r\n"), [400], id="half-a-chunk"),
        pytest.param(get(b"/", b"X : y"), [400], id="bad"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_a_client_that_has_said_all_still_gets_its_answers(server: Server, sent, statuses, late: bool) -> None:
    waiting: Deferred[Response] = Deferred()
    server.handler = lambda _: waiting if late and len(server.calls) == 1 else Response(200)
    peer = server.connect(tcp=True).send(sent).end()
    if not waiting.called:
        waiting.callback(Response(200))
    assert [answer.status for answer in peer.answers] == statuses
    assert peer.closed


def test_what_a_refused_client_still_sends_is_bounded(server: Server) -> None:
    peer = server.connect().send(post(b"x" * 1001)[:-1001])
    assert peer.answer.status == 413
    for _ in range(10):
        peer.send(b"x" * 100)
    assert not peer.closed
    peer.send(b"x")
    assert peer.closed


def test_a_refused_client_that_leaves_is_let_go(server: Server) -> None:
    peer = server.connect(tcp=True).send(b"\0\r\n")
    assert peer.transport.write_closed
    assert peer.end().closed


def test_requests_behind_the_last_are_dropped(server: Server) -> None:
    peer = server.connect().send(get(b"/", b"Connection: close") + get(b"/more"))
    assert peer.answer.status == 200
    assert peer.closed
    assert len(server.calls) == 1


def test_a_client_that_sent_ahead_is_refused_in_its_turn(server: Server) -> None:
    waiting: Deferred[Response] = Deferred()
    server.handler = lambda _: waiting
    peer = server.connect().send(get()).send(b"\0" * 70_000)
    assert peer.transport.producerState == "paused"
    waiting.callback(Response(200))
    assert [answer.status for answer in peer.answers] == [200, 414]
    assert peer.transport.producerState == "producing"


# -- stopping ---------------------------------------------------------------------------------------------------------


def stop(server: Server, seconds: float = 10) -> list[str]:
    done: list[str] = []
    maybeDeferred(lambda: Deferred.fromCoroutine(server.site.stop(seconds))).addCallback(lambda _: done.append("done"))
    return done


def test_stopping_without_clients(server: Server) -> None:
    assert stop(server) == ["done"]


def test_stopping_closes_what_waits_and_finishes_what_runs(server: Server) -> None:
    waiting: Deferred[Response] = Deferred()
    server.handler = lambda call: waiting if call.path == "/slow" else Response(200)
    silent, idle, half = server.connect(), server.connect().send(get()), server.connect().send(b"GET / HT")
    body = server.connect().send(post(b"abc")[:-1])
    busy = server.connect().send(get(b"/slow") + get(b"/not-any-more"))
    done = stop(server)
    assert (silent.closed, idle.closed, half.closed, body.closed, busy.closed) == (True, True, False, False, False)
    assert server.connect().closed
    half.send(b"TP/1.1\r\nHost: a\r\n\r\n")
    body.send(b"c")
    assert done == []
    waiting.callback(Response(200))
    for peer in (half, body, busy):
        assert (peer.answer.status, peer.answer.headers["connection"]) == (200, "close")
    server.wait(5)
    assert done == ["done"]
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
    idle.transport.loseConnection = lose
    server.clock.advance(1)
    assert (done, idle.transport.aborted) == (["done"], True)


# -- over loopback ----------------------------------------------------------------------------------------------------


class Collector(Protocol):
    def __init__(self) -> None:
        self.received = b""
        self.done: Deferred[type[Exception]] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.done.callback(reason.type)


@pytest.fixture
def loopback() -> Iterator[tuple[Server, Callable]]:
    """A site behind a real port; the second value connects a client to it."""
    server = Server(limits=Limits(body=1_000_000))
    server.site._clock = reactor
    server.site.seconds = reactor.seconds
    port = pytest_twisted.blockon(listen(reactor, "127.0.0.1", 0, server.site))

    async def connect() -> Collector:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        return await connectProtocol(endpoint, Collector())

    yield server, connect
    pytest_twisted.blockon(maybeDeferred(port.stopListening))
    pytest_twisted.blockon(Deferred.fromCoroutine(server.site.stop(1)))


@pytest_twisted.ensureDeferred
async def test_a_client_reads_why_its_upload_is_refused_although_it_still_sends(loopback) -> None:
    """Closing at once would reset the connection: the client would see that instead of the answer."""
    _, connect = loopback
    client = await connect()
    client.transport.write(get(b"/", b"Content-Length: 1500000", method=b"POST"))
    for _ in range(15):
        client.transport.write(b"x" * 100_000)
    client.transport.loseWriteConnection()
    assert await client.done is ConnectionDone
    assert [answer.status for answer in answers(client.received)] == [413]


@pytest_twisted.ensureDeferred
async def test_a_client_that_closes_its_half_reads_a_large_answer(loopback) -> None:
    server, connect = loopback
    body = LARGE * 10
    server.handler = lambda _: Response(200, body)
    client = await connect()
    client.transport.pauseProducing()
    client.transport.write(get())
    client.transport.loseWriteConnection()
    await pytest_twisted_pause()
    client.transport.resumeProducing()
    await client.done
    assert [answer.body for answer in answers(client.received)] == [body]


@pytest_twisted.ensureDeferred
async def test_an_abort_is_noticed(loopback) -> None:
    server, connect = loopback
    waiting: Deferred[Response] = Deferred()
    arrived: Deferred[None] = Deferred()

    def handler(_: Call) -> Deferred[Response]:
        arrived.callback(None)
        return waiting

    server.handler = handler
    client = await connect()
    client.transport.write(get())
    await arrived
    client.transport.abortConnection()
    await client.done
    await pytest_twisted_pause()
    waiting.callback(Response(200, b"hello"))
    assert [event[2:4] for event in server.events] == [(200, 0)]


async def pytest_twisted_pause() -> None:
    """Let the reactor turn a few times."""
    turned: Deferred[None] = Deferred()
    reactor.callLater(0.05, turned.callback, None)
    await turned


def test_the_protocol_says_what_it_can_do(server: Server) -> None:
    assert IHalfCloseableProtocol.providedBy(server.connect().protocol)
