"""The requests of one HTTP/1.1 connection: bytes in, events or :class:`notary.net.http.target.BadRequest` out.

Rules of this module: pure. It reads what RFC 9112 allows and refuses everything that a proxy in front might read
differently. Every line is bounded, and so are the fields and the body; how a client's bytes are cut into pieces makes
no difference to what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from typing import Final, NamedTuple, TypeAlias, cast

from notary.net.http.chunked import BARE_LINE_FEED, ChunkedReader, Unended, find_line_end, is_field
from notary.net.http.limits import HttpLimits
from notary.net.http.target import (
    NO_QUERY,
    BadRequest,
    decode_path,
    is_host,
    parse_query,
    redirection,
    split_target,
)

_LINE: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++) ([\x21-\xb0]++) HTTP/1\.([01])")
_LINE_END: Final = b"\r\n"
_BLANKS: Final = b" \t"
_LENGTH_DIGITS: Final = 18  # of a Content-Length; int() raises ValueError beyond 4,300 digits
_MALFORMED: Final = "the request is malformed"
_TLS: Final = b"\x16"  # the first byte of each TLS connection (RFC 8446, section 5.1)
_NO_TLS: Final = "the client speaks TLS, and this port does not: use http://, or configure the server's certificate"


class Line(NamedTuple):
    """A request line has come: what a log can say of its request, even if the rest is refused."""

    method: str
    target: bytes
    newer: bool
    """Whether the version is HTTP/1.1; else it is 1.0."""


class Head(NamedTuple):
    """All fields have come. The values are those of :class:`notary.net.http.call.Call`, but for the last four."""

    method: str
    path: str
    raw_path: bytes
    query: Mapping[str, tuple[str, ...]]
    headers: Mapping[str, str]
    location: str | None
    """The clean form of the target, to which the client must be redirected; None if the target is clean."""
    persistent: bool
    """Whether the connection stays open after this request."""
    has_body: bool
    """Whether there is a body; a body in chunks counts as one, even if it is empty."""
    expects_continue: bool
    """Whether the client waits for "100 Continue" before it sends the body."""


class Body(NamedTuple):
    """A piece of the body has come."""

    data: bytes


class End(NamedTuple):
    """The request is complete."""


Event: TypeAlias = Line | Head | Body | End
_END: Final = End()


class _Expected(Enum):
    """What comes next."""

    LINE = auto()
    FIELDS = auto()
    BODY = auto()
    CHUNKS = auto()
    NOTHING = auto()  # before `next_request` is called


class Reader:
    """Reads one request after the other: Line, Head, any number of Body, End, for each.

    After an End, and after ``hold``, what comes is kept until ``next_request`` is called. Nothing can follow a
    BadRequest.
    """

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._data = b""  # what is being read
        self._position = 0  # in _data: what stands before it is read
        self._unread = Unended()  # what has come and is not read yet, between two calls of feed
        self._expected = _Expected.LINE
        self._forget_request()

    def next_request(self) -> None:
        """Read another request, which may have been kept."""
        self._expected = _Expected.LINE
        if self._line is not None:  # else the last request was read elsewhere
            self._forget_request()

    def _forget_request(self) -> None:
        self._empty_line = False  # in front of the request line
        self._line: Line | None = None
        self._head_bytes = 0
        self._field_lines: list[bytes] = []  # of a field that may go on in the next line
        self._field_count = 0
        self._fields: dict[bytes, list[bytes]] = {}
        self._length: int | None = None
        self._most = self._limits.body
        self._owed = 0  # bytes of the body
        self._chunks: ChunkedReader | None = None

    def hold(self) -> None:
        """Keep what comes: a request, which was read elsewhere, is not finished."""
        self._expected = _Expected.NOTHING

    def clear(self) -> None:
        """Forget everything that was read or kept: nobody will read on."""
        self._forget_request()
        self.hold()
        self._data, self._position = b"", 0
        self._unread.take(b"")

    @property
    def kept_bytes(self) -> int:
        """The number of bytes that have come and are not read yet."""
        return len(self._data) - self._position + self._unread.size

    @property
    def begun(self) -> bool:
        """Whether something of a head has come that is not complete."""
        if self._expected is _Expected.LINE:
            return self.kept_bytes > 0
        return self._expected is _Expected.FIELDS

    @property
    def fresh(self) -> bool:
        """Whether no byte has come since the last request, not even the empty line that may precede a request.

        It is asked between two calls of ``feed`` only, when all that was kept is in ``_unread``.
        """
        return self._expected is _Expected.LINE and not self._empty_line and not self._unread.size

    def limit_body(self, most: int) -> None:
        """Have the present body be no longer than ``most`` bytes. Raises BadRequest (413) if it says that it is."""
        self._most = most
        if self._length is not None and self._length > most:
            raise _too_large(most)

    def feed(self, data: bytes) -> Iterator[Event]:
        """Read ``data``, and what was kept. Raises BadRequest.

        The events of the next request follow if ``next_request`` is called while this one's End is looked at.
        """
        pieces = self._unread
        if self._is_only_kept(data):
            pieces.add(data)
            return
        self._data, self._position = pieces.take(data), 0
        while (event := self._read()) is not None:
            yield event
        pieces.add(self._data[self._position :])
        self._data, self._position = b"", 0

    def _is_only_kept(self, data: bytes) -> bool:
        """Return True if nothing can be read yet when ``data`` comes."""
        if not data:
            return False
        if self._expected is _Expected.NOTHING:
            return True
        if self._expected is not _Expected.LINE and self._expected is not _Expected.FIELDS:
            return False
        if data[:1] == _TLS and not self.kept_bytes:
            return False
        return not self._unread.ends_in(data) and self.kept_bytes + len(data) <= self._limits.head

    def _read(self) -> Event | None:
        """Return the next event, None if more must come first."""
        expected = self._expected
        if expected is _Expected.LINE:
            return self._read_line()
        if expected is _Expected.FIELDS:
            return self._read_fields()
        if expected is _Expected.BODY:
            return self._read_body()
        return self._read_chunks() if expected is _Expected.CHUNKS else None

    # -- the head ------------------------------------------------------------------------------------------------------

    def _next_line(self) -> bytes | None:
        """Return the next line without its end, None if it has not come. Raises BadRequest if the head is too large."""
        most = self._limits.head
        if self._line is None and self._data[self._position : self._position + 1] == _TLS:
            raise BadRequest(400, _NO_TLS)
        arrived, end, ended = find_line_end(self._data, self._position)
        if not arrived:
            if self.kept_bytes >= most + len(_LINE_END):
                raise self._large_head()
            return None
        line = self._data[self._position : end]
        self._head_bytes += len(line)
        if self._line is None and len(line) > self._limits.request_line:
            raise self._large_head()
        if self._head_bytes > most:
            raise self._large_head()
        if not ended:
            raise BadRequest(400, BARE_LINE_FEED)
        self._position = end + len(_LINE_END)
        return line

    def _large_head(self) -> BadRequest:
        if self._line is None:
            return BadRequest(414, f"the request line is longer than {self._limits.request_line} bytes")
        return BadRequest(431, f"the header fields are larger than {self._limits.head} bytes")

    def _read_line(self) -> Line | None:
        line = self._next_line()
        if line == b"" and not self._empty_line:  # as some clients send after a body
            self._empty_line = True
            line = self._next_line()
        if line is None:
            return None
        match = _LINE.fullmatch(line)
        if match is None:
            raise BadRequest(400, _MALFORMED)
        self._line = Line(match[1].decode("ascii"), match[2], match[3] == b"1")
        self._expected = _Expected.FIELDS
        return self._line

    def _read_fields(self) -> Head | None:
        while (line := self._next_line()) is not None:
            self._field_count += bool(line)  # a field that goes on in a second line counts as two
            if self._field_count > self._limits.fields:
                raise BadRequest(431, f"the request has more than {self._limits.fields} header fields")
            if line and line[0] in _BLANKS:  # the field above goes on
                self._field_lines += [b" ", line.lstrip(_BLANKS)]
                continue
            if self._field_lines:
                self._add_field(b"".join(self._field_lines))
            if not line:
                return self._end_head(cast("Line", self._line))
            self._field_lines = [line]
        return None

    def _add_field(self, line: bytes) -> None:
        if not is_field(line):
            raise BadRequest(400, "a header field is malformed")
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(_BLANKS)
        if name == b"content-length":
            self._read_length(value)
        self._fields.setdefault(name, []).append(value)

    def _read_length(self, value: bytes) -> None:
        digits = value.isdigit()
        if digits and len(value) > _LENGTH_DIGITS:
            raise BadRequest(413, f"the length of the body has more than {_LENGTH_DIGITS} digits")
        if not digits or self._length is not None:
            raise BadRequest(400, _MALFORMED)
        self._length = int(value)

    def _end_head(self, line: Line) -> Head:
        method, raw_target, newer = line
        codings = self._fields.get(b"transfer-encoding")
        if codings is not None and (
            [coding.lower() for coding in codings] != [b"chunked"] or not newer or self._length is not None
        ):
            # A proxy in front may see it otherwise (RFC 9112, section 6.1).
            raise BadRequest(400, "the length of the body is ambiguous")
        self.limit_body(self._limits.body)
        origin, path, query = split_target(raw_target.decode("latin-1"))
        headers = self._headers(origin, newer=newer)
        self._owed = self._length or 0
        self._expected = _Expected.BODY if codings is None else _Expected.CHUNKS
        has_body = codings is not None or self._owed > 0
        decoded = decode_path(path)
        return Head(
            method=method,
            path=decoded,
            raw_path=path.encode("latin-1"),
            query=parse_query(query[1:]) if query else NO_QUERY,
            headers=headers,
            location=None if path == "*" else redirection(origin, decoded, query),
            persistent=newer and b"close" not in self._connection_options(),
            has_body=has_body,
            expects_continue=has_body and newer and "expect" in headers and not self.kept_bytes,
        )

    def _headers(self, origin: str, *, newer: bool) -> Mapping[str, str]:
        """Return the fields as a Call has them. Raises BadRequest if Host or Expect is not as it must be."""
        headers = {name.decode("ascii"): b", ".join(values).decode("latin-1") for name, values in self._fields.items()}
        if newer and len(self._fields.get(b"host", ())) != 1:
            raise BadRequest(400, "exactly one Host field is needed")
        if origin:
            headers["host"] = origin.partition("://")[2]  # RFC 9112, section 3.2.2
        if not is_host(headers.get("host", "")):
            raise BadRequest(400, "the host is malformed")
        if headers.get("expect", "100-continue").lower() != "100-continue":
            raise BadRequest(417, "the only expectation known here is 100-continue")
        return headers

    def _connection_options(self) -> set[bytes]:
        options = b",".join(self._fields.get(b"connection", ())).lower().split(b",")
        return {option.strip(_BLANKS) for option in options}

    # -- the body ------------------------------------------------------------------------------------------------------

    def _read_body(self) -> Body | End | None:
        if not self._owed:
            self._expected = _Expected.NOTHING
            return _END
        data = self._data[self._position : self._position + self._owed]
        self._position += len(data)
        self._owed -= len(data)
        return Body(data) if data else None

    def _read_chunks(self) -> Body | End | None:
        if self._chunks is None:
            self._chunks = ChunkedReader(self._most, self._limits.fields, self._limits.head)
        content = b"".join(self._chunks.feed(self._data[self._position :]))
        self._data, self._position = self._chunks.rest, 0
        if self._chunks.ended:
            self._expected = _Expected.BODY  # of which nothing is owed
        if content:
            return Body(content)
        return self._read_body() if self._chunks.ended else None


def _too_large(most: int) -> BadRequest:
    return BadRequest(413, f"the body is larger than {most} bytes")
