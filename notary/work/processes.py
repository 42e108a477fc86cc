"""Work that would hold the interpreter for too long, done in a process of its own.

Rules of this module: a thread does not help where single calls into C (reading or writing megabytes of JSON) keep all
other threads waiting. One process does one piece of work: it reads the work from standard input, writes the answer to
standard output and ends, so nothing has to be synchronised, timed out or restarted. A process costs a fifth of a
second, so only large work is done in one. It gets nothing of our environment, which may hold secrets, and ends with our
process, because its pipes do.

The data of a stranger is never in memory twice here: large values go into the pipe piece by piece, without a copy, and
an answer refers to them by number. A process has :class:`Bounds`; work beyond them fails with TooDemanding, and no
other work fails.
"""

from __future__ import annotations

import copyreg
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from struct import Struct
from types import MappingProxyType
from typing import Any, BinaryIO, Final, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import IPullProducer, IReactorProcess
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from notary.errors import NotaryError, TooDemanding

P = ParamSpec("P")
T = TypeVar("T")

_CHILD: Final = "from notary.work.processes import main; main()"
_ENDED: Final = "a process that was to do a part of the work ended before it was done"
_TOO_DEMANDING: Final = "the work on this request takes too much {}: send less at once"

_PIECE_BYTES: Final = 1 << 16
"""How much is written to a pipe at a time: as much as a pipe holds."""

_LARGE_BYTES: Final = 1 << 12
"""Larger values are sent without a copy, and the answer refers to them by number."""

_HEAD: Final = Struct("<QQQQ")
"""The header of a call: both bounds, the length of the pickled call, and the number of large values after it."""

_LENGTH: Final = Struct("<Q")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of one process.

    Its address space may be ``memory_bytes``, and ``memory_factor`` times the bytes of its call; its processor time
    ``cpu_seconds``; its answer may have ``answer_bytes`` more than its call. The largest upload that a publisher may
    need, 140,000 targets in 34 MiB, takes 293 MiB and 2 seconds; 479 MiB if a name holds a character beyond the basic
    plane, for which Python keeps four bytes for every character of the file.
    """

    memory_bytes: int = 512 << 20
    memory_factor: int = 6
    cpu_seconds: int = 30
    answer_bytes: int = 16 << 20


def python_command(code: str) -> list[str]:
    """Return the command that runs ``code`` in another interpreter of the same kind.

    That interpreter needs ``python_environment``. It imports nothing from the current directory, where others may be
    able to write.
    """
    return [sys.executable, "-P", "-c", code]


def python_environment() -> dict[str, str]:
    """Return the variables with which another interpreter finds the same modules as ours."""
    return {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if Path(entry).is_absolute())}


class InProcess(Protocol):
    """Calls a function of a module in another process; arguments, result and errors are copied there and back."""

    def __call__(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Start ``work``."""
        ...


class OffloadFailed(NotaryError):
    """The process ended without an answer: it was killed, had no memory, or could not start."""


class Offload:
    """Runs functions in processes. The caller bounds how many run at a time."""

    def __init__(self, reactor: IReactorProcess, bounds: Bounds = Bounds()) -> None:
        self._reactor = reactor
        self._bounds = bounds
        self._running: set[_Job] = set()
        self._closed = False

    def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call ``work``, a function of a module. Arguments, result and errors must be picklable.

        Fails with the errors of ``work``, with TooDemanding, or with OffloadFailed.
        """
        return maybeDeferred(self._start, (work, args, kwargs))

    def _start(self, call: tuple[Any, ...]) -> Deferred[Any]:
        if self._closed:
            return fail(OffloadFailed("the service is stopping"))
        job = _Job(call, self._bounds)
        command = python_command(_CHILD)
        try:
            self._reactor.spawnProcess(
                job, command[0], command, env=python_environment(), childFDs={0: "w", 1: "r", 2: 2}
            )
        except OSError as error:
            return fail(OffloadFailed(f"a process that was to do a part of the work cannot be started: {error}"))
        self._running.add(job)

        def ended(result: object) -> object:
            self._running.discard(job)
            return result

        return job.done.addBoth(ended)

    async def close(self) -> None:
        """Kill all running processes, whose work fails with OffloadFailed, and wait for their end."""
        self._closed = True
        for job in tuple(self._running):
            await job.kill()


class _Pickler(pickle.Pickler):
    """Writes a value, with numbers in place of the large values that have one by ``number``."""

    def __init__(self, file: BinaryIO, number: Callable[[bytes], int | None]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._number = number

    def persistent_id(self, obj: Any) -> int | None:
        """See pickle, which calls this for every object."""
        return self._number(obj) if type(obj) is bytes and len(obj) > _LARGE_BYTES else None


class _Unpickler(pickle.Unpickler):
    """Reads the output of a _Pickler; ``large`` has the values for its numbers."""

    def __init__(self, file: BinaryIO, large: Sequence[bytes]) -> None:
        super().__init__(file)
        self._large = large

    def persistent_load(self, pid: Any) -> bytes:
        """See pickle, which calls this for every number."""
        value: bytes = self._large[pid]
        return value


@implementer(IPullProducer)
class _Job(ProcessProtocol):
    """One process: ``done`` fires with its result when it has ended."""

    transport: Any

    def __init__(self, call: tuple[Any, ...], bounds: Bounds) -> None:
        self.done: Deferred[Any] = Deferred()
        self._large: list[bytes] = []
        self._numbers: dict[int, int] = {}  # by identity: a value that occurs twice is sent once
        written = BytesIO()
        _Pickler(written, self._number).dump(call)
        pickled = written.getvalue()
        size = len(pickled) + sum(map(len, self._large))
        memory = bounds.memory_bytes + bounds.memory_factor * size
        head = _HEAD.pack(memory, bounds.cpu_seconds, len(pickled), len(self._large))
        self._most = size + bounds.answer_bytes
        self._pieces = _pieces([head, *[_LENGTH.pack(len(value)) for value in self._large], pickled, *self._large])
        self._answer: list[bytes] = []
        self._size = 0
        self._gone: list[Deferred[None]] = []

    def _number(self, value: bytes) -> int:
        number = self._numbers.setdefault(id(value), len(self._large))
        if number == len(self._large):
            self._large.append(value)
        return number

    def connectionMade(self) -> None:
        """Start sending the work."""
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Send the next piece; the process has read the earlier ones."""
        piece = next(self._pieces, None)
        if piece is not None:
            self.transport.write(piece)
        else:
            self.transport.unregisterProducer()
            self.transport.closeStdin()

    def stopProducing(self) -> None:
        """Send nothing more: the process no longer reads."""
        self._pieces = iter(())

    def outReceived(self, data: bytes) -> None:
        """Collect the answer."""
        self._size += len(data)
        if self._size <= self._most:
            self._answer.append(data)
        else:
            self._answer.clear()
            self.transport.signalProcess("KILL")

    def processEnded(self, reason: Failure) -> None:
        """Fire ``done`` with the result."""
        answer, self._answer = b"".join(self._answer), []
        large, self._large, self._pieces = self._large, [], iter(())
        result: Any
        if self._size > self._most:
            result = Failure(OffloadFailed(f"{_ENDED}: its answer was larger than {self._most} bytes"))
        elif reason.check(ProcessDone) is not None:
            ok, value = _Unpickler(BytesIO(answer), large).load()
            result = value if ok else Failure(value)
        elif getattr(reason.value, "signal", None) == signal.SIGXCPU:
            result = Failure(TooDemanding(_TOO_DEMANDING.format("time")))
        else:
            result = Failure(OffloadFailed(f"{_ENDED}: {reason.value}"))
        self.done.callback(result)
        for gone in self._gone:
            gone.callback(None)

    def kill(self) -> Deferred[None]:
        """End the process; fires when it has ended."""
        gone: Deferred[None] = Deferred()
        self._gone.append(gone)
        self.transport.signalProcess("KILL")
        return gone


def _pieces(values: Sequence[bytes]) -> Iterator[bytes]:
    for value in values:
        view = memoryview(value)
        for start in range(0, len(view), _PIECE_BYTES):
            yield bytes(view[start : start + _PIECE_BYTES])


# -- in the process ---------------------------------------------------------------------------------------------------


def _pickle_mapping(mapping: MappingProxyType[Any, Any]) -> tuple[Any, ...]:
    return MappingProxyType, (dict(mapping),)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most if kind != resource.RLIMIT_CPU else hard))


def _be_modest(memory_bytes: int, cpu_seconds: int) -> None:
    """Set the bounds of this process. If the machine is short of memory, the kernel kills this process first."""
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_CPU, cpu_seconds)
    _limit(resource.RLIMIT_CORE, 0)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> None:
    """Run in the process: read a call, make it, write the result or the error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal; the service finishes what it has begun
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    copyreg.pickle(MappingProxyType, _pickle_mapping)
    source = sys.stdin.buffer
    memory, seconds, size, count = _HEAD.unpack(source.read(_HEAD.size))
    _be_modest(memory, seconds)
    try:
        answer, large = _called(source, size, count)
    except MemoryError:
        answer, large = (False, TooDemanding(_TOO_DEMANDING.format("memory"))), []
    numbers = {id(value): number for number, value in enumerate(large)}
    with answers:
        _Pickler(answers, lambda value: numbers.get(id(value))).dump(answer)


def _called(source: BinaryIO, size: int, count: int) -> tuple[tuple[bool, Any], Sequence[bytes]]:
    """Return the result of a call, and the large values, which may be in the result."""
    lengths = [_LENGTH.unpack(source.read(_LENGTH.size))[0] for _ in range(count)]
    pickled = source.read(size)
    large = [source.read(length) for length in lengths]
    work, args, kwargs = _Unpickler(BytesIO(pickled), large).load()
    try:
        return (True, work(*args, **kwargs)), large
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the other side handles it
        return (False, error.with_traceback(None)), large
