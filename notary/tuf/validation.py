"""The rules that an upload must satisfy before it is stored (docs/protocol.md, section 3), and the plan that follows.

Rules of this module: pure. Bytes and ``now`` come in, values or typed errors go out; nothing is loaded and nothing is
signed here. The caller loads the stored files that :func:`notary.tuf.publish.needed` names, once; :func:`validate`
checks the upload against them and returns a :class:`Plan`; the caller has the plan's drafts signed and writes all files
in one transaction.

The checks run in the order of the protocol, because clients see only the first fault: root, the targets roles from
shallow to deep, the snapshot, and last our own rules (section 9): clients must be able to read the collection after the
upload, and a version may not leap.

A new client reads a collection either completely or not at all: the timestamp, the snapshot, root, targets, and every
delegation that targets lead to and the snapshot lists. An upload may not make a readable collection unreadable. It need
not repair a fault that existed before: unchanged files are not checked again, nor is the expiry of stored files. One
fault is allowed: a delegation whose keys its parent has changed, which clients skip with a warning.

Hashes are always taken over the stored bytes, never over a re-serialisation of them.

:func:`validate` raises two kinds of error. InvalidUpdate is a fault of the upload, which the publisher can correct; a
stored parent that the upload leaves without valid signatures is one, and so is a stored root whose certificates this
server cannot use, until its publisher replaces it. InvalidMetadata means that the *stored* root or snapshot is damaged;
that is no fault of this publisher, so an edge must treat it as a failure of the service.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from notary.errors import (
    InvalidMetadata,
    InvalidRole,
    InvalidUpdate,
    MalformedJSON,
    NoUsableCertificate,
    UploadFault,
)
from notary.tuf import canonical, cost
from notary.tuf.canonical import quote
from notary.tuf.draft import LIFETIMES, Draft, Lifetimes, next_snapshot, timestamp
from notary.tuf.model import (
    MAX_VERSION,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    Envelope,
    FileMeta,
    Gun,
    Held,
    RoleKeys,
    RoleName,
    Root,
    Snapshot,
    Targets,
    Update,
    Upload,
    stored_envelope,
)
from notary.tuf.root_certificates import certified_keys, check_delegation_certificate
from notary.tuf.signatures import require_signatures, require_succession, stored_root

MAX_LEAP = 1_000
"""How far an uploaded version may lie above the stored one (docs/protocol.md, section 9)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The result of validating an upload.

    ``updates`` are stored as they are. A ``snapshot`` that is not None must be signed and stored too. ``timestamp``
    returns the last draft, once the snapshot is complete. ``verified_root`` holds the bytes of the collection's root if
    that root stays valid regardless of time, so that later uploads need not verify it again; else it is None.
    """

    updates: tuple[Update, ...]
    snapshot: Draft | None
    verified_root: bytes | None
    _signers: RoleKeys
    _timestamp_version: int
    _timestamp_expires: datetime

    def timestamp(self, snapshot: bytes | None = None) -> Draft:
        """Return the timestamp that lists ``snapshot``, the finished file; by default the snapshot of the upload.

        Raises InvalidUpdate if no such timestamp is possible.
        """
        if snapshot is None:
            snapshot = next(update.data for update in self.updates if update.role == SNAPSHOT)
        return timestamp(self._signers, self._timestamp_version, snapshot, self._timestamp_expires)


def validate(
    gun: Gun,
    current: Mapping[RoleName, Held],
    uploads: Sequence[Upload],
    now: datetime,
    *,
    root_verified: bool = False,
    lifetimes: Lifetimes = LIFETIMES,
) -> Plan:
    """Check ``uploads`` against ``current``, the newest stored file of each role that ``publish.needed`` names.

    Of two files for one role the later counts. An uploaded timestamp is ignored. A version that is already stored is
    not refused here, but by the store, in the transaction that writes. ``now`` is aware. ``root_verified`` says that
    the bytes of the stored root were :attr:`Plan.verified_root` before; then they are not verified again. All
    signatures together may take :data:`notary.tuf.cost.MAX_VERIFYING_MICROSECONDS` to verify.

    Raises InvalidUpdate; InvalidMetadata if the stored root or snapshot cannot be used (see the module's rules).
    """
    by_role = {upload.role: upload for upload in uploads}
    return Validation(gun, current, by_role, now, root_verified=root_verified, lifetimes=lifetimes).run()


class Validation:
    """One run of :func:`validate`: its steps, and their results for the next steps.

    Reading ``root`` needs only the upload of root; the other files may be added afterwards, with :meth:`add`.
    """

    def __init__(
        self,
        gun: Gun,
        current: Mapping[RoleName, Held],
        uploads: Mapping[RoleName, Upload],
        now: datetime,
        *,
        root_verified: bool,
        lifetimes: Lifetimes,
    ) -> None:
        self._gun = gun
        self._current = current
        self._uploads: dict[RoleName, Upload] = {}
        self._now = now
        self._root_verified = root_verified
        self._lifetimes = lifetimes
        self._spend = cost.VerifyingBudget(cost.MAX_VERIFYING_MICROSECONDS).spend
        self._stored_root: Root | None
        self._loaded: dict[RoleName, bytes] = {}
        self._targets: dict[RoleName, Targets] = {}
        self._stored_budget = canonical.StructureBudget()
        self.add(uploads.values())

    def add(self, uploads: Iterable[Upload]) -> None:
        """Take more files of the upload; a timestamp is ignored."""
        self._uploads |= {upload.role: upload for upload in uploads if upload.role != TIMESTAMP}

    def run(self) -> Plan:
        """Check the upload as a whole. Raises as :func:`validate` does."""
        root = self.root
        roles = sorted(
            (role for role in self._uploads if role == TARGETS or role.is_delegation),
            key=lambda role: (role.depth, role),
        )
        for role in roles:
            self._accept_targets(root, role)
        if TARGETS not in self._loaded and self._names_other_signers(root):
            self._keep_targets(root)
        if SNAPSHOT in self._uploads:
            with _blame(UploadFault.SNAPSHOT, SNAPSHOT):
                listed: Collection[str] = self._accept_snapshot(root)
            draft = None
        else:
            draft = self._draft_snapshot(root)
            listed = self._listed
        for role in roles:
            with _blame(UploadFault.TARGETS, role):
                self._require_readable_delegations(role, listed)
        self._forbid_leaps()
        updates = tuple(
            Update(role, self._uploads[role].version, self._uploads[role].data)
            for role in (ROOT, *roles, SNAPSHOT)
            if role in self._uploads
        )
        timestamp = self._current.get(TIMESTAMP)
        verified_root = self._loaded[ROOT] if self._root_verified else None
        version = 0 if timestamp is None else timestamp.version
        expires = self._now + self._lifetimes.timestamp
        return Plan(updates, draft, verified_root, root.roles[TIMESTAMP], version, expires)

    # -- root ---------------------------------------------------------------------------------------------------------

    @cached_property
    def root(self) -> Root:
        """The root of the collection after the upload. Raises as :func:`validate` does."""
        held = self._current.get(ROOT)
        if held is None:
            stored = None
        elif self._root_verified:
            stored = Root.parse(stored_envelope(ROOT, held.data))
        else:
            stored = self._verified_or_replaced(held)
        self._stored_root = stored
        upload = self._uploads.get(ROOT)
        if upload is not None:
            with _blame(UploadFault.ROOT, ROOT):
                root = self._accept_root(stored, upload)
            self._loaded[ROOT] = upload.data
            return root
        if held is None or stored is None:
            raise InvalidUpdate(UploadFault.VALIDATION, "this collection has no root yet, and the upload holds none")
        self._loaded[ROOT] = held.data
        self._root_verified = True
        return stored

    def _verified_or_replaced(self, held: Held) -> Root:
        """Return the stored root. If no certificate of it can be used, the upload must bring the next one."""
        try:
            return stored_root(self._gun, held.data, self._spend)
        except NoUsableCertificate as error:
            if ROOT in self._uploads:
                return Root.parse(stored_envelope(ROOT, held.data))
            raise InvalidUpdate(
                UploadFault.ROOT,
                "the stored root has no certificate that this server can use; rotate the root key first, with the "
                f"present one ({error})",
            ) from error

    def _accept_root(self, stored: Root | None, upload: Upload) -> Root:
        # "No root yet" counts as version 1, so that a first root may say 1 or 2 (docs/protocol.md, section 3).
        version = 1 if stored is None else stored.version
        if upload.version not in (version, version + 1):
            raise InvalidMetadata(
                f"root: version {upload.version} cannot follow version {version}; the next one is {version + 1}"
            )
        root = Root.parse(upload.envelope)
        own = certified_keys(root, self._gun, self._now)
        if stored is not None:
            require_succession(self._gun, stored, upload.envelope, self._spend)
        require_signatures(ROOT, upload.envelope, own, "its own certificates", self._spend)
        self._require_unexpired(ROOT, root.expires)
        self._root_verified = own == certified_keys(root, self._gun, None)  # the keys if expiry does not count
        return root

    # -- targets and delegations --------------------------------------------------------------------------------------

    def _accept_targets(self, root: Root, role: RoleName) -> None:
        for ancestor in _ancestors(role):
            if ancestor not in self._targets:
                self._load_ancestor(root, ancestor, role)
        upload = self._uploads[role]
        with _blame(UploadFault.TARGETS, role):
            targets = self._verified(root, role, upload.envelope)
            self._require_unexpired(role, targets.expires)
        self._targets[role] = targets
        self._loaded[role] = upload.data

    def _load_ancestor(self, root: Root, role: RoleName, descendant: RoleName) -> None:
        """Load ``role`` from the store, as an ancestor of ``descendant``. Its expiry does not count."""
        held = self._current.get(role)
        if held is None or not self._is_listed(role):
            raise InvalidUpdate(
                UploadFault.TARGETS, f"{descendant}: its parent {role} is neither in this upload nor in the collection"
            )
        self._load_stored(root, role, held, f"{descendant}: its parent {role}")

    def _load_stored(self, root: Root, role: RoleName, held: Held, title: str) -> None:
        """Load ``role`` from the store. It must be valid together with the upload; ``title`` names it in messages."""
        try:
            targets = self._verified(root, role, Envelope.parse(held.data, self._stored_budget))
        except (InvalidMetadata, MalformedJSON) as error:
            raise InvalidUpdate(
                UploadFault.TARGETS, f"{title}, as stored, is not valid any more; upload it too ({error})"
            ) from error
        self._targets[role] = targets
        self._loaded[role] = held.data

    def _names_other_signers(self, root: Root) -> bool:
        """Whether ``root`` demands other signatures of targets than the stored root does."""
        return self._stored_root is None or self._stored_root.roles[TARGETS] != root.roles[TARGETS]

    def _keep_targets(self, root: Root) -> None:
        """Require that the stored targets are valid under a root that was uploaded without targets."""
        held = self._current.get(TARGETS)
        if held is not None:
            self._load_stored(root, TARGETS, held, "the targets file")

    def _is_listed(self, role: RoleName) -> bool:
        """Whether the stored snapshot lists ``role``: publishers remove a delegation by not listing it."""
        return SNAPSHOT not in self._current or role in self._listed

    @property
    def _listed(self) -> Mapping[str, FileMeta]:
        """The entries of the stored snapshot. Raises InvalidMetadata if the stored file is not a snapshot."""
        return {} if self._snapshot is None else self._snapshot.meta

    @cached_property
    def _snapshot(self) -> Snapshot | None:
        held = self._current.get(SNAPSHOT)
        return None if held is None else Snapshot.parse(stored_envelope(SNAPSHOT, held.data))

    def _verified(self, root: Root, role: RoleName, envelope: Envelope) -> Targets:
        """Return the file of ``role`` in ``envelope``, signed as root or the parent (verified before) demands."""
        if role.parent is None:
            signers, named_by = root.roles[TARGETS], "root"
        else:
            delegation = self._targets[role.parent].delegations.get(role)
            if delegation is None:
                raise InvalidMetadata(f"{role}: {role.parent} does not delegate to it")
            signers, named_by = delegation.role, role.parent
            for key in signers.keys.values():
                check_delegation_certificate(role, key)
        require_signatures(role, envelope, signers, f"the keys that {named_by} names for it", self._spend)
        self._forbid_unreadable_leap(role)
        return Targets.parse(envelope, role)

    def _require_readable_delegations(self, role: RoleName, listed: Collection[str]) -> None:
        """Require that clients can still read the collection if an upload of ``role`` changes keys of delegations.

        Clients skip a stored file that lacks signatures, so such files are not checked here; but clients give up on a
        certificate with a fault, and on a signature by a key whose id is wrong. ``listed`` holds the roles whose files
        clients fetch.
        """
        for name, delegation in self._targets[role].delegations.items():
            if name not in listed or name in self._uploads:
                continue
            for key_id, key in delegation.role.keys.items():
                check_delegation_certificate(name, key)
                if key.key_id != key_id:
                    raise InvalidMetadata(
                        f"{role}: delegation {name}: key id {quote(key_id)} does not match the content of its key"
                    )

    # -- snapshot -----------------------------------------------------------------------------------------------------

    def _accept_snapshot(self, root: Root) -> Collection[str]:
        """Check the uploaded snapshot; return the roles that it lists."""
        envelope = self._uploads[SNAPSHOT].envelope
        signers = root.roles[SNAPSHOT]
        require_signatures(SNAPSHOT, envelope, signers, "the keys that root names for it", self._spend)
        self._forbid_unreadable_leap(SNAPSHOT)
        snapshot = Snapshot.parse(envelope)
        self._require_unexpired(SNAPSHOT, snapshot.expires)
        for role, data in self._loaded.items():
            meta = snapshot.meta.get(role)
            if meta is None:
                raise InvalidMetadata(f"snapshot: it lists no hashes for {role}")
            if not meta.matches(data):
                raise InvalidMetadata(
                    f"snapshot: its hashes for {role} are not those of version {self._version_of(role)}, "
                    f"which is {'in this upload' if role in self._uploads else 'stored'}"
                )
            if not meta.leads_to(data):
                raise InvalidMetadata(
                    f"snapshot: clients cannot fetch {role} by what it lists: "
                    f"its SHA-256 and its length, {len(data)}, are needed"
                )
        held = self._current.get(SNAPSHOT)
        if held is None or snapshot.version > held.version:  # else nothing will be stored
            for name, meta in snapshot.meta.items():
                if name not in self._loaded and not self._is_stored(name, meta):
                    raise InvalidMetadata(
                        f"snapshot: its hashes for {name} are neither those of a file in this upload nor those that "
                        f"were listed before; fetch the collection again, or upload {name} too"
                    )
        return snapshot.meta

    def _is_stored(self, name: str, meta: FileMeta) -> bool:
        """Whether clients find the file of an entry in the uploaded snapshot that is not in the upload.

        Publishers repeat the entries of the stored snapshot, which are not checked again. If the stored snapshot cannot
        be read, the uploaded one repairs the collection, and its entries are accepted.
        """
        try:
            role = RoleName(name)
        except InvalidRole:
            return True  # Clients do not look for it.
        if role != TARGETS and not role.is_delegation:
            return True
        held = self._current.get(role)
        if held is not None and meta.matches(held.data) and meta.leads_to(held.data):
            return True
        try:
            return role in self._listed and meta.repeats(self._listed[role])
        except InvalidMetadata:
            return True

    def _version_of(self, role: RoleName) -> int:
        return self._uploads[role].version if role in self._uploads else self._current[role].version

    def _draft_snapshot(self, root: Root) -> Draft:
        if SNAPSHOT not in self._current and TARGETS not in self._loaded:
            raise InvalidUpdate(UploadFault.VALIDATION, "the first upload to a collection must hold targets")
        version = self._current[SNAPSHOT].version if SNAPSHOT in self._current else 0
        expires = self._now + self._lifetimes.snapshot
        return next_snapshot(root, self._snapshot, version, self._loaded, expires)

    # -- what every file must satisfy ---------------------------------------------------------------------------------

    def _require_unexpired(self, role: RoleName, expires: datetime) -> None:
        if expires < self._now:
            raise InvalidMetadata(f"{role}: it expired at {expires.isoformat()}")

    def _forbid_leaps(self) -> None:
        for role in self._uploads:
            self._forbid_leap(role)

    def _forbid_leap(self, role: RoleName) -> None:
        """Refuse a version far above the stored one: no publisher may use up the versions of a role (section 9)."""
        held = self._current.get(role)
        stored = 0 if held is None else held.version
        version = self._uploads[role].version
        if version > stored + MAX_LEAP:
            raise InvalidUpdate(
                UploadFault.VALIDATION,
                f"{role}: version {version} is too far above the stored version {stored}; "
                f"the largest allowed is {stored + MAX_LEAP}",
            )

    def _forbid_unreadable_leap(self, role: RoleName) -> None:
        """Refuse a leap beyond MAX_VERSION here, because the model would call it a fault of the structure."""
        if role in self._uploads and self._uploads[role].version > MAX_VERSION:
            self._forbid_leap(role)


@contextmanager
def _blame(fault: UploadFault, role: RoleName) -> Iterator[None]:
    """Turn InvalidMetadata into InvalidUpdate with ``fault``, and a message that names ``role``."""
    try:
        yield
    except InvalidMetadata as error:
        message = str(error)
        raise InvalidUpdate(fault, message if message.startswith(role) else f"{role}: {message}") from error


def _ancestors(role: RoleName) -> list[RoleName]:
    """The parents of a delegation, the outermost (targets) first; none for every other role."""
    chain: list[RoleName] = []
    while (parent := role.parent) is not None:
        chain.append(parent)
        role = parent
    return chain[::-1]
