"""The names of collections, page by page.

Rules of this module: those of ``metadata``, whose tables these are.
"""

from __future__ import annotations

from collections.abc import Sequence

from notary.storage.sql.cursor import Cursor


def like(prefix: str) -> str:
    """Return a pattern for what begins with ``prefix``, with ``!`` as the escape."""
    return "".join(f"!{each}" if each in "!%_" else each for each in prefix) + "%"


def guns(cursor: Cursor, prefix: str, after: str, limit: int, *, remembered: bool = False) -> Sequence[str]:
    """Return about ``limit`` names after ``after``, in the order of the database.

    Names that the database takes for equal come together. With ``remembered``, the names include those of collections
    that only the changefeed still names.
    """
    tables = {"tuf_files": "deleted_at IS NULL AND", **({"changefeed": ""} if remembered else {})}
    pages = [
        # As a subquery: SQLite accepts no LIMIT inside a UNION.
        f"SELECT gun FROM (SELECT DISTINCT gun FROM {table} WHERE {condition} gun > ? "  # noqa: S608  # constants
        f"AND gun LIKE ? ESCAPE '!' ORDER BY gun LIMIT ?) AS of_{table}"
        for table, condition in tables.items()
    ]
    values = (after, like(prefix), limit) * len(pages)
    found = [gun for (gun,) in cursor.all(f"{' UNION '.join(pages)} ORDER BY gun LIMIT ?", *values, limit)]
    if not found or not cursor.dialect.lookalikes:
        return found
    # So far, one name of each group that the database takes for equal, in the order of its index. Querying all names
    # at once would make the database sort the whole table for each page.
    exact = [
        f"SELECT DISTINCT gun, {cursor.dialect.bytewise.format('gun')} AS exactly FROM {table} "  # noqa: S608  # constants
        f"WHERE {condition} gun >= ? AND gun <= ?"
        for table, condition in tables.items()
    ]
    values = (found[0], found[-1]) * len(exact)
    return [gun for gun, _ in cursor.all(f"{' UNION '.join(exact)} ORDER BY gun, exactly", *values)]
