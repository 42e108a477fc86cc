"""How to inspect and change the tables of a database, and how to lock them for a migration: the type of each row.

Rules of this module: data only; no row knows the tables of a service.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Run: TypeAlias = Callable[..., Sequence[Sequence[Any]]]
"""Runs a statement with its values; returns every row."""

Taken: TypeAlias = Callable[[], object] | str
"""What gives a lock back; or, if another session has the lock, what is known of that session, which may be nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """How to inspect and change the tables of one database.

    ``columns`` is a query for (table, column), ``indexes`` one for (table, index, column) in the order of the columns,
    both for the database or schema in use.

    ``missing_rights`` is a query for rights on rows that the user lacks: (kind of thing, its name, right, table that
    needs the right). The kind is TABLE, SEQUENCE or SCHEMA. The query is "" where a table without rights is not shown.
    ``grants`` is a query for the statements that give the user the rights ``{rights}`` on all tables, "" where there
    are no users.

    ``transactional`` tells whether tables can be changed in a transaction. ``take_turn`` takes the lock that excludes
    other migrations, and waits for it for a second at most; it is None where a transaction that writes excludes them
    anyway.

    ``forbidden`` tells whether an error means that the user lacks a right; ``rights`` names the rights that a migration
    needs.
    """

    columns: str
    indexes: str
    missing_rights: str
    grants: str
    transactional: bool
    take_turn: Callable[[Run], Taken] | None
    forbidden: Callable[[Exception], bool]
    rights: str
