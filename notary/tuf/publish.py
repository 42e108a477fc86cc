"""What a publish needs: which stored files to load for an upload, and the whole of its validation in one call.

Rules of this module: pure. Bytes come in, values or typed errors go out. (docs/protocol.md, section 3)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from notary.errors import InvalidRole, NoFilename
from notary.tuf import canonical
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
"""How many files one upload may hold (docs/protocol.md, section 9); whoever reads uploads enforces it.

Each file can be a delegation over a hundred levels deep, all of whose ancestors :func:`needed` names.
"""


def read(files: Iterable[tuple[str, bytes]]) -> list[Upload]:
    """Uploaded files by their names, in their order. Raises NoFilename, InvalidRole and MalformedJSON."""
    budget = canonical.StructureBudget()
    return [Upload(_role(name), data, budget) for name, data in files]


def named(files: Iterable[tuple[str, bytes]]) -> list[RoleName]:
    """The roles among the names of uploaded files, whatever :func:`read` will find wrong with the others."""
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
) -> Plan:
    """Read and :func:`validate` the files of a large upload, none before the root is known to be good.

    ``current`` has what is needed for the roles that :func:`named` finds. What is wrong with the root is told even if
    another file could not be read at all, which :func:`read` would tell first (docs/protocol.md, section 9).
    """
    budget = canonical.StructureBudget()
    others = [(_role(name), data) for name, data in files]
    roots = [index for index, (role, _) in enumerate(others) if role == ROOT]
    root = Upload(*others.pop(roots[-1]), budget) if roots else None
    validation = Validation(gun, current, {} if root is None else {ROOT: root}, now, root_verified=root_verified)
    validation.root  # noqa: B018 - before anything else is read
    uploads = [Upload(role, data, budget) for role, data in others]
    validation.add([upload for upload in uploads if upload.role != ROOT])  # of two roots the later has been judged
    return validation.run()


def needed(roles: Collection[RoleName]) -> frozenset[RoleName]:
    """The roles whose stored versions :func:`validate` must see, given the names of the uploaded ones."""
    wanted = set(BASE_ROLES)
    for role in roles:
        # What is wanted already has its ancestors there: each name is looked at once.
        above: RoleName | None = role
        while above is not None and above not in wanted:
            wanted.add(above)
            above = above.parent
    return frozenset(wanted)
