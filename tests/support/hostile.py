"""Another Notary in this process, which serves what publishers made, honestly or with lies.

    with serving(reactor) as server:
        server.take(publisher)                       # its newest files, by every name
        server.lies["targets."] = lambda request, data: data[:-1]

Rules of this module: a lie is a function of the request and the honest body (None: there is no such file); it returns a
body, None for 404, or NOT_DONE_YET if it answers by itself. It is found by the beginning of the name of a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest_twisted
from twisted.internet.defer import maybeDeferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from tests.support.author import make_key
from tests.support.stored import Publisher, updates

__all__ = ["NOT_DONE_YET", "Lie", "NotaryServer", "serving"]

Lie = Callable[[Any, bytes | None], Any]


class NotaryServer(Resource):
    """``files`` are the bodies by path; ``changes`` the changefeed; ``asked`` every path that was asked for."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.changes: list[dict[str, Any]] = []
        self.lies: dict[str, Lie] = {}
        self.asked: list[str] = []
        self.admit: Lie | None = None
        self.url = ""

    def take(self, publisher: Publisher) -> None:
        """Serve the newest files of a publisher, and name the timestamp in the changefeed."""
        base = f"/v2/{publisher.gun}/_trust/tuf/"
        for update in updates(publisher.files):
            digest = hashlib.sha256(update.data).hexdigest()
            self.files[f"{base}{update.role}.json"] = update.data
            self.files[f"{base}{update.role}.{digest}.json"] = update.data
            self.files[f"{base}{update.version}.{update.role}.json"] = update.data
            if update.role == "timestamp":
                self.change(publisher.gun, update.version, digest)

    def change(self, gun: str, version: int, sha256: str, category: str = "update") -> None:
        """Add a line to the changefeed."""
        record = {
            "ID": str(len(self.changes) + 1),
            "CreatedAt": "2026-01-01T00:00:00Z",
            "GUN": gun,
            "Version": version,
            "SHA256": sha256,
            "Category": category,
        }
        self.changes.append(record)

    def render_GET(self, request: Any) -> Any:
        """Answer."""
        path = request.path.decode()
        self.asked.append(request.uri.decode())
        if self.admit is not None:
            refused = self.admit(request, None)
            if refused is not None:
                return refused
        data = self.files.get(path)
        if path == "/v2/_trust/changefeed":
            after = int(request.args.get(b"change_id", [b"0"])[0])
            count = int(request.args[b"records"][0])
            page = [one for one in self.changes if int(one["ID"]) > after][:count]
            data = json.dumps({"count": len(page), "records": page}).encode()
        name = path.rpartition("/tuf/")[2]
        for start, lie in self.lies.items():
            if name.startswith(start) or path == start:
                data = lie(request, data)
                break
        if data is None:
            request.setResponseCode(404)
            return b"{}"
        return data


@contextmanager
def serving(reactor: Any) -> Iterator[NotaryServer]:
    """A server on a port of loopback."""
    server = NotaryServer()
    site = Site(server)
    site.noisy = False
    port = reactor.listenTCP(0, site, interface="127.0.0.1")
    server.url = f"http://127.0.0.1:{port.getHost().port}"
    open_channels = set()
    build = site.buildProtocol

    def remember(address: Any) -> Any:
        channel = build(address)
        open_channels.add(channel)
        return channel

    site.buildProtocol = remember
    try:
        yield server
    finally:
        pytest_twisted.blockon(maybeDeferred(port.stopListening))
        for channel in open_channels:
            inner = getattr(channel, "_channel", channel)
            if inner.transport is not None:
                inner.transport.abortConnection()


def publisher(gun: str, **how: Any) -> Publisher:
    """A collection with two delegations, the second below the first."""
    made = Publisher(gun, **how)
    made.author.add("v1", b"content")
    for role in ("targets/a", "targets/a/b"):
        made.author.delegate(role, make_key())
        made.author.add("v1", b"content", role)
    made.next()
    return made
