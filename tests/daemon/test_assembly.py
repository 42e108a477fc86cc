"""Services made of parts: a database that does not answer is waited for, and what is open is closed in the end."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed
from twisted.internet.defer import CancelledError, Deferred, fail, gatherResults, succeed
from twisted.internet.task import Clock
from twisted.logger import Logger, capturedLogs

from notary.daemon.serving import Serving
from notary.errors import ConfigError, StorageFailed, StorageUnreachable


class Store:
    """A store of one method."""

    def __init__(self, closed: list[str]) -> None:
        self._closed = closed

    def check(self) -> Deferred[str]:
        return succeed("checked")

    def close(self) -> Deferred[None]:
        self._closed.append("store")
        return succeed(None)


class Reactor(Clock):
    """The clock of a test, and the threads of the real reactor."""

    def getThreadPool(self) -> Any:
        return installed.getThreadPool()

    def callFromThread(self, *call: Any) -> None:
        installed.callFromThread(*call)


class Service(Serving):
    """Opens its store by each of ``tries`` in turn, and then something else."""

    def __init__(self, *tries: Exception | None) -> None:
        super().__init__(Reactor(), 1)
        self.tries = list(tries)
        self.closed: list[str] = []
        self.store: Any = None
        self.waits: list[tuple[str, float]] = []
        self.on_waiting = lambda status, seconds: self.waits.append((status, seconds))
        self.late: bool | None = None

    def open_store(self) -> Deferred[Store]:
        failure = self.tries.pop(0)
        return succeed(Store(self.closed)) if failure is None else fail(failure)

    async def assemble(self) -> None:
        self.store = await self.open(Store, Logger(), self.open_store)
        self.at_end(lambda: self.closed.append("port"))
        self.late = await self.wait_for_store()


AWAY = StorageUnreachable("storage.db_url: nobody answers at 127.0.0.1:3306")


@pytest_twisted.ensureDeferred
async def test_a_store_that_opens_at_once_is_the_store_itself() -> None:
    service = Service(None)
    await service.startService()
    assert service.ready
    assert isinstance(service.store, Store)
    assert service.late is False
    await service.stopService()
    assert not service.ready
    assert service.closed == ["port", "store"]


@pytest_twisted.ensureDeferred
async def test_an_unreachable_database_is_waited_for_and_everything_else_is_open_meanwhile() -> None:
    service = Service(AWAY, AWAY, AWAY, AWAY, None)
    clock = service.reactor
    with capturedLogs() as logs:
        starting = service.startService()
        check = service.store.check
        seconds = 0.0
        gaps = []
        while service.tries:
            assert not service.ready
            with pytest.raises(StorageUnreachable, match="nobody answers"):
                await service.store.check()
            (call,) = clock.getDelayedCalls()
            gaps.append(call.getTime() - seconds)
            seconds = call.getTime()
            clock.advance(gaps[-1])
        await starting
    assert [round(gap / 2**number, 1) for number, gap in enumerate(gaps)] == pytest.approx([1.0] * 4, abs=0.25)
    assert service.late
    assert service.ready
    assert await service.store.check() == "checked"
    assert await check() == "checked", "who kept the method has the store's"
    lines = [event for event in logs if event["log_level"].name == "error"]
    assert [event["error"] for event in lines[:4]] == [str(AWAY)] * 4, "a line a try"
    assert lines[4]["failures"] == 4
    assert [status for status, _ in service.waits] == [f"Waiting for the database: {AWAY}"] * 4
    assert all(seconds > gap for (_, seconds), gap in zip(service.waits, gaps, strict=True))
    await service.stopService()
    assert service.closed == ["port", "store"]


@pytest.mark.parametrize(
    "error", [ConfigError("storage.db_url: wrong"), StorageFailed("the tables are too new")], ids=["config", "schema"]
)
@pytest.mark.parametrize("waited", [False, True])
@pytest_twisted.ensureDeferred
async def test_what_waiting_cannot_cure_ends_the_start(error: Exception, waited: bool) -> None:
    service = Service(*([AWAY] if waited else []), error)
    starting = service.startService()
    service.reactor.advance(2)
    with pytest.raises(type(error), match=str(error)):
        await starting
    assert not service.ready
    await service.stopService()
    assert service.closed == (["port"] if waited else [])


@pytest_twisted.ensureDeferred
async def test_a_stop_ends_the_waiting() -> None:
    service = Service(AWAY)
    starting = service.startService()
    starting.cancel()
    with pytest.raises(CancelledError):
        await starting
    await service.stopService()
    assert service.reactor.getDelayedCalls() == []
    assert service.closed == ["port"]


@pytest_twisted.ensureDeferred
async def test_threads_of_ones_own_keep_nobody_else_waiting_and_end_with_the_service() -> None:
    service = Service(None)
    await service.startService()
    own = service.own_threads(2)
    let_go = threading.Event()
    busy = [own(let_go.wait) for _ in range(3)]
    assert await service.in_thread(lambda: "done") == "done"
    assert not any(one.called for one in busy)
    let_go.set()
    assert await gatherResults(busy) == [True] * 3
    before = {thread for thread in threading.enumerate() if thread.name.startswith("PoolThread")}
    await service.stopService()
    ended = [thread for thread in before if not thread.is_alive()]
    assert len(ended) == 1 + 2
