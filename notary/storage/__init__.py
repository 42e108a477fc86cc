"""The storage ports of the daemons, and the records that pass through them.

Rules of this module: types only; a port says what is stored, never how. Every method may be called at any time from the
reactor's thread and never blocks it. Records are immutable. Bytes are returned exactly as they were given. Rows that a
Go Notary marked as deleted are ignored (docs/protocol.md, section 5).

Every method raises :class:`notary.errors.StorageFailed` if the database fails; the docstring of a method names its
other errors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol, TypeAlias

from twisted.internet.defer import Deferred

from notary.tuf.model import Gun, RoleName, Update

__all__ = [
    "Change",
    "Identity",
    "KeyStore",
    "MetadataStore",
    "Place",
    "Stored",
    "StoredKey",
    "Update",
]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Stored:
    """One metadata file as it is stored.

    ``sha256`` is the lower-case hex digest of ``data``; ``modified`` the time of writing (aware, UTC; some backends
    keep whole seconds).
    ``notes`` is a place for facts that follow from the file alone, remembered for as long as the file is in memory.
    """

    role: RoleName
    version: int
    data: bytes
    sha256: str
    modified: datetime
    notes: dict[object, Any] = field(default_factory=dict, compare=False, repr=False)


NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})
"""An empty mapping, for default arguments."""

Place: TypeAlias = tuple[Gun, RoleName, int | None]
"""The place of a file: collection, role and version. The version None means the newest version."""

Identity: TypeAlias = tuple[int, str]
"""What identifies the file at a place: its version and its ``sha256`` (lower-case hex)."""


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
        """Whether there is such a collection. Raises InvalidGun if the backend mistakes another collection for it."""
        ...

    def guns(self, after: str, limit: int) -> Deferred[Sequence[str]]:
        """The names of about ``limit`` collections after the name ``after`` ("" begins), in an order of the store.

        There are none at the end. Names that the backend takes for equal come together.
        """
        ...

    def identify(
        self, places: Collection[Place], last_seen: Mapping[Place, int] = NOTHING
    ) -> Deferred[Mapping[Place, Identity]]:
        """Identify the files at ``places``, as of one moment, without reading them; empty places are left out.

        ``last_seen`` holds the version that was found at a place before, which a store may try first: it is most often
        still the newest. The answer does not depend on ``last_seen``.
        """
        ...

    def publish(self, gun: Gun, updates: Sequence[Update], after: str | None = None) -> Deferred[datetime]:
        """Write all ``updates`` or none, with one ``update`` record in the changefeed for each timestamp among them.

        Returns the time that ``modified`` of each written file has.

        ``after`` is the ``sha256`` (lower-case hex) of the timestamp that the updates follow; with None, for a first
        publish, this is not checked. Raises OldVersion if the newest stored timestamp is another one or was deleted,
        because then the updates were validated against files that are no longer there. The check is part of the
        transaction that writes.

        Raises OldVersion also if a role's stored version is at or above the one to be written (another publisher was
        first), or if ``updates`` holds a role and version twice. Raises InvalidGun as :meth:`has` does, and InvalidRole
        if the backend mistakes another role for one of these.
        """
        ...

    def delete(self, gun: Gun) -> Deferred[bool]:
        """Remove every version of every role, with one ``deletion`` record. False if there was nothing to remove."""
        ...

    def changes(self, gun: Gun | None, change_id: int | None, records: int) -> Deferred[Sequence[Change]]:
        """At most ``abs(records)`` changes (of one collection, or of all if ``gun`` is None), oldest first.

        ``records`` > 0 takes those after ``change_id`` (None: from the beginning); ``records`` < 0 takes those just
        before it. A negative ``change_id`` stands for the end of the feed and always goes backwards.
        ``records`` is never 0. (docs/protocol.md, section 1)
        """
        ...

    def check(self) -> Deferred[None]:
        """Read a row of the main table. Raises StorageFailed if that is not possible."""
        ...

    def check_writes(self) -> Deferred[None]:
        """Find out whether a publish would be stored, by a write that is undone. Raises StorageFailed if not."""
        ...

    def close(self) -> Deferred[None]:
        """Finish running work, then release threads, files and connections. No method may be called afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A signing key at rest. ``private`` is wrapped (a compact JWE, see docs/protocol.md section 5), never plain.

    ``last_used`` (aware, UTC) is None while the key is pending: created, but not yet used to sign.
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

        Concurrent callers with the same gun, role and algorithm get the same key, on one instance or on several. Raises
        InvalidGun if the backend cannot hold the key's ``gun``.
        """
        ...

    def get(self, key_id: str) -> Deferred[StoredKey]:
        """The key of this id. Raises KeyNotFound."""
        ...

    def pending(self, gun: str, role: str, algorithm: str) -> Deferred[StoredKey | None]:
        """The pending key of this gun, role and algorithm, if there is one."""
        ...

    def sample(self) -> Deferred[Sequence[StoredKey]]:
        """A few keys, the newest and the oldest, to try passphrases on; rows that cannot be read are left out."""
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
        """Read a row of the main table. Raises StorageFailed if that is not possible."""
        ...

    def close(self) -> Deferred[None]:
        """Finish running work, then release threads, files and connections. No method may be called afterwards."""
        ...
