"""``fetch`` brings collections in from another Notary, by its public API.

Rules of this module: the work is in :mod:`notary.peer`; here are the options, and what an operator sees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from twisted.internet.defer import Deferred

from notary.admin.command import DRY_RUN_OPTION, Status, command
from notary.admin.destinations import ArchiveDestination, DatabaseDestination
from notary.admin.output import counted, relative_time, text_of
from notary.admin.session import Session
from notary.errors import ConfigError, PeerDenied
from notary.peer.access import Access, Anonymous, Credentials
from notary.peer.client import Peer, base_of
from notary.peer.credentials import DockerConfig, docker_config_file, read_login
from notary.peer.fetch import Destination, Fetch, Outcome, Result, listed
from notary.peer.http import Http, Trust
from notary.peer.names import read_list
from notary.storage.open import open_inventory, open_metadata_store

_F = TypeVar("_F", bound=Callable[..., object])

_FILE: Final = click.Path(dir_okay=False, path_type=Path)
_COLUMNS: Final = ("GUN", "Outcome", "New files", "Readable until", "Remarks")


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """The options that say how to reach another Notary, and who asks."""

    url: str
    ca: Path | None
    client_cert: Path | None
    client_key: Path | None
    credentials: Path | None
    docker_config: Path | None
    timeout: float
    concurrency: int


def peer_options(body: _F) -> _F:
    """Add the options of :class:`PeerOptions` to a command."""
    for option in reversed(
        (
            click.argument("url"),
            click.argument("guns", nargs=-1),
            click.option(
                "--guns-from",
                type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
                help="A file with one GUN or Docker repository a line; - is standard input.",
            ),
            click.option("--ca", type=_FILE, help="The certificates to trust (PEM), in place of those of the system."),
            click.option("--client-cert", type=_FILE, help="A certificate to show to the server (PEM)."),
            click.option("--client-key", type=_FILE, help="The key of --client-cert (PEM)."),
            click.option("--credentials", type=_FILE, help="A file with one line name:password."),
            click.option(
                "--docker-config",
                type=_FILE,
                help="A config.json of Docker with logins.  [default: that of the user, if it exists]",
            ),
            click.option(
                "--concurrency",
                type=click.IntRange(1, 64),
                default=8,
                show_default=True,
                help="Number of collections that are fetched side by side.",
            ),
            click.option(
                "--timeout",
                type=click.FloatRange(0.1, 3600),
                default=30.0,
                show_default=True,
                help="Seconds until the server must begin an answer.",
            ),
        )
    ):
        body = option(body)
    return body


def open_peer(session: Session, options: PeerOptions) -> Peer:
    """Return a client of another Notary; the session closes it. Raises ConfigError."""
    base = base_of(options.url)
    if (options.client_cert is None) != (options.client_key is None):
        raise ConfigError("--client-cert, --client-key: one is missing; expected both or neither")
    trust = Trust(options.ca, options.client_cert, options.client_key)
    http = Http(session.reactor, base, trust, connections=options.concurrency, timeout=options.timeout)
    access = Access(http, base, _credentials(session, options), session.reactor.seconds)
    peer = Peer(base, http, access, session.reactor)
    session.at_end(lambda: Deferred.fromCoroutine(peer.close()))
    return peer


def _credentials(session: Session, options: PeerOptions) -> Credentials:
    if options.credentials is not None and options.docker_config is not None:
        raise ConfigError("--credentials, --docker-config: both are given; expected one or none")
    if options.credentials is not None:
        return read_login(options.credentials)
    path = options.docker_config or docker_config_file(session.environ)
    return Anonymous() if path is None else DockerConfig(path, session.reactor, session.environ)


@command("fetch", needs_config=False)
@peer_options
@click.option(
    "--archive", type=click.Path(file_okay=False, path_type=Path), help="Write archives to this folder, not a database."
)
@click.option("--force", is_flag=True, help="Replace stored collections that are newer or have another history.")
@DRY_RUN_OPTION
async def fetch(
    session: Session,
    /,
    guns: Sequence[str],
    guns_from: Path | None,
    archive: Path | None,
    force: bool,
    dry_run: bool,
    **peer: Any,
) -> int:
    """Fetch collections from the Notary at URL, by its public API, into the database of --config or into archives.

    A collection is taken byte for byte, with all its roots and delegations, after everything in it was verified. What
    has expired is taken with a warning; what is not signed as it must be is refused. Without GUN and --guns-from, all
    collections are fetched that the server's changefeed names. Run the command again to continue, or to take what is
    new.
    """
    options = PeerOptions(**peer)
    client = open_peer(session, options)
    destination = await _destination(session, archive)
    await client.greet()
    names = await wanted(session, client, guns, guns_from)
    job = Fetch(client, destination, session.now, force=force, dry_run=dry_run)
    counts: Counter[Outcome] = Counter()
    with (
        session.out.progress("Fetching", len(names)) as advance,
        session.out.table(*_COLUMNS) as add,
    ):

        def report(result: Result) -> None:
            counts[result.outcome] += 1
            add(row(result, session.now()), record(result))
            advance(1)

        await job.many(names, options.concurrency, report)
    session.out.summary(summary(counts, dry_run=dry_run))
    missing = len(names) - counts[Outcome.STORED] - counts[Outcome.UNCHANGED]
    return Status.FOUND if missing else Status.OK


async def _destination(session: Session, archive: Path | None) -> Destination:
    if archive is not None:
        return ArchiveDestination(archive)
    return await database_of(session)


async def database_of(session: Session) -> DatabaseDestination:
    """Open the database of the server's configuration. Raises ConfigError and StorageFailed."""
    config = session.server()
    store = await session.open(config, open_metadata_store)
    inventory = await session.open(config, open_inventory)
    return DatabaseDestination(store, inventory, config.repositories.gun_prefixes)


async def wanted(session: Session, client: Peer, guns: Sequence[str], guns_from: Path | None) -> list[str]:
    """Return the names to fetch, each once. Raises ConfigError and PeerFailed."""
    named = names_of(session, guns, guns_from)
    if named is not None:
        return named
    with session.out.progress("Changes", None) as advance:
        try:
            return await listed(client, advance)
        except PeerDenied as error:
            raise PeerDenied(
                f"the server does not say which collections it has ({error}); name them, or give --guns-from"
            ) from None


def names_of(session: Session, guns: Sequence[str], guns_from: Path | None) -> list[str] | None:
    """Return the names that the command line and a file give, each once; None if there are none. Raises ConfigError."""
    if not guns and guns_from is None:
        return None
    return list(dict.fromkeys([*guns, *(() if guns_from is None else _names(session, guns_from))]))


def _names(session: Session, path: Path) -> list[str]:
    try:
        text = session.stdin.read() if str(path) == "-" else path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"--guns-from: {str(path)!r} cannot be read ({error.strerror})") from None
    except ValueError:
        raise ConfigError(f"--guns-from: {str(path)!r} is not UTF-8") from None
    return list(read_list(text.splitlines()))


def row(result: Result, now: datetime) -> Sequence[object]:
    """Return the cells of a result."""
    if result.found is None:
        return [result.name, result.outcome, None, None, result.reason]
    until = result.found.readable_until
    remarks = "; ".join(warning.text for warning in result.found.warnings)
    shown = f"{text_of(until)} ({relative_time(until, now)})"
    return [result.gun, result.outcome, len(result.found.files), shown, remarks or None]


def record(result: Result) -> dict[str, object]:
    """Return a result for scripts."""
    base: dict[str, object] = {"gun": result.gun, "name": result.name, "outcome": str(result.outcome)}
    if result.found is None:
        return {**base, "reason": result.reason}
    found = result.found
    return {
        **base,
        "new": len(found.files),
        "bytes": sum(len(file.data) for file in found.files),
        "readable_until": found.readable_until,
        "roles": {
            role: {"version": version, "expires": found.expires.get(role)} for role, version in found.versions.items()
        },
        "warnings": [{"role": each.role, "text": each.text, "expired": each.expired} for each in found.warnings],
    }


def summary(counts: Counter[Outcome], *, dry_run: bool = False) -> str:
    """Return the totals, without outcomes that did not occur."""
    words = {Outcome.STORED: "would be stored" if dry_run else "stored"}
    parts = [f"{counts[outcome]} {words.get(outcome, outcome)}" for outcome in Outcome if counts[outcome]]
    return f"{counted(sum(counts.values()), 'collection')}: {', '.join(parts) or 'nothing to do'}"
