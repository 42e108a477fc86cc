"""The API of another Notary: files of collections and its changefeed, with retries and with permission.

Rules of this module: what the server says is checked for its form alone; :mod:`notary.peer.walk` verifies the files.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Literal, cast
from urllib.parse import quote

from twisted.internet.task import deferLater

from notary.errors import ConfigError, InvalidMetadata, MalformedJSON, PeerDenied, PeerFailed, PeerUnavailable
from notary.peer.access import Access, unavailable_or_failed
from notary.peer.http import Answer, Http, origin
from notary.tuf import canonical
from notary.tuf.canonical import Members
from notary.tuf.model import Gun
from notary.work.backoff import Backoff
from notary.work.reactor import Reactor

MAX_FEED_BYTES: Final = 16 << 20
"""The largest page of a changefeed."""
RECORDS_PER_PAGE: Final = 1_000
MAX_TRIES: Final = 5
LONGEST_RETRY_AFTER_SECONDS: Final = 120.0
"""A server that asks for a longer pause is given up."""
BACKOFF: Final = Backoff(first=0.5, most=20.0, factor=2.0, jitter=0.5)
_OK: Final = 200
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404

_PAGE = frozenset({"count", "records"})
_RECORD = frozenset({"id", "createdat", "gun", "version", "sha256", "category"})


@dataclass(frozen=True, slots=True)
class PeerChange:
    """One line of the peer's changefeed."""

    id: int
    gun: str
    version: int
    sha256: str
    category: Literal["update", "deletion"]


def base_of(url: str) -> str:
    """Check the URL of a Notary server; return it without a slash at its end. Raises ConfigError."""
    try:
        _, host, _ = origin(url)
    except PeerFailed:
        raise ConfigError(f"URL: {url!r} cannot be used; expected something like https://notary.example.com") from None
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ConfigError("URL: holds a name or a password; expected them in a file (--credentials)")
    if "?" in url or "#" in url:
        raise ConfigError(f"URL: {url!r} has a query or a fragment; expected the address of {host} alone")
    return url.rstrip("/").removesuffix("/v2")


class Peer:
    """Another Notary, at ``base``. ``chance`` returns a number in [0, 1)."""

    def __init__(
        self, base: str, http: Http, access: Access, reactor: Reactor, chance: Callable[[], float] = random.random
    ) -> None:
        self._base = base
        self._http = http
        self._access = access
        self._reactor = reactor
        self._chance = chance

    async def file(self, gun: Gun, name: str, limit: int) -> bytes | None:
        """Return a file of a collection, by its name in the API; None if there is none.

        Raises PeerFailed: PeerUnavailable after the last retry, PeerDenied if this caller may not read.
        """
        answer = await self._get(f"/v2/{quote(gun, safe='/:@')}/_trust/tuf/{name}", gun, limit)
        if answer.status == _NOT_FOUND:
            return None
        return answer.body

    async def greet(self) -> None:
        """See that a server answers. Raises PeerUnavailable. What it answers does not matter."""
        await self._with_retries(lambda: self._http.request("GET", f"{self._base}/v2/", MAX_FEED_BYTES))

    async def changes(self, after: int) -> list[PeerChange]:
        """Return the next page of the changefeed after the change with the number ``after``; [] at the end.

        Raises PeerFailed; PeerDenied if there is no feed for this caller, or none at all.
        """
        path = f"/v2/_trust/changefeed?records={RECORDS_PER_PAGE}" + (f"&change_id={after}" if after else "")
        answer = await self._get(path, "", MAX_FEED_BYTES)
        if answer.status == _NOT_FOUND:
            raise PeerDenied("the server has no changefeed")
        found = _page(answer.body)
        last = after
        for change in found:
            if change.id <= last:
                raise PeerFailed(f"the changefeed goes backwards: change {change.id} follows change {last}")
            last = change.id
        return found

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def _get(self, path: str, gun: str, limit: int) -> Answer:
        """Ask for a path, with permission; the answer has the status 200 or 404."""
        return await self._with_retries(lambda: self._permitted(path, gun, limit))

    async def _permitted(self, path: str, gun: str, limit: int) -> Answer:
        url = self._base + path
        answer = await self._http.request("GET", url, limit, headers=self._access.headers(gun))
        if answer.status == _UNAUTHORIZED:
            await self._access.answer(gun, answer.headers.get("www-authenticate", ()))
            answer = await self._http.request("GET", url, limit, headers=self._access.headers(gun))
        if answer.status in (_UNAUTHORIZED, _FORBIDDEN):
            raise PeerDenied(f"the server does not let this caller read (status {answer.status})")
        if answer.status not in (_OK, _NOT_FOUND):
            raise unavailable_or_failed("the server", answer.status, answer.header("retry-after"))
        return answer

    async def _with_retries(self, attempt: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        failures = 0
        while True:
            try:
                return await attempt()
            except PeerUnavailable as error:
                failures += 1
                if failures == MAX_TRIES or error.retry_seconds > LONGEST_RETRY_AFTER_SECONDS:
                    raise
                delay = max(error.retry_seconds, BACKOFF.delay(failures, self._chance()))
            await deferLater(cast("Any", self._reactor), delay)


def _page(body: bytes) -> list[PeerChange]:
    try:
        page = Members(canonical.parse(body), _PAGE, "changefeed")
        return [_change(value) for value in page.sequence("records")]
    except (MalformedJSON, InvalidMetadata) as error:
        raise PeerFailed(f"the changefeed cannot be read: {error}") from None


def _change(value: canonical.Json) -> PeerChange:
    if not isinstance(value, dict):
        raise InvalidMetadata("a record is not an object")
    record = Members({name.lower(): each for name, each in value.items()}, _RECORD, "a record")
    number, category = record.text("id"), record.text("category")
    if not (number.isascii() and number.isdigit() and len(number) < 20):  # noqa: PLR2004 - digits of 64 bits
        raise InvalidMetadata("the ID of a record is not a number")
    if category not in ("update", "deletion"):
        raise InvalidMetadata("a record is neither an update nor a deletion")
    return PeerChange(
        int(number),
        record.text("gun"),
        record.integer("version"),
        record.text("sha256").strip(),
        cast('Literal["update", "deletion"]', category),
    )
