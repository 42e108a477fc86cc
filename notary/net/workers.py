"""Several processes of one daemon: a parent that holds the sockets, and workers that serve them.

Rules of this module:

- A worker is an ordinary instance, started as systemd would start it, by the sockets that are passed to it; it does not
  know how many there are. All accept from the same sockets, so that one that is slow, or gone, delays nobody.
- The parent serves nobody. It starts workers, starts them again when they end by themselves, replaces them one by one
  when the configuration is to be read again, passes signals and log lines on, and adds up their figures.
- A worker's environment, which others may be able to read, has none of the daemon's own variables: passphrases may be
  among them. The worker asks its parent for these over the pipe between them, once it has protected itself.
- Nothing is shared but the sockets and the database: what must be known to all workers is in the database.
- A worker ends when its parent does, whatever the parent died of: the pipe between them says so.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any, Final, Protocol, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, FirstError, gatherResults, maybeDeferred
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.internet.stdio import StandardIO
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from notary.errors import NotaryError
from notary.net import tls
from notary.net.daemon import Options
from notary.net.debug import MAX_SECONDS, DebugServer, Page, until_gone
from notary.net.grpc import Backoff
from notary.net.messages import Call, Response
from notary.net.metrics import CONTENT_TYPE, Figures
from notary.net.offload import python_command, python_environment
from notary.net.readiness import ALIVE, Readiness
from notary.net.sums import Totals
from notary.net.systemd import Notifier
from notary.net.talk import Answer, Talk, Unanswered, ask_at_once

_PIPES: Final = "NOTARY_SUPERVISOR"
"""The variable that names a worker's pipes to its parent: the descriptor to read, a comma, the one to write."""

_OURS: Final = "NOTARY_"
"""What the names of the daemon's own variables begin with."""

_FOR_THE_PARENT: Final = frozenset(
    {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
)
"""What the service manager tells the parent, and nobody else."""

_FIRST: Final = 3  # the descriptor of the first socket, as systemd has it
_BACKOFF: Final = Backoff(first=0.2, most=10.0, factor=2.0, jitter=0.2)
_GOOD_SECONDS: Final = 30.0  # a worker that lived so long did not fail at once
_LOOK_SECONDS, _SILENCE_SECONDS = 5.0, 30.0  # how often a worker is asked whether it lives, and how long it may think
_PROFILE_SECONDS: Final = MAX_SECONDS + 30.0
_END_SECONDS: Final = 15.0  # beyond the drain, before it is killed
_LOG_TAIL: Final = 1 << 16  # bytes of an unfinished line that are kept


class WorkerFailed(NotaryError):
    """A worker ended before it served."""


# -- a worker ---------------------------------------------------------------------------------------------------------


class _Told(Notifier):
    """Tells the parent what would be told to systemd."""

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        super().__init__({})
        self._tell = tell

    def _send(self, *lines: str) -> None:
        self._tell("\n".join(lines).encode())


class Worker:
    """The side of a process that a parent has started: see `join`. ``environ`` is what the parent said of it."""

    def __init__(self, reactor: Any, reading: int, writing: int, environ: Mapping[str, str]) -> None:
        self._answers: dict[str, Answer] = {}
        self._calls: dict[str, Call] = {}  # of the debug server that are being answered, by their numbers
        self._talk = Talk(reactor, self._answers, lambda: os.kill(os.getpid(), signal.SIGTERM))
        cast("Any", StandardIO)(self._talk, reading, writing, reactor)  # its stub knows less than it takes
        self.surroundings: dict[str, Any] = {
            "notifier": _Told(partial(self._talk.tell, "notify")),
            "environ": {**os.environ, **environ},
        }
        """What stands in for systemd and the environment: keyword arguments of ``make_daemon``."""

    def show(self, figures: Figures, ready: Callable[[], Any], debug: DebugServer | None) -> None:
        """Answer the parent's questions, and show the figures of all workers in place of this one's alone."""
        self._answers["metrics"] = lambda _: figures.render()[1]
        self._answers["ready"] = lambda _: _encoded(ready())
        if debug is not None:
            self._answers["debug"] = partial(self._debug, debug)
            self._answers["gone"] = self._gone
        figures.together = lambda: self._talk.ask("metrics")

    async def _debug(self, server: DebugServer, asked: bytes) -> bytes:
        number, method, path, query = json.loads(asked)
        call = Call(method, path, query={name: tuple(values) for name, values in query.items()})
        self._calls[number] = call
        try:
            return await _encoded(server.answer(call))
        finally:
            del self._calls[number]

    def _gone(self, number: bytes) -> bytes:
        """The client of a call of the debug server has left the parent."""
        call = self._calls.get(number.decode())
        if call is not None:
            call.gone = True
        return b""

    async def farewell(self, figures: Figures) -> None:
        """Leave the last figures to the parent."""
        with suppress(Unanswered):
            await self._talk.ask("figures", figures.render()[1], 1.0)


def join(environ: Mapping[str, str], reactor: Any) -> Worker | None:
    """What a worker has of its parent; None for a process that is no worker. ``environ`` is the first environment.

    Blocks until the parent has told the daemon's own variables, which is before the event loop runs.
    """
    pipes = environ.get(_PIPES)
    if pipes is None:
        return None
    os.environ.pop(_PIPES, None)
    reading, writing = (int(number) for number in pipes.split(","))
    try:
        own = json.loads(ask_at_once(reading, writing, "environment"))
    except Unanswered as error:
        sys.exit(str(error))
    return Worker(reactor, reading, writing, own)


async def _encoded(answer: Any) -> bytes:
    response: Response = answer if isinstance(answer, Response) else await answer
    return json.dumps([response.status, response.headers]).encode() + b"\n" + response.body


def _decoded(data: bytes) -> Response:
    head, _, body = data.partition(b"\n")
    status, headers = json.loads(head)
    return Response(status, body, tuple((name, value) for name, value in headers))


# -- the parent -------------------------------------------------------------------------------------------------------


class Address(Protocol):
    """Where to listen."""

    @property
    def host(self) -> str:
        """A name or an IP address, "" for every interface."""

    @property
    def port(self) -> int:
        """0 means any."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a parent needs to know.

    Args:
        program: The module whose ``main`` is the daemon.
        options: The daemon's flags, which its workers get too.
        alone: The variable that tells a worker that it is to be one process.
        count: How many workers; 0 for one a processor.
        address: Where they listen, unless sockets are passed.
        drain: Seconds that a stopping worker gives to its answers.
        debug: Where the debug server listens; None for nowhere.
        check: Raises ConfigError for a configuration that no worker could start with.
        changed: Returns a line for each key that a new configuration changes and that needs a restart all the same.
    """

    program: str
    options: Options
    alone: str
    count: int
    address: Address
    drain: float
    debug: Address | None
    check: Callable[[Any], object]
    changed: Callable[[Any], Sequence[str]]

    def command(self) -> Sequence[str]:
        """What a worker is started as."""
        options = self.options
        flags = [f"-config={Path(options['config']).absolute()}", f"-logf={options['logf']}"]
        code = f"from {self.program} import main; main()"
        return [*python_command(code), *flags, *(["-debug"] if options["debug"] else [])]

    def variables(self) -> Mapping[str, str]:
        """The daemon's own variables, for a worker."""
        own = {name: value for name, value in os.environ.items() if name.startswith(_OURS)}
        return own | {self.alone: "1"}


class _Process(ProcessProtocol):
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


class Workers(Service):
    """The parent. Starting fails with WorkerFailed if one of the first workers does, and with CannotListenError."""

    def __init__(self, plan: Plan, reactor: Any, sockets: Sequence[socket], figures: Figures) -> None:
        self.plan = plan
        self.reactor = reactor
        self.count = plan.count or len(os.sched_getaffinity(0))
        self.on_waiting: Callable[[str, float], None] = lambda _status, _seconds: None
        self._sockets = sockets
        self._figures = figures
        self._log = Logger(namespace="notary.net.workers")
        self._processes: set[_Process] = set()
        self._totals = Totals()
        self._calls = itertools.count(1)  # of the debug server that are passed on
        self._failures = 0
        self._started = 0
        self._restarts: dict[int, IDelayedCall] = {}  # by the number of the worker that is to come
        self._closings: list[Callable[[], Any]] = []  # what ends listening
        self._ends: list[Callable[[], Any]] = []
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        figures.watch("workers", "Processes that serve", lambda: {(): len(self._serving())})
        figures.watch("worker_starts", "Processes that were started", lambda: {(): self._started}, counter=True)

    # -- life ---------------------------------------------------------------------------------------------------------

    def startService(self) -> Deferred[None]:
        """Listen, start all workers, and wait until they serve."""
        super().startService()
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        plan = self.plan
        if plan.debug is not None:  # first: who finds the port open finds this as well
            pages: Mapping[str, Page] = {
                "/metrics": self._metrics_page,
                "/livez": lambda: ALIVE,
                "/readyz": self._ready_page,
            }
            where = plan.debug.host, plan.debug.port
            server = DebugServer(self.reactor, *where, pages, self._figures.counters, self._of_worker)
            await server.startService()
            self._ends.append(server.stopService)
        if not self._sockets:
            self._log.info("Starting on {address}", address=str(plan.address))
            port: Any = await tls.listen(self.reactor, plan.address.host, plan.address.port, Factory())
            port.stopReading()  # it is the workers who accept
            self._closings.append(port.stopListening)
            self._descriptors = [port.fileno()]
        else:
            self._descriptors = [passed.fileno() for passed in self._sockets]
            self._closings += [passed.close for passed in self._sockets]
        first = [self._spawn(number) for number in range(1, self.count + 1)]
        try:
            await gatherResults([process.ready for process in first], consumeErrors=True)
        except FirstError as error:
            failure: Any = error.subFailure
            raise failure.value from None
        self._looking.start(_LOOK_SECONDS, now=False)

    def stopService(self) -> Deferred[None]:
        """End all workers, which drain, and wait until they are gone."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._looking.running:
            self._looking.stop()
        while self._restarts:
            self._restarts.popitem()[1].cancel()
        # First: the workers accept what is in the queue and close the port, and then nobody can connect any more.
        await _all_of(self._closings)
        ended = [_when(process.ended) for process in self._processes]
        for process in list(self._processes):
            process.end()
        await DeferredList(ended)
        await _all_of(self._ends)

    async def reload(self, config: Any) -> Sequence[str]:
        """Replace the workers one after the other; those that are replaced finish what they have begun.

        Raises ConfigError, or WorkerFailed if a new one does not come to serve: then the old ones go on.
        """
        self.plan.check(config)
        for old in sorted(self._serving(), key=lambda process: process.number):
            new = self._spawn(old.number)
            await new.ready
            old.end()
        return self.plan.changed(config)

    def pass_on(self, number: signal.Signals) -> None:
        """Tell all workers."""
        for process in self._processes:
            process.signal(number)

    # -- workers ------------------------------------------------------------------------------------------------------

    def _serving(self) -> list[_Process]:
        return [process for process in self._processes if process.serves and not process.unwanted]

    def _spawn(self, number: int) -> _Process:
        plan, sockets = self.plan, self._descriptors
        reading, writing = _FIRST + len(sockets), _FIRST + len(sockets) + 1
        process = _Process(self, number, reading, writing)
        environ = {
            name: value
            for name, value in os.environ.items()
            if name not in _FOR_THE_PARENT and not name.startswith(_OURS)
        }
        environ |= {"LISTEN_FDS": str(len(sockets)), _PIPES: f"{reading},{writing}", **python_environment()}
        # LISTEN_PID must be the worker's own, which nobody knows before it is there.
        shell = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh"]
        with Path(os.devnull).open("rb") as nothing:
            self.reactor.spawnProcess(
                process,
                shell[0],
                [*shell, *plan.command()],
                env=environ,
                childFDs={
                    0: nothing.fileno(),
                    1: 1,
                    2: "r",
                    **{_FIRST + place: descriptor for place, descriptor in enumerate(sockets)},
                    reading: "w",
                    writing: "r",
                },
            )
        self._started += 1
        self._processes.add(process)
        self._log.info("Worker {number} is process {pid}", number=number, pid=process.pid)
        return process

    def gone(self, process: _Process, how: str) -> None:
        """A worker has ended."""
        self._processes.discard(process)
        self._totals.forget(process.figures)
        if process.unwanted or not self.running or not self._looking.running:
            return  # as it was told, or the start has failed
        if self._is_there(process.number):
            return  # it was to replace another one, which goes on; or the other way round
        self._failures = 0 if self.reactor.seconds() - process.since > _GOOD_SECONDS else self._failures
        self._failures += 1
        wait = _BACKOFF.delay(self._failures, random.random())  # noqa: S311 - jitter
        self._log.error(
            "worker {number} ended {how}; another one starts in {wait} s",
            number=process.number,
            how=how,
            wait=round(wait, 1),
        )
        self._restarts[process.number] = self.reactor.callLater(wait, self._again, process.number)

    def _is_there(self, number: int) -> bool:
        """Whether there is a worker of this number, or will be one."""
        return number in self._restarts or any(
            process.number == number and not process.unwanted for process in self._processes
        )

    def _again(self, number: int) -> None:
        self._restarts.pop(number, None)
        self._spawn(number).ready.addErrback(lambda failure: failure.trap(WorkerFailed) and None)

    def _look(self) -> None:
        """Ask every worker for its figures, in case it dies; one that does not answer is not well."""
        for number in range(1, self.count + 1):
            if not self._is_there(number):  # it ended during the start
                self._again(number)
        for process in self._serving():
            process.talk.ask("metrics", seconds=_SILENCE_SECONDS).addCallbacks(
                process.counted, partial(self._silent, process)
            )

    def _silent(self, process: _Process, failure: Failure) -> None:
        failure.trap(Unanswered)
        if process.serves and not process.unwanted:
            process.serves = False
            self._log.error(
                "worker {number} has not answered for {seconds} s and is killed",
                number=process.number,
                seconds=_SILENCE_SECONDS,
            )
            process.kill()

    # -- figures ------------------------------------------------------------------------------------------------------

    async def metrics(self) -> bytes:
        """The metrics of all workers as those of one daemon."""
        asked = [(process, process.talk.ask("metrics")) for process in self._serving()]
        texts = [self._figures.render()[1]]
        for process, answer in asked:
            try:
                process.figures = await answer
            except Unanswered:
                continue
            texts.append(process.figures)
        return self._totals.of(texts)

    async def _metrics_page(self) -> Response:
        return Response(200, await self.metrics(), (("Content-Type", CONTENT_TYPE),))

    async def _ready_page(self) -> Response:
        """What a worker says that serves; all see the same database and the same signer."""
        for process in self._serving() if self.running else ():
            try:
                return _decoded(await process.talk.ask("ready"))
            except Unanswered:
                continue
        return Readiness(ready=False, status="starting" if self.running else "stopping").response()

    def _of_worker(self, call: Call) -> Deferred[Response] | None:
        """``/workers/N/…``: a debug page of one worker. None for any other path."""
        _, *parts = call.path.split("/", 3)
        if len(parts) < 3 or parts[0] != "workers":  # noqa: PLR2004
            return None
        process = next((one for one in self._serving() if str(one.number) == parts[1]), None)
        if process is None:
            return None
        number = str(next(self._calls))
        target = json.dumps([number, call.method, f"/{parts[2]}", dict(call.query)])
        asked = process.talk.ask("debug", target.encode(), _PROFILE_SECONDS).addCallback(_decoded)
        end_watch = until_gone(self.reactor, call, lambda: process.talk.tell("gone", number.encode()))

        def answered(result: Any) -> Any:
            end_watch()
            return result

        return asked.addBoth(answered)


async def _all_of(ends: list[Callable[[], Any]]) -> None:
    """Call what ends something, the last first."""
    while ends:
        await maybeDeferred(ends.pop())


def _when(event: Deferred[None]) -> Deferred[None]:
    """Another Deferred that fires when ``event`` does."""
    waiter: Deferred[None] = Deferred()

    def pass_on(result: None) -> None:
        waiter.callback(None)
        return result

    event.addCallback(pass_on)
    return waiter
