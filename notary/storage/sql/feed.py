"""The changefeed of all collections, read so that no record ever appears behind its readers.

A database gives a record its id when the record is inserted, and shows the record when its transaction has committed.
So ids appear in any order, and a reader that goes on from the last id that it has seen would miss a smaller id that
appears later. The functions of this module therefore end a page before the first id that may still appear.

Nothing is asked of the writers, because a Go Notary may be one of them. Ids without a record are rare, and only they
cost anything: a transaction was undone, or is open. How an open one is found differs between databases:

- PostgreSQL lists the transactions that write to a table, from before they take an id until they have ended. Once all
  that were listed have ended, what is still missing will never appear.
- MySQL and MariaDB show the rows of open transactions to a statement that asks for them. What is missing there too is
  an id whose row is not inserted yet, for a moment, or that another node of a cluster has given. So an id counts as
  lost only after :data:`SETTLED_SECONDS`.
- SQLite has one writer at a time.

Rules of this module: a page is read in a thread of the pool. Times between two moments are monotonic; the clock of the
machine counts only where this process is too young to know.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from notary.storage.sql.cursor import Cursor, Row
from notary.storage.sql.values import to_written

TABLE: Final = "changefeed"

RECORD: Final = f"SELECT id, created_at, gun, version, sha256, category FROM {TABLE}"  # noqa: S608  # a constant

SETTLED_SECONDS: Final = 20.0
"""How long this process must have known that an id is missing before it counts as lost; twice the default time-out of
a statement.
"""

_LONG_AGO: Final = timedelta(minutes=1)
"""The age of a record before which no id can be missing for the moment only; longer than ``SETTLED_SECONDS`` by what
the clocks of servers may differ.
"""

_LOOK_BACK: Final = 1000
"""How many of the newest records are searched for missing ids when a reader wants those before some point."""

_WAIT_SECONDS: Final = 0.1
"""The longest wait for open transactions to end, which take some milliseconds each."""

_POLL_SECONDS: Final = 0.005


class Horizon:
    """The largest id that this process knew ``SETTLED_SECONDS`` ago. May be used from any thread."""

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._seen: deque[tuple[float, int]] = deque()  # at most one a second, in order
        self._settled = 0

    def settled(self, newest: int) -> int:
        """Note that the id ``newest`` exists; return the largest that was noted ``SETTLED_SECONDS`` ago, 0 if none."""
        with self._lock:
            now = self._seconds()
            while self._seen and self._seen[0][0] <= now - SETTLED_SECONDS:
                self._settled = self._seen.popleft()[1]
            at, id_ = self._seen[-1] if self._seen else (now - 1, self._settled)
            if newest > id_ and now - at >= 1:
                self._seen.append((now, newest))
            return self._settled


def after(cursor: Cursor, start: int, limit: int, horizon: Horizon, now: datetime) -> Sequence[Row]:
    """Return at most ``limit`` records with ids above ``start``, oldest first, up to the first that may be preceded."""
    page = cursor.all(f"{RECORD} WHERE id > ? ORDER BY id LIMIT ?", start, limit)
    return _settled(cursor, start, page, horizon, now)


def before(cursor: Cursor, end: int | None, limit: int, horizon: Horizon, now: datetime) -> Sequence[Row]:
    """Return the last ``limit`` records with ids below ``end`` (None: of all) of which none may be preceded, in order.

    This holds with regard to the ``_LOOK_BACK`` newest records: an id that is missing before these counts as lost.
    """
    condition, values = ("", ()) if end is None else ("WHERE id < ?", (end,))
    count = max(limit, _LOOK_BACK)
    page = cursor.all(f"{RECORD} {condition} ORDER BY id DESC LIMIT ?", *values, count)[::-1]
    start = 0 if len(page) < count else page[0][0] - 1
    return _settled(cursor, start, page, horizon, now)[-limit:]


def _settled(cursor: Cursor, start: int, page: Sequence[Row], horizon: Horizon, now: datetime) -> Sequence[Row]:
    """Return the beginning of ``page``, records with ids above ``start``, up to the first that may be preceded."""
    whole = _first_gap(start, page) == len(page)
    if cursor.dialect.open_writers:
        return page if whole else _without_open_writers(cursor, start, page)
    if cursor.dialect.see_uncommitted and not whole:
        return _without_uncommitted(cursor, start, page, horizon, now)
    return page


def _first_gap(start: int, page: Sequence[Row]) -> int:
    """Return how many records of ``page`` follow each other, from ``start`` on, with no id missing."""
    return next((place for place, row in enumerate(page) if row[0] != start + 1 + place), len(page))


def _again(cursor: Cursor, start: int, page: Sequence[Row]) -> Sequence[Row]:
    """Queue a query for the records that ``page`` holds by now, as many as it held."""
    bounds = f"{RECORD} WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
    return cursor.later(bounds, start, page[-1][0], len(page))


def _without_open_writers(cursor: Cursor, start: int, page: Sequence[Row]) -> Sequence[Row]:
    """Wait for the transactions that write to the feed at this moment; without them, no missing id can appear."""
    listed = cursor.dialect.open_writers
    deadline = time.monotonic() + _WAIT_SECONDS
    writers = set(cursor.all(listed, TABLE))
    while writers and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        writers &= set(cursor.all(listed, TABLE))
    page = _again(cursor, start, page)
    cursor.flush()
    return page[: _first_gap(start, page)] if writers else page


def _without_uncommitted(
    cursor: Cursor, start: int, page: Sequence[Row], horizon: Horizon, now: datetime
) -> Sequence[Row]:
    """See which ids open transactions have inserted, then read the page again: what was open at first may be there."""
    cursor.later(cursor.dialect.see_uncommitted)
    inserted = cursor.later(f"SELECT id FROM {TABLE} WHERE id > ? AND id <= ?", start, page[-1][0])  # noqa: S608
    page = _again(cursor, start, page)
    newest = cursor.later(f"SELECT MAX(id) FROM {TABLE}")  # noqa: S608  # of all, else each page would wait anew
    cursor.flush()
    settled = horizon.settled(newest[0][0] or 0)
    first_open = min({id_ for (id_,) in inserted}.difference(row[0] for row in page), default=None)
    last = start
    for place, row in enumerate(page):
        if first_open is not None and row[0] > first_open:
            return page[:place]
        if row[0] > last + 1 and row[0] > settled and to_written(row[1]) > now - _LONG_AGO:
            return page[:place]
        last = row[0]
    return page
