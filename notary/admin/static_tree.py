"""A tree of files that any web server can serve to clients in place of a server (docs/mirror.md).

Rules of this module: bytes are those of the store, never serialised again. A file by checksum or version is written
before anything leads to it; a current file is replaced by a rename, and the timestamp among the last. A client that
reads meanwhile gets the old state or the new one, and so does one that reads after a crash. Outside of ``v2`` nothing
is touched; inside it, only files whose names are of this module. The functions block.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from notary.admin import findings
from notary.errors import InvalidArchive, InvalidGun, InvalidMetadata, InvalidRole, NotFound
from notary.tuf.collection import Collection, File, current, parse
from notary.tuf.model import ROOT, SNAPSHOT, TIMESTAMP, Gun, Root, Snapshot, Timestamp, stored_envelope

MARKER: Final = ".notary-static"
"""The file in ``v2`` that shows that the tree is ours."""

PING: Final = "index.json"
"""The file in ``v2`` that a web server gives for ``/v2/``, where clients ask whether there is a server."""

KEPT_SECONDS: Final = 3600.0
"""How long a timestamp that was replaced, and what it leads to, is kept: a cache or a client may still have it."""

MAX_NAME_BYTES: Final = 255
"""The longest name in a directory, on every file system in use."""

SYNC_THREADS: Final = 16
"""Files that are brought to the disk at the same time."""

_TRUST: Final = "_trust"
_TUF: Final = ("_trust", "tuf")
_TEMPORARY: Final = re.compile(r"\.[0-9a-f]{16}\.tmp")
_NAME: Final = re.compile(
    r"(?:(?P<version>[1-9][0-9]{0,9})\.)?(?P<role>root|snapshot|timestamp|targets(?:/[-a-z0-9_]+)*)"
    r"(?:\.(?P<sha256>[0-9a-f]{64}))?\.json"
)
_LONGEST_SUFFIX: Final = len(f".{'0' * 64}.json")


class _Part:
    """Some files of a collection, as a collection."""

    def __init__(self, whole: Collection, files: Sequence[File]) -> None:
        self._whole = whole
        self.gun = whole.gun
        self.files = sorted(files, key=lambda file: (file.role, file.version))

    def data(self, file: File) -> bytes:
        """See Collection."""
        return self._whole.data(file)


def served(collection: Collection) -> _Part:
    """Return what clients can ask for of a collection: all roots, and the files that the current timestamp leads to.

    Raises NotFound and InvalidMetadata, as :func:`notary.tuf.collection.current` does, and if a listed file is missing.
    """
    found = current(collection)
    if found.absent:
        raise NotFound(f"the snapshot lists missing files: {', '.join(sorted(found.absent))}")
    roots = [file for file in collection.files if file.role == ROOT]
    return _Part(collection, list(dict.fromkeys([*roots, *found.files.values()])))


def faults(part: Collection) -> list[findings.Finding]:
    """Return why clients would refuse files. Missing early roots are no reason: new clients do not need them."""
    return [each for each in findings.check(part) if each.error and each.kind != "root-gap"]


def gun_path(gun: str) -> Path:
    """Return the place of a collection below ``v2``. Raises InvalidGun if a tree of files cannot have it.

    A part ``_trust`` would lead into the files of another collection.
    """
    parts = Gun(gun).split("/")
    for part in parts:
        if part in {"", ".", "..", _TRUST} or len(part.encode()) > MAX_NAME_BYTES:
            raise InvalidGun(f"a tree of files cannot hold this name: {part[:40]!r} cannot be a directory in it")
    if parts[0] in {MARKER, PING}:
        raise InvalidGun(f"a tree of files cannot hold this name: {parts[0]!r} is a file in it")
    return Path(*parts)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file for the tree. ``data`` is None if the tree has the file by its checksum."""

    role: str
    version: int
    sha256: str
    data: bytes | None

    @property
    def names(self) -> tuple[str, str]:
        """The names that never change: by checksum, and by version."""
        return f"{self.role}.{self.sha256}.json", f"{self.version}.{self.role}.json"


@dataclass(frozen=True, slots=True)
class Content:
    """What clients can ask for of one collection; ``current`` has the checksums (hex) of current files by role.

    ``expires`` is that of the timestamp (aware, UTC).
    """

    gun: str
    entries: Sequence[Entry]
    current: dict[str, str]
    expires: datetime


def read(collection: Collection, has: Callable[[str, str, int], bool]) -> Content | None:
    """Return what the tree must have of a collection; None if there is no such collection.

    ``has`` tells whether the tree has a file, by its role, checksum and size; only other files are read. If there are
    any, everything is verified. Raises InvalidMetadata, InvalidRole and NotFound if clients would refuse it.
    """
    if not collection.files:
        return None
    part = served(collection)
    entries = []
    for file in part.files:
        name = file.role.rpartition("/")[2]
        if len(name) + _LONGEST_SUFFIX > MAX_NAME_BYTES:
            raise InvalidRole(f"a tree of files cannot hold the role {name[:40]}…: its name is too long")
        data = None
        sha256 = file.sha256
        if sha256 is None or not has(file.role, sha256, file.size):
            data = collection.data(file)
            sha256 = hashlib.sha256(data).hexdigest()
        entries.append(Entry(file.role, file.version, sha256, data))
    if any(entry.data is not None for entry in entries):
        for fault in faults(part):
            raise InvalidMetadata(f"{fault.role} version {fault.version}: {fault.kind}: {fault.detail}; see fsck")
    by_place = {(entry.role, entry.version): entry.sha256 for entry in entries}
    files = current(part).files
    expires = parse(TIMESTAMP, collection.data(files[TIMESTAMP])).expires
    return Content(
        collection.gun, entries, {role: by_place[role, file.version] for role, file in files.items()}, expires
    )


class Tree:
    """The tree below a directory, which this process alone may change until :meth:`close`.

    Raises InvalidArchive if the directory cannot be used: it cannot be made, another process changes it, or it holds a
    ``v2`` that is not of this module.
    """

    def __init__(self, directory: Path) -> None:
        self._top = directory / "v2"
        with _told(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._take(directory)
        except BaseException:
            self.close()
            raise

    def _take(self, directory: Path) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InvalidArchive(f"{str(directory)!r}: another export changes it at this moment") from None
        with _told(self._top):
            self._top.mkdir(exist_ok=True)
            if not (self._top / MARKER).exists():
                for left in self._top.iterdir():
                    if not _TEMPORARY.fullmatch(left.name):
                        raise InvalidArchive(
                            f"{str(self._top)!r} holds other files ({left.name!r}); expected a directory without v2, "
                            "or one that this command has made"
                        )
                _write({self._top / MARKER: b'{"format": "notary-static", "version": 1}\n'})
            for left in self._top.iterdir():
                if _TEMPORARY.fullmatch(left.name):
                    left.unlink()
            if not (self._top / PING).exists():
                _write({self._top / PING: b"{}"})

    def close(self) -> None:
        """Let other processes change the tree."""
        os.close(self._lock)

    def has(self, gun: str) -> Callable[[str, str, int], bool]:
        """Return the function that :func:`read` needs for a collection. Raises InvalidGun."""
        folder = self._folder(gun)

        def there(role: str, sha256: str, size: int) -> bool:
            try:
                return (folder / f"{role}.{sha256}.json").stat().st_size == size
            except OSError:
                return False

        return there

    def guns(self) -> Iterator[str]:
        """Yield the name of every collection in the tree, in the order of names."""
        for folder, folders, _ in os.walk(self._top):
            folders.sort()
            if _TRUST in folders:
                folders.remove(_TRUST)
                if Path(folder, *_TUF).is_dir():
                    yield str(Path(folder).relative_to(self._top))

    def put(self, *contents: Content) -> list[int | InvalidGun]:
        """Bring collections to what ``contents`` says; return for each how many names were written or removed.

        A collection whose name this file system cannot hold stays as it is, and has an error in place of the number.
        The disk is waited for three times in all: the time of an export is that of these waits. Raises InvalidArchive.
        """
        works = [_Work(content, self._folder(content.gun), self._top) for content in contents]
        with ExitStack() as stack:
            _each(works, lambda work: work.write(stack))
            _sync(temporary for work in works for temporary, _ in work.written)
            _each(works, _Work.name)
        _sync({place for work in works for place in work.places})
        _each(works, _Work.replace)
        _sync({place for work in works for place in work.replaced})
        return [work.count if work.refusal is None else work.refusal for work in works]

    def prune(self, content: Content, now: float) -> int:
        """Remove what no current file leads to, nor one that was replaced in the last hour; return how many names.

        ``now`` is the time in seconds. Roots that ``content`` has are kept. Raises InvalidArchive.
        """
        folder = self._folder(content.gun)
        with _told(folder):
            names = list(_names(folder))
            kept = {(entry.role, entry.sha256) for entry in content.entries}
            written = sorted(
                (name.path.stat().st_mtime, name.sha256) for name in names if name.role == TIMESTAMP and name.sha256
            )
            for (_, sha256), (replaced, _) in itertools.pairwise(written):
                if replaced > now - KEPT_SECONDS:
                    kept |= _led_to(folder, sha256)
            count = 0
            inodes = {name.path.stat().st_ino for name in names if name.sha256 and (name.role, name.sha256) in kept}
            for name in names:
                if name.sha256 is not None:
                    unused = (name.role, name.sha256) not in kept
                elif name.version is not None and name.path.stat().st_ino not in inodes:
                    unused = (name.role, hashlib.sha256(name.path.read_bytes()).hexdigest()) not in kept
                else:
                    unused = False
                if unused:
                    name.path.unlink()
                    count += 1
            self._remove_empty(folder, folder)
        return count

    def remove(self, gun: str) -> int:
        """Remove a collection, the timestamp first; return how many names. Raises InvalidArchive."""
        folder = self._folder(gun)
        with _told(folder):
            names = sorted(_names(folder), key=lambda name: (name.role != TIMESTAMP, name.role != ROOT))
            for name in names:
                name.path.unlink()
            self._remove_empty(folder, self._top)
        return len(names)

    # -- names --------------------------------------------------------------------------------------------------------

    def _folder(self, gun: str) -> Path:
        return self._top.joinpath(gun_path(gun), *_TUF)

    @staticmethod
    def _remove_empty(folder: Path, stop: Path) -> None:
        """Remove the empty directories in ``folder``, then ``folder`` and those above it, up to ``stop``."""
        for place, _, _ in os.walk(folder, topdown=False):
            if Path(place) != stop:
                with suppress(OSError):
                    Path(place).rmdir()
        while folder != stop:
            with suppress(OSError):
                folder.rmdir()
            folder = folder.parent


class _Work:
    """What :meth:`Tree.put` does with one collection, in three steps; between them, names come to the disk.

    ``written`` has the new files by their temporary names, ``places`` and ``replaced`` the directories that the second
    and third step have changed, ``count`` the number of names, and ``refusal`` the reason for which nothing more is
    done.
    """

    def __init__(self, content: Content, folder: Path, top: Path) -> None:
        self._content = content
        self.folder = folder
        self._top = top
        self.written: list[tuple[Path, Path]] = []
        self.places: set[Path] = set()
        self.replaced: set[Path] = set()
        self.count = 0
        self.refusal: InvalidGun | None = None

    def write(self, stack: ExitStack) -> None:
        """Write the new files under temporary names."""
        for entry in self._content.entries:
            if entry.data is not None:
                path = self.folder / entry.names[0]
                self.written.append((_write_temporary(stack, path, entry.data), path))

    def name(self) -> None:
        """Give the new files, which are on the disk, the names that never change."""
        for temporary, path in self.written:
            temporary.replace(path)
        self.count = len(self.written)
        for entry in self._content.entries:
            by_checksum, by_version = (self.folder / name for name in entry.names)
            self.count += _link(by_checksum, by_version)
        if self.count:
            self.places |= {(self.folder / name).parent for each in self._content.entries for name in each.names}
            self.places |= {each for each in (self.folder, *self.folder.parents) if each.is_relative_to(self._top)}

    def replace(self) -> None:
        """Replace the current files, which lead to names that are on the disk."""
        current = self._content.current
        changed = 0
        for role in _order(self.folder, current):
            by_checksum = self.folder / f"{role}.{current[role]}.json"
            changed += _link(by_checksum, self.folder / f"{role}.json")
        if changed or self.count:
            for name in _names(self.folder):
                if name.version is None and name.sha256 is None and name.role not in current:
                    name.path.unlink()
                    changed += 1
            self.replaced = {(self.folder / role).parent for role in current}
        self.count += changed


def _each(works: Sequence[_Work], step: Callable[[_Work], None]) -> None:
    """Do a step for each collection that was not refused. Raises InvalidArchive."""
    for work in works:
        if work.refusal is None:
            try:
                with _told(work.folder):
                    step(work)
            except InvalidGun as error:
                work.refusal = error


def _names(folder: Path) -> Iterator[_Name]:
    """Yield the files of a collection; remove what an export that was killed has left."""
    for place, _, files in os.walk(folder):
        for file in files:
            path = Path(place, file)
            if _TEMPORARY.fullmatch(file):
                path.unlink()
            elif found := _NAME.fullmatch(str(path.relative_to(folder))):
                yield _Name(path, found["role"], found["version"], found["sha256"])


def _order(folder: Path, new: dict[str, str]) -> list[str]:
    """Return the roles in the order in which their current files are replaced.

    Clients find a new root by the checksum that the new timestamp leads to, so the timestamp comes before the root.
    If the old root names other keys for timestamp or snapshot, its clients cannot verify the new timestamp: then
    the root comes first.
    """
    last = [TIMESTAMP, ROOT]
    with suppress(OSError, InvalidMetadata):
        roots = [
            Root.parse(stored_envelope(ROOT, (folder / name).read_bytes()))
            for name in (f"{ROOT}.json", f"{ROOT}.{new[ROOT]}.json")
        ]
        if any(roots[0].roles[role] != roots[1].roles[role] for role in (TIMESTAMP, SNAPSHOT)):
            last.reverse()
    return [*sorted(role for role in new if role not in last), *last]


def _write(files: Mapping[Path, bytes]) -> None:
    """Write files, all of them to the disk before one gets its name."""
    with ExitStack() as stack:
        written = [(_write_temporary(stack, path, data), path) for path, data in files.items()]
        _sync(temporary for temporary, _ in written)
        for temporary, path in written:
            temporary.replace(path)


def _write_temporary(stack: ExitStack, path: Path, data: bytes) -> Path:
    """Write a file under a temporary name, which ``stack`` removes; return that name."""
    temporary = stack.enter_context(_temporary(path))
    with temporary.open("xb") as stream:
        stream.write(data)
    return temporary


def _link(source: Path, path: Path) -> bool:
    """Make ``path`` another name of ``source``, or a copy where links are impossible; return whether it changed."""
    with suppress(OSError):
        if path.samefile(source):
            return False
        if path.stat().st_size == source.stat().st_size and path.read_bytes() == source.read_bytes():
            return False
    with _temporary(path) as temporary:
        try:
            temporary.hardlink_to(source)
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}:
                raise
            shutil.copyfile(source, temporary)
            _sync([temporary])
        temporary.replace(path)
    return True


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path``, for a file that is renamed before the end of the block, or else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
    finally:
        # Renaming one name of a file to another name of the same file does nothing, and leaves it.
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Name:
    path: Path
    role: str
    version: str | None
    sha256: str | None


def _led_to(folder: Path, timestamp: str | None) -> set[tuple[str, str]]:
    """Return roles and checksums of a timestamp, by its checksum, and of what it leads to, as far as that is there."""
    found = {(str(TIMESTAMP), str(timestamp))}
    waiting = list(found)
    while waiting:
        role, sha256 = waiting.pop()
        with suppress(OSError, InvalidMetadata, InvalidRole):
            lister = parse(role, (folder / f"{role}.{sha256}.json").read_bytes())
            if isinstance(lister, Snapshot | Timestamp):
                listed = {(name, meta.hashes.get("sha256", b"").hex()) for name, meta in lister.meta.items()}
                waiting += [each for each in listed - found if each[0] == SNAPSHOT]
                found |= listed
    return found


def _sync(places: Iterable[Path]) -> None:
    """Bring files, or the names in directories, to the disk, several at a time: the disk writes them together."""
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        for _ in pool.map(_sync_one, places):
            pass


def _sync_one(place: Path) -> None:
    with suppress(FileNotFoundError):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn an error of the file system into InvalidArchive, except one that concerns a single collection."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or path)
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidGun(f"{where[-60:]!r}: this file system cannot hold so long a name") from None
        raise InvalidArchive(f"{where!r} cannot be written ({error.strerror})") from None
