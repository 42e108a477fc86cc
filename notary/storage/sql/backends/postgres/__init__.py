"""PostgreSQL.

Text always matches exactly. The session's time zone is always UTC, because the columns hold no zone.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from math import ceil
from types import MappingProxyType
from typing import Any, Final

from notary.storage.sql.backends.postgres import dsn
from notary.storage.sql.backends.postgres.survey import survey
from notary.storage.sql.catalogue import Catalogue, Run, Taken
from notary.storage.sql.dialect import DISK_IS_FULL, TAKES_NO_WRITES, Dialect, PoolSettings, Trouble

_POSTGRES_LOCK: Final = int.from_bytes(b"notary")
"""A lock is a number, and each database has its own."""


def _take_turn(run: Run) -> Taken:
    # Polled: a statement that waits for the lock would hold up CREATE INDEX CONCURRENTLY, which waits for all of them.
    ((taken,),) = run(f"SELECT pg_try_advisory_lock({_POSTGRES_LOCK})")
    return partial(run, f"SELECT pg_advisory_unlock({_POSTGRES_LOCK})") if taken else ""


CATALOGUE: Final = Catalogue(
    # The views of information_schema lack the tables on which the user has no right.
    columns=(
        "SELECT c.relname, a.attname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid "
        "WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f') "
        "AND a.attnum > 0 AND NOT a.attisdropped"
    ),
    # An invalid index is left by a CREATE INDEX CONCURRENTLY that broke off.
    indexes=(
        "SELECT t.relname, i.relname, a.attname FROM pg_index AS x "
        "JOIN pg_class AS t ON t.oid = x.indrelid JOIN pg_class AS i ON i.oid = x.indexrelid "
        "JOIN pg_namespace AS n ON n.oid = t.relnamespace "
        "CROSS JOIN LATERAL unnest(x.indkey) WITH ORDINALITY AS k (number, place) "
        "JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = k.number "
        "WHERE x.indisvalid AND n.nspname = current_schema() ORDER BY t.relname, i.relname, k.place"
    ),
    # There is no current schema if the user may use none. A sequence is needed by the tables whose defaults name it.
    missing_rights=(
        "SELECT 'SCHEMA', 'public', 'USAGE', '' WHERE current_schema() IS NULL "
        "UNION ALL SELECT 'TABLE', c.relname::text, r.name, c.relname::text FROM pg_class AS c "
        "CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS r (name) "
        "WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'v') "
        "AND NOT has_table_privilege(c.oid, r.name) "
        "AND (r.name = 'DELETE' OR NOT has_any_column_privilege(c.oid, r.name)) "
        "UNION ALL SELECT DISTINCT 'SEQUENCE', s.relname::text, 'USAGE', c.relname::text FROM pg_attrdef AS d "
        "JOIN pg_class AS c ON c.oid = d.adrelid "
        "JOIN pg_depend AS p ON p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid "
        "JOIN pg_class AS s ON p.refclassid = 'pg_class'::regclass AND s.oid = p.refobjid "
        "WHERE c.relnamespace = current_schema()::regnamespace "
        "AND CASE s.relkind WHEN 'S' THEN NOT has_sequence_privilege(s.oid, 'USAGE, UPDATE') ELSE false END"
    ),
    grants=(
        "SELECT 'GRANT USAGE ON SCHEMA ' || s || ' TO ' || u || '; GRANT {rights} ON ALL TABLES IN SCHEMA ' || s || "
        "' TO ' || u || '; GRANT USAGE ON ALL SEQUENCES IN SCHEMA ' || s || ' TO ' || u "
        "FROM (SELECT quote_ident(COALESCE(current_schema(), 'public')) AS s, quote_ident(current_user) AS u) AS names"
    ),
    transactional=True,
    take_turn=_take_turn,
    forbidden=lambda error: getattr(error, "sqlstate", None) == "42501",
    rights="CREATE on the schema, and to be the owner of its tables",
)

TRY_ROOM: Final = (
    "SELECT set_config('work_mem', '64kB', true), set_config('temp_tablespaces', '', true)",
    (
        # Nothing is sorted where temporary files are limited: an error would say nothing of the disk.
        "SELECT sum(length(content)) FROM (SELECT number, repeat('x', 65536) AS content "
        "FROM generate_series(1, CASE current_setting('temp_file_limit') WHEN '-1' THEN 16 ELSE 0 END) AS number "
        "ORDER BY number DESC) AS sorted"
    ),
)
"""A sort that has no room in memory, and so writes a temporary file of a megabyte to the tablespace of the database."""

_LOST = ("08", "57P", "25P03", "25P04", "53100")
"""Beginnings of the codes of errors that end a connection or prevent one, or that a full disk has
(https://www.postgresql.org/docs/current/errcodes-appendix.html).
"""
_READ_ONLY = ("25006",)
_CROWDED = ("53300",)
_FULL = ("53100",)
_CONFLICTS = ("40001", "40P01", "55P03")
_DUPLICATES = ("23505", "23P01")

_WAITING_CURES = (
    "starting up",
    "shutting down",
    "recovery mode",
    "not yet accepting",
    "not accepting",
    "too many",
    "remaining conn",
    "terminating connection",
    "server_login_retry",
    "query_wait_timeout",
    "no more connections allowed",
    "Is the server running",
    "timeout expired",
    "failed to resolve host",
)
"""Parts of the text of an error after which a later connection may succeed: libpq gives no code then. Some are those of
PgBouncer. The text has the errors of all hosts, if ``storage.db_url`` names several.
"""

_CROWDS = ("too many", "remaining conn", "no more connections allowed")
"""Those of ``_WAITING_CURES`` that mean that no connection is left."""

_REFUSALS = (
    "FATAL:",
    "does not support SSL",
    "certificate",
    "private key file",
    "SSL error: tlsv1",
    "SSL error: sslv3",
    "SSL error: no ",
    "SSL error: unsupported",
    "SSL error: wrong version",
)
"""Parts of the text of an error that waiting does not cure, unless one of ``_WAITING_CURES`` is there too."""

_BUSY = ("57014",)

_ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "25006": TAKES_NO_WRITES,
        "40001": "transactions kept getting in each other's way: try again",
        "40P01": "transactions kept getting in each other's way: try again",
        "3F000": "the database user may use no schema: GRANT USAGE ON SCHEMA public, or correct its search_path",
        "42501": "the database user lacks a right: grant it (see docs/databases.md, Users and rights)",
        "42P01": "a table is missing: migrate the database",
        "53100": DISK_IS_FULL,
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
    """Whether the error is that no connection could be made, and waiting changes nothing."""
    text = str(error)
    return (
        not _code(error)
        and any(each in text for each in _REFUSALS)
        and not any(each in text for each in _WAITING_CURES)
    )


def _trouble(error: Exception) -> Trouble:
    code = _code(error)
    if not code:
        if type(error).__name__ not in {"OperationalError", "ConnectionTimeout"}:
            return Trouble.OTHER
        if any(each in str(error) for each in _CROWDS):
            return Trouble.CROWDED
        return Trouble.REFUSED if _refused(error) else Trouble.LOST
    if code.startswith(_LOST):
        return Trouble.LOST
    if code in _READ_ONLY:
        return Trouble.READ_ONLY
    if code in _CROWDED:
        return Trouble.CROWDED
    if code in _CONFLICTS:
        return Trouble.CONFLICT
    if code in _BUSY:
        return Trouble.BUSY
    return Trouble.DUPLICATE if code in _DUPLICATES else Trouble.OTHER


def _explain(error: Exception) -> str:
    reason = " ".join(str(error).split())
    advice = _ADVICE.get(_code(error))
    if advice is None and _trouble(error) is Trouble.CROWDED:
        advice = _ADVICE["53300"]
    if advice is None and _trouble(error) is Trouble.LOST:
        advice = "the database does not answer, or has closed the connection: start it, or correct storage.db_url"
    if advice is None and _trouble(error) is Trouble.REFUSED:
        if "FATAL:" in reason:
            advice = "the database refuses the connection: correct storage.db_url, or create the user and the database"
        else:
            advice = (
                "TLS to the database failed: see sslmode and sslrootcert in storage.db_url, and the database's "
                "certificate"
            )
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
        **({"default_transaction_read_only": "on"} if pool.read_only else {}),
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
    read_only="SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean",
    leaves_read_only=lambda _: True,
    is_full=lambda error: _code(error) in _FULL,
    undo_leaves_nothing=False,
    try_room=TRY_ROOM,
    free_bytes=None,
    embedded=None,
    holds=_holds,
    bind_time=_bind_time,
    trouble=_trouble,
    explain=_explain,
    survey=survey,
)
