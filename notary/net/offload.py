"""Work that would hold the interpreter for too long, done by a process of its own.

Rules of this module: a thread is no help where single calls into C (reading or writing megabytes of JSON) keep all
other threads waiting. One process does one piece of work: it gets it on standard input, answers on standard output and
ends, so there is nothing to keep in step, to time out or to restart; it costs a fifth of a second, which is why only
large work is done so. It gets nothing of our environment, where secrets may be, and ends with us, since its pipes do.
"""

from __future__ import annotations

import copyreg
import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, ParamSpec, TypeVar, cast

from twisted.internet.defer import Deferred, DeferredSemaphore, fail
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import IReactorProcess
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

P = ParamSpec("P")
T = TypeVar("T")

_CHILD: Final = "from notary.net.offload import main; main()"
_ENDED: Final = "a process that was to do a part of the work ended before it was done"


def python_command(code: str) -> list[str]:
    """What runs ``code`` in an interpreter of its own, as ours, which imports nothing from the current directory.

    Others may be able to write there. The interpreter needs ``python_environment``.
    """
    return [sys.executable, "-P", "-c", code]


def python_environment() -> dict[str, str]:
    """The variables by which another interpreter finds the modules that ours finds."""
    return {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if Path(entry).is_absolute())}


class OffloadFailed(Exception):
    """The process ended without an answer: it was killed, there was no memory for it, or it could not start."""


class Offload:
    """Runs functions in processes, at most ``at_once`` at a time; further ones wait for their turn."""

    def __init__(self, reactor: IReactorProcess, at_once: int) -> None:
        self._reactor = reactor
        self._turns = DeferredSemaphore(at_once)
        self._running: set[_Job] = set()
        self._closed = False

    def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call ``work``, a function of a module, with values that can be pickled; so must its result and errors be.

        Fails with what ``work`` raises, or with OffloadFailed.
        """
        return cast("Deferred[T]", self._turns.run(self._start, (work, args, kwargs)))

    def _start(self, call: tuple[Any, ...]) -> Deferred[Any]:
        if self._closed:
            return fail(OffloadFailed("the service is stopping"))
        job = _Job(pickle.dumps(call, pickle.HIGHEST_PROTOCOL))
        self._reactor.spawnProcess(
            job, sys.executable, python_command(_CHILD), env=python_environment(), childFDs={0: "w", 1: "r", 2: 2}
        )
        self._running.add(job)

        def ended(result: object) -> object:
            self._running.discard(job)
            return result

        return job.done.addBoth(ended)

    async def close(self) -> None:
        """Kill what is running, which fails with OffloadFailed, and wait until it is gone."""
        self._closed = True
        for job in tuple(self._running):
            await job.kill()


class _Job(ProcessProtocol):
    """One process: ``done`` fires with its result when it has ended."""

    transport: Any

    def __init__(self, call: bytes) -> None:
        self.done: Deferred[Any] = Deferred()
        self._call = call
        self._answer: list[bytes] = []
        self._gone: list[Deferred[None]] = []

    def connectionMade(self) -> None:
        """Hand over the work."""
        self.transport.write(self._call)
        self.transport.closeStdin()
        self._call = b""

    def outReceived(self, data: bytes) -> None:
        """Collect the answer."""
        self._answer.append(data)

    def processEnded(self, reason: Failure) -> None:
        """Tell the result."""
        answer, self._answer = b"".join(self._answer), []
        if reason.check(ProcessDone) is None:
            result: Any = Failure(OffloadFailed(f"{_ENDED}: {reason.value}"))
        else:
            ok, value = pickle.loads(answer)  # noqa: S301 - written by `main`, below
            result = value if ok else Failure(value)
        self.done.callback(result)
        for gone in self._gone:
            gone.callback(None)

    def kill(self) -> Deferred[None]:
        """End the process; fires when it has ended."""
        gone: Deferred[None] = Deferred()
        self._gone.append(gone)
        self.transport.signalProcess("KILL")
        return gone


def _pickle_mapping(mapping: MappingProxyType[Any, Any]) -> tuple[Any, ...]:
    return MappingProxyType, (dict(mapping),)


def main() -> None:
    """Be the process: read a call, make it, write the result or the error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal; the service finishes what it has begun
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    copyreg.pickle(MappingProxyType, _pickle_mapping)
    work, args, kwargs = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by `_start`, above
    try:
        answer: tuple[bool, Any] = (True, work(*args, **kwargs))
    except Exception as error:  # noqa: BLE001 - it is the other side's to handle
        answer = (False, error.with_traceback(None))
    with answers:
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
