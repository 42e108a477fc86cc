"""A :class:`notary.storage.MetadataStore` that keeps files in memory and is as fresh as the store behind it.

Rules of this module: a file is served from memory only if the store has confirmed, after the request arrived, that the
place of the request holds this file (its version and its checksum). So an answer is never older than what was committed
when its request arrived, even if another instance wrote or deleted it (docs/adr/0010-fresh-reads.md).

No file is in memory twice: a file that is too large to be cached is still shared while it is being sent, and requests
for a file that is being loaded share that load.

The confirmation is cheap: the query reads an index, not the file, and at most one query runs at a time. Requests that
arrive during a query share the next one. Under load the next query is delayed a moment, because clients that were just
answered usually ask again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Final, TypeAlias
from weakref import WeakValueDictionary

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from notary.errors import NotFound
from notary.storage import NOTHING, Change, Identity, MetadataStore, Place, Stored, Update
from notary.tuf.model import Gun, RoleName
from notary.work.singleflight import SingleFlight

MAX_PLACES: Final = 100
"""The largest number of places in one query, unless a single request needs more."""

OVERHEAD_BYTES: Final = 2048
"""Memory of a cached file in addition to its content, its ``notes`` included; an upper estimate."""

SHARED_BYTES: Final = 1 << 16
"""Larger files are sent in pieces, and are shared by all requests that send them even if they are not cached."""

_MIN_FILES: Final = 4
"""The cache has room for at least this number of files: a larger file is not cached, since it would evict too many."""

_HASHED_BYTES: Final = 1 << 18
"""Published files are cached at once up to this total size: hashing more would hold the reactor. The others are cached
when they are first read, hashed by the store.
"""

_MIN_READERS: Final = 4
"""The smallest number of expected readers for which a query is delayed."""

_MAX_DELAY_SECONDS: Final = 0.002
"""The longest delay of a query."""

_Name: TypeAlias = tuple[Gun, RoleName, str]
_Answer: TypeAlias = Mapping[Place, Identity]


class CachedMetadataStore:
    """A cache before ``store`` that holds files of at most ``size`` bytes in all; ``clock`` times its queries."""

    def __init__(self, store: MetadataStore, size: int, clock: IReactorTime) -> None:
        self._store = store
        self._files = _Files(size)
        self._rounds = _Rounds(lambda places: store.identify(places, self._files.last_seen(places)), clock)
        self._loads: SingleFlight[tuple[Gun, tuple[Place, ...], tuple[Identity, ...]], Mapping[RoleName, Stored]]
        self._loads = SingleFlight(self._load)
        self._checksums: SingleFlight[_Name, Stored] = SingleFlight(self._by_checksum)
        self._versions: SingleFlight[tuple[Place, Identity], Stored] = SingleFlight(self._by_version)

    # -- reading ------------------------------------------------------------------------------------------------------

    def current(self, gun: Gun, roles: Collection[RoleName]) -> Deferred[Mapping[RoleName, Stored]]:
        """See the port."""
        places = tuple([(gun, role, None) for role in roles])
        return self._rounds.ask(places).addCallback(self._current, gun, places)

    def _current(
        self, answer: _Answer, gun: Gun, places: tuple[Place, ...]
    ) -> Mapping[RoleName, Stored] | Deferred[Mapping[RoleName, Stored]]:
        found: dict[RoleName, Stored] = {}
        missing: dict[Place, Identity] = {}
        for place in places:
            identity = answer.get(place)
            if identity is None:
                continue
            stored = self._files.get((gun, place[1], identity[1]))
            if stored is not None and stored.version == identity[0]:
                found[place[1]] = stored
            else:
                missing[place] = identity
        if not missing:
            return found
        # Requests for the same files, by checksum, share one load.
        load = self._loads((gun, tuple(missing), tuple(missing.values())))
        return load.addCallback(self._completed, gun, places, found, missing)

    async def _load(self, wanted: tuple[Gun, tuple[Place, ...], tuple[Identity, ...]]) -> Mapping[RoleName, Stored]:
        gun, places, _ = wanted
        loaded = await self._store.current(gun, [role for _, role, _ in places])
        return {role: self._keep(stored, gun) for role, stored in loaded.items()}

    def _completed(
        self,
        loaded: Mapping[RoleName, Stored],
        gun: Gun,
        places: tuple[Place, ...],
        found: dict[RoleName, Stored],
        missing: Mapping[Place, Identity],
    ) -> Mapping[RoleName, Stored] | Deferred[Mapping[RoleName, Stored]]:
        for place, identity in missing.items():
            stored = loaded.get(place[1])
            if stored is None or (stored.version, stored.sha256) != identity:
                # The file was replaced or deleted after the query, so the files found belong to another moment.
                return self._store.current(gun, [role for _, role, _ in places])
            found[place[1]] = stored
        return found

    def by_checksum(self, gun: Gun, role: RoleName, sha256: str) -> Deferred[Stored]:
        """See the port."""
        name = (gun, role, sha256)
        stored = self._files.get(name)
        if stored is not None:
            return self._confirm(stored, gun)
        if name in self._checksums:
            return Deferred.fromCoroutine(self._joined(name))
        return self._checksums(name)

    async def _by_checksum(self, name: _Name) -> Stored:
        return self._keep(await self._store.by_checksum(*name), name[0])

    async def _joined(self, name: _Name) -> Stored:
        """Return the result of a load that began before the request arrived, if the result is still valid."""
        try:
            stored = await self._checksums(name)
        except NotFound:  # the file may have been published since then
            return await self._store.by_checksum(*name)
        return await self._confirm(stored, name[0])

    def _confirm(self, stored: Stored, gun: Gun) -> Deferred[Stored]:
        place = (gun, stored.role, stored.version)
        return self._rounds.ask((place,)).addCallback(self._confirmed, place, stored)

    def _confirmed(self, answer: _Answer, place: Place, stored: Stored) -> Stored | Deferred[Stored]:
        if answer.get(place) == (stored.version, stored.sha256):
            return stored
        gun, role, _ = place
        self._files.drop((gun, role, stored.sha256))
        return self._store.by_checksum(gun, role, stored.sha256).addCallback(self._keep, gun)

    def by_version(self, gun: Gun, role: RoleName, version: int) -> Deferred[Stored]:
        """See the port."""
        place = (gun, role, version)
        return self._rounds.ask((place,)).addCallback(self._at, place, version)

    def _at(self, answer: _Answer, place: Place, version: int) -> Stored | Deferred[Stored]:
        gun, role, _ = place
        identity = answer.get(place)
        if identity is None:
            raise NotFound(f"{gun} has no version {version} of {role}")
        stored = self._files.get((gun, role, identity[1]))
        if stored is not None and stored.version == version:
            return stored
        return self._versions((place, identity)).addCallback(self._identical, place, identity)

    async def _by_version(self, wanted: tuple[Place, Identity]) -> Stored:
        (gun, role, _), (version, _) = wanted
        return self._keep(await self._store.by_version(gun, role, version), gun)

    def _identical(self, stored: Stored, place: Place, identity: Identity) -> Stored | Deferred[Stored]:
        if (stored.version, stored.sha256) == identity:
            return stored
        return self._store.by_version(place[0], place[1], identity[0])

    def _keep(self, stored: Stored, gun: Gun) -> Stored:
        """Cache a file. Returns the equal file that is in memory already, if there is one."""
        return self._files.put((gun, stored.role, stored.sha256), stored)

    def identify(
        self,
        places: Collection[Place],
        last_seen: Mapping[Place, int] = NOTHING,  # noqa: ARG002  # the cache knows as much
    ) -> Deferred[Mapping[Place, Identity]]:
        """See the port."""
        return self._rounds.ask(tuple(places))

    # -- what is not cached -------------------------------------------------------------------------------------------

    def has(self, gun: Gun) -> Deferred[bool]:
        """See the port."""
        return self._store.has(gun)

    def guns(self, after: str, limit: int) -> Deferred[Sequence[str]]:
        """See the port."""
        return self._store.guns(after, limit)

    def publish(self, gun: Gun, updates: Sequence[Update], after: str | None = None) -> Deferred[datetime]:
        """See the port. Published files are cached, because clients ask for them next."""
        return self._store.publish(gun, updates, after).addCallback(self._published, gun, updates)

    def _published(self, modified: datetime, gun: Gun, updates: Sequence[Update]) -> datetime:
        unhashed_bytes = _HASHED_BYTES
        for update in updates:
            unhashed_bytes -= len(update.data)
            if unhashed_bytes >= 0:
                sha256 = hashlib.sha256(update.data).hexdigest()
                self._keep(Stored(update.role, update.version, update.data, sha256, modified), gun)
        return modified

    def delete(self, gun: Gun) -> Deferred[bool]:
        """See the port."""
        return self._store.delete(gun)

    def changes(self, gun: Gun | None, change_id: int | None, records: int) -> Deferred[Sequence[Change]]:
        """See the port."""
        return self._store.changes(gun, change_id, records)

    def check(self) -> Deferred[None]:
        """See the port."""
        return self._store.check()

    def check_writes(self) -> Deferred[None]:
        """See the port."""
        return self._store.check_writes()

    def close(self) -> Deferred[None]:
        """See the port."""
        self._rounds.close()
        return self._store.close()


class _Rounds:
    """Calls ``identify`` for all waiting requests together, one query at a time.

    Busy clients ask again as soon as they are answered. A query for the first of them would make the others wait for a
    second query; so the next query is delayed until as many requests wait as were answered or waiting before, for
    ``_MAX_DELAY_SECONDS`` at most. This halves the number of queries, and every request is answered sooner. With fewer
    than ``_MIN_READERS`` expected, no query is delayed.
    """

    def __init__(self, identify: Callable[[Collection[Place]], Deferred[_Answer]], clock: IReactorTime) -> None:
        self._identify = identify
        self._clock = clock
        self._asking = False
        self._waiting: list[tuple[tuple[Place, ...], Deferred[_Answer]]] = []
        self._expected = 0
        self._pause: IDelayedCall | None = None
        self._closed = False

    def ask(self, places: tuple[Place, ...]) -> Deferred[_Answer]:
        """Identify the files at ``places``, as of one moment after this call; the answer may hold more places."""
        waiter: Deferred[_Answer] = Deferred()
        self._waiting.append((places, waiter))
        if not self._asking and (self._pause is None or len(self._waiting) >= self._expected):
            self._next()
        return waiter

    def close(self) -> None:
        """Delay no query from now on."""
        self._closed = True
        if self._pause is not None:
            self._next()

    def _next(self) -> None:
        if self._pause is not None:
            if self._pause.active():
                self._pause.cancel()
            self._pause = None
        if not self._waiting:
            return
        wanted: dict[Place, None] = {}
        count = 0
        for places, _ in self._waiting:
            if count and len(wanted) + len(places) > MAX_PLACES:
                break
            wanted.update(dict.fromkeys(places))
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        self._asking = True
        self._identify(tuple(wanted)).addBoth(self._answered, batch)

    def _answered(
        self, result: _Answer | Failure, batch: Sequence[tuple[tuple[Place, ...], Deferred[_Answer]]]
    ) -> None:
        self._expected = len(batch) + len(self._waiting)
        delay = self._expected >= _MIN_READERS and len(self._waiting) < MAX_PLACES
        if not delay:
            self._asking = False
            self._next()  # the next query runs while these requests are answered
        for _, waiter in batch:
            waiter.callback(result)  # of a failure, Twisted makes an errback
        if delay:
            self._asking = False
            if self._closed:  # by a callback of a request that was answered
                self._next()
            else:
                self._pause = self._clock.callLater(_MAX_DELAY_SECONDS, self._next)


class _Files:
    """The most recently used files, of at most ``size`` bytes in all, and larger files while they are in use."""

    def __init__(self, size: int) -> None:
        self._room = size
        self._largest = size // _MIN_FILES
        self._kept: OrderedDict[_Name, Stored] = OrderedDict()
        self._held: WeakValueDictionary[_Name, Stored] = WeakValueDictionary()
        self._newest: dict[tuple[Gun, RoleName], Stored] = {}  # of the cached files

    def get(self, name: _Name) -> Stored | None:
        stored = self._kept.get(name)
        if stored is None:
            return self._held.get(name)
        self._kept.move_to_end(name)
        return stored

    def put(self, name: _Name, stored: Stored) -> Stored:
        """Cache ``stored`` unless it is too large. Returns the equal file that is in memory from now on."""
        held = self._held.get(name)
        if held is not None and (held.version, held.modified) == (stored.version, stored.modified):
            stored = held
        self.drop(name)
        size = len(stored.data) + OVERHEAD_BYTES
        if len(stored.data) > SHARED_BYTES:
            self._held[name] = stored
        if size > self._largest:
            return stored
        self._kept[name] = stored
        self._room -= size
        newest = self._newest.get(name[:2])
        if newest is None or newest.version < stored.version:
            self._newest[name[:2]] = stored
        while self._room < 0:
            self._evict(next(iter(self._kept)))
        return stored

    def drop(self, name: _Name) -> None:
        """Remove a file, even if a request still uses it."""
        self._held.pop(name, None)
        self._evict(name)

    def _evict(self, name: _Name) -> None:
        stored = self._kept.pop(name, None)
        if stored is not None:
            self._room += len(stored.data) + OVERHEAD_BYTES
            if self._newest.get(name[:2]) is stored:
                del self._newest[name[:2]]

    def last_seen(self, places: Collection[Place]) -> Mapping[Place, int]:
        """The newest cached version for each of ``places`` that asks for the newest version of its role."""
        newest = self._newest
        return {place: newest[place[:2]].version for place in places if place[2] is None and place[:2] in newest}
