"""From the files of an upload to its validation: reading them, naming the stored files needed, and all in one call.

Rules of this module: pure. Bytes come in, values or typed errors go out. (docs/protocol.md, section 3)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from notary.errors import InvalidRole, NoFilename
from notary.tuf import canonical
from notary.tuf.draft import LIFETIMES, Lifetimes
from notary.tuf.model import (
    BASE_ROLES,
    ROOT,
    Gun,
    Held,
    RoleName,
    Upload,
)
from notary.tuf.validation import Plan, Validation

MAX_FILES = 200
"""How many files one upload may hold (docs/protocol.md, section 9). The reader of requests enforces the limit.

Each file can be a delegation over a hundred levels deep, and :func:`needed` names all of its ancestors.
"""


def read(files: Iterable[tuple[str, bytes]]) -> list[Upload]:
    """Read uploaded files, given as (name, bytes), in order. Raises NoFilename, InvalidRole and MalformedJSON."""
    budget = canonical.StructureBudget()
    return [Upload(_role(name), data, budget) for name, data in files]


def check(files: Sequence[tuple[str, bytes]]) -> None:
    """Raise what :func:`read` would raise."""
    read(files)


def named(files: Iterable[tuple[str, bytes]]) -> list[RoleName]:
    """Return the roles among the names of uploaded files; names that :func:`read` would refuse are left out."""
    roles = []
    for name, _ in files:
        with suppress(NoFilename, InvalidRole):
            roles.append(_role(name))
    return roles


def _role(name: str) -> RoleName:
    if not name:
        raise NoFilename("a part of the upload has no file name; it must be the name of a role")
    return RoleName(name)


def validate_files(
    gun: Gun,
    current: Mapping[RoleName, Held],
    files: Sequence[tuple[str, bytes]],
    now: datetime,
    *,
    root_verified: bool = False,
    lifetimes: Lifetimes = LIFETIMES,
) -> Plan:
    """Read and validate the files of a large upload; the root is validated before any other file is read.

    ``current`` holds the stored files that :func:`needed` names for the roles that :func:`named` finds. An error in the
    root is raised even if another file cannot be read, which :func:`read` would raise first (docs/protocol.md, section
    9). Otherwise like :func:`notary.tuf.validation.validate`.
    """
    budget = canonical.StructureBudget()
    others = [(_role(name), data) for name, data in files]
    roots = [index for index, (role, _) in enumerate(others) if role == ROOT]
    root = Upload(*others.pop(roots[-1]), budget) if roots else None
    uploaded = {} if root is None else {ROOT: root}
    validation = Validation(gun, current, uploaded, now, root_verified=root_verified, lifetimes=lifetimes)
    validation.root  # noqa: B018 - validate the root before any other file is read
    uploads = [Upload(role, data, budget) for role, data in others]
    validation.add([upload for upload in uploads if upload.role != ROOT])  # of two roots only the later one counts
    return validation.run()


def needed(roles: Collection[RoleName]) -> frozenset[RoleName]:
    """Return the roles whose newest stored files validation needs, given the uploaded roles."""
    wanted = set(BASE_ROLES)
    for role in roles:
        # The ancestors of a wanted role are wanted already, so each name is visited once.
        above: RoleName | None = role
        while above is not None and above not in wanted:
            wanted.add(above)
            above = above.parent
    return frozenset(wanted)
