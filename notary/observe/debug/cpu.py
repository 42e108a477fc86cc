"""Where processor time goes: samples of every thread's stack, weighed by the time that the thread has used.

Rules of this module: it costs nothing before it is started and after it has ended. The kernel sends SIGPROF each time
that the process has used 10 ms, so an idle process is not disturbed. Python runs the handler in the main thread, the
reactor's, between two of its steps: that thread is seen where it is. (A thread that only wakes up now and then to look
would find it in system calls nearly always, for it is there that a thread lets go of the interpreter.) Other threads
are seen where they wait for the interpreter, or where they work without it. A thread that waits uses no time and leaves
no sample. The clock of another thread is asked for by the kernel's number of that thread (Linux): unlike pthread's
handle, it may be asked for safely when the thread has just ended.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Final

from notary.observe.debug.profile import DEPTH, Profile, place_of

HERTZ: Final = 100
"""Samples for each second of processor time, as Go's profiler takes."""

_PERIOD: Final = 10**9 // HERTZ
_PER_THREAD_CPU: Final = 6  # CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED, the layout of dynamic clock ids in Linux


def cpu_time_of(native_id: int) -> int | None:
    """Nanoseconds of processor time that a thread of this process has used; None if it has ended."""
    try:
        return time.clock_gettime_ns((~native_id << 3) | _PER_THREAD_CPU)
    except OSError:
        return None


def cpu_profile(in_main: Callable[[Callable[[], None]], None], seconds: float, stop: threading.Event) -> Profile:
    """Watch for so long, or until ``stop`` is set.

    Blocks: call it in a thread. ``in_main`` runs a function in the main thread, and returns when that is done.
    """
    profile = Profile(
        (("samples", "count"), ("cpu", "nanoseconds")),
        time.time_ns(),
        period=_PERIOD,
        comment=f"processor time of all threads; {HERTZ} samples for each second of it",
    )
    began = time.monotonic()
    sampler = _Sampler()
    in_main(sampler.start)
    try:
        stop.wait(seconds)
    finally:
        in_main(sampler.stop)
    profile.duration = int((time.monotonic() - began) * 1e9)
    for places, (count, used) in sampler.found.items():
        profile.add(tuple(place_of(code, sampler.modules[code], line) for code, line in places), count, used)
    return profile


class _Sampler:
    """What was found so far, in a form that is quick to add to: 30 microseconds a sample."""

    def __init__(self) -> None:
        self.found: dict[tuple[tuple[CodeType, int], ...], tuple[int, int]] = {}
        self.modules: dict[CodeType, object] = {}
        self._used: dict[int, int] = {}
        self._main = threading.main_thread().ident
        self._before: Any = None

    def start(self) -> None:
        """Begin; in the main thread."""
        for thread in threading.enumerate():  # what was used before is not counted
            if thread.native_id is not None:
                self._used[thread.native_id] = cpu_time_of(thread.native_id) or 0
        self._before = signal.signal(signal.SIGPROF, self._sample)
        signal.siginterrupt(signal.SIGPROF, False)
        signal.setitimer(signal.ITIMER_PROF, 1 / HERTZ, 1 / HERTZ)

    def stop(self) -> None:
        """End; in the main thread."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        # Not its old disposition: a signal that is under way would end the process.
        signal.signal(signal.SIGPROF, signal.SIG_IGN if self._before == signal.SIG_DFL else self._before)

    def _sample(self, _number: int, main: FrameType | None) -> None:
        frames = sys._current_frames()  # noqa: SLF001 - the documented way to other threads' stacks
        for thread in threading.enumerate():
            native_id = thread.native_id
            frame = main if thread.ident == self._main else frames.get(thread.ident or 0)
            if native_id is None or frame is None:
                continue
            used = cpu_time_of(native_id)
            if used is None:
                continue
            before = self._used.get(native_id, 0)
            self._used[native_id] = used
            spent = used - before if used >= before else used  # the number of an ended thread may be given again
            if spent:
                self._note(frame, spent)

    def _note(self, frame: FrameType | None, spent: int) -> None:
        places: list[tuple[CodeType, int]] = []
        while frame is not None and len(places) < DEPTH:
            code = frame.f_code
            if code not in self.modules:
                self.modules[code] = frame.f_globals.get("__name__")
            places.append((code, frame.f_lineno or 0))
            frame = frame.f_back
        key = tuple(places)
        count, total = self.found.get(key, (0, 0))
        self.found[key] = count + 1, total + spent
