"""What an upload must satisfy before it is stored (docs/protocol.md, section 3), and what the server then signs itself.

Rules of this module: pure. Bytes and ``now`` come in, values or typed errors go out; nothing is fetched and nothing is
signed here. The caller loads what :func:`needed` names, once; :func:`validate` judges the upload against it and returns
a :class:`Plan`; the caller has the plan's drafts signed and writes everything in one transaction.

The checks run in the order of the protocol, because clients see the first fault only: root, the targets roles from
shallow to deep, the snapshot, and last the rules that are ours alone (section 9): clients must be able to read what the
upload leaves behind, and a version may not leap.

A new client reads a collection whole, or not at all: the timestamp, the snapshot, root, targets, and every delegation
that targets lead to and the snapshot lists. An upload may not break that. It need not mend what was broken before it:
what stays as it was is not judged again, nor is the expiry of what is stored. One thing may be left broken on purpose:
a delegation whose keys its parent has changed, which clients pass over with a warning.

Hashes are always taken over the very bytes that are stored, never over a re-serialisation of them.

Two kinds of error leave :func:`validate`. InvalidUpdate says what is wrong with the upload, including a stored parent
that the upload leaves without valid signatures: the publisher can mend it. InvalidMetadata says that the *stored* root
or snapshot cannot be used: nothing that this publisher did, so an edge must treat it as a failure of the service.
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
)
from notary.tuf.validation import Plan, Upload, Validation

MAX_FILES = 200
"""How many files one upload may hold (docs/protocol.md, section 9); whoever reads uploads enforces it.

Each file can be a delegation over a hundred levels deep, all of whose ancestors :func:`needed` names.
"""


def read(files: Iterable[tuple[str, bytes]]) -> list[Upload]:
    """Uploaded files by their names, in their order. Raises NoFilename, InvalidRole and MalformedJSON."""
    budget = canonical.Budget()
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


def judge(
    gun: Gun,
    current: Mapping[RoleName, Held],
    files: Sequence[tuple[str, bytes]],
    now: datetime,
    *,
    sound: bool = False,
) -> Plan:
    """Read and :func:`validate` the files of a large upload, none before the root is known to be good.

    ``current`` has what is needed for the roles that :func:`named` finds. What is wrong with the root is told even if
    another file could not be read at all, which :func:`read` would tell first (docs/protocol.md, section 9).
    """
    budget = canonical.Budget()
    others = [(_role(name), data) for name, data in files]
    roots = [index for index, (role, _) in enumerate(others) if role == ROOT]
    root = Upload(*others.pop(roots[-1]), budget) if roots else None
    validation = Validation(gun, current, {} if root is None else {ROOT: root}, now, sound=sound)
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
