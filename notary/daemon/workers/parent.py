"""Several processes of one daemon: a parent that holds the sockets, and workers that serve them.

Rules of this module:

- A worker is an ordinary instance, started as systemd would start it, by the sockets that are passed to it. It is told
  how many workers there are, which a signer tells its servers. All accept from the same sockets, so that one that is
  slow, or gone, delays nobody.
- The parent serves nobody. It starts workers, starts them again when they end by themselves, replaces them one by one
  when the configuration is to be read again, passes signals and log lines on, and adds up their figures.
- A worker's environment, which others may be able to read, has none of the daemon's own variables: passphrases may be
  among them. The worker asks its parent for these over the pipe between them, once it has protected itself.
- Nothing is shared but the sockets and the database: what must be known to all workers is in the database.
- A worker ends when its parent does, for any reason: the pipe between them is closed then.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any, Final, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, FirstError, gatherResults, maybeDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from notary.daemon.options import Options
from notary.daemon.workers.child import WorkerFailed, WorkerProcess
from notary.daemon.workers.pipe import NoReply
from notary.daemon.workers.totals import Totals
from notary.daemon.workers.worker import OURS, PIPES, decoded
from notary.net import listen
from notary.net.http.call import Call, Response
from notary.observe.debug import MAX_SECONDS, DebugServer, Page, until_gone
from notary.observe.metrics import CONTENT_TYPE, DaemonMetrics
from notary.observe.readiness import ALIVE, Readiness
from notary.work.backoff import Backoff
from notary.work.processes import python_command, python_environment
from notary.work.reactor import Reactor

_SYSTEMD_VARIABLES: Final = frozenset(
    {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
)
"""What the service manager tells the parent: removed from the environment of the workers."""

_FIRST_DESCRIPTOR: Final = 3  # of the sockets that a worker gets, as systemd passes them
_BACKOFF: Final = Backoff(first=0.2, most=10.0, factor=2.0, jitter=0.2)
_HEALTHY_AFTER_SECONDS: Final = 30.0
"""The uptime of a worker that resets the back-off of restarts."""
_POLL_SECONDS, _SILENCE_SECONDS = 5.0, 30.0  # between two polls of a worker; before a silent worker is killed
_PROFILE_SECONDS: Final = MAX_SECONDS + 30.0


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
        single_process_variable: The variable that tells a worker that it is to be one process.
        count: How many workers; 0 for one a processor.
        address: Where they listen, unless sockets are passed.
        address_key: The key of that address.
        drain_seconds: How long a stopping worker may take to finish its answers.
        debug: Where the debug server listens; None for nowhere.
        check: Raises ConfigError for a configuration that no worker could start with.
        changed: Returns a line for each key that a new configuration changes and that needs a restart all the same.
    """

    program: str
    options: Options
    single_process_variable: str
    count: int
    address: Address
    address_key: str
    drain_seconds: float
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
        own = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
        return own | {self.single_process_variable: "1"}


class Workers(Service):
    """The parent. Starting fails with WorkerFailed if one of the first workers does, and with CannotListenError."""

    def __init__(self, plan: Plan, reactor: Reactor, sockets: Sequence[socket], figures: DaemonMetrics) -> None:
        self.plan = plan
        self.reactor = reactor
        self.drain_seconds = plan.drain_seconds
        self.count = plan.count or len(os.sched_getaffinity(0))
        self.on_waiting: Callable[[str, float], None] = lambda _status, _seconds: None
        self._sockets = sockets
        self._figures = figures
        self._log = Logger(namespace="notary.daemon.workers.parent")
        self._processes: set[WorkerProcess] = set()
        self._totals = Totals()
        self._call_numbers = itertools.count(1)  # of calls of the debug server that are passed on
        self._failures = 0
        self._started = 0
        self._restarts: dict[int, IDelayedCall] = {}  # by the number of the worker that is to come
        self._closings: list[Callable[[], Any]] = []  # what ends listening
        self._ends: list[Callable[[], Any]] = []
        self._polling = LoopingCall(self._poll)
        self._polling.clock = reactor
        figures.gauge("workers", "Processes that serve", lambda: {(): len(self._serving())})
        figures.counter("worker_starts", "Processes that were started", lambda: {(): self._started})

    # -- life ---------------------------------------------------------------------------------------------------------

    def startService(self) -> Deferred[None]:
        """Listen, start all workers, and wait until they serve."""
        super().startService()
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        plan = self.plan
        if plan.debug is not None:  # first: a client that finds the port open finds the debug server too
            pages: Mapping[str, Page] = {
                "/metrics": self._metrics_page,
                "/livez": lambda: ALIVE,
                "/readyz": self._ready_page,
            }
            where = plan.debug.host, plan.debug.port
            server = DebugServer(self.reactor, *where, pages, self._figures.counters, self._of_worker)
            with listen.naming("debug"):
                await server.startService()
            self._ends.append(server.stopService)
        if not self._sockets:
            self._log.info("Starting on {address}", address=str(plan.address))
            with listen.naming(plan.address_key):
                port: Any = await listen.listen(self.reactor, plan.address.host, plan.address.port, Factory())
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
        self._polling.start(_POLL_SECONDS, now=False)

    def stopService(self) -> Deferred[None]:
        """End all workers, which drain, and wait until they are gone."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._polling.running:
            self._polling.stop()
        while self._restarts:
            self._restarts.popitem()[1].cancel()
        # First: the workers accept what is in the queue and close the port, and then nobody can connect any more.
        await _all_of(self._closings)
        ended = [_mirror(process.ended) for process in self._processes]
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
        """Send a signal on to all workers."""
        for process in self._processes:
            process.signal(number)

    # -- workers ------------------------------------------------------------------------------------------------------

    def variables(self) -> Mapping[str, str]:
        """The daemon's own variables, which a worker's environment does not show."""
        return self.plan.variables()

    def relay(self, line: bytes) -> None:
        """Write one line of a worker's log."""
        self.plan.options.log.relay(line)

    def _serving(self) -> list[WorkerProcess]:
        return [process for process in self._processes if process.serves and not process.unwanted]

    def _spawn(self, number: int) -> WorkerProcess:
        plan, sockets = self.plan, self._descriptors
        reading, writing = _FIRST_DESCRIPTOR + len(sockets), _FIRST_DESCRIPTOR + len(sockets) + 1
        process = WorkerProcess(self, number, reading, writing)
        environ = {
            name: value
            for name, value in os.environ.items()
            if name not in _SYSTEMD_VARIABLES and not name.startswith(OURS)
        }
        environ |= {"LISTEN_FDS": str(len(sockets)), PIPES: f"{reading},{writing},{self.count}"}
        environ |= python_environment()
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
                    **{_FIRST_DESCRIPTOR + place: descriptor for place, descriptor in enumerate(sockets)},
                    reading: "w",
                    writing: "r",
                },
            )
        self._started += 1
        self._processes.add(process)
        self._log.info("Worker {number} is process {pid}", number=number, pid=process.pid)
        return process

    def worker_ended(self, process: WorkerProcess, how: str) -> None:
        """A worker has ended."""
        self._processes.discard(process)
        self._totals.retire(process.figures)
        if process.unwanted or not self.running or not self._polling.running:
            return  # as it was told, or the start has failed
        if self._is_there(process.number):
            return  # it was to replace another one, which goes on; or the other way round
        self._failures = 0 if self.reactor.seconds() - process.started_at > _HEALTHY_AFTER_SECONDS else self._failures
        self._failures += 1
        wait = _BACKOFF.delay(self._failures, random.random())  # noqa: S311 - jitter
        self._log.error(
            "worker {number} ended {how}; another one starts in {wait} s",
            number=process.number,
            how=how,
            wait=round(wait, 1),
        )
        self._restarts[process.number] = self.reactor.callLater(wait, self._restart, process.number)

    def _is_there(self, number: int) -> bool:
        """Whether there is a worker of this number, or will be one."""
        return number in self._restarts or any(
            process.number == number and not process.unwanted for process in self._processes
        )

    def _restart(self, number: int) -> None:
        self._restarts.pop(number, None)
        self._spawn(number).ready.addErrback(lambda failure: failure.trap(WorkerFailed) and None)

    def _poll(self) -> None:
        """Ask every worker for its figures, in case it dies; one that does not answer is not well."""
        for number in range(1, self.count + 1):
            if not self._is_there(number):  # it ended during the start
                self._restart(number)
        for process in self._serving():
            process.pipe.request("metrics", seconds=_SILENCE_SECONDS).addCallbacks(
                process.counted, partial(self._silent, process)
            )

    def _silent(self, process: WorkerProcess, failure: Failure) -> None:
        failure.trap(NoReply)
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
        asked = [(process, process.pipe.request("metrics")) for process in self._serving()]
        texts = [self._figures.render_for_totals()]
        for process, answer in asked:
            try:
                process.figures = await answer
            except NoReply:
                continue
            texts.append(process.figures)
        return self._totals.of(texts)

    async def _metrics_page(self) -> Response:
        return Response(200, await self.metrics(), (("Content-Type", CONTENT_TYPE),))

    async def _ready_page(self) -> Response:
        """What a worker says that serves; all see the same database and the same signer."""
        for process in self._serving() if self.running else ():
            try:
                return decoded(await process.pipe.request("ready"))
            except NoReply:
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
        number = str(next(self._call_numbers))
        target = json.dumps([number, call.method, f"/{parts[2]}", dict(call.query)])
        asked = process.pipe.request("debug", target.encode(), _PROFILE_SECONDS).addCallback(decoded)
        end_watch = until_gone(self.reactor, call, lambda: process.pipe.notify("gone", number.encode()))

        def answered(result: Any) -> Any:
            end_watch()
            return result

        return asked.addBoth(answered)


async def _all_of(ends: list[Callable[[], Any]]) -> None:
    """Call what ends something, the last first."""
    while ends:
        await maybeDeferred(ends.pop())


def _mirror(event: Deferred[None]) -> Deferred[None]:
    """Another Deferred that fires when ``event`` does."""
    waiter: Deferred[None] = Deferred()

    def pass_on(result: None) -> None:
        waiter.callback(None)
        return result

    event.addCallback(pass_on)
    return waiter
