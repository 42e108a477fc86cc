"""What notices that the event loop is held, and by what.

Rules of this module: the loop itself cannot say so, hence a thread that looks whether it turns. While a call into C
keeps the interpreter to itself (a regular expression, say), no thread of Python runs either. For that case the thread
sets an alarm (SIGALRM) each time that it looks. If the alarm is not set again in time, it interrupts the thread of the
loop, which then writes its own stack to standard error, in the words of ``faulthandler``: no other thread may read a
stack that is in use, which can crash the process. So a line of the log tells of the one case, and lines that are none
of the other; both end with a line that says how long it was. Nothing but functions and places is told.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from io import UnsupportedOperation
from typing import Final

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from notary.work.reactor import Reactor
from notary.work.repeats import Line, Repeats

HELD_SECONDS: Final = 5.0
"""How long the event loop may be held before a line is logged."""

_LOOKS: Final = 5  # while the loop is held, before it is told
_MOST_PLACES: Final = 32  # calls that are shown, from the innermost


class Watchdog:
    """Watches the ``reactor`` from ``start``, which its own thread calls, until ``stop``.

    ``seconds`` is how long it may be held; ``monotonic`` the time.
    """

    def __init__(
        self, reactor: Reactor, seconds: float = HELD_SECONDS, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._reactor = reactor
        self._seconds = seconds
        self._monotonic = monotonic
        self._log = Logger(namespace="notary.observe.watchdog")
        self._repeats = Repeats(2, monotonic)
        self._turned = 0.0  # when the loop did last
        self._told = -1.0  # the value of that of which somebody has been told
        self._turn: IDelayedCall | None = None
        self._watched: int | None = None  # the thread of the loop
        self._alarmed = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch."""
        if self._thread is not None or self._stop.is_set():
            return
        self._watched = threading.get_ident()
        self._turned = self._monotonic()
        self._wait()
        try:
            faulthandler.register(signal.SIGALRM, file=sys.__stderr__ or 2, all_threads=False)
            self._alarmed = True
        except (OSError, ValueError, UnsupportedOperation):
            self._alarmed = False  # standard error is closed: there is nowhere to write to
        self._set_alarm(self._seconds)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more. The thread has ended then, which takes no time."""
        self._stop.set()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._alarmed:
            self._alarmed = False
            faulthandler.unregister(signal.SIGALRM)

    def _wait(self) -> None:
        self._turn = self._reactor.callLater(self._seconds / _LOOKS, self._note)

    def _note(self) -> None:
        now = self._monotonic()
        held = now - self._turned
        self._turned = now
        if held >= self._seconds and (line := self._repeats.happened("goes on", "")) is not None:
            self._log.error(
                "the event loop goes on, after {seconds} s{counted}", seconds=round(held, 1), counted=_counted(line)
            )
        self._wait()

    def _watch(self) -> None:
        try:
            while not self._stop.wait(self._seconds / _LOOKS):
                self._set_alarm(self._seconds)
                self._look()
        finally:
            self._set_alarm(0)

    def _set_alarm(self, seconds: float) -> None:
        if self._alarmed:
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def _look(self) -> None:
        turned = self._turned
        held = self._monotonic() - turned
        if held < self._seconds or turned == self._told:
            return
        self._told = turned
        if (line := self._repeats.happened("held", "")) is not None:
            self._log.error(
                "the event loop has been held for {seconds} s; nobody is served until it goes on{counted}",
                seconds=round(held, 1),
                stack=self._stack(),
                counted=_counted(line),
            )

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._watched or 0)  # noqa: SLF001 - the documented way to another thread's
        places = [
            f"{each.f_code.co_filename}:{line} {each.f_code.co_name}"
            for each, line in list(traceback.walk_stack(frame))[:_MOST_PLACES]
        ]
        return "; ".join(reversed(places))


def _counted(line: Line) -> str:
    return f" (and so {line.more} times since the last such line)" if line.more else ""
