"""Uploads into parts: what is taken, what is refused. The expectations marked Go were seen on the reference server."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from notary.errors import MalformedUpload
from notary.net.http.bodies import BLOCK_BYTES, Received
from notary.net.http.multipart import FormPart, parse_multipart, parse_parameters
from tests.support.rawhttp import LIMITS, Server, post

FORM = "multipart/form-data; boundary=B"


def body(*parts: bytes, end: bytes = b"--B--\r\n") -> bytes:
    return b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + end


def part(disposition: bytes, content: bytes = b"{}", extra: bytes = b"") -> bytes:
    return b"Content-Disposition: " + disposition + b"\r\n" + extra + b"\r\n" + content


GOOD = part(b'form-data; name="files"; filename="root"')


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        pytest.param(b'form-data; name="files"; filename="root.json"', "root.json", id="go-client"),
        pytest.param(b'form-data; name="root"; filename="root"', "root", id="role-in-both"),
        pytest.param(b'form-data; name="files"; filename="targets/a/b"', "targets/a/b", id="slashes-are-kept"),
        pytest.param(b'form-data; name="files"; filename="../../root"', "../../root", id="dots-are-kept"),
        pytest.param(b"form-data; name=files; filename=targets.json", "targets.json", id="unquoted"),
        pytest.param(b"form-data; name=files; filename=targets/a", "", id="unquoted-slash-go"),
        pytest.param(b'form-data;name="files";filename="root"', "root", id="no-space"),
        pytest.param(b'FORM-DATA; NAME="files"; FileName="root"', "root", id="case"),
        pytest.param(b'form-data; filename="root"; name="files"', "root", id="order"),
        pytest.param(b'form-data; name="files"; filename = "root" ; x=y', "root", id="spaces-around"),
        pytest.param(b'attachment; filename="root"', "root", id="another-disposition-go"),
        pytest.param(b'form-data; name="files"; filename="a\\"b"', 'a"b', id="escaped-quote"),
        pytest.param(b'form-data; name="files"; filename="a\\\\b"', "a\\b", id="escaped-backslash"),
        pytest.param(b'form-data; name="files"; filename="C:\\dir\\root"', "C:\\dir\\root", id="windows-path"),
        pytest.param(b'form-data; name="files"; filename="a%22b"', "a%22b", id="percent-is-not-decoded"),
        pytest.param(b'form-data; name="files"; filename="r;o"', "r;o", id="semicolon-in-quotes"),
        pytest.param(b"form-data; name=files; filename*=UTF-8''targets%2Fa", "targets/a", id="extended"),
        pytest.param(b"form-data; filename=x; filename*=us-ascii'en'root", "root", id="extended-wins"),
        pytest.param(b"form-data; filename*=latin-1''root", "", id="extended-charset"),
        pytest.param(b"form-data; filename*=UTF-8''%zz", "", id="extended-bad-escape"),
        pytest.param(b"form-data; filename*=root", "", id="extended-without-marks"),
        pytest.param(b"form-data; filename*0=tar; filename*1=gets", "targets", id="continued"),
        pytest.param(b"form-data; filename*0*=UTF-8''t%61r; filename*1*=g%65ts", "targets", id="continued-encoded"),
        pytest.param(b"form-data; filename*1=gets", "", id="continued-without-beginning"),
        pytest.param('form-data; name="files"; filename="é"'.encode(), "é", id="utf-8"),
        pytest.param(b'form-data; name="files"; filename="\xff"', "�", id="not-utf-8"),
        pytest.param(b'form-data; name="files"; filename=""', "", id="empty"),
        pytest.param(b'form-data; name="files"', "", id="none"),
        pytest.param(b'form-data; filename="a"; filename="b"', "", id="twice-go"),
        pytest.param(b'form-data; filename="root', "", id="unterminated"),
        pytest.param(b'form-data; filename="root" junk', "", id="junk-behind"),
        pytest.param(b'form-data; filename="root";', "root", id="semicolon-behind"),
        pytest.param(b'form-data filename="root"', "", id="no-semicolon"),
        pytest.param(b"", "", id="empty-header"),
    ],
)
def test_a_role_is_named_by_the_raw_file_name(disposition: bytes, filename: str) -> None:
    assert parse_multipart(FORM, [body(part(disposition))]) == [FormPart(filename, b"{}")]


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        pytest.param(body(), [], id="no-part"),
        pytest.param(body(GOOD), [FormPart("root", b"{}")], id="one"),
        pytest.param(body(GOOD, GOOD), [FormPart("root", b"{}")] * 2, id="twice-the-same"),
        pytest.param(b"hello\r\nworld\r\n" + body(GOOD), [FormPart("root", b"{}")], id="preamble"),
        pytest.param(body(GOOD) + b"epilogue\r\n--B\r\nmore", [FormPart("root", b"{}")], id="epilogue"),
        pytest.param(body(GOOD, end=b"--B--"), [FormPart("root", b"{}")], id="no-line-end-behind"),
        pytest.param(body(b"X: y\r\n\r\n{}"), [FormPart("", b"{}")], id="no-disposition"),
        pytest.param(body(b"\r\n{}"), [FormPart("", b"{}")], id="no-header"),
        pytest.param(body(part(b"form-data; filename=root", b"")), [FormPart("root", b"")], id="empty-part"),
        pytest.param(body(part(b"form-data; filename=root", b"a\r\n--\r\n-B\n--B")), None, id="boundary-like-content"),
        pytest.param(body(part(b"form-data;\r\n filename=root", b"{}")), [FormPart("root", b"{}")], id="folded-header"),
        pytest.param(
            body(part(b"form-data; filename=root", b"=7B=\r\n=7D", b"Content-Transfer-Encoding: Quoted-Printable\r\n")),
            [FormPart("root", b"{}")],
            id="quoted-printable-go",
        ),
        pytest.param(
            body(part(b"form-data; filename=root", b"e30=", b"Content-Transfer-Encoding: base64\r\n")),
            [FormPart("root", b"e30=")],
            id="base64-stays-go",
        ),
        pytest.param(
            body(part(b"form-data; filename=root", b"{}", b"Content-Length: 2\r\n")),
            [FormPart("root", b"{}")],
            id="length",
        ),
    ],
)
def test_bodies_that_are_taken(raw: bytes, parts: list[FormPart] | None) -> None:
    expected = parts if parts is not None else [FormPart("root", b"a\r\n--\r\n-B\n--B")]
    assert parse_multipart(FORM, [raw]) == expected


@pytest.mark.parametrize(
    "content_type",
    [
        pytest.param("multipart/mixed; boundary=B", id="mixed-go"),
        pytest.param('Multipart/Form-Data; charset=utf-8; Boundary="B"', id="quoted-boundary"),
        pytest.param("multipart/form-data; boundary*=UTF-8''B", id="extended-boundary"),
    ],
)
def test_content_types_that_are_taken(content_type: str) -> None:
    assert parse_multipart(content_type, [body(GOOD)]) == [FormPart("root", b"{}")]


@pytest.mark.parametrize(
    "content_type",
    [
        pytest.param("", id="none"),
        pytest.param("application/json", id="json"),
        pytest.param("multipart/related; boundary=B", id="related"),
        pytest.param("multipart/form-data", id="no-boundary"),
        pytest.param("multipart/form-data; boundary=", id="empty-boundary"),
        pytest.param('multipart/form-data; boundary=""', id="empty-quoted-boundary"),
        pytest.param("multipart/form-data; boundary=B; boundary=C", id="two-boundaries"),
        pytest.param("multipart/form-data; boundary=B, multipart/form-data; boundary=B", id="header-twice"),
        pytest.param('multipart/form-data; boundary="B', id="unterminated-boundary"),
        pytest.param('multipart/form-data; boundary="B\nC"', id="line-end-in-boundary"),
    ],
)
def test_content_types_that_are_refused(content_type: str) -> None:
    with pytest.raises(MalformedUpload):
        parse_multipart(content_type, [body(GOOD)])


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{}", id="no-boundary"),
        pytest.param(b"--C\r\n" + GOOD + b"\r\n--C--\r\n", id="another-boundary"),
        pytest.param(b"--B\r\n", id="cut-before-headers"),
        pytest.param(b"--B\r\nContent-Dispo", id="cut-in-header"),
        pytest.param(body(GOOD)[:-40], id="cut-in-content"),
        pytest.param(body(GOOD, end=b""), id="cut-before-end"),
        pytest.param(body(GOOD, end=b"--B"), id="cut-in-end"),
        pytest.param(body(GOOD, end=b"--B\r\n"), id="cut-behind-boundary-go-takes-it"),
        pytest.param(body(b"no colon\r\n\r\n{}"), id="header-without-colon"),
        pytest.param(body(b"a b: c\r\n\r\n{}"), id="header-with-space"),
        pytest.param(body(b": c\r\n\r\n{}"), id="header-without-name"),
        pytest.param(body(b"A: " + b"x" * 9000 + b"\r\n\r\n{}"), id="header-too-long"),
        pytest.param(body(b"".join(b"A%d: x\r\n" % n for n in range(40)) + b"\r\n{}"), id="too-many-headers"),
        pytest.param(body(part(b"form-data", b"{}", b"Content-Length: 1\r\n")), id="shorter-than-it-says"),
        pytest.param(body(*[GOOD] * 1001), id="too-many-parts"),
        pytest.param(body(GOOD).replace(b"\r\n", b"\n"), id="bare-line-feeds"),
        pytest.param(b"--B\r\n" * 100_000, id="endless-parts"),
    ],
)
def test_bodies_that_are_refused(raw: bytes) -> None:
    with pytest.raises(MalformedUpload) as caught:
        parse_multipart(FORM, [raw])
    assert len(str(caught.value)) < 200


def test_a_thousand_parts_are_taken() -> None:
    assert len(parse_multipart(FORM, [body(*[GOOD] * 1000)])) == 1000


@given(
    st.lists(
        st.tuples(st.text('abc/._-é\\" ;%', min_size=1, max_size=20), st.binary(max_size=200)), min_size=0, max_size=5
    )
)
def test_what_is_written_is_read(uploads: list[tuple[str, bytes]]) -> None:
    boundary = "a-boundary-that-no-content-holds"
    written = b""
    for name, content in uploads:
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        written += f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{quoted}"\r\n\r\n'.encode()
        written += content + b"\r\n"
    written += f"--{boundary}--\r\n".encode()
    parsed = parse_multipart(f"multipart/form-data; boundary={boundary}", [written])
    assert parsed == [FormPart(name, content) for name, content in uploads]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(body(part(b"form-data; filename=root", b"\r\n" * 5_000_000)), id="line-ends"),
        pytest.param(body(part(b"form-data; filename=root", b"\r\n--" * 2_500_000)), id="almost-boundaries"),
        pytest.param(b"\r\n--" * 2_500_000 + b"\r\n" + body(GOOD), id="preamble"),
    ],
)
def test_a_large_body_is_no_trouble(raw: bytes) -> None:
    """A parser that is quadratic in any of these would not end today."""
    assert [part.filename for part in parse_multipart(FORM, [raw])] == ["root"]


@pytest.mark.parametrize("quote", [pytest.param(b"\\", id="backslashes"), pytest.param(b"\\a", id="escapes")])
def test_an_unterminated_file_name_does_not_stop_the_server(quote: bytes) -> None:
    disposition = b'form-data; filename="' + quote * 3000
    assert parse_multipart(FORM, [body(part(disposition))]) == [FormPart("", b"{}")]


def test_parameters() -> None:
    assert parse_parameters('Text/Plain ; a=1; B="2 3"') == ("text/plain", {"a": "1", "b": "2 3"})
    assert parse_parameters("text/plain/x") == ("", {})
    assert parse_parameters("/") == ("", {})


# -- bodies in blocks -------------------------------------------------------------------------------------------------


def outcome(blocks: list[bytes]) -> list[FormPart] | None:
    try:
        return parse_multipart(FORM, blocks)
    except MalformedUpload:
        return None


@given(
    st.lists(
        st.sampled_from(
            [b"--B", b"\r\n", b"--", b"\r", b"\n", b"B", GOOD, b"--B\r\n" + GOOD, b"\r\n--B--", b"X: y\r\n"]
        ),
        max_size=12,
    ).map(b"".join),
    st.lists(st.integers(0, 300), max_size=4),
)
@example(body(GOOD), [70, 71, 72, 73])
def test_a_body_is_read_the_same_way_in_whatever_blocks_it_comes(raw: bytes, cuts: list[int]) -> None:
    begin = raw.find(b"\r\n\r\n") + 4  # the first part begins in the first block
    ends = sorted({begin + cut for cut in cuts if begin + cut < len(raw)})
    blocks = [raw[start:end] for start, end in zip([0, *ends], [*ends, len(raw)], strict=True)]
    assert b"".join(blocks) == raw
    found, whole = outcome([block for block in blocks if block]), outcome([raw])
    if whole:
        assert found == whole or (found is None and not raw.startswith(b"--B\r\n"))
    else:
        assert not found


def test_a_first_part_that_begins_late_is_refused_wherever_the_body_is_cut() -> None:
    raw = b"x" * 100 + b"\r\n" + body(GOOD)
    assert outcome([raw]) == [FormPart("root", b"{}")]
    for cut in range(1, 104):
        assert outcome([raw[:cut], raw[cut:]]) is None


@given(st.lists(st.integers(0, BLOCK_BYTES * 2), max_size=4))
def test_what_is_received_is_cut_into_blocks_of_one_size(sizes: list[int]) -> None:
    received = Received()
    for size in sizes:
        received.write(b"x" * size)
    blocks = [len(block) for block in received.take()]
    assert (received.size, sum(blocks)) == (sum(sizes), sum(sizes))
    assert all(size == BLOCK_BYTES for size in blocks[:-1])
    assert all(0 < size <= BLOCK_BYTES for size in blocks)
    assert list(received.take()) == []


@pytest.mark.parametrize("files", [1, 8])
def test_a_large_upload_is_held_once_from_the_socket_to_its_files(files: int) -> None:
    size = 24 * BLOCK_BYTES
    raw = body(*[part(b'form-data; name=files; filename="root"', b"x" * (size // files))] * files)
    server = Server(limits=replace(LIMITS, body=2 * size))
    found: list[FormPart] = []
    waiting: Deferred = Deferred()

    def handler(call):
        found.extend(parse_multipart(FORM, call.take_body()))
        return waiting

    server.handler = handler
    server.keeps_bodies = False
    peer = server.connect().send(post(raw)[: -len(raw)])
    tracemalloc.start()
    try:
        for start in range(0, len(raw), 16_384):
            peer.send(raw[start : start + 16_384])
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(each.data) for each in found] == [size // files] * files
    assert held < size + BLOCK_BYTES
    assert most < 1.2 * size + 2 * BLOCK_BYTES  # a buffer that grows has an eighth to spare
    peer.transport.loseConnection()
