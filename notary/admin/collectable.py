"""The files of a collection that may be removed.

Rules of this module: pure. Four kinds of files are kept: every root, because clients follow roots one version at a
time; the newest version of every role, because the next published version must be higher; the newest timestamps and
snapshots, of each as many as the operator asks for; and every file that a kept timestamp or snapshot lists. Nothing may
be removed from a collection whose current state is broken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from notary.errors import InvalidMetadata
from notary.tuf.collection import Collection, File, Index, current, newest
from notary.tuf.model import ROOT, SNAPSHOT, TARGETS, TIMESTAMP


def collectable(collection: Collection, keep: int) -> list[File]:
    """Return the files that may be removed while the ``keep`` (at least 1) newest timestamps and snapshots stay usable.

    The order is safe for removal: a file comes after all files that list it. Raises NotFound or InvalidMetadata if the
    current state is broken; ``fsck`` reports the details.
    """
    if not _has_history(collection.files, keep):
        return []
    index = Index(collection)
    now = current(collection, index)
    if now.absent:
        raise InvalidMetadata(f"the snapshot lists missing files: {', '.join(sorted(now.absent))}")
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
    """Return whether any file may be removable. Most collections have none, and need not be read."""
    timestamps = sum(file.role == TIMESTAMP for file in files)
    others = sum(file.role not in (TIMESTAMP, ROOT) for file in files)
    return timestamps > keep or others > len({file.role for file in files} - {TIMESTAMP, ROOT})


def _last(files: Iterable[File], role: str, keep: int) -> list[File]:
    return sorted((file for file in files if file.role == role), key=lambda file: file.version)[-keep:]


def _listed(index: Index, file: File) -> Iterable[File]:
    """Return the stored files that a timestamp or snapshot lists; none if an old one cannot be read."""
    try:
        return index.listed(file)[0].values()
    except InvalidMetadata:
        return ()
