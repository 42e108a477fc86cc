"""What both daemons share: flags, the way from a configuration file to a running service, signals, the exit status.

Rules of this module:

- A daemon runs under ``twistd`` or by itself in the foreground (``run``); both go through ``make_daemon``, log the same
  lines and end the same way.
- The first line is the version. Lines about the configuration itself, and the line that ends the process, are written
  whatever ``logging.level`` says; all others obey it (docs/protocol.md, section 7; the reference does likewise).
- Whatever prevents the start, be it before the reactor runs or later, ends the process with one line of level ``fatal``
  and status 1. Errors that are meant for people show their message only; any other is a fault of the program, and its
  line says where it happened.
- A running daemon ends on SIGTERM or SIGINT, after its service has stopped, by that same signal: so do ``twistd`` and
  the reference. SIGUSR1 and SIGUSR2 change the log level. SIGHUP reads the configuration, and the files that it names,
  again; what cannot be used is one line of level ``error`` and changes nothing.
- systemd hears of all that, where it is systemd that started the daemon.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn, Protocol, TypeVar, runtime_checkable

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, maybeDeferred, succeed
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver, LogBeginner, globalLogBeginner
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile

from notary.errors import ConfigError, NotaryError
from notary.net.logs import LineObserver, Stream, failure_fields
from notary.net.reporting import Bugsnag, Reporter
from notary.net.systemd import Notifier
from notary.net.watchdog import Watchdog

# -- flags ------------------------------------------------------------------------------------------------------------

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


def git_commit(repository: Path) -> str:
    """Return the commit that a Git working tree is at, shortened, or "unknown" if this is no working tree."""
    git = repository / ".git"
    try:
        head = (git / "HEAD").read_text("utf-8")
        branch = re.match(r"ref: (.*)", head)
        if branch is not None:
            loose = git / branch[1]
            head = loose.read_text("utf-8") if loose.exists() else _packed(git, branch[1])
    except OSError:
        return "unknown"
    return head[:8] or "unknown"


def _packed(git: Path, branch: str) -> str:
    lines = (git / "packed-refs").read_text("utf-8").splitlines()
    return next((line for line in lines if line.endswith(f" {branch}")), "")


class Options(usage.Options):
    """The flags of a daemon, for ``twistd`` and for the console script.

    As Go's flags, those of the reference, each takes one dash or two, and its value after "=" or as the next argument.
    A subclass says what the program is. A command line that cannot be understood ends the process with one line on
    standard error and status 1.
    """

    program: ClassVar[str]
    """The name of the program: "notary-server"."""

    version: ClassVar[str]
    """The version of the program."""

    commit: ClassVar[str] = git_commit(Path(__file__).resolve().parents[2])
    """The Git commit that it was built from."""

    log: LineObserver
    """Where the daemon logs, once ``make_daemon`` has been called."""

    optParameters: ClassVar = [
        ["config", None, "", "The configuration file, JSON; docs/configuration.md lists its keys."],
        ["logf", None, "json", "The format of the log: json or logfmt."],
    ]
    optFlags: ClassVar = [
        ["debug", None, "Serve profiles and variables on localhost:8080."],
        ["bootstrap", None, "Set up the storage backend, then exit."],
    ]

    def banner(self) -> str:
        """Return the first line of the log, which is also what ``-version`` prints after the program's name."""
        return f"Version: {self.version}, Git commit: {self.commit}"

    def opt_version(self) -> None:
        """Print the version and exit."""
        sys.stdout.write(f"{self.program} {self.banner()}\n")
        sys.exit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse the command line, by default that of the process."""
        try:
            super().parseOptions(_long_options(sys.argv[1:] if options is None else options))
        except usage.UsageError as error:
            # twistd would print its own help, all of it, and lose the one line that matters.
            sys.exit(f"{self.program}: {error}; see {self.program} --help")

    def parseArgs(self, *arguments: str) -> None:
        """Refuse arguments that belong to no flag."""
        if arguments:
            raise usage.UsageError(f'"{arguments[0]}" belongs to no flag; expected -config=FILE')

    def postOptions(self) -> None:
        """Check the values of flags."""
        if self["logf"] not in ("json", "logfmt"):
            raise usage.UsageError(f'-logf: "{self["logf"]}" is not a format; expected json or logfmt')


_FLAGS = frozenset({"bootstrap", "debug", "help", "version"})
_PARAMETERS = frozenset({"config", "logf"})


def _long_options(arguments: Sequence[str]) -> list[str]:
    """Rewrite Go's flags for getopt: ``-config=x`` and ``-config x`` to two dashes, ``-debug=true`` to ``--debug``."""
    rest = list(arguments)
    result: list[str] = []
    while rest:
        match = re.fullmatch(r"--?([^-=][^=]*)(?:=(.*))?", rest[0], re.DOTALL)
        if match is None:
            break
        del rest[0]
        name, value = ("help" if match[1] == "h" else match[1]), match[2]
        if name in _FLAGS and value is not None:
            if value not in _TRUE | _FALSE:
                raise usage.UsageError(f'-{name}: "{value}" is not a boolean; expected true or false')
            result = [each for each in result if each != f"--{name}"]
            if value in _FALSE:
                continue
            value = None
        result.append(f"--{name}" if value is None else f"--{name}={value}")
        if name in _PARAMETERS and value is None:
            result += rest[:1]
            del rest[:1]
    return result + rest


# -- from the configuration to a running service ----------------------------------------------------------------------


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
        """The section that names the log level, one of ``notary.net.logs.LEVELS``."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines about what looks like a mistake but prevents nothing."""


_Config = TypeVar("_Config", bound=Config)
_SERVING: Final = "Serving"
_Options = TypeVar("_Options", bound=Options)


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
        """Tell them of a signal."""


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
        reactor: Any,
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
            # A reactor that begins to run installs this method as the handler of SIGTERM, whatever there was.
            setattr(self._reactor, name, signal.getsignal(number))

    def _end(self, number: signal.Signals) -> None:
        if getattr(self._reactor, "_exitSignal", None) is None:
            self._reactor._exitSignal = number  # noqa: SLF001 - where twistd looks; there is no public name
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
        except Exception as error:  # noqa: BLE001 - whatever it is, the service goes on with what it has
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
        _report(self.log, failure)
        if self._twistd:
            # twistd ends with status 0 whenever its reactor stops. It has cleaned up by the time that this runs.
            atexit.register(os._exit, 1)
        self._reactor.callWhenRunning(self._stop_reactor)

    def _stop_reactor(self) -> None:
        self._ending = True
        with suppress(ReactorNotRunning):  # somebody sent SIGTERM at the same time
            self._reactor.stop()


def make_daemon(
    options: Options,
    load: Callable[[str, Mapping[str, str], Path], _Config],
    build: Callable[[_Config], Service],
    reactor: Any,
    *,
    environ: Mapping[str, str] = os.environ,
    beginner: LogBeginner = globalLogBeginner,
    notifier: Notifier | None = None,
) -> Daemon:
    """Read the configuration and build the service: the body of a ``makeService``.

    Args:
        options: The parsed flags.
        load: Reads a configuration from (text, environment, directory of the file); raises ConfigError.
        build: Makes the service from the configuration. It opens no port: that is for ``startService``.
        reactor: The reactor that will run the service.
        environ: The environment.
        beginner: What holds log lines back until logging begins.
        notifier: What tells the service manager, if that is not systemd.

    Raises:
        SystemExit: There is no such service; the reason was logged.
    """
    log = options.log = LineObserver(_stream(options.parent), options["logf"])
    log.announce("info", options.banner())
    # twistd changes the directory later.
    absolute = str(Path(options["config"]).absolute())

    def load_again() -> _Config:
        return load(*_read(absolute, environ))

    try:
        config = load(*_read(options["config"], environ))
        for warning in config.warnings:
            log.announce("warning", warning)
        log.level = config.logging.level
        reporter = Reporter(config.reporting.bugsnag, options.program, options.version, reactor)
        log.on_failure = reporter.report
        service = build(config)
    except Exception as error:  # noqa: BLE001 - whatever it is, it prevents the start
        beginner.beginLoggingTo([_observer(log)], redirectStandardIO=False)  # writes what build() logged
        _report(log, Failure(error))
        # A daemon that was to log to a file still has somebody at the terminal.
        raise SystemExit(1 if options.parent is None or _foreground(options.parent) else str(error)) from None
    return Daemon(
        service,
        log,
        reactor,
        twistd=options.parent is not None,
        load=load_again,
        notifier=notifier or Notifier(environ),
        reporter=reporter,
    )


def _read(path: str, environ: Mapping[str, str]) -> tuple[str, Mapping[str, str], Path]:
    if not path:
        raise ConfigError("-config: missing; expected -config=FILE, the configuration file (see docs/configuration.md)")
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"-config: {path!r} cannot be read ({error.strerror}); expected a JSON file") from None
    except ValueError:
        raise ConfigError(f"-config: {path!r} is not UTF-8; expected a JSON file") from None
    return text, environ, Path(path).absolute().parent


def _report(log: LineObserver, failure: Failure) -> None:
    """Write the last line."""
    if isinstance(failure.value, NotaryError | CannotListenError | OSError):
        log.announce("fatal", str(failure.value))
    else:
        log.announce("fatal", "Cannot start", **failure_fields(failure))


def _observer(log: LineObserver) -> ILogObserver:
    observer: Any = log  # mypy does not see what @implementer says
    return observer  # type: ignore[no-any-return]


def _foreground(twistd: Mapping[str, Any]) -> bool:
    return bool(twistd["nodaemon"]) and not twistd["logfile"]


def _stream(twistd: Mapping[str, Any] | None) -> Stream:
    """Standard error, as the reference, or the log file that ``twistd`` was told, or would choose by itself."""
    if twistd is None or _foreground(twistd):
        return sys.stderr
    if twistd["logfile"] == "-":
        return sys.stdout
    try:
        return LogFile.fromFullPath(twistd["logfile"] or "twistd.log")  # type: ignore[no-any-return]
    except OSError as error:
        sys.exit(f"--logfile: {error}")


def run(options_class: type[_Options], make_service: Callable[[_Options], Daemon]) -> NoReturn:
    """Be the console script: run the daemon in the foreground until a signal ends it.

    Args:
        options_class: Parses the command line.
        make_service: The ``makeService`` of the same daemon's ``twistd`` plugin.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    options = options_class()
    options.parseOptions()
    daemon = make_service(options)
    globalLogBeginner.beginLoggingTo([_observer(daemon.log)])
    # What has been loaded stays: the collector would look through all of it again and again.
    gc.collect()
    gc.freeze()
    daemon.startService()
    reactor.addSystemEventTrigger("before", "shutdown", daemon.stopService)
    reactor.run()
    if daemon.failed:
        sys.exit(1)
    number = getattr(reactor, "_exitSignal", None)  # what twistd uses; there is no public name
    if number is not None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(0)
