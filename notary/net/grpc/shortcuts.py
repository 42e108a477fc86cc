"""The two places where the general way of h2 and hpack costs the most, done for the case that nearly every call is.

Rules of this module: pure; a shortcut is taken only where it says exactly what the general way would say, and whatever
is out of the ordinary goes the general way. Measured gains are in docs/adr/0009-grpc-on-h2.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from hpack import Decoder, HPACKDecodingError, OversizedHeaderListError
from hpack.struct import HeaderTuple

_INDEXED: Final = 0x80  # a field that is in the table (RFC 7541, section 6.1)
_LONG_INDEX: Final = 0xFF
_TABLE_SIZE: Final = 0x20  # a change of the table's size (section 6.3)
_TABLE_SIZE_MASK: Final = 0xE0
_ENTRY: Final = 32  # bytes that a field counts besides its name and value (section 4.1)


class QuickDecoder(Decoder):
    """Decodes the fields at the beginning of a block that are in the table, which are most, in one loop."""

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        """Return the headers of a block. Raises HPACKError."""
        if not raw:
            return super().decode(data, raw)
        fields: list[Any] = []  # h2 wants no more than pairs, as it neither validates nor normalises
        limit = self.max_header_list_size
        size = 0
        find = self.header_table.get_by_index
        for byte in data:
            if byte <= _INDEXED or byte == _LONG_INDEX:
                break
            field = find(byte & 0x7F)
            fields.append(field)
            size += _ENTRY + len(field[0]) + len(field[1])
        if size > limit:
            raise OversizedHeaderListError(f"a header list of over {limit} bytes")
        if len(fields) == len(data) and self.header_table_size <= self.max_allowed_table_size:
            return fields
        rest = data[len(fields) :]
        if fields and rest and rest[0] & _TABLE_SIZE_MASK == _TABLE_SIZE:
            raise HPACKDecodingError("the table size changes behind a field")
        self.max_header_list_size = limit - size
        try:
            return [*fields, *super().decode(rest, raw)]
        finally:
            self.max_header_list_size = limit


def _frame(length: int, kind: int, flags: int, stream: int) -> bytes:
    return b"%b%c%c%b" % (length.to_bytes(3, "big"), kind, flags, stream.to_bytes(4, "big"))


# Literal fields that are not put in the table, so that the blocks are the same on every connection at any time.
_HEAD: Final = b"\x88\x0f\x10\x10application/grpc"  # :status: 200, content-type
_TRAILERS: Final = b"\x00\x0bgrpc-status\x010"
_HEAD_START: Final = _frame(len(_HEAD), 1, 4, 0)[:5]
_TRAILERS_START: Final = _frame(len(_TRAILERS), 1, 5, 0)[:5]


def answer(stream: int, body: bytes) -> bytes:
    """Return the frames of a good answer: HEADERS, DATA with the packed message, HEADERS that end the stream."""
    number = stream.to_bytes(4, "big")
    size = len(body).to_bytes(3, "big")
    return b"".join((_HEAD_START, number, _HEAD, size, b"\0\0", number, body, _TRAILERS_START, number, _TRAILERS))
