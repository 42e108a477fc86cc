"""The fast path: reads a request that came whole, has no body and nothing unusual, as nearly all requests.

Rules of this module: pure. It says exactly what :mod:`notary.net.http.reader` would say of a request, or None if it is
not certain; a test compares the two on any input. So it refuses nothing, and needs no limits of its own beyond those
that keep its memory small.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from notary.net.http.target import (
    NO_QUERY,
    BadRequest,
    decode_path,
    is_host,
    parse_query,
    redirection,
    split_target,
)

_REMEMBERED_LINES: Final = 2048  # of at most _LONGEST_BYTES each
_REMEMBERED_BLOCKS: Final = 256  # of header fields, of at most _LONGEST_BYTES each
_LONGEST_BYTES: Final = 512
_LINE: Final = re.compile(rb"(GET|HEAD) (/[!-~]*) HTTP/1\.1")
# Each byte can be matched in one way only, so one pass shows that a block does not match. If blanks were matched apart
# from the value, a field of blanks alone would match in as many ways as it has blanks, and each such field would
# multiply the number of ways.
_FIELDS: Final = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[ -~\t]*+\r\n)++\r\n")
_UNUSUAL: Final = frozenset({"content-length", "expect", "te", "trailer", "transfer-encoding", "upgrade"})
_CONNECTION: Final = frozenset({"close", "keep-alive"})


class RequestLine(NamedTuple):
    """What a request line asks for; the fields are those of :class:`notary.net.http.call.Call`."""

    method: str
    path: str
    raw_path: bytes
    query: Mapping[str, tuple[str, ...]]


@lru_cache(_REMEMBERED_LINES)
def _read_line(line: bytes) -> RequestLine | None:
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    try:
        origin, raw, query = split_target(match[2].decode("ascii"))
        path = decode_path(raw)
    except BadRequest:
        return None
    if redirection(origin, path, query) is not None:
        return None
    values = MappingProxyType(dict(parse_query(query[1:]))) if query else NO_QUERY
    return RequestLine(match[1].decode("ascii"), path, raw.encode("ascii"), values)


def read_line(line: bytes) -> RequestLine | None:
    """Read a request line (without its end). Returns None unless it is an ordinary GET or HEAD of HTTP/1.1.

    The most recent lines are remembered, because clients ask for the same files again and again.
    """
    return _read_line(line) if len(line) <= _LONGEST_BYTES else None


def read_fields(block: bytes, most: int) -> Mapping[str, str] | None:
    """Read header fields and the empty line behind them. Returns None if there are more than ``most``, or unusual ones.

    Names are lower-cased, and repeated fields are joined by ``", "``. The fields that are returned have exactly one
    well-formed Host, no field about a body, and a Connection field only if it is ``close`` or ``keep-alive``.

    The most recent blocks of fields are remembered, unless they hold a token: most new connections send the same
    fields as those before them.
    """
    if len(block) <= _LONGEST_BYTES and b"authorization" not in block.lower():
        return _remembered_fields(block, most)
    return _read_fields(block, most)


def _read_fields(block: bytes, most: int) -> Mapping[str, str] | None:
    if block.count(b"\n") - 1 > most or _FIELDS.fullmatch(block) is None:
        return None
    fields: dict[str, str] = {}
    for line in block[:-4].decode("ascii").split("\r\n"):
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if name in _UNUSUAL or (name == "host" and name in fields):
            return None
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    if fields.get("connection", "close").lower() not in _CONNECTION:
        return None
    if "host" not in fields or not is_host(fields["host"]):
        return None
    return MappingProxyType(fields)


_remembered_fields = lru_cache(_REMEMBERED_BLOCKS)(_read_fields)
