"""A second reactor, in a thread of its own, for tests that call blocking functions from the thread of the first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.python import threadable

from notary.work.reactor import use_monotonic_time


@contextmanager
def second_reactor() -> Iterator[Any]:
    """A reactor that runs meanwhile. What uses it takes the reactor as an argument."""
    first = threadable.ioThread
    second: Any = EPollReactor()
    use_monotonic_time(second)
    running = threading.Event()
    second.callWhenRunning(running.set)
    thread = threading.Thread(target=second.run, kwargs={"installSignalHandlers": False}, daemon=True)
    thread.start()
    assert running.wait(30)
    threadable.ioThread = first
    try:
        yield second
    finally:
        second.callFromThread(second.stop)
        thread.join(30)
