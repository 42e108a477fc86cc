"""A whole server in memory: the real Site, Api, Repository and store, without sockets.

server = Server(store)
answer = await server.get("/v2/example.com/app/_trust/tuf/root.json")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransportWithDisconnection

from notary.net.http.site import HttpLimits, Site
from notary.server.api import Api
from notary.server.auth.none import NoAuth
from notary.server.caching import CachePolicy
from notary.server.faults import edge_response
from notary.server.health import Health
from notary.server.metrics import ServerMetrics
from notary.server.renewal import Schedule
from notary.server.repository import Repository
from notary.server.signing.local import LocalSigner
from notary.server.validators import Turns, Validators
from notary.work.allowance import Allowance

BOUNDARY = "-----------the-boundary"
NOW = datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of the one error in an error's body."""
        assert self.headers["content-type"] == "application/json; charset=utf-8"
        (error,) = self.json["errors"]
        assert error["message"]
        return error["code"]

    @property
    def detail(self) -> Any:
        return self.json["errors"][0]["detail"]


class _Transport(StringTransportWithDisconnection):
    """Fires ``written`` at each write."""

    def __init__(self) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "192.0.2.7", 4711))
        self.written: Deferred[None] = Deferred()

    def write(self, data: bytes) -> None:
        super().write(data)
        written, self.written = self.written, Deferred()
        written.callback(None)

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass


class Server:
    """``now`` can be moved; ``events`` are the request log: (call, status, bytes)."""

    def __init__(
        self,
        store,
        *,
        access=None,
        prefixes=(),
        max_age=(300, 2592000),
        limits=None,
        signing=None,
        keys_per_hour=0,
        read_only=False,
        schedule=None,
    ) -> None:
        self.now = NOW
        self.clock = Clock()
        self.clock.advance(NOW.timestamp())
        self.metrics = ServerMetrics(version="0")
        self.signing = None if read_only else signing or LocalSigner()
        self.checks = {}
        self.health = Health(self.checks, self.clock, self.metrics.set_health, read_only=read_only)
        self.validators = Validators(maybe_now, Turns(2), maybeDeferred, Turns(1))
        self.repository = Repository(
            store,
            self.signing,
            maybe_now,
            lambda: self.now,
            self.metrics.refreshed,
            self.metrics.expired_root,
            self.clock,
            schedule or Schedule(renews=not read_only),
        )
        self.api = Api(
            self.repository,
            access or NoAuth(),
            self.health,
            self.metrics,
            maybe_now,
            self.validators,
            self._time_of_day,
            tuple(prefixes),
            current=CachePolicy(max_age[0], must_revalidate=True),
            consistent=CachePolicy(max_age[1], must_revalidate=False),
            keys=Allowance(keys_per_hour, self.clock.seconds),
            seconds=self.clock.seconds,
            read_only=read_only,
        )
        self.events = []
        self.site = Site(
            self.api,
            self.clock,
            edge_error=edge_response,
            on_error=self.api.failed,
            on_finish=self._finished,
            admit=self.api.admit,
            takes_body=self.api.takes_body,
            limits=limits or HttpLimits(),
        )

    def _finished(self, call, status, sent, seconds) -> None:
        self.events.append((call, status, sent))
        self.api.finished(call, status, sent, seconds)

    def _time_of_day(self) -> float:
        return self.now.timestamp()

    def advance(self, **time: float) -> None:
        self.now += timedelta(**time)

    async def raw(self, data: bytes, *, head_only: bool = False) -> Answer:
        """What the server answers to the bytes of one request."""
        transport = _Transport()
        protocol = self.site.buildProtocol(transport.getPeer())
        transport.protocol = protocol
        protocol.makeConnection(transport)
        protocol.dataReceived(data)
        while (answer := _parsed(transport.value(), head_only)) is None:
            await transport.written
            await deferLater(reactor, 0)  # a writer has something to do after it
        transport.loseConnection()
        return answer

    async def request(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        fields = {"Host": "notary.example", "Content-Length": str(len(body)), **(headers or {})}
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        return await self.raw("\r\n".join(lines).encode() + body, head_only=method == "HEAD")

    async def get(self, target: str, **headers: str) -> Answer:
        return await self.request("GET", target, {name.replace("_", "-"): value for name, value in headers.items()})

    async def upload(self, gun: str, files: Mapping[str, bytes] | list[tuple[str, bytes]]) -> Answer:
        content_type, body = multipart(files)
        return await self.request("POST", f"/v2/{gun}/_trust/tuf/", {"Content-Type": content_type}, body)


def maybe_now(work):
    """The place of the thread pool: what is pure may as well run here."""
    return maybeDeferred(work)


def multipart(files: Mapping[str, bytes] | list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Content type and body of an upload, as the Go client writes it."""
    pairs = list(files.items()) if isinstance(files, Mapping) else files
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{role}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n".encode()
        + data
        + b"\r\n"
        for role, data in pairs
    ]
    return f"multipart/form-data; boundary={BOUNDARY}", b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def _parsed(data: bytes, head_only: bool) -> Answer | None:
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return None
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    status = int(status_line.split()[1])
    length = 0 if head_only or status in {204, 304} else int(headers["content-length"])
    return Answer(status, headers, body) if len(body) >= length else None
