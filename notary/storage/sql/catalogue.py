"""What each database says of its own tables, and how migrations keep out of each other's way: one row a backend.

Rules of this module: data only; no row knows the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


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
