"""The use cases of the server: read, publish, get and rotate keys, delete, list changes.

Rules of this module: it knows the ports (store, signing service) and the pure TUF core, but no HTTP. A file is served
byte for byte as it was stored. Work that would hold the reactor too long runs in a thread or in another process; the
amount of work decides, not the client. Reads never wait for a validation. Nothing is written before everything is valid
and signed, and then all of it in one transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from random import Random
from typing import TypeAlias

from twisted.internet.defer import Deferred, execute
from twisted.logger import Logger

from notary.errors import (
    InvalidUpdate,
    KeyNotFound,
    NotFound,
    OldVersion,
    ReadOnly,
    SigningFailed,
    StorageFailed,
    TooDemanding,
)
from notary.server.renewal import Outcome, Renewals, Schedule
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
from notary.work.reactor import Clock
from notary.work.singleflight import SingleFlight
from notary.work.threads import InThread

_SIGNED_BY_SERVER = (TIMESTAMP, SNAPSHOT)
_Root: TypeAlias = tuple[Gun, bytes]
"""A collection and the SHA-256 of its root."""

KEPT_FILES = 1_000
"""For how many timestamps and snapshots the listed checksums are remembered, so that reads need not parse the files."""

KEPT_NAMES = 100_000
"""How many names the remembered files may list together, of 500 bytes each at most."""

KEPT_ROOTS = 10_000
"""How many verified roots are remembered, at 300 bytes each: verifying one is a third of validating a small upload."""

LARGE_BYTES = 2_000_000
"""Uploads of at least this size are validated in another process: parsing JSON takes 20 ms a megabyte, during which no
other thread runs, so every read would wait."""

SMALL_BYTES = 8_192
"""Files and uploads up to this size are parsed on the reactor's thread."""

LITTLE_MICROSECONDS = 3_000
"""The most work (:mod:`notary.tuf.cost`) of an upload that is done on the reactor's thread: an ordinary small upload
needs half of it, and a thread would only add its own cost."""

MUCH_MICROSECONDS = 400_000
"""The most work of an upload that is done in a thread. More is done in another process, whose start takes half as long:
a thread would take the interpreter lock from the reactor's thread again and again."""

FEW_KEYS = 10
"""Up to this number of keys, the signatures of a small file of the server are verified on the reactor's thread."""

STORED_BYTES = 256 << 20
"""The most stored bytes that an upload is validated against: a small upload may depend on many large parents."""

STORED_AT_ONCE = 8
"""How many stored files are loaded before their sizes are checked."""

SHA256_BYTES = 32

RETRY = timedelta(minutes=1)
"""How long metadata is served, after a read has begun a renewal or a renewal has failed, before the next try."""


@dataclass(frozen=True, slots=True)
class _Dates:
    """When a timestamp and its snapshot are to be renewed in the background, and when before they are served."""

    due: datetime
    expired: datetime


@dataclass(frozen=True, slots=True)
class _Files:
    """Stored files that are parsed. Two objects are equal if their checksums are."""

    checksums: str
    stored: tuple[Stored, ...] = field(compare=False)


class Repository:
    """The collections of a server.

    ``signing`` is None for a server that is read-only: then every use case that writes raises ReadOnly, and
    ``schedule`` must renew nothing. ``now`` returns the time (aware, UTC); ``clock`` times what happens in the
    background, ``chance`` spreads it. ``on_refresh`` is called with the role of each timestamp or snapshot that the
    server has renewed, ``on_expired_root`` for each renewal under an expired root.
    """

    def __init__(
        self,
        store: MetadataStore,
        signing: SigningService | None,
        in_thread: InThread,
        now: Callable[[], datetime],
        on_refresh: Callable[[RoleName], None],
        on_expired_root: Callable[[], None],
        clock: Clock,
        schedule: Schedule,
        chance: Random | None = None,
    ) -> None:
        self._store = store
        self._signing = signing
        self._in_thread = in_thread
        self._now = now
        self._schedule = schedule
        self.renewals = Renewals(
            store,
            self._signed,
            in_thread,
            now,
            clock,
            schedule,
            (chance or Random()).getrandbits(64),  # noqa: S311 - no secret
            on_refresh,
            on_expired_root,
        )
        self._listed: Lru[str, Mapping[str, str]] = Lru(KEPT_FILES, len, KEPT_NAMES)
        self._dates: Lru[tuple[str, str], _Dates] = Lru(KEPT_FILES)
        self._verified_roots: Lru[_Root, bool] = Lru(KEPT_ROOTS)
        # Concurrent readers share one parse of a file.
        self._listing = SingleFlight(self._list)
        self._dating = SingleFlight(self._date)
        self._log = Logger(namespace="notary.server.repository")

    # -- reading ------------------------------------------------------------------------------------------------------

    def by_checksum(self, gun: Gun, role: RoleName, sha256: str) -> Deferred[Stored]:
        """Return one immutable file by its checksum (lower-case hex). Raises NotFound."""
        return self._store.by_checksum(gun, role, sha256)

    def by_version(self, gun: Gun, role: RoleName, version: int) -> Deferred[Stored]:
        """Return one immutable file by its version. Raises NotFound."""
        return self._store.by_version(gun, role, version)

    def current(self, gun: Gun, role: RoleName) -> Deferred[Stored]:
        """Return the current file of ``role``. Raises NotFound.

        A root or targets file is found by walking from the timestamp over the snapshot, so that only files that a
        published timestamp lists are served. A timestamp or snapshot that the server can sign is renewed: in the
        background if it expires soon, before it is served if it has expired.
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
        return Deferred.fromCoroutine(self._walk_full(gun, role, found))

    async def _walk_full(self, gun: Gun, role: RoleName, found: Mapping[RoleName, Stored]) -> Stored:
        snapshot = await self._vouched(gun, _present(found, TIMESTAMP), SNAPSHOT, found)
        return await self._vouched(gun, snapshot, role, found)

    async def _vouched(self, gun: Gun, by: Stored, role: RoleName, found: Mapping[RoleName, Stored]) -> Stored:
        """Return the file of ``role`` whose checksum ``by`` lists; nearly always ``found`` has it."""
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

    async def _date(self, files: _Files) -> refresh.Expiries:
        timestamp, snapshot = files.stored
        return await self._in_thread(lambda: refresh.expiries(timestamp, snapshot))

    def _signed_by_server(
        self, found: Mapping[RoleName, Stored], gun: Gun, role: RoleName
    ) -> Stored | Deferred[Stored]:
        timestamp, snapshot = found.get(TIMESTAMP), found.get(SNAPSHOT)
        if timestamp is not None and snapshot is not None:
            dates = self._dates.get((timestamp.sha256, snapshot.sha256))
            if not self._schedule.renews or (dates is not None and dates.due > self._now()):
                if role == TIMESTAMP:
                    return timestamp
                if _lists(self._listed.get(timestamp.sha256), SNAPSHOT, snapshot):
                    return snapshot
        return Deferred.fromCoroutine(self._renewed_by_server(gun, role, found))

    async def _renewed_by_server(self, gun: Gun, role: RoleName, found: Mapping[RoleName, Stored]) -> Stored:
        timestamp, snapshot = _present(found, TIMESTAMP), _present(found, SNAPSHOT)
        if not self._schedule.renews:
            return timestamp if role == TIMESTAMP else await self._vouched(gun, timestamp, SNAPSHOT, found)
        pair = (timestamp.sha256, snapshot.sha256)
        dates = self._dates.get(pair)
        if dates is None:
            expiries = await self._dating(_Files(f"{pair}", (timestamp, snapshot)))
            dates = _Dates(self.renewals.due(gun, expiries), expiries.first)
            self._dates.put(pair, dates)
        now = self._now()
        if dates.expired <= now:
            if await self._renewed(gun):
                found = await self._store.current(gun, _SIGNED_BY_SERVER)
                timestamp = _present(found, TIMESTAMP)
            else:
                later = self._now() + RETRY
                self._dates.put(pair, _Dates(later, later))
        elif dates.due <= now:
            self.renewals.soon(gun)
            self._dates.put(pair, _Dates(min(now + RETRY, dates.expired), dates.expired))
        if role == TIMESTAMP:
            return timestamp
        return await self._vouched(gun, timestamp, SNAPSHOT, found)

    async def _renewed(self, gun: Gun) -> bool:
        """Renew what has expired. False if that is not possible; the old files are served then."""
        try:
            return await self.renewals.renew(gun) is not Outcome.IMPOSSIBLE
        except SigningFailed as error:
            self._log.warn("cannot renew the expired metadata of {gun}: {error}", gun=gun, error=str(error))
            return False

    async def _signed_timestamp(self, draft: draft.Draft) -> Update:
        return Update(TIMESTAMP, draft.version, await self._signed(draft))

    async def _signed(self, draft: draft.Draft) -> bytes:
        # With many keys, verifying the signatures takes long even for a small payload.
        place = self._place(len(draft.payload) if len(draft.keys) <= FEW_KEYS else SMALL_BYTES + 1)
        return await sign_draft(self._signer(), draft, place)

    # -- publishing ---------------------------------------------------------------------------------------------------

    async def publish(self, gun: Gun, files: Sequence[tuple[str, bytes]], validator: Validator) -> Update:
        """Validate uploaded files (names of roles, contents), sign what the server adds, and store all of it.

        ``validator`` runs validations that are too much work for the reactor's thread. A valid upload is stored even if
        its client has gone.

        Returns the new timestamp. Raises NoFilename, InvalidRole, MalformedJSON, InvalidUpdate, OldVersion and
        InvalidGun; Overloaded and ClientGone, as :class:`Validator` does; SigningFailed and StorageFailed when these
        services are down.
        """
        self._signer()
        try:
            return await self._publish(gun, files, validator)
        except OldVersion as error:
            # Perhaps only a renewal was stored meanwhile, on which no upload depends: then the upload is still valid.
            try:
                return await self._publish(gun, files, validator)
            except InvalidUpdate:
                raise error from None

    async def _publish(self, gun: Gun, files: Sequence[tuple[str, bytes]], validator: Validator) -> Update:
        plan, current = await self._validated(gun, files, validator)
        if plan.verified_root is not None and len(plan.verified_root) <= SMALL_BYTES:
            self._verified_roots.put(_root(gun, plan.verified_root), True)
        updates = [*plan.updates]
        snapshot = None
        if plan.snapshot is not None:
            snapshot = await self._signed(plan.snapshot)
            updates.append(Update(SNAPSHOT, plan.snapshot.version, snapshot))
        # The timestamp comes last, because it lists the snapshot's checksum.
        size = sum([len(update.data) for update in updates if update.role == SNAPSHOT])
        draft = await self._place(size)(lambda: plan.timestamp(snapshot))
        timestamp = await self._signed_timestamp(draft)
        previous = current.get(TIMESTAMP)
        await self._store.publish(gun, [*updates, timestamp], None if previous is None else previous.sha256)
        return timestamp

    async def _validated(
        self, gun: Gun, files: Sequence[tuple[str, bytes]], validator: Validator
    ) -> tuple[Plan, Mapping[RoleName, Stored]]:
        """Return the plan of an upload, and the stored files that the upload was validated against."""
        size = sum([len(data) for _, data in files])
        if size < LARGE_BYTES:
            run = execute if size <= SMALL_BYTES else validator.in_thread
            uploads = await run(lambda: publish.read(files))
            current = await self._loaded(gun, [upload.role for upload in uploads], run)
            verified = self._is_root_verified(gun, current)

            def validate(most: int) -> Plan | None:
                if cost.estimate(current, uploads, root_verified=verified, most=most) > most:
                    return None
                return validation.validate(
                    gun, current, uploads, self._now(), root_verified=verified, lifetimes=self._schedule.lifetimes
                )

            plan = validate(LITTLE_MICROSECONDS) or await validator.in_thread(lambda: validate(MUCH_MICROSECONDS))
            if plan is not None:
                return plan, current
            del uploads
        else:
            try:
                current = await self._loaded(gun, publish.named(files), self._in_thread)
            except StorageFailed:
                # A malformed upload is refused as such, whether or not the database answers, like a smaller one.
                await validator.in_process(publish.check, files)
                raise
            verified = self._is_root_verified(gun, current)
        held = {role: replace(stored, notes={}) for role, stored in current.items()}  # what is sent to the process
        plan = await validator.in_process(
            publish.validate_files,
            gun,
            held,
            files,
            self._now(),
            root_verified=verified,
            lifetimes=self._schedule.lifetimes,
        )
        return plan, current

    def _place(self, size: int) -> InThread:
        """Return where work on ``size`` bytes runs, other than validations."""
        return execute if size <= SMALL_BYTES else self._in_thread

    async def _loaded(self, gun: Gun, roles: Sequence[RoleName], run: InThread) -> Mapping[RoleName, Stored]:
        """Return the stored files that an upload of ``roles`` is validated against. Raises TooDemanding if too large.

        Files that are loaded in several steps may be of several moments; the store refuses the resulting publish then.
        """
        # The files that every upload needs come first, and in the same step those that most uploads need.
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
        return (
            root is not None
            and len(root.data) <= SMALL_BYTES
            and self._verified_roots.get(_root(gun, root.data)) is True
        )

    # -- keys ---------------------------------------------------------------------------------------------------------

    async def get_key(self, gun: Gun, role: RoleName, may_create: Callable[[], None] = lambda: None) -> PublicKey:
        """Return the key that the current root names for ``role``, if the server can sign with it, or a pending key.

        ``may_create`` is called, and may raise, before the signing service is asked for a key that may have to be made.
        Raises InvalidGun for a collection that could not be published.
        """
        signer = self._signer()
        found = await self._store.current(gun, [ROOT]) if await self._store.has(gun) else {}
        if ROOT in found:
            data = found[ROOT].data
            for key_id in await self._place(len(data))(lambda: _ids(data, role)):
                try:
                    return await signer.get_key(key_id)
                except KeyNotFound:
                    continue
        may_create()
        return await signer.create_key(gun, role)

    async def rotate_key(self, gun: Gun, role: RoleName, may_create: Callable[[], None] = lambda: None) -> PublicKey:
        """Return a pending key; the server signs with this key once a published root names it.

        ``may_create`` is as in ``get_key``. Raises InvalidGun.
        """
        signer = self._signer()
        await self._store.has(gun)
        may_create()
        return await signer.create_key(gun, role)

    # -- the rest -----------------------------------------------------------------------------------------------------

    async def delete(self, gun: Gun) -> bool:
        """Delete a collection. False if there was none. Its keys stay with the signing service."""
        self._signer()
        return await self._store.delete(gun)

    def _signer(self) -> SigningService:
        """Return the signing service. Raises ReadOnly if there is none."""
        if self._signing is None:
            raise ReadOnly("this server is read-only")
        return self._signing

    async def changes(self, gun: Gun | None, change_id: int | None, records: int) -> Sequence[Change]:
        """See MetadataStore.changes."""
        return await self._store.changes(gun, change_id, records)


def _ids(root: bytes, role: RoleName) -> list[str]:
    """Return the canonical ids of the keys that a stored root names for ``role``, up to MAX_SIGNATURES."""
    named = Root.parse(model.stored_envelope(ROOT, root)).roles[role].keys.values()
    return [key.canonical_id for key in islice(named, MAX_SIGNATURES)]


def _root(gun: Gun, data: bytes) -> _Root:
    return gun, hashlib.sha256(data).digest()


def _checksums(stored: Stored) -> Mapping[str, str]:
    """Return the checksums (lower-case hex) that a timestamp or snapshot lists, by name; a name may be no role."""
    kind = Timestamp if stored.role == TIMESTAMP else Snapshot
    meta = kind.parse(model.stored_envelope(stored.role, stored.data)).meta
    return {
        name: listed.hashes["sha256"].hex()
        for name, listed in meta.items()
        if len(name) <= MAX_NAME and len(listed.hashes.get("sha256", b"")) == SHA256_BYTES
    }


def _lists(listed: Mapping[str, str] | None, role: RoleName, stored: Stored) -> bool:
    """Return whether ``listed`` has the checksum of ``stored``."""
    return listed is not None and listed.get(role) == stored.sha256


def _present(found: Mapping[RoleName, Stored], role: RoleName) -> Stored:
    try:
        return found[role]
    except KeyError:
        raise NotFound(f"there is no {role}") from None
