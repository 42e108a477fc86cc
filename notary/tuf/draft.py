"""Drafts of the snapshots and timestamps that the server signs itself, and how long these are valid.

Rules of this module: pure. A draft is complete but for its signatures. Hashes are always taken over the very bytes that
are stored, never over a re-serialisation of them. (docs/protocol.md, section 3)
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from notary.errors import InvalidMetadata, InvalidUpdate, SigningFailed, UploadFault
from notary.tuf import canonical, public
from notary.tuf.model import (
    MAX_VERSION,
    SNAPSHOT,
    TIMESTAMP,
    FileMeta,
    RoleKeys,
    RoleName,
    Root,
    Signature,
    Snapshot,
)
from notary.tuf.public import PublicKey
from notary.tuf.root_certificates import some


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long what the server makes is valid; by default as with the reference (docs/protocol.md, section 3)."""

    timestamp: timedelta = timedelta(days=14)
    snapshot: timedelta = timedelta(days=3 * 365)


LIFETIMES = Lifetimes()


@dataclass(frozen=True, slots=True)
class Draft:
    """A file of the server, complete but for its signatures.

    ``payload`` is the canonical JSON to be signed; ``keys`` are the keys that root names for ``role``, of which at
    least ``threshold`` must sign.
    """

    role: RoleName
    version: int
    payload: bytes
    keys: tuple[PublicKey, ...]
    threshold: int

    def assemble(self, signatures: Sequence[Signature]) -> bytes:
        """Return the whole signed file, with those of ``signatures`` that are by keys of the role.

        Raises SigningFailed if one of these signatures does not verify, because then the signing service is broken.
        Raises InvalidUpdate if there are fewer than the threshold: ErrBadHierarchy with ``missing`` "snapshot" for a
        snapshot (the publisher should have uploaded one), ErrBadRoot for a timestamp (root names a key that this server
        does not hold).
        """
        by_id = {key.key_id: key for key in self.keys}
        valid: dict[str, Signature] = {}
        for signature in signatures:
            key = by_id.get(signature.key_id)
            if key is None:
                continue
            if not public.verify(key, signature, self.payload):
                raise SigningFailed(f"the signature of the {self.role} by key {signature.key_id} does not verify")
            valid[signature.key_id] = signature
        if len(valid) < self.threshold:
            raise self._unsigned(len(valid))
        # Members are in the order in which the Go server writes them. A Go server that takes over this database hashes
        # its own re-serialisation of the stored snapshot, which must give the same bytes.
        listed = b",".join(
            canonical.dumps({"keyid": one.key_id, "method": one.method, "sig": base64.b64encode(one.sig).decode()})
            for one in valid.values()
        )
        return b'{"signed":' + self.payload + b',"signatures":[' + listed + b"]}"

    def _unsigned(self, held: int) -> InvalidUpdate:
        ids = some([key.key_id for key in self.keys], ", ") or "none"
        shortage = (
            f"this server can sign with {held} of the {self.threshold} {self.role} key(s) needed "
            f"(root names these: {ids})"
        )
        if self.role == SNAPSHOT:
            return InvalidUpdate(
                UploadFault.HIERARCHY,
                f"no snapshot was uploaded, and {shortage}: upload a signed snapshot, "
                "or publish a root that names the server's snapshot key",
                missing=SNAPSHOT,
            )
        return InvalidUpdate(UploadFault.ROOT, f"{shortage}: publish a root that names the server's {self.role} key")


def next_snapshot(
    root: Root, previous: Snapshot | None, previous_version: int, loaded: Mapping[RoleName, bytes], expires: datetime
) -> Draft:
    """Return the snapshot that follows ``previous``, with the files of ``loaded`` replacing their entries.

    ``previous_version`` is the version under which ``previous`` is stored; 0, and None, for the first snapshot. Roles
    that ``previous`` lists and ``loaded`` lacks stay listed. Raises InvalidUpdate if no later version fits into the
    database, or if root names a key that cannot be read.
    """
    meta: dict[str, canonical.Json] = {} if previous is None else dict(previous.envelope.signed["meta"])
    for role, data in loaded.items():
        meta[role] = _file_meta(data)
    return _draft(root.roles[SNAPSHOT], SNAPSHOT, previous_version + 1, meta, expires)


def next_timestamp(root: Root, previous_version: int, snapshot: bytes, expires: datetime) -> Draft:
    """Return the timestamp that follows ``previous_version`` (0: the first one) and lists the finished ``snapshot``.

    Raises InvalidUpdate as :func:`next_snapshot` does.
    """
    return timestamp(root.roles[TIMESTAMP], previous_version, snapshot, expires)


# -- drafts -----------------------------------------------------------------------------------------------------------


def timestamp(signers: RoleKeys, previous_version: int, snapshot: bytes, expires: datetime) -> Draft:
    """Return the timestamp that follows ``previous_version`` and names ``snapshot``, for the keys of ``signers``."""
    meta: dict[str, canonical.Json] = {SNAPSHOT: _file_meta(snapshot)}
    return _draft(signers, TIMESTAMP, previous_version + 1, meta, expires)


def _draft(
    signers: RoleKeys, role: RoleName, version: int, meta: Mapping[str, canonical.Json], expires: datetime
) -> Draft:
    if version > MAX_VERSION:
        raise InvalidUpdate(
            UploadFault.VALIDATION,
            f"{role}: version {version - 1} is stored, after which no other fits into the database",
        )
    payload = canonical.dumps(
        {
            "_type": role.capitalize(),
            # Whole seconds: the Go implementation drops trailing zeros of a fraction when it writes it again.
            "expires": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "meta": dict(meta),
            "version": version,
        }
    )
    try:
        for key in signers.keys.values():
            key.canonical_id  # noqa: B018 - the signing service will be asked by it
    except InvalidMetadata as error:
        raise InvalidUpdate(UploadFault.VALIDATION, f"{role}: {error}") from error
    # A key under a name that is not its id could sign, but no client would find the key by its signature.
    able = tuple(key for key_id, key in signers.keys.items() if key.key_id == key_id)
    return Draft(role, version, payload, able, signers.threshold)


def _file_meta(data: bytes) -> dict[str, canonical.Json]:
    meta = FileMeta.of(data)
    return {
        "hashes": {name: base64.b64encode(digest).decode() for name, digest in meta.hashes.items()},
        "length": meta.length,
    }
