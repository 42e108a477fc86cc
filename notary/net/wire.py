"""The syntax of HTTP/1.1 requests: bytes in, values or :class:`Refused` out.

Rules of this module: pure (no Twisted, no clock, no sockets); whatever two programs in a row could read differently is
refused (RFC 9112: bare line feeds, folded fields, two lengths, a length beside chunks, odd chunk sizes), so a request
cannot be smuggled past a proxy; every loop is linear in the bytes it is given; paths and queries are read as the Go
server reads them, because that decides which collection a request names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from urllib.parse import quote, unquote_to_bytes

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_METHOD: Final = re.compile(_TOKEN)
REQUEST_LINE: Final = re.compile(rb"(%b) ([^\x00-\x20\x7f]+) HTTP/(\d)\.(\d)" % _TOKEN)
_FIELDS: Final = re.compile(rb"(?:%b:[^\x00-\x08\x0a-\x1f\x7f]*\r\n)*" % _TOKEN)
_ABSOLUTE: Final = re.compile(r"https?://([^/?#]+)([^?]*)", re.IGNORECASE)
_HOST: Final = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:\[\]%]*")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?)")
_CHUNK_LINE_LIMIT: Final = 1024
_CHUNK_EXTENSION_LIMIT: Final = 16 * 1024
_ONLY_ONCE: Final = frozenset({"host", "content-length", "transfer-encoding"})
_NO_QUERY: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({})


class Refused(Exception):  # noqa: N818 - what happened to the request, not a fault of ours
    """A request that the edge itself answers.

    ``status`` is the HTTP status, ``str(refused)`` a message that is safe to show to the client.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Head:
    """The request line and the header fields of one request.

    ``target`` is the request target as received; ``path`` its path, percent-decoded, or "" where there is none (``*``,
    the ``host:port`` of a CONNECT) or it is not UTF-8; ``headers`` has lower-cased names, repeated fields joined by
    ``", "``; ``length`` is the size of the body in bytes, None when it comes in chunks; ``keep_alive`` says whether
    the client wants the connection to stay open, ``modern`` that it speaks HTTP/1.1, where that is the default.
    """

    method: str
    target: bytes
    path: str
    query: Mapping[str, tuple[str, ...]]
    headers: dict[str, str]
    length: int | None
    keep_alive: bool
    modern: bool
    expects_continue: bool


def check_request_line(line: bytes, limit: int) -> re.Match[bytes]:
    """Return the match of a whole request line (method, target, major, minor); ``limit`` is its size in bytes.

    Raises Refused: 414, 400 or 505.
    """
    if len(line) > limit:
        raise Refused(414, f"the request line is longer than {limit} bytes")
    match = REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Refused(400, "the request line is malformed")
    if match[3] != b"1":
        raise Refused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    return match


def check_beginning(data: bytes, limit: int) -> None:
    """Refuse as early as possible what cannot become a request; ``data`` is a head that is not complete yet.

    Raises Refused like :func:`check_request_line`, so that noise, or a client that speaks TLS to a plain port, is
    answered without waiting for a line end that may never come.
    """
    line, end, fields = data.partition(b"\r\n")
    if end:
        check_request_line(line, limit)
        if b"\n\n" in fields:
            raise Refused(400, "lines must end in CR LF")
        return
    if len(line) > limit + 1:  # one more may be the carriage return
        raise Refused(414, f"the request line is longer than {limit} bytes")
    method = _METHOD.match(line)
    if (line and method is None) or (method is not None and line[method.end() : method.end() + 1] not in {b"", b" "}):
        raise Refused(400, "the request line is malformed")
    if b"\n" in line:
        raise Refused(400, "lines must end in CR LF")


def parse_head(data: bytes, line_limit: int, fields_limit: int) -> Head:
    """Parse a complete head: everything before the empty line, without the CR LF of its last line.

    ``line_limit`` is in bytes, ``fields_limit`` a number of fields. Raises Refused: 400, 414, 417, 431, 501 or 505.
    """
    line, _, rest = data.partition(b"\r\n")
    match = check_request_line(line, line_limit)
    method = match[1].decode("ascii")
    headers = _parse_fields(rest, fields_limit) if rest else {}
    modern = match[4] != b"0"
    host = headers.get("host")
    if host is None:
        if modern:
            raise Refused(400, "the Host field is missing")
    elif _HOST.fullmatch(host) is None:
        raise Refused(400, "the Host field is malformed")
    path, query = _parse_target(method, match[2], headers)
    connection = headers.get("connection")
    keep_alive = modern
    if connection is not None:
        options = {option.strip() for option in connection.lower().split(",")}
        keep_alive = "close" not in options and (keep_alive or "keep-alive" in options)
    return Head(
        method,
        match[2],
        path,
        query,
        headers,
        _body_length(headers, modern=modern),
        keep_alive,
        modern,
        modern and "expect" in headers and _expects_continue(headers["expect"]),
    )


def _parse_fields(data: bytes, limit: int) -> dict[str, str]:
    """Parse header fields, each without the CR LF of the last."""
    if data.count(b"\r\n") >= limit:
        raise Refused(431, f"the request has more than {limit} header fields")
    if _FIELDS.fullmatch(data + b"\r\n") is None:
        raise Refused(400, "a header field is malformed")
    headers: dict[str, str] = {}
    for line in data.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        name = name.lower()
        value = value.strip(" \t")
        if name in headers:
            if name in _ONLY_ONCE:
                raise Refused(400, f"the {name} field is repeated")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def _parse_target(method: str, raw: bytes, headers: dict[str, str]) -> tuple[str, Mapping[str, tuple[str, ...]]]:
    """Return path and query of a request target; an absolute target replaces the Host field."""
    target = raw.decode("latin-1")
    if target[0] != "/":
        if (absolute := _ABSOLUTE.match(target)) is not None:
            if _HOST.fullmatch(absolute[1]) is None:
                raise Refused(400, "the host of the request target is malformed")
            headers["host"] = absolute[1]
            target = target[absolute.start(2) :]
            if target[:1] != "/":
                target = "/" + target
        elif method == "CONNECT" or (target == "*" and method == "OPTIONS"):
            return "", _NO_QUERY
        else:
            raise Refused(400, "the request target is malformed")
    path, mark, query = target.partition("?")
    return decode_path(path), parse_query(query) if mark else _NO_QUERY


def _body_length(headers: Mapping[str, str], *, modern: bool) -> int | None:
    length = headers.get("content-length")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if length is not None or not modern:
            raise Refused(400, "the length of the body is ambiguous")
        if coding.lower() != "chunked":
            raise Refused(501, "the only transfer coding known here is chunked")
        return None
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit()):
        raise Refused(400, "the Content-Length field is malformed")
    # Beyond 18 digits every limit is exceeded, and int() would refuse a very long number.
    return int(length) if len(length) <= 18 else 10**18  # noqa: PLR2004


def _expects_continue(value: str) -> bool:
    if value.lower() != "100-continue":
        raise Refused(417, "the only expectation known here is 100-continue")
    return True


def decode_path(path: str) -> str:
    """Percent-decode a path whose characters stand for bytes (Latin-1), ``%2F`` included, as Go's URL.Path has it.

    Returns "" if the result is not UTF-8: no route has that path, so it is not found. Raises Refused (400) on a ``%``
    that is not followed by two hexadecimal digits.
    """
    if "%" in path:
        if _BAD_ESCAPE.search(path) is not None:
            raise Refused(400, "the path has a malformed percent-escape")
        decoded = unquote_to_bytes(path.encode("latin-1"))
    elif path.isascii():
        return path
    else:
        decoded = path.encode("latin-1")
    try:
        return decoded.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def parse_query(query: str) -> Mapping[str, tuple[str, ...]]:
    """Parse a query string whose characters stand for bytes (Latin-1) as Go's URL.Query does.

    Pairs with a malformed escape or a ``;`` are ignored; ``+`` is a space; bytes that are not UTF-8 become U+FFFD.
    """
    values: dict[str, tuple[str, ...]] = {}
    for pair in query.split("&"):
        if not pair or ";" in pair or _BAD_ESCAPE.search(pair) is not None:
            continue
        name, _, value = (
            unquote_to_bytes(part.encode("latin-1")).decode("utf-8", "replace")
            for part in pair.replace("+", " ").partition("=")
        )
        values[name] = (*values.get(name, ()), value)
    return values


def clean_path(path: str) -> str:
    """Return the canonical form of a decoded path: no ``.``, ``..`` or empty segments, a slash in front.

    A slash at the end is kept; ``..`` never leads above the root. A path that differs from its canonical form is
    answered with a redirection to it, as the router of the Go server does.
    """
    if path.startswith("/") and "//" not in path and "/." not in path:
        return path
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in {"", "."}:
            kept.append(segment)
    clean = "/" + "/".join(kept)
    return clean + "/" if kept and path.endswith("/") else clean


def redirection(head: Head) -> str | None:
    """Return where a request with a path that is not clean must go (a Location with its query), None if it is clean."""
    clean = clean_path(head.path)
    if clean == head.path or not head.path:
        return None
    target = head.target.decode("latin-1")
    origin = _ABSOLUTE.match(target)
    _, mark, query = target.partition("?")
    prefix = target[: origin.start(2)] if origin is not None else ""
    return prefix + quote(clean, safe="$&+,/:;=@") + mark + query


class ChunkedBody:
    """Reads a body in chunks (RFC 9112, section 7.1), in pieces of any size.

    ``content`` grows by what has been decoded. ``limit`` is how many bytes it may have, ``trailer_limit`` how many the
    trailer section may have; trailers are checked and dropped.
    """

    def __init__(self, limit: int, trailer_limit: int) -> None:
        self.content = bytearray()
        self._limit = limit
        self._trailer_limit = trailer_limit
        self._extensions = _CHUNK_EXTENSION_LIMIT
        self._pending = b""  # the beginning of a line
        self._missing = 0  # bytes of the current chunk, plus its CR LF, that have not arrived
        self._trailer: list[bytes] | None = None

    def feed(self, data: bytes) -> bytes | None:
        """Take the next bytes; return what follows the body once it is complete, None while it is not.

        Raises Refused: 400, 413 or 431.
        """
        if self._pending:
            data = self._pending + data
            self._pending = b""
        position = 0
        while True:
            if self._missing:
                position = self._take(data, position)
                if self._missing:
                    return None
            end = data.find(b"\r\n", position)
            if end < 0:
                self._pending = data[position:]
                self._check_pending()
                return None
            line = data[position:end]
            position = end + 2
            if self._trailer is None:
                self._start_chunk(line)
            elif line:
                self._add_trailer(line)
            else:
                return data[position:]

    def _take(self, data: bytes, position: int) -> int:
        """Move bytes of the current chunk from ``data``; return the position behind them."""
        wanted = self._missing - 2
        if wanted > 0:
            taken = data[position : position + wanted]
            self.content += taken
            self._missing -= len(taken)
            position += len(taken)
        while 0 < self._missing <= 2 and position < len(data):  # noqa: PLR2004 - the CR and the LF
            if data[position] != b"\r\n"[2 - self._missing]:
                raise Refused(400, "a chunk is longer than it says")
            self._missing -= 1
            position += 1
        return position

    def _start_chunk(self, line: bytes) -> None:
        match = _CHUNK_LINE.fullmatch(line) if len(line) <= _CHUNK_LINE_LIMIT else None
        if match is None:
            raise Refused(400, "the size of a chunk is malformed")
        self._extensions -= len(match[2])
        if self._extensions < 0:
            raise Refused(400, "the chunks have too many extensions")
        size = int(match[1], 16)
        if size == 0:
            self._trailer = []
            return
        if len(self.content) + size > self._limit:
            raise Refused(413, f"the body is larger than {self._limit} bytes")
        self._missing = size + 2

    def _add_trailer(self, line: bytes) -> None:
        self._trailer_limit -= len(line) + 2
        if self._trailer_limit < 0:
            raise Refused(431, "the trailer section is too large")
        if _FIELDS.fullmatch(line + b"\r\n") is None:
            raise Refused(400, "a trailer field is malformed")

    def _check_pending(self) -> None:
        """Refuse a line that is too long before its end has arrived."""
        if self._trailer is None and len(self._pending) > _CHUNK_LINE_LIMIT + 1:
            raise Refused(400, "the size of a chunk is malformed")
        if self._trailer is not None and len(self._pending) > self._trailer_limit:
            raise Refused(431, "the trailer section is too large")
