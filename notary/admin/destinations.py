"""Where fetched collections go: the database of a server, or a folder of archives.

Rules of this module: a collection is stored in one step. What a process that is killed leaves behind is whole: a
transaction that was committed or not, a file under its name or not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from notary.admin import archive
from notary.errors import ConfigError, InvalidArchive, InvalidGun, NotaryError, StorageFailed
from notary.peer.walk import Found, Known
from notary.storage import MetadataStore
from notary.storage.operators import Inventory, StoredCollection
from notary.tuf.collection import Collection, File, newest
from notary.tuf.model import TIMESTAMP, Gun, Update

SUFFIX: Final = ".jsonl"
"""The end of the names of archives."""
_PARTIAL: Final = ".partial"
_LONGEST_NAME: Final = 200


def _known(collection: Collection) -> dict[str, Known]:
    return {role: Known(file.version, collection.data(file)) for role, file in newest(collection.files).items()}


class DatabaseDestination:
    """The database of a server that holds collections whose names begin with one of ``prefixes``, or all."""

    def __init__(self, store: MetadataStore, inventory: Inventory, prefixes: tuple[str, ...]) -> None:
        self._store = store
        self._inventory = inventory
        self._prefixes = prefixes

    async def known(self, gun: Gun) -> Mapping[str, Known]:
        """See Destination. Raises InvalidGun too."""
        if self._prefixes and not gun.startswith(self._prefixes):
            raise InvalidGun(f"the server holds only GUNs that begin with {' or '.join(self._prefixes)}")

        def look(collection: StoredCollection) -> dict[str, Known]:
            return _known(collection)

        return await self._inventory.visit(gun, look)

    async def store(self, found: Found, known: Mapping[str, Known]) -> None:
        """See Destination."""
        after = known.get(TIMESTAMP)
        sha256 = None if after is None else hashlib.sha256(after.data).hexdigest()
        await self._store.publish(found.gun, found.files, sha256)

    async def replace(self, found: Found) -> None:
        """See Destination."""
        await self._inventory.replace(found.gun, found.files)

    async def names(self) -> Sequence[str]:
        """Return the names of all collections that are stored."""
        found: list[str] = []
        while page := await self._inventory.guns("", found[-1] if found else "", 1_000):
            found += page
        return found

    async def delete(self, gun: Gun) -> bool:
        """Delete a collection; return whether there was one."""
        return await self._store.delete(gun)


@dataclass(frozen=True, slots=True)
class _Contents:
    """A collection in memory, with the bytes of its files."""

    gun: Gun
    contents: Mapping[File, bytes]

    @property
    def files(self) -> Sequence[File]:
        """See Collection."""
        return list(self.contents)

    def data(self, file: File) -> bytes:
        """See Collection."""
        return self.contents[file]


class ArchiveDestination:
    """A folder with one archive for each collection, as ``repos export`` writes it. Raises ConfigError.

    The folder is made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--archive: {str(folder)!r} cannot be created ({error.strerror})") from None
        self._folder = folder

    async def known(self, gun: Gun) -> Mapping[str, Known]:
        """See Destination."""
        stored = self._read(gun)
        return {} if stored is None else _known(stored)

    async def store(self, found: Found, known: Mapping[str, Known]) -> None:  # noqa: ARG002 - nobody else writes
        """See Destination."""
        stored = self._read(found.gun)
        contents: Mapping[File, bytes] = {} if stored is None else stored.contents
        self._write(_Contents(found.gun, {**contents, **_contents(found.files)}))

    async def replace(self, found: Found) -> None:
        """See Destination."""
        self._write(_Contents(found.gun, _contents(found.files)))

    def _read(self, gun: Gun) -> _Contents | None:
        path = self._folder / file_name(gun)
        try:
            with path.open("rb") as stream:
                read = archive.read(stream)
                found = _Contents(read.gun, {file: read.data(file) for file in read.files})
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageFailed(f"{str(path)!r} cannot be read ({error.strerror})") from None
        except NotaryError as error:
            raise InvalidArchive(f"{str(path)!r}: {error}; remove the file to fetch the collection anew") from None
        if found.gun != gun:
            raise InvalidArchive(f"{str(path)!r} holds another collection, {found.gun}")
        return found

    def _write(self, collection: _Contents) -> None:
        path = self._folder / file_name(collection.gun)
        partial = path.with_name(path.name + _PARTIAL)
        try:
            try:
                with partial.open("wb") as stream:
                    archive.write(collection, stream)
                    stream.flush()
                    os.fsync(stream.fileno())
                partial.replace(path)
            except BaseException:
                with suppress(OSError):
                    partial.unlink()
                raise
            _sync(self._folder)
        except OSError as error:
            raise StorageFailed(f"{str(path)!r} cannot be written ({error.strerror})") from None


def _contents(updates: Iterable[Update]) -> dict[File, bytes]:
    return {
        File(str(each.role), each.version, hashlib.sha256(each.data).hexdigest(), len(each.data)): each.data
        for each in updates
    }


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_name(gun: str) -> str:
    """Return the name of the archive of a collection: the GUN with escapes, never a path. Different GUNs differ."""
    name = quote(gun, safe="")
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME // 2]}-{hashlib.sha256(gun.encode()).hexdigest()}"
    return name + SUFFIX
