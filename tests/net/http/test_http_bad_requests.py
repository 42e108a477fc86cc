"""Requests that the HTTP layer must refuse, as raw bytes: whole and byte by byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred

from notary.net.http.bodies import peer_of
from notary.net.http.site import Call, HttpLimits, Response
from tests.support.rawhttp import (
    HOST,
    LIMITS,
    PIECEWISE,
    Server,
    chunked,
    get,
    post,
    served,
)


@pytest.fixture
def server() -> Iterator[Server]:
    yield from served()


# -- bad requests -----------------------------------------------------------------------------------------------------

BAD = [
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, id="tls"),
    pytest.param(b"\0", None, id="nul"),
    pytest.param(b"\0\r\n", 400, id="nul-line"),
    pytest.param(get(b"/\xc3\xa9"), 400, id="raw-utf-8"),
    pytest.param(get(b"/\x80"), 400, id="raw-not-utf-8"),
    pytest.param(get(b"/?\x80"), 400, id="raw-query"),
    pytest.param(get(b"//x?\x7f"), 400, id="delete-in-the-query-of-a-path-that-is-not-clean"),
    pytest.param(get(b"/\x7f"), 400, id="delete-in-path"),
    pytest.param(get(b"http://a\x7fb//x"), 400, id="delete-in-host"),
    pytest.param(get(b"//x?\x7f", b"Content-Length: 1", method=b"POST", body=b"x"), 400, id="delete-with-a-body"),
    pytest.param(get(b"other:443", method=b"CONNECT"), 400, id="connect"),
    pytest.param(get(version=b"1.2"), 400, id="version-1.2"),
    pytest.param(b"G\0T / HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="nul-in-method"),
    pytest.param(b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="nul-in-target"),
    pytest.param(get(b"/", b"X: \0"), 400, id="nul-in-field"),
    pytest.param(get(b"/", b"X: a\x01b"), 400, id="control-character-in-field"),
    pytest.param(get(b"/", b"X: a\x0b\x0cb"), 400, id="vertical-tab-in-field"),
    pytest.param(get(b"/", b"X: a\x7fb"), 400, id="delete-in-field"),
    pytest.param(get(b"/", b"X: a", b" b\x1b"), 400, id="control-character-in-a-folded-field"),
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
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\n\n", 400, id="bare-line-feeds-at-the-end"),
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
    pytest.param(b'GET / HTTP/1.1\r\nHost: a"b\r\n\r\n', 400, id="host-with-quote"),
    pytest.param(get(b"/", b"no colon"), 400, id="no-colon"),
    pytest.param(get(b"/", b"X : y"), 400, id="space-before-colon"),
    pytest.param(get(b"/", b": y"), 400, id="no-name"),
    pytest.param(get(b"/", b"X\xc3: y"), 400, id="name-is-no-token"),
    pytest.param(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, id="folded-first"),
    pytest.param(get(b"/", *[b"X: y"] * 10), 431, id="many-fields"),
    pytest.param(get(b"/", b"X: " + b"y" * 600), 431, id="large-field"),
    pytest.param(b"GET / HTTP/1.1\r\nX: " + b"y" * 700, 431, id="endless-field"),
    pytest.param(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200, 431, id="endless-fields"),
    pytest.param(get(b"/", b"X: y", *[b" z"] * 9), 431, id="many-lines-of-a-field"),
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
    pytest.param(chunked(b"0\r\n\r\n", b"Transfer-Encoding: identity"), 400, id="chunked-then-identity"),
    pytest.param(chunked(b"0\r\n\r\n", b"Transfer-Encoding:"), 400, id="chunked-then-nothing"),
    pytest.param(
        get(b"/", b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked", method=b"POST", body=b"0\r\n\r\n"),
        400,
        id="identity-then-chunked",
    ),
    pytest.param(get(b"/", b"Transfer-Encoding: chunked, chunked"), 400, id="chunked-twice-in-one-field"),
    pytest.param(get(b"/", b"Transfer-Encoding: chunked;q=1"), 400, id="chunked-with-a-parameter"),
    pytest.param(get(b"/", b"Transfer-Encoding:"), 400, id="no-coding"),
    pytest.param(get(b"/", b"Transfer-Encoding: identity"), 400, id="identity"),
    pytest.param(get(b"/", b"Transfer-Encoding: \x0bchunked"), 400, id="vertical-tab"),
    pytest.param(get(b"/", b"Transfer-Encoding: xchunked"), 400, id="unknown-coding"),
    pytest.param(get(b"/", b"Expect: a-pony"), 417, id="expectation"),
    pytest.param(post(b"x" * 1001), 413, id="large-body"),
    pytest.param(get(b"/", b"Content-Length: 1001", b"Expect: 100-continue", method=b"POST"), 413, id="large-expected"),
    pytest.param(get(b"/", b"Content-Length: 101"), 413, id="large-body-of-get"),
    pytest.param(get(b"/", b"Content-Length: " + b"9" * 100, method=b"PUT"), 413, id="absurd-length"),
    pytest.param(get(b"/", b"Content-Length: " + b"9" * 18, method=b"PUT"), 413, id="longest-length"),
    pytest.param(get(b"/", b"Content-Length: " + b"0" * 19, method=b"PUT"), 413, id="zeros-as-length"),
    pytest.param(get(b"/", b"Content-Length: " + b"9" * 18 + b"x", method=b"PUT"), 400, id="longest-length-and-more"),
    pytest.param(chunked(b"3E9\r\n" + b"x" * 1001), 413, id="large-chunk"),
    pytest.param(chunked(b"fffffffffffffff\r\n" + b"x" * 1001), 413, id="absurd-chunk"),
    pytest.param(chunked(b"1F4\r\n" + b"x" * 500 + b"\r\n1F5\r\n" + b"x" * 501), 413, id="large-in-chunks"),
    pytest.param(chunked(b"65\r\n" + b"x" * 101, method=b"DELETE"), 413, id="large-body-of-delete"),
    pytest.param(chunked(b"\r\n"), 400, id="empty-chunk-size"),
    pytest.param(chunked(b"x\r\n"), 400, id="bad-chunk-size"),
    pytest.param(chunked(b"0x1\r\n"), 400, id="prefixed-chunk-size"),
    pytest.param(chunked(b"-1\r\n"), 400, id="negative-chunk-size"),
    pytest.param(chunked(b"1 1\r\n"), 400, id="two-chunk-sizes"),
    pytest.param(chunked(b"1\n"), 400, id="chunk-size-without-end"),
    pytest.param(chunked(b"1\na\r\n"), 400, id="chunk-size-with-bare-line-feed"),
    pytest.param(chunked(b"10000000000000000\r\n" + b"x" * 1001), 413, id="chunk-size-beyond-64-bits"),
    pytest.param(chunked(b"1;" + b"x" * 1100 + b"\r\n"), 400, id="long-chunk-extension"),
    pytest.param(chunked(b"1;" + b"x" * 1100), 400, id="endless-chunk-extension"),
    pytest.param(chunked(b"1\r\nab\r\n"), 400, id="chunk-longer-than-it-says"),
    pytest.param(chunked(b"1\r\na\nb"), 400, id="chunk-with-bare-line-feed"),
    pytest.param(chunked(b"1\r\na\rb"), 400, id="chunk-with-half-a-line-end"),
    pytest.param(chunked(b"1;a=\0\r\n"), 400, id="nul-in-chunk-extension"),
    pytest.param(chunked(b"1;a=\r\r\n"), 400, id="carriage-return-in-chunk-extension"),
    pytest.param(chunked(b"1 ;a\r\n"), 400, id="space-before-chunk-extension"),
    pytest.param(chunked(b"1\r\nx"[:-1] + b"\r\n\r\n"), 400, id="line-end-twice-behind-a-chunk"),
    pytest.param(chunked((b"1;" + b"x" * 1000 + b"\r\na\r\n") * 17), 400, id="many-chunk-extensions"),
    pytest.param(chunked(b"3E9\r\n"), 413, id="large-chunk-to-come"),
    pytest.param(chunked(b"0" * 17 + b"\r\n"), 413, id="zeros-as-chunk-size"),
    pytest.param(chunked(b"0\r\n" + b"X: y\r\n" * 11), 431, id="many-trailers"),
    pytest.param(chunked(b"0\r\nX: " + b"y" * 600), 431, id="endless-trailer"),
    pytest.param(chunked(b"0\r\n" + (b"X: " + b"y" * 300 + b"\r\n") * 2), 431, id="large-trailers"),
    pytest.param(chunked(b"0\r\n\rGET /s HTTP/1.1\r\nHost: s\r\n\r\n"), 400, id="request-as-trailer"),
    pytest.param(chunked(b"0\r\nno colon\r\n"), 400, id="trailer-without-colon"),
    pytest.param(chunked(b"0\r\nX : y\r\n"), 400, id="space-before-colon-in-trailer"),
    pytest.param(chunked(b"0\r\nX: \0\r\n"), 400, id="nul-in-trailer"),
    pytest.param(chunked(b"0\r\nX: a\nb\r\n"), 400, id="bare-line-feed-in-trailer"),
    pytest.param(chunked(b"0\r\nX: a\x7f\r\n"), 400, id="delete-in-trailer"),
    pytest.param(chunked(b"0\r\nX: a\r\n folded\r\n"), 400, id="folded-trailer"),
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


def test_a_length_that_python_does_not_read() -> None:
    """Beyond 4300 digits int() raises."""
    server = Server(limits=HttpLimits())
    for length, status in ((b"9" * 5000, 413), (b"9" * 5000 + b"x", 400)):
        peer = server.connect().send(get(b"/a", b"Content-Length: " + length, b"X: y", method=b"PUT"))
        assert peer.answer.status == status
        assert server.events.pop() == ("PUT", "/a", status, len(peer.answer.body), 0.0)
        assert server.calls == []
        peer.transport.loseConnection()


# -- before a body is read --------------------------------------------------------------------------------------------


def test_only_requests_with_a_body_ask_to_be_admitted(server: Server) -> None:
    asked: list[tuple] = []
    server.admit = lambda call: asked.append(
        (call.method, call.path, call.query, call.headers["host"], b"".join(call.body))
    )
    peer = server.connect().send(get() + post(b"") + get(b"/%zz/"))
    assert [answer.status for answer in peer.answers] == [200, 200, 400]
    assert asked == []
    peer = server.connect().send(get(b"/a%20b?c=d", b"Content-Length: 1", b"Content-Type: x", method=b"PATCH"))
    assert asked == [("PATCH", "/a b", {"c": ("d",)}, "example.com", b"")]
    peer.send(b"z" + chunked(b"0\r\n\r\n"))
    assert [answer.status for answer in peer.answers] == [200, 200]
    assert asked[1:] == [("POST", "/", {}, "example.com", b"")]
    assert server.calls[-2].body == b"z"


def test_what_admitting_notes_is_there_for_the_handler_and_for_the_log(server: Server) -> None:
    seen = []
    server.admit = lambda call: call.notes.update(gun="a")
    server.site.application.on_finish = lambda call, status, *_: seen.append((call.notes, status))
    server.connect().send(post(b"abc"))
    assert server.calls[0].notes == {"gun": "a"}
    server.connect().send(post(b"abc")[:-1]).transport.loseConnection()
    server.connect().send(post(b"abc")[:-1]).end()
    assert seen == [({"gun": "a"}, 200), ({"gun": "a"}, 499), ({"gun": "a"}, 400)]


def no(_: Call) -> Response:
    return Response(401, b"no", (("WWW-Authenticate", "Bearer"),))


def broken(_: Call) -> Response:
    raise KeyError("x")


@PIECEWISE
@pytest.mark.parametrize(
    ("admit", "status"), [pytest.param(no, 401, id="refuses"), pytest.param(broken, 500, id="raises")]
)
@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(post(b"x" * 1000), id="length"),
        pytest.param(post(b"x" * 1000)[:-1000], id="before-the-body"),
        pytest.param(post(b"x" * 1000, b"Expect: 100-continue")[:-1000], id="before-100-continue"),
        pytest.param(chunked(b"3\r\nabc\r\n0\r\n\r\n"), id="chunks"),
    ],
)
def test_what_is_not_admitted_is_refused_before_its_body(server: Server, admit, status, raw, piecewise: bool) -> None:
    server.admit = admit
    peer = server.connect(tcp=True).send(raw + get(b"/smuggled"), piecewise=piecewise)
    assert (peer.answer.status, peer.answer.headers["connection"]) == (status, "close")
    assert peer.answer.body == (b"no" if status == 401 else b'{"error": "handler: \'x\'"}')
    assert peer.transport.write_closed
    assert server.events == [("POST", "/", status, len(peer.answer.body), 0.0)]
    assert server.calls == []
    assert not peer.closed
    server.wait(5)
    assert peer.closed


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        pytest.param(get(b"/%zz", b"Content-Length: 1", method=b"POST"), 400, id="target"),
        pytest.param(get(b"/", b"Content-Length: 1", b"Expect: x", method=b"POST"), 417, id="expectation"),
        pytest.param(get(b"/a//b", b"Content-Length: 1", method=b"POST"), 301, id="not-clean"),
        pytest.param(get(b"/", b"Content-Length: 1001", method=b"POST"), 413, id="large"),
    ],
)
def test_what_needs_no_body_to_be_refused_is_not_asked_about(server: Server, raw: bytes, status: int) -> None:
    asked: list[Call] = []
    server.admit = asked.append
    peer = server.connect().send(raw)
    assert (peer.answer.status, peer.answer.headers["connection"], asked) == (status, "close", [])


# -- the budget of bodies ---------------------------------------------------------------------------------------------

TIGHT = replace(LIMITS, bodies=1500, peer_bodies=1500)
ONE, OTHER, THIRD = (IPv4Address("TCP", f"192.0.2.{number}", 1) for number in (1, 2, 3))


def chunk(size: int) -> bytes:
    return b"%x\r\n" % size + b"x" * size + b"\r\n"


def held(server: Server) -> tuple[int, int]:
    """The bytes of bodies that the site holds, and for how many peers."""
    return server.site.bodies.held, server.site.bodies.peers


ENDS = [
    pytest.param(lambda server, peer: peer.transport.loseConnection(), id="lost"),
    pytest.param(lambda server, peer: peer.end(), id="cut-off"),
    pytest.param(lambda server, peer: server.wait(32), id="too-slow"),
    pytest.param(lambda server, peer: peer.send(b"x\r\n0\r\n\r\n"), id="answered"),
    pytest.param(lambda server, peer: peer.send(b"y" * 1000), id="answered-or-refused"),
    pytest.param(lambda server, peer: stopped(server), id="given-up"),
]


def stopped(server: Server) -> None:
    Deferred.fromCoroutine(server.site.stop(1))
    server.clock.advance(1)
    server.site._connections.draining = False


@pytest.mark.parametrize(
    "first",
    [pytest.param(post(b"x" * 1000)[:-1], id="length"), pytest.param(chunked(chunk(999)) + b"1\r\n", id="chunks")],
)
@pytest.mark.parametrize("end", ENDS)
def test_bodies_together_have_a_budget(first: bytes, end) -> None:
    server = Server(limits=TIGHT)
    one = server.connect().send(first)
    assert held(server) == (999, 1)
    for refused in (post(b"x" * 502), chunked(chunk(502)), chunked(chunk(251) * 2)):
        peer = server.connect().send(refused)
        assert peer.answer.status == 503
        assert "try again later" in json.loads(peer.answer.body)["error"]
        assert peer.answer.headers["connection"] == "close"
        assert held(server) == (999, 1)
        peer.transport.loseConnection()
    assert server.connect().send(post(b"x" * 501)).answer.status == 200
    assert server.connect().send(chunked(chunk(250) * 2 + b"0\r\n\r\n")).answer.status == 200
    assert server.connect().send(get()).answer.status == 200
    end(server, one)
    assert held(server) == (0, 0)
    two = server.connect().send(post(b"x" * 1000)[:-1])
    assert server.connect().send(post(b"x" * 500)).answer.status == 200
    two.send(b"x")
    assert two.answer.status == 200
    assert held(server) == (0, 0)


def test_what_is_announced_costs_nothing_and_takes_nothing() -> None:
    server = Server(limits=TIGHT)
    for _ in range(100):
        server.connect().send(post(b"x" * 1000)[:-999])
    assert held(server) == (100, 1)
    assert server.connect().send(post(b"x" * 1000)).answer.status == 200


def test_a_body_that_nobody_reads_is_not_held() -> None:
    server = Server(limits=TIGHT)
    asked: list[Call] = []
    server.admit = asked.append
    for raw in (
        get(b"/", b"Content-Length: 100", body=b"x" * 99),
        get(b"/", b"Transfer-Encoding: chunked", body=chunk(100)),
        get(b"/", b"Content-Length: 100", method=b"DELETE", body=b"x" * 99),
    ):
        peer = server.connect().send(raw)
        assert held(server) == (0, 0)
        assert peer.transport.value() == b""
    assert len(asked) == 3  # all the same: they need their rights


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE", b"POST"])
def test_the_application_says_which_calls_take_a_body(method: bytes) -> None:
    server = Server(takes_body=lambda call: call.path == "/upload")
    assert server.connect().send(get(b"/", b"Content-Length: 101", method=method)).transport.value()[9:12] == b"413"
    assert server.calls == []
    server.connect().send(get(b"/", b"Content-Length: 2", method=method, body=b"ab"))
    server.connect().send(get(b"/", b"Content-Length: 0", method=method))
    server.connect().send(get(b"/", method=method))
    server.connect().send(get(b"/upload", b"Content-Length: 101", method=method, body=b"x" * 101))
    assert [(call.body, call.size) for call in server.calls] == [(b"", 2), (b"", 0), (b"", 0), (b"x" * 101, 101)]
    assert held(server) == (0, 0)


def test_one_peer_has_a_share() -> None:
    server = Server(limits=replace(LIMITS, bodies=3000, peer_bodies=1000))
    half = post(b"x" * 1000)[:-400]
    first = server.connect(ONE).send(half)
    assert server.connect(ONE).send(post(b"x" * 401)).answer.status == 503
    assert server.connect(ONE).send(post(b"x" * 400)).answer.status == 200
    assert server.connect(OTHER).send(post(b"x" * 1000)).answer.status == 200
    server.connect(OTHER).send(half)
    server.connect(THIRD).send(half)
    assert held(server) == (1800, 3)
    first.send(b"x" * 400)
    assert first.answer.status == 200
    assert held(server) == (1200, 2)


def test_a_subject_is_one_peer_from_wherever_it_comes() -> None:
    server = Server(limits=replace(LIMITS, bodies=3000, peer_bodies=1000))
    server.admit = lambda call: call.notes.update(user=call.headers["x-user"])
    server.connect(ONE).send(get(b"/", b"Content-Length: 1000", b"X-User: a", method=b"POST", body=b"x" * 999))
    again = get(b"/", b"Content-Length: 2", b"X-User: a", method=b"POST", body=b"xx")
    assert server.connect(OTHER).send(again).answer.status == 503
    assert server.connect(ONE).send(again.replace(b"X-User: a", b"X-User: b")).answer.status == 200


@pytest.mark.parametrize(
    ("remote", "user", "peer"),
    [
        pytest.param("192.0.2.1:80", "", "address 192.0.2.1", id="ipv4"),
        pytest.param("[2001:db8:1:2:3:4:5:6]:80", "", "address 2001:db8:1:2::/64", id="ipv6"),
        pytest.param("[2001:db8:1:2::1]:81", "", "address 2001:db8:1:2::/64", id="ipv6-of-the-same-network"),
        pytest.param("[2001:db8:1:3::1]:81", "", "address 2001:db8:1:3::/64", id="ipv6-of-the-next"),
        pytest.param("[::ffff:c000:201]:80", "", "address 192.0.2.1", id="ipv4-in-ipv6"),
        pytest.param("[fe80::1%eth0]:80", "", "address fe80::/64", id="with-a-zone"),
        pytest.param("", "", "address ", id="unix"),
        pytest.param("192.0.2.1:80", "address 192.0.2.1", "user address 192.0.2.1", id="a-subject-is-no-address"),
    ],
)
def test_who_a_peer_is(remote: str, user: str, peer: str) -> None:
    assert peer_of(Call("POST", "/", remote=remote, notes={"user": user})) == peer


def test_a_body_counts_until_its_handler_is_done() -> None:
    server = Server(limits=TIGHT)
    waiting: Deferred[Response] = Deferred()
    server.handler = lambda call: waiting if call.path == "/" else Response(200)
    server.connect().send(post(b"x" * 1000)).transport.loseConnection()
    assert held(server) == (1000, 1)
    assert server.connect().send(post(b"x" * 501)).answer.status == 503
    waiting.callback(Response(200))
    assert held(server) == (0, 0)


def test_the_largest_body_has_room_whatever_the_budget_is() -> None:
    server = Server(limits=replace(LIMITS, bodies=10, peer_bodies=10))
    assert server.connect().send(post(b"x" * 1000)).answer.status == 200


STEP = st.tuples(
    st.integers(0, 3),
    st.sampled_from(
        [
            post(b"x" * 600),
            post(b"x" * 600)[:-1],
            post(b"x" * 1001),
            chunked(chunk(400)),
            chunked(chunk(3) + b"x"),
            get(),
            get(b"/", b"Content-Length: 9", body=b"x" * 8),
            get(b"/later"),
            post(b"y" * 300).replace(b"POST /", b"POST /later"),
            post(b"y" * 3).replace(b"POST /", b"POST /raises"),
            b"x",
            b"0\r\n\r\n",
            b"\0",
            "end",
            "lose",
            "abort",
            "wait",
            "answer",
        ]
    ),
)


@given(st.lists(STEP, max_size=25))
def test_the_budget_never_leaks(steps: list[tuple[int, bytes | str]]) -> None:
    """However each request ends, nothing is held when all have ended."""
    server = Server(limits=replace(TIGHT, peer_bodies=1000))
    waiting: list[Deferred[Response]] = []

    def handler(call: Call):
        if call.path == "/raises":
            raise ValueError("no")
        if call.path != "/later":
            return Response(200)
        waiting.append(Deferred())
        return waiting[-1]

    server.handler = handler
    addresses = [ONE, ONE, OTHER, THIRD]
    peers = [server.connect(address, tcp=True) for address in addresses]
    for number, step in steps:
        peer = peers[number]
        if isinstance(step, bytes):
            peer.send(step)
        elif step == "wait":
            server.wait(9)
        elif step == "answer":
            for each in waiting[:1]:
                each.callback(Response(200))
            del waiting[:1]
        elif not peer.closed:
            {"end": peer.end, "lose": peer.transport.loseConnection, "abort": peer.transport.abortConnection}[step]()
        if peer.closed:
            peers[number] = server.connect(addresses[number], tcp=True)
        assert 0 <= server.site.bodies.held <= 1500
    for peer in peers:
        if not peer.closed:
            peer.transport.loseConnection()
    for each in waiting:
        each.callback(Response(200))
    assert held(server) == (0, 0)
    assert server.site.connections == 0
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
