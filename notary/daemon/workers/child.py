"""notary.daemon.workers.child: to be described."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from notary.daemon.workers.parent import WorkerFailed, Workers
from notary.daemon.workers.pipe import Answer, Talk

_END_SECONDS: Final = 15.0  # beyond the drain, before it is killed
_LOG_TAIL: Final = 1 << 16  # bytes of an unfinished line that are kept


class Process(ProcessProtocol):
    """One worker, seen by its parent: ``ready`` fires when it serves, ``ended`` when it is no more."""

    transport: Any

    def __init__(self, owner: Workers, number: int, reading: int, writing: int) -> None:
        self.number = number
        self.serves = False
        self.unwanted = False  # it has been told to end
        self.figures = b""
        self.ready: Deferred[None] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self.since = owner.reactor.seconds()
        self._owner = owner
        self._reading, self._writing = reading, writing  # as the worker calls them
        self._log = b""
        answers: dict[str, Answer] = {
            "environment": lambda _: json.dumps(owner.plan.variables()).encode(),
            "notify": self._notified,
            "figures": self.counted,
            "metrics": lambda _: owner.metrics(),
        }
        self.talk = Talk(owner.reactor, answers, lambda: None)

    @property
    def pid(self) -> int:
        """Its process id; 0 once it is gone."""
        return self.transport.pid or 0

    def connectionMade(self) -> None:
        """The process runs."""
        self.talk.makeConnection(self)  # it has what Talk uses of a transport

    def write(self, data: bytes) -> None:
        """As a transport, for the talk."""
        if self.transport.pid is not None:
            self.transport.writeToChild(self._reading, data)

    def writeSequence(self, data: Sequence[bytes]) -> None:
        """As a transport, for the talk."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """As a transport, for the talk: what came makes no sense."""
        self.kill()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Messages, or lines of the log."""
        if childFD == self._writing:
            self.talk.dataReceived(data)
            return
        *lines, self._log = (self._log + data).split(b"\n")
        if len(self._log) > _LOG_TAIL:
            lines, self._log = [*lines, self._log], b""
        for line in lines:
            self._owner.plan.options.log.relay(line)

    def _notified(self, message: bytes) -> bytes:
        said = dict(line.partition("=")[::2] for line in message.decode().split("\n"))
        if "READY" in said and not self.ready.called:
            self.serves = True
            self.ready.callback(None)
        if "EXTEND_TIMEOUT_USEC" in said:
            self._owner.on_waiting(said.get("STATUS", ""), int(said["EXTEND_TIMEOUT_USEC"]) / 1e6)
        return b""

    def counted(self, figures: bytes) -> bytes:
        """These are its figures so far."""
        self.figures = figures
        return b""

    def processEnded(self, reason: Failure) -> None:
        """It is no more."""
        self.serves = False
        self.talk.connectionLost(reason)
        if self._log:
            self._owner.plan.options.log.relay(self._log)
        if not self.ready.called:
            text = f"a worker ended before it served ({_how(reason)}); the line before says why"
            self.ready.errback(WorkerFailed(text))
        self.ended.callback(None)
        self._owner.gone(self, _how(reason))

    def end(self) -> None:
        """Tell it to drain and end; kill it if it does not."""
        self.unwanted = True
        self.signal(signal.SIGTERM)
        killing = self._owner.reactor.callLater(self._owner.plan.drain + _END_SECONDS, self.kill)

        def spared(result: None) -> None:
            if killing.active():
                killing.cancel()
            return result

        self.ended.addCallback(spared)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.transport.pid is not None:
            self.transport.signalProcess(number)


def _how(reason: Failure) -> str:
    if reason.check(ProcessDone):
        return "with status 0"
    number = getattr(reason.value, "signal", None)
    return f"by signal {number}" if number else f"with status {getattr(reason.value, 'exitCode', None)}"
