"""Good files in all ways to send them, to the Go server and to ours: file names, multipart forms, HTTP requests.

Rules of this module: what is uploaded are good targets; how both servers are asked and compared is in
``tests.support.exchange``. ``reference`` is what the Go server answers; where ours must answer otherwise the case says
so and quotes its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted

from tests.interop.conftest import Sides
from tests.support.author import Author
from tests.support.exchange import BAD_TARGETS, MALFORMED_JSON, exchange
from tests.support.sides import BOUNDARY, MULTIPART, Answer, Case, Collection, Table, form, form_of, part

BAD_ROOT = "400 INVALID_UPDATE ErrBadRoot"
INVALID_ROLE = "400 INVALID_ROLE"
MALFORMED_UPLOAD = "400 MALFORMED_UPLOAD"
NO_FILENAME = "400 NO_FILENAME"

# What the exceptions rest on: docs/protocol.md, section 9, unless it is said otherwise.
TRUNCATED = "a truncated multipart body crashes the request: MALFORMED_UPLOAD"
RFC_2046 = "section 1: multipart/form-data, whose lines end in CR LF (RFC 2046)"

CASES = Table(server_snapshot=True)
case = CASES.case


# -- names of roles ---------------------------------------------------------------------------------------------------


def named(filename: str) -> Any:
    """Good targets under another file name."""

    async def recipe(c: Collection, a: Author) -> Answer:
        files = c.make(a, "targets")
        body = form(part(filename, files["targets"]))
        return await c.send(body, files if filename.startswith("targets") else (), a)

    return recipe


for _name, _reference in {
    "targets": "200",
    "targets.json": "200",
    "targets.json.json": INVALID_ROLE,
    "targets.JSON": INVALID_ROLE,
    "Targets": INVALID_ROLE,
    "TARGETS": INVALID_ROLE,
    " targets": INVALID_ROLE,
    "targets ": INVALID_ROLE,
    "2.targets.json": INVALID_ROLE,
    "mirrors": INVALID_ROLE,
    "root/a": INVALID_ROLE,
    "targets/": INVALID_ROLE,
    "targets//a": INVALID_ROLE,
    "targets/a/": INVALID_ROLE,
    "targets/A": INVALID_ROLE,
    "targets/a.b": INVALID_ROLE,
    "targets/a b": INVALID_ROLE,
    "targets/ä": INVALID_ROLE,
    "targets/../root": INVALID_ROLE,
    "targets/./a": INVALID_ROLE,
    "targets/*": INVALID_ROLE,
    "/targets": INVALID_ROLE,
    "../targets": INVALID_ROLE,
    "targetsa": INVALID_ROLE,
    "targets/" + "a" * 247: BAD_TARGETS,
    "targets/" + "a" * 248: INVALID_ROLE,
    "targets/-_0": BAD_TARGETS,
    "targets/nobody": BAD_TARGETS,
    "root": BAD_ROOT,
    "timestamp": "200",
    ".json": NO_FILENAME,
    "": NO_FILENAME,
}.items():
    case(f"file name {_name[:30]!r} of {len(_name)}", named(_name), _reference)


# -- the multipart form -----------------------------------------------------------------------------------------------


def body_of(change: Callable[[bytes, bytes], bytes], content_type: str = MULTIPART, *, nothing: bool = False) -> Any:
    """Good targets, in a body that ``change`` makes of the usual one and of the file.

    ``nothing``: the body is good and there is no file in it.
    """

    async def recipe(c: Collection, a: Author) -> Answer:
        files = c.make(a, "targets")
        usual = form(part("targets", files["targets"]))
        return await c.send(change(usual, files["targets"]), () if nothing else files, a, content_type)

    return recipe


def upload_form(name: str, recipe: Any, reference: str, **options: Any) -> None:
    case(f"form: {name}", recipe, reference, **options)


def disposition(text: str, *more: str) -> Any:
    """Good targets in a part with these headers."""
    return body_of(lambda _usual, data: form(part("", data, "\r\n".join([text, *more]))))


_FORM = 'Content-Disposition: form-data; name="files"'
_BOUNDARY = BOUNDARY.encode()
CRASHES = {"own": MALFORMED_UPLOAD, "row": TRUNCATED}

upload_form("as it should be", body_of(lambda usual, _: usual), "200")
for _name, _type, _reference in (
    ("content type multipart/mixed", MULTIPART.replace("form-data", "mixed"), "200"),
    ("content type in upper case", MULTIPART.replace("multipart/form-data", "MULTIPART/FORM-DATA"), "200"),
    ("content type with a quoted boundary", f'multipart/form-data; boundary="{BOUNDARY}"', "200"),
    ("content type with another parameter", MULTIPART + "; charset=utf-8", "200"),
    ("content type without a boundary", "multipart/form-data", MALFORMED_UPLOAD),
    ("content type with an empty boundary", "multipart/form-data; boundary=", MALFORMED_UPLOAD),
    ("content type of a web form", "application/x-www-form-urlencoded", MALFORMED_UPLOAD),
    ("content type that is no type", "nonsense;;=", MALFORMED_UPLOAD),
    ("no content type", "", MALFORMED_UPLOAD),
):
    upload_form(_name, body_of(lambda usual, _: usual, _type), _reference)
upload_form("content type JSON", body_of(lambda _, data: data, "application/json"), MALFORMED_UPLOAD)
upload_form(
    "another boundary", body_of(lambda usual, _: usual, "multipart/form-data; boundary=other"), "dropped", **CRASHES
)
upload_form("empty body", body_of(lambda _usual, _: b""), "dropped", **CRASHES)
upload_form("body that is no form", body_of(lambda _usual, data: data), "dropped", **CRASHES)
upload_form("no parts", body_of(lambda _usual, _: form(), nothing=True), "200")
upload_form(
    "cut before the end", body_of(lambda usual, _: usual[: usual.rindex(b"--" + _BOUNDARY)]), "dropped", **CRASHES
)
upload_form("cut inside a file", body_of(lambda usual, _: usual[: len(usual) // 2]), MALFORMED_JSON, **CRASHES)
upload_form("cut inside the headers", body_of(lambda usual, _: usual[:60], nothing=True), "200", **CRASHES)
upload_form("cut after the last dashes", body_of(lambda usual, _: usual[:-2]), "200")
upload_form("text before the first part", body_of(lambda usual, _: b"preamble\r\n" + usual), "200")
upload_form("text after the last part", body_of(lambda usual, _: usual + b"epilogue"), "200")
upload_form(
    "lines end in LF",
    body_of(lambda usual, _: usual.replace(b"\r\n", b"\n")),
    "200",
    own=MALFORMED_UPLOAD,
    row=RFC_2046,
)
upload_form("part without headers", disposition(""), NO_FILENAME)
upload_form("part without a file name", disposition(_FORM), NO_FILENAME)
upload_form("part with an empty file name", disposition(_FORM + '; filename=""'), NO_FILENAME)
upload_form("part with a bare file name", disposition(_FORM + "; filename=targets"), "200")
upload_form("part with a file name in RFC 5987 form", disposition(_FORM + "; filename*=UTF-8''targets"), "200")
upload_form("part without a field name", disposition('Content-Disposition: form-data; filename="targets"'), "200")
upload_form("part that is an attachment", disposition('Content-Disposition: attachment; filename="targets"'), "200")
upload_form("part with two file names", disposition(_FORM + '; filename="targets"; filename="root"'), NO_FILENAME)
upload_form(
    "part with headers in upper case",
    disposition(_FORM.upper().replace("FILES", "files") + '; FILENAME="targets"'),
    "200",
)
upload_form("part in base64", disposition(_FORM + '; filename="targets"', "Content-Transfer-Encoding: base64"), "200")
upload_form(
    "part with a header that is none", disposition(_FORM + '; filename="targets"', "nonsense"), "dropped", **CRASHES
)
upload_form(
    "no file name, then bad JSON", body_of(lambda _usual, _: form(part("", b"x"), part("targets", b"x"))), NO_FILENAME
)
upload_form(
    "bad JSON, then no file name",
    body_of(lambda _usual, _: form(part("targets", b"x"), part("", b"x"))),
    MALFORMED_JSON,
)
upload_form(
    "bad role, then bad JSON", body_of(lambda _usual, _: form(part("x", b"x"), part("targets", b"x"))), INVALID_ROLE
)
upload_form(
    "bad role in a good upload",
    body_of(lambda _usual, data: form(part("targets", data), part("x", data))),
    INVALID_ROLE,
)


# -- the request itself -----------------------------------------------------------------------------------------------


def sent(*headers: str, chunk: int = 0) -> Any:
    """Good targets in a request with these headers; ``chunk`` is the size of chunks in bytes, 0 for a plain body."""

    async def recipe(c: Collection, a: Author) -> Answer:
        files = c.make(a, "targets")
        body = form_of(files)
        length = f"Content-Length: {len(body)}"
        if chunk:
            length = "Transfer-Encoding: chunked"
            pieces = [body[start : start + chunk] for start in range(0, len(body), chunk)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
        given = [length, f"Content-Type: {MULTIPART}", *headers]
        answer = await c.side.raw("POST", c.path().encode(), body, given)
        if answer.status == 200:
            c.took(files, a)
        return answer

    return recipe


case("request as it should be", sent(), "200")
case("request in chunks", sent(chunk=100), "200")
case("request in chunks of one byte", sent(chunk=1), "200")
case("request that expects 100-continue", sent("Expect: 100-continue"), "200")
case("request with a foreign token", sent("Authorization: Bearer abc"), "200")


# -- the test ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [pytest.param(one, id=one.name) for one in CASES])
@pytest_twisted.ensureDeferred
async def test_form(case: Case, sides: Sides) -> None:
    await exchange(case, sides.go, sides.ours)
