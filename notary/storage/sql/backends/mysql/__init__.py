"""MySQL and MariaDB.

The tables of a Notary compare text without case, pad it with spaces and hold characters up to U+FFFF. So text that must
match exactly is compared twice, the second time as bytes; the first comparison uses the index. ``READ COMMITTED`` takes
no gap locks, so publishers of different collections do not block each other. The session's time zone is always UTC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from math import ceil
from types import MappingProxyType
from typing import Any, Final

from notary.storage.sql.backends.mysql import dsn, turns
from notary.storage.sql.backends.mysql.dsn import READ_ONLY
from notary.storage.sql.backends.mysql.survey import survey
from notary.storage.sql.catalogue import Catalogue
from notary.storage.sql.dialect import DISK_IS_FULL, TAKES_NO_WRITES, Dialect, PoolSettings, Trouble

_MYSQL_FORBIDDEN: Final = frozenset({1044, 1142, 1143, 1227, 1370})
"""Access denied: to a database, a table or a column, for lack of a server privilege, or to a routine."""

CATALOGUE: Final = Catalogue(
    columns=(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = DATABASE() "  # noqa: S608
        f"AND table_name <> '{turns.TABLE}' AND table_name NOT LIKE '{turns.DROPPED}%'"
    ),
    indexes=(
        "SELECT table_name, index_name, column_name FROM information_schema.statistics "
        "WHERE table_schema = DATABASE() ORDER BY table_name, index_name, seq_in_index"
    ),
    missing_rights="",
    grants=(
        "SELECT CONCAT('GRANT {rights} ON ', DATABASE(), '.* TO ', QUOTE(SUBSTRING_INDEX(CURRENT_USER(), '@', 1)), "
        "'@', QUOTE(SUBSTRING_INDEX(CURRENT_USER(), '@', -1)))"
    ),
    transactional=False,
    take_turn=turns.take,
    forbidden=lambda error: bool(error.args) and error.args[0] in _MYSQL_FORBIDDEN,
    rights="SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX and REFERENCES on the database",
)

_LOST = frozenset({1053, 1077, 1078, 1079, 1152, 1158, 1159, 1160, 1161, 1927, *range(2000, 2100)})
"""Numbers of errors that end a connection or prevent one.

Numbers from 2000 on are the client library's own (https://mariadb.com/kb/en/mariadb-error-codes/).
"""
_APART = frozenset({1047, 3100})
"""Numbers of errors of a node of a cluster that has lost the others. A commit that ends so may have been done."""
_DISK_FULL = 1021
_FULL = frozenset({_DISK_FULL, 1114})
_FULL_TEXT = re.compile(r"\b(?:error|errno|errcode):? 28\b", re.IGNORECASE)
"""Matches the text of any other error that a full disk is the cause of: the system's number for it is 28."""
_READ_ONLY = frozenset(READ_ONLY)
_CROWDED = frozenset({1040, 1203, 1226})
_REFUSED = frozenset({1044, 1045, 1049, 1129, 1130, 1251, 1275, 1698, 2007, 2049, 2054, 2058, 2059, 2061})
"""Numbers of errors that refuse a connection until somebody changes something: user, password, host, database, or the
way to prove the password.
"""
_TLS = 2026
_IN_TRANSIT = re.compile(r"unexpected eof|\(\d+\)$")
"""Matches the text of an error of TLS that was an error of the network: its end, or a number of the system."""

_EARLY = re.compile(r"before completion of TLS handshake.*: (\d+) - ", re.DOTALL)
"""Matches the text of an error that the server sent in the place of TLS; the group is the number of that error."""

_TOO_LARGE = frozenset({1153, 1301, 2020})
_CONFLICTS = frozenset({1205, 1213, 1020, 3101, 3572})
_DUPLICATES = frozenset({1062, 1169, 1586})
_BUSY = frozenset({1969, 3024})

_ADVICE: Mapping[int, str] = MappingProxyType(
    {
        _DISK_FULL: DISK_IS_FULL,
        1040: "the database has no connection left: raise its max_connections, or lower storage.connections",
        1044: "the database user may not use this database: grant it the rights, or correct storage.db_url",
        1045: "the database refuses the user or the password: correct storage.db_url, or create the user",
        1047: "this node of the database cluster has lost the others: bring a majority of the nodes back",
        1049: "there is no database of this name: create it, or correct storage.db_url",
        1114: "the disk of the database, or the space that a table may take, is full: make room",
        1129: "the database has blocked this host after many failed connections: unblock it with FLUSH HOSTS",
        1130: "the database user may not connect from this host: create the user for it",
        1142: "the database user lacks a right: grant it (see docs/databases.md, Users and rights)",
        1143: "the database user lacks a right: grant it (see docs/databases.md, Users and rights)",
        1146: "a table is missing: migrate the database",
        1153: "the content is larger than the database takes in one statement: raise its max_allowed_packet",
        1203: "the database user has no connection left: raise its limit, or lower storage.connections",
        1205: "another transaction has kept a row locked for too long: look for it with SHOW PROCESSLIST",
        1213: "transactions kept getting in each other's way: try again",
        1226: "the database user has no connection left: raise its limit, or lower storage.connections",
        **dict.fromkeys(READ_ONLY, TAKES_NO_WRITES),
        1698: "the database refuses the user or the password: correct storage.db_url, or create the user",
        1969: "a statement took longer than storage.query_timeout: see what keeps the database busy",
        2002: "nobody answers at the database's address: start it, or correct storage.db_url",
        2003: "nobody answers at the database's address: start it, or correct storage.db_url",
        2005: "the database's host name cannot be resolved: correct storage.db_url",
        2006: "the database has closed the connection: see its log",
        2013: "the database does not answer, or has closed the connection: see its log",
        2026: "TLS to the database failed: see the parameter tls in storage.db_url, and the database's certificate",
        2059: "the database wants a way to prove the password that the client library lacks: change it for this user",
        2061: "the database wants TLS before a password: set tls in storage.db_url",
        3024: "a statement took longer than storage.query_timeout: see what keeps the database busy",
        3100: "this node of the database cluster has lost the others: bring a majority of the nodes back",
        3101: "another node of the database cluster has written the same at the same time: try again",
    }
)
"""What to do, by the number of the error."""


def _code(error: Exception) -> int:
    """The number of an error, 0 if it has none."""
    if not error.args or not isinstance(error.args[0], int):
        return 0
    early = _EARLY.search(str(error.args[-1]))
    return int(early[1]) if early else error.args[0]


def _trouble(error: Exception) -> Trouble:
    code = _code(error)
    if code in _TOO_LARGE:
        return Trouble.OTHER
    if code in _REFUSED or (code == _TLS and not _IN_TRANSIT.search(str(error.args[-1]))):
        return Trouble.REFUSED
    if code in _LOST or code in _APART or _is_full(error):
        return Trouble.LOST
    if code in _READ_ONLY:
        return Trouble.OTHER if getattr(error, "stays", False) else Trouble.READ_ONLY
    if code in _CROWDED:
        return Trouble.CROWDED
    if code in _BUSY:
        return Trouble.BUSY
    if code in _CONFLICTS:
        return Trouble.CONFLICT
    return Trouble.DUPLICATE if code in _DUPLICATES else Trouble.OTHER


def _is_full(error: Exception) -> bool:
    code = _code(error)
    return code in _FULL or (code not in _LOST and bool(_FULL_TEXT.search(str(error.args[-1:]))))


def _explain(error: Exception) -> str:
    reason = f"{error.args[1]} ({error.args[0]})" if len(error.args) > 1 else str(error)
    advice = _ADVICE.get(_code(error), DISK_IS_FULL if _is_full(error) else None)
    return f"{advice}. It says: {reason}" if advice else f"the database could not do its work: {reason}"


def _arguments(db_url: str, pool: PoolSettings) -> Mapping[str, Any]:
    seconds = ceil(pool.query_timeout) + 1  # a healthy server applies its own limit first
    return {
        "connect_timeout": ceil(pool.connect_timeout),
        "read_timeout": seconds,
        "write_timeout": seconds,
        **dsn.mysql(db_url),
        "charset": "utf8mb4",
        "autocommit": True,
    }


def _prepare(connection: Any, pool: PoolSettings) -> None:
    waiting = max(1, int(pool.query_timeout / 2))
    cursor = connection.cursor()
    cursor.execute(
        f"SET SESSION /*M! max_statement_time = {pool.query_timeout}, */ "
        # A transaction whose server hangs ends, and holds up neither other writers nor the feed.
        f"/*M!100300 idle_write_transaction_timeout = {ceil(pool.query_timeout)}, */ "
        f"innodb_lock_wait_timeout = {waiting}, "
        "time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES'"
    )
    access = ", READ ONLY" if pool.read_only else ""
    cursor.execute(f"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED{access}")
    cursor.close()


def _holds(name: str) -> bool:
    return len(name) <= 255 and all(character <= "\uffff" for character in name)  # noqa: PLR2004  # the column's


def _bind_time(when: datetime) -> object:
    """Cut the time to whole seconds, as the columns hold it; MySQL would round it, possibly into the future."""
    return when.replace(microsecond=0, tzinfo=None)


MYSQL = Dialect(
    name="mysql",
    driver="notary.storage.sql.backends.mysql.driver",
    needs=(
        'mysqlclient: pip install "notary-service[mysql]"; or PyMySQL, which needs no C library and takes more '
        'processor time: pip install "notary-service[pymysql]"'
    ),
    placeholder="%s",
    exactly="{0} = %s AND CAST({0} AS BINARY) = %s",
    bytewise="CAST({0} AS BINARY)",
    member="({0})",
    together=lambda cursor: not cursor.connection.is_clustered,
    connections=10_000,
    writers=10_000,
    # With READ COMMITTED, the session's level, each statement would see its own moment.
    begin_read=(
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
    ),
    begin_write=("START TRANSACTION",),
    for_update="FOR UPDATE",
    lock="",  # a lock of GET_LOCK counts on one node of a cluster only, and some clusters refuse it
    optimistic=True,
    open_writers="",
    see_uncommitted="SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
    catalogue=CATALOGUE,
    arguments=_arguments,
    prepare=_prepare,
    read_only="SELECT CONCAT(@@global.read_only) NOT IN ('0', 'OFF')",
    leaves_read_only=lambda connection: bool(connection.reject_read_only),
    is_full=_is_full,
    undo_leaves_nothing=True,
    try_room=(),
    free_bytes=None,
    embedded=None,
    holds=_holds,
    bind_time=_bind_time,
    trouble=_trouble,
    explain=_explain,
    survey=survey,
)
