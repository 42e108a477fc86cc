"""The use cases of the server: read, publish, get and rotate keys, delete, list changes.

Rules of this module: knows the ports (store, signing service) and the pure TUF core, but no HTTP. What is read is
served byte for byte as it was stored. What takes longer than the reactor may be held runs in a thread or in another
process; how much work it is decides, not who asks for it. Reads wait for no validation. Nothing is written before
everything is valid and signed, and then in one transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import TypeAlias

from twisted.internet.defer import Deferred, execute
from twisted.logger import Logger

from notary.errors import InvalidUpdate, KeyNotFound, NotFound, OldVersion, SigningFailed, TooDemanding
from notary.server.signing import SigningService, sign_draft
from notary.server.validators import Validator
from notary.storage import Change, MetadataStore, Stored, Update
from notary.tuf import cost, draft, model, publish, refresh, validation
from notary.tuf.model import (
    MAX_NAME,
    MAX_SIGNATURES,
    ROOT,
    SNAPSHOT,
    TIMESTAMP,
    Gun,
    RoleName,
    Root,
    Snapshot,
    Timestamp,
)
from notary.tuf.public import PublicKey
from notary.tuf.validation import Plan
from notary.work.lru import Lru
from notary.work.singleflight import SingleFlight
from notary.work.threads import InThread

_SIGNED_BY_SERVER = (TIMESTAMP, SNAPSHOT)
_Root: TypeAlias = tuple[Gun, bytes]
"""A collection and the SHA-256 of its root."""

KEPT = 1_000
"""How many timestamps and snapshots are not parsed again for a reader."""

KEPT_NAMES = 100_000
"""How many names these may list together: 500 bytes each at the most."""

KEPT_ROOTS = 10_000
"""How many verified roots are remembered, of 300 bytes each: verifying one is a third of validating a small upload."""

LARGE = 2_000_000
"""Bytes of an upload from which on it is validated in another process: reading them as JSON takes 20 ms a megabyte, in
which no other thread goes on, so that every read would wait."""

SMALL = 8_192
"""Bytes of a file or an upload that may be looked at on the reactor's thread, whatever is in it."""

LITTLE_MICROSECONDS = 3_000
"""How much work (:mod:`notary.tuf.cost`) is done on the reactor's thread: an ordinary small upload is half of that, and
a thread would only add its own cost to it."""

MUCH_MICROSECONDS = 400_000
"""How much work of validating is done in another process, which takes half as long to start: a thread would go on
taking the interpreter lock from the reactor's."""

FEW_KEYS = 10
"""By how many keys a small file of the server may be signed, and each signature verified, on the reactor's thread."""

STORED_BYTES = 256 << 20
"""How much of the store an upload may be judged against: a small one can hang on any number of large parents."""

STORED_AT_ONCE = 8
"""How many stored files are loaded before their sizes are known."""

SHA256_BYTES = 32

RETRY = timedelta(minutes=1)
"""How long expired metadata that could not be renewed is served before the next try."""


@dataclass(frozen=True, slots=True)
class _Files:
    """Stored files that are looked into, told apart by their checksums."""

    checksums: str
    stored: tuple[Stored, ...] = field(compare=False)


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
        now: Callable[[], datetime],
        on_refresh: Callable[[RoleName], None],
        on_expired_root: Callable[[], None],
    ) -> None:
        self._store = store
        self._signing = signing
        self._in_thread = in_thread
        self._now = now
        self._on_refresh = on_refresh
        self._on_expired_root = on_expired_root
        self._listed: Lru[str, Mapping[str, str]] = Lru(KEPT, len, KEPT_NAMES)
        self._good_until: Lru[tuple[str, str], datetime] = Lru(KEPT)
        self._verified_roots: Lru[_Root, bool] = Lru(KEPT_ROOTS)
        # However many readers come at once, one thread looks into a file or renews a collection for all of them.
        self._listing = SingleFlight(self._list)
        self._dating = SingleFlight(self._date)
        self._renewing = SingleFlight(self._renew)
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
            listed = await self._listing(_Files(by.sha256, (by,)))
        sha256 = listed.get(role)
        if sha256 is None:
            raise NotFound(f"{role} is not part of the current snapshot")
        stored = found.get(role)
        if stored is not None and stored.sha256 == sha256:
            return stored
        return await self._store.by_checksum(gun, role, sha256)

    async def _list(self, files: _Files) -> Mapping[str, str]:
        (by,) = files.stored
        listed = await self._in_thread(lambda: _checksums(by))
        self._listed.put(by.sha256, listed)
        return listed

    async def _date(self, files: _Files) -> datetime:
        timestamp, snapshot = files.stored
        return await self._in_thread(lambda: refresh.good_until(timestamp, snapshot))

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
            until = await self._dating(_Files(f"{pair}", (timestamp, snapshot)))
            self._good_until.put(pair, until)
        if until <= self._now():
            if await self._renewing(gun):
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
                snapshot = await self._signed(renewal.snapshot)
            except InvalidUpdate:
                self._log.warn("the snapshot of {gun} has expired; its publisher must sign a new one", gun=gun)
            else:
                updates.append(Update(SNAPSHOT, renewal.snapshot.version, snapshot))
        if snapshot is not None or renewal.timestamp_due:
            updates.append(await self._signed_timestamp(await self._in_thread(lambda: renewal.timestamp(snapshot))))
        return updates

    async def _signed_timestamp(self, draft: draft.Draft) -> Update:
        return Update(TIMESTAMP, draft.version, await self._signed(draft))

    async def _signed(self, draft: draft.Draft) -> bytes:
        # More keys than a few make it a matter of verifying, however little is signed.
        place = self._place(len(draft.payload) if len(draft.keys) <= FEW_KEYS else SMALL + 1)
        return await sign_draft(self._signing, draft, place)

    # -- publishing ---------------------------------------------------------------------------------------------------

    async def publish(self, gun: Gun, files: Sequence[tuple[str, bytes]], validator: Validator) -> Update:
        """Validate uploaded files (names of roles, contents), complete them with what the server signs, store it all.

        ``validator`` says where, if that is too much work for the reactor's thread; once the upload is known to be
        valid, it is stored whatever becomes of its client.

        Returns the new timestamp. Raises NoFilename, InvalidRole, MalformedJSON, InvalidUpdate, OldVersion and
        InvalidGun; Overloaded and ClientGone, as :class:`Validator` does; SigningFailed and StorageFailed when these
        services are down.
        """
        plan, current = await self._validated(gun, files, validator)
        if plan.verified_root is not None and len(plan.verified_root) <= SMALL:
            self._verified_roots.put(_root(gun, plan.verified_root), True)
        updates = [*plan.updates]
        snapshot = None
        if plan.snapshot is not None:
            snapshot = await self._signed(plan.snapshot)
            updates.append(Update(SNAPSHOT, plan.snapshot.version, snapshot))
        # Last, because the timestamp holds the snapshot's checksum.
        size = sum([len(update.data) for update in updates if update.role == SNAPSHOT])
        draft = await self._place(size)(lambda: plan.timestamp(snapshot))
        timestamp = await self._signed_timestamp(draft)
        previous = current.get(TIMESTAMP)
        await self._store.publish(gun, [*updates, timestamp], None if previous is None else previous.sha256)
        return timestamp

    async def _validated(
        self, gun: Gun, files: Sequence[tuple[str, bytes]], validator: Validator
    ) -> tuple[Plan, Mapping[RoleName, Stored]]:
        """What an upload leads to, and what it was judged against."""
        size = sum([len(data) for _, data in files])
        if size < LARGE:
            run = execute if size <= SMALL else validator.in_thread
            uploads = await run(lambda: publish.read(files))
            current = await self._loaded(gun, [upload.role for upload in uploads], run)
            verified = self._is_root_verified(gun, current)

            def validate(most: int) -> Plan | None:
                if cost.estimate(current, uploads, root_verified=verified, most=most) > most:
                    return None
                return validation.validate(gun, current, uploads, self._now(), root_verified=verified)

            plan = validate(LITTLE_MICROSECONDS) or await validator.in_thread(lambda: validate(MUCH_MICROSECONDS))
            if plan is not None:
                return plan, current
            del uploads
        else:
            current = await self._loaded(gun, publish.named(files), self._in_thread)
            verified = self._is_root_verified(gun, current)
        held = {role: replace(stored, notes={}) for role, stored in current.items()}  # what crosses over
        plan = await validator.in_process(publish.validate_files, gun, held, files, self._now(), root_verified=verified)
        return plan, current

    def _place(self, size: int) -> InThread:
        """Where work on ``size`` bytes is done that is not an upload's validation."""
        return execute if size <= SMALL else self._in_thread

    async def _loaded(self, gun: Gun, roles: Sequence[RoleName], run: InThread) -> Mapping[RoleName, Stored]:
        """The stored files that an upload of ``roles`` is judged against. Raises TooDemanding if they are too large.

        What is loaded in several steps may be of several moments; then the store refuses what follows from it.
        """
        # What every upload needs comes first, in one step with what most need besides.
        needed = sorted(await run(lambda: publish.needed(roles)), key=lambda role: (role.depth, role))
        found: dict[RoleName, Stored] = {}
        for start in range(0, len(needed), STORED_AT_ONCE):
            found |= await self._store.current(gun, needed[start : start + STORED_AT_ONCE])
            if sum([len(stored.data) for stored in found.values()]) > STORED_BYTES:
                raise TooDemanding(
                    f"what is stored of these roles and their parents is larger than {STORED_BYTES} bytes together: "
                    "publish the files in several uploads"
                )
        return found

    def _is_root_verified(self, gun: Gun, current: Mapping[RoleName, Stored]) -> bool:
        root = current.get(ROOT)
        return root is not None and len(root.data) <= SMALL and self._verified_roots.get(_root(gun, root.data)) is True

    # -- keys ---------------------------------------------------------------------------------------------------------

    async def get_key(self, gun: Gun, role: RoleName, may_create: Callable[[], None] = lambda: None) -> PublicKey:
        """The key that the current root names for ``role`` if the server can sign with it, else a pending key.

        ``may_create`` is called, and may raise, before a key is asked for that may have to be made. Raises InvalidGun:
        nobody could publish with it.
        """
        found = await self._store.current(gun, [ROOT]) if await self._store.has(gun) else {}
        if ROOT in found:
            data = found[ROOT].data
            for key_id in await self._place(len(data))(lambda: _ids(data, role)):
                try:
                    return await self._signing.get_key(key_id)
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


def _ids(root: bytes, role: RoleName) -> list[str]:
    """The canonical ids of the keys that a stored root names for ``role``: as many as the server would sign with."""
    named = Root.parse(model.stored_envelope(ROOT, root)).roles[role].keys.values()
    return [key.canonical_id for key in islice(named, MAX_SIGNATURES)]


def _root(gun: Gun, data: bytes) -> _Root:
    return gun, hashlib.sha256(data).digest()


def _checksums(stored: Stored) -> Mapping[str, str]:
    """What a timestamp or snapshot lists: the checksum of each role, lower-case hex. Other names may be anything."""
    kind = Timestamp if stored.role == TIMESTAMP else Snapshot
    meta = kind.parse(model.stored_envelope(stored.role, stored.data)).meta
    return {
        name: listed.hashes["sha256"].hex()
        for name, listed in meta.items()
        if len(name) <= MAX_NAME and len(listed.hashes.get("sha256", b"")) == SHA256_BYTES
    }


def _lists(listed: Mapping[str, str] | None, role: RoleName, stored: Stored) -> bool:
    """Whether a file whose list is known vouches for ``stored``."""
    return listed is not None and listed.get(role) == stored.sha256


def _present(found: Mapping[RoleName, Stored], role: RoleName) -> Stored:
    try:
        return found[role]
    except KeyError:
        raise NotFound(f"there is no {role}") from None
