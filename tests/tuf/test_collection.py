"""A stored collection as a whole: which files are the newest, and what a reader gets by following the checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest

from notary.errors import InvalidMetadata, InvalidRole, NotFound
from notary.tuf import collection
from notary.tuf.collection import Current, File, Index
from notary.tuf.model import Root, Snapshot, Targets, Timestamp
from tests.support.author import Author, dropping, make_key, setting
from tests.support.collection import GUN, NOW


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Stored:
    """A collection of (role, version, bytes), in this order; ``unrecorded`` names the roles without a checksum."""

    gun = GUN

    def __init__(self, *rows: tuple[str, int, bytes], unrecorded: tuple[str, ...] = ()) -> None:
        self.content = {
            File(role, version, None if role in unrecorded else digest(data), len(data)): data
            for role, version, data in rows
        }
        self.files = list(self.content)
        self.was_read: list[str] = []

    def data(self, file: File) -> bytes:
        self.was_read.append(file.role)
        return self.content[file]

    def file(self, role: str, version: int = 1) -> File:
        return next(file for file in self.files if (file.role, file.version) == (role, version))


@pytest.fixture
def author() -> Author:
    author = Author(GUN, now=NOW)
    author.delegate("targets/a", make_key())
    author.first()
    return author


@pytest.fixture
def files(author: Author) -> dict[str, bytes]:
    return {**author.stored, "timestamp": author.timestamp(author.stored["snapshot"])}


def rows(files: Mapping[str, bytes], version: int = 1) -> list[tuple[str, int, bytes]]:
    return [(role, version, data) for role, data in files.items()]


@pytest.mark.parametrize(
    ("role", "kind"),
    [
        ("root", Root),
        ("targets", Targets),
        ("targets/a", Targets),
        ("snapshot", Snapshot),
        ("timestamp", Timestamp),
    ],
)
def test_a_stored_file_is_read_as_its_role_says(files, role, kind):
    read = collection.parse(role, files[role])
    assert type(read) is kind
    assert read.envelope.data == files[role]
    assert getattr(read, "role", role) == role
    other = "targets" if role == "root" else "root"
    with pytest.raises(InvalidMetadata, match=f"^{role}: expected type"):
        collection.parse(role, files[other])
    with pytest.raises(InvalidMetadata, match=f"^the stored {role} is not metadata: not JSON"):
        collection.parse(role, b"")


def test_a_stored_file_of_no_role_is_refused(files):
    with pytest.raises(InvalidRole):
        collection.parse("mirrors", files["root"])


@pytest.mark.parametrize("versions", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
def test_the_newest_file_of_a_role_has_the_highest_version(versions):
    files = [File(role, version, None, 0) for version in versions for role in ("root", "no role")]
    assert collection.newest(files) == {"root": File("root", 3, None, 0), "no role": File("no role", 3, None, 0)}


def test_readers_get_what_timestamp_and_snapshot_lead_to(author, files):
    old = rows(files)
    author.publish("targets")
    newer = author.stored | {"timestamp": author.timestamp(author.stored["snapshot"])}
    author.bump("targets")
    stored = Stored(
        *old,
        *[(role, 2, newer[role]) for role in ("targets", "snapshot", "timestamp")],
        ("targets", 3, author.targets()),
    )
    expected = {"root": 1, "targets": 2, "targets/a": 1, "snapshot": 2, "timestamp": 2}
    files_by_role = {role: stored.file(role, version) for role, version in expected.items()}
    assert collection.current(stored) == Current(files_by_role, {})


def test_only_a_checksum_that_was_not_recorded_is_computed(files):
    stored = Stored(*rows(files), unrecorded=("targets", "snapshot"))
    index = Index(stored)
    assert stored.was_read == ["targets", "snapshot"]
    assert collection.current(stored, index).files == {role: stored.file(role) for role in files}
    assert stored.was_read == ["targets", "snapshot", "timestamp", "snapshot"]
    timestamp, snapshot = stored.file("timestamp"), stored.file("snapshot")
    assert index.parsed == {
        timestamp: collection.parse("timestamp", files["timestamp"]),
        snapshot: collection.parse("snapshot", files["snapshot"]),
    }


def test_what_is_listed_and_missing_is_told_by_its_checksum(author, files):
    """A file counts only under its own role and with its own bytes."""
    other = author.targets(edit=setting("version", to=7))
    stored = Stored(*rows(files | {"targets": other, "targets/a": files["root"]}))
    found = collection.current(stored)
    assert found.absent == {"targets": digest(files["targets"]), "targets/a": digest(files["targets/a"])}
    assert set(found.files) == {"root", "snapshot", "timestamp"}


def test_a_listed_role_without_sha256_is_missing(author, files):
    snapshot = author.snapshot(author.stored, edit=dropping("meta", "targets/a", "hashes", "sha256"))
    stored = Stored(*rows(files | {"snapshot": snapshot, "timestamp": author.timestamp(snapshot)}))
    assert collection.current(stored).absent == {"targets/a": ""}


def test_of_a_timestamp_only_the_snapshot_counts(author, files):
    """Wherever it stands among the roles that the timestamp lists."""
    meta = {"hashes": {}, "length": 1}
    timestamp = author.timestamp(
        files["snapshot"], edit=lambda signed: signed.update(meta={"a": meta, **signed["meta"], "targets": meta})
    )
    stored = Stored(*rows(files | {"timestamp": timestamp}))
    there, absent = Index(stored).listed(stored.file("timestamp"))
    assert (there, absent) == ({"snapshot": stored.file("snapshot")}, {})
    assert set(collection.current(stored).files) == set(files)


@pytest.mark.parametrize("role", ["root", "targets", "targets/a"])
def test_only_timestamp_and_snapshot_list_files(files, role):
    stored = Stored(*rows(files))
    with pytest.raises(InvalidMetadata, match=f"^{role} lists no files$"):
        Index(stored).listed(stored.file(role))


def test_a_collection_without_a_beginning_is_not_found(files):
    with pytest.raises(NotFound, match=r"^there is no timestamp$"):
        collection.current(Stored(*rows({role: data for role, data in files.items() if role != "timestamp"})))
    missing = f"there is no snapshot with the checksum that the timestamp lists \\({digest(files['snapshot'])}\\)"
    with pytest.raises(NotFound, match=f"^{missing}$"):
        collection.current(Stored(*rows(files | {"snapshot": files["root"]})))
    with pytest.raises(InvalidMetadata, match=r"^the stored timestamp is not metadata: "):
        collection.current(Stored(*rows(files | {"timestamp": b""})))
