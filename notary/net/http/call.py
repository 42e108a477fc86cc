"""Requests and answers of the HTTP layer, and the types of the functions that handle them.

Rules of this module: values only, without input or output; Twisted's Deferred is named as a type of handlers. What
cannot be sent safely (a line end in a header) cannot be built.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from twisted.internet.defer import Deferred

_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_ETAG: Final = re.compile(r'(?:W/)?"([^"]*)"')
_KEPT_BY_304: Final = frozenset({"cache-control", "content-location", "expires", "pragma", "vary"})
_CONDITIONAL: Final = frozenset({"GET", "HEAD"})
_BODILESS: Final = frozenset({204, 304})


@dataclass(slots=True)
class Call:
    """One request: complete when the handler gets it, still without ``body`` when ``admit`` and ``takes_body`` do.

    ``path`` is percent-decoded (``%2F`` too) and clean, or "" if the target has no path or it is not UTF-8;
    ``raw_path`` is the request target as received, without its query. ``query`` has every value of a name in order;
    ``headers`` has lower-cased names, repeated fields joined by ``", "``. ``remote`` is ``host:port`` of the peer (no
    forwarding header is trusted), ``secure`` says whether it speaks TLS. A HEAD keeps its method: answer it as a GET,
    the body is not sent. ``notes`` is for the handler: its notes (gun, operation) reach ``on_finish``.

    ``body`` has the blocks of the body in order. A handler that reads them by ``take_body`` releases each block when it
    goes on to the next, so that a large body is never held twice; ``body`` is empty after that. ``size`` is the number
    of bytes in the body. ``gone`` turns True, once, when the connection is lost before its answer is sent: then work
    for this call that has not begun need not begin. It may be read in any thread. A client that only closes its sending
    half is not gone.
    """

    method: str
    path: str
    raw_path: bytes = b""
    query: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    remote: str = ""
    secure: bool = False
    body: Sequence[bytes] = ()
    notes: dict[str, str] = field(default_factory=dict)
    gone: bool = False
    size: int = 0

    def take_body(self) -> Iterator[bytes]:
        """Return the blocks of the body, one after the other; each is released when the next is asked for."""
        blocks = deque(self.body)
        self.body = ()
        return _each_once(blocks)


def _each_once(blocks: deque[bytes]) -> Iterator[bytes]:
    while blocks:
        yield blocks.popleft()


class Response:
    """An answer. It is immutable, may be cached and sent any number of times, and is encoded once.

    ``etag`` is the bare entity tag, without quotes: with it, a GET or HEAD that already has the body is answered 304.
    Content-Length, Date, ETag and Connection are added here and may not be among ``headers``. ``keeps`` is an object
    that lives for as long as the answer is being sent. Raises ValueError if a status, a header or the etag cannot be
    sent.
    """

    __slots__ = ("_not_modified", "body", "etag", "head", "headers", "keeps", "status")

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        headers: tuple[tuple[str, str], ...] = (),
        etag: str | None = None,
        keeps: object = None,
    ) -> None:
        if not 200 <= status <= 999:  # noqa: PLR2004 - three digits, and final
            raise ValueError(f"{status} is not the status of an answer")
        lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, 'Unknown')}\r\n"]
        for name, value in headers:
            if _FIELD_NAME.fullmatch(name) is None or _FIELD_VALUE.fullmatch(value) is None:
                raise ValueError(f"the header {name!r} cannot be sent")
            lines.append(f"{name}: {value}\r\n")
        if etag is not None:
            if '"' in etag or _FIELD_VALUE.fullmatch(etag) is None:
                raise ValueError(f"{etag!r} is not an entity tag")
            lines.append(f'ETag: "{etag}"\r\n')
        if status not in _BODILESS:
            lines.append(f"Content-Length: {len(body)}\r\n")
        self.status = status
        self.body = body if status not in _BODILESS else b""
        self.headers = headers
        self.etag = etag
        self.keeps = keeps
        self.head = "".join(lines).encode("latin-1")
        self._not_modified: Response | None = None

    def not_modified(self) -> Response:
        """Return the 304 for this answer: its entity tag and cache headers, without a body (RFC 9110, 15.4.5)."""
        if self._not_modified is None:
            kept = tuple((name, value) for name, value in self.headers if name.lower() in _KEPT_BY_304)
            self._not_modified = Response(304, b"", kept, self.etag)
        return self._not_modified

    def matches(self, if_none_match: str) -> bool:
        """Whether a client that sends this If-None-Match already has this answer (weak comparison)."""
        if self.etag is None:
            return False
        return if_none_match.strip() == "*" or self.etag in _ETAG.findall(if_none_match)


def conditional(call: Call, response: Response) -> Response:
    """Return ``response``, or its 304 if the client already has the body (If-None-Match)."""
    condition = call.headers.get("if-none-match")
    if (
        condition is not None
        and call.method in _CONDITIONAL
        and response.status == HTTPStatus.OK
        and response.matches(condition)
    ):
        return response.not_modified()
    return response


Handler: TypeAlias = Callable[[Call], Response | Coroutine[Any, Any, Response] | Deferred[Response]]
"""Answers a call: at once (the fastest way, for answers from a cache), or by a coroutine or a Deferred.

A handler is never cancelled when its client goes away: a write that has begun runs to its end, and only the answer is
dropped. It may ask ``Call.gone`` before it begins something that is work.
"""
Admit: TypeAlias = Callable[[Call], Response | None]
TakesBody: TypeAlias = Callable[[Call], bool]
EdgeError: TypeAlias = Callable[[int, str], Response]
OnError: TypeAlias = Callable[[Exception], Response]
OnFinish: TypeAlias = Callable[[Call, int, int, float], None]
