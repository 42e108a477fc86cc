"""The storage ports, two for the daemons and two for operators, and the records that pass through them.

Rules of this module: pure; a port says what is stored, never how. Every method may be called at any time from the
reactor's thread and never blocks it. Records are immutable. Bytes come back exactly as they were given. Rows that a
Go Notary marked deleted do not exist for us (docs/protocol.md, section 5).

A backend fails with :class:`notary.errors.StorageFailed` when its database does; everything else that a method raises
is said at the method.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from twisted.internet.defer import Deferred

from notary.tuf import collection
from notary.tuf.model import Gun, RoleName
from notary.tuf.publish import Update

__all__ = [
    "Change",
    "FeedEntry",
    "Identity",
    "Inventory",
    "KeyInventory",
    "KeyRow",
    "KeyStore",
    "MetadataStore",
    "Place",
    "Stored",
    "StoredCollection",
    "StoredKey",
    "Update",
]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Stored:
    """One metadata file as it is stored.

    ``sha256`` is the lower-case hex digest of ``data``; ``modified`` the time of writing (aware, UTC; some backends
    keep whole seconds).
    ``notes`` is for whoever reads: what follows from the file alone, and is worth remembering for as long as the file
    is in memory.
    """

    role: RoleName
    version: int
    data: bytes
    sha256: str
    modified: datetime
    notes: dict[object, Any] = field(default_factory=dict, compare=False, repr=False)


NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})
"""No mapping."""

Place: TypeAlias = tuple[Gun, RoleName, int | None]
"""Where a file may stand: a version of a role of a collection, or, if the version is None, its newest one."""

Identity: TypeAlias = tuple[int, str]
"""Which file it is: its version and its ``sha256`` (lower-case hex)."""


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the changefeed. A deletion has version 0 and an empty ``sha256``. ``created`` is aware, UTC."""

    id: int
    created: datetime
    gun: str
    version: int
    sha256: str
    category: Literal["update", "deletion"]


class MetadataStore(Protocol):
    """The signed metadata of every collection, all versions, and the changefeed."""

    def current(self, gun: Gun, roles: Collection[RoleName]) -> Deferred[Mapping[RoleName, Stored]]:
        """The newest version of each of ``roles`` that exists, read as of one moment; absent roles are left out."""
        ...

    def by_checksum(self, gun: Gun, role: RoleName, sha256: str) -> Deferred[Stored]:
        """The version of ``role`` with this checksum (lower-case hex). Raises NotFound."""
        ...

    def by_version(self, gun: Gun, role: RoleName, version: int) -> Deferred[Stored]:
        """The given version of ``role``. Raises NotFound."""
        ...

    def has(self, gun: Gun) -> Deferred[bool]:
        """Whether there is such a collection. Raises InvalidGun if the backend takes another one for it."""
        ...

    def identify(
        self, places: Collection[Place], lately: Mapping[Place, int] = NOTHING
    ) -> Deferred[Mapping[Place, Identity]]:
        """Which files stand at ``places``, as of one moment, without reading them; empty places are left out.

        ``lately`` says which version stood at a place when somebody last looked: most often it still does, and a store
        may look there first. The answer does not depend on it.
        """
        ...

    def publish(self, gun: Gun, updates: Sequence[Update], after: str | None = None) -> Deferred[datetime]:
        """Write all ``updates`` or none, with one ``update`` record in the changefeed for each timestamp among them.

        Returns what ``modified`` of each of them is from now on.

        ``after`` is the ``sha256`` (lower-case hex) of the timestamp that the updates were made to follow; None, for a
        first publish, checks nothing. Raises OldVersion if the newest stored timestamp is another one, or gone: then
        what the updates were judged against is no longer there. The transaction that writes decides it.

        Raises OldVersion if a role's stored version is at or above the one to be written, or if one role and version
        comes twice: somebody else was first. InvalidGun as :meth:`has`, InvalidRole likewise for a role.
        """
        ...

    def delete(self, gun: Gun) -> Deferred[bool]:
        """Remove every version of every role. True, with one ``deletion`` record, if there was anything to remove."""
        ...

    def changes(self, gun: Gun | None, change_id: int | None, records: int) -> Deferred[Sequence[Change]]:
        """At most ``abs(records)`` changes (of one collection, or of all if ``gun`` is None), oldest first.

        ``records`` > 0 takes those after ``change_id`` (None: from the beginning); ``records`` < 0 takes those just
        before it. A negative ``change_id`` stands for the end of the feed and always goes backwards.
        ``records`` is never 0. (docs/protocol.md, section 1)
        """
        ...

    def check(self) -> Deferred[None]:
        """Do the smallest real piece of work; raises StorageFailed if that is not possible."""
        ...

    def close(self) -> Deferred[None]:
        """Release threads, files and connections. Work under way is finished first. Nothing may be called after."""
        ...


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A signing key at rest. ``private`` is wrapped (a compact JWE, see docs/protocol.md section 5), never plain.

    ``last_used`` (aware, UTC) is None while the key is pending: made, handed out, never used to sign.
    """

    key_id: str
    algorithm: str
    public: bytes
    private: bytes
    gun: str
    role: str
    passphrase_alias: str
    encryption_alg: str = "A256GCM"
    keywrap_alg: str = "PBES2-HS256+A128KW"
    last_used: datetime | None = None


class KeyStore(Protocol):
    """The signer's keys, wrapped."""

    def add(self, key: StoredKey) -> Deferred[StoredKey]:
        """Store a pending key, unless a pending one of the same gun, role and algorithm exists; return the one kept.

        Callers that race for the same three get the same key, on one instance or several. Raises InvalidGun if the
        backend cannot hold the key's ``gun``.
        """
        ...

    def get(self, key_id: str) -> Deferred[StoredKey]:
        """The key of this id. Raises KeyNotFound."""
        ...

    def pending(self, gun: str, role: str, algorithm: str) -> Deferred[StoredKey | None]:
        """The pending key of this gun, role and algorithm, if there is one."""
        ...

    def mark_used(self, key_id: str, when: datetime) -> Deferred[None]:
        """End the pending state of a key; no effect if it has ended or the key is gone.

        Needs no right to UPDATE: the row is deleted and inserted again, in one transaction.
        """
        ...

    def delete(self, key_id: str) -> Deferred[bool]:
        """Remove a key; False if there was none."""
        ...

    def check(self) -> Deferred[None]:
        """Do the smallest real piece of work; raises StorageFailed if that is not possible."""
        ...

    def close(self) -> Deferred[None]:
        """Release threads, files and connections. Work under way is finished first. Nothing may be called after."""
        ...


# -- for operators ----------------------------------------------------------------------------------------------------


class FeedEntry(NamedTuple):
    """What the changefeed says of a timestamp: its version and its checksum, "" if that is unknown."""

    version: int
    sha256: str


class StoredCollection(collection.Collection, Protocol):
    """A collection with what else is stored of it."""

    def feed(self) -> Sequence[FeedEntry]:
        """The ``update`` records since it was last deleted, oldest first."""
        ...


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
