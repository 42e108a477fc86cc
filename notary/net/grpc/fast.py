"""The places where the general way of h2 and hpack costs the most, done for the case that nearly every call is.

Rules of this module: pure; a shortcut is taken only where it says exactly what the general way would say, and whatever
is out of the ordinary goes the general way. Measured gains are in docs/adr/0009-grpc-on-h2.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from hpack import Decoder
from hpack.struct import HeaderTuple
from hpack.table import HeaderTable

from notary.net.grpc.frames import LARGEST_FRAME, LARGEST_WINDOW

M = TypeVar("M")
Fields: TypeAlias = "tuple[HeaderTuple, ...]"

# -- headers ----------------------------------------------------------------------------------------------------------

_LONGEST: Final = 512  # bytes of a block that is remembered
_MOST: Final = 64  # blocks that are remembered


class _Table(HeaderTable):
    """A table that counts how often it may have changed."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.changes += 1
        super().add(name, value)

    @property
    def maxsize(self) -> int:
        return super().maxsize

    @maxsize.setter
    def maxsize(self, newmax: int) -> None:
        self.changes += 1
        HeaderTable.maxsize.__set__(self, newmax)  # type: ignore[attr-defined]


class QuickDecoder(Decoder, Generic[M]):
    """Looks up a block of headers that has come before, as from one client nearly all are the same.

    ``known`` holds blocks that change nothing in the table of headers, each with its fields and with what ``meaning``
    says of them; when the table changes it is emptied, because a block is made of references to that table.
    """

    def __init__(self, meaning: Callable[[Fields], M | None]) -> None:
        super().__init__()
        self.known: dict[bytes, tuple[Fields, M | None]] = {}
        self.header_table: _Table = _Table()
        self._meaning = meaning

    def decode(self, data: bytes, raw: bool = False) -> Fields:
        """Return the headers of a block. Raises HPACKError."""
        found = self.known.get(data) if raw else None
        if found is not None:
            return found[0]
        before = self.header_table.changes
        try:
            fields = tuple(super().decode(data, raw))
        finally:
            changed = self.header_table.changes != before
            if changed or len(self.known) >= _MOST:
                self.known.clear()
        if raw and not changed and len(data) <= _LONGEST:
            self.known[data] = fields, self._meaning(fields)
        return fields


# -- requests ---------------------------------------------------------------------------------------------------------

_FRAME: Final = Struct(">IBI")  # the head of a frame: length and type, flags, stream (RFC 9113, section 4.1)
_NUMBER: Final = Struct(">I")
_PREFIX: Final = Struct(">BI")
_DATA, _HEADERS, _TYPE = 0x00, 0x01, 0xFF
_WINDOW_UPDATE: Final = 0x408  # with its length
_ALL_STREAMS: Final = _FRAME.pack(_WINDOW_UPDATE, 0, 0)
_END_STREAM, _END_HEADERS = 1, 4
_NOT_A_CLIENTS: Final = 0x8000_0001  # of these two bits, the number of a client's stream has the last one only
_LEAST: Final = 2 * _FRAME.size + _PREFIX.size


class Request(NamedTuple, Generic[M]):
    """A whole request: its stream, what its head means, its message, how many bytes of DATA it is, where it ends.

    ``room`` and ``more_room`` are what its client adds to the windows of the stream and of the connection.
    """

    stream: int
    meaning: M
    message: bytes
    size: int
    end: int
    room: int
    more_room: int


def find_request(data: bytes, at: int, known: Mapping[bytes, tuple[Fields, M | None]]) -> Request[M] | None:
    """Return the request that is at ``at``: HEADERS with a known block, then DATA with one message and the end.

    Between them there may be a WINDOW_UPDATE for the stream, and behind them one for the connection, because that is
    what clients of the C core (grpcio) send. None if it is not whole, or in any way not like this.
    """
    whole = len(data)
    if whole - at < _LEAST:
        return None
    word, flags, stream = _FRAME.unpack_from(data, at)
    if word & _TYPE != _HEADERS or flags != _END_HEADERS or stream & _NOT_A_CLIENTS != 1:
        return None
    block = at + _FRAME.size
    at = block + (word >> 8)
    found = known.get(data[block:at])
    if found is None or found[1] is None or whole - at < _FRAME.size + _PREFIX.size:
        return None
    word, flags, same = _FRAME.unpack_from(data, at)
    at += _FRAME.size
    room = 0
    if word == _WINDOW_UPDATE and flags == 0 and same == stream:
        (room,) = _NUMBER.unpack_from(data, at)
        at += _NUMBER.size
        if not 0 < room <= LARGEST_WINDOW or whole - at < _FRAME.size + _PREFIX.size:
            return None
        word, flags, same = _FRAME.unpack_from(data, at)
        at += _FRAME.size
    size = word >> 8
    end = at + size
    if word & _TYPE != _DATA or flags != _END_STREAM or same != stream or size > LARGEST_FRAME or end > whole:
        return None
    flag, length = _PREFIX.unpack_from(data, at)
    if flag or length != size - _PREFIX.size:
        return None
    message = data[at + _PREFIX.size : end]
    more_room = 0
    if data.startswith(_ALL_STREAMS, end) and whole - end >= _FRAME.size + _NUMBER.size:
        (more_room,) = _NUMBER.unpack_from(data, end + _FRAME.size)
        if not 0 < more_room <= LARGEST_WINDOW:
            return None
        end += _FRAME.size + _NUMBER.size
    return Request(stream, found[1], message, size, end, room, more_room)


def end_of_frame(data: bytes, at: int) -> int:
    """Return where the frame that begins at ``at`` ends, or where ``data`` does."""
    return min(len(data), at + _FRAME.size + int.from_bytes(data[at : at + 3], "big"))


# -- answers ----------------------------------------------------------------------------------------------------------


def _frame(length: int, kind: int, flags: int, stream: int) -> bytes:
    return _FRAME.pack(length << 8 | kind, flags, stream)


# Literal fields that are not put in the table, so that the blocks are the same on every connection at any time.
_ANSWER: Final = b"\x88\x0f\x10\x10application/grpc"  # :status: 200, content-type
_TRAILERS: Final = b"\x00\x0bgrpc-status\x010"
_ANSWER_START: Final = _frame(len(_ANSWER), 1, 4, 0)[:5]
_TRAILERS_START: Final = _frame(len(_TRAILERS), 1, 5, 0)[:5]


def answer(stream: int, body: bytes) -> bytes:
    """Return the frames of a good answer: HEADERS, DATA with the packed message, HEADERS that end the stream."""
    number = stream.to_bytes(4, "big")
    size = len(body).to_bytes(3, "big")
    return b"".join((_ANSWER_START, number, _ANSWER, size, b"\0\0", number, body, _TRAILERS_START, number, _TRAILERS))
