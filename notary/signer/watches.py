"""Clients that watch the signer's health: each is told the status at once, and then whenever it changes.

Rules of this module: the store is asked once for all watchers, every ``INTERVAL_SECONDS`` while there are any, and when
one more comes (docs/protocol.md, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, TypeAlias

from google.protobuf.message import DecodeError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from notary.net.grpc import Context, RpcError, Status, Streaming
from notary.proto import health_pb2, paths

INTERVAL_SECONDS: Final = 10.0
"""Seconds between two questions to the store: as often as a server asks for the signer's health."""

_Response: TypeAlias = health_pb2.HealthCheckResponse


class _Watcher:
    """One client; ``send`` sends it a message."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._told: health_pb2.HealthCheckResponse.ServingStatus | None = None

    def tell(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        """Tell the client the status, unless that is what it knows."""
        if status != self._told:
            self._told = status
            self._send(_Response(status=status).SerializeToString())


class HealthWatches:
    """All watchers; ``works`` asks the store, ``services`` are the names that can be watched."""

    def __init__(self, works: Callable[[], Deferred[bool]], services: Collection[str], clock: IReactorTime) -> None:
        self._works = works
        self._services = services
        self._clock = clock
        self._watchers: set[_Watcher] = set()
        self._next: IDelayedCall | None = None
        self._log = Logger(namespace="notary.signer.watches")

    def methods(self) -> Mapping[str, Streaming]:
        """Return the handlers by the paths of their methods."""
        return {paths.WATCH_HEALTH: self._watch}

    def _watch(self, data: bytes, _context: Context, send: Callable[[bytes], None]) -> Deferred[bytes]:
        try:
            service = health_pb2.HealthCheckRequest.FromString(data).service
        except DecodeError:
            raise RpcError(Status.INTERNAL, "the request is not a grpc.health.v1.HealthCheckRequest") from None
        watcher = _Watcher(send)
        if service not in self._services:
            watcher.tell(_Response.SERVICE_UNKNOWN)  # and the stream stays open, as the protocol of health checks wants
            return Deferred()
        self._watchers.add(watcher)
        self._ask()
        return Deferred(lambda _: self._leave(watcher))

    def _leave(self, watcher: _Watcher) -> None:
        self._watchers.discard(watcher)
        if not self._watchers and self._next is not None:
            self._next.cancel()
            self._next = None

    def _ask(self) -> None:
        self._works().addErrback(self._broken).addCallback(self._tell)

    def _broken(self, failure: Failure) -> bool:
        self._log.failure("the health of the store cannot be asked for", failure)
        return False

    def _ask_again(self) -> None:
        self._next = None
        self._ask()

    def _tell(self, works: bool) -> None:
        for watcher in list(self._watchers):
            watcher.tell(_Response.SERVING if works else _Response.NOT_SERVING)
        if self._watchers and self._next is None:
            self._next = self._clock.callLater(INTERVAL_SECONDS, self._ask_again)
