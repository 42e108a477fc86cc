"""The nouns of TUF: names, envelopes and the four kinds of metadata, as immutable values that are valid once built.

Rules of this module: pure. Structure only: signatures are for :mod:`notary.tuf.public`, rules that need other files or
a clock for :mod:`notary.tuf.validation`. Bytes are kept exactly as they were received. A member that is absent or null
has the zero value of its type, as in the Go client, and is then checked like any other value (docs/protocol.md,
sections 2 and 9).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Protocol, Self

from notary.errors import (
    InvalidGun,
    InvalidMetadata,
    InvalidRole,
    MalformedJSON,
)
from notary.tuf import canonical
from notary.tuf.canonical import Json, Members, StructureBudget, quote
from notary.tuf.public import PublicKey, RoleKeys, Signature

__all__ = [
    "BASE_ROLES",
    "MAX_NAME",
    "MAX_SIGNATURES",
    "MAX_VERSION",
    "ROOT",
    "SNAPSHOT",
    "TARGETS",
    "TIMESTAMP",
    "Delegation",
    "Envelope",
    "FileMeta",
    "Gun",
    "Held",
    "RoleKeys",
    "RoleName",
    "Root",
    "Signature",
    "Snapshot",
    "Targets",
    "Timestamp",
    "Update",
    "Upload",
    "VersionedMetadata",
    "peek",
    "stored_envelope",
]

# -- names ------------------------------------------------------------------------------------------------------------

MAX_NAME: Final = 255
"""How many characters the name of a collection or of a role may have."""

_DELEGATION = re.compile(r"targets(?:/[-a-z0-9_]+)+")


class Gun(str):
    """The globally unique name of a collection.

    One to 255 characters that a ``varchar(255)`` of MySQL can hold and distinguish: no characters beyond the basic
    plane, no control characters, no white space at either end, no ``*``. Raises InvalidGun.
    """

    __slots__ = ()

    def __new__(cls, name: str) -> Self:
        """Check the name."""
        if not name:
            raise InvalidGun("a collection needs a name")
        if len(name) > MAX_NAME:
            raise InvalidGun(f"the name of a collection has at most {MAX_NAME} characters")
        if name != name.strip():
            raise InvalidGun("the name of a collection must not begin or end with white space")
        for character in name:
            if character == "*" or character > "\uffff" or unicodedata.category(character) in {"Cc", "Cs"}:
                raise InvalidGun(f"the name of a collection must not hold {quote(character)}")
        return super().__new__(cls, name)


class RoleName(str):
    """The name of a role: ``root``, ``targets``, ``snapshot``, ``timestamp``, or a delegation ``targets/...``.

    Segments of delegations are of ``a-z 0-9 - _``, the whole has at most 255 characters. Raises InvalidRole.
    """

    __slots__ = ()

    def __new__(cls, name: str) -> Self:
        """Check the name."""
        if name not in _BASE_NAMES and (len(name) > MAX_NAME or not _DELEGATION.fullmatch(name)):
            raise InvalidRole(f"{quote(name)} is not the name of a role")
        return super().__new__(cls, name)

    @property
    def is_delegation(self) -> bool:
        """Whether this is a role below ``targets``."""
        return "/" in self

    @property
    def parent(self) -> RoleName | None:
        """The role that delegates to this one; None for the four base roles."""
        return RoleName(self.rpartition("/")[0]) if self.is_delegation else None

    @property
    def depth(self) -> int:
        """The number of segments: 1 for the base roles, 2 for ``targets/a``."""
        return self.count("/") + 1


_BASE_NAMES: Final = ("root", "targets", "snapshot", "timestamp")
BASE_ROLES: Final = tuple(map(RoleName, _BASE_NAMES))
ROOT, TARGETS, SNAPSHOT, TIMESTAMP = BASE_ROLES

# -- envelopes --------------------------------------------------------------------------------------------------------

MAX_SIGNATURES: Final = 100
"""How many signatures a file may hold (docs/protocol.md, section 9): each may cost a public-key operation."""

_ENVELOPE = frozenset({"signed", "signatures"})
_SIGNATURE = frozenset({"keyid", "method", "sig"})


@dataclass(frozen=True, slots=True)
class Envelope:
    """A whole metadata file: its bytes, its signed part, and the signatures."""

    data: bytes = field(repr=False)
    signed: dict[str, Any] = field(repr=False)
    signatures: tuple[Signature, ...]
    _payload: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def parse(cls, data: bytes, budget: StructureBudget | None = None) -> Envelope:
        """Read a file; ``budget`` is what several files may hold together.

        Raises MalformedJSON, also for unknown members outside ``signed``, which nobody signed, and for more than
        MAX_SIGNATURES signatures.
        """
        try:
            members = Members(canonical.parse(data, budget), _ENVELOPE, "metadata", closed=True)
            listed = members.sequence("signatures")
            if len(listed) > MAX_SIGNATURES:
                raise MalformedJSON(f"{len(listed)} signatures: a file holds at most {MAX_SIGNATURES}")
            signatures = tuple(
                Signature(signature.text("keyid"), signature.text("method").lower(), signature.binary("sig"))
                for signature in (Members(value, _SIGNATURE, "signature", closed=True) for value in listed)
            )
            signed = members.mapping("signed")
        except InvalidMetadata as error:
            raise MalformedJSON(str(error)) from None
        return cls(data, signed, signatures)

    @property
    def payload(self) -> bytes:
        """The bytes that the signatures cover. Raises InvalidMetadata if ``signed`` has no canonical form."""
        payload = self._payload
        if payload is None:
            payload = canonical.dumps(self.signed)
            object.__setattr__(self, "_payload", payload)
        return payload


def peek(data: bytes, budget: StructureBudget | None = None) -> tuple[Envelope, int]:
    """Read a file as far as is possible without its role; return the envelope and the version (0 if it has none).

    Raises MalformedJSON, also where ``_type``, ``expires`` and ``version`` are not of their types.
    """
    envelope = Envelope.parse(data, budget)
    try:
        _, version, _ = _common(Members(envelope.signed, _COMMON, "signed"))
    except InvalidMetadata as error:
        raise MalformedJSON(str(error)) from None
    return envelope, version


# -- what metadata is made of -----------------------------------------------------------------------------------------

MAX_VERSION: Final = 2**31 - 1
"""The largest version that a column of type ``int`` holds."""

_COMMON = frozenset({"_type", "expires", "version"})
_FILE = frozenset({"length", "hashes", "custom"})
_ROLE = frozenset({"keyids", "threshold"})
_DELEGATIONS = frozenset({"keys", "roles"})
_DELEGATED_ROLE = _ROLE | {"name", "paths"}
_DIGESTS: Final = MappingProxyType({"sha256": hashlib.sha256, "sha512": hashlib.sha512})
_TIME = re.compile(
    r"(?P<year>[0-9]{4})(?P<rest>-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2})(?:\.(?P<fraction>[0-9]+))?"
    r"(?:Z|(?P<offset>[-+](?:[01][0-9]|2[0-3]):[0-5][0-9]))"
)
_GO_ZERO: Final = "0001-01-01T00:00:00Z"
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
_LATEST: Final = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class FileMeta:
    """The length in bytes and the digests of a file, as metadata lists them; ``hashes`` may name any algorithm."""

    length: int
    hashes: Mapping[str, bytes]

    @classmethod
    def of(cls, data: bytes) -> FileMeta:
        """Describe ``data`` by SHA-256 and SHA-512, as Go clients do."""
        return cls(len(data), {name: digest(data).digest() for name, digest in _DIGESTS.items()})

    @classmethod
    def parse(cls, value: Json, where: str) -> FileMeta:
        """Read an entry of ``targets`` or ``meta``; ``where`` is for messages. Raises InvalidMetadata."""
        members = Members(value, _FILE, where)
        hashes = members.mapping("hashes")
        digests = Members(hashes, frozenset(hashes), where)
        return cls(members.integer("length"), {name: digests.binary(name) for name in hashes})

    def matches(self, data: bytes) -> bool:
        """Whether ``data`` has every listed digest of a known algorithm, and at least one is listed.

        The length is not compared: the reference does not compare it, and equal digests imply equal lengths.
        """
        known = [name for name in _DIGESTS if name in self.hashes]
        return bool(known) and all(
            hmac.compare_digest(_DIGESTS[name](data).digest(), self.hashes[name]) for name in known
        )

    def leads_to(self, data: bytes) -> bool:
        """Whether clients can fetch ``data``, which matches: they ask by SHA-256, for the listed number of bytes.

        Clients take a length of -1 for no limit.
        """
        return "sha256" in self.hashes and (self.length == -1 or self.length >= len(data))

    def repeats(self, earlier: FileMeta) -> bool:
        """Whether clients that can fetch a file by ``earlier`` can fetch the same file by this entry."""
        return self == earlier or (
            "sha256" in self.hashes.keys() & earlier.hashes.keys()
            and all(self.hashes[name] == earlier.hashes[name] for name in self.hashes.keys() & earlier.hashes.keys())
            and (self.length == -1 or self.length >= earlier.length)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionedMetadata:
    """The members of all metadata. Raises InvalidMetadata if ``version`` is not 1 to MAX_VERSION.

    ``expires`` is aware, UTC.
    """

    version: int
    expires: datetime
    envelope: Envelope

    def __post_init__(self) -> None:
        if not 1 <= self.version <= MAX_VERSION:
            raise InvalidMetadata(f"invalid version {self.version}: it must be 1 to {MAX_VERSION}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Root(VersionedMetadata):
    """The keys of the four base roles. ``roles`` holds exactly these four; other roles in the file are ignored."""

    roles: Mapping[RoleName, RoleKeys]
    consistent_snapshot: bool

    @classmethod
    def parse(cls, envelope: Envelope) -> Root:
        """Read the root role. Raises InvalidMetadata."""
        signed = Members(envelope.signed, _COMMON | {"keys", "roles", "consistent_snapshot"}, "root")
        version, expires = _typed(signed, "Root", "root")
        keys = _keys(signed)
        roles: dict[RoleName, RoleKeys] = {}
        for name, value in signed.mapping("roles").items():
            where = f"root: role {quote(name)}"
            role = Members(value, _ROLE, where)
            if name in BASE_ROLES:
                roles[RoleName(name)] = _role_keys(role, keys, where)
            else:
                # The role is ignored, but Go clients cannot read a file in which it is malformed.
                role.texts("keyids")
                role.integer("threshold")
        for name in BASE_ROLES:
            if name not in roles:
                raise InvalidMetadata(f"root: missing {name} role specification")
        return cls(
            version=version,
            expires=expires,
            envelope=envelope,
            roles=roles,
            consistent_snapshot=signed.flag("consistent_snapshot"),
        )


@dataclass(frozen=True, slots=True)
class Delegation:
    """A delegation to a role: the role's keys, and the prefixes of the target names that it may sign."""

    role: RoleKeys
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets(VersionedMetadata):
    """The targets of ``role``, and its delegations, each to a direct child."""

    role: RoleName
    targets: Mapping[str, FileMeta] = field(repr=False)
    delegations: Mapping[RoleName, Delegation]

    @classmethod
    def parse(cls, envelope: Envelope, role: RoleName) -> Targets:
        """Read ``targets`` or a delegation. Raises InvalidMetadata."""
        if role != TARGETS and not role.is_delegation:
            raise InvalidMetadata(f"{role} is not a targets role")
        signed = Members(envelope.signed, _COMMON | {"targets", "delegations"}, role)
        version, expires = _typed(signed, "Targets", role)
        where = f"{role}: a target"
        return cls(
            version=version,
            expires=expires,
            envelope=envelope,
            role=role,
            targets={name: FileMeta.parse(value, where) for name, value in signed.mapping("targets").items()},
            delegations=_delegations(
                Members(signed.mapping("delegations"), _DELEGATIONS, f"{role}: delegations"), role
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(VersionedMetadata):
    """The digests of the root and of every targets role; ``root`` and ``targets`` are always listed."""

    meta: Mapping[str, FileMeta]

    @classmethod
    def parse(cls, envelope: Envelope) -> Snapshot:
        """Read the snapshot role. Raises InvalidMetadata."""
        version, expires, meta = _meta(envelope, "Snapshot", SNAPSHOT, (ROOT, TARGETS))
        return cls(version=version, expires=expires, envelope=envelope, meta=meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timestamp(VersionedMetadata):
    """The digests of the snapshot, which is always listed."""

    meta: Mapping[str, FileMeta]

    @classmethod
    def parse(cls, envelope: Envelope) -> Timestamp:
        """Read the timestamp role. Raises InvalidMetadata."""
        version, expires, meta = _meta(envelope, "Timestamp", TIMESTAMP, (SNAPSHOT,))
        return cls(version=version, expires=expires, envelope=envelope, meta=meta)


# -- how it is read ---------------------------------------------------------------------------------------------------


def _common(signed: Members) -> tuple[str, int, datetime]:
    """``_type``, ``version`` and ``expires``, which is the first instant of year 1 if absent, as in the Go client."""
    return signed.text("_type"), signed.integer("version"), read_time(signed.text("expires", _GO_ZERO))


def _typed(signed: Members, expected: str, where: str) -> tuple[int, datetime]:
    found, version, expires = _common(signed)
    if found != expected:
        raise InvalidMetadata(f"{where}: expected type {expected}, not {quote(found)}")
    return version, expires


def read_time(text: str) -> datetime:
    """Read RFC 3339: in upper case, with any number of digits in a fraction, in any offset.

    ``datetime.fromisoformat`` takes much more than that, and less: what is finer than a microsecond is cut off, and an
    instant outside the years 1 to 9999 becomes the nearest that Python knows, which expires as it should.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        raise InvalidMetadata("expires must be a time in RFC 3339, such as 2030-01-31T12:00:00Z")
    year, fraction, offset = found["year"], found["fraction"] or "0", found["offset"] or "+00:00"
    try:
        # Python knows no year 0. Year 4 stands in: it has the same days.
        local = datetime.fromisoformat(f"{'0004' if year == '0000' else year}{found['rest']}.{fraction}{offset}")
    except ValueError:
        raise InvalidMetadata("expires names a day or a time that does not exist") from None
    if year == "0000":
        return _EARLIEST
    try:
        return local.astimezone(UTC)
    except OverflowError:
        return _LATEST if offset.startswith("-") else _EARLIEST


def _keys(members: Members) -> dict[str, PublicKey]:
    return {key_id: PublicKey.parse(value) for key_id, value in members.mapping("keys").items()}


def _role_keys(members: Members, keys: Mapping[str, PublicKey], where: str) -> RoleKeys:
    key_ids = members.texts("keyids")
    for key_id in key_ids:
        if key_id not in keys:
            raise InvalidMetadata(f"{where}: key id {quote(key_id)} without corresponding key")
    return RoleKeys({key_id: keys[key_id] for key_id in key_ids}, members.integer("threshold"))


def _delegations(members: Members, parent: RoleName) -> dict[RoleName, Delegation]:
    keys = _keys(members)
    delegations: dict[RoleName, Delegation] = {}
    for value in members.sequence("roles"):
        role = Members(value, _DELEGATED_ROLE, f"{parent}: a delegation")
        text = role.text("name")
        try:
            name = RoleName(text)
        except InvalidRole as error:
            raise InvalidMetadata(f"{parent}: {error}") from None
        if name.parent != parent:
            raise InvalidMetadata(f"{parent}: cannot delegate to {quote(name)}, which is not its direct child")
        if name in delegations:
            # The Go client would fetch the role's file twice, and then give up on the whole collection.
            raise InvalidMetadata(f"{parent}: it delegates to {name} twice")
        delegations[name] = Delegation(_role_keys(role, keys, f"{parent}: delegation {name}"), role.texts("paths"))
    return delegations


def _meta(
    envelope: Envelope, expected: str, where: RoleName, required: tuple[RoleName, ...]
) -> tuple[int, datetime, dict[str, FileMeta]]:
    signed = Members(envelope.signed, _COMMON | {"meta"}, where)
    version, expires = _typed(signed, expected, where)
    meta = {name: FileMeta.parse(value, f"{where}: a file") for name, value in signed.mapping("meta").items()}
    for name in required:
        hashes = meta[name].hashes if name in meta else {}
        if "sha256" not in hashes:
            raise InvalidMetadata(f"{where}: missing {name} sha256 checksum information")
        for algorithm, digest in _DIGESTS.items():
            if algorithm in hashes and len(hashes[algorithm]) != digest().digest_size:
                raise InvalidMetadata(f"{where}: invalid {name} {algorithm} checksum information")
    return version, expires, meta


class Held(Protocol):
    """A stored metadata file, such as a ``notary.storage.Stored``."""

    @property
    def version(self) -> int:
        """The version of the file."""
        ...

    @property
    def data(self) -> bytes:
        """The whole signed file, exactly as it is stored."""
        ...


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded file. Building an Upload is the check that precedes validation, and raises MalformedJSON.

    ``envelope`` and ``version`` are what :func:`peek` finds in ``data``. ``budget`` is the structure that all files of
    an upload may hold together.
    """

    role: RoleName
    data: bytes
    budget: InitVar[StructureBudget | None] = None
    envelope: Envelope = field(init=False, repr=False, compare=False)
    version: int = field(init=False, compare=False)

    def __post_init__(self, budget: StructureBudget | None) -> None:
        envelope, version = peek(self.data, budget)
        object.__setattr__(self, "envelope", envelope)
        object.__setattr__(self, "version", version)


@dataclass(frozen=True, slots=True)
class Update:
    """One metadata file to be stored: ``data`` is the whole signed file."""

    role: RoleName
    version: int
    data: bytes


def stored_envelope(role: RoleName, data: bytes) -> Envelope:
    """Return the envelope of a stored file. Raises InvalidMetadata (never MalformedJSON) if the bytes are not one."""
    try:
        return Envelope.parse(data)
    except MalformedJSON as error:
        raise InvalidMetadata(f"the stored {role} is not metadata: {error}") from error
