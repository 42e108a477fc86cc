"""How migrations of one MySQL database take turns.

One server has locks by name (``GET_LOCK``), which end with their session. On a cluster of several writers such a lock
counts on its own node only, and some clusters refuse it. There a row of a table stands for the lock: of two nodes that
insert it, one fails. The row says which session inserted it. If that session was on this node and has ended, the row
is removed, by one that waits; a session of another node cannot be seen, so that an operator must remove its row.

The table exists only while it is in use. It is renamed before it is dropped, so that nobody's row is dropped with it.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import Any, Final

from notary.storage.sql.backends.mysql import dsn
from notary.storage.sql.catalogue import Run, Taken

TABLE: Final = "notary_migrating"
DROPPED: Final = "notary_migrated"
"""The beginning of the table's name before it is dropped."""

_NAME: Final = "CONCAT('notary migrate ', SHA1(DATABASE()))"
"""The name of a lock is shared by all databases of a server, and has at most 64 characters."""

_REFUSED: Final = frozenset({1105, 1235, 1305})
"""Numbers of the errors by which a server says that it has no such lock, or allows none."""

_DUPLICATE: Final = 1062
_DEADLOCK: Final = 1213
_NO_TABLE: Final = 1146


def take(run: Run) -> Taken:
    """Take the lock for migrations, or wait for it for a second at most."""
    if _is_clustered(run):
        return _take_row(run)
    try:
        ((taken,),) = run(f"SELECT GET_LOCK({_NAME}, 1)")
    except Exception as error:
        if _number(error) not in _REFUSED:
            raise
        return _take_row(run)
    return partial(run, f"SELECT RELEASE_LOCK({_NAME})") if taken else ""


def _is_clustered(run: Run) -> bool:
    return dsn.is_galera(dict(map(tuple, run(f"SHOW VARIABLES WHERE Variable_name IN {dsn.GALERA_VARIABLES}"))))


def _take_row(run: Run) -> Taken:
    ((here, session, user),) = run("SELECT CONCAT(@@hostname, ' port ', @@port), CONNECTION_ID(), CURRENT_USER()")
    owner = f"session {session} of {user} on {here}"
    try:
        run(f"CREATE TABLE IF NOT EXISTS {TABLE} (id int NOT NULL PRIMARY KEY, owner varchar(255)) ENGINE=InnoDB")
        run(f"INSERT INTO {TABLE} (id, owner) VALUES (1, ?)", owner)  # noqa: S608  # a constant
    except Exception as error:
        if _number(error) not in {_DUPLICATE, _DEADLOCK, _NO_TABLE}:
            raise
    else:
        return partial(_give_back_row, run)
    return _other_owner(run, f" of {user} on {here}")


def _other_owner(run: Run, like_ours: str) -> str:
    """Return who has the row, "" if nobody has; remove the row if its session has ended."""
    try:
        rows = run(f"SELECT owner FROM {TABLE}")  # noqa: S608  # a constant
    except Exception as error:
        if _number(error) != _NO_TABLE:
            raise
        return ""
    if not rows:
        return ""
    ((other,),) = rows
    number = other.removeprefix("session ").removesuffix(like_ours)
    if number.isdecimal() and not run("SELECT 1 FROM information_schema.processlist WHERE id = ?", int(number)):
        run(f"DELETE FROM {TABLE} WHERE owner = ?", other)  # noqa: S608  # a constant
        return ""
    return f"{other}; if that one has ended, empty the table {TABLE}"


def _give_back_row(run: Run) -> None:
    name = f"{DROPPED}_{secrets.token_hex(8)}"
    run(f"RENAME TABLE {TABLE} TO {name}")
    run(f"DROP TABLE {name}")


def _number(error: Exception) -> Any:
    return error.args[0] if error.args else None
