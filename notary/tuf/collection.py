"""A stored collection as a whole, and the walk from its timestamp to everything that clients get.

Rules of this module: pure. A collection is a list of files and a way to read the bytes of each; it may be damaged in
any way. The walk is that of readers (docs/protocol.md, section 1): the newest timestamp, the snapshot by its checksum,
and each role by its checksum in the snapshot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from notary.errors import InvalidMetadata, NotFound
from notary.tuf.model import ROOT, SNAPSHOT, TIMESTAMP, RoleName, Root, Snapshot, Targets, Timestamp, stored_envelope

Metadata: TypeAlias = Root | Targets | Snapshot | Timestamp


@dataclass(frozen=True, slots=True)
class File:
    """One stored file without its bytes.

    ``role`` need not be a valid name. ``sha256`` is the recorded checksum (lower-case hex), None if there is none;
    ``size`` is in bytes.
    """

    role: str
    version: int
    sha256: str | None
    size: int


class Collection(Protocol):
    """All versions of all roles of one collection, as of one moment."""

    @property
    def gun(self) -> str:
        """The name of the collection, which need not be valid."""
        ...

    @property
    def files(self) -> Sequence[File]:
        """Every file, in the order of role and version."""
        ...

    def data(self, file: File) -> bytes:
        """The bytes of a file of this collection."""
        ...


def parse(role: str, data: bytes) -> Metadata:
    """The stored file of a role. Raises InvalidMetadata, and InvalidRole if there can be no such role."""
    name = RoleName(role)
    envelope = stored_envelope(name, data)
    if name == ROOT:
        return Root.parse(envelope)
    if name == SNAPSHOT:
        return Snapshot.parse(envelope)
    if name == TIMESTAMP:
        return Timestamp.parse(envelope)
    return Targets.parse(envelope, name)


def newest(files: Iterable[File]) -> dict[str, File]:
    """The file of each role with the highest version."""
    return {file.role: file for file in sorted(files, key=lambda file: file.version)}


class Index:
    """The files of a collection by role and checksum; a checksum that was not recorded is computed."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self.parsed: dict[File, Metadata] = {}
        """The timestamps and snapshots that were read."""
        self._files = {
            (file.role, file.sha256 or hashlib.sha256(collection.data(file)).hexdigest()): file
            for file in collection.files
        }

    def listed(self, by: File) -> tuple[dict[str, File], dict[str, str]]:
        """Return what a timestamp or snapshot lists, by role: existing files, and the checksums (hex) of missing files.

        Of a timestamp only the snapshot counts, because clients use nothing else. Raises InvalidMetadata.
        """
        found = self.parsed[by] = parse(by.role, self._collection.data(by))
        if not isinstance(found, Snapshot | Timestamp):
            raise InvalidMetadata(f"{by.role} lists no files")
        there: dict[str, File] = {}
        absent: dict[str, str] = {}
        for role, meta in found.meta.items():
            if isinstance(found, Timestamp) and role != SNAPSHOT:
                continue
            sha256 = meta.hashes.get("sha256", b"").hex()
            file = self._files.get((role, sha256))
            if file is None:
                absent[role] = sha256
            else:
                there[role] = file
        return there, absent


@dataclass(frozen=True, slots=True)
class Current:
    """The files that clients get, by role, timestamp and snapshot included.

    ``absent`` holds the checksums (lower-case hex) of files that are listed but missing, by role.
    """

    files: Mapping[str, File]
    absent: Mapping[str, str]


def current(collection: Collection, index: Index | None = None) -> Current:
    """Walk a collection. Raises NotFound or InvalidMetadata if timestamp or snapshot is missing or invalid."""
    index = index or Index(collection)
    timestamp = newest(collection.files).get(TIMESTAMP)
    if timestamp is None:
        raise NotFound("there is no timestamp")
    found, absent = index.listed(timestamp)
    if absent:
        raise NotFound(f"there is no snapshot with the checksum that the timestamp lists ({absent[SNAPSHOT]})")
    files, absent = index.listed(found[SNAPSHOT])
    return Current({**files, **found, TIMESTAMP: timestamp}, absent)
