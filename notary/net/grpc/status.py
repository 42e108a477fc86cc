"""The status of a call: codes, messages, and the status for failures of the layers below.

Rules of this module: pure. The tables are those of the gRPC project's documents "Status codes and their use in gRPC",
"HTTP to gRPC Status Code Mapping" and "gRPC over HTTP2".
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from h2.errors import ErrorCodes


class Status(IntEnum):
    """The status codes of gRPC, with their numbers on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """A call that did not end with OK.

    A handler raises it to answer with ``status`` and ``message``, which the caller sees: it must hold no secret. A
    call on a channel fails with it. Raises ValueError for the status OK.
    """

    def __init__(self, status: Status, message: str = "") -> None:
        if status is Status.OK:
            raise ValueError("OK is not an error")
        super().__init__(f"{status.name}: {message}" if message else status.name)
        self.status = status
        self.message = message


_LITERAL: Final = "".join(chr(code) for code in range(0x20, 0x7F) if code != ord("%"))
_MAX_CHARACTERS: Final = 1024  # of a message; a peer may refuse a header list over 8 KiB


def encode_message(text: str) -> bytes:
    """Return ``text``, its first 1,024 characters, as the value of grpc-message: UTF-8, percent-encoded."""
    return quote_from_bytes(text[:_MAX_CHARACTERS].encode("utf-8", "replace"), safe=_LITERAL).encode("ascii")


def decode_message(value: bytes) -> str:
    """Return the text of a grpc-message. Invalid parts are replaced; there is no error."""
    return unquote_to_bytes(value).decode("utf-8", "replace")


def decode_status(value: bytes) -> Status:
    """Return the status in a grpc-status, or UNKNOWN for an invalid one."""
    try:
        return Status(int(value)) if value.isdigit() else Status.UNKNOWN
    except ValueError:
        return Status.UNKNOWN


_OF_HTTP: Final = {
    b"400": Status.INTERNAL,
    b"401": Status.UNAUTHENTICATED,
    b"403": Status.PERMISSION_DENIED,
    b"404": Status.UNIMPLEMENTED,
    b"429": Status.UNAVAILABLE,
    b"502": Status.UNAVAILABLE,
    b"503": Status.UNAVAILABLE,
    b"504": Status.UNAVAILABLE,
}


def of_http(code: bytes) -> Status:
    """Return the status of a call whose answer has an HTTP status and no grpc-status."""
    return _OF_HTTP.get(code, Status.UNKNOWN)


_OF_RESET: Final = {
    ErrorCodes.NO_ERROR: Status.INTERNAL,
    ErrorCodes.PROTOCOL_ERROR: Status.INTERNAL,
    ErrorCodes.INTERNAL_ERROR: Status.INTERNAL,
    ErrorCodes.FLOW_CONTROL_ERROR: Status.INTERNAL,
    ErrorCodes.SETTINGS_TIMEOUT: Status.INTERNAL,
    ErrorCodes.FRAME_SIZE_ERROR: Status.INTERNAL,
    ErrorCodes.REFUSED_STREAM: Status.UNAVAILABLE,
    ErrorCodes.CANCEL: Status.CANCELLED,
    ErrorCodes.COMPRESSION_ERROR: Status.INTERNAL,
    ErrorCodes.CONNECT_ERROR: Status.INTERNAL,
    ErrorCodes.ENHANCE_YOUR_CALM: Status.RESOURCE_EXHAUSTED,
    ErrorCodes.INADEQUATE_SECURITY: Status.PERMISSION_DENIED,
}


def of_reset(code: int) -> Status:
    """Return the status of a call that a RST_STREAM with this error code ends."""
    return _OF_RESET.get(code, Status.UNKNOWN)  # type: ignore[call-overload, no-any-return]
