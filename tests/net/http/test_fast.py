"""The fast path for ordinary requests: it must read everything as the reader does, or leave it alone."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from notary.net.http import fast
from notary.net.http.fast import read_fields, read_line
from notary.net.http.site import Response
from tests.support.rawhttp import HOST, Server, get

TOKEN = st.text("abcXYZ-_!#09", min_size=1, max_size=6).map(str.encode)
VALUE = st.text(' \tabc,;:="/\x7f\x80\xff\x01%', max_size=8).map(lambda text: text.encode("latin-1"))
KNOWN = st.sampled_from(
    [
        b"Host: other",
        b"host:a:80 ",
        b"Host: a b",
        b"Connection: close",
        b"Connection: keep-alive",
        b"Content-Length: 0",
        b"Content-Length: 3",
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"Expect: x",
        b'If-None-Match: "e"',
        b"Accept: */*",
        b" folded",
        b"no colon",
        b"X : y",
        b"X:",
        b"x-one: 1",
        b"X-One:\t2",
    ]
)
FIELD = KNOWN | st.tuples(TOKEN, VALUE).map(b": ".join)
TARGET = st.sampled_from(
    [b"/", b"/a", b"/a/../b", b"//a", b"/%41", b"/%zz", b"/%ff", b"/a?b=c&d", b"/a?x=%zz", b"*", b"http://h/x", b"/a b"]
) | st.text("/ab%2E.?&=#\xe9", max_size=9).map(lambda text: b"/" + text.encode("latin-1"))
LINE = st.builds(
    lambda method, target, version, gap: method + gap + target + b" " + version,
    st.sampled_from([b"GET", b"HEAD", b"POST", b"DELETE", b"get"]),
    TARGET,
    st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/1.1 "]),
    st.sampled_from([b" "] * 9 + [b"  "]),
)
REQUEST = st.builds(
    lambda line, host, fields, end: b"\r\n".join([line, *host, *fields, b""]) + end,
    LINE,
    st.sampled_from([[b"Host: example.com"]] * 8 + [[]]),
    st.lists(FIELD, max_size=4),
    st.sampled_from([b"\r\n"] * 9 + [b"\n", b"\r\n\r\n"]),
)


def outcome(raw: list[bytes], *, piecewise: bool):
    server = Server(handler=lambda call: Response(200, call.path.encode(), etag="e"))
    peer = server.connect()
    for each in raw:
        peer.send(each, piecewise=piecewise)
    calls = [(call.method, call.path, call.raw_path, dict(call.query), dict(call.headers)) for call in server.calls]
    seen = (peer.transport.value(), peer.closed, calls, server.events)
    peer.transport.loseConnection()
    assert server.clock.getDelayedCalls() == []
    return seen


@settings(max_examples=300)
@given(st.lists(REQUEST, min_size=1, max_size=3))
@example([b"\r\n" + get(), b"\r\n" + get()])
@example([b"\r\n", get(), b"\r\n", get()])
@example([get(b"/" + b"a" * 200)])
@example([get(b"/", *[b"X: y"] * 8), get(b"/", *[b"X: y"] * 9)])
@example([get(b"/", b"X: " + b"y" * 480), get(b"/", b"X: " + b"y" * 490), get(b"/", b"X: " + b"y" * 500)])
def test_a_request_in_one_piece_is_what_it_is_byte_by_byte(raw):
    assert outcome(raw, piecewise=False) == outcome(raw, piecewise=True)


def test_ordinary_requests_take_the_fast_path():
    """Or the test above would compare the reader with itself."""
    assert read_line(b"HEAD /v2/a%2Fb/_trust/?x=1 HTTP/1.1") == (
        "HEAD",
        "/v2/a/b/_trust/",
        b"/v2/a%2Fb/_trust/",
        {"x": ("1",)},
    )
    assert read_line(b"POST / HTTP/1.1") is None
    assert read_fields(HOST + b"Accept: a\r\naccept: b\r\n\r\n", 3) == {"host": "example.com", "accept": "a, b"}
    assert read_fields(HOST + b"Accept: a\r\naccept: b\r\n\r\n", 2) is None


def test_a_client_that_does_not_read_is_not_answered_without_end():
    server = Server(handler=lambda _: Response(200, b"x" * 100))
    peer = server.connect()
    peer.protocol.pauseProducing()  # the transport is full
    for _ in range(5):
        peer.send(get())
    assert len(server.calls) == 1
    peer.protocol.resumeProducing()
    assert len(server.calls) == 5
    assert len(peer.answers) == 5
    peer.transport.loseConnection()


def test_fields_are_remembered_unless_they_hold_a_token():
    before = fast._remembered_fields.cache_info()
    for block in (b"Host: a\r\nAUTHorization: Bearer secret\r\n\r\n", b"Host: a\r\nX: " + b"y" * 600 + b"\r\n\r\n"):
        assert read_fields(block, 100) == read_fields(block, 100)
        assert read_fields(block, 1) is None
    assert fast._remembered_fields.cache_info() == before
    block = b"Host: seen-once\r\n\r\n"
    assert read_fields(block, 100) is read_fields(block, 100)
    assert read_fields(block, 0) is None


def test_blanks_before_a_byte_that_fits_nowhere_are_read_once():
    # Each blank used to double the number of ways to read what came before it: this took longer than anybody waits.
    block = b"Host: a\r\n" + b"a:  \r\n" * 60 + b"b: " + b" " * 20_000 + b"\xff\r\n\r\n"
    assert read_fields(block, 100) is None
