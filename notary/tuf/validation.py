"""What an upload must satisfy before it is stored (docs/protocol.md, section 3), and what the server then signs itself.

Rules of this module: pure. Bytes and ``now`` come in, values or typed errors go out; nothing is fetched and nothing is
signed here. The caller loads what :func:`notary.tuf.publish.needed` names, once; :func:`validate` judges the upload
against it and returns a :class:`Plan`; the caller has the plan's drafts signed and writes everything in one
transaction.

The checks run in the order of the protocol, because clients see the first fault only: root, the targets roles from
shallow to deep, the snapshot, and last the one rule that is ours alone (a version may not leap; section 9).

Hashes are always taken over the very bytes that are stored, never over a re-serialisation of them.

Two kinds of error leave :func:`validate`. InvalidUpdate says what is wrong with the upload, including a stored parent
that the upload leaves without valid signatures: the publisher can mend it. InvalidMetadata says that the *stored* root
or snapshot cannot be used: nothing that this publisher did, so an edge must treat it as a failure of the service.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from notary.errors import Fault, InvalidMetadata, InvalidUpdate, MalformedJSON
from notary.tuf import public
from notary.tuf.draft import Draft, next_snapshot, next_timestamp
from notary.tuf.model import (
    MAX_VERSION,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    Envelope,
    Gun,
    Held,
    RoleKeys,
    RoleName,
    Root,
    Snapshot,
    Targets,
    Update,
    peek,
    stored_envelope,
)
from notary.tuf.root_certificates import certified_keys, check_delegation_certificate

MAX_LEAP = 1_000
"""How far an uploaded version may lie above the stored one (docs/protocol.md, section 9)."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded file. Building it is the check that precedes validation: raises MalformedJSON.

    ``envelope`` and ``version`` are what :func:`notary.tuf.model.peek` finds in ``data``.
    """

    role: RoleName
    data: bytes
    envelope: Envelope = field(init=False, repr=False, compare=False)
    version: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        envelope, version = peek(self.data)
        object.__setattr__(self, "envelope", envelope)
        object.__setattr__(self, "version", version)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a valid upload leads to.

    ``updates`` are stored as they are. If ``snapshot`` is not None it must be signed and stored too. ``timestamp``
    gives the last draft, once the snapshot is complete. ``sound`` is the root, as a file, that counts from then on if
    :func:`stored_root` will find nothing wrong with it.
    """

    updates: tuple[Update, ...]
    snapshot: Draft | None
    sound: bytes | None
    _root: Root
    _timestamp_version: int
    _now: datetime

    def timestamp(self, snapshot: bytes | None = None) -> Draft:
        """The timestamp over ``snapshot``: the finished file; left out if the upload holds the snapshot itself.

        Raises InvalidUpdate if there can be no such timestamp.
        """
        if snapshot is None:
            snapshot = next(update.data for update in self.updates if update.role == SNAPSHOT)
        return next_timestamp(self._root, self._timestamp_version, snapshot, self._now)


def validate(
    gun: Gun, current: Mapping[RoleName, Held], uploads: Sequence[Upload], now: datetime, *, sound: bool = False
) -> Plan:
    """Judge ``uploads`` against ``current``, the newest stored version of each role that :func:`needed` names.

    Of two files for one role the later counts. An uploaded timestamp is ignored. A version that is already stored is
    not refused here: the store does that, in the transaction that writes. ``now`` is aware. If the very bytes of the
    stored root were :attr:`Plan.sound` before, ``sound`` saves verifying them again.

    Raises InvalidUpdate; InvalidMetadata if the stored root or snapshot cannot be used (see the module's rules).
    """
    return _Validation(gun, current, {upload.role: upload for upload in uploads}, now, sound=sound).run()


def stored_root(gun: Gun, data: bytes) -> Root:
    """The root in a stored file, signed by its own certificates. Raises InvalidMetadata.

    Neither its own expiry nor that of its certificates counts: it was checked when it came in, and a collection whose
    root has expired must be able to publish the next one.
    """
    root = Root.parse(stored_envelope(ROOT, data))
    require_signatures(ROOT, root.envelope, certified_keys(root, gun, None), "its own certificates")
    return root


def require_succession(gun: Gun, previous: Root, envelope: Envelope) -> None:
    """See that the root in ``envelope`` is signed by the certificates of the one before it. Raises InvalidMetadata."""
    trusted = certified_keys(previous, gun, None)
    require_signatures(ROOT, envelope, trusted, f"the certificates of the stored root (version {previous.version})")


class _Validation:
    """One run of :func:`validate`: the steps, and what each leaves behind for the next ones."""

    def __init__(
        self,
        gun: Gun,
        current: Mapping[RoleName, Held],
        uploads: Mapping[RoleName, Upload],
        now: datetime,
        *,
        sound: bool,
    ) -> None:
        self._gun = gun
        self._current = current
        self._uploads = {role: upload for role, upload in uploads.items() if role != TIMESTAMP}
        self._now = now
        self._sound = sound
        self._loaded: dict[RoleName, bytes] = {}
        self._targets: dict[RoleName, Targets] = {}

    def run(self) -> Plan:
        root = self._establish_root()
        roles = sorted(
            (role for role in self._uploads if role == TARGETS or role.is_delegation),
            key=lambda role: (role.depth, role),
        )
        for role in roles:
            self._accept_targets(root, role)
        if SNAPSHOT in self._uploads:
            with _blame(Fault.SNAPSHOT, SNAPSHOT):
                self._accept_snapshot(root)
            draft = None
        else:
            draft = self._draft_snapshot(root)
        self._forbid_leaps()
        updates = tuple(
            Update(role, self._uploads[role].version, self._uploads[role].data)
            for role in (ROOT, *roles, SNAPSHOT)
            if role in self._uploads
        )
        timestamp = self._current.get(TIMESTAMP)
        sound = self._loaded[ROOT] if self._sound else None
        return Plan(updates, draft, sound, root, 0 if timestamp is None else timestamp.version, self._now)

    # -- root ---------------------------------------------------------------------------------------------------------

    def _establish_root(self) -> Root:
        held = self._current.get(ROOT)
        if held is None:
            stored = None
        elif self._sound:
            stored = Root.parse(stored_envelope(ROOT, held.data))
        else:
            stored = stored_root(self._gun, held.data)
        upload = self._uploads.get(ROOT)
        if upload is not None:
            with _blame(Fault.ROOT, ROOT):
                root = self._accept_root(stored, upload)
            self._loaded[ROOT] = upload.data
            return root
        if held is None or stored is None:
            raise InvalidUpdate(Fault.VALIDATION, "this collection has no root yet, and the upload holds none")
        self._loaded[ROOT] = held.data
        self._sound = True
        return stored

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
            require_succession(self._gun, stored, upload.envelope)
        require_signatures(ROOT, upload.envelope, own, "its own certificates")
        self._require_unexpired(ROOT, root.expires)
        self._sound = own == certified_keys(root, self._gun, None)  # whose expiry does not count any more
        return root

    # -- targets and delegations --------------------------------------------------------------------------------------

    def _accept_targets(self, root: Root, role: RoleName) -> None:
        for ancestor in _ancestors(role):
            if ancestor not in self._targets:
                self._load_ancestor(root, ancestor, role)
        upload = self._uploads[role]
        with _blame(Fault.TARGETS, role):
            targets = self._verified(root, role, upload.envelope)
            self._require_unexpired(role, targets.expires)
        self._targets[role] = targets
        self._loaded[role] = upload.data

    def _load_ancestor(self, root: Root, role: RoleName, descendant: RoleName) -> None:
        """Take ``role`` from the store because ``descendant`` hangs on it. Its expiry does not count."""
        held = self._current.get(role)
        if held is None or not self._is_listed(role):
            raise InvalidUpdate(
                Fault.TARGETS, f"{descendant}: its parent {role} is neither in this upload nor in the collection"
            )
        try:
            targets = self._verified(root, role, Envelope.parse(held.data))
        except (InvalidMetadata, MalformedJSON) as error:
            raise InvalidUpdate(
                Fault.TARGETS,
                f"{descendant}: its parent {role}, as stored, is not valid any more; upload it too ({error})",
            ) from error
        self._targets[role] = targets
        self._loaded[role] = held.data

    def _is_listed(self, role: RoleName) -> bool:
        """Whether the stored snapshot lists ``role``: a publisher removes a delegation by leaving it out there."""
        return self._listed is None or role in self._listed

    @cached_property
    def _listed(self) -> Collection[str] | None:
        held = self._current.get(SNAPSHOT)
        return None if held is None else Snapshot.parse(stored_envelope(SNAPSHOT, held.data)).meta

    def _verified(self, root: Root, role: RoleName, envelope: Envelope) -> Targets:
        """``envelope`` as the file of ``role``, signed as root or the parent (verified before) asks."""
        if role.parent is None:
            signers, named_by = root.roles[TARGETS], "root"
        else:
            delegation = self._targets[role.parent].delegations.get(role)
            if delegation is None:
                raise InvalidMetadata(f"{role}: {role.parent} does not delegate to it")
            signers, named_by = delegation.role, role.parent
            for key in signers.keys.values():
                check_delegation_certificate(role, key)
        require_signatures(role, envelope, signers, f"the keys that {named_by} names for it")
        self._forbid_unreadable_leap(role)
        return Targets.parse(envelope, role)

    # -- snapshot -----------------------------------------------------------------------------------------------------

    def _accept_snapshot(self, root: Root) -> None:
        envelope = self._uploads[SNAPSHOT].envelope
        require_signatures(SNAPSHOT, envelope, root.roles[SNAPSHOT], "the keys that root names for it")
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

    def _version_of(self, role: RoleName) -> int:
        return self._uploads[role].version if role in self._uploads else self._current[role].version

    def _draft_snapshot(self, root: Root) -> Draft:
        previous = self._current.get(SNAPSHOT)
        if previous is None and TARGETS not in self._loaded:
            raise InvalidUpdate(Fault.VALIDATION, "the first upload to a collection must hold targets")
        return next_snapshot(root, previous, self._loaded, self._now)

    # -- what every file must satisfy ---------------------------------------------------------------------------------

    def _require_unexpired(self, role: RoleName, expires: datetime) -> None:
        if expires < self._now:
            raise InvalidMetadata(f"{role}: it expired at {expires.isoformat()}")

    def _forbid_leaps(self) -> None:
        for role in self._uploads:
            self._forbid_leap(role)

    def _forbid_leap(self, role: RoleName) -> None:
        """Nobody may use up the versions of a role, after which nothing could be published (section 9)."""
        held = self._current.get(role)
        stored = 0 if held is None else held.version
        version = self._uploads[role].version
        if version > stored + MAX_LEAP:
            raise InvalidUpdate(
                Fault.VALIDATION,
                f"{role}: version {version} is too far above the stored version {stored}; "
                f"the largest allowed is {stored + MAX_LEAP}",
            )

    def _forbid_unreadable_leap(self, role: RoleName) -> None:
        """Tell a leap beyond all versions before the model does, which would call it a fault of structure."""
        if role in self._uploads and self._uploads[role].version > MAX_VERSION:
            self._forbid_leap(role)


@contextmanager
def _blame(fault: Fault, role: RoleName) -> Iterator[None]:
    """What is invalid in here is the upload's ``fault``, and the message names ``role``."""
    try:
        yield
    except InvalidMetadata as error:
        message = str(error)
        raise InvalidUpdate(fault, message if message.startswith(role) else f"{role}: {message}") from error


def _ancestors(role: RoleName) -> list[RoleName]:
    """The parents of a delegation, the outermost (targets) first; none for every other role."""
    chain: list[RoleName] = []
    while (parent := role.parent) is not None:
        chain.insert(0, parent)
        role = parent
    return chain


def require_signatures(role: RoleName, envelope: Envelope, signers: RoleKeys, who: str) -> None:
    """See that ``envelope`` is signed to the threshold of ``signers``, whom a message calls ``who``.

    Raises InvalidMetadata.
    """
    try:
        result = public.meets_threshold(envelope, signers)
    except InvalidMetadata as error:
        raise InvalidMetadata(f"{role}: {error}") from error
    if not result.ok:
        raise InvalidMetadata(
            f"{role}: it has {len(result.valid_key_ids)} valid signature(s) by {who}; {signers.threshold} needed"
        )
