"""What the process waits for: the stack of every thread, and of every Deferred and coroutine that is pending.

Rules of this module: nothing is kept while nobody asks; what is pending is found among the objects that the garbage
collector knows. Only functions and places are read, no arguments. Twisted has no public way to what a Deferred will
call, so its private members are read here, with care: one that looks different is left out, it does not fail.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, CoroutineType, FrameType, FunctionType, GeneratorType, MethodType
from typing import Any

from twisted.internet.defer import Deferred

from notary.observe.debug.heap import gently, living
from notary.observe.debug.profile import DEPTH, Frame, Profile, Stack, place_of, stack_of

_WAITING = Frame("(waiting)", "", 0)
_SUSPENDED = (CoroutineType, GeneratorType)


def thread_profile() -> Profile:
    """The stack of each thread; outermost is the thread's name."""
    profile = Profile((("threads", "count"),), time.time_ns(), comment="threads")
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way to other threads' stacks
        name = names.get(ident, "not started by Python")
        profile.add((*stack_of(frame), Frame(f"thread {name}", "", 0)), 1)
    return profile


def task_profile(release: Callable[[list[Any]], None]) -> Profile:
    """The stack of each pending Deferred: the coroutines that await it and the functions that it will call, outwards.

    Coroutines that await something else come after them. ``release`` is handed the objects that were looked at: they
    may have ended meanwhile, and must be forgotten where they belong, on the reactor's thread.
    """
    profile = Profile((("tasks", "count"),), time.time_ns(), comment="pending Deferreds and coroutines")
    began = time.monotonic()
    found = living(lambda kind: issubclass(kind, Deferred) or kind is CoroutineType)
    deferreds = [each for each in found if isinstance(each, Deferred)]
    coroutines = [each for each in found if isinstance(each, CoroutineType)]
    awaited = {id(each.cr_await) for each in coroutines}
    onward = {id(each) for deferred in deferreds for each in _onward(deferred)}
    reached: set[int] = set()
    for deferred in gently(deferreds):
        if not deferred.called and id(deferred) not in onward:
            profile.add((_WAITING, *_outwards(deferred, reached)), 1)
    for coroutine in gently(coroutines):
        if coroutine.cr_frame is not None and id(coroutine) not in reached and id(coroutine) not in awaited:
            profile.add((_WAITING, *_suspended(coroutine, reached)), 1)
    profile.duration = int((time.monotonic() - began) * 1e9)
    del deferreds, coroutines
    release(found)
    return profile


def _callbacks(deferred: Deferred[Any]) -> list[tuple[Any, tuple[Any, ...]]]:
    """What a Deferred will call with its result, and with which further arguments."""
    return [(function, arguments or ()) for (function, arguments, _), _ in list(deferred._callbacks)]  # noqa: SLF001


def _onward(deferred: Deferred[Any]) -> list[Deferred[Any]]:
    """The Deferreds that wait for this one: that are chained to it, or are the result of a coroutine that awaits it."""
    found = []
    for _, arguments in _callbacks(deferred):
        for argument in arguments:
            kind = type(argument)
            if issubclass(kind, Deferred):
                found.append(argument)
            elif kind.__name__ == "_CancellationStatus":  # what Twisted keeps of a coroutine that it runs
                found.append(argument.deferred)
    return found


def _outwards(deferred: Deferred[Any] | None, reached: set[int]) -> Stack:
    """What follows when a Deferred fires, from the nearest to the farthest."""
    stack: list[Frame] = []
    while deferred is not None and id(deferred) not in reached and len(stack) < DEPTH:
        reached.add(id(deferred))
        for function, arguments in _callbacks(deferred):
            for argument in arguments:
                if type(argument) in _SUSPENDED:  # it awaits this Deferred
                    stack += _suspended(argument, reached)
            place = _place(function)
            if place is not None:
                stack.append(place)
        deferred = next(iter(_onward(deferred)), None)
    return tuple(stack[:DEPTH])


def _suspended(task: Any, reached: set[int]) -> Stack:
    """The calls inside a coroutine, the innermost first."""
    return tuple(
        place_of(frame.f_code, frame.f_globals.get("__name__"), frame.f_lineno) for frame in _inner(task, reached)
    )[::-1]


def _inner(task: Any, reached: set[int]) -> Iterator[FrameType]:
    while task is not None and id(task) not in reached:
        frame = getattr(task, "cr_frame", None) or getattr(task, "gi_frame", None)
        if frame is None:
            return
        reached.add(id(task))
        if frame.f_code is not Deferred.__iter__.__code__:
            yield frame
        task = getattr(task, "cr_await", None) or getattr(task, "gi_yieldfrom", None)


def _place(function: Any) -> Frame | None:
    """Where a callback is defined; None for what only carries a result on, inside of Twisted."""
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, MethodType):
        function = function.__func__
    if isinstance(function, FunctionType):
        code: CodeType = function.__code__
        internal = function.__module__ == "twisted.internet.defer"
        return None if internal else place_of(code, function.__module__, code.co_firstlineno)
    name = getattr(function, "__qualname__", None)
    return Frame(f"{function.__module__}.{name}", "", 0) if isinstance(name, str) and callable(function) else None
