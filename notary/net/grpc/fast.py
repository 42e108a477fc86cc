"""The fast path beside h2 and hpack: nearly every call takes it.

Rules of this module: pure; the fast path does exactly what the full path through h2 and hpack would do, or returns None
and leaves the work to the full path. Measured gains are in docs/adr/0009-grpc-on-h2.md.
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

_MAX_BLOCK_BYTES: Final = 512  # larger blocks are not remembered
_MAX_BLOCKS: Final = 64


class _Table(HeaderTable):
    """A header table that counts the operations that may have changed it."""

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


class FastDecoder(Decoder, Generic[M]):
    """Decodes a header block that came before by a lookup: nearly all blocks of one client are the same.

    ``known`` maps blocks that leave the header table as it is to their fields and to the result of ``meaning`` for
    these fields. A change of the header table empties ``known``, because blocks refer to that table.
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
            if changed or len(self.known) >= _MAX_BLOCKS:
                self.known.clear()
        if raw and not changed and len(data) <= _MAX_BLOCK_BYTES:
            self.known[data] = fields, self._meaning(fields)
        return fields


# -- requests ---------------------------------------------------------------------------------------------------------

_FRAME: Final = Struct(">IBI")  # a frame header: length and type, flags, stream (RFC 9113, section 4.1)
_NUMBER: Final = Struct(">I")
_PREFIX: Final = Struct(">BI")
_DATA, _HEADERS, _TYPE = 0x00, 0x01, 0xFF
_WINDOW_UPDATE: Final = 0x408  # its length and its type
_ALL_STREAMS: Final = _FRAME.pack(_WINDOW_UPDATE, 0, 0)
_END_STREAM, _END_HEADERS = 1, 4
_CLIENT_STREAM_BITS: Final = 0x8000_0001  # the number of a client's stream has only the last of these two bits set
_MIN_REQUEST_BYTES: Final = 2 * _FRAME.size + _PREFIX.size


class Request(NamedTuple, Generic[M]):
    """A complete request.

    ``meaning`` is the meaning of its header block, ``size`` the number of its DATA bytes, and ``end`` the position
    behind its last frame. Its client adds ``stream_increment`` to the window of the stream and ``connection_increment``
    to that of the connection.
    """

    stream: int
    meaning: M
    message: bytes
    size: int
    end: int
    stream_increment: int
    connection_increment: int


def find_request(data: bytes, at: int, known: Mapping[bytes, tuple[Fields, M | None]]) -> Request[M] | None:
    """Return the request that begins at ``at``: HEADERS with a known block, then DATA with one message and END_STREAM.

    A WINDOW_UPDATE for the stream may stand between the two, and one for the connection behind them: clients of the C
    core (grpcio) send these. Returns None if the request is incomplete or has any other form.
    """
    whole = len(data)
    if whole - at < _MIN_REQUEST_BYTES:
        return None
    word, flags, stream = _FRAME.unpack_from(data, at)
    if word & _TYPE != _HEADERS or flags != _END_HEADERS or stream & _CLIENT_STREAM_BITS != 1:
        return None
    block = at + _FRAME.size
    at = block + (word >> 8)
    found = known.get(data[block:at])
    if found is None or found[1] is None or whole - at < _FRAME.size + _PREFIX.size:
        return None
    word, flags, same = _FRAME.unpack_from(data, at)
    at += _FRAME.size
    stream_increment = 0
    if word == _WINDOW_UPDATE and flags == 0 and same == stream:
        (stream_increment,) = _NUMBER.unpack_from(data, at)
        at += _NUMBER.size
        if not 0 < stream_increment <= LARGEST_WINDOW or whole - at < _FRAME.size + _PREFIX.size:
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
    connection_increment = 0
    if data.startswith(_ALL_STREAMS, end) and whole - end >= _FRAME.size + _NUMBER.size:
        (connection_increment,) = _NUMBER.unpack_from(data, end + _FRAME.size)
        if not 0 < connection_increment <= LARGEST_WINDOW:
            return None
        end += _FRAME.size + _NUMBER.size
    return Request(stream, found[1], message, size, end, stream_increment, connection_increment)


def end_of_frame(data: bytes, at: int) -> int:
    """Return the position behind the frame that begins at ``at``, at most the end of ``data``."""
    return min(len(data), at + _FRAME.size + int.from_bytes(data[at : at + 3], "big"))


# -- answers ----------------------------------------------------------------------------------------------------------


def _frame(length: int, kind: int, flags: int, stream: int) -> bytes:
    return _FRAME.pack(length << 8 | kind, flags, stream)


# Literal fields without indexing: these blocks are valid on every connection at any time.
_ANSWER: Final = b"\x88\x0f\x10\x10application/grpc"  # :status: 200, content-type
_TRAILERS: Final = b"\x00\x0bgrpc-status\x010"
_ANSWER_START: Final = _frame(len(_ANSWER), 1, 4, 0)[:5]
_TRAILERS_START: Final = _frame(len(_TRAILERS), 1, 5, 0)[:5]


def answer(stream: int, body: bytes) -> bytes:
    """Return the frames of a successful answer: HEADERS, DATA with the packed message, HEADERS with END_STREAM."""
    number = stream.to_bytes(4, "big")
    size = len(body).to_bytes(3, "big")
    return b"".join((_ANSWER_START, number, _ANSWER, size, b"\0\0", number, body, _TRAILERS_START, number, _TRAILERS))
