"""PostgreSQL.

Text always matches exactly. The session's time zone is always UTC, because the columns hold no zone.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from math import ceil
from types import MappingProxyType
from typing import Any, Final

from notary.storage.sql.backends.postgres import dsn
from notary.storage.sql.catalogue import Catalogue, Lock
from notary.storage.sql.dialect import Dialect, PoolSettings, Trouble

_POSTGRES_LOCK: Final = int.from_bytes(b"notary")
"""A lock is a number, and each database has its own."""

CATALOGUE: Final = Catalogue(
    columns="SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema()",
    # An invalid index is left by a CREATE INDEX CONCURRENTLY that broke off.
    indexes=(
        "SELECT t.relname, i.relname, a.attname FROM pg_index AS x "
        "JOIN pg_class AS t ON t.oid = x.indrelid JOIN pg_class AS i ON i.oid = x.indexrelid "
        "JOIN pg_namespace AS n ON n.oid = t.relnamespace "
        "CROSS JOIN LATERAL unnest(x.indkey) WITH ORDINALITY AS k (number, place) "
        "JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = k.number "
        "WHERE x.indisvalid AND n.nspname = current_schema() ORDER BY t.relname, i.relname, k.place"
    ),
    transactional=True,
    # Polled: a statement that waits for the lock would hold up CREATE INDEX CONCURRENTLY, which waits for all of them.
    lock=Lock(f"SELECT pg_try_advisory_lock({_POSTGRES_LOCK})", f"SELECT pg_advisory_unlock({_POSTGRES_LOCK})"),
    forbidden=lambda error: getattr(error, "sqlstate", None) == "42501",
    rights="CREATE on the schema, and to be the owner of its tables",
)

_LOST = ("08", "57P", "53300", "25P03")
"""Beginnings of the codes of errors that end a connection or prevent one: no server, or no room in it
(https://www.postgresql.org/docs/current/errcodes-appendix.html).
"""
_CONFLICTS = ("40001", "40P01", "55P03")
_DUPLICATES = ("23505", "23P01")

_WAITING_CURES = ("starting up", "shutting down", "recovery mode", "not yet accepting", "too many", "remaining conn")
"""Texts of a server that refuses a connection now but may accept it later: libpq gives no code then."""

_ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "25006": "the database is read-only: name its primary in storage.db_url",
        "40001": "transactions kept getting in each other's way: try again",
        "40P01": "transactions kept getting in each other's way: try again",
        "42501": "the database user lacks a right: grant it",
        "42P01": "a table is missing: migrate the database",
        "53300": "the database has no connection left: raise its max_connections, or lower storage.connections",
        "55P03": "another transaction has kept a row locked for too long: look for it in pg_stat_activity",
        "57014": "a statement took longer than storage.query_timeout: see what keeps the database busy",
    }
)
"""What to do, by the code of the error."""


def _code(error: Exception) -> str:
    """The code of an error, "" if the server gave none because the connection was lost or could not be made."""
    return getattr(error, "sqlstate", None) or ""


def _refused(error: Exception) -> bool:
    """Whether a server answered and refused the connection."""
    return not _code(error) and "FATAL:" in str(error) and not any(each in str(error) for each in _WAITING_CURES)


def _trouble(error: Exception) -> Trouble:
    code = _code(error)
    if not code:
        lost = type(error).__name__ in {"OperationalError", "ConnectionTimeout"} and not _refused(error)
        return Trouble.LOST if lost else Trouble.OTHER
    if code.startswith(_LOST):
        return Trouble.LOST
    if code in _CONFLICTS:
        return Trouble.CONFLICT
    return Trouble.DUPLICATE if code in _DUPLICATES else Trouble.OTHER


def _explain(error: Exception) -> str:
    reason = " ".join(str(error).split())
    advice = _ADVICE.get(_code(error))
    if advice is None and _trouble(error) is Trouble.LOST:
        advice = "the database does not answer, or has closed the connection: start it, or correct storage.db_url"
    if advice is None and _refused(error):
        advice = "the database refuses the connection: correct storage.db_url, or create the user and the database"
    return f"{advice}. It says: {reason}" if advice else f"the database could not do its work: {reason}"


def _arguments(db_url: str, pool: PoolSettings) -> Mapping[str, Any]:
    return {
        "connect_timeout": ceil(pool.connect_timeout),
        "application_name": "notary",
        **dsn.postgres(db_url),
        "autocommit": True,
    }


def _prepare(connection: Any, pool: PoolSettings) -> None:
    # Our own time-out is the later one, for a server that fails to apply its own.
    connection.answer_within = pool.query_timeout + 1
    settings = {
        "TimeZone": "UTC",
        "default_transaction_isolation": "read committed",
        "statement_timeout": f"{pool.query_timeout}s",
        "lock_timeout": f"{pool.query_timeout / 2}s",
        # A transaction whose server hangs ends, and holds up neither other writers nor the feed.
        "idle_in_transaction_session_timeout": f"{pool.query_timeout}s",
    }
    connection.execute(
        "SELECT " + ", ".join(f"set_config('{name}', %s, false)" for name in settings), [*settings.values()]
    )


def _holds(name: str) -> bool:
    return len(name) <= 255 and "\0" not in name  # noqa: PLR2004  # the column's


def _bind_time(when: datetime) -> object:
    return when.replace(tzinfo=None)


POSTGRES = Dialect(
    name="postgres",
    driver="notary.storage.sql.backends.postgres.driver",
    needs='psycopg: pip install "notary-service[postgres]"',
    placeholder="%s",
    exactly="{0} = %s",
    bytewise="{0}",
    member="({0})",
    together=lambda _: False,
    connections=10_000,
    writers=10_000,
    begin_read=("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",),
    begin_write=("BEGIN",),
    for_update="FOR UPDATE",
    lock="SELECT 1 FROM pg_advisory_xact_lock(hashtextextended(?, 0))",
    optimistic=False,
    open_writers=(
        "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND relation = ?::regclass AND granted "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND mode = 'RowExclusiveLock'"
    ),
    see_uncommitted="",
    catalogue=CATALOGUE,
    arguments=_arguments,
    prepare=_prepare,
    embedded=None,
    holds=_holds,
    bind_time=_bind_time,
    trouble=_trouble,
    explain=_explain,
)
