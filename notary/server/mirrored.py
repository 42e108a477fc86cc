"""How far a read-only server is behind the Notary that it mirrors, by the file that ``notary-admin mirror`` writes.

Rules of this module: the file is read in a thread, every ``INTERVAL_SECONDS``, never because of a request. A file that
cannot be read says nothing: the server may be behind by any time. Being behind is no reason to get no requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from notary.work.mirror_status import MirrorStatus
from notary.work.reactor import Clock
from notary.work.threads import InThread

INTERVAL_SECONDS: Final = 1.0
"""Seconds between two readings of the file."""


class Mirrored(Service):
    """Knows what is in the file at ``path`` while it is started; ``now`` is the time of day (aware)."""

    def __init__(self, path: Path, clock: Clock, in_thread: InThread, now: Callable[[], datetime]) -> None:
        self._path = path
        self._in_thread = in_thread
        self._now = now
        self._status: MirrorStatus | None = None
        self._problem = "the file was not read yet"
        self._loop = LoopingCall(self._read)
        self._loop.clock = clock
        self._log = Logger(namespace="notary.server.mirrored")

    def startService(self) -> Deferred[None]:
        """Read the file now, and again and again; the Deferred fires when it was read."""
        super().startService()
        first = self._read()
        self._loop.start(INTERVAL_SECONDS, now=False)
        return first

    def stopService(self) -> None:
        """Read no more."""
        super().stopService()
        self._loop.stop()

    @property
    def behind_seconds(self) -> float:
        """How far the server may be behind, in seconds; infinite if that is not known."""
        if self._status is None:
            return math.inf
        return max(0.0, self._now().timestamp() - self._status.complete_at)

    @property
    def due(self) -> float:
        """The number of collections that could not be taken over; NaN if that is not known."""
        return math.nan if self._status is None else self._status.due

    def details(self) -> Mapping[str, object]:
        """Return what ``/readyz`` says."""
        if self._status is None:
            return {"mirror": {"behind_seconds": None, "error": self._problem}}
        return {"mirror": {"behind_seconds": round(self.behind_seconds, 3), "due": self._status.due}}

    def _read(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._refresh())

    async def _refresh(self) -> None:
        try:
            self._status = await self._in_thread(partial(MirrorStatus.read, self._path))
            problem = ""
        except OSError as error:
            problem = f"server.mirror_status_file: {str(self._path)!r} cannot be read ({error.strerror})"
        except ValueError as error:
            problem = f"server.mirror_status_file: {str(self._path)!r}: {error}"
        if not self.running:
            return
        if problem:
            self._status = None
        if problem != self._problem:
            if problem:
                self._log.error("{problem}; how far this server is behind is not known", problem=problem)
            elif self._problem:
                self._log.info("How far this server is behind is known")
        self._problem = problem
