"""The formats of gRPC: messages with their prefix, deadlines, header lists, and a scanner of HTTP/2 frames.

Rules of this module: pure; input comes in pieces of any size. Invalid input raises, and no data is buffered beyond the
limit that the input breaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from h2.errors import ErrorCodes

from notary.net.grpc.status import RpcError, Status, decode_message, decode_status, of_http

# -- messages ---------------------------------------------------------------------------------------------------------

_PREFIX_BYTES: Final = 5  # a flag and a length


def pack(message: bytes) -> bytes:
    """Return ``message`` with its prefix, not compressed."""
    return b"\0%b%b" % (len(message).to_bytes(4, "big"), message)


class Message:
    """The one message of a request or an answer, as it arrives; ``limit`` is its largest size in bytes."""

    __slots__ = ("_data", "_end", "_limit")

    def __init__(self, limit: int) -> None:
        self._data: bytes | bytearray = b""
        self._end = 0  # the end of the message in _data; 0 until its prefix has arrived
        self._limit = limit

    def __len__(self) -> int:
        """Return how many bytes are buffered."""
        return len(self._data)

    def feed(self, data: bytes) -> None:
        """Add received bytes. Raises RpcError if they cannot belong to the message."""
        if not self._data:
            self._data = data
        elif isinstance(self._data, bytes):
            self._data = bytearray(self._data + data)
        else:
            self._data += data
        if not self._end:
            if len(self._data) < _PREFIX_BYTES:
                return
            self._start()
        if len(self._data) > self._end:
            raise RpcError(Status.UNIMPLEMENTED, "more than one message: the method is unary")

    def _start(self) -> None:
        flag = self._data[0]
        if flag == 1:
            raise RpcError(Status.UNIMPLEMENTED, "the message is compressed; only identity is supported")
        if flag:
            raise RpcError(Status.INTERNAL, f"a message has the unknown flags {flag}")
        size = int.from_bytes(self._data[1:_PREFIX_BYTES], "big")
        if size > self._limit:
            raise RpcError(Status.RESOURCE_EXHAUSTED, f"a message of {size} bytes is over the limit of {self._limit}")
        self._end = _PREFIX_BYTES + size

    def finish(self) -> bytes:
        """Return the message at the end of its stream. Raises RpcError if it is incomplete."""
        if not self._data:
            raise RpcError(Status.UNIMPLEMENTED, "no message: the method is unary")
        if len(self._data) != self._end:
            raise RpcError(Status.INTERNAL, "the message is truncated")
        return bytes(self._data[_PREFIX_BYTES:])


# -- deadlines --------------------------------------------------------------------------------------------------------

_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_MAX_COUNT: Final = 10**8 - 1  # eight digits


def encode_timeout(seconds: float) -> bytes:
    """Return ``seconds`` as the value of grpc-timeout, never below a microsecond.

    From one second on the value is in milliseconds, so that header blocks repeat and are decoded faster.
    """
    if seconds < 1:
        return b"%du" % max(1, int(seconds * 1_000_000))
    count = int(seconds * 1_000)
    return b"%dm" % count if count <= _MAX_COUNT else b"%dS" % min(_MAX_COUNT, int(seconds))


def decode_timeout(value: bytes) -> float:
    """Return the seconds of a grpc-timeout. Raises RpcError."""
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise RpcError(Status.INTERNAL, "grpc-timeout is malformed")
    return int(match[1]) * _UNITS[match[2]]


# -- heads ------------------------------------------------------------------------------------------------------------

_PSEUDO: Final = frozenset({b":method", b":path", b":scheme", b":authority"})
_CONNECTION_HEADERS: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)


class Malformed(Exception):
    """A header list breaks the rules of HTTP/2; the stream is reset (RFC 9113, section 8.1.1)."""


class NotGrpc(Exception):
    """A request is HTTP but not gRPC; ``status`` is the HTTP status of the answer, ``headers`` go with it."""

    def __init__(self, status: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(status.decode())
        self.status = status
        self.headers = headers


Headers = Iterable[tuple[bytes, bytes]]


def parse_request(headers: Headers) -> tuple[str, bytes | None]:
    """Return the path of a request and its grpc-timeout. Raises Malformed, NotGrpc."""
    fields: dict[bytes, bytes] = {}
    pseudo = True
    for name, value in headers:
        if name[:1] == b":":
            if not pseudo or name in fields or name not in _PSEUDO:
                raise Malformed("a pseudo-header is misplaced, repeated or unknown")
        else:
            pseudo = False
            if name in _CONNECTION_HEADERS or name != name.lower():
                raise Malformed("a header is not for HTTP/2")
        fields[name] = value
    if not fields.get(b":path") or b":scheme" not in fields or b":method" not in fields:
        raise Malformed("a pseudo-header is missing")
    if fields.get(b"te", b"trailers") != b"trailers":
        raise Malformed("te is not for HTTP/2")
    if fields[b":method"] != b"POST":
        raise NotGrpc(b"405", ((b"allow", b"POST"),))
    if not _is_grpc(fields.get(b"content-type")):
        raise NotGrpc(b"415")
    return fields[b":path"].decode("latin-1"), fields.get(b"grpc-timeout")


def _is_grpc(content_type: bytes | None) -> bool:
    return content_type == b"application/grpc" or (
        content_type is not None and content_type.startswith((b"application/grpc+", b"application/grpc;"))
    )


def check_answer(headers: Headers, *, ended: bool) -> None:
    """Check the headers of an answer; ``ended`` is True if they end the stream. Raises RpcError if the call failed."""
    fields = dict(headers)
    code = fields.get(b":status", b"")
    if _is_grpc(fields.get(b"content-type")):
        if b"grpc-status" in fields:
            raise _error(fields)
        if code == b"200" and not ended:
            return
    if code != b"200":
        raise RpcError(of_http(code), f"the server answered with HTTP status {code.decode('latin-1')}")
    raise RpcError(Status.UNKNOWN, "the answer is not gRPC: no status, or another content type")


def check_trailers(headers: Headers) -> None:
    """Check the trailers of an answer. Raises RpcError unless the status is OK."""
    fields = dict(headers)
    if fields.get(b"grpc-status") != b"0":
        raise _error(fields)


def _error(fields: dict[bytes, bytes]) -> RpcError:
    status = decode_status(fields.get(b"grpc-status", b""))
    if status is Status.OK:  # a whole answer that is only a status has no message
        return RpcError(Status.UNIMPLEMENTED, "the answer has no message: the method is unary")
    return RpcError(status, decode_message(fields.get(b"grpc-message", b"")))


# -- HTTP/2 frames ----------------------------------------------------------------------------------------------------

LARGEST_FRAME: Final = 16_384
"""The largest payload of a frame in bytes, in both directions (RFC 9113, section 6.5.2)."""
LARGEST_WINDOW: Final = (1 << 31) - 1
"""The largest flow-control window in bytes (section 6.9.1)."""
_FRAME_HEAD_BYTES: Final = 9
_PREFACE_BYTES: Final = 24
TINY_FRAME: Final = 256
"""A smaller DATA frame that does not end its stream counts as a control frame. In bytes."""
_MAX_PADDING_BYTES: Final = 256
_MAX_SETTINGS: Final = 64  # of one frame; HTTP/2 and its extensions define about ten
_SETTING_BYTES: Final = 6
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _GOAWAY, _CONTINUATION = 0, 1, 3, 4, 5, 7, 9
_END_STREAM: Final = 1
_END_HEADERS: Final = 4
_PADDED: Final = 8
_LAST_STREAM: Final = 0x7FFF_FFFF


_NO_TLS: Final = "the client speaks without TLS, and this port demands TLS"


def refuse_plaintext(_first: bytes) -> bytes:
    """Return what a server with TLS says to a client without it: an answer of HTTP/1.1.

    A client of HTTP/2 gets it too. A gRPC client then reports a server of HTTP/1 and the status 400, and tries again
    after a growing pause; after SETTINGS and a GOAWAY, it would connect again at once, without end, and report nothing.
    """
    body = f"{_NO_TLS}; it speaks gRPC.\n".encode()
    head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


class Violation(Exception):
    """A peer breaks a rule or exceeds a budget: the connection ends with ``code``."""

    def __init__(self, code: ErrorCodes, text: str) -> None:
        super().__init__(text)
        self.code = code


class Scanner:
    """Scans the frames of a connection before h2 gets them.

    By itself, h2 would

    - collect a frame of any size before it refuses it, and decode headers of up to a megabyte;
    - answer every PING and SETTINGS, however many, and take any number of settings in a frame;
    - answer every frame on a stream that has been reset;
    - take no more frames after a GOAWAY, although streams that are open go on (RFC 9113, section 6.8).

    ``preface`` is True if a client's connection preface comes first; ``headers`` is the largest header block in bytes.
    ``controls`` counts control frames and others without content, ``settings`` SETTINGS frames and their settings,
    ``resets`` RST_STREAM frames, and ``claims`` frames that are useful only if they begin or end a call. The caller
    sets these counters back to zero. ``goaways`` collects (last stream, error code, debug data) of GOAWAY frames, and
    the caller empties it.
    """

    def __init__(self, *, preface: bool, headers: int) -> None:
        self.controls = 0
        self.settings = 0
        self.resets = 0
        self.claims = 0
        self.goaways: list[tuple[int, int, bytes]] = []
        self._limit = headers
        self._block = 0  # bytes so far of the header block that is arriving
        self._in_block = False
        self._missing = _PREFACE_BYTES if preface else 0  # missing bytes of the current frame
        self._held = b""  # the received part of a frame header
        self._goaway: list[bytes] | None = None  # payload so far of the GOAWAY that is arriving

    @property
    def between(self) -> bool:
        """True at a frame boundary outside a header block."""
        return not (self._missing or self._held or self._in_block)

    def feed(self, data: bytes) -> bytes:
        """Scan received bytes; return those that h2 shall get. Raises Violation."""
        if self._held:
            data = self._held + data
            self._held = b""
        position = 0
        size = len(data)
        passed: list[bytes] = []
        begin = 0  # the first byte for h2 that is not in ``passed``
        while True:
            step = min(self._missing, size - position)
            self._missing -= step
            if self._goaway is not None:
                self._goaway.append(data[position : position + step])
                begin = position + step
            position += step
            if self._missing:
                break
            if self._goaway is not None:
                self._end_goaway(b"".join(self._goaway))
            if size - position < _FRAME_HEAD_BYTES:
                self._held = data[position:]
                break
            self._missing = (data[position] << 16) | (data[position + 1] << 8) | data[position + 2]
            kind = data[position + 3]
            self._look(kind, data[position + 4], self._missing)
            if kind == _GOAWAY and not self._in_block:
                self._goaway = []
                passed.append(data[begin:position])
                begin = position + _FRAME_HEAD_BYTES
            position += _FRAME_HEAD_BYTES
        end = size - len(self._held)
        return data if begin == 0 and end == size else b"".join((*passed, data[begin:end]))

    def _look(self, kind: int, flags: int, length: int) -> None:
        if length > LARGEST_FRAME:
            raise Violation(ErrorCodes.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
        if kind == _DATA:
            if length < (TINY_FRAME + _MAX_PADDING_BYTES if flags & _PADDED else TINY_FRAME):
                if flags & _END_STREAM:
                    self.claims += 1
                else:
                    self.controls += 1
        elif kind in {_HEADERS, _CONTINUATION}:
            self._look_at_block(kind, flags, length)
        elif kind == _RST_STREAM:
            self.resets += 1
        elif kind == _SETTINGS:
            if length > _MAX_SETTINGS * _SETTING_BYTES:
                raise Violation(ErrorCodes.ENHANCE_YOUR_CALM, f"more than {_MAX_SETTINGS} settings in a frame")
            self.settings += 1 + length // _SETTING_BYTES
        elif kind == _PUSH_PROMISE:
            raise Violation(ErrorCodes.PROTOCOL_ERROR, "a pushed stream, which no peer may open here")
        else:
            self.controls += 1

    def _look_at_block(self, kind: int, flags: int, length: int) -> None:
        if kind == _HEADERS:
            self._block = length
            self.claims += 1
        else:
            self._block += length
            self.controls += 1
        self._in_block = not flags & _END_HEADERS
        if self._block > self._limit:
            raise Violation(ErrorCodes.ENHANCE_YOUR_CALM, f"a header block of over {self._limit} bytes")

    def _end_goaway(self, payload: bytes) -> None:
        self._goaway = None
        if len(payload) < 8:  # noqa: PLR2004 - the last stream and the error code
            raise Violation(ErrorCodes.FRAME_SIZE_ERROR, "a GOAWAY that is too short")
        last = int.from_bytes(payload[:4], "big") & _LAST_STREAM
        self.goaways.append((last, int.from_bytes(payload[4:8], "big"), payload[8:]))


class Budget:
    """A budget for work without use: ``most`` in a burst, ``per_second`` in the long run."""

    __slots__ = ("_left", "_most", "_per_second", "_since")

    def __init__(self, most: int, per_second: float, now: float) -> None:
        self._most = most
        self._per_second = per_second
        self._left = float(most)
        self._since = now

    def spend(self, count: int, now: float) -> bool:
        """Spend ``count`` at the time ``now``, in seconds. Returns False if that was too much.

        A time before the last one counts as no time: a peer never pays for a clock of ours.
        """
        self._left = min(self._most, self._left + max(0.0, now - self._since) * self._per_second) - count
        self._since = now
        return self._left >= 0

    def earn(self, count: int) -> None:
        """Add ``count``, for useful work of the peer."""
        self._left = min(self._most, self._left + count)
