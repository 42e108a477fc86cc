"""What fills memory: what was allocated while somebody watched and is still there, and what kinds of objects there are.

Rules of this module: its functions run in a thread and rest between small pieces of work, so that the reactor's thread
gets on. They report sizes, types and places, never a value. ``tracemalloc`` runs only while asked (it makes every
allocation slower), unless the process was started with PYTHONTRACEMALLOC set: then it has been running all the time,
and the profile covers everything since the start.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any, Final, TypeVar

from notary.observe.debug.profile import Frame, Profile

CALLS: Final = 24
"""How many calls of the stack of each allocation are kept."""

BIG: Final = 512
"""Bytes from which on texts and byte strings, which the garbage collector does not know, are counted by themselves."""

_PIECE: Final = 2000
_REST_SECONDS: Final = 0.001

T = TypeVar("T")


def gently(things: Iterable[T]) -> Iterator[T]:
    """Go through many things in a thread, with a rest between pieces in which other threads get on."""
    for index, thing in enumerate(things):
        if index % _PIECE == _PIECE - 1:
            time.sleep(_REST_SECONDS)
        yield thing


def living(wanted: Callable[[type], bool]) -> list[Any]:
    """Every object that the garbage collector knows whose type is ``wanted``.

    The type is asked, not the object: to ask an object may run code of its own. What was told to stay when the program
    had been loaded is found too; from then on the collector looks through it again (docs/adr/0017-python.md).
    """
    gc.unfreeze()
    answers: dict[type, bool] = {}
    found = []
    for generation in range(3):
        for thing in gently(gc.get_objects(generation)):
            kind = type(thing)
            answer = answers.get(kind)
            if answer is None:
                answer = answers[kind] = wanted(kind)
            if answer:
                found.append(thing)
    return found


def heap_profile(seconds: float, stop: threading.Event) -> Profile:
    """What is allocated within so many seconds, or until ``stop`` is set, and is still there at their end."""
    began, started = time.monotonic(), time.time_ns()
    always = tracemalloc.is_tracing()
    comment = "memory allocated since the start of the process and still in use (PYTHONTRACEMALLOC is set)"
    if not always:
        comment = "memory allocated while this profile was taken, and still in use at its end"
        tracemalloc.start(CALLS)
        stop.wait(seconds)
    try:
        snapshot = tracemalloc.take_snapshot()
    finally:
        if not always:
            tracemalloc.stop()
    profile = Profile((("inuse_objects", "count"), ("inuse_space", "bytes")), started, comment=comment)
    profile.duration = int((time.monotonic() - began) * 1e9)
    functions = _Functions()
    for trace in gently(snapshot.traces):
        places = [functions.at(place.filename, place.lineno) for place in reversed(trace.traceback)]
        profile.add(tuple(places), 1, trace.size)
    return profile


def object_profile() -> Profile:
    """All objects that the garbage collector knows, and the big strings that they hold, by type.

    Sizes are those of the objects themselves, without what they refer to.
    """
    began = time.monotonic()
    profile = Profile(
        (("objects", "count"), ("space", "bytes")),
        time.time_ns(),
        comment=f"objects by type, as the garbage collector knows them, and strings of {BIG} bytes and more",
    )
    seen: set[int] = set()
    for thing in gently(living(lambda _kind: True)):
        kind = type(thing)
        profile.add((_type_frame(kind),), 1, _size(thing))
        for part in gc.get_referents(thing):
            if type(part) in (bytes, bytearray, str) and id(part) not in seen and (size := _size(part)) >= BIG:
                seen.add(id(part))
                profile.add((_type_frame(type(part)), _type_frame(kind)), 1, size)
    profile.duration = int((time.monotonic() - began) * 1e9)
    return profile


def _type_frame(kind: type) -> Frame:
    return Frame(f"{kind.__module__}.{kind.__qualname__}", "", 0)


def _size(thing: object) -> int:
    try:
        return sys.getsizeof(thing)
    except Exception:  # noqa: BLE001 - a type may say nonsense about its size
        return 0


class _Functions:
    """Finds the function that a line of a file belongs to: tracemalloc knows lines only."""

    def __init__(self) -> None:
        self._codes: dict[str, list[tuple[CodeType, str]]] = {}
        self._known: dict[tuple[str, int], Frame] = {}
        for function in living(lambda kind: kind is FunctionType):
            if isinstance(function.__module__, str):  # what is made from text may have none
                self._note(function.__code__, function.__module__)

    def _note(self, code: CodeType, module: str) -> None:
        self._codes.setdefault(code.co_filename, []).append((code, module))
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                self._note(inner, module)

    def at(self, file: str, line: int) -> Frame:
        """The innermost function around a line, or the module."""
        known = self._known.get((file, line))
        if known is None:
            known = self._known[file, line] = self._find(file, line)
        return known

    def _find(self, file: str, line: int) -> Frame:
        codes = self._codes.get(file, [])
        around = [(code, module) for code, module in codes if code.co_firstlineno <= line <= _last_line(code)]
        if around:
            code, module = max(around, key=lambda each: each[0].co_firstlineno)
            return Frame(f"{module}.{code.co_qualname}", file, line)
        return Frame(f"{codes[0][1]}.<module>" if codes else "<module>", file, line)


def _last_line(code: CodeType) -> int:
    return max((line for _, _, line in code.co_lines() if line is not None), default=code.co_firstlineno)
