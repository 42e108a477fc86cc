"""What each database says of its own tables, and how migrations keep out of each other's way: one row a backend.

Rules of this module: data only; no row knows the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that ends with its session. ``take`` is a query that is true if it is ours, after a second at most."""

    take: str
    give_back: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """How to look at one database's tables, and to change them.

    ``columns`` is a query for (table, column), ``indexes`` one for (table, index, column) in the order of the columns,
    both for the database or schema in use.

    ``transactional`` tells whether tables can be changed in a transaction. ``lock`` keeps other migrations out; None
    where a transaction that writes does that.

    ``forbidden`` tells whether an error says that the user lacks a right, ``rights`` what a user needs for this work.
    """

    columns: str
    indexes: str
    transactional: bool
    lock: Lock | None
    forbidden: Callable[[Exception], bool]
    rights: str


SQLITE3: Final = Catalogue(
    columns=(
        "SELECT m.name, c.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c "
        "WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'"
    ),
    indexes=(
        "SELECT m.tbl_name, m.name, c.name FROM sqlite_master AS m, pragma_index_info(m.name) AS c "
        "WHERE m.type = 'index' ORDER BY m.name, c.seqno"
    ),
    transactional=True,
    lock=None,
    forbidden=lambda error: getattr(error, "sqlite_errorname", "").startswith("SQLITE_READONLY"),
    rights="the right to write to the SQLite file and its directory",
)

_MYSQL_LOCK: Final = "CONCAT('notary migrate ', SHA1(DATABASE()))"
"""The name of a lock is that of the whole server, and at most 64 characters long."""

_MYSQL_FORBIDDEN: Final = frozenset({1044, 1142, 1143, 1227, 1370})
"""Access denied: to a database, a table, a column; for want of a privilege of the server, to a routine."""

MYSQL: Final = Catalogue(
    columns="SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = DATABASE()",
    indexes=(
        "SELECT table_name, index_name, column_name FROM information_schema.statistics "
        "WHERE table_schema = DATABASE() ORDER BY table_name, index_name, seq_in_index"
    ),
    transactional=False,
    lock=Lock(f"SELECT GET_LOCK({_MYSQL_LOCK}, 1)", f"SELECT RELEASE_LOCK({_MYSQL_LOCK})"),
    forbidden=lambda error: bool(error.args) and error.args[0] in _MYSQL_FORBIDDEN,
    rights="SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX and REFERENCES on the database",
)

_POSTGRES_LOCK: Final = int.from_bytes(b"notary")
"""A lock is a number, and each database has its own."""

POSTGRES: Final = Catalogue(
    columns="SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema()",
    # One that is not valid is left from a CREATE INDEX CONCURRENTLY that broke off.
    indexes=(
        "SELECT t.relname, i.relname, a.attname FROM pg_index AS x "
        "JOIN pg_class AS t ON t.oid = x.indrelid JOIN pg_class AS i ON i.oid = x.indexrelid "
        "JOIN pg_namespace AS n ON n.oid = t.relnamespace "
        "CROSS JOIN LATERAL unnest(x.indkey) WITH ORDINALITY AS k (number, place) "
        "JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = k.number "
        "WHERE x.indisvalid AND n.nspname = current_schema() ORDER BY t.relname, i.relname, k.place"
    ),
    transactional=True,
    # Asked for again and again: who waits inside a statement holds up CREATE INDEX CONCURRENTLY, which waits for all.
    lock=Lock(f"SELECT pg_try_advisory_lock({_POSTGRES_LOCK})", f"SELECT pg_advisory_unlock({_POSTGRES_LOCK})"),
    forbidden=lambda error: getattr(error, "sqlstate", None) == "42501",
    rights="CREATE on the schema, and to be the owner of its tables",
)
