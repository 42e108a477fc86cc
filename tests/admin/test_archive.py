"""``repos export`` and ``import``: the same collection comes out that went in, and nothing else gets in."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tracemalloc
from contextlib import contextmanager
from datetime import timedelta

import pytest
import pytest_twisted
from twisted.internet import reactor

from notary.admin import archive
from notary.admin.command import Status
from notary.errors import InvalidArchive
from notary.storage.open import open_inventory
from notary.storage.sql.dialect import PoolSettings
from notary.tuf import canonical
from notary.tuf.collection import File
from notary.tuf.model import TARGETS, Gun
from tests.admin.conftest import admin
from tests.support.author import flip_bit, make_root_key
from tests.support.stored import InMemory, Publisher

GUN = "example.com/team/app"


def exported(rounds: int = 2) -> bytes:
    publisher = Publisher(GUN)
    publisher.author.delegate("targets/releases")
    stored = InMemory(GUN)
    for _ in range(rounds):
        stored.add(publisher.next())
    stream = io.BytesIO()
    archive.write(stored, stream)
    return stream.getvalue()


def sealed(*lines: dict) -> bytes:
    """A file of these lines, with an end that fits: what somebody makes who knows the format."""
    body = b"".join(canonical.dumps(line) + b"\n" for line in lines)
    return body + canonical.dumps({"end": hashlib.sha256(body).hexdigest()}) + b"\n"


def lines_of(data: bytes) -> list[dict]:
    return [json.loads(line) for line in data.splitlines()[:-1]]


# -- the format -------------------------------------------------------------------------------------------------------


def test_the_same_collection_makes_the_same_bytes():
    data = exported()
    stream = io.BytesIO()
    archive.write(archive.read(io.BytesIO(data)), stream)
    assert stream.getvalue() == data
    assert sealed(*lines_of(data)) == data
    header, first = lines_of(data)[:2]
    assert header == {"format": "notary-collection", "version": 1, "gun": GUN, "files": 10}
    content = base64.b64decode(first["data"])
    assert (first["role"], first["version"], first["sha256"]) == ("root", 1, hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("kept", ["nothing", "half a line", "a line", "all but the end", "all but the last byte"])
def test_what_was_cut_off(kept):
    data = exported()
    first, end = data.index(b"\n") + 1, data.rindex(b"\n", 0, -1) + 1
    lengths = {"nothing": 0, "half a line": first + 50, "a line": first, "all but the end": end}
    with pytest.raises(InvalidArchive, match="truncated"):
        archive.read(io.BytesIO(data[: lengths.get(kept, len(data) - 1)]))


def test_what_was_altered():
    data = exported(1)
    for bit in range(0, 8 * len(data), 8 * 41 + 3):
        with pytest.raises(InvalidArchive):
            archive.read(io.BytesIO(flip_bit(data, bit)))


def _change(number: int, **members):
    def change(lines: list[dict]) -> list[dict]:
        lines[number].update(members)
        return lines

    return change


_NAME = {"role": "../../etc/passwd"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(_change(0, format="tar"), "not an exported collection", id="format"),
        pytest.param(_change(0, version=2), "version 2 of the format", id="format version"),
        pytest.param(_change(0, gun=""), "needs a name", id="no gun"),
        pytest.param(_change(0, gun="a*b"), "must not hold", id="bad gun"),
        pytest.param(_change(0, files=9), "line 11", id="fewer files"),
        pytest.param(_change(0, files=11), "line 12", id="more files"),
        pytest.param(_change(0, files=-1), "line 2|line 1", id="negative files"),
        pytest.param(_change(0, note="x"), "line 1", id="another member"),
        pytest.param(_change(1, **_NAME), "not the name of a role", id="name that escapes"),
        pytest.param(_change(1, role="/root"), "not the name of a role", id="absolute name"),
        pytest.param(_change(1, role="targets/../root"), "not the name of a role", id="dots inside"),
        pytest.param(_change(1, version=0), "version 0 is not possible", id="version 0"),
        pytest.param(_change(1, version=2**31), "is not possible", id="version too large"),
        pytest.param(_change(1, version="1"), "line 2", id="version as text"),
        pytest.param(_change(1, sha256="ab" * 32), "was altered", id="checksum"),
        pytest.param(_change(1, data="*"), "line 2", id="no base64"),
        pytest.param(lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "out of order", id="order"),
        pytest.param(lambda lines: [*lines[:2], lines[1], *lines[3:]], "out of order or repeated", id="twice"),
        pytest.param(lambda lines: [], "not a line|truncated|line 1", id="end alone"),
    ],
)
def test_what_was_made_up(change, expected):
    with pytest.raises(InvalidArchive, match=expected):
        archive.read(io.BytesIO(sealed(*change(lines_of(exported())))))


@pytest.mark.parametrize("more", [b"{}\n", b"x", b"\n"])
def test_more_after_the_end(more):
    with pytest.raises(InvalidArchive, match="after the last line"):
        archive.read(io.BytesIO(exported() + more))


@pytest.mark.parametrize("data", [b"PK\x03\x04" + b"\0" * 100, b"\n", b"[]\n", b"null\n", b"[" * 100_000 + b"\n"])
def test_something_else(data):
    with pytest.raises(InvalidArchive):
        archive.read(io.BytesIO(data))


# -- the commands -----------------------------------------------------------------------------------------------------


async def export(place, tmp_path, name: str = "app.jsonl"):
    file = tmp_path / name
    outcome = await admin("repos", "export", GUN, file, "--config", place.config(tmp_path))
    assert outcome.status == Status.OK, outcome.err
    return file


async def take(place, tmp_path, file, *more, **sections):
    return await admin("repos", "import", file, "--json", *more, "--config", place.config(tmp_path, **sections))


async def contents(place) -> list[tuple]:
    return sorted(await place.all("SELECT role, version, sha256, data FROM tuf_files WHERE gun == ?", GUN))


@pytest_twisted.ensureDeferred
async def test_out_and_in_again(place, tmp_path):
    publisher = Publisher(GUN)
    author = publisher.author
    author.delegate("targets/releases")
    author.lifetimes["targets"] = timedelta(days=-3)  # expired is allowed
    rounds = [publisher.next()]
    author.rotate("root", make_root_key(GUN))
    rounds += [publisher.next("root"), publisher.next("targets/releases")]
    await place.publish(publisher, *rounds)
    before = await contents(place)
    file = await export(place, tmp_path)
    assert (await admin("repos", "delete", GUN, "--yes", "--config", place.config(tmp_path))).status == Status.OK
    dry = await take(place, tmp_path, file, "--dry-run")
    assert (dry.records, await place.rows(GUN)) == (
        [{"gun": GUN, "files": len(before), "new": len(before), "imported": False}], []
    )  # fmt: skip
    outcome = await take(place, tmp_path, file)
    assert outcome.status == Status.OK, outcome.err
    assert await contents(place) == before
    assert (await export(place, tmp_path, "again.jsonl")).read_bytes() == file.read_bytes()
    assert (await admin("fsck", "--config", place.config(tmp_path))).status == Status.OK
    feed = await place.all("SELECT category, version FROM changefeed WHERE gun == ? ORDER BY id", GUN)
    assert feed[-4:] == [("deletion", 0), ("update", 1), ("update", 2), ("update", 3)]
    same = await take(place, tmp_path, file)
    assert (same.status, same.records[0]["new"]) == (Status.OK, 0)


@pytest_twisted.ensureDeferred
async def test_a_continuation(place, tmp_path):
    publisher = Publisher(GUN)
    await place.publish(publisher, publisher.next(), publisher.next())
    older = await export(place, tmp_path, "older.jsonl")
    await place.publish(publisher, publisher.next("targets"))
    newer = await export(place, tmp_path, "newer.jsonl")
    after = await contents(place)
    refused = await take(place, tmp_path, older)
    assert refused.status == Status.REFUSED
    assert "version 3 is not in the file" in refused.err
    assert await contents(place) == after
    await admin("repos", "delete", GUN, "--yes", "--config", place.config(tmp_path))
    await take(place, tmp_path, older)
    # Some of the history may be gone from where it is to be continued.
    await place.execute("DELETE FROM tuf_files WHERE gun == ? AND role == ? AND version = ?", GUN, "targets", 1)
    outcome = await take(place, tmp_path, newer)
    assert (outcome.status, outcome.records[0]["new"]) == (Status.OK, 3), outcome.err
    assert len(await place.rows(GUN)) == len(after) - 1


@pytest_twisted.ensureDeferred
async def test_another_collection_of_that_name(place, tmp_path):
    await place.publish(Publisher(GUN))
    file = await export(place, tmp_path)
    await admin("repos", "delete", GUN, "--yes", "--config", place.config(tmp_path))
    await place.publish(Publisher(GUN))
    before = await contents(place)
    refused = await take(place, tmp_path, file)
    assert refused.status == Status.REFUSED
    assert "has other content in the file" in refused.err
    assert await contents(place) == before


@pytest_twisted.ensureDeferred
async def test_files_that_are_there_or_not(place, tmp_path):
    await place.publish(Publisher(GUN))
    file = await export(place, tmp_path)
    data = file.read_bytes()
    again = await admin("repos", "export", GUN, file, "--config", place.config(tmp_path))
    assert (again.status, "File exists" in again.err, file.read_bytes()) == (Status.REFUSED, True, data)
    nowhere = await admin("repos", "export", GUN, tmp_path / "no" / "file", "--config", place.config(tmp_path))
    assert (nowhere.status, "No such file" in nowhere.err) == (Status.REFUSED, True)
    nothing = await take(place, tmp_path, tmp_path / "nothing")
    assert (nothing.status, "No such file" in nothing.err) == (Status.REFUSED, True)


@pytest_twisted.ensureDeferred
async def test_a_broken_collection_is_not_exported(place, tmp_path):
    await place.publish(Publisher(GUN))
    await place.execute("DELETE FROM tuf_files WHERE gun == ? AND role == ?", GUN, "targets")
    outcome = await admin("repos", "export", GUN, tmp_path / "file", "--config", place.config(tmp_path))
    assert outcome.status == Status.REFUSED
    assert "missing: targets" in outcome.err
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        pytest.param(
            lambda p: {"targets": p.author.targets(signers=[make_root_key(GUN)])}, "signature", id="signature"
        ),
        pytest.param(lambda p: {"root": p.author.root(signers=[make_root_key(GUN)])}, "root-chain", id="root"),
        pytest.param(lambda p: {"targets": b"{}"}, "malformed", id="no metadata"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_forged_file_is_not_taken(place, tmp_path, spoil, expected):
    publisher = Publisher(GUN)
    author = publisher.author
    author.first()
    made = {**author.stored, **spoil(publisher)}
    snapshot = author.snapshot(made)
    files = {**made, "snapshot": snapshot, "timestamp": author.timestamp(snapshot)}
    lines = [{"format": "notary-collection", "version": 1, "gun": GUN, "files": 4}]
    lines += [
        {
            "role": role,
            "version": 1,
            "sha256": hashlib.sha256(data).hexdigest(),
            "data": base64.b64encode(data).decode(),
        }
        for role, data in sorted(files.items())
    ]
    file = tmp_path / "file"
    file.write_bytes(sealed(*lines))
    outcome = await take(place, tmp_path, file)
    assert outcome.status == Status.REFUSED
    assert f"({expected}: " in outcome.err
    assert await place.rows(GUN) == []


@pytest_twisted.ensureDeferred
async def test_a_damaged_file_is_not_taken(place, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(exported()[:-40])
    outcome = await take(place, tmp_path, file)
    assert outcome.status == Status.REFUSED
    assert f"{str(file)!r}: line 12: the file ends too early" in outcome.err
    assert await place.rows(GUN) == []


@pytest_twisted.ensureDeferred
async def test_only_what_the_server_holds_is_taken(place, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(exported())
    refused = await take(place, tmp_path, file, repositories={"gun_prefixes": ["docker.io/"]})
    assert refused.status == Status.REFUSED
    assert "only GUNs that begin with docker.io/" in refused.err
    taken = await take(place, tmp_path, file, repositories={"gun_prefixes": ["docker.io/", "example.com/"]})
    assert taken.status == Status.OK


# -- memory -----------------------------------------------------------------------------------------------------------

FILE_BYTES, FILES = 1_000_000, 40


class Large(InMemory):
    """A collection whose files are made when they are asked for."""

    def __init__(self, gun: str) -> None:
        super().__init__(gun)
        for version in range(1, FILES + 1):
            data = self._content(version)
            self.contents[File("targets", version, hashlib.sha256(data).hexdigest(), len(data))] = b""

    def data(self, file: File) -> bytes:
        return self._content(file.version)

    def _content(self, version: int) -> bytes:
        return bytes([version]) * FILE_BYTES


@contextmanager
def peak_of_a_few_files():
    """Nothing in the block holds more than a few files at a time, with what encoding them takes."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < FILES * FILE_BYTES / 2


def test_reading_holds_one_file_at_a_time(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as stream:
        archive.write(Large(GUN), stream)
    with path.open("rb") as stream, peak_of_a_few_files():
        found = archive.read(stream)
        for file in found.files:
            assert found.data(file)[:1] == bytes([file.version])


@pytest_twisted.ensureDeferred
async def test_storing_holds_one_file_at_a_time(place):
    source = Large(GUN)
    inventory = await open_inventory(place.backend, place.db_url, reactor, PoolSettings(connections=1))
    try:
        with peak_of_a_few_files():
            await inventory.add(source, source.files, None)
    finally:
        await inventory.close()
    assert await place.rows(GUN) == [("targets", version) for version in range(1, FILES + 1)]
    async with place.store() as store:
        stored = await store.by_version(Gun(GUN), TARGETS, FILES)
        assert stored.data == source.data(source.files[-1])


def test_a_file_that_is_altered_after_it_was_verified(tmp_path):
    path = tmp_path / "archive"
    path.write_bytes(exported())
    with path.open("r+b") as stream:
        found = archive.read(stream)
        place = path.read_bytes().index(b'"data":"', path.read_bytes().index(b'"role":"targets"') - 4000)
        stream.seek(place + 8)
        stream.write(b"AAAA")
        with pytest.raises(InvalidArchive, match="altered"):
            _ = [found.data(file) for file in found.files]


@pytest_twisted.ensureDeferred
async def test_a_pipe_is_imported(place, tmp_path):
    """What cannot be read twice is kept meanwhile: `xz -dc app.jsonl.xz | notary-admin repos import /dev/stdin`."""
    data = exported()
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    try:
        outcome = await admin("repos", "import", f"/dev/fd/{reader}", "--config", place.config(tmp_path))
    finally:
        os.close(reader)
    assert (outcome.status, outcome.err) == (Status.OK, "")
    assert "stored 10 of 10 files" in outcome.out
