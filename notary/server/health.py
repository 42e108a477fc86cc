"""What the health page says: the last result of every periodic check.

Rules of this module: a check is an asynchronous call that fails when something is wrong. Checks run every
``INTERVAL`` seconds and at start, never because somebody asks, so that a slow database cannot make the page slow and
asking often cannot load the database. One that takes longer than that has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.application.service import Service
from twisted.internet.defer import Deferred, TimeoutError  # noqa: A004 - Twisted's own
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from notary.errors import NotaryError

INTERVAL = 10.0
"""Seconds between two runs of a check."""


class Health(Service):
    """Runs ``checks`` (name to check) by ``clock`` while it is started; ``on_result(name, ok)`` hears each outcome."""

    def __init__(
        self,
        checks: Mapping[str, Callable[[], Deferred[None]]],
        clock: IReactorTime,
        on_result: Callable[[str, bool], None],
    ) -> None:
        self._checks = checks
        self._clock = clock
        self._on_result = on_result
        self._failures: dict[str, str] = {}
        self._loops: list[LoopingCall] = []
        self._log = Logger(namespace="notary.server.health")

    def failures(self) -> Mapping[str, str]:
        """The checks that fail, with the error of each; empty when all is well."""
        return dict(self._failures)

    def startService(self) -> None:
        """Begin to check."""
        super().startService()
        for name in self._checks:
            loop = LoopingCall(lambda name=name: Deferred.fromCoroutine(self._run(name)))
            loop.clock = self._clock
            loop.start(INTERVAL)
            self._loops.append(loop)

    def stopService(self) -> None:
        """Check no more."""
        for loop in self._loops:
            loop.stop()
        self._loops.clear()
        super().stopService()

    async def _run(self, name: str) -> None:
        failure = ""
        try:
            await self._checks[name]().addTimeout(INTERVAL, self._clock)
        except NotaryError as error:
            failure = str(error)
        except TimeoutError:
            failure = f"no answer within {INTERVAL:.0f} seconds"
        except Exception:  # noqa: BLE001 - one broken check must not end the others
            self._log.failure("health check broke: {check}", check=name)
            failure = "the check itself failed; the log says why"
        if not self.running:
            return  # it failed because what it asks is being closed
        before = self._failures.pop(name, "")
        if failure:
            self._failures[name] = failure
            if failure != before:
                self._log.error("health check failed: {check}: {error}", check=name, error=failure)
        elif before:
            self._log.error("health check passes again: {check}", check=name)
        self._on_result(name, not failure)
