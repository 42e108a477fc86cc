"""Bodies in chunks (RFC 9112, section 7.1), and the grammar of a field's line, which trailers share.

Rules of this module: pure; bytes in, bytes or :class:`notary.net.http.target.BadRequest` out. Every line is bounded,
and so is all that is sent beside the content.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

from notary.net.http.target import BadRequest

_FIELD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+")
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]++)(;[\t\x20-\x7e\x80-\xff]*+)?")
_LINE_END: Final = b"\r\n"
_SIZE_DIGITS: Final = 16  # of a chunk's size
_SIZE_LINE_BYTES: Final = 1024  # the line of a chunk: its size and its extensions
_EXTENSION_BYTES: Final = 16 * 1024  # of all extensions of a body together; none is used


class _Expected(Enum):
    """The next element of the body."""

    SIZE = auto()
    CONTENT = auto()
    CONTENT_END = auto()
    TRAILER = auto()
    NOTHING = auto()


def is_field(line: bytes) -> bool:
    """Return whether a line, without its end, is a field: a token, a colon, and no control character but tabs."""
    return _FIELD.fullmatch(line) is not None


class Unended:
    """The pieces of a line that has not ended: joined once, so that a line that comes byte by byte costs no more."""

    def __init__(self) -> None:
        self.size = 0
        """The number of bytes in all pieces."""
        self._pieces: list[bytes] = []

    def ends_in(self, data: bytes) -> bool:
        """Return True if the line ends in ``data``, which follows the pieces."""
        return _LINE_END in data or (data[:1] == b"\n" and self.size > 0 and self._pieces[-1][-1:] == b"\r")

    def add(self, data: bytes) -> None:
        """Add a piece; an empty one is none."""
        if data:
            self._pieces.append(data)
            self.size += len(data)

    def take(self, data: bytes) -> bytes:
        """Return all pieces and ``data`` as one, and keep none."""
        if self._pieces:
            data = b"".join((*self._pieces, data))
            self.size, self._pieces = 0, []
        return data


class ChunkedReader:
    """Reads one body of at most ``most`` bytes, then at most ``fields`` trailers of ``field_bytes`` bytes in all.

    Trailers are checked and dropped. ``ended`` is True once the body is complete; ``rest`` has the bytes that follow.
    """

    def __init__(self, most: int, fields: int, field_bytes: int) -> None:
        self.ended = False
        self.rest = b""
        self._most = most
        self._fields = fields
        self._field_bytes = field_bytes
        self._extension_bytes = _EXTENSION_BYTES
        self._received = 0  # bytes of content, with the missing bytes of the present chunk
        self._owed = 0
        self._expected = _Expected.SIZE
        self._line = Unended()

    def feed(self, data: bytes) -> list[bytes]:
        """Read ``data`` and return its content. Raises BadRequest (400, 413 or 431); after that, do not feed more."""
        line = self._line
        small = line.size + len(data) <= self._field_bytes
        if self._expected is _Expected.TRAILER and small and not line.ends_in(data):
            line.add(data)
            return []
        data = line.take(data)
        content: list[bytes] = []
        position, end = 0, len(data)
        while position < end and not self.ended:
            if self._expected is _Expected.CONTENT:
                piece = data[position : position + self._owed]
                content.append(piece)
                position += len(piece)
                self._owed -= len(piece)
                if not self._owed:
                    self._expected = _Expected.CONTENT_END
                continue
            line_end = self._find_end(data, position)
            if line_end < 0:
                line.add(data[position:])
                return content
            self._read_line(data[position:line_end])
            position = line_end + len(_LINE_END)
        self.rest = data[position:]
        return content

    def _find_end(self, data: bytes, start: int) -> int:
        """Return the end of the line that begins at ``start``, -1 if the end has not arrived."""
        if self._expected is _Expected.CONTENT_END:
            if not _LINE_END.startswith(data[start : start + len(_LINE_END)]):
                raise BadRequest(400, "a chunk is longer than it says")
            return start if len(data) - start >= len(_LINE_END) else -1
        found = data.find(_LINE_END, start)
        size = (len(data) if found < 0 else found) - start
        if self._expected is _Expected.TRAILER:
            if size > self._field_bytes:
                raise BadRequest(431, "the trailers of the body are too large")
        elif size > _SIZE_LINE_BYTES:
            raise BadRequest(400, "the size of a chunk takes too many bytes")
        return found

    def _read_line(self, line: bytes) -> None:
        if self._expected is _Expected.SIZE:
            self._read_size(line)
        elif self._expected is _Expected.CONTENT_END:
            self._expected = _Expected.SIZE
        elif line:
            self._read_trailer(line)
        else:
            self._expected = _Expected.NOTHING
            self.ended = True

    def _read_size(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise BadRequest(400, "the size of a chunk is malformed")
        digits, extension = match[1], match[2] or b""
        self._extension_bytes -= len(extension)
        if self._extension_bytes < 0:
            raise BadRequest(400, "the chunks of the body have too many extensions")
        size = int(digits, 16) if len(digits) <= _SIZE_DIGITS else self._most + 1
        self._received += size
        if self._received > self._most:
            raise BadRequest(413, f"the body is larger than {self._most} bytes")
        self._owed = size
        self._expected = _Expected.CONTENT if size else _Expected.TRAILER

    def _read_trailer(self, line: bytes) -> None:
        if not is_field(line):
            raise BadRequest(400, "a trailer of the body is malformed")
        self._fields -= 1
        self._field_bytes -= len(line)
        if self._fields < 0 or self._field_bytes < 0:
            raise BadRequest(431, "the trailers of the body are too many or too large")
