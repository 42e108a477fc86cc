"""What a PostgreSQL says of itself, and what that promises.

Rules of this module: every user may ask this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from notary.storage.sql.survey import Ask, Fact, setting

_SETTINGS: Final = (
    "default_transaction_isolation",
    "default_transaction_read_only",
    "fsync",
    "full_page_writes",
    "server_version",
    "synchronous_commit",
    "synchronous_standby_names",
)


def survey(ask: Ask) -> Sequence[Fact]:
    """Return what the server says of itself."""
    names = ", ".join(f"'{name}'" for name in _SETTINGS)
    # What the service sets for its own sessions is no finding.
    rows = ask(
        "SELECT name, CASE WHEN name LIKE 'default_%' THEN reset_val ELSE setting END "  # noqa: S608  # constants
        f"FROM pg_settings WHERE name IN ({names})"
    )
    found = {str(name): str(value) for name, value in rows}
    ((in_recovery, standbys),) = ask("SELECT pg_is_in_recovery(), (SELECT COUNT(*) FROM pg_stat_replication)")
    caches = ask("SELECT sequencename::text, cache_size FROM pg_sequences WHERE schemaname = current_schema()")
    return facts(found, bool(in_recovery), int(standbys), {name: int(size or 1) for name, size in caches})


def facts(found: Mapping[str, str], in_recovery: bool, standbys: int, caches: Mapping[str, int]) -> Sequence[Fact]:
    """Return the facts that follow from settings, the state, the standbys and the caches of sequences."""
    return [
        Fact("server", f"PostgreSQL {found.get('server_version', '?')}", "the release in use"),
        _kind(found, in_recovery, standbys),
        *_settings(found),
        *(
            Fact(f"the sequence {name}", f"CACHE {size}", "the changefeed may lose records: set CACHE 1", risk=True)
            for name, size in caches.items()
            if size > 1
        ),
    ]


def _kind(found: Mapping[str, str], in_recovery: bool, standbys: int) -> Fact:
    if in_recovery:
        return Fact("kind", "a standby", "it takes no writes, and what it has is late: name the primary", risk=True)
    wanted = found.get("synchronous_standby_names", "")
    if wanted:
        return Fact(
            "kind",
            f"a primary, synchronous ({wanted}), standbys: {standbys}",
            "a commit is acknowledged once a standby has it; without one, commits wait",
        )
    if standbys:
        return Fact(
            "kind",
            f"a primary, asynchronous, standbys: {standbys}",
            "a failover to a standby may lose what was acknowledged last: set synchronous_standby_names",
            risk=True,
        )
    return Fact("kind", "a single server", "what it acknowledges is as safe as its disk")


def _settings(found: Mapping[str, str]) -> Iterator[Fact]:
    disk = "a commit is on the disk before it is acknowledged"
    yield from setting(
        found,
        "default_transaction_read_only",
        {"off": "the server takes writes"},
        risky="nothing can be published: set off",
    )
    yield from setting(
        found,
        "fsync",
        {"on": disk},
        risky="the database may be damaged when the machine fails: set on",
    )
    yield from setting(
        found,
        "synchronous_commit",
        {
            "on": f"{disk}, and on that of a synchronous standby",
            "remote_apply": f"{disk}, and a synchronous standby shows it",
            "remote_write": f"{disk}; a synchronous standby has it in memory",
            "local": f"{disk}; standbys are not waited for",
        },
        risky="acknowledged commits are lost when the server dies: set on",
    )
    yield from setting(
        found,
        "full_page_writes",
        {"on": "a page that was half written when the machine failed is mended"},
        risky="a page that was half written when the machine failed is lost: set on",
    )
    isolation = found.get("default_transaction_isolation", "?")
    yield Fact("default_transaction_isolation", isolation, "of no effect: sessions of the service use read committed")
