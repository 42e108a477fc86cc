"""What both daemons share: flags, the way from a configuration file to a running service, signals, the exit status.

Rules of this module:

- A daemon runs under ``twistd`` or by itself in the foreground (``run``); both go through ``make_daemon``, log the same
  lines and end the same way.
- The first line is the version. Lines about the configuration itself, and the line that ends the process, are written
  at every ``logging.level``; all other lines obey the level (docs/protocol.md, section 7; the reference does likewise).
- An error that prevents the start, before the reactor runs or later, ends the process with one line of level ``fatal``
  and status 1. Errors that are meant for people show their message only; any other is a fault of the program, and its
  line says where it happened.
- A running daemon ends on SIGTERM or SIGINT, after its service has stopped, by that same signal: so do ``twistd`` and
  the reference. SIGUSR1 and SIGUSR2 change the log level. SIGHUP reads the configuration, and the files that it names,
  again; what cannot be used is one line of level ``error`` and changes nothing.
- systemd hears of all that, where it is systemd that started the daemon.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, runtime_checkable

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, maybeDeferred, succeed
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from notary.daemon.systemd import Notifier
from notary.errors import NotaryError
from notary.observe.bugsnag import Bugsnag, Reporter
from notary.observe.logs import LineObserver, failure_fields
from notary.observe.watchdog import Watchdog
from notary.work.reactor import Reactor

_SERVING: Final = "Serving"


class _LoggingSection(Protocol):
    @property
    def level(self) -> str: ...


class _ReportingSection(Protocol):
    @property
    def bugsnag(self) -> Bugsnag: ...


class Config(Protocol):
    """What every daemon's configuration has."""

    @property
    def reporting(self) -> _ReportingSection:
        """Where unexpected errors are reported to."""

    @property
    def logging(self) -> _LoggingSection:
        """The section that names the log level, one of ``notary.observe.logs.LEVELS``."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines about what looks like a mistake but prevents nothing."""


@runtime_checkable
class Managed(Protocol):
    """What a service may have beyond starting and stopping."""

    on_waiting: Callable[[str, float], None]
    """Called during a start that takes long, with what it waits for and the seconds until the next word, at most."""

    async def reload(self, config: Any) -> Sequence[str]:
        """Use what of a new configuration can be used at run time; return a line for each key that needs a restart.

        Raises NotaryError; then nothing has changed.
        """


@runtime_checkable
class Leading(Protocol):
    """What a service has that is made of several processes."""

    def pass_on(self, number: signal.Signals) -> None:
        """Send a signal on to all processes."""


class Daemon(Service):
    """Runs one service, reports the failure of its start, and does what signals ask for.

    ``service.startService()`` may return a Deferred; if that fails, the process ends with status 1.
    ``service.stopService()`` must work at any time after ``startService`` was called, failed starts included.

    Args:
        service: What to run.
        log: Where it logs.
        reactor: The reactor that runs it.
        twistd: Whether ``twistd`` owns the process, and so its exit status.
        load: Reads the configuration again, in a thread; raises NotaryError.
        notifier: Tells the service manager.
        reporter: What reports unexpected errors, if anything; it is stopped last.
    """

    failed = False
    """Whether the service could not start; the exit status is then 1."""

    def __init__(
        self,
        service: Service,
        log: LineObserver,
        reactor: Reactor,
        *,
        twistd: bool,
        load: Callable[[], Config],
        notifier: Notifier,
        reporter: Reporter | None = None,
    ) -> None:
        self.log = log
        self._reporter = reporter
        self._service = service
        self._reactor = reactor
        self._twistd = twistd
        self._load = load
        self._notifier = notifier
        self._starting: Deferred[object] | None = None
        self._reloading = DeferredLock()
        self._watchdog = LoopingCall(notifier.alive)
        self._watchdog.clock = reactor
        self._handlers: dict[signal.Signals, Any] = {}
        self._ending = False
        self._held = Watchdog(reactor)

    def setServiceParent(self, parent: Any) -> None:
        """Become a part of an application, and its log observer: this is how ``twistd`` gets ours."""
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.log)
        super().setServiceParent(parent)

    def startService(self) -> None:
        """Start the service and listen to signals."""
        super().startService()
        acts: Mapping[signal.Signals, Callable[[], object]] = {
            signal.SIGUSR1: partial(self._step, signal.SIGUSR1, more=True),
            signal.SIGUSR2: partial(self._step, signal.SIGUSR2, more=False),
            signal.SIGHUP: self.reload,
        }
        for number, act in acts.items():
            self._handle(number, act)
        self._handle_ends()
        self._reactor.callWhenRunning(self._held.start)
        if self._notifier.watchdog is not None:
            self._watchdog.start(self._notifier.watchdog / 2)
        if isinstance(self._service, Managed):
            self._service.on_waiting = self._notifier.starting
        self._starting = maybeDeferred(self._service.startService)
        self._starting.addCallbacks(lambda _: self._notifier.ready(_SERVING), self._start_failed)

    def stopService(self) -> Deferred[object]:
        """Stop the service, also in the middle of its start."""
        super().stopService()
        self._notifier.stopping()
        if self._starting is not None:
            self._starting.cancel()
        stopped = maybeDeferred(self._service.stopService)
        return stopped.addBoth(self._stopped)

    def _stopped(self, result: object) -> Deferred[object]:
        # Not earlier: a signal that comes while the service drains must not end the process. Nor while the process
        # ends: the handlers of before would end it another way, or stop a reactor that has stopped.
        while self._handlers and not self._ending:
            signal.signal(*self._handlers.popitem())
        if self._watchdog.running:
            self._watchdog.stop()
        self._held.stop()
        return succeed(result) if self._reporter is None else self._reporter.stop().addCallback(lambda _: result)

    def _handle(self, number: signal.Signals, act: Callable[[], object]) -> None:
        # A signal may come in the middle of writing a line: leave it to the reactor.
        before = signal.signal(number, lambda _number, _frame: self._reactor.callFromThread(act))
        self._handlers.setdefault(number, before)

    def _handle_ends(self) -> None:
        """Handle the signals that end the process, in place of Twisted, which logs a traceback if two come."""
        for number, name in ((signal.SIGTERM, "sigTerm"), (signal.SIGINT, "sigInt")):
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._handle(number, partial(self._end, number))
            # A reactor that begins to run installs this method as the handler of SIGTERM, in place of any other.
            setattr(self._reactor, name, signal.getsignal(number))

    def _end(self, number: signal.Signals) -> None:
        if getattr(self._reactor, "_exitSignal", None) is None:
            setattr(self._reactor, "_exitSignal", number)  # noqa: B010 - where twistd looks; there is no public name
        self._stop_reactor()

    def _step(self, number: signal.Signals, *, more: bool) -> None:
        self.log.step(more=more)
        if isinstance(self._service, Leading):
            self._service.pass_on(number)

    # -- reloading ----------------------------------------------------------------------------------------------------

    def reload(self) -> Deferred[None]:
        """Read the configuration and all its files again, one time after the other."""
        return self._reloading.run(lambda: Deferred.fromCoroutine(self._reload()))

    async def _reload(self) -> None:
        if not self.running:
            return
        self._notifier.reloading()
        status = _SERVING
        try:
            config = await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._load)
            lines = await self._service.reload(config) if isinstance(self._service, Managed) else ()
        except Exception as error:  # noqa: BLE001 - after any error the service goes on with what it has
            fields = {} if isinstance(error, NotaryError) else failure_fields(Failure())
            self.log.announce("error", f"Nothing was reloaded: {error}", **fields)
            status = f"{_SERVING}; the last reload failed: {error}"
        else:
            for line in (*config.warnings, *lines):
                self.log.announce("warning", line)
            self.log.level = config.logging.level
            self.log.announce("info", f"Reloaded; the log level is {self.log.level}")
        if self.running:
            self._notifier.ready(status)

    def _start_failed(self, failure: Failure) -> None:
        if isinstance(failure.value, CancelledError) and not self.running:
            return
        self.failed = True
        report(self.log, failure)
        if self._twistd:
            # twistd ends with status 0 whenever its reactor stops. It has cleaned up by the time that this runs.
            atexit.register(os._exit, 1)
        self._reactor.callWhenRunning(self._stop_reactor)

    def _stop_reactor(self) -> None:
        self._ending = True
        with suppress(ReactorNotRunning):  # somebody sent SIGTERM at the same time
            self._reactor.stop()


def report(log: LineObserver, failure: Failure) -> None:
    """Log why the daemon could not start."""
    if isinstance(failure.value, NotaryError | CannotListenError | OSError):
        log.announce("fatal", str(failure.value))
    else:
        log.announce("fatal", "Cannot start", **failure_fields(failure))
