"""The HTTP layer, fed with raw bytes: whole and byte by byte, in memory and over loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

from notary.net.http.site import Call, HttpLimits, Response
from notary.net.http.target import clean_path
from tests.support.rawhttp import (
    PIECEWISE,
    Answer,
    Server,
    answers,
    chunked,
    get,
    post,
    served,
)


@pytest.fixture
def server() -> Iterator[Server]:
    yield from served()


@pytest.fixture
def logged() -> Iterator[list[dict]]:
    events: list[dict] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


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
        pytest.param(chunked(b"3;" + b"x" * 900 + b"\r\nabc\r\n0\r\n\r\n"), b"abc", id="long-extension"),
        pytest.param(chunked(b"0\r\n" + b"X: y\r\n" * 10 + b"\r\n"), b"", id="as-many-trailers-as-may-be"),
        pytest.param(chunked(b"0\r\nX:\xc3\xa9\t~\r\n\r\n"), b"", id="trailer-of-utf-8"),
        pytest.param(get(b"/", b"Content-Length: 3", body=b"abc"), b"", id="body-of-get"),
        pytest.param(get(b"/", b"Content-Length: 100", body=b"x" * 100), b"", id="largest-body-of-get"),
        pytest.param(get(b"/", b"Transfer-Encoding: Chunked", body=b"1\r\na\r\n0\r\n\r\n"), b"", id="chunked-get"),
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
        pytest.param(get(b"*", method=b"OPTIONS"), "*", {}, "example.com", id="asterisk"),
        pytest.param(b"\r\n" + get(), "/", {}, "example.com", id="empty-line-in-front"),
        pytest.param(b"GET / HTTP/1.1\r\nhost:\r\n\r\n", "/", {}, "", id="empty-host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost:\t[::1]:80 \t\r\n\r\n", "/", {}, "[::1]:80", id="white-space"),
    ],
)
def test_targets(server: Server, raw: bytes, path: str, query: dict, host: str, piecewise: bool) -> None:
    assert server.connect().send(raw, piecewise=piecewise).answer.status == 200
    (call,) = server.calls
    assert (call.path, dict(call.query), call.headers["host"]) == (path, query, host)


@pytest.mark.parametrize("count", [150, 999])
@pytest.mark.parametrize("value", [b"y", "é".encode()], ids=["fast", "full"])
def test_more_fields_than_any_proxy_sends_are_taken(count: int, value: bytes) -> None:
    server = Server(limits=HttpLimits())
    assert server.connect().send(get(b"/", *[b"X-%d: %b" % (n, value) for n in range(count)])).answer.status == 200
    (call,) = server.calls
    assert len(call.headers) == count + 1


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
    server.site.application.on_finish = lambda call, *what: seen.append((call.notes, *what))
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
        pytest.param(lambda _: [].pop(), "handler: pop from empty list", id="raises"),
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
    "broken", [pytest.param(("on_error",), id="on"), pytest.param(("on_error", "edge_error"), id="both")]
)
def test_an_answer_is_owed_even_if_the_error_hooks_fail(server: Server, broken, logged: list[dict]) -> None:
    def bad(*_: object) -> Response:
        raise KeyError("hook")

    server.handler = bad
    for hook in broken:
        setattr(server.site.application, hook, bad)
    peer = server.connect().send(get())
    assert peer.answer.status == 500
    assert peer.answer.headers["content-length"] == str(len(peer.answer.body))
    assert [event["log_failure"].type for event in logged if "log_failure" in event] == [KeyError] * len(broken)


def test_a_log_that_fails_does_not_break_the_next_request(server: Server, logged: list[dict]) -> None:
    def bad(*_: object) -> None:
        raise KeyError("hook")

    server.site.application.on_finish = bad
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
