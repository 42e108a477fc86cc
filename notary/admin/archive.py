"""A collection with its history as a file: lines of JSON (docs/notary-admin.md has the format).

Rules of this module: pure, but for the streams that are arguments. The same collection makes the same bytes. An archive
that was read is a :class:`notary.tuf.collection.Collection` like any other, so that ``fsck`` can check it; one file of
it is in memory at a time. No text of the file is used as a path.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

from notary.errors import InvalidArchive, InvalidGun, InvalidMetadata, InvalidRole, MalformedJSON
from notary.tuf import canonical
from notary.tuf.canonical import Json, Members
from notary.tuf.collection import Collection, File, newest
from notary.tuf.model import MAX_VERSION, Gun, RoleName

FORMAT: Final = "notary-collection"
FORMAT_VERSION: Final = 1
MAX_LINE_BYTES: Final = 1 << 30
"""The longest line that is read. Metadata of this size in base64 is larger than any upload that a server accepts."""

_HEADER = frozenset({"format", "version", "gun", "files"})
_FILE = frozenset({"role", "version", "sha256", "data"})
_END = frozenset({"end"})


def write(collection: Collection, stream: BinaryIO) -> int:
    """Write a collection to ``stream``. Returns the number of its files."""
    digest = hashlib.sha256()

    def line(value: dict[str, Json]) -> None:
        data = canonical.dumps(value) + b"\n"
        digest.update(data)
        stream.write(data)

    files = sorted(collection.files, key=_order)
    line({"format": FORMAT, "version": FORMAT_VERSION, "gun": collection.gun, "files": len(files)})
    for file in files:
        data = collection.data(file)
        content = base64.b64encode(data).decode("ascii")
        sha256 = hashlib.sha256(data).hexdigest()
        line({"role": file.role, "version": file.version, "sha256": sha256, "data": content})
    stream.write(canonical.dumps({"end": digest.hexdigest()}) + b"\n")
    return len(files)


class Archive:
    """A collection in a stream that must stay open; ``lines`` has the number and the place of each file's line."""

    def __init__(self, gun: Gun, stream: BinaryIO, lines: dict[File, tuple[int, int]]) -> None:
        self.gun = gun
        self._stream = stream
        self._lines = lines

    @property
    def files(self) -> Sequence[File]:
        """See Collection."""
        return list(self._lines)

    def data(self, file: File) -> bytes:
        """See Collection. Raises InvalidArchive if the stream was changed after it was first read."""
        number, place = self._lines[file]
        self._stream.seek(place)
        found, data = _file(self._stream.readline(MAX_LINE_BYTES), number)
        if found != file:
            raise InvalidArchive(f"line {number}: the file was altered while it was read")
        return data


def read(stream: BinaryIO) -> Archive:
    """Read a collection from a stream that can be read again, from its beginning.

    Raises InvalidArchive if the stream is truncated, altered, or no archive.
    """
    digest = hashlib.sha256()
    lines = _lines(stream)
    first = next(lines, b"")
    header = _members(first, 1, _HEADER)
    try:
        if header.text("format") != FORMAT:
            raise InvalidArchive("this is not an exported collection")
        if header.integer("version") != FORMAT_VERSION:
            raise InvalidArchive(
                f"this file has version {header.integer('version')} of the format; expected {FORMAT_VERSION}: use the "
                "release that wrote the file"
            )
        gun, count = Gun(header.text("gun")), header.integer("files")
    except (InvalidMetadata, InvalidGun) as error:
        raise InvalidArchive(f"line 1: {error}") from None
    digest.update(first)
    places: dict[File, tuple[int, int]] = {}
    place = len(first)
    last: tuple[str, int] | None = None
    for number in range(2, count + 2):
        line = next(lines, b"")
        file, _ = _file(line, number)
        if last is not None and _order(file) <= last:
            raise InvalidArchive(f"line {number}: {file.role} version {file.version} is out of order or repeated")
        last = _order(file)
        places[file] = number, place
        place += len(line)
        digest.update(line)
    end = _members(next(lines, b""), count + 2, _END)
    try:
        if end.text("end") != digest.hexdigest():
            raise InvalidArchive("the file was altered after it was written: its checksum does not match")
    except InvalidMetadata as error:
        raise InvalidArchive(f"line {count + 2}: {error}") from None
    if next(lines, b""):
        raise InvalidArchive(f"line {count + 3}: there is data after the last line")
    return Archive(gun, stream, places)


def continuation(archive: Sequence[File], stored: Sequence[File]) -> list[File]:
    """Return the files of an archive that are newer than ``stored``, the stored files of the same collection.

    Raises InvalidArchive if the archive does not continue the stored collection: it must have the newest stored version
    of each role, and the same content for every version that both have.
    """
    offered = {(file.role, file.version): file.sha256 for file in archive}
    there = newest(stored)
    for file in stored:
        sha256 = offered.get((file.role, file.version))
        if sha256 is None and there[file.role] != file:
            continue
        if sha256 != file.sha256:
            what = "is not in the file" if sha256 is None else "has other content in the file"
            raise InvalidArchive(
                f"the collection exists, and its {file.role} version {file.version} {what}: the file does not continue "
                "the stored collection; to replace the collection, delete it first"
            )
    return [file for file in archive if file.role not in there or file.version > there[file.role].version]


def _order(file: File) -> tuple[str, int]:
    return file.role, file.version


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    while line := stream.readline(MAX_LINE_BYTES):
        yield line


def _members(line: bytes, number: int, names: frozenset[str]) -> Members:
    if not line.endswith(b"\n"):
        raise InvalidArchive(f"line {number}: the file ends too early: it is truncated")
    try:
        return Members(canonical.parse(line), names, f"line {number}", closed=True)
    except (MalformedJSON, InvalidMetadata) as error:
        raise InvalidArchive(f"line {number}: this is not a line of an exported collection: {error}") from None


def _file(line: bytes, number: int) -> tuple[File, bytes]:
    members = _members(line, number, _FILE)
    try:
        role, version = RoleName(members.text("role")), members.integer("version")
        data = base64.b64decode(members.text("data"), validate=True)
        sha256 = members.text("sha256")
    except (InvalidMetadata, InvalidRole, binascii.Error, ValueError) as error:
        raise InvalidArchive(f"line {number}: {error}") from None
    if not 1 <= version <= MAX_VERSION:
        raise InvalidArchive(f"line {number}: version {version} is not possible")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InvalidArchive(f"line {number}: the content of {role} version {version} was altered")
    return File(str(role), version, sha256, len(data)), data
