"""``mirror`` keeps a server's collections like those of another Notary, once or continuously.

Rules of this module: the work is in :mod:`notary.peer`; here are the options, the clock, and what an operator sees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import click
from twisted.internet.task import deferLater

from notary.admin.command import Status, command
from notary.admin.commands.fetch import PeerOptions, database_of, names_of, open_peer, peer_options
from notary.admin.output import counted, text_of
from notary.admin.session import Session
from notary.errors import ConfigError, PeerDenied, PeerFailed, StorageFailed
from notary.peer.fetch import Fetch, Outcome, Result
from notary.peer.mirror import Event, Happened, Mirror
from notary.work.files import replace_file
from notary.work.mirror_status import MirrorStatus

FIGURES: Final = """\
# HELP notary_mirror_last_success_timestamp_seconds When the last round began that took over everything.
# TYPE notary_mirror_last_success_timestamp_seconds gauge
notary_mirror_last_success_timestamp_seconds {last:.3f}
# HELP notary_mirror_behind_seconds How far the mirror may be behind its peer, when this file was written.
# TYPE notary_mirror_behind_seconds gauge
notary_mirror_behind_seconds {behind:.3f}
# HELP notary_mirror_due_collections Collections that have changed at the peer and could not be taken over.
# TYPE notary_mirror_due_collections gauge
notary_mirror_due_collections {due}
# HELP notary_mirror_rounds_total Rounds, by result.
# TYPE notary_mirror_rounds_total counter
notary_mirror_rounds_total{{result="complete"}} {complete}
notary_mirror_rounds_total{{result="incomplete"}} {incomplete}
# HELP notary_mirror_states_total States of collections that were taken over.
# TYPE notary_mirror_states_total counter
notary_mirror_states_total {states}
# HELP notary_mirror_missed_states_total States of collections that were passed over: the peer did not give them.
# TYPE notary_mirror_missed_states_total counter
notary_mirror_missed_states_total {missed}
# HELP notary_mirror_collections_total What was done with collections, by outcome.
# TYPE notary_mirror_collections_total counter
"""
"""The file of figures, but for the counts of outcomes."""

_QUIET: Final = frozenset({Outcome.UNCHANGED, Outcome.ABSENT})
_BAD: Final = (Outcome.REFUSED, Outcome.FAILED, Outcome.DENIED)


@dataclass
class _Figures:
    """The figures of a run. ``last`` is the beginning of the last complete round, in seconds since 1970."""

    last: float
    rounds: Counter[bool] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    states: int = 0
    missed: int = 0

    def text(self, now: float, due: int) -> str:
        """Return the figures in the format of Prometheus."""
        head = FIGURES.format(
            last=self.last,
            behind=max(0.0, now - self.last),
            due=due,
            complete=self.rounds[True],
            incomplete=self.rounds[False],
            states=self.states,
            missed=self.missed,
        )
        lines = [
            f'notary_mirror_collections_total{{outcome="{outcome}"}} {self.outcomes[outcome]}\n'
            for outcome in (*Outcome, *Happened)
        ]
        return head + "".join(lines)


@command("mirror")
@peer_options
@click.option("--follow", is_flag=True, help="Go on until interrupted.")
@click.option(
    "--every",
    type=click.FloatRange(0.1, 86_400),
    default=5.0,
    show_default=True,
    help="Seconds from the beginning of one round to that of the next.",
)
@click.option(
    "--metrics-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write figures for Prometheus to this file after every round.",
)
@click.option(
    "--status-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file, after every round, how far the mirror is, for a read-only server.",
)
async def mirror(
    session: Session,
    /,
    guns: Sequence[str],
    guns_from: Path | None,
    follow: bool,
    every: float,
    metrics_file: Path | None,
    status_file: Path | None,
    **peer: Any,
) -> int:
    """Keep the collections of the database like those of the Notary at URL: fetch what is new, delete what is deleted.

    Without GUN and --guns-from, the server's changefeed says what has changed; otherwise every named collection is
    asked for in every round. With --follow, failures are reported and tried again, and only an interrupt ends the
    command.
    """
    options = PeerOptions(**peer)
    client = open_peer(session, options)
    destination = await database_of(session)
    names = names_of(session, guns, guns_from)
    job = Mirror(client, Fetch(client, destination, session.now), destination, names, options.concurrency)
    run = _Run(session, job, metrics_file, status_file)
    if not follow:
        await run.round()
        return run.end()
    while True:
        began = session.reactor.seconds()
        try:
            await run.round()
        except (PeerFailed, StorageFailed) as error:
            session.out.say(f"{text_of(session.now())} {error}")
        session.out.flush()
        await deferLater(cast("Any", session.reactor), max(0.0, began + every - session.reactor.seconds()))


class _Run:
    """The rounds of one command, and their figures."""

    def __init__(self, session: Session, job: Mirror, metrics_file: Path | None, status_file: Path | None) -> None:
        self._session = session
        self._job = job
        self._metrics_file = metrics_file
        self._status_file = status_file
        self._figures = _Figures(session.now().timestamp())

    async def round(self) -> None:
        """Take over what has changed. Raises PeerFailed, StorageFailed and ConfigError."""
        began = self._session.now().timestamp()
        complete = False
        try:
            await self._job.round(self._report)
            complete = not self._job.due
        except PeerDenied as error:
            raise PeerDenied(f"{error}; name the collections, or give --guns-from") from None
        finally:
            self._figures.rounds[complete] += 1
            if complete:
                self._figures.last = began
            self._write()

    def _write(self) -> None:
        """Write both files. Raises ConfigError."""
        figures, due = self._figures, self._job.due
        if self._metrics_file is not None:
            with _told("--metrics-file", self._metrics_file):
                replace_file(self._metrics_file, figures.text(self._session.now().timestamp(), due).encode())
        if self._status_file is not None and figures.rounds[True]:
            with _told("--status-file", self._status_file):
                MirrorStatus(figures.last, due).write(self._status_file)

    def end(self) -> Status:
        """Write the totals; return the exit status."""
        outcomes = self._figures.outcomes
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        self._session.out.summary(counts or "nothing to do")
        return Status.FOUND if any(outcomes[bad] for bad in _BAD) else Status.OK

    def _report(self, event: Event) -> None:
        result = event.result
        self._figures.outcomes[event.outcome] += 1
        self._figures.states += result.states
        self._figures.missed += result.missed
        if event.outcome in _QUIET:
            return
        now = self._session.now()
        remarks = "" if event.outcome == Happened.DELETED else "; ".join(_remarks(result))
        record: dict[str, object] = {
            "time": now,
            "gun": event.gun,
            "outcome": event.outcome,
            "states": result.states,
            "missed": result.missed,
            "remarks": remarks,
        }
        text = f"{text_of(now)} {event.gun}: {event.outcome}" + (f" ({remarks})" if remarks else "")
        self._session.out.line(text, record)


def _remarks(result: Result) -> Iterator[str]:
    if result.found is None:
        yield result.reason
        return
    if result.states > 1:
        yield f"{result.states} states"
    if result.missed:
        yield f"{counted(result.missed, 'state')} before it could not be had"
    for warning in result.found.warnings:
        yield warning.text


@contextmanager
def _told(option: str, path: Path) -> Iterator[None]:
    """Turn an error of the file system into ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{option}: {str(path)!r} cannot be written ({error.strerror})") from None
