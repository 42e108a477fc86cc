"""What goes through the HTTP layer: requests, answers that are encoded once, their limits, and who handles them.

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
    """One request: complete for the handler, without ``body`` for what may refuse it before.

    ``path`` is percent-decoded (``%2F`` too) and clean, or "" if the target has no path or it is not UTF-8;
    ``raw_path`` is the request target as received, without its query. ``query`` has every value of a name in order;
    ``headers`` has lower-cased names, repeated fields joined by ``", "``. ``remote`` is ``host:port`` of the peer (no
    forwarding header is trusted), ``secure`` says whether it speaks TLS. A HEAD keeps its method: answer it as a GET,
    the body is not sent. ``notes`` is for the handler: what it writes there (gun, operation) reaches ``on_finish``.
    ``body`` has the blocks of the body in order, and is empty after that; a handler that reads the blocks by
    ``take_body`` lets go of each as it goes on to the next, so that a large body is never held twice. ``size`` is how
    many bytes there were. ``gone`` turns True, once, when the connection is lost before its
    answer is sent: work for this call that has not begun need not begin then. It may be read in any thread. A client
    that only closes its sending half is not gone.
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
        """Return the blocks of the body, one after the other; none is held any longer, by the call or here."""
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
        """Return the 304 that stands for this answer: its entity tag and cache headers, no body (RFC 9110, 15.4.5)."""
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
    """``response``, or the 304 that stands for it if the client already has it (If-None-Match)."""
    condition = call.headers.get("if-none-match")
    if (
        condition is not None
        and call.method in _CONDITIONAL
        and response.status == HTTPStatus.OK
        and response.matches(condition)
    ):
        return response.not_modified()
    return response


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may do. Sizes are in bytes, times in seconds (kept to within one second).

    ``body`` bounds the bodies of requests that take one; of others at most ``other_body`` bytes are read and dropped.
    ``bodies`` bounds what is held of the bodies of all requests together, ``peer_bodies`` of those of one peer (see
    ``bodies.peer_of``); one body of the largest size always has room when there is no other. Within ``head_seconds`` of
    its first byte a request line and its fields must be complete; ``idle_seconds`` is how long a connection may wait
    for its next request; ``body_seconds`` how long a body may stand still, and ``body_rate`` how many bytes of it must
    come a second in the long run; ``write_seconds`` how long a client may take nothing of an answer;
    ``linger_seconds`` how long, after a refusal, input is read and dropped so that the client can see the answer before
    the connection is closed. ``answers``
    bounds the bytes of large answers that clients are still taking, each body once; one answer has room when there is
    no other.
    """

    body: int = 100 * 1024 * 1024
    other_body: int = 4 * 1024
    bodies: int = 400 * 1024 * 1024
    peer_bodies: int = 100 * 1024 * 1024
    answers: int = 256 * 1024 * 1024
    request_line: int = 8 * 1024
    head: int = 32 * 1024
    fields: int = 100
    head_seconds: float = 10.0
    idle_seconds: float = 75.0
    body_seconds: float = 30.0
    body_rate: float = 1024.0
    write_seconds: float = 30.0
    linger_seconds: float = 5.0


Handler: TypeAlias = Callable[[Call], Response | Coroutine[Any, Any, Response] | Deferred[Response]]
"""Answers a call: at once (the fast way, for what is cached) or by a coroutine or a Deferred.

A handler is never cancelled when its client goes away: a write that has begun runs to its end, and only the answer is
dropped. It may ask ``Call.gone`` before it begins something that is work.
"""
Admit: TypeAlias = Callable[[Call], Response | None]
TakesBody: TypeAlias = Callable[[Call], bool]
EdgeError: TypeAlias = Callable[[int, str], Response]
OnError: TypeAlias = Callable[[Exception], Response]
OnFinish: TypeAlias = Callable[[Call, int, int, float], None]
