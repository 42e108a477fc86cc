"""Clients that watch the signer's health, through a gRPC server in memory, by a clock of their own."""

from __future__ import annotations

import pytest
from h2.settings import SettingCodes
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from notary.net.grpc import GrpcFactory, Status
from notary.proto import health_pb2
from notary.signer.rpc import SERVICES
from notary.signer.watches import INTERVAL_SECONDS, HealthWatches
from tests.support.rawgrpc import RawClient, packed, with_headers

WATCH = "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


class Signer:
    """A signer whose store works or not; ``asked`` counts the questions to the store, ``ended`` has ended calls."""

    def __init__(self) -> None:
        self.works: bool | None = True  # None if the question itself fails
        self.asked = 0
        self.ended: list[Status] = []
        self.clock = Clock()
        self.factory = GrpcFactory(
            {},
            self.clock,
            streaming=HealthWatches(self.ask, SERVICES, self.clock).methods(),
            on_finish=lambda _path, status, _seconds, _peer: self.ended.append(status),
        )
        self.client = self.connect()

    def connect(self, settings: dict[SettingCodes, int] | None = None) -> RawClient:
        client = RawClient(self.factory, self.clock, settings=settings)
        client.feed()
        return client

    def ask(self) -> Deferred[bool]:
        self.asked += 1
        return fail(RuntimeError("broken")) if self.works is None else succeed(self.works)

    def watch(self, service: str = "", **headers: str) -> int:
        request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        return self.client.request(packed(request), with_headers(__path=WATCH, **headers))

    def told(self, stream: int) -> list[int]:
        """The statuses that this watcher was told."""
        data, found = self.client.data(stream), []
        while data:
            size = int.from_bytes(data[1:5], "big")
            found.append(health_pb2.HealthCheckResponse.FromString(data[5 : 5 + size]).status)
            data = data[5 + size :]
        return found

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.client.take(1)


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_watcher_is_told_the_status_now_and_each_change(signer: Signer, service: str) -> None:
    stream = signer.watch(service)
    assert signer.told(stream) == [SERVING]
    signer.wait(3 * INTERVAL_SECONDS)
    assert signer.told(stream) == [SERVING]
    for works in (False, True, None):
        signer.works = works
        signer.wait(INTERVAL_SECONDS + 1)
    assert signer.told(stream) == [SERVING, NOT_SERVING, SERVING, NOT_SERVING]
    assert signer.ended == []


def test_a_service_that_is_unknown_is_watched_too(signer: Signer) -> None:
    stream = signer.watch("nobody")
    signer.wait(2 * INTERVAL_SECONDS)
    assert (signer.told(stream), signer.asked, signer.ended) == ([SERVICE_UNKNOWN], 0, [])


def test_one_question_for_all_watchers_and_none_for_nobody(signer: Signer) -> None:
    streams = [signer.watch() for _ in range(20)]
    assert signer.asked == 20
    signer.wait(5 * INTERVAL_SECONDS)
    assert signer.asked == 25
    for stream in streams:
        signer.client.h2.reset_stream(stream)
    signer.client.feed()
    signer.wait(5 * INTERVAL_SECONDS)
    assert signer.asked == 25
    assert signer.ended == [Status.CANCELLED] * 20


@pytest.mark.parametrize("end", ["lost", "deadline", "stop"])
def test_a_watch_ends_with_its_connection_its_deadline_or_the_signer(signer: Signer, end: str) -> None:
    stream = signer.watch(grpc_timeout="15S") if end == "deadline" else signer.watch()
    stopped = None
    if end == "lost":
        signer.client.transport.loseConnection()
    elif end == "stop":
        stopped = Deferred.fromCoroutine(signer.factory.stop(60))
    signer.wait(16)
    expected = {"lost": Status.CANCELLED, "deadline": Status.DEADLINE_EXCEEDED, "stop": Status.UNAVAILABLE}[end]
    assert signer.ended == [expected]
    if end != "lost":
        assert signer.client.status(stream) == expected
        assert ":status" not in signer.client.trailers(stream)
    if stopped is not None:
        assert stopped.called
    asked = signer.asked
    signer.wait(5 * INTERVAL_SECONDS)
    assert signer.asked == asked


def test_a_client_that_leaves_no_room_is_no_watcher(signer: Signer) -> None:
    signer.client = signer.connect({SettingCodes.INITIAL_WINDOW_SIZE: 6})
    stream = signer.watch()
    assert signer.client.status(stream) == Status.RESOURCE_EXHAUSTED
    asked = signer.asked
    signer.wait(5 * INTERVAL_SECONDS)
    assert (signer.asked, signer.ended) == (asked, [Status.RESOURCE_EXHAUSTED])


def test_a_request_that_is_none(signer: Signer) -> None:
    stream = signer.client.request(packed(b"\xff"), with_headers(__path=WATCH))
    assert signer.client.status(stream) == Status.INTERNAL
