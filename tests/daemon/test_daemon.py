"""What daemons share: flags, start and failure in one process, and whole processes with twistd and without."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.application.service import Application, Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogBeginner, Logger, LogPublisher
from twisted.python.failure import Failure

from notary.daemon import options, program
from notary.daemon.service import Daemon
from notary.daemon.systemd import Notifier
from notary.errors import ConfigError, StorageFailed
from notary.observe.logs import LineObserver
from tests.support import toy_tap
from tests.support.toy_tap import Options

REPOSITORY = Path(__file__).parents[2]


# -- flags ------------------------------------------------------------------------------------------------------------


def parse(*arguments: str) -> dict[str, Any]:
    options = Options()
    options.parseOptions(arguments)
    return {name: options[name] for name in ("config", "logf", "debug", "bootstrap")}


DEFAULTS = {"config": "", "logf": "json", "debug": 0, "bootstrap": 0}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param([], {}, id="none"),
        pytest.param(["--config", "x"], {"config": "x"}, id="two dashes"),
        pytest.param(["--config=x"], {"config": "x"}, id="two dashes and ="),
        pytest.param(["-config", "x"], {"config": "x"}, id="one dash"),
        pytest.param(["-config=x"], {"config": "x"}, id="one dash and ="),
        pytest.param(["-config=a=b"], {"config": "a=b"}, id="= in the value"),
        pytest.param(["-config", "-x"], {"config": "-x"}, id="dash in the value"),
        pytest.param(["-config", "a", "-config", "b"], {"config": "b"}, id="twice"),
        pytest.param(["-logf", "logfmt", "-debug"], {"logf": "logfmt", "debug": 1}, id="several"),
        pytest.param(["-debug=true", "--bootstrap=1"], {"debug": 1, "bootstrap": 1}, id="true"),
        pytest.param(["-debug=f", "-bootstrap=False"], {}, id="false"),
        pytest.param(["-debug", "-debug=false"], {}, id="the last one counts"),
        pytest.param(["-debug", "--"], {"debug": 1}, id="end of flags"),
    ],
)
def test_flags(arguments: list[str], expected: dict[str, Any]) -> None:
    assert parse(*arguments) == DEFAULTS | expected


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(["-foo"], "--foo", id="unknown"),
        pytest.param(["-config"], "--config", id="no value"),
        pytest.param(["-logf=xml"], '"xml"', id="format"),
        pytest.param(["-debug=maybe"], '"maybe"', id="boolean"),
        pytest.param(["serve"], '"serve"', id="argument"),
        pytest.param(["-"], '"-"', id="dash"),
    ],
)
def test_bad_flags(arguments: list[str], named: str) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    message = str(caught.value.code)  # Python prints it on standard error and ends with status 1
    assert message.startswith("toy: ")
    assert named in message
    assert "\n" not in message


@pytest.mark.parametrize("flag", ["-version", "--version", "-version=true"])
def test_version(flag: str) -> None:
    with redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as caught:
        parse(flag)
    assert out.getvalue() == "toy Version: 1.2.3, Git commit: 0123abcd\n"
    assert not caught.value.code


@pytest.mark.parametrize("flag", ["-h", "-help", "--help"])
def test_help(flag: str) -> None:
    with redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as caught:
        parse(flag)
    assert "--config=" in out.getvalue()
    assert not caught.value.code


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, "unknown", id="no repository"),
        pytest.param({"../notary/commit.txt": COMMIT + "\n"}, "01234567", id="installed from a wheel"),
        pytest.param({"HEAD": COMMIT}, COMMIT[:8], id="detached"),
        pytest.param({"HEAD": "ref: refs/heads/a\n", "refs/heads/a": COMMIT}, COMMIT[:8], id="branch"),
        pytest.param(
            {"HEAD": "ref: refs/heads/a\n", "packed-refs": f"# pack\n{'f' * 40} refs/heads/b\n{COMMIT} refs/heads/a\n"},
            COMMIT[:8],
            id="packed",
        ),
        pytest.param({"HEAD": "ref: refs/heads/a\n", "packed-refs": "# pack\n"}, "unknown", id="no commit yet"),
    ],
)
def test_git_commit(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    for name, text in files.items():
        path = tmp_path / ".git" / name if not name.startswith("../") else tmp_path / name[3:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert options.git_commit(tmp_path) == expected


# -- in this process --------------------------------------------------------------------------------------------------

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A daemon that ends its process leaves its handlers in place."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Threads:
    """Works at once."""

    def callInThreadWithCallback(self, done: Callable[[bool, object], None], work: Callable[[], object]) -> None:
        try:
            result: object = work()
        except Exception:  # noqa: BLE001 - as a thread pool does
            done(False, Failure())
        else:
            done(True, result)


class Reactor(Clock):
    """A clock that can be stopped, once."""

    stopped = False
    _exitSignal = None
    sigTerm = sigInt = None

    def getThreadPool(self) -> Threads:
        return Threads()

    def callWhenRunning(self, function: Callable[[], object]) -> None:
        self.callLater(0, function)

    def callFromThread(self, function: Callable[..., object], *args: object, **kwargs: object) -> None:
        self.callLater(0, function, *args, **kwargs)

    def stop(self) -> None:
        if self.stopped:
            raise ReactorNotRunning
        self.stopped = True


class Startable(Service):
    """A service whose start is in the hands of the test."""

    def __init__(self) -> None:
        self.started: Deferred[None] = Deferred()
        self.stops = 0

    def startService(self) -> Deferred[None]:
        super().startService()
        return self.started

    def stopService(self) -> None:
        super().stopService()
        self.stops += 1


class Telling(Notifier):
    """Remembers what it was told."""

    def __init__(self, watchdog: float | None = None) -> None:
        super().__init__({})
        self.watchdog = watchdog
        self.told: list[str] = []

    def _send(self, *lines: str) -> None:
        self.told.append(lines[0] if lines[0].startswith("EXTEND") else lines[0].removesuffix("=1"))


class Running:
    """A daemon with its stream; ``config`` is what its file says, or the error that reading it raises."""

    def __init__(self, service: Service, *, watchdog: float | None = None) -> None:
        self.config: toy_tap.Config | Exception = toy_tap.Config("ok", toy_tap.Logging("error"), ())
        self.told = Telling(watchdog)
        self.stream = io.StringIO()
        self.reactor = Reactor()
        self.log = LineObserver(self.stream, level="error")
        self.daemon = Daemon(service, self.log, self.reactor, twistd=False, load=self.load, notifier=self.told)

    def load(self) -> toy_tap.Config:
        if isinstance(self.config, Exception):
            raise self.config
        return self.config

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest_twisted.ensureDeferred
async def test_start_and_stop() -> None:
    service = Startable()
    running = Running(service)
    running.daemon.startService()
    service.started.callback(None)
    assert service.running
    await running.daemon.stopService()
    assert service.stops == 1
    assert (running.lines, running.daemon.failed, running.reactor.stopped) == ([], False, False)


@pytest_twisted.ensureDeferred
async def test_a_start_that_fails_stops_the_reactor() -> None:
    service = Startable()
    running = Running(service)
    running.daemon.startService()
    service.started.errback(StorageFailed("the store is away"))
    running.reactor.advance(0)
    assert running.reactor.stopped
    assert running.daemon.failed
    (line,) = running.lines
    assert (line["level"], line["msg"]) == ("fatal", "the store is away")
    await running.daemon.stopService()
    assert service.stops == 1


@pytest_twisted.ensureDeferred
async def test_a_start_that_fails_while_the_reactor_stops() -> None:
    service = Startable()
    running = Running(service)
    running.daemon.startService()
    running.reactor.stop()
    service.started.errback(OSError(98, "Address already in use"))
    running.reactor.advance(0)
    assert "Address already in use" in running.lines[0]["msg"]
    await running.daemon.stopService()


@pytest_twisted.ensureDeferred
async def test_stopping_cancels_a_start() -> None:
    service = Startable()
    running = Running(service)
    running.daemon.startService()
    await running.daemon.stopService()
    assert service.stops == 1
    assert (running.lines, running.daemon.failed) == ([], False)


@pytest_twisted.ensureDeferred
async def test_signals_change_the_level_while_it_runs() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)]
    running = Running(Service())
    running.daemon.startService()
    for number, expected in ((signal.SIGUSR1, "warning"), (signal.SIGUSR1, "info"), (signal.SIGUSR2, "warning")):
        signal.raise_signal(number)
        running.reactor.advance(0)
        assert running.log.level == expected
    await running.daemon.stopService()
    assert [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)] == before


class Reloadable(Service):
    """A service whose reloads are in the hands of the test."""

    def __init__(self) -> None:
        self.configs: list[toy_tap.Config] = []
        self.reloads: list[Deferred[list[str]]] = []
        self.on_waiting: Callable[[str, float], None] = lambda *_: None

    async def reload(self, config: toy_tap.Config) -> list[str]:
        self.configs.append(config)
        self.reloads.append(Deferred())
        return await self.reloads[-1]


HANGUP = signal.SIGHUP


@pytest_twisted.ensureDeferred
async def test_a_signal_reloads() -> None:
    before = signal.getsignal(HANGUP)
    service = Reloadable()
    running = Running(service)
    running.daemon.startService()
    running.config = toy_tap.Config("ok", toy_tap.Logging("warning"), ("a: unknown key",))
    signal.raise_signal(HANGUP)
    running.reactor.advance(0)
    running.reactor.advance(0)
    assert service.configs == [running.config]
    assert running.log.level == "error", "not before the service has it"
    assert running.told.told == ["READY", "RELOADING"]
    service.reloads[0].callback(["b: needs a restart"])
    assert [(line["level"], line["msg"]) for line in running.lines] == [
        ("warning", "a: unknown key"),
        ("warning", "b: needs a restart"),
        ("info", "Reloaded; the log level is warning"),
    ]
    assert running.told.told == ["READY", "RELOADING", "READY"]
    await running.daemon.stopService()
    assert signal.getsignal(HANGUP) == before
    assert running.told.told[-1] == "STOPPING"


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        pytest.param(ConfigError("server.tls_key_file: not the key"), set(), id="bad-file"),
        pytest.param(KeyError("a fault"), {"error", "traceback"}, id="fault"),
    ],
)
@pytest.mark.parametrize("who", ["the configuration", "the service"])
@pytest_twisted.ensureDeferred
async def test_a_reload_that_fails_is_one_line_and_changes_nothing(error: Exception, fields: set, who: str) -> None:
    service = Reloadable()
    running = Running(service)
    running.daemon.startService()
    running.config = error if who == "the configuration" else toy_tap.Config("ok", toy_tap.Logging("debug"), ("a",))
    signal.raise_signal(HANGUP)
    running.reactor.advance(0)
    running.reactor.advance(0)
    for reload in service.reloads:
        reload.errback(error)
    (line,) = running.lines
    assert (line["level"], line["msg"]) == ("error", f"Nothing was reloaded: {error}")
    assert fields <= set(line)
    assert running.log.level == "error"
    assert running.told.told == ["READY", "RELOADING", "READY"]
    await running.daemon.stopService()


@pytest_twisted.ensureDeferred
async def test_reloads_come_one_after_the_other() -> None:
    service = Reloadable()
    running = Running(service)
    running.daemon.startService()
    for _ in range(3):
        signal.raise_signal(HANGUP)
    for number in range(3):
        running.reactor.advance(0)
        running.reactor.advance(0)
        assert len(service.reloads) == number + 1
        service.reloads[number].callback([])
    await running.daemon.stopService()


@pytest_twisted.ensureDeferred
async def test_signs_of_life_come_twice_as_often_as_they_must() -> None:
    running = Running(Service(), watchdog=4)
    running.daemon.startService()
    running.reactor.pump([1] * 8)
    assert running.told.told.count("WATCHDOG") == 5
    await running.daemon.stopService()
    assert not [call for call in running.reactor.getDelayedCalls() if call.func.__qualname__.startswith("LoopingCall")]


@pytest_twisted.ensureDeferred
async def test_what_a_start_waits_for_is_told() -> None:
    service = Reloadable()
    running = Running(service)
    running.daemon.startService()
    service.on_waiting("Waiting for the database: away", 90.0)
    assert running.told.told[-1] == "EXTEND_TIMEOUT_USEC=90000000"
    await running.daemon.stopService()


@pytest_twisted.ensureDeferred
async def test_a_signal_ends_it_once_however_often_it_comes() -> None:
    running = Running(Service())
    running.daemon.startService()
    running.reactor.advance(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
        running.reactor.advance(0)
    assert running.reactor.stopped
    assert running.reactor._exitSignal == signal.SIGTERM
    await running.daemon.stopService()
    # The process still has to clean up: neither its end nor its status is another because of what comes now.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.raise_signal(number)
        running.reactor.advance(0)
    assert running.reactor._exitSignal == signal.SIGTERM
    assert running.lines == []


@pytest_twisted.ensureDeferred
async def test_a_service_that_stops_while_its_reactor_goes_on_gives_the_signals_back() -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    running = Running(Service())
    running.daemon.startService()
    assert [signal.getsignal(number) for number in HANDLED] != before
    await running.daemon.stopService()
    assert [signal.getsignal(number) for number in HANDLED] == before


@pytest_twisted.ensureDeferred
async def test_signals_that_come_before_the_reactor_runs_and_while_it_takes_over_the_signals_end_it_once() -> None:
    running = Running(Service())
    running.daemon.startService()
    signal.raise_signal(signal.SIGTERM)
    # What a reactor does that begins to run; in this moment its own handlers would each stop it.
    signal.signal(signal.SIGTERM, running.reactor.sigTerm)
    signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGINT, running.reactor.sigInt)
    signal.raise_signal(signal.SIGINT)
    running.reactor.advance(0)
    assert running.reactor.stopped
    assert running.reactor._exitSignal == signal.SIGTERM
    await running.daemon.stopService()


@pytest_twisted.ensureDeferred
async def test_stopping_what_never_started() -> None:
    await Running(Service()).daemon.stopService()


def test_an_application_gets_the_observer() -> None:
    running = Running(Service())
    application = Application("toy")
    running.daemon.setServiceParent(application)
    assert ILogObserver(application) is running.log


def make(
    tmp_path: Path,
    members: dict[str, Any] | None,
    *flags: str,
    build: Callable[[toy_tap.Config], Service] | None = None,
) -> tuple[Daemon, list[dict[str, Any]], list[Any]]:
    """Make a daemon with logging of its own; give what it wrote, and a list that grows with what it writes later."""
    path = tmp_path / "toy.json"
    if members is not None:
        path.write_text(json.dumps(members))
    publisher = LogPublisher()
    beginner = LogBeginner(publisher, io.StringIO(), SimpleNamespace(), warnings)
    options = Options()
    options.parseOptions([f"-config={path}", *flags])

    def default(config: toy_tap.Config) -> Service:
        Logger(namespace="notary.toy", observer=publisher).info("Toy built")
        if config.mode == "bug":
            raise KeyError(config.mode)
        return Service()

    stream = io.StringIO()
    code: list[Any] = []
    made = None
    shown = warnings.showwarning
    with redirect_stderr(stream):
        try:
            made = program.make_daemon(
                options, toy_tap.load, build or default, Reactor(), environ={"TOY_VARIABLE": "x"}, beginner=beginner
            )
        except SystemExit as end:
            code.append(end.code)
        finally:
            warnings.showwarning = shown
    return made, [json.loads(line) for line in stream.getvalue().splitlines()], code  # type: ignore[return-value]


def test_the_version_comes_first_and_then_warnings_whatever_the_level(tmp_path: Path) -> None:
    made, lines, _ = make(tmp_path, {"mode": "ok", "level": "panic", "warnings": ["a: unknown key"]})
    assert [(line["level"], line["msg"]) for line in lines] == [
        ("info", "Version: 1.2.3, Git commit: 0123abcd"),
        ("warning", "a: unknown key"),
    ]
    assert made.log.level == "panic"


def test_the_directory_of_the_file_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    _, lines, _ = make(Path(), None)
    assert f"in {tmp_path.name} or in x" in lines[-1]["msg"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        pytest.param(None, "No such file", id="missing"),
        pytest.param(b'{"a": "\xe9"}', "not UTF-8", id="Latin-1"),
        pytest.param(b"{}", "mode: missing", id="bad value"),
    ],
)
def test_a_bad_configuration_is_one_fatal_line(tmp_path: Path, content: bytes | None, named: str) -> None:
    if content is not None:
        (tmp_path / "toy.json").write_bytes(content)
    _, lines, code = make(tmp_path, None)
    assert code == [1]
    assert [line["level"] for line in lines] == ["info", "fatal"]
    assert named in lines[-1]["msg"]
    assert "error" not in lines[-1]


def test_a_missing_flag_says_what_to_do(tmp_path: Path) -> None:
    _, lines, code = make(tmp_path, None, "-config=")
    assert code == [1]
    assert "-config=FILE" in lines[-1]["msg"]


def test_a_fault_while_building_is_one_line_that_says_where(tmp_path: Path) -> None:
    _, lines, code = make(tmp_path, {"mode": "bug"})
    assert code == [1]
    assert [(line["level"], line["msg"]) for line in lines[1:]] == [("info", "Toy built"), ("fatal", "Cannot start")]
    assert lines[-1]["error"] == "KeyError: 'bug'"
    assert "test_daemon.py" in lines[-1]["traceback"]


# -- whole processes --------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a twistd plugin for the toy."""
    plugins = tmp_path / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "toy_plugin.py").write_text(
        "from twisted.application.service import ServiceMaker\n"
        'toy = ServiceMaker("Toy", "tests.support.toy_tap", "A toy", "toy")\n'
    )
    return tmp_path


CONSOLE = ("-m", "tests.support.toy_tap")
TWISTD = ("-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=", "toy")
both = pytest.mark.parametrize("command", [CONSOLE, TWISTD], ids=["console", "twistd"])


def start(place: Path, command: tuple[str, ...], mode: str, *flags: str, level: str = "info") -> subprocess.Popen[str]:
    (place / "toy.json").write_text(json.dumps({"mode": mode, "level": level}))
    return subprocess.Popen(
        [sys.executable, *command, "-config=toy.json", *flags],
        cwd=place,
        env={**os.environ, "PYTHONPATH": f"{place}{os.pathsep}{REPOSITORY}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to end after the test, also if it fails."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def next_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stderr is not None
    line: dict[str, Any] = json.loads(process.stderr.readline())
    return line


@both
def test_a_life(place: Path, ended: list[subprocess.Popen[str]], command: tuple[str, ...]) -> None:
    process = start(place, command, "ok", level="debug")
    ended.append(process)
    line = next_line(process)
    seen = [line]
    while "started" not in line["msg"]:
        line = next_line(process)
        seen.append(line)
    assert [each["msg"] for each in seen if each["level"] == "info"] == [
        "Version: 1.2.3, Git commit: 0123abcd",
        "Toy built",
        f"Toy of process {process.pid} started",
    ]
    assert any("Starting factory" in each["msg"] for each in seen)
    while line["msg"] != "printed by a library":
        line = next_line(process)
    assert line["level"] == "debug"
    process.send_signal(signal.SIGUSR2)
    while not line["msg"].startswith("The log level is"):
        line = next_line(process)
    assert "info" in line["msg"]
    process.send_signal(signal.SIGUSR1)
    while "debug" not in line["msg"]:
        line = next_line(process)
    process.send_signal(signal.SIGTERM)
    out, rest = process.communicate(timeout=30)
    assert "Toy stopped" in [json.loads(each)["msg"] for each in rest.splitlines()]
    assert out == ""
    assert process.returncode == -signal.SIGTERM


@both
@pytest.mark.parametrize(
    ("mode", "message"),
    [
        pytest.param("cannot be built", 'mode: "cannot be built" cannot be used; expected another', id="makeService"),
        pytest.param("fails at once", "the store is away", id="at once"),
        pytest.param("fails later", "the store went away", id="later"),
    ],
)
def test_failures_end_with_one_line_and_status_1(
    place: Path, ended: list[subprocess.Popen[str]], command: tuple[str, ...], mode: str, message: str
) -> None:
    process = start(place, command, mode, "-logf", "logfmt", level="error")
    ended.append(process)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert out == ""
    lines = [line for line in err.splitlines() if " level=info " not in line]
    assert len(lines) == 1
    assert re.match(r'time="[^"]+Z" level=fatal msg=', lines[0])
    assert json.dumps(message) in lines[0]
    assert sorted(path.name for path in place.iterdir()) == ["toy.json", "twisted"]


def test_a_bad_flag_under_twistd_is_one_line(place: Path, ended: list[subprocess.Popen[str]]) -> None:
    process = start(place, TWISTD, "ok", "-foo")
    ended.append(process)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith("toy: ")


def test_twistd_logs_to_the_file_that_it_was_told(place: Path, ended: list[subprocess.Popen[str]]) -> None:
    command = (*TWISTD[:2], "-n", "--pidfile=", "--logfile=toy.log", "toy")
    process = start(place, command, "fails later")
    ended.append(process)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 1
    lines = [json.loads(line) for line in (place / "toy.log").read_text().splitlines()]
    assert lines[0]["msg"].startswith("Version: ")
    assert "fatal" in [line["level"] for line in lines]


def test_somebody_at_the_terminal_reads_why_it_cannot_start(place: Path, ended: list[subprocess.Popen[str]]) -> None:
    command = (*TWISTD[:2], "--pidfile=", "toy")  # would become a daemon with twistd.log
    process = start(place, command, "cannot be built")
    ended.append(process)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert err == 'mode: "cannot be built" cannot be used; expected another\n'
    assert "fatal" in (place / "twistd.log").read_text()
