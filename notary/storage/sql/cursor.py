"""The statements of one transaction: typed access to rows, and how many of them there are.

Rules of this module: a cursor is used by one plain function in a thread of the pool, and never touches the reactor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

from notary.errors import StorageFailed, StorageUnreachable
from notary.storage.sql.dialect import Dialect

Row = Sequence[Any]

MAX_ATTEMPTS: Final = 10
"""How often a transaction is tried that others undo."""

_LATER_BYTES: Final = 1 << 16
"""How much content the statements that wait for the next one may hold."""


_Statement: TypeAlias = tuple[str, Sequence[object], list[Row]]
"""The text of a statement, its values, and the list that takes its rows."""


class Duplicate(StorageFailed):
    """A unique key was violated."""


class OutcomeUnknown(StorageUnreachable):
    """The connection was lost during the commit, which may or may not have taken effect."""


def _translated(sql: str, placeholder: str, exactly: str) -> tuple[str, Sequence[int] | None]:
    """Return a statement in the driver's form, and the index of the value of each placeholder; None for their order."""
    if " == ?" in sql:
        return _translated_exactly(sql, placeholder, exactly)
    return sql.replace("?", placeholder), None


@lru_cache(maxsize=1000)
def _translated_exactly(sql: str, placeholder: str, exactly: str) -> tuple[str, Sequence[int]]:
    places: list[int] = []

    def place(found: re.Match[str]) -> str:
        number = places[-1] + 1 if places else 0
        text = placeholder if found[1] is None else exactly.format(found[1])
        places.extend([number] * text.count(placeholder))
        return text

    return re.sub(r"(?:\b(\w++) == )?\?", place, sql), places


class Cursor:
    """The statements of one transaction; each method says how many rows it expects."""

    def __init__(self, cursor: Any, dialect: Dialect) -> None:
        self._cursor = cursor
        self._waiting: list[_Statement] = []
        self._size = 0
        self.begun = False
        """True once a statement has been run."""
        self.together = dialect.together(cursor)
        """True if several statements go in one message."""
        self.dialect: Final = dialect

    @property
    def refused_early(self) -> bool:
        """Whether the database has refused a statement, and so has not run those that were sent behind it."""
        return getattr(self._cursor, "refused_early", False)

    def free_bytes(self) -> int | None:
        """Return the room on the disk of a database that is a file, None for others."""
        of_file = self.dialect.free_bytes
        return None if of_file is None else of_file(self._cursor.connection)

    def run(self, sql: str, *values: object) -> int:
        """Run a statement; return the number of rows that it changed."""
        self._put(sql, values)
        return self.flush()

    def all(self, sql: str, *values: object) -> Sequence[Row]:
        """Run a query; return every row."""
        rows = self._put(sql, values)
        self.flush()
        return rows

    def later(self, sql: str, *values: object) -> Sequence[Row]:
        """Queue a statement, which is sent with the next one or with the commit; its rows and errors appear then.

        Where the database takes several statements in one message, this saves a round trip. A large statement is sent
        at once.
        """
        size = sum([len(value) for value in values if isinstance(value, (bytes, str))])
        if self._size + size > _LATER_BYTES:
            self.flush()
        rows = self._put(sql, values)
        self._size += size
        if size > _LATER_BYTES:
            self.flush()
        return rows

    def flush(self) -> int:
        """Run the queued statements; return the number of rows that the last one changed."""
        waiting = self._waiting
        self._waiting, self._size = [], 0
        self.begun = self.begun or bool(waiting)
        if self.together and len(waiting) > 1:
            self._cursor.execute_together(waiting)
        else:
            for statement in waiting:
                self._execute(*statement)
        count: int = self._cursor.rowcount
        return count

    def _put(self, sql: str, values: Sequence[object]) -> list[Row]:
        rows: list[Row] = []
        text, places = _translated(sql, self.dialect.placeholder, self.dialect.exactly)
        self._waiting.append((text, values if places is None else [values[place] for place in places], rows))
        return rows

    def _execute(self, text: str, values: Sequence[object], rows: list[Row]) -> None:
        if values:
            self._cursor.execute(text, values)
        else:
            self._cursor.execute(text)
        if self._cursor.description is not None:
            rows.extend(self._cursor.fetchall())

    def first(self, sql: str, *values: object) -> Row | None:
        """Run a query; return its first row, None if there is none."""
        rows = self.all(sql, *values)
        return rows[0] if rows else None


def insert(cursor: Cursor, table: str, *rows: Mapping[str, object], verb: str = "INSERT") -> None:
    """Queue the insertion of rows with the same columns. Table and columns are constants of our own modules."""
    marks = f"({', '.join('?' * len(rows[0]))})"
    values = [value for row in rows for value in row.values()]
    cursor.later(
        f"{verb} INTO {table} ({', '.join(rows[0])}) VALUES {', '.join([marks] * len(rows))}",
        *values,
    )
