"""What the health page says: the last result of every periodic check.

Rules of this module: a check is an asynchronous call that fails when something is wrong. Checks run at the start and
then again and again, and never because of a request: a slow database cannot make the page slow, and frequent requests
cannot load the database. The database is asked every ``DATABASE_SECONDS``, all else every ``INTERVAL_SECONDS``; a check
that takes longer than that has failed. A server whose signer fails, or whose database takes no writes, is degraded: it
serves every read, so it stays ready (``READS``), and reports that it takes no publishes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.application.service import Service
from twisted.internet.defer import Deferred, TimeoutError  # noqa: A004 - Twisted's own
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from notary.errors import NotaryError
from notary.observe.readiness import STARTING, Readiness
from notary.server.signing import SERVING

INTERVAL_SECONDS = 10.0
"""Seconds between two runs of a check, and the longest time for one run."""

DATABASE_SECONDS = 2.0
"""The same for the checks of the database, so that the truth is known after twice this time."""

DATABASE = "DB operational"
SIGNER = "Trust operational"
"""The names of the checks on the health page; those of the reference."""

WRITES = "DB takes writes"
"""The name of a check that the reference lacks."""

READS = frozenset({DATABASE})
"""The checks that must pass for reads to be served."""


class Health(Service):
    """Runs ``checks`` (by name) while the service runs; ``on_result(name, ok)`` is called with each outcome.

    With ``read_only``, the server takes no writes although every check passes. ``signers`` returns the state of each
    signer by its address; the server takes writes while one of them serves. ``details`` has further members of the
    answer of ``/readyz``.
    """

    def __init__(
        self,
        checks: Mapping[str, Callable[[], Deferred[None]]],
        clock: IReactorTime,
        on_result: Callable[[str, bool], None],
        *,
        read_only: bool = False,
        signers: Callable[[], Mapping[str, str]] = dict,
        details: Callable[[], Mapping[str, object]] = dict,
    ) -> None:
        self._read_only = read_only
        self._signers = signers
        self._details = details
        self._checks = checks
        self._clock = clock
        self._on_result = on_result
        self._failures: dict[str, str] = {}
        self._checked: set[str] = set()
        self._retired = False
        self._loops: list[LoopingCall] = []
        self._log = Logger(namespace="notary.server.health")

    def failures(self) -> Mapping[str, str]:
        """Return the error of each failing check, by name; empty if every check passes.

        Of signers, what their connections say counts: it is newer than the last check.
        """
        failures = dict(self._failures)
        states = self._signers()
        if SERVING in states.values():
            failures.pop(SIGNER, None)
        elif states:
            failures.setdefault(SIGNER, "; ".join(states.values()))
        return failures

    def readiness(self) -> Readiness:
        """Return whether this server is ready for requests: it can serve reads, and it is not stopping."""
        if self._retired:
            return Readiness(ready=False, status="stopping")
        if not self._checked.issuperset(self._checks):
            return STARTING
        failures = self.failures()
        reads = READS.isdisjoint(failures)
        writes = not failures and not self._read_only
        facts: dict[str, object] = {"reads": reads, "writes": writes, "failures": failures}
        signers = self._signers()
        if signers:
            facts["signers"] = signers
        if self._read_only:
            facts["read_only"] = True
        facts.update(self._details())
        return Readiness(ready=reads, status="ok" if not failures else "degraded" if reads else "failing", facts=facts)

    def retire(self) -> None:
        """Report from now on that this server is not ready, because it stops."""
        self._retired = True

    def startService(self) -> None:
        """Begin to run the checks."""
        super().startService()
        for name in self._checks:
            loop = LoopingCall(lambda name=name: Deferred.fromCoroutine(self._run(name)))
            loop.clock = self._clock
            loop.start(_seconds(name))
            self._loops.append(loop)

    def stopService(self) -> None:
        """Run no more checks."""
        for loop in self._loops:
            loop.stop()
        self._loops.clear()
        super().stopService()

    async def _run(self, name: str) -> None:
        failure = ""
        try:
            await self._checks[name]().addTimeout(_seconds(name), self._clock)
        except NotaryError as error:
            failure = str(error)
        except TimeoutError:
            failure = f"no answer within {_seconds(name):.0f} seconds"
        except Exception:  # noqa: BLE001 - one broken check must not end the others
            self._log.failure("health check broke: {check}", check=name)
            failure = "the check itself failed; the log says why"
        if not self.running:
            return  # the check failed because its service is being closed
        self._checked.add(name)
        before = self._failures.pop(name, "")
        if failure:
            self._failures[name] = failure
            if failure != before:
                self._log.error("health check failed: {check}: {error}", check=name, error=failure)
        elif before:
            self._log.error("health check passes again: {check}", check=name)
        self._on_result(name, not failure)


def _seconds(check: str) -> float:
    return DATABASE_SECONDS if check in {DATABASE, WRITES} else INTERVAL_SECONDS
