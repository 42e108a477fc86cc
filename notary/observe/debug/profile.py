"""A profile: stacks of calls with numbers, as bytes for pprof and as text for people.

Rules of this module: pure. A stack begins with the innermost call. It names functions and places, never a value that a
program holds, so that a profile may leave the machine.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

from notary.proto import profile_pb2

DEPTH: Final = 128
"""How many calls of one stack are kept, from the innermost outwards."""


class Frame(NamedTuple):
    """One call: ``function`` with its module, the file, and the line that is being executed (0: none)."""

    function: str
    file: str
    line: int


Stack = tuple[Frame, ...]


@dataclass(slots=True)
class Profile:
    """Samples by stack.

    ``kinds`` says what the numbers of each sample are, as (what, unit) with the units of pprof; ``period`` is what lies
    between two samples, in the unit of the last kind; ``started`` and ``duration`` are in nanoseconds, since 1970 and
    alone.
    """

    kinds: tuple[tuple[str, str], ...]
    started: int
    duration: int = 0
    period: int = 1
    comment: str = ""
    samples: dict[Stack, list[int]] = field(default_factory=dict)

    def add(self, stack: Stack, *values: int) -> None:
        """Add numbers to a stack."""
        known = self.samples.get(stack)
        if known is None:
            self.samples[stack] = list(values)
        else:
            for index, value in enumerate(values):
                known[index] += value

    def encode(self) -> bytes:
        """Write it as pprof reads it: a gzipped Profile of profile.proto."""
        return gzip.compress(_Encoder(self).profile.SerializeToString(), 6)

    def text(self) -> str:
        """Write it for people: the heaviest stacks first, a blank line after each."""
        started = datetime.fromtimestamp(self.started // 10**9, UTC).isoformat()
        kinds = ", ".join(f"{what} ({unit})" for what, unit in self.kinds)
        lines = [f"{self.comment}", f"from {started}, for {self.duration / 1e9:.1f} s; numbers: {kinds}", ""]
        for stack, values in sorted(self.samples.items(), key=lambda item: item[1][-1], reverse=True):
            lines.append(" ".join(map(str, values)))
            lines += [f"    {frame.function}  {frame.file}:{frame.line}".removesuffix("  :0") for frame in stack]
            lines.append("")
        return "\n".join(lines)


class _Encoder:
    """Numbers the texts, functions and places of one profile."""

    def __init__(self, source: Profile) -> None:
        self.profile = profile = profile_pb2.Profile()
        self._texts: dict[str, int] = {}
        self._functions: dict[tuple[str, str], int] = {}
        self._locations: dict[Frame, int] = {}
        self._text("")
        # Without a mapping that has functions, pprof would look for a binary to find them in.
        profile.mapping.add(id=1, filename=self._text("python"), has_functions=True, has_filenames=True)
        profile.mapping[0].has_line_numbers = True
        for what, unit in source.kinds:
            profile.sample_type.add(type=self._text(what), unit=self._text(unit))
        profile.period_type.CopyFrom(profile.sample_type[-1])
        profile.default_sample_type = profile.sample_type[-1].type
        profile.period = source.period
        profile.time_nanos = source.started
        profile.duration_nanos = source.duration
        profile.comment.append(self._text(source.comment))
        for stack, values in source.samples.items():
            profile.sample.add(location_id=[self._location(frame) for frame in stack], value=values)
        profile.string_table.extend(self._texts)

    def _text(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts))

    def _location(self, frame: Frame) -> int:
        known = self._locations.get(frame)
        if known is None:
            known = self._locations[frame] = len(self._locations) + 1
            location = self.profile.location.add(id=known, mapping_id=1)
            location.line.add(function_id=self._function(frame.function, frame.file), line=frame.line)
        return known

    def _function(self, name: str, file: str) -> int:
        known = self._functions.get((name, file))
        if known is None:
            known = self._functions[name, file] = len(self._functions) + 1
            text = self._text(name)
            self.profile.function.add(id=known, name=text, system_name=text, filename=self._text(file))
        return known


def place_of(code: CodeType, module: Any, line: int | None) -> Frame:
    """The frame of a piece of code in a module."""
    return Frame(f"{module or '?'}.{code.co_qualname}", code.co_filename, line or code.co_firstlineno)


def stack_of(frame: FrameType | None) -> Stack:
    """The calls that led to a frame, itself first."""
    return tuple(_walk(frame))


def _walk(frame: FrameType | None) -> Iterable[Frame]:
    for _ in range(DEPTH):
        if frame is None:
            return
        yield place_of(frame.f_code, frame.f_globals.get("__name__"), frame.f_lineno)
        frame = frame.f_back
