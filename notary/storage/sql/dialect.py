"""What differs between the databases, as one record: all that ``sql.py`` and its neighbours know of a backend.

Rules of this module: pure, and knows no backend; those are the rows in :mod:`notary.storage.sql.backends`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any

from notary.storage.sql.catalogue import Catalogue
from notary.work.usage import PoolUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """How a store uses its database.

    ``connections`` is the largest number of connections. ``connect_timeout`` and ``query_timeout`` are in seconds;
    ``query_timeout`` bounds one statement, and the wait for a free connection. The store keeps the figures of its
    connections in ``usage``.
    """

    connections: int = 10
    connect_timeout: float = 5.0
    query_timeout: float = 10.0
    usage: PoolUsage | None = None


class Trouble(Enum):
    """What an error of a driver means for the transaction that met it."""

    LOST = auto()
    """There is no connection any more, or none could be made."""
    CONFLICT = auto()
    """The database has undone the transaction because of another one; it may be run again."""
    DUPLICATE = auto()
    """A unique key was violated."""
    OTHER = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One database.

    ``driver`` is a DB-API module, imported when a store is opened, so that nobody needs the driver of a database that
    they do not use; ``needs`` says what to install if it is missing. ``placeholder`` stands for one parameter in a
    statement, ``exactly`` for the condition that the column ``{0}`` equals one, byte for byte; it may name it more than
    once. ``bytewise`` is an expression that keeps apart all values of the column ``{0}``, if the column itself may not.
    ``member`` is how the subquery ``{0}`` with its own ORDER BY and LIMIT is written in a UNION ALL.

    ``together`` says that the driver's cursors have ``execute_together``, which runs several statements in one message
    to the database: the text of each, its values, and the list that takes its rows. What follows one that fails is not
    run.

    ``connections`` bounds the pool, ``writers`` how many transactions of a store may write at once. ``begin_read`` are
    the statements that open a transaction that sees one moment, ``begin_write`` one in which each statement sees what
    is committed when it starts, and a row read with ``for_update`` stays as it is until the commit. ``lock`` and
    ``unlock`` take and give back a name that one transaction in all can hold, and answer with a row if they could;
    ``""`` if ``begin_write`` does as much, or the commit. ``catalogue`` tells what tables there are, and how they are
    changed.

    ``arguments`` turns ``storage.db_url`` into what the driver's ``connect`` takes, or raises ConfigError. ``prepare``
    is run on each new connection; a statement outside a transaction is one by itself. ``embedded``, if it is not None,
    says that the database is ours alone: a store runs it once when it is opened, then creates its tables if there are
    none.

    ``holds`` tells whether a name fits in a column of 255 characters. ``bind_time`` is the form in which an aware UTC
    time is stored. ``trouble`` says what an error means; ``explain`` says in one sentence what went wrong and what to
    do, without a path or a password in it.
    """

    name: str
    driver: str
    needs: str
    placeholder: str
    exactly: str
    bytewise: str
    member: str
    together: bool
    connections: int
    writers: int
    begin_read: Sequence[str]
    begin_write: Sequence[str]
    for_update: str
    lock: str
    unlock: str
    catalogue: Catalogue
    arguments: Callable[[str, PoolSettings], Mapping[str, Any]]
    prepare: Callable[[Any, PoolSettings], None]
    embedded: Callable[[Any], None] | None
    holds: Callable[[str], bool]
    bind_time: Callable[[datetime], object]
    trouble: Callable[[Exception], Trouble]
    explain: Callable[[Exception], str]

    @property
    def lookalikes(self) -> bool:
        """Whether ``=`` may hold for different names."""
        return self.bytewise != "{0}"
