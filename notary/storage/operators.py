"""The storage ports of operators: every collection and every key that is stored, valid or not.

Rules of this module: types only, as in :mod:`notary.storage`. A daemon needs none of these: an operator may see rows
that clients are never shown, such as names that no collection can have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol, TypeVar

from twisted.internet.defer import Deferred

from notary.storage import StoredKey
from notary.tuf import collection


class FeedEntry(NamedTuple):
    """What the changefeed says of a timestamp: its version and its checksum, "" if that is unknown."""

    version: int
    sha256: str


class StoredCollection(collection.Collection, Protocol):
    """A collection with what else is stored of it."""

    def feed(self) -> Sequence[FeedEntry]:
        """The ``update`` records since it was last deleted, oldest first."""
        ...


_T = TypeVar("_T")


class Inventory(Protocol):
    """All collections, for operators: whatever is stored, valid or not. Names need not be valid ones."""

    def guns(self, prefix: str, after: str, limit: int, *, remembered: bool = False) -> Deferred[Sequence[str]]:
        """The next names that begin with ``prefix``, about ``limit`` of them, in the order of the database.

        They follow ``after``, the last of those before, "" at the beginning; at the end there are none. Some databases
        take letters of both cases for the same in ``prefix``, so the caller must look again. With ``remembered``, also
        names that only the changefeed knows.
        """
        ...

    def count(self, prefix: str) -> Deferred[int]:
        """How many collections there are whose names begin with ``prefix``, as in :meth:`guns`."""
        ...

    def visit(self, gun: str, work: Callable[[StoredCollection], _T]) -> Deferred[_T]:
        """What ``work`` makes of a collection, which it sees as of one moment; one without files if it is not there.

        ``work`` runs in a thread, may run more than once, and must not keep the collection.
        """
        ...

    def remove(
        self, gun: str, choose: Callable[[collection.Collection], Sequence[collection.File]], limit: int
    ) -> Deferred[Sequence[collection.File]]:
        """Remove the first ``limit`` files that ``choose`` names, which are returned.

        ``choose`` sees the collection in the transaction that removes, under the conditions of ``visit``.
        """
        ...

    def close(self) -> Deferred[None]:
        """Release threads, files and connections."""
        ...


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A stored key as an operator meets it. ``number`` is its place in the order of all keys, for good.

    ``created`` is aware, UTC; None if nobody knows. Of a row that cannot be read, ``key`` is None and ``problem`` tells
    why.
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
        """The next ``limit`` keys after the one of this number, in order; 0 begins at the beginning."""
        ...

    def replace(self, pairs: Sequence[tuple[KeyRow, StoredKey]]) -> Deferred[int]:
        """Store of each key what wraps it now, in one transaction; how many were replaced.

        A key that is not any more what the row says is left alone, but for whether it was used: that stays as it is.
        Needs no right to UPDATE, like :meth:`KeyStore.mark_used`.
        """
        ...

    def remove_pending(self, rows: Sequence[KeyRow]) -> Deferred[int]:
        """Remove those keys that are still pending, in one transaction; how many there were."""
        ...

    def close(self) -> Deferred[None]:
        """Release threads, files and connections."""
        ...
