"""Which files of a collection nobody needs any more.

Rules of this module: pure. Kept are: every root, because clients follow it version by version; the newest version of
every role, because it bounds what may be published next; the newest timestamps and snapshots, as many as asked for;
whatever a kept timestamp or snapshot lists. A collection whose current state is broken gives up nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from notary.errors import InvalidMetadata
from notary.tuf.collection import Collection, File, Index, current, newest
from notary.tuf.model import ROOT, SNAPSHOT, TARGETS, TIMESTAMP


def collectable(collection: Collection, keep: int) -> list[File]:
    """What may be removed when the ``keep`` (1 or more) newest timestamps and snapshots must stay whole.

    In the order in which it is safe to remove: what lists a file goes before that file. Raises NotFound or
    InvalidMetadata if the current state is broken; ``fsck`` says how.
    """
    if not _has_history(collection.files, keep):
        return []
    index = Index(collection)
    now = current(collection, index)
    if now.absent:
        raise InvalidMetadata(f"the snapshot lists files that are not there: {', '.join(sorted(now.absent))}")
    needed = {*newest(collection.files).values(), *now.files.values()}
    needed.update(file for file in collection.files if file.role == ROOT)
    needed.update(_last(collection.files, TIMESTAMP, keep), _last(collection.files, SNAPSHOT, keep))
    for lister in (TIMESTAMP, SNAPSHOT):
        for file in [file for file in needed if file.role == lister]:
            needed.update(_listed(index, file))
    order: dict[str, int] = {TIMESTAMP: 0, SNAPSHOT: 1, TARGETS: 2}
    return sorted(
        (file for file in collection.files if file not in needed),
        key=lambda file: (order.get(file.role, 3), file.role, file.version),
    )


def _has_history(files: Sequence[File], keep: int) -> bool:
    """Whether anything could go at all: most collections need not be read."""
    timestamps = sum(file.role == TIMESTAMP for file in files)
    others = sum(file.role not in (TIMESTAMP, ROOT) for file in files)
    return timestamps > keep or others > len({file.role for file in files} - {TIMESTAMP, ROOT})


def _last(files: Iterable[File], role: str, keep: int) -> list[File]:
    return sorted((file for file in files if file.role == role), key=lambda file: file.version)[-keep:]


def _listed(index: Index, file: File) -> Iterable[File]:
    """What a timestamp or snapshot lists, as far as it is there and can be read: an old one need not be whole."""
    try:
        return index.listed(file)[0].values()
    except InvalidMetadata:
        return ()
