"""Log lines: their layout, what becomes a field, levels, and that nothing breaks a line or the program."""

from __future__ import annotations

import io
import json
import math
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.protocol import Factory
from twisted.logger import ILogObserver, Logger, LogLevel, LogPublisher
from twisted.python import log as old_log
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from notary.observe.logs import LEVELS, LineObserver

NOON = 1_700_000_000.75
STAMP = "2023-11-14T22:13:20Z"


class Log:
    """A logger of one of our modules, and the lines that come out."""

    def __init__(self, layout: Any = "json", level: str = "debug") -> None:
        self.stream = io.StringIO()
        self.observer = LineObserver(self.stream, layout, level, clock=lambda: NOON)
        self.log = Logger(namespace="notary.server.api", observer=LogPublisher(self.observer))

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


def test_it_is_an_observer() -> None:
    verifyObject(ILogObserver, LineObserver(io.StringIO()))


def test_json_is_laid_out_as_the_reference_does() -> None:
    log = Log()
    log.observer.announce("info", "Starting on :4443", gun="docker.io/library", bytes=5)
    assert log.text == (
        '{"bytes":5,"gun":"docker.io/library","level":"info","msg":"Starting on :4443","time":"' + STAMP + '"}\n'
    )


def test_logfmt_is_laid_out_as_the_reference_does() -> None:
    log = Log("logfmt")
    log.observer.announce("info", "Starting on :4443", gun="docker.io/library", bytes=5, agent="", ok=True, none=None)
    assert log.text == (
        f'time="{STAMP}" level=info msg="Starting on :4443" agent= bytes=5 gun=docker.io/library none=null ok=true\n'
    )


def test_logfmt_quotes_what_needs_it() -> None:
    log = Log("logfmt")
    log.observer.announce(
        "error", "short", path='/v2/a b/"c"', line="a\nb", odd="\x00\x1b[31m\x7f\x85\u2028é", eq="a=b"
    )
    assert log.text == (
        f'time="{STAMP}" level=error msg=short eq="a=b" line="a\\nb" '
        'odd="\\u0000\\u001b[31m\\u007f\\u0085\\u2028\\u00e9" path="/v2/a b/\\"c\\""\n'
    )


def test_an_event_becomes_a_line() -> None:
    log = Log()
    log.log.info("{method} {path}", method="GET", path="/v2/", status=200, seconds=0.25, gun=None)
    (line,) = log.lines
    when = line.pop("time")
    assert datetime.fromisoformat(when).utcoffset() is not None
    assert when.endswith("Z")
    assert line == {
        "level": "info",
        "msg": "GET /v2/",
        "method": "GET",
        "path": "/v2/",
        "status": 200,
        "seconds": 0.25,
        "gun": None,
    }


def test_an_error_is_said_once() -> None:
    log = Log()
    log.log.error("{error}; trying again in {seconds} s", error="the database is down", seconds=5)
    log.log.error("broken off", error="the database is down")
    told, apart = log.lines
    assert (told["msg"], "error" in told) == ("the database is down; trying again in 5 s", False)
    assert apart["error"] == "the database is down"


def test_fields_do_not_replace_the_own_members() -> None:
    log = Log()
    log.observer.announce("info", "x", level="high", time="never")
    log.log.info("y", msg="no")
    assert (log.lines[0]["level"], log.lines[0]["time"], log.lines[0]["fields.time"]) == ("info", STAMP, "never")
    assert log.lines[1]["fields.msg"] == "no"
    assert log.lines[1]["msg"] == "y"


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(b"caf\xc3\xa9 \xff", "café \\xff", id="bytes"),
        pytest.param(math.nan, "nan", id="nan"),
        pytest.param(math.inf, "inf", id="infinity"),
        pytest.param(["a", 1], "['a', 1]", id="list"),
        pytest.param("\ud800", "\ud800", id="lone surrogate"),
        pytest.param(1 << 80, str(1 << 80), id="large number"),
        pytest.param(True, True, id="boolean"),
    ],
)
@pytest.mark.parametrize("layout", ["json", "logfmt"])
def test_values_of_fields(layout: str, value: Any, expected: Any) -> None:
    log = Log(layout)
    log.observer.announce("info", "x", value=value)
    assert log.text.isascii()
    assert len(log.text.splitlines()) == 1
    if layout == "json":
        assert log.lines[0]["value"] == expected


@pytest.mark.parametrize("value", [Unprintable(), 10**5000], ids=["no str", "too many digits"])
def test_values_that_cannot_be_written(value: object) -> None:
    log = Log()
    log.log.info("x", value=value)
    assert log.lines[0]["msg"] == "x"
    assert isinstance(log.lines[0]["value"], str)


def test_formats_that_do_not_fit() -> None:
    log = Log()
    log.log.info("{missing} {value}", value=Unprintable())
    log.log.info("{")
    assert len(log.lines) == 2


@given(
    layout=st.sampled_from(["json", "logfmt"]),
    msg=st.text(),
    fields=st.dictionaries(st.text(min_size=1), st.one_of(st.text(), st.binary(), st.floats())),
)
def test_nothing_breaks_a_line(layout: str, msg: str, fields: dict[str, Any]) -> None:
    log = Log(layout)
    log.observer.announce("info", msg, **{f"f{name}": value for name, value in fields.items()})
    assert log.text.endswith("\n")
    assert log.text[:-1].isascii()
    assert log.text[:-1].isprintable()
    if layout == "json":
        assert log.lines[0]["msg"] == msg


# -- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        pytest.param("debug", ["debug", "info", "warning", "error", "error"], id="debug"),
        pytest.param("info", ["info", "warning", "error", "error"], id="info"),
        pytest.param("warning", ["warning", "error", "error"], id="warning"),
        pytest.param("error", ["error", "error"], id="error"),
        pytest.param("fatal", [], id="fatal"),
        pytest.param("panic", [], id="panic"),
    ],
)
def test_threshold(level: str, shown: list[str]) -> None:
    log = Log(level=level)
    assert log.observer.level == level
    for severity in (LogLevel.debug, LogLevel.info, LogLevel.warn, LogLevel.error, LogLevel.critical):
        log.log.emit(severity, "x")
    assert [line["level"] for line in log.lines] == shown


def test_announcements_ignore_the_threshold() -> None:
    log = Log(level="panic")
    log.observer.announce("info", "Version")
    log.observer.announce("fatal", "the end")
    assert [(line["level"], line["msg"]) for line in log.lines] == [("info", "Version"), ("fatal", "the end")]


def test_steps_change_the_level_one_by_one_and_say_so() -> None:
    log = Log(level="error")
    for more, expected in [(True, "warning"), (True, "info"), (True, "debug"), (True, "debug"), (False, "info")]:
        log.observer.step(more=more)
        assert log.observer.level == expected
        assert expected in log.lines[-1]["msg"]
    for _ in LEVELS:
        log.observer.step(more=False)
    assert log.observer.level == "panic"
    assert log.lines[-1]["level"] == "warning"
    assert len(log.lines) == 5 + len(LEVELS)


def test_the_level_can_be_set() -> None:
    log = Log(level="error")
    log.observer.level = "debug"
    log.log.debug("x")
    assert len(log.lines) == 1
    with pytest.raises(ValueError):
        log.observer.level = "loud"


# -- Twisted ----------------------------------------------------------------------------------------------------------


class OurFactory(Factory):
    __module__ = "notary.net.http.site"


@pytest.mark.parametrize("factory", [Factory, OurFactory])
def test_factories_are_noise(factory: type[Factory]) -> None:
    from twisted.logger import globalLogPublisher

    log = Log()
    globalLogPublisher.addObserver(log.observer)
    try:
        started = factory()
        started.doStart()
        started.doStop()
    finally:
        globalLogPublisher.removeObserver(log.observer)
    assert [line["level"] for line in log.lines] == ["debug", "debug"]


@pytest.mark.parametrize(
    ("namespace", "level"),
    [
        pytest.param("twisted.internet.base", "debug", id="Twisted"),
        pytest.param("stdout", "debug", id="printed"),
        pytest.param("stderr", "info", id="printed as an error"),
        pytest.param("notary.server.api", "info", id="ours"),
        pytest.param("twistedlike", "info", id="others"),
    ],
)
def test_noise_is_told_by_its_origin(namespace: str, level: str) -> None:
    log = Log()
    Logger(namespace=namespace, observer=LogPublisher(log.observer)).info("x")
    assert log.lines[0]["level"] == level


def test_warnings_of_twisted_are_not_noise() -> None:
    log = Log()
    Logger(namespace="twisted.internet.base", observer=LogPublisher(log.observer)).warn("x")
    assert log.lines[0]["level"] == "warning"


def old_interface(observer: LineObserver) -> old_log.LogPublisher:
    new = LogPublisher(observer)
    return old_log.LogPublisher(observerPublisher=new, publishPublisher=new)


def test_the_old_interface() -> None:
    log = Log()
    old_interface(log.observer).msg("Site starting on 4443", extra="x")
    (line,) = log.lines
    assert line.pop("time")
    assert line == {"level": "debug", "msg": "Site starting on 4443", "extra": "x"}


def fail() -> None:
    raise ValueError("cannot write") from OSError("disk\nfull")


def failure() -> Failure:
    try:
        fail()
    except ValueError:
        return Failure()
    raise AssertionError


def test_failures_are_one_line() -> None:
    log = Log()
    log.log.failure("While serving {path}", failure(), path="/v2/")
    (line,) = log.lines
    assert line["level"] == "error"
    assert line["msg"] == "While serving /v2/"
    assert line["error"] == "ValueError: cannot write, because OSError: disk\nfull"
    assert line["path"] == "/v2/"
    places = line["traceback"].split("; ")
    assert [place.split(" ")[-1] for place in places] == ["failure", "fail"]
    assert "raise ValueError" not in log.text


def test_failures_of_the_old_interface_are_one_line() -> None:
    log = Log()
    publisher = old_interface(log.observer)
    publisher.msg(failure=failure(), why="Could not stop", isError=1)
    publisher.msg(failure=failure(), why=None, isError=1)
    assert [(line["level"], line["msg"]) for line in log.lines] == [
        ("error", "Could not stop"),
        ("error", "Unhandled Error"),
    ]
    assert all("ValueError" in line["error"] for line in log.lines)


def test_causes_that_go_round_in_circles() -> None:
    log = Log()
    error = ValueError("a")
    error.__cause__ = error
    log.log.failure("x", Failure(error))
    assert log.lines[0]["error"] == "ValueError: a"


# -- broken streams ---------------------------------------------------------------------------------------------------


class Broken(io.StringIO):
    def write(self, text: str, /) -> int:
        raise BrokenPipeError(32, "Broken pipe")


class Full(io.StringIO):
    def flush(self) -> None:
        raise OSError(28, "No space left on device")


class Busy(io.StringIO):
    def write(self, text: str, /) -> int:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")


@pytest.mark.parametrize("stream", [Broken(), Full(), Busy()], ids=["broken", "full", "busy"])
def test_a_broken_stream_loses_lines_only(stream: io.StringIO) -> None:
    observer = LineObserver(stream)
    observer.announce("info", "x")
    observer.announce("info", "y")


def test_a_closed_stream_loses_lines_only() -> None:
    stream = io.StringIO()
    observer = LineObserver(stream)
    stream.close()
    observer.announce("info", "x")


class Interrupted(io.StringIO):
    """A stream on which a signal comes in the middle of the first line, and its handler logs."""

    observer: LineObserver | None = None

    def write(self, text: str, /) -> int:
        observer, self.observer = self.observer, None
        if observer is not None:
            observer.announce("info", "Received SIGTERM")
        return super().write(text)


def test_a_handler_of_signals_may_log() -> None:
    stream = Interrupted()
    stream.observer = LineObserver(stream)
    stream.observer.announce("info", "x")
    assert [json.loads(line)["msg"] for line in stream.getvalue().splitlines()] == ["Received SIGTERM", "x"]


# -- many -------------------------------------------------------------------------------------------------------------


class Ticking:
    """A log whose time the test says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stream = io.StringIO()
        self.observer = LineObserver(self.stream, clock=lambda: NOON, seconds=lambda: self.now)
        self.log = Logger(namespace="notary.net", observer=LogPublisher(self.observer))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


def stumble(error: Exception) -> None:
    raise error


def fall(error: Exception) -> None:
    raise error


def test_a_failure_that_repeats_itself_is_one_traceback_and_a_line_a_minute() -> None:
    log = Ticking()

    def fail(function: Any, error: Exception) -> None:
        try:
            function(error)
        except (KeyError, ValueError):
            log.log.failure("it broke")

    for number in range(1000):
        fail(stumble, ValueError(f"hostile {number}"))
    (line,) = log.lines()
    assert (line["error"], line["traceback"].endswith(" stumble")) == ("ValueError: hostile 0", True)
    log.now += 61
    fail(stumble, ValueError("again"))
    last = log.lines()[-1]
    assert (len(log.lines()), last["repeated"], last["error"]) == (2, 1000, "ValueError: again")
    assert "traceback" not in last
    assert len(last["error_id"]) == 12
    for function, kind in ((fall, ValueError), (stumble, KeyError)):  # another place, another class
        fail(function, kind("x"))
        assert "traceback" in log.lines()[-1]
    assert len(log.lines()) == 4


def test_an_incident_that_repeats_itself_is_counted_too() -> None:
    log = Ticking()
    for _ in range(5):
        log.log.error("{method} broke", method="Sign", traceback="here", log_incident=Failure(ValueError("secret")))
    log.now += 61
    log.log.error("{method} broke", method="Sign", traceback="here", log_incident=Failure(ValueError("secret")))
    first, last = log.lines()
    assert (first["traceback"], "repeated" in first) == ("here", False)
    assert ("traceback" in last, last["repeated"]) == (False, 5)


def test_failures_from_many_places_are_bounded_too() -> None:
    log = Ticking()
    for number in range(2000):
        try:
            exec(compile("\n" * number + "raise ValueError", "hostile", "exec"))
        except ValueError:
            log.log.failure("it broke")
    assert len(log.lines()) <= 201


def test_what_a_line_says_of_a_failure_is_bounded() -> None:
    log = Ticking()
    error = ValueError("x" * 1_000_000)
    for _ in range(50):
        outer = ValueError("y" * 1_000_000)
        outer.__cause__ = error
        error = outer

    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        raise error

    try:
        deep(500)
    except ValueError:
        log.log.failure("it broke")
    assert len(log.stream.getvalue()) < 40_000
    (line,) = log.lines()
    assert "(998000 more characters)" in line["error"]
    assert line["traceback"].count("; ") == 64
    assert "more); " in line["traceback"]
