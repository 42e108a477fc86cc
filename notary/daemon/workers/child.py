"""A worker process as its parent sees it: its pipes, its log, its start and its end.

Rules of this module: a process is asked to end and drains, or is killed once its time is over. Each line of its log
goes through the parent's, whole.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from notary.daemon.workers.pipe import Handler, Pipe
from notary.errors import NotaryError
from notary.work.reactor import Reactor

_END_SECONDS: Final = 15.0
"""How long a worker may take to end beyond its drain, before it is killed."""
_LOG_TAIL_BYTES: Final = 1 << 16
"""How much of an unfinished line of a worker's log is kept."""


class WorkerFailed(NotaryError):
    """A worker ended before it served."""


class Owner(Protocol):
    """What a worker process needs of its parent."""

    reactor: Reactor
    on_waiting: Callable[[str, float], None]
    """Called with what a worker's start waits for, and the longest time in seconds until the next call."""
    drain_seconds: float
    """How long a stopping worker may take to finish its answers."""

    async def metrics(self) -> bytes:
        """The metrics of all workers together."""
        ...

    def relay(self, line: bytes) -> None:
        """Write one line of a worker's log to the parent's."""

    def variables(self) -> Mapping[str, str]:
        """The daemon's own variables, which a worker's environment does not show."""
        ...

    def worker_ended(self, process: WorkerProcess, how: str) -> None:
        """Take note that a process has ended; ``how`` says in words how."""


class WorkerProcess(ProcessProtocol):
    """One worker, seen by its parent: ``ready`` fires when it serves, ``ended`` when it is no more."""

    transport: Any

    def __init__(self, owner: Owner, number: int, reading: int, writing: int) -> None:
        self.number = number
        self.serves = False
        self.unwanted = False  # it has been told to end
        self.figures = b""
        self.ready: Deferred[None] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self.started_at = owner.reactor.seconds()
        self._owner = owner
        self._reading, self._writing = reading, writing  # as the worker calls them
        self._log = b""
        handlers: dict[str, Handler] = {
            "environment": lambda _: json.dumps(owner.variables()).encode(),
            "notify": self._notified,
            "figures": self.counted,
            "metrics": lambda _: owner.metrics(),
        }
        self.pipe = Pipe(owner.reactor, handlers, lambda: None)

    @property
    def pid(self) -> int:
        """The process id; 0 when the process has ended."""
        return self.transport.pid or 0

    def connectionMade(self) -> None:
        """Connect the pipe: the process runs."""
        self.pipe.makeConnection(_ChildPipeTransport(self))

    def write(self, data: bytes) -> None:
        """Write to the pipe that the worker reads, if the worker still runs."""
        if self.transport.pid is not None:
            self.transport.writeToChild(self._reading, data)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Take bytes of messages, or of lines of the log."""
        if childFD == self._writing:
            self.pipe.dataReceived(data)
            return
        *lines, self._log = (self._log + data).split(b"\n")
        if len(self._log) > _LOG_TAIL_BYTES:
            lines, self._log = [*lines, self._log], b""
        for line in lines:
            self._owner.relay(line)

    def _notified(self, message: bytes) -> bytes:
        said = dict(line.partition("=")[::2] for line in message.decode().split("\n"))
        if "READY" in said and not self.ready.called:
            self.serves = True
            self.ready.callback(None)
        if "EXTEND_TIMEOUT_USEC" in said:
            self._owner.on_waiting(said.get("STATUS", ""), int(said["EXTEND_TIMEOUT_USEC"]) / 1e6)
        return b""

    def counted(self, figures: bytes) -> bytes:
        """Keep the latest metrics of the worker."""
        self.figures = figures
        return b""

    def processEnded(self, reason: Failure) -> None:
        """Tell the parent, and fail what waits for this worker."""
        self.serves = False
        self.pipe.connectionLost(reason)
        if self._log:
            self._owner.relay(self._log)
        how = _exit_text(reason)
        if not self.ready.called:
            self.ready.errback(WorkerFailed(f"a worker ended before it served ({how}); the line before says why"))
        self.ended.callback(None)
        self._owner.worker_ended(self, how)

    def end(self) -> None:
        """Tell the worker to drain and end; kill it if it does not end in time."""
        self.unwanted = True
        self.signal(signal.SIGTERM)
        killing = self._owner.reactor.callLater(self._owner.drain_seconds + _END_SECONDS, self.kill)

        def spared(result: None) -> None:
            if killing.active():
                killing.cancel()
            return result

        self.ended.addCallback(spared)

    def kill(self) -> None:
        """End the worker at once."""
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the worker, if it still runs."""
        if self.transport.pid is not None:
            self.transport.signalProcess(number)


class _ChildPipeTransport:
    """The transport of the messages to one worker."""

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process

    def write(self, data: bytes) -> None:
        """Write to the worker."""
        self._process.write(data)

    def writeSequence(self, data: Sequence[bytes]) -> None:
        """Write to the worker."""
        self._process.write(b"".join(data))

    def loseConnection(self) -> None:
        """Kill the worker: what came from it makes no sense."""
        self._process.kill()


def _exit_text(reason: Failure) -> str:
    if reason.check(ProcessDone):
        return "with status 0"
    number = getattr(reason.value, "signal", None)
    return f"by signal {number}" if number else f"with status {getattr(reason.value, 'exitCode', None)}"
