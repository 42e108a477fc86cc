"""The check after every test (tests/conftest.py) sees what a test may leave behind."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.internet.threads import deferToThread

from tests.conftest import what_is_running


async def a_timer() -> Callable[[], object]:
    return reactor.callLater(3600, print).cancel


async def a_port() -> Callable[[], object]:
    return reactor.listenTCP(0, Factory(), interface="127.0.0.1").stopListening


async def a_thread() -> Callable[[], object]:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()

    def stop() -> None:
        done.set()
        thread.join()

    return stop


async def a_child_process() -> Callable[[], object]:
    ended = Deferred()

    class Child(ProcessProtocol):
        def processEnded(self, reason):
            ended.callback(None)

    # The child ends when its standard input does.
    child = reactor.spawnProcess(Child(), sys.executable, [sys.executable, "-c", "input()"], env={})

    def stop() -> Deferred:
        child.signalProcess("KILL")
        return ended

    return stop


@pytest.mark.parametrize(
    ("leave", "kind"),
    [
        pytest.param(a_timer, "timer", id="timer"),
        pytest.param(a_port, "socket or pipe", id="port"),
        pytest.param(a_thread, "thread", id="thread"),
        pytest.param(a_child_process, "child process", id="child process"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_left_is_seen(leave: Callable[[], Awaitable[Callable[[], object]]], kind: str) -> None:
    before = what_is_running(reactor)
    stop = await leave()
    left = what_is_running(reactor) - before
    stopped = stop()
    if isinstance(stopped, Deferred):
        await stopped
    assert any(each.startswith(kind) for each in left), left


@pytest_twisted.ensureDeferred
async def test_the_threads_of_the_reactors_pool_do_not_count() -> None:
    before = what_is_running(reactor)
    await deferToThread(int)
    assert what_is_running(reactor) - before == Counter()
