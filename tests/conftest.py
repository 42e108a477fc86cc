"""What all tests share: each one must leave the reactor, and the process's threads, as it found them.

A test that leaves a timer, a listening port, a connection, a child process or a thread behind fails. What an outer
fixture (module, session) holds open was there before the test and does not count; neither do the idle threads of the
reactor's own pool. Things that are on their way out when a test returns get a moment to go.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import pytest_twisted
from twisted.internet import task
from twisted.internet.process import reapProcessHandlers

from notary.work import reactor as reactors
from tests.support.databases import MariaDB, PostgreSQL

# On monotonic time, as a daemon's: what takes the reactor's clock for the time of day fails.
installed_reactor = reactors.installed_reactor()

# A shell that starts the tests in the background lets them, and the daemons that they start, ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Whether an example took long says something of the machine only.
hypothesis.settings.register_profile("ours", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("ours")

LONG = Path(__file__).with_name("interop")
"""A file in this folder has few tests, which take seconds each."""
GRACE_SECONDS = 5.0
TICK_SECONDS = 0.02


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, in random order: of several processes, none is left alone with them."""
    items.sort(key=lambda item: LONG not in item.path.parents)


def what_is_running(reactor) -> Counter[str]:
    """Count all that keeps a reactor or the process busy, by kind: the same kind twice is told from once."""
    running: Counter[str] = Counter()
    for call in reactor.getDelayedCalls():
        function = getattr(call, "func", None)  # an inactive call has lost its own
        if call.active():
            running[f"timer {getattr(function, '__qualname__', repr(function))}"] += 1
    sockets = set(reactor.getReaders()) | set(reactor.getWriters())
    running.update(f"socket or pipe {type(each).__qualname__}" for each in sockets - reactor._internalReaders)
    running.update(f"child process {type(each).__qualname__}" for each in reapProcessHandlers.values())
    pool = reactor.threadpool.threads if reactor.threadpool is not None else []
    running.update(f"thread {thread.name}" for thread in threading.enumerate() if thread not in pool)
    return running


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves something running."""
    before = what_is_running(installed_reactor)
    yield
    for _ in range(round(GRACE_SECONDS / TICK_SECONDS)):
        if not what_is_running(installed_reactor) - before:
            return
        pytest_twisted.blockon(task.deferLater(installed_reactor, TICK_SECONDS))
    left = what_is_running(installed_reactor) - before
    if left:
        pytest.fail(f"left behind by this test: {', '.join(sorted(left.elements()))}", pytrace=False)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """A MariaDB server for all tests; each makes databases of its own in it and leaves it running."""
    with MariaDB() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server for all tests; each makes databases of its own in it and leaves it running."""
    with PostgreSQL() as server:
        yield server
