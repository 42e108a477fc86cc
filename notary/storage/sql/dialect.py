"""What differs between the databases: a Dialect is all that the other modules of ``sql`` know of a backend.

Rules of this module: pure, and names no backend; the backends are the rows of :mod:`notary.storage.sql.backends`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any

from notary.storage.sql.catalogue import Catalogue
from notary.storage.sql.survey import Ask, Fact
from notary.work.usage import PoolUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """How a store uses its database.

    ``connections`` is the largest number of connections. ``connect_timeout`` and ``query_timeout`` are in seconds;
    ``query_timeout`` bounds one statement, and the wait for a free connection. A connection older than
    ``connection_lifetime`` seconds is replaced before its next use, and one that has not been looked at for
    ``trust_seconds`` is first asked whether its server still takes writes. The store keeps the figures of its
    connections in ``usage``. With ``read_only``, the database refuses every write.
    """

    connections: int = 10
    connect_timeout: float = 5.0
    query_timeout: float = 10.0
    connection_lifetime: float = 300.0
    trust_seconds: float = 1.0
    usage: PoolUsage | None = None
    read_only: bool = False


TAKES_NO_WRITES = "the database is read-only: name its primary in storage.db_url"
DISK_IS_FULL = "the disk of the database is full: free some space on it"
"""What to do, in the words of every database and of the health check."""


class Trouble(Enum):
    """What an error of a driver means for its transaction."""

    LOST = auto()
    """The connection was lost, or none could be made; a later attempt may succeed."""
    READ_ONLY = auto()
    """The server takes no writes, and has done nothing; a later attempt on another connection may succeed."""
    CROWDED = auto()
    """The server has no connection left; a later attempt may succeed, and many attempts keep its administrator out."""
    REFUSED = auto()
    """No connection could be made, and waiting changes nothing: the database or ``storage.db_url`` must be changed."""
    BUSY = auto()
    """The database has given a statement up because of its other work; a later attempt may succeed."""
    CONFLICT = auto()
    """The database has rolled the transaction back because of another one; the transaction may be repeated."""
    DUPLICATE = auto()
    """A unique key was violated."""
    OTHER = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One kind of database.

    ``driver`` is a DB-API module, imported when a store is opened, so that the drivers of unused databases need not be
    installed; ``needs`` says what to install if the driver is missing. ``placeholder`` stands for one parameter in a
    statement. ``exactly`` is the condition that the column ``{0}`` equals a parameter byte for byte; it may hold the
    placeholder more than once. ``bytewise`` is an expression that distinguishes all values of the column ``{0}``.
    ``member`` is how the subquery ``{0}`` with its own ORDER BY and LIMIT is written in a UNION ALL.

    ``together`` tells whether a cursor of the driver has ``execute_together``, which runs several statements in one
    message to the database: the text of each, its values, and the list that takes its rows. Statements after one that
    fails are not run. It is false where an abort that falls between two statements of a message would be hidden.

    ``connections`` limits the pool, ``writers`` the number of transactions of a store that write at the same time.
    ``begin_read`` are the statements that open a transaction that sees one moment. ``begin_write`` opens a transaction
    in which each statement sees what is committed when it starts; a row read with ``for_update`` does not change until
    the commit. ``lock`` takes a named lock that one transaction can hold at a time, until the commit; it is ``""`` if
    ``begin_write`` locks anyway, or if there is no such lock. ``optimistic`` says that the database may be a cluster
    whose nodes all take writes: locks count on their own node only, and of two transactions that write a row of the
    same unique key one fails at its commit. Such a database also has REPLACE, which waits for others with such a row.
    ``open_writers`` is a query for the open transactions that write to the table that its parameter names, listed from
    before they take a number of its sequence until they have ended. ``see_uncommitted`` is a statement after which the
    next one sees the rows of open transactions. Both are ``""`` in a database that has no such thing, or where numbers
    are given in the order of commits.
    ``catalogue`` describes the database's own tables and how tables are changed.

    ``arguments`` turns ``storage.db_url`` into arguments of the driver's ``connect``, or raises ConfigError.
    ``prepare`` is run on each new connection; outside a transaction each statement is a transaction by itself.
    ``read_only`` is a query whose one value is true if the server takes no writes, "" if that cannot be.
    ``leaves_read_only`` tells whether a connection to such a server may be given up for another one. ``is_full`` tells
    whether an error means that the disk of the database is full. ``undo_leaves_nothing`` says that a row that is
    written and rolled back leaves no garbage, so that one can be tried often; ``try_room`` are statements of a
    transaction that fail if the disk of the database has no room for a megabyte, and leave nothing; ``free_bytes``
    returns the room on the disk, by a connection, of a database that is a file, and is None for others.
    ``embedded`` is not None for a database that is ours alone: a store runs it once when the store is opened, and then
    creates its tables if there are none.

    ``holds`` tells whether a name fits in a column of 255 characters. ``bind_time`` converts an aware UTC time to the
    form in which it is stored. ``trouble`` classifies an error; ``explain`` says in one sentence what went wrong and
    what to do, without a path or a password. ``survey`` asks the database what kind it is and what its settings are.
    """

    name: str
    driver: str
    needs: str
    placeholder: str
    exactly: str
    bytewise: str
    member: str
    together: Callable[[Any], bool]
    connections: int
    writers: int
    begin_read: Sequence[str]
    begin_write: Sequence[str]
    for_update: str
    lock: str
    optimistic: bool
    open_writers: str
    see_uncommitted: str
    catalogue: Catalogue
    arguments: Callable[[str, PoolSettings], Mapping[str, Any]]
    prepare: Callable[[Any, PoolSettings], None]
    read_only: str
    leaves_read_only: Callable[[Any], bool]
    is_full: Callable[[Exception], bool]
    undo_leaves_nothing: bool
    try_room: Sequence[str]
    free_bytes: Callable[[Any], int] | None
    embedded: Callable[[Any], None] | None
    holds: Callable[[str], bool]
    bind_time: Callable[[datetime], object]
    trouble: Callable[[Exception], Trouble]
    explain: Callable[[Exception], str]
    survey: Callable[[Ask], Sequence[Fact]]

    @property
    def lookalikes(self) -> bool:
        """Whether ``=`` may hold for different names."""
        return self.bytewise != "{0}"
