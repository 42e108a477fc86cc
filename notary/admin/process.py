"""The process of ``notary-admin``: how a command, a signal or a closed pipe ends it.

Rules of this module: nothing that a command does, or waits for, outlives a signal by more than :data:`GRACE_SECONDS`.
So the limit does not depend on the reactor, which may be held up, as by a write to a pipe that nobody reads.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final, TextIO

from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.python.failure import Failure

from notary.admin.command import Invocation, Status
from notary.work.reactor import Reactor

GRACE_SECONDS: Final = 5.0
"""The longest time from a signal to the end of the process. A database may take so long to end what it was doing."""


def run(invocation: Invocation, environ: Mapping[str, str], reactor: Reactor) -> int:
    """Run a command on this reactor until it ends or a signal ends it; return its exit status.

    The reactor is stopped then. A second signal ends the process at once, and so does a command that has not ended
    :data:`GRACE_SECONDS` after the first one.
    """
    running = _Running(invocation, environ, reactor)
    reactor.callWhenRunning(running.begin)
    reactor.addSystemEventTrigger("before", "shutdown", running.interrupt)
    reactor.run()
    return running.status


def drop_unwritten() -> None:
    """Let go of output that cannot be written: the interpreter would report it at exit, with a status of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Running:
    """A command that runs in this process. ``status`` is its exit status once it has ended."""

    def __init__(self, invocation: Invocation, environ: Mapping[str, str], reactor: Reactor) -> None:
        self.status: int = Status.INTERRUPTED
        self._invocation = invocation
        self._environ = environ
        self._reactor = reactor
        self._command: Deferred[int] | None = None
        self._ended: Deferred[None] = Deferred()
        self._signalled = False

    def begin(self) -> None:
        """Start the command. The reactor runs, and has set its own signal handlers, which ours replace."""
        signal.signal(signal.SIGALRM, self._give_up)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        streams = _opened(sys.stdin), _opened(sys.stdout), _opened(sys.stderr)
        self._command = Deferred.fromCoroutine(self._invocation.run(self._reactor, self._environ, *streams))
        self._command.addBoth(self._end)

    def interrupt(self) -> Deferred[None] | None:
        """Cancel the command. Returns what fires when its stores are closed, or None if the command has ended."""
        if self._command is None or self._ended.called:
            return None
        self._command.cancel()
        return self._ended

    def _end(self, result: int | Failure) -> None:
        if isinstance(result, Failure):
            self.status = Status.FAULT
            result.printTraceback()
        else:
            self.status = result
        self._ended.callback(None)
        with suppress(ReactorNotRunning):  # a signal stops it already
            self._reactor.stop()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._signalled:
            os._exit(Status.INTERRUPTED)
        self._signalled = True
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
        self._reactor.callFromThread(self._stop)

    def _stop(self) -> None:
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def _give_up(self, _number: int, _frame: FrameType | None) -> None:
        with suppress(OSError):
            os.write(2, b"notary-admin: ended without waiting for what it had begun\n")
        os._exit(Status.INTERRUPTED)


def _opened(stream: TextIO | None) -> TextIO:
    """Return a standard stream, or the null device for one that the process was started without."""
    return Path(os.devnull).open("r+") if stream is None else stream
