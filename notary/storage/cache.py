"""A :class:`notary.storage.MetadataStore` that keeps files in memory and is as fresh as the store behind it.

Rules of this module: a file is served from memory only after the store has said, since the request came, that this very
file (its version and its checksum) stands where the request looks. So nothing older than what was committed when a
request came is ever answered, whoever wrote or deleted it, by whichever instance (docs/adr/0010-fresh-reads.md).

No file is in memory twice: what is too large to be kept is still found for as long as somebody is sending it, and who
asks for a file that is being loaded waits for that load.

What makes it cheap: that question is a look at an index, without the file, and there is never more than one under way.
Whoever comes meanwhile waits for the next one, which asks for all of them at once; and where many come, the next one
waits a moment for those who were just answered, because they come again.
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

MOST_PLACES: Final = 100
"""How many places one question asks about, unless one request alone needs more."""

OVERHEAD: Final = 2048
"""Bytes that a kept file takes beside its content, with what is remembered in its ``notes``; rather more than less."""

SHARED: Final = 1 << 16
"""Bytes: a file that is larger is sent piece by piece, and is shared by all who send it although it is not kept."""

_LARGEST: Final = 4
"""A file larger than this part (a fourth) of the whole memory is not kept: it would push out too many others."""

_HASHED: Final = 1 << 18
"""Bytes of a publish that are hashed here: files beyond are kept when they are first read, hashed by the store."""

_MANY: Final = 4
"""How many must be likely to share a question that waits for them."""

_PAUSE: Final = 0.002
"""Seconds that a question waits for them at the most."""

_Name: TypeAlias = tuple[Gun, RoleName, str]
_Answer: TypeAlias = Mapping[Place, Identity]


class CachedMetadataStore:
    """``store``, with files of at most ``size`` bytes together kept in memory; ``clock`` times its questions."""

    def __init__(self, store: MetadataStore, size: int, clock: IReactorTime) -> None:
        self._store = store
        self._files = _Files(size)
        self._rounds = _Rounds(lambda places: store.identify(places, self._files.lately(places)), clock)
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
        # Whoever needs the same files at the same time shares the load: their checksums say which they are.
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
                # Replaced or deleted since the question: what was found belongs to another moment.
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
        """The outcome of a load that began before the request came, if it still holds."""
        try:
            stored = await self._checksums(name)
        except NotFound:  # it may have come since
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
        """Keep a file; the one that is in memory already, if there is one."""
        return self._files.put((gun, stored.role, stored.sha256), stored)

    def identify(
        self,
        places: Collection[Place],
        lately: Mapping[Place, int] = NOTHING,  # noqa: ARG002  # the port's; what is in memory says as much
    ) -> Deferred[Mapping[Place, Identity]]:
        """See the port."""
        return self._rounds.ask(tuple(places))

    # -- what is not cached -------------------------------------------------------------------------------------------

    def has(self, gun: Gun) -> Deferred[bool]:
        """See the port."""
        return self._store.has(gun)

    def publish(self, gun: Gun, updates: Sequence[Update], after: str | None = None) -> Deferred[datetime]:
        """See the port. Whoever publishes, or is told to look, comes back for what was just published."""
        return self._store.publish(gun, updates, after).addCallback(self._published, gun, updates)

    def _published(self, modified: datetime, gun: Gun, updates: Sequence[Update]) -> datetime:
        room = _HASHED
        for update in updates:
            room -= len(update.data)
            if room >= 0:
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

    def close(self) -> Deferred[None]:
        """See the port."""
        self._rounds.close()
        return self._store.close()


class _Rounds:
    """Asks ``identify`` for all who wait, one question at a time.

    Clients that keep asking come back as soon as they are answered. A question that is asked at once, for the first of
    them, makes the others wait for one of their own; so the next question waits until there are as many as were
    answered or waited then, for two milliseconds at the most. This makes half as many questions, and everybody is
    answered sooner. Where fewer than ``_MANY`` are about, nobody waits.
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
        """What stands at ``places``, all as of one moment after this call; the answer may hold others' places too."""
        waiter: Deferred[_Answer] = Deferred()
        self._waiting.append((places, waiter))
        if not self._asking and (self._pause is None or len(self._waiting) >= self._expected):
            self._next()
        return waiter

    def close(self) -> None:
        """From now on, wait for nobody."""
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
            if count and len(wanted) + len(places) > MOST_PLACES:
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
        many = self._expected >= _MANY and len(self._waiting) < MOST_PLACES
        if not many:
            self._asking = False
            self._next()  # the database works while these are answered
        for _, waiter in batch:
            waiter.callback(result)  # of a failure, Twisted makes an errback
        if many:
            self._asking = False
            if self._closed:  # by one of those who were answered
                self._next()
            else:
                self._pause = self._clock.callLater(_PAUSE, self._next)


class _Files:
    """Files, those asked for last, of at most ``size`` bytes together; and others while somebody else holds them."""

    def __init__(self, size: int) -> None:
        self._room = size
        self._largest = size // _LARGEST
        self._kept: OrderedDict[_Name, Stored] = OrderedDict()
        self._held: WeakValueDictionary[_Name, Stored] = WeakValueDictionary()
        self._newest: dict[tuple[Gun, RoleName], Stored] = {}  # of those that are kept

    def get(self, name: _Name) -> Stored | None:
        stored = self._kept.get(name)
        if stored is None:
            return self._held.get(name)
        self._kept.move_to_end(name)
        return stored

    def put(self, name: _Name, stored: Stored) -> Stored:
        """Keep ``stored`` if there is room for it. Returns the same file, as it is in memory from then on."""
        held = self._held.get(name)
        if held is not None and (held.version, held.modified) == (stored.version, stored.modified):
            stored = held
        self.drop(name)
        size = len(stored.data) + OVERHEAD
        if len(stored.data) > SHARED:
            self._held[name] = stored
        if size > self._largest:
            return stored
        self._kept[name] = stored
        self._room -= size
        newest = self._newest.get(name[:2])
        if newest is None or newest.version < stored.version:
            self._newest[name[:2]] = stored
        while self._room < 0:
            self._let_go(next(iter(self._kept)))
        return stored

    def drop(self, name: _Name) -> None:
        """Forget a file, although somebody may hold it."""
        self._held.pop(name, None)
        self._let_go(name)

    def _let_go(self, name: _Name) -> None:
        stored = self._kept.pop(name, None)
        if stored is not None:
            self._room += len(stored.data) + OVERHEAD
            if self._newest.get(name[:2]) is stored:
                del self._newest[name[:2]]

    def lately(self, places: Collection[Place]) -> Mapping[Place, int]:
        """The newest version that is kept, for each place that is the newest of its role."""
        newest = self._newest
        return {place: newest[place[:2]].version for place in places if place[2] is None and place[:2] in newest}
