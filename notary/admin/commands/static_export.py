"""``repos export --static``: collections as files for a web server.

Rules of this module: nothing in the database is changed. A collection that clients would refuse is reported, and the
others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from notary.admin import static_tree
from notary.admin.collections import guns, inventory_of
from notary.admin.command import Status
from notary.admin.output import counted
from notary.admin.session import Session
from notary.errors import InvalidArchive, InvalidGun, InvalidMetadata, InvalidRole, InvalidRow, NotFound
from notary.storage.operators import Inventory

_COLLECTIONS_TOGETHER: Final = 64
_BYTES_TOGETHER: Final = 32 << 20
"""How much is written before the disk is waited for."""
_OF_ONE_COLLECTION: Final = (NotFound, InvalidGun, InvalidMetadata, InvalidRole, InvalidRow)


async def export_static(session: Session, directory: Path, only: Sequence[str], *, prune: bool) -> int:
    """Write collections as a tree of files for a web server; return an exit status.

    ``only`` has the names of the collections; without any, all are written. Raises InvalidArchive if the tree cannot
    be written.
    """
    inventory = await inventory_of(session)
    tree = static_tree.Tree(directory)
    session.at_end(tree.close)
    export = _Export(session, inventory, tree, prune=prune)
    with session.out.table("GUN", "Written", "Removed", "Problem") as add:
        export.add = add
        if only:
            for gun in dict.fromkeys(only):
                await export.bring_up_to_date(gun, named=True)
            export.write()
        else:
            async for gun in guns(session, inventory, "", "Collections"):
                await export.bring_up_to_date(gun, named=False)
            export.write()
            if prune:
                export.remove_others(directory)
    if export.expired:
        session.out.say(f"clients refuse {counted(export.expired, 'collection')}, whose timestamp has expired")
    problems = export.problems + export.missing
    session.out.summary(f"{counted(export.written, 'collection')} up to date, {problems} with problems")
    if export.problems:
        return Status.FOUND
    return Status.MISSING if export.missing else Status.OK


class _Export:
    """One run: reads collections, writes several at a time, and counts."""

    def __init__(self, session: Session, inventory: Inventory, tree: static_tree.Tree, *, prune: bool) -> None:
        self.written = self.expired = self.problems = self.missing = 0
        self.add: Callable[[Sequence[object], Mapping[str, object]], None] = lambda _cells, _record: None
        self._session = session
        self._inventory = inventory
        self._tree = tree
        self._prune = prune
        self._seen: set[str] = set()
        self._read: list[static_tree.Content] = []
        self._bytes = 0

    async def bring_up_to_date(self, gun: str, *, named: bool) -> None:
        """Read what the tree lacks of a collection; with ``named``, it is a problem that there is none.

        :meth:`write` writes it, which happens here from time to time.
        """
        self._seen.add(gun)
        try:
            read = partial(static_tree.read, has=self._tree.has(gun))
            content = await self._inventory.visit(gun, read)
        except _OF_ONE_COLLECTION as error:
            self.write()  # results come in the order of names
            self._refuse(gun, error)
            return
        if content is not None:
            self._read.append(content)
            self._bytes += sum(len(entry.data) for entry in content.entries if entry.data is not None)
            if len(self._read) == _COLLECTIONS_TOGETHER or self._bytes >= _BYTES_TOGETHER:
                self.write()
        elif named:
            self.write()
            self._leave_out(gun)

    def write(self) -> None:
        """Write what was read. Raises InvalidArchive."""
        for content, written in zip(self._read, self._tree.put(*self._read), strict=True):
            if isinstance(written, InvalidGun):
                self._refuse(content.gun, written)
                continue
            removed = self._tree.prune(content, self._session.now().timestamp()) if self._prune else 0
            self.written += 1
            self.expired += content.expires < self._session.now()
            if written or removed:
                self._report(content.gun, written, removed)
        self._read.clear()
        self._bytes = 0

    def _refuse(self, gun: str, error: Exception) -> None:
        self.problems += 1
        self._report(gun, 0, 0, str(error))

    def _leave_out(self, gun: str) -> None:
        removed = self._tree.remove(gun) if self._prune else 0
        self.missing += not removed
        self._report(gun, 0, removed, "" if removed else f"there is no collection {gun}")

    def remove_others(self, directory: Path) -> None:
        """Remove from the tree what is not in the database. Raises InvalidArchive if that is everything."""
        gone = [gun for gun in self._tree.guns() if gun not in self._seen]
        if gone and not self._seen:
            raise InvalidArchive(
                f"the tree has {counted(len(gone), 'collection')}, and the database none of them: if that is right, "
                f"remove {str(directory)!r} yourself"
            )
        for gun in gone:
            self._report(gun, 0, self._tree.remove(gun))

    def _report(self, gun: str, written: int, removed: int, problem: str = "") -> None:
        record = {"gun": gun, "written": written, "removed": removed, "problem": problem}
        self.add([gun, written, removed, problem or None], record)
