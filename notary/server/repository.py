"""The use cases of the server: read, publish, get and rotate keys, delete, list changes.

Rules of this module: knows the ports (store, signing service) and the pure TUF core, but no HTTP. What is read is
served byte for byte as it was stored. Validation is pure and runs in a thread, because a large upload takes longer than
the reactor may be held. Nothing is written before everything is valid and signed, and then in one transaction.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Generic, ParamSpec, Protocol, TypeAlias, TypeVar

from twisted.internet.defer import Deferred, execute
from twisted.logger import Logger

from notary.errors import InvalidUpdate, KeyNotFound, NotFound, OldVersion, SigningFailed
from notary.server.signing import SigningService, sign_draft
from notary.storage import Change, MetadataStore, Stored, Update
from notary.tuf import publish, refresh
from notary.tuf.keys import PublicKey
from notary.tuf.model import ROOT, SNAPSHOT, TIMESTAMP, Gun, RoleName, Root, Snapshot, Timestamp

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

_SIGNED_BY_SERVER = (TIMESTAMP, SNAPSHOT)
_Root: TypeAlias = tuple[Gun, bytes]
"""A collection and the SHA-256 of its root."""

KEPT = 1_000
"""How many timestamps and snapshots are not parsed again for a reader."""

KEPT_ROOTS = 10_000
"""Of how many roots it is known that they are sound: 300 bytes each, and a third of validating a small upload."""

LARGE = 2_000_000
"""Bytes of an upload from which on it is validated in another process: reading them as JSON takes 20 ms a megabyte, in
which no other thread goes on, so that every read would wait."""

SMALL = 8_192
"""Bytes of an upload up to which it is validated on the reactor's thread: that takes a millisecond or two, at most five
if it holds as many signatures as can be, and a thread would only add its own cost to it."""

RETRY = timedelta(minutes=1)
"""How long expired metadata that could not be renewed is served before the next try."""


class InThread(Protocol):
    """Runs a plain function in a thread; the Deferred fires on the reactor's thread with its result."""

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]:
        """Start ``work``."""
        ...


class InProcess(Protocol):
    """Calls a function of a module in another process; arguments, result and errors are copied there and back."""

    def __call__(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Start ``work``."""
        ...


class Recent(Generic[K, V]):
    """What was found out about the ``size`` files asked for last. It follows from their checksums, so it never lies."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """What is known, if it is still kept."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def put(self, key: K, value: V) -> None:
        """Keep ``value``, in place of what was asked for longest ago."""
        self._kept[key] = value
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)


class Repository:
    """Every collection that a server holds.

    ``now`` gives the time (aware, UTC). ``on_refresh`` is told the role of each timestamp or snapshot that the server
    renewed because it had expired; ``on_expired_root`` is called when it did so under an expired root.
    """

    def __init__(
        self,
        store: MetadataStore,
        signing: SigningService,
        in_thread: InThread,
        offload: InProcess,
        now: Callable[[], datetime],
        on_refresh: Callable[[RoleName], None],
        on_expired_root: Callable[[], None],
    ) -> None:
        self._store = store
        self._signing = signing
        self._in_thread = in_thread
        self._offload = offload
        self._now = now
        self._on_refresh = on_refresh
        self._on_expired_root = on_expired_root
        self._listed: Recent[str, Mapping[str, str]] = Recent(KEPT)
        self._good_until: Recent[tuple[str, str], datetime] = Recent(KEPT)
        self._sound: Recent[_Root, bool] = Recent(KEPT_ROOTS)
        self._log = Logger(namespace="notary.server.repository")

    # -- reading ------------------------------------------------------------------------------------------------------

    def by_checksum(self, gun: Gun, role: RoleName, sha256: str) -> Deferred[Stored]:
        """One immutable file by its checksum (lower-case hex). Raises NotFound."""
        return self._store.by_checksum(gun, role, sha256)

    def by_version(self, gun: Gun, role: RoleName, version: int) -> Deferred[Stored]:
        """One immutable file by its version. Raises NotFound."""
        return self._store.by_version(gun, role, version)

    def current(self, gun: Gun, role: RoleName) -> Deferred[Stored]:
        """The file of ``role`` that clients shall use now. Raises NotFound.

        Root and targets roles are found by walking from the timestamp over the snapshot, so that only what a published
        timestamp vouches for is ever served; an expired timestamp or snapshot that the server can sign is renewed.
        (docs/protocol.md, section 1)
        """
        if role in _SIGNED_BY_SERVER:
            return self._store.current(gun, _SIGNED_BY_SERVER).addCallback(self._signed_by_server, gun, role)
        return self._store.current(gun, (*_SIGNED_BY_SERVER, role)).addCallback(self._walk, gun, role)

    def _walk(self, found: Mapping[RoleName, Stored], gun: Gun, role: RoleName) -> Stored | Deferred[Stored]:
        timestamp, snapshot, stored = (found.get(each) for each in (TIMESTAMP, SNAPSHOT, role))
        if timestamp is not None and snapshot is not None and stored is not None:
            listed = self._listed.get(timestamp.sha256), self._listed.get(snapshot.sha256)
            if _lists(listed[0], SNAPSHOT, snapshot) and _lists(listed[1], role, stored):
                return stored
        return Deferred.fromCoroutine(self._walk_slowly(gun, role, found))

    async def _walk_slowly(self, gun: Gun, role: RoleName, found: Mapping[RoleName, Stored]) -> Stored:
        snapshot = await self._vouched(gun, _present(found, TIMESTAMP), SNAPSHOT, found)
        return await self._vouched(gun, snapshot, role, found)

    async def _vouched(self, gun: Gun, by: Stored, role: RoleName, found: Mapping[RoleName, Stored]) -> Stored:
        """The file of ``role`` whose checksum stands in ``by``; nearly always the one in ``found``."""
        listed = self._listed.get(by.sha256)
        if listed is None:
            listed = await self._in_thread(lambda: _checksums(by))
            self._listed.put(by.sha256, listed)
        sha256 = listed.get(role)
        if sha256 is None:
            raise NotFound(f"{role} is not part of the current snapshot")
        stored = found.get(role)
        if stored is not None and stored.sha256 == sha256:
            return stored
        return await self._store.by_checksum(gun, role, sha256)

    def _signed_by_server(
        self, found: Mapping[RoleName, Stored], gun: Gun, role: RoleName
    ) -> Stored | Deferred[Stored]:
        timestamp, snapshot = found.get(TIMESTAMP), found.get(SNAPSHOT)
        if timestamp is not None and snapshot is not None:
            until = self._good_until.get((timestamp.sha256, snapshot.sha256))
            if until is not None and until > self._now():
                if role == TIMESTAMP:
                    return timestamp
                if _lists(self._listed.get(timestamp.sha256), SNAPSHOT, snapshot):
                    return snapshot
        return Deferred.fromCoroutine(self._renewed_by_server(gun, role, found))

    async def _renewed_by_server(self, gun: Gun, role: RoleName, found: Mapping[RoleName, Stored]) -> Stored:
        timestamp, snapshot = _present(found, TIMESTAMP), _present(found, SNAPSHOT)
        pair = (timestamp.sha256, snapshot.sha256)
        until = self._good_until.get(pair)
        if until is None:
            until = await self._in_thread(lambda: refresh.good_until(timestamp, snapshot))
            self._good_until.put(pair, until)
        if until <= self._now():
            if await self._renew(gun):
                found = await self._store.current(gun, _SIGNED_BY_SERVER)
                timestamp = _present(found, TIMESTAMP)
            else:
                self._good_until.put(pair, self._now() + RETRY)
        if role == TIMESTAMP:
            return timestamp
        return await self._vouched(gun, timestamp, SNAPSHOT, found)

    async def _renew(self, gun: Gun) -> bool:
        """Sign and store what has expired. False if the server lacks the keys: then the old files are served."""
        found = await self._store.current(gun, [ROOT, SNAPSHOT, TIMESTAMP])
        renewal = await self._in_thread(lambda: refresh.stale(found, self._now()))
        if renewal is None:
            return True  # another request, or another instance, was first
        if renewal.root_expired:
            self._log.warn("the root of {gun} has expired; its publisher must sign a new one", gun=gun)
            self._on_expired_root()
        try:
            updates = await self._signed_renewal(gun, renewal)
        except (InvalidUpdate, SigningFailed) as error:
            self._log.warn("cannot renew the expired metadata of {gun}: {error}", gun=gun, error=str(error))
            return False
        if not updates:
            return False
        try:
            await self._store.publish(gun, updates, found[TIMESTAMP].sha256)
        except OldVersion:
            return True  # what the other one wrote is as good
        for update in updates:
            self._on_refresh(update.role)
        return True

    async def _signed_renewal(self, gun: Gun, renewal: refresh.Refresh) -> list[Update]:
        """What can be renewed: the snapshot's key may be its publisher's, while the timestamp's is always ours."""
        updates = []
        snapshot = None
        if renewal.snapshot is not None:
            try:
                snapshot = await sign_draft(self._signing, renewal.snapshot)
            except InvalidUpdate:
                self._log.warn("the snapshot of {gun} has expired; its publisher must sign a new one", gun=gun)
            else:
                updates.append(Update(SNAPSHOT, renewal.snapshot.version, snapshot))
        if snapshot is not None or renewal.timestamp_due:
            updates.append(await self._signed_timestamp(renewal.timestamp(snapshot)))
        return updates

    async def _signed_timestamp(self, draft: publish.Draft) -> Update:
        return Update(TIMESTAMP, draft.version, await sign_draft(self._signing, draft))

    # -- publishing ---------------------------------------------------------------------------------------------------

    async def publish(self, gun: Gun, files: Sequence[tuple[str, bytes]]) -> Update:
        """Validate uploaded files (names of roles, contents), complete them with what the server signs, store it all.

        Returns the new timestamp. Raises NoFilename, InvalidRole, MalformedJSON, InvalidUpdate, OldVersion and
        InvalidGun; SigningFailed and StorageFailed when these services are down.
        """
        size = sum([len(data) for _, data in files])
        run = execute if size <= SMALL else self._in_thread
        if size < LARGE:
            uploads = await run(lambda: publish.read(files))
            current = await self._loaded(gun, [upload.role for upload in uploads], run)
            sound = self._is_sound(gun, current)
            plan = await run(lambda: publish.validate(gun, current, uploads, self._now(), sound=sound))
        else:
            current = await self._loaded(gun, publish.named(files), run)
            held = {role: replace(stored, notes={}) for role, stored in current.items()}  # what crosses over
            sound = self._is_sound(gun, current)
            plan = await self._offload(publish.judge, gun, held, files, self._now(), sound=sound)
        if plan.sound is not None and len(plan.sound) <= SMALL:
            self._sound.put(_root(gun, plan.sound), True)
        updates = [*plan.updates]
        snapshot = None
        if plan.snapshot is not None:
            snapshot = await sign_draft(self._signing, plan.snapshot)
            updates.append(Update(SNAPSHOT, plan.snapshot.version, snapshot))
        # Last, because the timestamp holds the snapshot's checksum.
        timestamp = await self._signed_timestamp(plan.timestamp(snapshot))
        previous = current.get(TIMESTAMP)
        await self._store.publish(gun, [*updates, timestamp], None if previous is None else previous.sha256)
        return timestamp

    async def _loaded(self, gun: Gun, roles: Sequence[RoleName], run: InThread) -> Mapping[RoleName, Stored]:
        needed = await run(lambda: publish.needed(roles))
        return await self._store.current(gun, needed)

    def _is_sound(self, gun: Gun, current: Mapping[RoleName, Stored]) -> bool:
        root = current.get(ROOT)
        return root is not None and len(root.data) <= SMALL and self._sound.get(_root(gun, root.data)) is True

    # -- keys ---------------------------------------------------------------------------------------------------------

    async def get_key(self, gun: Gun, role: RoleName, may_create: Callable[[], None] = lambda: None) -> PublicKey:
        """The key that the current root names for ``role`` if the server can sign with it, else a pending key.

        ``may_create`` is called, and may raise, before a key is asked for that may have to be made. Raises InvalidGun:
        nobody could publish with it.
        """
        found = await self._store.current(gun, [ROOT]) if await self._store.has(gun) else {}
        if ROOT in found:
            root = Root.parse(publish.stored_envelope(ROOT, found[ROOT].data))
            for key in root.roles[role].keys.values():
                try:
                    return await self._signing.get_key(key.canonical_id)
                except KeyNotFound:
                    continue
        may_create()
        return await self._signing.create_key(gun, role)

    async def rotate_key(self, gun: Gun, role: RoleName, may_create: Callable[[], None] = lambda: None) -> PublicKey:
        """A pending key; the server signs with it from when a root that names it is published.

        ``may_create`` is as for ``get_key``. Raises InvalidGun.
        """
        await self._store.has(gun)
        may_create()
        return await self._signing.create_key(gun, role)

    # -- the rest -----------------------------------------------------------------------------------------------------

    async def delete(self, gun: Gun) -> bool:
        """Forget a collection. False if there was none. Its keys stay with the signing service."""
        return await self._store.delete(gun)

    async def changes(self, gun: Gun | None, change_id: int | None, records: int) -> Sequence[Change]:
        """See MetadataStore.changes."""
        return await self._store.changes(gun, change_id, records)


def _root(gun: Gun, data: bytes) -> _Root:
    return gun, hashlib.sha256(data).digest()


def _checksums(stored: Stored) -> Mapping[str, str]:
    """What a timestamp or snapshot lists: the checksum of each role, lower-case hex."""
    kind = Timestamp if stored.role == TIMESTAMP else Snapshot
    meta = kind.parse(publish.stored_envelope(stored.role, stored.data)).meta
    return {role: listed.hashes["sha256"].hex() for role, listed in meta.items() if "sha256" in listed.hashes}


def _lists(listed: Mapping[str, str] | None, role: RoleName, stored: Stored) -> bool:
    """Whether a file whose list is known vouches for ``stored``."""
    return listed is not None and listed.get(role) == stored.sha256


def _present(found: Mapping[RoleName, Stored], role: RoleName) -> Stored:
    try:
        return found[role]
    except KeyError:
        raise NotFound(f"there is no {role}") from None
