"""Request targets, read as the Go server reads them, because that decides which collection a request names.

Rules of this module: pure; text in, values or :class:`BadRequest` out. Targets come as Latin-1 text, one character a
byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import quote, unquote_to_bytes

NO_QUERY: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({})

_VISIBLE: Final = re.compile(r"[!-~]+")
_ABSOLUTE: Final = re.compile(r"https?://[^/?#]+", re.IGNORECASE)
_HOST: Final = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:\[\]%]*")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


class BadRequest(Exception):
    """A request that the HTTP layer itself answers, with an error.

    ``status`` is the HTTP status, ``str(refused)`` a message that is safe to show to the client.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def is_host(text: str) -> bool:
    """Return whether ``text`` can be the value of a Host field, which may be empty."""
    return _HOST.fullmatch(text) is not None


def split_target(target: str) -> tuple[str, str, str]:
    """Return origin (which only clients of a proxy send), path and query (with its ``?``) of a target, as received.

    Raises BadRequest (400) if the target has neither a path (RFC 9112, section 3.2) nor is ``*``, or has characters
    other than visible ASCII. So every part of it can be sent back in a header.
    """
    if _VISIBLE.fullmatch(target) is None:
        raise BadRequest(400, "the request target is malformed: bytes beyond visible ASCII must be percent-encoded")
    origin = _ABSOLUTE.match(target)
    rest = target if origin is None else target[origin.end() :]
    path, mark, query = rest.partition("?")
    if origin is not None and not path:
        path = "/"
    if not path.startswith("/") and path != "*":
        raise BadRequest(400, "the request target is malformed")
    return "" if origin is None else origin[0], path, mark + query


def decode_path(path: str) -> str:
    """Percent-decode a path whose characters stand for bytes (Latin-1), ``%2F`` included, as Go's URL.Path has it.

    Returns "" if the result is not UTF-8: no route has that path, so it is not found. Raises BadRequest (400) on a
    ``%`` that is not followed by two hexadecimal digits.
    """
    if "%" in path:
        if _BAD_ESCAPE.search(path) is not None:
            raise BadRequest(400, "the path has a malformed percent-escape")
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
    values: dict[str, list[str]] = {}
    for pair in query.split("&"):
        if not pair or ";" in pair or _BAD_ESCAPE.search(pair) is not None:
            continue
        name, _, value = (
            unquote_to_bytes(part.encode("latin-1")).decode("utf-8", "replace")
            for part in pair.replace("+", " ").partition("=")
        )
        values.setdefault(name, []).append(value)
    return {name: tuple(each) for name, each in values.items()}


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


def redirection(origin: str, path: str, query: str) -> str | None:
    """Return the Location to which a request with this decoded path is redirected, None if the path is clean.

    ``query`` is kept as it is, with its ``?``.
    """
    clean = clean_path(path)
    if clean == path or not path:
        return None
    return origin + quote(clean, safe="$&+,/:;=@") + query
