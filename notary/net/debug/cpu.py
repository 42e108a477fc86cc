"""Where processor time goes: samples of every thread's stack, weighed by the time that the thread has used.

Rules of this module: it runs in a thread of its own and touches nothing of what it watches; it costs nothing before it
is started and after it has ended. A thread that waits uses no time and leaves no sample, which is what tells this from
a mere count of stacks. The clock of another thread is asked for by the kernel's number of that thread (Linux): unlike
pthread's handle, it may be asked for safely when the thread has just ended.
"""

from __future__ import annotations

import sys
import threading
import time
from types import CodeType
from typing import Final

from notary.net.debug.profile import DEPTH, Profile, place_of

HERTZ: Final = 100
"""Samples a second, as Go's profiler takes."""

_PERIOD = 10**9 // HERTZ
# A thread that works is looked at when it lets go of the interpreter. By default it may keep it for 5 ms, in which it
# nearly always does so by itself, in a system call, and system calls would seem to use all the time.
_SWITCH_SECONDS: Final = 0.00002
_PER_THREAD_CPU: Final = 6  # CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED, the layout of dynamic clock ids in Linux


def cpu_time_of(native_id: int) -> int | None:
    """Nanoseconds of processor time that a thread of this process has used; None if it has ended."""
    try:
        return time.clock_gettime_ns((~native_id << 3) | _PER_THREAD_CPU)
    except OSError:
        return None


def cpu_profile(seconds: float, stop: threading.Event) -> Profile:
    """Watch for so long, or until ``stop`` is set; the thread that watches is left out."""
    profile = Profile(
        (("samples", "count"), ("cpu", "nanoseconds")),
        time.time_ns(),
        period=_PERIOD,
        comment=f"processor time of all threads, sampled {HERTZ} times a second",
    )
    watcher = _Watcher()
    watcher.sample()  # from here on: what was used before is not counted
    watcher.found.clear()
    began = time.monotonic()
    next_time = began + 1 / HERTZ
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        while (now := time.monotonic()) < began + seconds and not stop.wait(max(0.0, next_time - now)):
            next_time = max(next_time + 1 / HERTZ, time.monotonic())
            watcher.sample()
    finally:
        sys.setswitchinterval(usual)
    profile.duration = int((time.monotonic() - began) * 1e9)
    for places, (count, used) in watcher.found.items():
        profile.add(tuple(place_of(code, watcher.modules[code], line) for code, line in places), count, used)
    return profile


class _Watcher:
    """What was found so far, in a form that is quick to add to."""

    def __init__(self) -> None:
        self.found: dict[tuple[tuple[CodeType, int], ...], tuple[int, int]] = {}
        self.modules: dict[CodeType, object] = {}
        self._used: dict[int, int] = {}
        self._own = threading.get_native_id()

    def sample(self) -> None:
        """Look once at every thread."""
        frames = sys._current_frames()  # noqa: SLF001 - the documented way to other threads' stacks
        for thread in threading.enumerate():
            native_id, frame = thread.native_id, frames.get(thread.ident or 0)
            if native_id is None or native_id == self._own or frame is None:
                continue
            used = cpu_time_of(native_id)
            if used is None:
                continue
            before = self._used.get(native_id, 0)
            self._used[native_id] = used
            spent = used - before if used >= before else used  # the number of an ended thread may be given again
            if spent == 0:
                continue
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
