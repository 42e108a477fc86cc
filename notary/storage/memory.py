"""Both storage ports in dicts, for tests and for trying things out; a restart loses all data.

Rules of this module: a method does its work at once, in the reactor's thread, and returns a Deferred that has fired. A
method checks before it writes, so that a failure changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from twisted.internet.defer import Deferred, execute, succeed

from notary.errors import KeyNotFound, NotFound, OldVersion, StorageFailed
from notary.storage import NOTHING, Change, Identity, Place, Stored, StoredKey, Update
from notary.tuf.model import TIMESTAMP, Gun, RoleName
from notary.work.machine import MACHINE


class MemoryMetadataStore:
    """:class:`notary.storage.MetadataStore` in dicts; ``now`` returns the time (aware, UTC)."""

    def __init__(self, now: Callable[[], datetime] = MACHINE.utc_now) -> None:
        self._now = now
        self._files: dict[Gun, dict[RoleName, dict[int, Stored]]] = {}
        self._feed: list[Change] = []

    def current(self, gun: Gun, roles: Collection[RoleName]) -> Deferred[Mapping[RoleName, Stored]]:
        """See the port."""
        files = self._files.get(gun, {})
        return succeed({role: files[role][max(files[role])] for role in roles if role in files})

    def by_checksum(self, gun: Gun, role: RoleName, sha256: str) -> Deferred[Stored]:
        """See the port."""
        return execute(self._by_checksum, gun, role, sha256)

    def _by_checksum(self, gun: Gun, role: RoleName, sha256: str) -> Stored:
        for stored in self._versions(gun, role).values():
            if stored.sha256 == sha256:
                return stored
        raise NotFound(f"{gun} has no {role} with this checksum")

    def by_version(self, gun: Gun, role: RoleName, version: int) -> Deferred[Stored]:
        """See the port."""
        return execute(self._by_version, gun, role, version)

    def _by_version(self, gun: Gun, role: RoleName, version: int) -> Stored:
        try:
            return self._versions(gun, role)[version]
        except KeyError:
            raise NotFound(f"{gun} has no version {version} of {role}") from None

    def guns(self, after: str, limit: int) -> Deferred[Sequence[str]]:
        """See the port."""
        return succeed(sorted([gun for gun in self._files if gun > after])[:limit])

    def identify(
        self,
        places: Collection[Place],
        last_seen: Mapping[Place, int] = NOTHING,  # noqa: ARG002  # the port's
    ) -> Deferred[Mapping[Place, Identity]]:
        """See the port."""
        found: dict[Place, Identity] = {}
        for place in places:
            gun, role, version = place
            versions = self._versions(gun, role)
            stored = versions.get(max(versions, default=0) if version is None else version)
            if stored is not None:
                found[place] = (stored.version, stored.sha256)
        return succeed(found)

    def _versions(self, gun: Gun, role: RoleName) -> Mapping[int, Stored]:
        return self._files.get(gun, {}).get(role, {})

    def has(self, gun: Gun) -> Deferred[bool]:
        """See the port."""
        return succeed(gun in self._files)

    def publish(self, gun: Gun, updates: Sequence[Update], after: str | None = None) -> Deferred[datetime]:
        """See the port."""
        return execute(self._publish, gun, updates, after)

    def _publish(self, gun: Gun, updates: Sequence[Update], after: str | None) -> datetime:
        timestamps = self._versions(gun, TIMESTAMP)
        if after is not None and (not timestamps or timestamps[max(timestamps)].sha256 != after):
            raise OldVersion(f"{gun}: what this was to follow has been replaced or deleted")
        if len({(update.role, update.version) for update in updates}) < len(updates):
            raise OldVersion(f"{gun}: one role and version comes twice")
        for update in updates:
            newest = max(self._versions(gun, update.role), default=0)
            if newest >= update.version:
                raise OldVersion(
                    f"{gun}: {update.role} version {newest} is stored, and {update.version} is not above it"
                )
        now = self._now()
        for update in updates:
            sha256 = hashlib.sha256(update.data).hexdigest()
            versions = self._files.setdefault(gun, {}).setdefault(update.role, {})
            versions[update.version] = Stored(update.role, update.version, update.data, sha256, now)
            if update.role == TIMESTAMP:
                self._record(gun, update.version, sha256, "update")
        return now

    def delete(self, gun: Gun) -> Deferred[bool]:
        """See the port."""
        found = self._files.pop(gun, None) is not None
        if found:
            self._record(gun, 0, "", "deletion")
        return succeed(found)

    def changes(self, gun: Gun | None, change_id: int | None, records: int) -> Deferred[Sequence[Change]]:
        """See the port."""
        start = change_id or 0
        feed = [change for change in self._feed if gun is None or change.gun == gun]
        if start >= 0 and records > 0:
            return succeed([change for change in feed if change.id > start][:records])
        return succeed([change for change in feed if start <= 0 or change.id < start][-abs(records) :])

    def check(self) -> Deferred[None]:
        """See the port."""
        return succeed(None)

    def check_writes(self) -> Deferred[None]:
        """See the port."""
        return succeed(None)

    def close(self) -> Deferred[None]:
        """See the port."""
        return succeed(None)

    def _record(self, gun: Gun, version: int, sha256: str, category: Literal["update", "deletion"]) -> None:
        self._feed.append(Change(len(self._feed) + 1, self._now(), str(gun), version, sha256, category))


class MemoryKeyStore:
    """:class:`notary.storage.KeyStore` in dicts."""

    def __init__(self) -> None:
        self._keys: dict[str, StoredKey] = {}
        self._pending: dict[tuple[str, str, str], str] = {}

    def add(self, key: StoredKey) -> Deferred[StoredKey]:
        """See the port. Raises StorageFailed if there is a key of this id that is not pending."""
        return execute(self._add, key)

    def _add(self, key: StoredKey) -> StoredKey:
        kept = self._find_pending(key.gun, key.role, key.algorithm)
        if kept is not None:
            return kept
        if key.key_id in self._keys:
            raise StorageFailed(f"there is a key {key.key_id} already")
        self._pending[key.gun, key.role, key.algorithm] = key.key_id
        self._keys[key.key_id] = replace(key, last_used=None)
        return self._keys[key.key_id]

    def sample(self) -> Deferred[Sequence[StoredKey]]:
        """See the port."""
        keys = list(self._keys.values())
        return succeed([*reversed(keys[-3:]), *keys[:-3][:1]])

    def get(self, key_id: str) -> Deferred[StoredKey]:
        """See the port."""
        return execute(self._get, key_id)

    def _get(self, key_id: str) -> StoredKey:
        try:
            return self._keys[key_id]
        except KeyError:
            raise KeyNotFound(f"there is no key {key_id}") from None

    def pending(self, gun: str, role: str, algorithm: str) -> Deferred[StoredKey | None]:
        """See the port."""
        return succeed(self._find_pending(gun, role, algorithm))

    def _find_pending(self, gun: str, role: str, algorithm: str) -> StoredKey | None:
        key_id = self._pending.get((gun, role, algorithm))
        return None if key_id is None else self._keys[key_id]

    def mark_used(self, key_id: str, when: datetime) -> Deferred[None]:
        """See the port."""
        key = self._keys.get(key_id)
        if key is not None and key.last_used is None:
            self._keys[key_id] = replace(key, last_used=when.astimezone(UTC))
            del self._pending[key.gun, key.role, key.algorithm]
        return succeed(None)

    def delete(self, key_id: str) -> Deferred[bool]:
        """See the port."""
        key = self._keys.pop(key_id, None)
        if key is None:
            return succeed(False)
        if key.last_used is None:
            del self._pending[key.gun, key.role, key.algorithm]
        return succeed(True)

    def check(self) -> Deferred[None]:
        """See the port."""
        return succeed(None)

    def close(self) -> Deferred[None]:
        """See the port."""
        return succeed(None)
