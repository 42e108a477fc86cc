"""Walks over collections, and the summary of what clients get of each one.

Rules of this module: one collection is read at a time, so that memory does not grow with the number of collections. A
broken collection does not end a walk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from notary import certs
from notary.admin.session import Session
from notary.errors import InvalidCertificate, InvalidMetadata, InvalidRole, InvalidRow, NotaryError, NotFound
from notary.storage.open import open_inventory
from notary.storage.operators import Inventory, StoredCollection
from notary.tuf.collection import Collection, File, Index, Metadata, current, newest, parse
from notary.tuf.model import ROOT, Root
from notary.tuf.public import PublicKey

GUNS_PER_PAGE: Final = 500
"""The number of names in one read of the store."""

SUMMARIES_AT_ONCE: Final = 25
"""The number of collections that are summarised in one transaction."""

_T = TypeVar("_T")


async def inventory_of(session: Session) -> Inventory:
    """Open the operators' view of the server's store. Raises ConfigError and StorageFailed."""
    return await session.open(session.server(), open_inventory)


async def guns(
    session: Session, inventory: Inventory, prefix: str, what: str, *, remembered: bool = False
) -> AsyncIterator[str]:
    """Yield the name of every collection that begins with ``prefix``, under a progress bar with the label ``what``.

    If ``remembered``, the names include collections that only the changefeed still names.
    """
    total = await inventory.count(prefix) if session.out.shows_progress else None
    with session.out.progress(what, total) as advance:
        after = ""
        while page := await inventory.guns(prefix, after, GUNS_PER_PAGE, remembered=remembered):
            for gun in page:
                if gun.startswith(prefix):
                    yield gun
                    advance(1)
            after = page[-1]


async def summaries(
    session: Session, inventory: Inventory, prefix: str, what: str
) -> AsyncIterator[tuple[str, Summary]]:
    """Yield every name that :func:`guns` yields with the summary of its collection, unless that was deleted meanwhile.

    Of a collection whose rows cannot be read, the summary has only the problem.
    """
    names: list[str] = []

    async def read() -> AsyncIterator[tuple[str, Summary]]:
        for name, found in zip(names, await inventory.visit_many(names, summarise), strict=True):
            if isinstance(found, InvalidRow):
                yield name, Summary({}, None, 0, 0, str(found))
            elif found.stored_files:
                yield name, found
        names.clear()

    async for gun in guns(session, inventory, prefix, what):
        names.append(gun)
        if len(names) == SUMMARIES_AT_ONCE:
            async for each in read():
                yield each
    async for each in read():
        yield each


async def selected(
    session: Session, inventory: Inventory, gun: str, prefix: str, what: str, *, remembered: bool = False
) -> AsyncIterator[str]:
    """Yield ``gun`` or, if ``gun`` is "", every name that :func:`guns` yields. Raises NotFound."""
    if gun:
        if not await inventory.visit(gun, lambda found: bool(found.files or (remembered and found.feed()))):
            raise NotFound(f"there is no collection {gun}")
        yield gun
        return
    async for each in guns(session, inventory, prefix, what, remembered=remembered):
        yield each


async def visit_existing(inventory: Inventory, gun: str, work: Callable[[StoredCollection], _T]) -> _T:
    """Return the result of ``work`` on a collection. Raises NotFound, and the errors of ``work``."""

    def unless_empty(collection: StoredCollection) -> _T:
        if not collection.files:
            raise NotFound(f"there is no collection {gun}")
        return work(collection)

    return await inventory.visit(gun, unless_empty)


@dataclass(frozen=True, slots=True)
class Item:
    """One current file. ``expires`` is None if the file cannot be read; ``problem`` then says why."""

    file: File
    expires: datetime | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """A collection in short: the file of each role that clients get, and the first problem found, or "".

    Args:
        root: Its root, None if that cannot be read.
        stored_files: The number of all stored files.
        stored_bytes: The size of all stored files.
    """

    items: Mapping[str, Item]
    root: Root | None
    stored_files: int
    stored_bytes: int
    problem: str

    @property
    def certificate_ends(self) -> Mapping[str, datetime]:
        """The ends of the certificates of the root keys, by their subjects."""
        keys = [] if self.root is None else self.root.roles[ROOT].keys.values()
        leaves = [leaf_of(key) for key in keys]
        return {leaf.subject: leaf.valid_until for leaf in leaves if leaf is not None}


def summarise(collection: Collection) -> Summary:
    """Summarise a collection. If its current state is broken, the newest file of each role is taken instead."""
    problem = ""
    index = Index(collection)
    try:
        now = current(collection, index)
    except (NotFound, InvalidMetadata) as error:
        files, problem = newest(collection.files), str(error)
    else:
        files = dict(now.files)
        if now.absent:
            problem = f"the snapshot lists missing files: {', '.join(sorted(now.absent))}"
    items: dict[str, Item] = {}
    root: Root | None = None
    for role, file in sorted(files.items()):
        try:
            metadata = index.parsed.get(file) or read_metadata(collection, file)
        except NotaryError as error:
            items[role] = Item(file, None, str(error))
            problem = problem or f"{role}: {error}"
            continue
        items[role] = Item(file, metadata.expires)
        if isinstance(metadata, Root):
            root = metadata
    size = sum(file.size for file in collection.files)
    return Summary(items, root, len(collection.files), size, problem)


def read_metadata(collection: Collection, file: File) -> Metadata:
    """Parse the metadata in a file. Raises InvalidMetadata."""
    try:
        return parse(file.role, collection.data(file))
    except InvalidRole as error:
        raise InvalidMetadata(str(error)) from None


@dataclass(frozen=True, slots=True)
class Leaf:
    """The certificate of a key: its subject and its end (aware, UTC)."""

    subject: str
    valid_until: datetime


def leaf_of(key: PublicKey) -> Leaf | None:
    """Return the first certificate of a key; None if the key has no certificate, or one that cannot be read."""
    try:
        with certs.reading():
            for certificate in key.certificates[:1]:
                return Leaf(certs.subject_of(certificate), certificate.not_valid_after_utc)
    except InvalidCertificate:
        return None
    return None
