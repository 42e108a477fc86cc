"""The walk of a client through a collection, as steps that say which file is needed next, and what was found.

Rules of this module: pure. :func:`walk` is a generator: it yields a :class:`Want`, is sent the bytes of that file (None
if there is no such file), and returns a :class:`Found` in the end. Nothing of a collection counts before all of it is
verified. Expiry does not count: what has expired is named in a warning.

The walk is that of clients: the timestamp, the snapshot by its checksum, then by theirs root, targets and every other
role that the snapshot lists. The roots before the current one are asked for by version, from the newest to the oldest,
and each must have signed the next one. What clients pass over is taken with a warning: a delegation that its parent's
keys have not signed, and a listed role to which no role delegates. The signed snapshot vouches for their bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from notary.errors import Diverged, InvalidMetadata, InvalidRole, NotFound
from notary.tuf import public
from notary.tuf.canonical import quote
from notary.tuf.collection import Metadata, parse
from notary.tuf.model import (
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    Delegation,
    FileMeta,
    Gun,
    RoleName,
    Root,
    Snapshot,
    Targets,
    Timestamp,
    Update,
)
from notary.tuf.root_certificates import certified_keys, check_delegation_certificate
from notary.tuf.signatures import require_signatures, require_succession, stored_root

MAX_TIMESTAMP_BYTES: Final = 1 << 20
MAX_ROOT_BYTES: Final = 16 << 20
"""The largest root that is asked for by version: nothing lists its length."""
MAX_FILE_BYTES: Final = 100 << 20
"""The largest file; servers take no larger uploads by default."""
MAX_COLLECTION_BYTES: Final = 512 << 20
"""The most bytes of one collection, which are in memory together."""
MAX_ROOTS: Final = 1_000
"""The most versions of root that are followed."""
MAX_ROLES: Final = 1_000
"""The most roles that a snapshot may list."""
MAX_VERIFYING_MICROSECONDS: Final = 10_000_000
"""The most work for the signatures of one collection, as :func:`notary.tuf.public.cost` counts it."""


@dataclass(frozen=True, slots=True)
class Want:
    """A file to ask for: ``role`` by its ``sha256`` (lower-case hex) or its ``version``; by neither, the current file.

    ``limit`` is the largest number of bytes that it may have.
    """

    role: RoleName
    limit: int
    sha256: str = ""
    version: int = 0

    @property
    def name(self) -> str:
        """The name of the file in the API."""
        if self.sha256:
            return f"{self.role}.{self.sha256}.json"
        return f"{self.version}.{self.role}.json" if self.version else f"{self.role}.json"


@dataclass(frozen=True, slots=True)
class Notice:
    """A finding that does not stop the walk. ``expired`` is the time at which ``role`` expired, if that is the finding.

    ``text`` is for people, and names the role.
    """

    role: str
    text: str
    expired: datetime | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A verified collection: ``files`` are those that are not stored yet, the oldest root first.

    ``versions`` holds the current version of each role. Clients can read the collection before ``readable_until``
    (aware, UTC), when the first of the four base roles expires. ``verifying_microseconds`` is the work that it took, as
    :func:`notary.tuf.public.cost` counts it.
    """

    gun: Gun
    files: tuple[Update, ...] = field(repr=False)
    versions: Mapping[str, int]
    expires: Mapping[str, datetime]
    readable_until: datetime
    warnings: tuple[Notice, ...]
    verifying_microseconds: int


@dataclass(frozen=True, slots=True)
class Known:
    """A file that is stored already: the newest one of its role."""

    version: int
    data: bytes = field(repr=False)


Walk: TypeAlias = Generator[Want, bytes | None, Found]


def walk(gun: Gun, known: Mapping[str, Known], now: datetime, version: int = 0) -> Walk:
    """Walk through a collection; ``known`` holds the newest stored file of each role.

    With ``version``, the walk begins at that version of the timestamp, and goes through the collection as it was then.
    The generator raises NotFound if the peer has no such collection or version; Diverged if the peer's files do not
    continue the stored ones; InvalidMetadata if the collection is not what clients accept.
    """
    return _Walk(gun, known, now).run(version)


class _Walk:
    """One walk, and what was found so far."""

    def __init__(self, gun: Gun, known: Mapping[str, Known], now: datetime) -> None:
        self._gun = gun
        self._known = known
        self._now = now
        self._bytes = 0
        self._microseconds = 0
        self._warnings: list[Notice] = []
        self._new: list[Update] = []
        self._versions: dict[str, int] = {}
        self._expires: dict[str, datetime] = {}
        self._targets: dict[RoleName, Targets] = {}

    def run(self, version: int) -> Walk:
        data = yield Want(TIMESTAMP, MAX_TIMESTAMP_BYTES, version=version)
        if data is None:
            raise NotFound(f"the server has no {f'timestamp {version} of' if version else 'collection'} {self._gun}")
        timestamp = self._parsed(TIMESTAMP, data)
        assert isinstance(timestamp, Timestamp)  # noqa: S101 - for the type checker
        if version not in (0, timestamp.version):
            raise InvalidMetadata(
                f"timestamp: asked for version {version}, the server sends version {timestamp.version}"
            )
        self._require_not_older(TIMESTAMP, timestamp.version, data)
        snapshot_data = yield from self._listed(SNAPSHOT, timestamp.meta[SNAPSHOT], TIMESTAMP)
        snapshot = self._parsed(SNAPSHOT, snapshot_data)
        assert isinstance(snapshot, Snapshot)  # noqa: S101 - for the type checker
        if len(snapshot.meta) > MAX_ROLES:
            raise InvalidMetadata(f"snapshot: it lists {len(snapshot.meta)} roles; at most {MAX_ROLES} are fetched")
        root = yield from self._root(snapshot.meta[ROOT])
        for role, metadata in ((TIMESTAMP, timestamp), (SNAPSHOT, snapshot)):
            self._require_signed(role, metadata, root)
        self._take(SNAPSHOT, snapshot, snapshot_data)
        targets_data = yield from self._listed(TARGETS, snapshot.meta[TARGETS], SNAPSHOT)
        targets = self._parsed(TARGETS, targets_data)
        assert isinstance(targets, Targets)  # noqa: S101 - for the type checker
        self._require_signed(TARGETS, targets, root)
        self._take(TARGETS, targets, targets_data)
        self._targets[TARGETS] = targets
        for name in self._delegations(snapshot):
            yield from self._delegation(name, snapshot.meta[name])
        self._take(TIMESTAMP, timestamp, data)
        until = min(self._expires[role] for role in (ROOT, TARGETS, SNAPSHOT, TIMESTAMP))
        return Found(
            self._gun,
            tuple(self._new),
            self._versions,
            self._expires,
            until,
            tuple(self._warnings),
            self._microseconds,
        )

    # -- root ---------------------------------------------------------------------------------------------------------

    def _root(self, meta: FileMeta) -> Generator[Want, bytes | None, Root]:
        data = yield from self._listed(ROOT, meta, SNAPSHOT)
        root = stored_root(self._gun, data, self._spend)
        self._require_not_older(ROOT, root.version, data)
        self._take_roots((yield from self._chain(root)))
        self._take(ROOT, root, data)
        try:
            certified_keys(root, self._gun, self._now)
        except InvalidMetadata as error:
            self._warn(ROOT, f"clients refuse it: {error}")
        return root

    def _chain(self, root: Root) -> Generator[Want, bytes | None, list[tuple[Root, bytes]]]:
        """The roots before ``root`` that are not stored, the newest first; each has signed the next one."""
        known = self._known.get(ROOT)
        trusted = None if known is None else stored_root(self._gun, known.data, self._spend)
        lowest = 0 if known is None else known.version
        if root.version - lowest > MAX_ROOTS:
            raise InvalidMetadata(f"root: version {root.version} follows too many others: at most {MAX_ROOTS}")
        found: list[tuple[Root, bytes]] = []
        following = root
        for version in range(root.version - 1, lowest, -1):
            data = yield Want(ROOT, MAX_ROOT_BYTES, version=version)
            if data is None:
                if trusted is not None:
                    raise Diverged(
                        f"root: the server has no version {version}, so nothing leads from the stored version {lowest} "
                        f"to version {root.version}"
                    )
                yield from self._require_beginning(version)
                break
            self._count(data)
            earlier = stored_root(self._gun, data, self._spend)
            if earlier.version != version:
                raise InvalidMetadata(f"root: asked for version {version}, the server sends version {earlier.version}")
            self._require_follows(earlier, following)
            found.append((earlier, data))
            following = earlier
        if trusted is not None and root.version > lowest:
            try:
                self._require_follows(trusted, following)
            except InvalidMetadata as error:
                raise Diverged(f"{error} (--force takes it)") from None
        return found

    def _require_beginning(self, missing: int) -> Generator[Want, bytes | None, None]:
        """Accept that root ``missing`` and all before it are not served; a version after a gap would be a lie.

        A first root may have the version 2.
        """
        if missing == 1:
            return
        if (yield Want(ROOT, MAX_ROOT_BYTES, version=1)) is not None:
            raise InvalidMetadata(f"root: the server has version 1, but not version {missing}: there is a gap")
        self._warn(
            ROOT,
            f"the server does not give its versions 1 to {missing}: clients that know only those cannot follow to the "
            "current one",
        )

    def _require_follows(self, earlier: Root, later: Root) -> None:
        try:
            require_succession(self._gun, earlier, later.envelope, self._spend)
        except InvalidMetadata as error:
            raise InvalidMetadata(
                f"root: version {later.version} does not follow version {earlier.version}: {error}"
            ) from None

    def _take_roots(self, chain: list[tuple[Root, bytes]]) -> None:
        self._new += [Update(ROOT, root.version, data) for root, data in reversed(chain)]

    # -- targets ------------------------------------------------------------------------------------------------------

    def _delegations(self, snapshot: Snapshot) -> list[RoleName]:
        """The roles below targets that the snapshot lists, parents first."""
        found = []
        for listed in snapshot.meta:
            if listed in (ROOT, TARGETS):
                continue
            try:
                name = RoleName(listed)
            except InvalidRole:
                name = None
            if name is None or not name.is_delegation:
                self._warn(quote(listed), "the snapshot lists it, but it is no delegation: not fetched")
            else:
                found.append(name)
        return sorted(found, key=lambda name: (name.depth, name))

    def _delegation(self, name: RoleName, meta: FileMeta) -> Generator[Want, bytes | None, None]:
        parent = self._targets.get(name.parent or TARGETS)
        delegation = None if parent is None else parent.delegations.get(name)
        if delegation is not None:
            data = yield from self._listed(name, meta, SNAPSHOT)
            metadata = self._parsed(name, data)
            assert isinstance(metadata, Targets)  # noqa: S101 - for the type checker
            if self._is_signed(name, metadata, delegation):
                self._targets[name] = metadata
                self._take(name, metadata, data)
                return
            self._warn(name, "it lacks signatures by the keys that its parent names: clients pass over it")
        else:
            try:
                data = yield from self._listed(name, meta, SNAPSHOT)
                metadata = self._parsed(name, data)
            except InvalidMetadata as error:
                self._warn(name, f"no role delegates to it, and it is left out: {error}")
                return
            self._warn(name, "no role that clients read delegates to it: clients pass over it")
        self._take(name, metadata, data, read=False)

    def _is_signed(self, name: RoleName, metadata: Targets, delegation: Delegation) -> bool:
        """Whether enough keys have signed. Raises InvalidMetadata if clients would give up on the whole collection."""
        for key in delegation.role.keys.values():
            check_delegation_certificate(name, key)
        try:
            return public.meets_threshold(metadata.envelope, delegation.role, self._spend).ok
        except InvalidMetadata as error:
            raise InvalidMetadata(f"{name}: {error}") from None

    # -- one file -----------------------------------------------------------------------------------------------------

    def _listed(self, role: RoleName, meta: FileMeta, by: RoleName) -> Generator[Want, bytes | None, bytes]:
        """Return the file with the checksum that ``by`` lists, which is perhaps stored already."""
        sha256 = meta.hashes.get("sha256", b"").hex()
        if len(sha256) != hashlib.sha256().digest_size * 2:
            raise InvalidMetadata(f"{role}: {by} lists no SHA-256 to ask by")
        limit = min(MAX_FILE_BYTES, MAX_COLLECTION_BYTES - self._bytes)
        if meta.length > limit:
            raise InvalidMetadata(f"{role}: {by} lists {meta.length} bytes; at most {limit} are fetched")
        limit = limit if meta.length == -1 else max(meta.length, 0)
        known = self._known.get(role)
        if known is not None and hashlib.sha256(known.data).hexdigest() == sha256:
            data: bytes | None = known.data
        else:
            data = yield Want(role, limit, sha256)
        if data is None:
            raise InvalidMetadata(f"{role}: {by} lists the checksum {sha256}, and the server has no such file")
        self._count(data)
        if not meta.matches(data):
            raise InvalidMetadata(f"{role}: its content does not match the checksum that {by} lists ({sha256})")
        if not meta.leads_to(data):
            raise InvalidMetadata(f"{role}: it has {len(data)} bytes, and {by} lists {meta.length}")
        return data

    def _parsed(self, role: RoleName, data: bytes) -> Metadata:
        try:
            return parse(role, data)
        except InvalidMetadata as error:
            text = str(error).removeprefix(f"the stored {role} is not metadata: ")
            raise InvalidMetadata(text if text.startswith(role) else f"{role}: {text}") from None

    def _require_signed(self, role: RoleName, metadata: Metadata, root: Root) -> None:
        require_signatures(role, metadata.envelope, root.roles[role], "the keys that root names for it", self._spend)

    def _require_not_older(self, role: RoleName, version: int, data: bytes) -> bool:
        """Require that a file can follow the stored one; return whether it is another one."""
        known = self._known.get(role)
        if known is None:
            return True
        if version < known.version:
            raise Diverged(
                f"{role}: the server has version {version}, and version {known.version} is stored: the server lies, "
                "was set back, or the collection was published elsewhere since (--force takes the older one)"
            )
        if version == known.version and data != known.data:
            raise Diverged(
                f"{role}: the server has another version {version} than the one that is stored (--force takes it)"
            )
        return version > known.version

    def _take(self, role: RoleName, metadata: Metadata, data: bytes, *, read: bool = True) -> None:
        """Take a verified file; ``read`` says that clients read it, so that its expiry matters."""
        if self._require_not_older(role, metadata.version, data):
            self._new.append(Update(role, metadata.version, data))
        self._versions[role] = metadata.version
        if read:
            self._expires[role] = metadata.expires
            if metadata.expires < self._now:
                day = f"{metadata.expires:%Y-%m-%d}"
                self._warnings.append(Notice(role, f"{role}: expired on {day}", metadata.expires))

    def _warn(self, role: str, text: str) -> None:
        self._warnings.append(Notice(role, f"{role}: {text}"))

    def _count(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._bytes > MAX_COLLECTION_BYTES:
            raise InvalidMetadata(f"the collection has more than {MAX_COLLECTION_BYTES} bytes")

    def _spend(self, microseconds: int) -> None:
        self._microseconds += microseconds
        if self._microseconds > MAX_VERIFYING_MICROSECONDS:
            raise InvalidMetadata("the signatures of the collection take too long to verify")
