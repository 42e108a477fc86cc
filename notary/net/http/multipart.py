"""Uploads: ``multipart/form-data`` bodies into parts.

Rules of this module: pure; a role is named by the *raw* ``filename`` of its part, slashes and all, so header parameters
are read here, the way Go reads them (RFC 2045, RFC 2231), and never shortened to a base name or unquoted by browser
rules; a body that does not end as it must is MalformedUpload, never a shorter upload.
"""

from __future__ import annotations

import re
from binascii import a2b_qp
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Final
from urllib.parse import unquote_to_bytes

from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
)

from notary.errors import MalformedUpload

_TYPES: Final = frozenset({"multipart/form-data", "multipart/mixed"})
_MAX_PARTS: Final = 1000
_MAX_HEADERS: Final = 32
_MAX_HEADER_BYTES: Final = 8 * 1024

_TOKEN: Final = r"[!#$%&'*+\-.^_`{|}~0-9A-Za-z]+"
_TYPE: Final = re.compile(rf"\s*({_TOKEN}(?:/{_TOKEN})?)\s*")
_SPECIAL: Final = r'[()<>@,;:\\"/\[\]?=]'
# A backslash escapes only what needs it: some clients send Windows paths unescaped.
_QUOTED: Final = rf'"((?:[^"\\\r\n]|\\(?:{_SPECIAL}|(?!{_SPECIAL})))*)"'
_PARAMETER: Final = re.compile(rf"\s*;\s*({_TOKEN})\s*=\s*(?:({_TOKEN})|{_QUOTED})")
_ESCAPE: Final = re.compile(rf"\\({_SPECIAL})")
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CHARSETS: Final = frozenset({"utf-8", "us-ascii"})


@dataclass(frozen=True, slots=True)
class FormPart:
    """One part of an upload: the raw file name ("" if it has none) and the content."""

    filename: str
    data: bytes


class _Parser(PushMultipartParser):  # type: ignore[misc]
    """The library's parser, without its opinion on what a part must be called."""

    def _create_segment(self, headerlist: list[tuple[str, str]]) -> MultipartSegment:
        return MultipartSegment(headerlist)


def parse_multipart(content_type: str, blocks: Iterable[bytes]) -> list[FormPart]:
    """Return the parts of an upload, in order; there may be none.

    ``content_type`` is the value of the Content-Type header. The body comes in ``blocks``, none of them empty, and the
    first part must begin in the first one; a block is not held any longer when the next is asked for. Parts that are
    ``quoted-printable`` are decoded. Raises MalformedUpload if it is not a multipart form, or if the body is cut off,
    has more than 1,000 parts, or parts with malformed or oversize headers.
    """
    kind, parameters = parse_parameters(content_type)
    if kind not in _TYPES:
        raise MalformedUpload("The upload must have the content type multipart/form-data.")
    boundary = parameters.get("boundary", "")
    if not boundary:
        raise MalformedUpload("The content type of the upload names no boundary.")
    try:
        return list(_parts(boundary, blocks))
    except MultipartError as error:
        raise MalformedUpload(f"The upload cannot be split into parts: {error.args[0]}.") from error


def _parts(boundary: str, blocks: Iterable[bytes]) -> Iterator[FormPart]:
    with _Parser(
        boundary.encode("latin-1", "replace"),
        max_header_size=_MAX_HEADER_BYTES,
        max_header_count=_MAX_HEADERS,
        max_segment_count=_MAX_PARTS,
        header_charset="latin-1",
    ) as parser:
        segment: MultipartSegment | None = None
        content = BytesIO()
        for number, block in enumerate(blocks):
            if number and segment is None:
                # What stands before the first part is read differently when it is cut.
                raise MultipartError("there is no part where the first one should begin")
            for event in parser.parse(block):
                if isinstance(event, MultipartSegment):
                    segment, content = event, BytesIO()
                elif event is not None:
                    content.write(event)
                elif segment is not None:
                    yield _part(segment, content.getvalue())


def _part(segment: MultipartSegment, data: bytes) -> FormPart:
    if (segment.header("Content-Transfer-Encoding") or "").lower() == "quoted-printable":
        data = a2b_qp(data)
    _, parameters = parse_parameters(segment.header("Content-Disposition") or "")
    filename = parameters.get("filename", "")
    return FormPart(filename.encode("latin-1").decode("utf-8", "replace"), data)


def parse_parameters(value: str) -> tuple[str, dict[str, str]]:
    """Parse a header such as Content-Type into its lower-cased type and its parameters.

    Characters stand for bytes (Latin-1). Parameters in RFC 2231 form (``filename*=UTF-8''…``, ``filename*0=…``) are
    decoded, and win over the plain form. What is malformed, or names a parameter twice, yields ("", {}).
    """
    match = _TYPE.match(value)
    if match is None:
        return "", {}
    kind = match[1].lower()
    position = match.end()
    plain: dict[str, str] = {}
    extended: dict[str, dict[str, str]] = {}
    while (match := _PARAMETER.match(value, position)) is not None:
        position = match.end()
        name = match[1].lower()
        text = match[2] if match[2] is not None else _ESCAPE.sub(r"\1", match[3])
        base, star, _ = name.partition("*")
        names = extended.setdefault(base, {}) if star else plain
        if name in names:
            return "", {}
        names[name] = text
    if value[position:].strip() not in {"", ";"}:
        return "", {}
    for base, pieces in extended.items():
        joined = _join(base, pieces)
        if joined is not None:
            plain[base] = joined
    return kind, plain


def _join(base: str, pieces: dict[str, str]) -> str | None:
    """Return the value that a parameter in RFC 2231 form has, None if it has none."""
    whole = pieces.get(f"{base}*")
    if whole is not None:
        return _decode_first(whole)
    values: list[str] = []
    while True:
        name = f"{base}*{len(values)}"
        if name in pieces:
            values.append(pieces[name])
        elif f"{name}*" in pieces:
            encoded = pieces[f"{name}*"]
            values.append((_decode_first(encoded) if not values else _decode(encoded)) or "")
        else:
            return "".join(values) if values else None


def _decode_first(text: str) -> str | None:
    """Decode ``charset'language'percent-encoded``; None for another charset or a malformed value."""
    charset, mark, rest = text.partition("'")
    _, second, encoded = rest.partition("'")
    return _decode(encoded) if mark and second and charset.lower() in _CHARSETS else None


def _decode(text: str) -> str | None:
    if _BAD_PERCENT.search(text) is not None:
        return None
    return unquote_to_bytes(text.encode("latin-1")).decode("latin-1")
