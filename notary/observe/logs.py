"""Log lines: an observer of ``twisted.logger`` that writes one line of JSON or logfmt for each event.

Rules of this module:

- A line carries ``level``, ``msg`` and ``time`` (RFC 3339, UTC) and the event's own fields, laid out as the reference's
  logger does (docs/protocol.md, section 7). Every line is printable ASCII: no text that a client puts into a path or a
  name can end the line or begin another.
- Each keyword that the code that logs passes is a field. That code keeps secrets out of fields.
- Levels are those of the reference. Twisted's ``critical`` is ``error`` here: the process goes on. Only the end of the
  process is ``fatal``.
- Every failure that is logged gets an id, ``error_id``, unless the code that logs it has given one out already: the
  client's answer, the line and a report to others (``on_failure``) name it the same. Code that must not log an error's
  text logs the failure as ``log_incident`` instead: it is reported, and the line says what its own fields say.
- Of failures of one class at one place one is written in full; those that follow are counted, by one line a minute.
  Neither hostile input nor a fault that it finds fills a disk. What a line says of a failure is bounded too.
- What Twisted itself tells (factories, ports, reactors) and what libraries print to standard output is ``debug``.
- Logging never raises: a stream that is closed or broken loses lines and nothing else.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from threading import RLock
from typing import Any, Final, Literal, Protocol

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str
from zope.interface import implementer

from notary.work.repeats import Line, Repeats

LEVELS = ("panic", "fatal", "error", "warning", "info", "debug")
"""The names of the levels, least verbose first."""

Layout = Literal["json", "logfmt"]

_LEVEL_NAMES = {
    LogLevel.debug: "debug",
    LogLevel.info: "info",
    LogLevel.warn: "warning",
    LogLevel.error: "error",
    LogLevel.critical: "error",
}

# Members of an event that are not fields: Twisted's own, and those of its old logging interface.
_NOT_FIELDS = frozenset(
    {"failure", "format", "isError", "logLevel", "message", "system", "time", "why"},
)
_OWN_FIELDS = ("level", "msg", "time")

_MOST_FAILURES: Final = 200  # kinds that are told apart, by class and place
_MOST_PLACES: Final = 32  # calls of a traceback that are shown, from either end
_MOST_CHARACTERS: Final = 2000  # of the text of an error
_MOST_CAUSES: Final = 10

OnFailure = Callable[[str, Failure, str], None]
"""Hears of each failure that is logged: its id, the failure, and what was being done."""


def error_id() -> str:
    """A new id of an unexpected error: 12 hexadecimal digits."""
    return secrets.token_hex(6)


class Stream(Protocol):
    """Where lines go: standard error, an open file, a ``twisted.python.logfile.LogFile``."""

    def write(self, text: str, /) -> object:
        """Write one line, its newline included."""

    def flush(self) -> object:
        """Hand what was written to the operating system."""


@implementer(ILogObserver)
class LineObserver:
    """Writes events at or above a level, which may change while the process runs.

    Args:
        stream: Where lines go.
        layout: "json" or "logfmt".
        level: One of LEVELS; "info" is the level of the reference until its configuration has been read.
        clock: The time of lines that are no events, in seconds since 1970.
        seconds: The time since any moment, by which failures that repeat themselves are counted.
    """

    def __init__(
        self,
        stream: Stream,
        layout: Layout = "json",
        level: str = "info",
        clock: Callable[[], float] = time.time,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._render = _json_line if layout == "json" else _logfmt_line
        self._clock = clock
        self.on_failure: OnFailure = lambda _error_id, _failure, _operation: None
        # Reentrant, because Twisted's handlers of signals log, and a signal may come in the middle of a line.
        self._lock = RLock()
        self._repeats = Repeats(_MOST_FAILURES, seconds)
        self.level = level

    @property
    def level(self) -> str:
        """The least severe level that is written."""
        return LEVELS[self._threshold]

    @level.setter
    def level(self, name: str) -> None:
        self._threshold = LEVELS.index(name)

    def writes(self, level: str) -> bool:
        """Whether events of this level, one of LEVELS, are written."""
        return LEVELS.index(level) <= self._threshold

    def step(self, *, more: bool) -> None:
        """Make the log one level more or less verbose, as a signal asks, and say so at any level."""
        wanted = self._threshold + (1 if more else -1)
        if 0 <= wanted < len(LEVELS):
            self._threshold = wanted
            self.announce("info", f"The log level is now {self.level}")
        else:
            self.announce("warning", f"The log level stays {self.level}: there is no level beyond it")

    def announce(self, level: str, msg: str, /, **fields: object) -> None:
        """Write a line at any threshold: the version, warnings of the configuration, the end of the process."""
        self._write(level, msg, self._clock(), fields)

    def relay(self, line: bytes) -> None:
        """Write a line that another process of this daemon has laid out, without its line end."""
        self._put(line.decode("utf-8", "replace") + "\n")

    def __call__(self, event: LogEvent) -> None:
        """Write an event, if it is severe enough."""
        failure = event.get("log_failure")
        if failure is None and isinstance(event.get("failure"), Failure):  # Twisted's old interface
            failure = event["failure"]
        incident = failure or event.get("log_incident")
        if incident is not None:
            event.setdefault("error_id", error_id())
            self.on_failure(event["error_id"], incident, event.get("operation") or event.get("log_namespace") or "")
        level = _level(event)
        if not self.writes(level):
            return
        fields = {
            name: value for name, value in event.items() if not name.startswith("log_") and name not in _NOT_FIELDS
        }
        line = Line(0, first=True)
        if incident is not None:
            happened = self._happened(incident, event.get("why") or event.get("log_format"))
            if happened is None:
                return
            line = happened
        if failure is not None:
            fields |= failure_fields(failure)
        if not line.first:
            fields.pop("traceback", None)
            fields["repeated"] = line.more + 1
        msg = formatEvent(event)
        if failure is not None and "log_failure" not in event:
            msg = safe_str(event.get("why") or "Unhandled Error")
        if failure is None and isinstance(fields.get("error"), str) and fields["error"] in msg:
            del fields["error"]  # the message says it already
        self._write(level, msg, event.get("log_time") or self._clock(), fields)

    def _happened(self, failure: Failure, doing: object) -> Line | None:
        """How a failure in the midst of ``doing`` is written; None if it is one of many and only counted."""
        place = None
        for frame, number in traceback.walk_tb(failure.getTracebackObject()):
            place = frame.f_code, number
        with self._lock:
            return self._repeats.happened((failure.type, place, safe_str(doing)), None)

    def _write(self, level: str, msg: str, seconds: float, fields: dict[str, Any]) -> None:
        stamp = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        values: dict[str, Any] = {"level": level, "msg": msg, "time": stamp}
        for name, value in fields.items():
            values[f"fields.{name}" if name in _OWN_FIELDS else name] = _plain(value)
        self._put(self._render(values) + "\n")

    def _put(self, line: str) -> None:
        try:
            with self._lock:
                self._stream.write(line)
                self._stream.flush()
        except (OSError, ValueError, RuntimeError):
            # Nobody reads the log any more (EPIPE), the disk is full, the stream is closed, or a signal came while
            # Python was writing to it. There is nowhere to say so, and it is no reason to stop serving.
            return


def failure_fields(failure: Failure) -> dict[str, str]:
    """Describe a failure in two fields: ``error``, with its causes, and ``traceback``: places only, no source lines."""
    places = [
        f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(failure.getTracebackObject())
    ]
    if len(places) > 2 * _MOST_PLACES:
        left_out = f"({len(places) - 2 * _MOST_PLACES} more)"
        places = [*places[:_MOST_PLACES], left_out, *places[-_MOST_PLACES:]]
    return {
        "error": ", because ".join(islice(_errors(failure.value), _MOST_CAUSES)),
        "traceback": "; ".join(places),
    }


def _errors(error: BaseException | None) -> Iterator[str]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = safe_str(error)
        if len(text) > _MOST_CHARACTERS:
            text = f"{text[:_MOST_CHARACTERS]} ({len(text) - _MOST_CHARACTERS} more characters)"
        yield f"{type(error).__name__}: {text}"
        error = error.__cause__


def _level(event: LogEvent) -> str:
    level = event.get("log_level", LogLevel.info)
    if level is LogLevel.info and _is_noise(event):
        level = LogLevel.debug
    return _LEVEL_NAMES[level]


def _is_noise(event: LogEvent) -> bool:
    """Whether Twisted, or a library that prints, tells something that nobody asked for."""
    namespace = event.get("log_namespace") or ""
    # A factory speaks in the name of its own class, which may be one of ours.
    return (
        namespace in ("log_legacy", "stdout")
        or namespace.startswith("twisted.")
        or (event.get("log_format") or "").startswith(("Starting factory ", "Stopping factory "))
    )


def _plain(value: object) -> str | float | bool | None:
    """Turn a field's value into one that JSON has."""
    if value is None or isinstance(value, bool) or (isinstance(value, int) and value.bit_length() < 64):  # noqa: PLR2004
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else safe_str(value)


def _quoted(value: object) -> str:
    # JSON leaves DEL as it is; everything else that is not printable ASCII comes out escaped.
    return json.dumps(value).replace("\x7f", "\\u007f")


def _json_line(values: dict[str, Any]) -> str:
    return "{" + ",".join(f"{_quoted(name)}:{_quoted(values[name])}" for name in sorted(values)) + "}"


def _logfmt_line(values: dict[str, Any]) -> str:
    """Lay out as the reference's text formatter does: time, level and msg first, quotes only where needed."""
    names = ["time", "level", "msg", *sorted(values.keys() - set(_OWN_FIELDS))]
    return " ".join(f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}={_logfmt_value(values[name])}" for name in names)


def _logfmt_value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if re.fullmatch(r"[A-Za-z0-9._/@^+-]*", text) else _quoted(text)
