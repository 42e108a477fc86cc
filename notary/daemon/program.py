"""The way from a command line and a configuration file to a running daemon, and from a stopped one to an exit status.

Rules of this module: a daemon runs under ``twistd`` or by itself in the foreground (:func:`run`); both go through
:func:`make_daemon`, log the same lines and end the same way. Nothing runs before the configuration is read.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import socket
from types import MappingProxyType
from typing import Any, Final, Generic, NoReturn, Protocol, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.logger import ILogObserver, LogBeginner, Logger, globalLogBeginner
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile

from notary.daemon.environment import first_environment
from notary.daemon.options import Options
from notary.daemon.reload import restart_lines
from notary.daemon.service import Config, Daemon, report
from notary.daemon.systemd import Notifier, passed_sockets
from notary.daemon.workers.parent import Address, Plan, Workers
from notary.daemon.workers.worker import Worker, join_parent
from notary.errors import ConfigError, InvalidFile
from notary.observe.bugsnag import Reporter
from notary.observe.logs import LineObserver, Stream
from notary.observe.metrics import DaemonMetrics
from notary.work.reactor import Reactor, installed_reactor


class Bootstrap(Service):
    """Sets up the database, and ends the process: what ``-bootstrap`` asks for.

    ``migrate`` does the work; it is given ``report``, which takes a line before each step.
    """

    def __init__(self, migrate: Callable[..., Awaitable[object]], backend: str, reactor: Reactor) -> None:
        self._migrate = migrate
        self._backend = backend
        self._reactor = reactor
        self._log = Logger()

    def startService(self) -> Deferred[None]:
        """Set up the database and end the process. Fails with StorageFailed or ConfigError."""
        super().startService()
        return Deferred.fromCoroutine(self._run())

    async def _run(self) -> None:
        await self._migrate(report=lambda line: self._log.info("{line}", line=line))
        self._log.info("The {backend} backend is set up", backend=self._backend)
        with suppress(ReactorNotRunning):  # a signal has come at the same time
            self._reactor.stop()


# -- from the configuration to a running service ----------------------------------------------------------------------


_Config = TypeVar("_Config", bound=Config)
_Options = TypeVar("_Options", bound=Options)


def make_daemon(
    options: Options,
    load: Callable[[str, Mapping[str, str], Path], _Config],
    build: Callable[[_Config], Service],
    reactor: Reactor,
    *,
    environ: Mapping[str, str] = os.environ,
    beginner: LogBeginner = globalLogBeginner,
    notifier: Notifier | None = None,
    files: Callable[[_Config], Mapping[str, int]] = lambda _: _OWN_FILES,
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
        files: Returns how many files a process with a configuration must be able to have open, by what they are.

    Raises:
        SystemExit: There is no such service; the reason was logged.
    """
    log = options.log = LineObserver(_stream(options.parent), options["logf"])
    log.announce("info", options.banner())
    # twistd changes the directory later.
    absolute = str(Path(options["config"]).absolute())

    def load_again() -> _Config:
        return _loaded(load, absolute, environ)

    try:
        config = _loaded(load, options["config"], environ)
        for warning in config.warnings:
            log.announce("warning", warning)
        few = _few_files(files(config))
        if few:
            log.announce("warning", few)
        log.level = config.logging.level
        reporter = Reporter(config.reporting.bugsnag, options.program, options.version, reactor)
        log.on_failure = reporter.report
        service = build(config)
    except Exception as error:  # noqa: BLE001 - any error prevents the start
        beginner.beginLoggingTo([_observer(log)], redirectStandardIO=False)  # writes what build() logged
        report(log, Failure(error))
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


def _loaded(load: Callable[[str, Mapping[str, str], Path], _Config], path: str, environ: Mapping[str, str]) -> _Config:
    """Return the configuration in this file. Raises ConfigError."""
    if not path:
        raise ConfigError("-config: missing; expected -config=FILE, the configuration file (see docs/configuration.md)")
    try:
        return load(Path(path).read_text("utf-8"), environ, Path(path).absolute().parent)
    except OSError as error:
        raise ConfigError(f"-config: {path!r} cannot be read ({error.strerror}); expected a JSON file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"-config: {path!r} is not UTF-8; expected a JSON file") from None
    except InvalidFile as error:
        raise ConfigError(f"-config: {path}: {error}") from None


_OWN_FILES: Final[Mapping[str, int]] = MappingProxyType({"of its own": 32})
"""The open files of a process that serves nobody, about twice as many as were counted."""
_FILES_OF_WORKER: Final = 4
"""The open files of a parent for one worker."""


def _few_files(needed: Mapping[str, int]) -> str:
    """Return a warning if this process may open fewer files than are needed, each connection being one; else ""."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = sum(needed.values())
    if limit == resource.RLIM_INFINITY or limit >= least:
        return ""
    parts = ", ".join(f"{number} {what}" for what, number in needed.items())
    return (
        f"RLIMIT_NOFILE: {limit} files may be open at a time, and {least} are needed ({parts}); beyond it, connections "
        f"are refused; raise it to at least {least} (LimitNOFILE= of systemd, ulimit -n)"
    )


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
    reactor = installed_reactor()
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


# -- a whole program --------------------------------------------------------------------------------------------------

_PARENT_KEYS: Final = ("server.workers", "server.drain_timeout", "debug")
"""The keys, beside the address, that a parent of workers reads once: a change of them needs a restart."""


class _ServerSection(Protocol):
    @property
    def workers(self) -> int: ...

    @property
    def drain_timeout(self) -> float: ...


class _StorageSection(Protocol):
    @property
    def backend(self) -> str: ...

    @property
    def connections(self) -> int: ...


class ProgramConfig(Config, Protocol):
    """What the configuration of a :class:`Program` has."""

    @property
    def server(self) -> _ServerSection:
        """The section that says how many workers there are (0: one a processor), and how long each may drain."""

    @property
    def storage(self) -> _StorageSection:
        """The section that names the storage backend."""

    @property
    def debug(self) -> Address | None:
        """Where the debug server listens; None for nowhere."""


C = TypeVar("C", bound=ProgramConfig)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a service of one process is given beside its configuration.

    Args:
        reactor: The reactor that runs it.
        sockets: The sockets that were passed to this process; they listen already.
        logs_info: Whether log lines of level info are written.
        worker: The way to the parent, if this process is a worker.
    """

    reactor: Reactor
    sockets: Sequence[socket] = ()
    logs_info: Callable[[], bool] = lambda: True
    worker: Worker | None = None


def _nothing(_options: Options) -> None:
    """Do nothing before the configuration is read."""


@dataclass(frozen=True, kw_only=True)
class Program(Generic[C]):
    """One daemon program: under ``twistd`` (``make_service``) or as a console script (``main``).

    Args:
        module: The module whose ``main`` starts a worker.
        options: Parses the command line.
        prefix: What the names of the program's variables begin with: "NOTARY_SERVER_".
        metrics_prefix: What the names of the program's metrics begin with: "notary_server_".
        load: Reads a configuration from (text, environment, directory of the file); raises ConfigError.
        with_debug: Returns the configuration with a debug server, as the flag ``-debug`` asks for.
        build: Makes the service of one process.
        migrate: Returns what sets up the database of a configuration: see :class:`Bootstrap`.
        address: Returns where a configuration says to listen.
        address_key: The key of that address.
        differences: Returns the keys in which two configurations differ.
        clients: How many connections of clients one process must be able to hold.
        before_load: Called with the flags each time before the configuration is read.
    """

    module: str
    options: type[Options]
    prefix: str
    metrics_prefix: str
    load: Callable[[str, Mapping[str, str], Path], C]
    with_debug: Callable[[C], C]
    build: Callable[[C, Surroundings], Service]
    migrate: Callable[[C, Reactor], Callable[..., Awaitable[object]]]
    address: Callable[[C], Address]
    address_key: str
    differences: Callable[[C, C], Iterable[str]]
    clients: int
    before_load: Callable[[Options], None] = _nothing

    def make_service(self, options: Options, first: Mapping[str, str] | None = None) -> Daemon:
        """Return the daemon of a command line: the body of the ``twistd`` plugin.

        ``first`` is the environment that the process was started with, if the caller has read it already.
        """
        reactor = installed_reactor()
        environ = first_environment() if first is None else first
        worker = join_parent(environ, reactor)

        def load(text: str, variables: Mapping[str, str], directory: Path) -> C:
            self.before_load(options)
            config = self.load(text, variables, directory)
            return self.with_debug(config) if options["debug"] and config.debug is None else config

        def build(config: C) -> Service:
            if options["bootstrap"]:
                return Bootstrap(self.migrate(config, reactor), config.storage.backend, reactor)
            sockets = passed_sockets(environ)
            if config.server.workers != 1:
                return self._parent(config, options, reactor, sockets)
            logs_info = partial(options.log.writes, "info")
            return self.build(
                config, Surroundings(reactor=reactor, sockets=sockets, logs_info=logs_info, worker=worker)
            )

        surroundings = {} if worker is None else worker.surroundings
        return make_daemon(options, load, build, reactor, files=self._files, **surroundings)

    def main(self, first: Mapping[str, str] | None = None) -> NoReturn:
        """Run the daemon in the foreground: the console script. ``first`` is that of ``make_service``."""
        run(self.options, partial(self.make_service, first=first))

    def _files(self, config: C) -> Mapping[str, int]:
        """How many files a process must be able to have open, by what they are. A parent is one of its processes."""
        workers = config.server.workers
        return {
            **_OWN_FILES,
            **({} if workers == 1 else {"for workers": _FILES_OF_WORKER * workers}),
            "to the database (storage.connections)": config.storage.connections,
            "of clients": self.clients,
        }

    def _parent(self, config: C, options: Options, reactor: Reactor, sockets: Sequence[socket]) -> Workers:
        """The parent of several processes, each of which runs the service of ``build``."""
        keys = {self.address_key, *_PARENT_KEYS}
        plan = Plan(
            program=self.module,
            options=options,
            single_process_variable=self.prefix + "SERVER_WORKERS",
            count=config.server.workers,
            address=self.address(config),
            address_key=self.address_key,
            drain_seconds=config.server.drain_timeout,
            debug=config.debug,
            check=lambda new: self.build(new, Surroundings(reactor=reactor)),
            changed=lambda new: restart_lines([key for key in self.differences(config, new) if key in keys], ()),
        )
        return Workers(plan, reactor, sockets, DaemonMetrics(self.metrics_prefix, options.version))
