"""The storage ports of operators: every collection and every key that is stored, valid or not.

Rules of this module: types only, as in :mod:`notary.storage`. No daemon uses these ports: an operator may see rows that
clients are never shown, such as collections with invalid names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol, TypeVar

from twisted.internet.defer import Deferred

from notary.errors import InvalidRow
from notary.storage import StoredKey
from notary.tuf import collection


class FeedEntry(NamedTuple):
    """What the changefeed says of a timestamp: its version and its checksum, "" if that is unknown."""

    version: int
    sha256: str


class Undated(NamedTuple):
    """A row that lacks the time at which it was written, or holds one that cannot be read.

    ``table`` has the row; it is a record of the changefeed if ``role`` is "".
    """

    table: str
    role: str
    version: int


class StoredCollection(collection.Collection, Protocol):
    """A collection with its changefeed."""

    def undated(self) -> Sequence[Undated]:
        """The rows without a time, those of the changefeed last."""
        ...

    def feed(self) -> Sequence[FeedEntry]:
        """The ``update`` records since the collection was last deleted, oldest first."""
        ...


_T = TypeVar("_T")


class Inventory(Protocol):
    """All stored collections, for operators, valid or not; their names may be invalid."""

    def guns(self, prefix: str, after: str, limit: int, *, remembered: bool = False) -> Deferred[Sequence[str]]:
        """The next names that begin with ``prefix``, about ``limit`` of them, in the order of the database.

        The names follow ``after``, the last name of the previous page ("" for the first page); an empty page is the
        end. Some databases ignore case in ``prefix``, so the caller must check each name. With ``remembered``, names
        that only the changefeed knows are included.
        """
        ...

    def count(self, prefix: str) -> Deferred[int]:
        """How many collections there are whose names begin with ``prefix``, as in :meth:`guns`."""
        ...

    def visit(self, gun: str, work: Callable[[StoredCollection], _T]) -> Deferred[_T]:
        """Return the result of ``work`` on a collection, as of one moment; a missing collection has no files.

        ``work`` runs in a thread, may run more than once, and must not keep the collection.
        """
        ...

    def visit_many(
        self, guns: Sequence[str], work: Callable[[StoredCollection], _T]
    ) -> Deferred[Sequence[_T | InvalidRow]]:
        """Return the results of ``work`` on several collections, as of one moment, in the order of ``guns``.

        The rules of :meth:`visit` apply to ``work``. The result is the error where a row cannot be read.
        """
        ...

    def remove(
        self, gun: str, choose: Callable[[collection.Collection], Sequence[collection.File]], limit: int
    ) -> Deferred[Sequence[collection.File]]:
        """Remove the first ``limit`` files that ``choose`` returns; return the removed files.

        ``choose`` is called in the transaction that removes, with the same rules as ``work`` of :meth:`visit`.
        """
        ...

    def add(self, source: collection.Collection, files: Sequence[collection.File], after: str | None) -> Deferred[None]:
        """Write ``files`` of the collection ``source`` as :meth:`notary.storage.MetadataStore.publish` does.

        About one of the files is in memory at a time; each is read in a thread, more than once if need be. The names of
        the collection and of its roles are valid.
        """
        ...

    def date(self, gun: str) -> Deferred[int]:
        """Give each row of a collection that lacks a time the best one that is known; return how many rows it was.

        That is another time of the row or, for a record of the changefeed, that of the timestamp which it names, and
        the present otherwise.
        """
        ...

    def close(self) -> Deferred[None]:
        """Release threads, files and connections."""
        ...


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A stored key as operators see it. ``number`` orders all keys and never changes.

    ``created`` is aware, UTC; None if unknown. If the row cannot be read, ``key`` is None and ``problem`` says why.
    """

    number: int
    key_id: str
    key: StoredKey | None
    created: datetime | None
    problem: str = ""


class KeyInventory(Protocol):
    """All keys of the signer, for operators."""

    def key_ids(self, gun: str) -> Deferred[Sequence[str]]:
        """The ids of the keys that were made for a collection, pending ones included."""
        ...

    def count(self) -> Deferred[int]:
        """How many keys there are."""
        ...

    def page(self, after: int, limit: int) -> Deferred[Sequence[KeyRow]]:
        """The next ``limit`` keys after the key with the number ``after``, in order; 0 gives the first page."""
        ...

    def replace(self, pairs: Sequence[tuple[KeyRow, StoredKey]]) -> Deferred[int]:
        """Store new wrappings of keys in one transaction; return how many keys were replaced.

        A key that has changed since its row was read is skipped, unless only ``last_used`` has changed, which is kept.
        Needs no right to UPDATE, like :meth:`KeyStore.mark_used`.
        """
        ...

    def remove_pending(self, rows: Sequence[KeyRow]) -> Deferred[int]:
        """Remove the keys of ``rows`` that are still pending, in one transaction; return how many were removed."""
        ...

    def close(self) -> Deferred[None]:
        """Release threads, files and connections."""
        ...
