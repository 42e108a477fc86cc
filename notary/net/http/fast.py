"""The requests that nearly all are: a whole GET or HEAD, without a body and without anything unusual about it.

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

_REMEMBERED: Final = 2048  # request lines, of at most _LONGEST bytes each
_BLOCKS: Final = 256  # of fields, likewise
_LONGEST: Final = 512
_LINE: Final = re.compile(rb"(GET|HEAD) (/[!-~]*) HTTP/1\.1")
# Each byte can be matched in one way only, so a block that does not match is found out in one pass: with blanks matched
# apart from the value, a field of nothing but blanks had as many ways as blanks, and each such field multiplied them.
_FIELDS: Final = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[ -~\t]*+\r\n)++\r\n")
_UNUSUAL: Final = frozenset({"content-length", "expect", "te", "trailer", "transfer-encoding", "upgrade"})
_CONNECTION: Final = frozenset({"close", "keep-alive"})


class RequestLine(NamedTuple):
    """What a request line asks for; the fields are those of :class:`notary.net.http.call.Call`."""

    method: str
    path: str
    raw_path: bytes
    query: Mapping[str, tuple[str, ...]]


@lru_cache(_REMEMBERED)
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
    """Read a request line (without its end); None for all but an ordinary GET or HEAD of HTTP/1.1.

    The lines asked for last are remembered: collections are read far more often than they change their names.
    """
    return _read_line(line) if len(line) <= _LONGEST else None


def read_fields(block: bytes, most: int) -> Mapping[str, str] | None:
    """Read header fields and the empty line behind them; None if there are more than ``most``, or unusual ones.

    Names are lower-cased, repeated fields joined by ``", "``. There is exactly one well-formed Host among them, and
    none that says anything about a body, or about the connection but whether it ends with this request.

    Those asked for last are remembered, unless they hold somebody's token: new connections seldom say anything new.
    """
    if len(block) <= _LONGEST and b"authorization" not in block.lower():
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


_remembered_fields = lru_cache(_BLOCKS)(_read_fields)
