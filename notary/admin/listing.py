"""The targets of a collection, verified, and the commands that sign the same images with other tools.

Rules of this module: pure. What is listed was verified from the first root on, to the threshold of every role, as a
client does; only expiry is reported and not refused. A delegation lists what the paths of it, and of all roles above
it, allow. A command names an image by the digest that was verified, never by a tag, and holds no text that a shell or
a program could take for anything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final

from notary.admin.output import printable
from notary.admin.static_tree import faults, served
from notary.errors import InvalidGun, InvalidMetadata
from notary.tuf.collection import Collection, File, parse
from notary.tuf.model import BASE_ROLES, TARGETS, Targets

_DOMAIN: Final = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)"
_IMAGE: Final = re.compile(
    rf"{_DOMAIN}(?:\.{_DOMAIN})*(?::[0-9]{{1,5}})?(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)+", re.ASCII
)
"""The name of a repository of images, with its registry, as registries allow it."""

SHA256_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Listed:
    """One target: its role, its digests (hex) by algorithm, and its size in bytes."""

    name: str
    role: str
    hashes: Mapping[str, str]
    size: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The targets of a collection, in the order in which clients look for a name: parents first.

    Args:
        roles: The roles that were verified, in the same order.
        targets: What they list.
        expired: The expiry of each file that clients need and that has expired, by role.
        left_out: Why a delegation is not listed, by role.
    """

    roles: Sequence[str]
    targets: Sequence[Listed]
    expired: Mapping[str, datetime]
    left_out: Mapping[str, str]


def verified(collection: Collection, now: datetime) -> Listing:
    """Verify a collection and list its targets. Raises NotFound and InvalidMetadata if a base role does not verify."""
    part = served(collection)
    left_out: dict[str, str] = {}
    for fault in faults(part):
        if fault.role in BASE_ROLES or not fault.role:
            raise InvalidMetadata(f"{fault.role} version {fault.version}: {fault.kind}: {fault.detail}; see fsck")
        left_out.setdefault(fault.role, f"{fault.kind}: {fault.detail}; see fsck")
    files = {file.role: file for file in part.files}  # of a role's versions, the newest; only root has several
    expired = {
        str(role): expires for role in BASE_ROLES if (expires := parse(role, part.data(files[role])).expires) < now
    }
    found: list[Listed] = []
    roles: list[str] = []
    for role, metadata, allowed in _walk(part.data, files, left_out):
        roles.append(role)
        if metadata.expires < now:
            expired[role] = metadata.expires
        found += [
            Listed(name, role, {kind: digest.hex() for kind, digest in sorted(meta.hashes.items())}, meta.length)
            for name, meta in sorted(metadata.targets.items())
            if name.startswith(tuple(allowed))
        ]
    return Listing(roles, found, expired, left_out)


def _walk(
    data: Callable[[File], bytes], files: Mapping[str, File], left_out: Mapping[str, str]
) -> Iterator[tuple[str, Targets, Sequence[str]]]:
    """Yield each verified role under ``targets``, its metadata, and the beginnings of the names that it may list."""
    waiting: list[tuple[str, Sequence[str]]] = [(str(TARGETS), ("",))]
    while waiting:
        role, allowed = waiting.pop()
        if role in left_out or role not in files:
            continue
        metadata = parse(role, data(files[role]))
        assert isinstance(metadata, Targets)  # noqa: S101  # parse made it by the name
        yield role, metadata, allowed
        for name, delegation in reversed(list(metadata.delegations.items())):
            waiting.append((str(name), [path for path in delegation.paths if path.startswith(tuple(allowed))]))


def ambiguous(targets: Sequence[Listed]) -> list[str]:
    """Return the names that have different content in different roles."""
    digests: dict[str, set[str]] = {}
    for target in targets:
        digests.setdefault(target.name, set()).add(target.hashes.get("sha256", ""))
    return sorted(name for name, found in digests.items() if len(found) > 1)


SIGNERS: Final[Mapping[str, str]] = MappingProxyType({"cosign": "cosign sign", "notation": "notation sign"})
"""The command of each successor that signs an image."""


def commands(tool: str, gun: str, targets: Sequence[Listed]) -> Iterator[tuple[str, Listed]]:
    """Yield a line for a shell that signs each image once, with the target that it is for.

    The arguments of the script are passed on to each command. Raises InvalidGun if the collection cannot be one of
    images, and InvalidMetadata for a target without a SHA-256.
    """
    if not _IMAGE.fullmatch(gun):
        raise InvalidGun(f"{gun} is not the name of a repository of images, which {tool} could sign")
    done = set()
    for target in targets:
        digest = target.hashes.get("sha256", "")
        if len(digest) != 2 * SHA256_BYTES:
            raise InvalidMetadata(f"{target.role} lists {target.name} without a SHA-256, by which an image is named")
        if digest not in done:
            done.add(digest)
            yield f'{SIGNERS[tool]} "$@" {gun}@sha256:{digest}  # {printable(target.name)} in {target.role}', target
