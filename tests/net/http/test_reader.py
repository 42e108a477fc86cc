"""The reader of requests, alone: whole and byte by byte it says the same of any input."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from notary.net.http.chunked import Unended
from notary.net.http.limits import HttpLimits
from notary.net.http.reader import Body, End, Event, Head, Line, Reader
from notary.net.http.target import BadRequest
from tests.net.http.test_fast import REQUEST
from tests.net.http.test_http_bad_requests import BAD
from tests.support.rawhttp import HOST, LIMITS, chunked, get, post

GOOD = [
    get(),
    get(b"/a%2Fb?x=1&y", b"X-One:  1 ", b"x-one: 2"),
    get(b"http://other:80//x?y"),
    get(b"*", method=b"OPTIONS"),
    b"\r\n" + get(),
    b"GET / HTTP/1.0\r\n\r\n",
    get(b"/", b"X: a", b" b", b"\tc"),
    get(b"/", b"X:", b" ", b"Y: z"),
    post(b""),
    post(b"x" * 1000),
    post(b"abc", b"Expect: 100-continue"),
    chunked(b"0\r\n\r\n"),
    chunked(b"3;e=f\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: x\r\n\r\n"),
    get(b"/", b"Connection: x, Close"),
    get() + post(b"abc") + chunked(b"1\r\na\r\n0\r\n\r\n") + b"\r\n" + get(b"/last"),
]


def read(pieces: list[bytes], limits: HttpLimits = LIMITS) -> tuple[list[Event], tuple[int, str] | None, Reader]:
    """What a reader says of these pieces; each request is followed by the next at once. Not all may have large bodies.

    Pieces of a body are joined, and a head never asks to go on: both depend on the cuts. What came of a body before it
    was refused does so too.
    """
    reader = Reader(limits)
    events: list[Event] = []
    refusal = None
    try:
        for piece in pieces:
            for event in reader.feed(piece):
                if isinstance(event, End):
                    reader.next_request()
                if isinstance(event, Head):
                    if event.method not in {"POST", "PATCH"}:
                        reader.limit_body(limits.other_body)
                    event = event._replace(expects_continue=False)  # noqa: PLW2901
                if isinstance(event, Body) and isinstance(events[-1], Body):
                    events[-1] = Body(events[-1].data + event.data)
                else:
                    events.append(event)
    except BadRequest as bad:
        refusal = (bad.status, str(bad))
        if events and isinstance(events[-1], Body):
            del events[-1]
    return events, refusal, reader


def bytewise(raw: bytes) -> list[bytes]:
    return [raw[n : n + 1] for n in range(len(raw))]


def whole(raw: bytes) -> list[Event]:
    """The events of good requests."""
    events, refusal, reader = read([raw])
    assert refusal is None
    assert (reader.begun, reader.fresh, reader.kept_bytes) == (False, True, 0)
    return events


@pytest.mark.parametrize("raw", GOOD)
def test_good_requests_are_the_same_however_they_are_cut(raw: bytes) -> None:
    events = whole(raw)
    assert isinstance(events[0], Line)
    assert isinstance(events[1], Head)
    assert isinstance(events[-1], End)
    assert read(bytewise(raw))[:2] == (events, None)
    for cut in range(len(raw)):
        assert read([raw[:cut], raw[cut:]])[:2] == (events, None), cut


@pytest.mark.parametrize(("raw", "status"), [pytest.param(*case.values, id=case.id) for case in BAD])
def test_bad_requests_are_the_same_however_they_are_cut(raw: bytes, status: int | None) -> None:
    events, refusal, _ = read([raw])
    assert (None if refusal is None else refusal[0]) == status
    assert not any(isinstance(event, End) for event in events)
    assert read(bytewise(raw))[:2] == (events, refusal)


@given(
    st.lists(REQUEST | st.sampled_from([*GOOD, *(case.values[0] for case in BAD)]), min_size=1, max_size=3).map(
        b"".join
    ),
    st.binary(max_size=8),
    st.integers(0, 2000),
    st.lists(st.integers(0, 2500), max_size=6),
)
@example(post(b"abc"), b"\n", 5, [])
def test_any_input_is_the_same_however_it_is_cut(raw: bytes, noise: bytes, place: int, cuts: list[int]) -> None:
    raw = raw[:place] + noise + raw[place:]
    pieces = [raw[start:end] for start, end in pairwise([0, *sorted(cuts), len(raw)]) if start <= end]
    if b"".join(pieces) != raw:
        pieces = [raw]
    expected = read([raw])[:2]
    assert read(pieces)[:2] == expected
    assert read(bytewise(raw))[:2] == expected


def test_what_a_head_says() -> None:
    line, head, end = whole(get(b"http://other:80/a//b%20c?x=1&x=2", b"X-One:  1 ", b"x-one: 2", b" 3", method=b"PUT"))
    assert line == Line("PUT", b"http://other:80/a//b%20c?x=1&x=2", True)
    assert head == Head(
        method="PUT",
        path="/a//b c",
        raw_path=b"/a//b%20c",
        query={"x": ("1", "2")},
        headers={"host": "other:80", "x-one": "1, 2 3"},
        location="http://other:80/a/b%20c?x=1&x=2",
        persistent=True,
        has_body=False,
        expects_continue=False,
    )
    assert end == End()


@pytest.mark.parametrize(
    ("fields", "version", "persistent"),
    [
        ((), b"1.1", True),
        ((), b"1.0", False),
        ((b"Connection: keep-alive",), b"1.0", False),
        ((b"Connection: x,\tCLOSE ",), b"1.1", False),
        ((b"Connection: x", b"Connection: close"), b"1.1", False),
        ((b"Connection: closed",), b"1.1", True),
    ],
)
def test_whether_a_connection_stays_open(fields: tuple[bytes, ...], version: bytes, persistent: bool) -> None:
    _, head, _ = whole(get(b"/", *fields, version=version))
    assert isinstance(head, Head)
    assert head.persistent is persistent


@pytest.mark.parametrize(
    ("raw", "asks"),
    [
        pytest.param(post(b"abc", b"Expect: 100-continue")[:-3], True, id="waits"),
        pytest.param(post(b"abc", b"Expect: 100-Continue")[:-2], False, id="part-of-the-body-came-along"),
        pytest.param(get(b"/", b"Expect: 100-continue", b"Transfer-Encoding: chunked"), True, id="chunks"),
        pytest.param(post(b"", b"Expect: 100-continue"), False, id="no-body"),
        pytest.param(post(b"abc")[:-3], False, id="does-not-ask"),
        pytest.param(post(b"abc", b"Expect: 100-continue")[:-3].replace(b"/1.1", b"/1.0"), False, id="http-1.0"),
    ],
)
def test_whether_a_client_waits_to_be_told_to_go_on(raw: bytes, asks: bool) -> None:
    (head,) = [event for event in Reader(LIMITS).feed(raw) if isinstance(event, Head)]
    assert head.expects_continue is asks


def test_what_follows_a_request_is_kept_until_it_is_asked_for() -> None:
    reader = Reader(LIMITS)
    assert [type(event) for event in reader.feed(get() + get(b"/next"))] == [Line, Head, End]
    assert reader.kept_bytes == len(get(b"/next"))
    assert (reader.begun, reader.fresh) == (False, False)
    assert list(reader.feed(b"GET")) == []
    reader.next_request()
    assert reader.begun
    assert [type(event) for event in reader.feed(b"")] == [Line, Head, End]
    assert reader.kept_bytes == 3


def test_what_follows_a_request_that_was_read_elsewhere_is_kept() -> None:
    reader = Reader(LIMITS)
    reader.hold()
    assert list(reader.feed(get())) == []
    reader.next_request()
    assert [type(event) for event in reader.feed(b"")] == [Line, Head, End]


@pytest.mark.parametrize(
    ("raw", "begun", "fresh"),
    [
        (b"", False, True),
        (b"\r", True, False),
        (b"\r\n", False, False),  # another empty line would be one too many
        (b"G", True, False),
        (get()[:-2], True, False),
        (post(b"abc")[:-1], False, False),
        (get(), False, False),
    ],
)
def test_how_far_a_request_has_come(raw: bytes, begun: bool, fresh: bool) -> None:
    reader = Reader(LIMITS)
    list(reader.feed(raw))
    assert (reader.begun, reader.fresh) == (begun, fresh)


def test_a_body_can_be_bounded_when_its_head_is_known() -> None:
    for raw, refused in ((post(b"x" * 100), False), (post(b"x" * 101), True), (chunked(b"65\r\n"), True)):
        reader = Reader(LIMITS)
        with pytest.raises(BadRequest) if refused else nothing() as caught:
            for event in reader.feed(raw):
                if isinstance(event, Head):
                    reader.limit_body(100)
        if refused:
            assert (caught.value.status, str(caught.value)) == (413, "the body is larger than 100 bytes")


class nothing:  # noqa: N801 - as pytest.raises
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def test_nothing_is_kept_of_what_is_cleared() -> None:
    reader = Reader(LIMITS)
    list(reader.feed(get(b"/", b"X: y")[:-2] + b"Z"))
    reader.clear()
    assert (reader.kept_bytes, reader.begun, list(reader.feed(get()))) == (0, False, [])


def test_fields_of_many_lines_are_read_in_one_pass() -> None:
    """Each line used to copy those before it."""
    limits = replace(LIMITS, head=1 << 20)
    raw = b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" + b" z\r\n" * 200_000 + b"\r\n"
    (_, head, _), refusal, _ = read([raw], limits)
    assert (refusal, len(head.headers["x"])) == (None, 1 + 2 * 200_000)


SLOW = [
    pytest.param(get(b"/", b"X: " + b"y" * 60_000), id="a-field"),
    pytest.param(b"GET /" + b"y" * 60_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", id="a-request-line"),
    pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X:" + b"\n" * 60_000, id="bare-line-feeds"),
    pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X:" + b"\r" * 60_000, id="bare-carriage-returns"),
    pytest.param(get(b"/", b"X: y", *[b" z"] * 10_000), id="a-field-of-many-lines"),
    pytest.param(post(b"x" * 1000) * 60, id="what-follows-a-request"),
    pytest.param(chunked(b"0\r\nT: ") + b"y" * 60_000 + b"\r\n\r\n", id="a-trailer"),
    pytest.param(chunked(b"0\r\n") + b"T: yyyyyyyyyyyyyy\r\n" * 3_000 + b"\r\n", id="many-trailers"),
]


@pytest.mark.parametrize("raw", SLOW)
def test_what_comes_byte_by_byte_is_copied_once(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    copied_bytes = 0
    stock = Unended.take

    def take(self: Unended, data: bytes) -> bytes:
        nonlocal copied_bytes
        joined = stock(self, data)
        copied_bytes += len(joined)
        return joined

    monkeypatch.setattr(Unended, "take", take)
    limits = replace(LIMITS, head=1 << 16, request_line=1 << 16, fields=10_000)
    _, refusal, _ = read(bytewise(raw), limits)
    assert refusal is None
    assert copied_bytes <= 3 * len(raw)
