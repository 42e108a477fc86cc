"""``repos export --static``: the tree that a web server serves, at every moment of an export."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_twisted

from notary.admin import static_tree
from notary.admin.command import Status
from notary.admin.commands import static_export
from notary.admin.static_tree import KEPT_SECONDS, MARKER, PING, Tree, gun_path
from notary.errors import InvalidArchive, InvalidGun
from tests.admin.conftest import admin
from tests.support.author import make_key
from tests.support.peers import clean_environment
from tests.support.stored import InMemory, Publisher

GUN = "example.com/team/app"
SCRIPT = Path(sys.executable).parent / "notary-admin"


def folder(directory: Path, gun: str = GUN) -> Path:
    return directory / "v2" / gun / "_trust" / "tuf"


def names(directory: Path, gun: str = GUN) -> set[str]:
    """The files of a collection in the tree."""
    top = folder(directory, gun)
    return {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}


def expected_names(*states: dict[str, bytes]) -> set[str]:
    """The names of the files of some states; the last state is current."""
    found = {f"{role}.json" for role in states[-1]}
    for state in states:
        for role, data in state.items():
            found.add(f"{role}.{hashlib.sha256(data).hexdigest()}.json")
            found.add(f"{json.loads(data)['signed']['version']}.{role}.json")
    return found


def assert_whole(directory: Path, *guns: str) -> dict[str, int]:
    """What a client can follow is there, in each collection; the version of each timestamp."""
    versions = {}
    for gun in guns or [GUN]:
        top = folder(directory, gun)
        if not (top / "timestamp.json").exists():
            continue
        timestamp = json.loads((top / "timestamp.json").read_bytes())["signed"]
        versions[gun] = timestamp["version"]
        listed = {"snapshot": timestamp["meta"]["snapshot"]}
        snapshot = bytes.fromhex(_hex(listed["snapshot"]))
        data = (top / f"snapshot.{snapshot.hex()}.json").read_bytes()
        listed |= json.loads(data)["signed"]["meta"]
        for role, meta in listed.items():
            data = (top / f"{role}.{_hex(meta)}.json").read_bytes()
            assert hashlib.sha256(data).hexdigest() == _hex(meta)
            version = json.loads(data)["signed"]["version"]
            assert (top / f"{version}.{role}.json").read_bytes() == data
        for path in top.rglob("*"):
            if found := re.fullmatch(r".+\.([0-9a-f]{64})\.json", path.name):
                assert hashlib.sha256(path.read_bytes()).hexdigest() == found[1], path
    return versions


def _hex(meta) -> str:
    return base64.b64decode(meta["hashes"]["sha256"]).hex()


async def export(place, tmp_path, *arguments, status=Status.OK):
    outcome = await admin(
        "repos", "export", "--static", tmp_path / "out", "--config", place.config(tmp_path), "--json", *arguments
    )
    assert outcome.status == status, outcome
    return outcome


def at(directory: Path, *, seconds_ago: float, gun: str = GUN) -> None:
    """Make all files of the tree older."""
    when = time.time() - seconds_ago
    for path in folder(directory, gun).rglob("*"):
        if path.is_file():
            os.utime(path, (when, when))


# -- what is written --------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_tree_on_every_backend(place, tmp_path):
    out = tmp_path / "out"
    publisher, other = Publisher(GUN), Publisher("example.com/team")  # a name above the other one
    publisher.author.delegate("targets/releases")
    publisher.author.delegate("targets/releases/beta")
    publisher.author.add("v1", b"one")
    for each in (publisher, other):
        await place.publish(each)
    first = dict(publisher.files)
    outcome = await export(place, tmp_path)
    assert [(record["gun"], record["problem"]) for record in outcome.records] == [("example.com/team", ""), (GUN, "")]
    assert names(out) == expected_names(first)
    for role, data in first.items():
        assert (folder(out) / f"{role}.json").read_bytes() == data
        assert (folder(out) / f"1.{role}.json").read_bytes() == data
    assert (out / "v2" / PING).read_bytes() == b"{}"
    assert_whole(out, GUN, "example.com/team")

    # nothing new: nothing is written
    assert (await export(place, tmp_path, "--prune")).records == []

    # a new publish, a new root, a delegation that goes
    del publisher.author.delegations["targets/releases/beta"]
    del publisher.author.stored["targets/releases/beta"]
    publisher.author.contents.pop("targets/releases/beta")
    del publisher.files["targets/releases/beta"]
    await place.publish(publisher)
    (record,) = (await export(place, tmp_path, "--gun", GUN)).records
    assert record["written"] > 0
    assert names(out) == expected_names(first, publisher.files)
    for role, data in publisher.files.items():
        assert (folder(out) / f"{role}.json").read_bytes() == data
    assert_whole(out)

    # what is no longer referred to goes after an hour; roots stay
    assert (await export(place, tmp_path, "--prune")).records == []
    at(out, seconds_ago=KEPT_SECONDS + 60)
    (record,) = (await export(place, tmp_path, "--prune")).records
    assert record["removed"] > 0
    assert names(out) == expected_names({"root": first["root"]}, publisher.files)
    assert not (folder(out) / "targets/releases").exists()
    assert_whole(out)

    # a deleted collection goes by --prune only, and not the one below its name
    async with place.store() as store:
        await store.delete("example.com/team")
    assert (await export(place, tmp_path)).records == []
    assert_whole(out, "example.com/team")
    (record,) = (await export(place, tmp_path, "--prune")).records
    assert (record["gun"], record["removed"]) == ("example.com/team", len(expected_names(other.files)))
    assert not (out / "v2/example.com/team/_trust").exists()
    assert_whole(out)


@pytest_twisted.ensureDeferred
async def test_a_collection_that_begins_anew(place, tmp_path):
    out = tmp_path / "out"
    await place.publish(Publisher(GUN))
    await export(place, tmp_path)
    async with place.store() as store:
        await store.delete(GUN)
    heir = Publisher(GUN)
    await place.publish(heir)
    await export(place, tmp_path)
    for role, data in heir.files.items():  # the same versions, other content
        assert (folder(out) / f"1.{role}.json").read_bytes() == data
    at(out, seconds_ago=KEPT_SECONDS + 60)
    await export(place, tmp_path, "--prune")
    assert names(out) == expected_names(heir.files)
    assert_whole(out)


@pytest_twisted.ensureDeferred
async def test_named_collections(place, tmp_path):
    await place.publish(Publisher(GUN))
    outcome = await export(place, tmp_path, "--gun", GUN, "--gun", "nobody", "--gun", GUN, status=Status.MISSING)
    assert [(record["gun"], record["problem"]) for record in outcome.records] == [
        (GUN, ""),
        ("nobody", "there is no collection nobody"),
    ]
    async with place.store() as store:
        await store.delete(GUN)
    await export(place, tmp_path, "--gun", GUN, status=Status.MISSING)
    assert names(tmp_path / "out")
    await export(place, tmp_path, "--gun", GUN, "--prune")
    assert list((tmp_path / "out/v2").iterdir()) != []
    assert not (tmp_path / "out/v2/example.com").exists()


@pytest_twisted.ensureDeferred
async def test_what_is_broken_stays_as_it_was_and_the_others_go_on(place, tmp_path):
    out = tmp_path / "out"
    good, bad = Publisher(GUN), Publisher("a/bad")
    for each in (good, bad):
        await place.publish(each)
    await export(place, tmp_path)
    old = dict(bad.files)
    made = bad.author.publish("targets")
    made["targets"] = bad.author.targets(signers=[make_key()])
    made["snapshot"] = bad.author.snapshot({**bad.author.stored, **made})
    for each, files in ((good, good.next("targets")), (bad, bad.stamped(made))):
        await place.publish(each, files)
    outcome = await export(place, tmp_path, "--prune", status=Status.FOUND)
    problems = {record["gun"]: record["problem"] for record in outcome.records}
    assert problems[GUN] == ""
    assert problems["a/bad"].startswith("targets version 2: signature: ")
    assert names(out, "a/bad") == expected_names(old)
    assert assert_whole(out, GUN, "a/bad") == {GUN: 2, "a/bad": 1}


@pytest_twisted.ensureDeferred
async def test_missing_early_roots_are_allowed_and_expiry_is_said(place, tmp_path):
    publisher = Publisher(GUN)
    publisher.author.bump("root", by=4)
    publisher.author.lifetimes["timestamp"] = timedelta(days=-1)
    await place.publish(publisher)
    outcome = await export(place, tmp_path)
    assert "clients refuse 1 collection, whose timestamp has expired" in outcome.err
    assert (folder(tmp_path / "out") / "5.root.json").exists()


@pytest_twisted.ensureDeferred
async def test_an_empty_database_removes_nothing(place, tmp_path):
    await place.publish(Publisher(GUN))
    await export(place, tmp_path)
    async with place.store() as store:
        await store.delete(GUN)
    outcome = await export(place, tmp_path, "--prune", status=Status.REFUSED)
    assert "the tree has 1 collection, and the database none of them" in outcome.err
    assert_whole(tmp_path / "out")


# -- the order of what is written -------------------------------------------------------------------------------------


class Stop(BaseException):
    """The end of the process."""


def stop_after(monkeypatch, count: int) -> list[str]:
    """Let ``count`` renames happen, and then nothing more; returns the names that were renamed."""
    done: list[str] = []
    rename = Path.replace

    def replace(self, target):
        if len(done) == count:
            raise Stop
        done.append(str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    return done


def contents(*states: dict[str, bytes], gun: str = GUN, tree: Tree):
    collection = InMemory(gun)
    for state in states:
        collection.add(state)
    return static_tree.read(collection, tree.has(gun))


def rotate_root(publisher: Publisher) -> None:
    pass


def rotate_timestamp(publisher: Publisher) -> None:
    publisher.author.rotate("timestamp", make_key())


@pytest.mark.parametrize(
    ("rotate", "last"),
    [
        pytest.param(rotate_root, ["timestamp.json", "root.json"], id="the same keys"),
        pytest.param(rotate_timestamp, ["root.json", "timestamp.json"], id="another key for timestamp"),
    ],
)
def test_every_moment_of_an_export_is_whole(tmp_path, monkeypatch, rotate, last):
    publisher = Publisher(GUN)
    publisher.author.delegate("targets/releases")
    first = publisher.next()
    rotate(publisher)
    second = publisher.next()
    count = 0
    while True:
        out = tmp_path / str(count)
        tree = Tree(out)
        tree.put(contents(first, tree=tree))
        content = contents(first, second, tree=tree)
        with monkeypatch.context() as patch:
            done = stop_after(patch, count)
            try:
                tree.put(content)
            except Stop:
                assert_whole(out)
                for role in ("root", "timestamp"):
                    assert (folder(out) / f"{role}.json").read_bytes() in {first[role], second[role]}
            else:
                break
        tree.put(contents(first, second, tree=tree))  # the next export completes it
        tree.close()
        assert_whole(out)
        assert names(out) == expected_names(first, second)
        assert all((folder(out) / f"{role}.json").read_bytes() == data for role, data in second.items())
        count += 1
    tree.close()
    assert count == len(done) == 3 * len(second)
    assert [Path(name).name for name in done[-2:]] == last


def test_every_moment_of_an_export_of_several_is_whole(tmp_path, monkeypatch):
    guns = ("example.com/a", "example.com/a/b", "example.com/c")
    publishers = [Publisher(gun) for gun in guns]
    states = [(each.next(), each.next()) for each in publishers]
    count = 0
    while True:
        out = tmp_path / str(count)
        tree = Tree(out)
        firsts = [contents(first, gun=gun, tree=tree) for gun, (first, _) in zip(guns[:2], states, strict=False)]
        tree.put(*firsts)
        both = [contents(*state, gun=gun, tree=tree) for gun, state in zip(guns, states, strict=True)]
        with monkeypatch.context() as patch:
            done = stop_after(patch, count)
            try:
                written = tree.put(*both)
            except Stop:
                assert_whole(out, *guns)
            else:
                break
        tree.put(*both)
        tree.close()
        assert assert_whole(out, *guns) == dict.fromkeys(guns, 2)
        count += 1
    tree.close()
    assert count == len(done) == sum(written)


def test_nothing_leads_to_what_may_be_lost_with_the_power(tmp_path, monkeypatch):
    """A file is on the disk before it has its name, and its name before a current file leads to it."""
    publishers = [Publisher(f"example.com/{number}") for number in range(3)]
    on_disk: set[int] = set()
    names_on_disk: set[Path] = set()
    sync, rename = os.fsync, Path.replace

    def fsync(descriptor):
        sync(descriptor)
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        if place.is_dir():
            names_on_disk.update(place.iterdir())
        else:
            on_disk.add(place.stat().st_ino)

    def replace(self, target):
        assert self.stat().st_ino in on_disk, f"the content of {target} is not on the disk"
        top = folder(tmp_path, "/".join(target.relative_to(tmp_path / "v2").parts[:2]))
        if re.fullmatch(r"[a-z/]+\.json", str(target.relative_to(top))):
            leading = [path for path in top.rglob("*.json") if re.search(r"[0-9]", path.name)]
            assert leading
            assert set(leading) <= names_on_disk, f"{target} leads to names that are not on the disk"
            parents = {each for each in top.parents if each.is_relative_to(tmp_path / "v2")} - {tmp_path / "v2"}
            assert {top, *parents} <= names_on_disk
        return rename(self, target)

    tree = Tree(tmp_path)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    for _ in range(2):
        for each in publishers:
            each.next()
        tree.put(*(contents(each.files, gun=each.gun, tree=tree) for each in publishers))
    tree.close()
    for each in publishers:
        assert all(folder(tmp_path, each.gun) / f"{role}.json" in names_on_disk for role in each.files)


@pytest_twisted.ensureDeferred
async def test_more_collections_than_are_written_together(place, tmp_path, monkeypatch):
    monkeypatch.setattr(static_export, "_COLLECTIONS_TOGETHER", 3)
    guns = [f"example.com/{number}" for number in range(7)]
    for gun in guns:
        await place.publish(Publisher(gun))
    await place.publish(Publisher("example.com/3//x"))
    outcome = await export(place, tmp_path, status=Status.FOUND)
    assert [record["gun"] for record in outcome.records] == sorted([*guns, "example.com/3//x"])
    assert assert_whole(tmp_path / "out", *guns) == dict.fromkeys(guns, 1)


def kill(command, *, once: Path, after: float) -> None:
    """Run a command, and end it some seconds after a file is there."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=clean_environment()) as process:
        while not once.exists():
            assert process.poll() is None
        time.sleep(after)
        process.send_signal(signal.SIGKILL)


def run(*command) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())


@pytest.mark.parametrize("kill_after", [0.0, 0.01, 0.03, 0.1, 0.2, 0.4])
@pytest_twisted.ensureDeferred
async def test_killed(place, tmp_path, kill_after):
    guns = [f"example.com/{number}" for number in range(8)]
    publishers = [Publisher(gun) for gun in guns]
    for each in publishers:
        await place.publish(each)
    config, out = place.config(tmp_path), tmp_path / "out"
    command = (SCRIPT, "repos", "export", "--static", out, "--prune", "--config", config, "--json")
    kill(command, once=out / "v2" / PING, after=kill_after)
    assert_whole(out, *guns)
    leftover = folder(out, guns[0]) / f".{'a' * 16}.tmp"
    leftover.parent.mkdir(parents=True, exist_ok=True)
    leftover.write_bytes(b"half")
    await export(place, tmp_path, "--prune")
    assert assert_whole(out, *guns) == dict.fromkeys(guns, 1)
    for each in publishers:
        assert names(out, each.gun) == expected_names(each.files)


# -- a directory that is not ours, names that are not possible, disks -------------------------------------------------


def test_a_directory_with_other_things(tmp_path):
    (tmp_path / "index.html").write_text("hello")
    Tree(tmp_path).close()
    (tmp_path / "v2/mine").mkdir()
    (tmp_path / "v2/mine/notes.txt").write_text("keep me")
    tree = Tree(tmp_path)
    assert list(tree.guns()) == []
    tree.close()
    assert (tmp_path / "v2/mine/notes.txt").read_text() == "keep me"


@pytest.mark.parametrize("existing", ["v2/somebody", "v2"])
@pytest_twisted.ensureDeferred
async def test_a_tree_of_somebody_else_is_refused(server_config, tmp_path, existing):
    out = tmp_path / "out"
    (out / existing).parent.mkdir(parents=True)
    (out / existing).write_text("what is this")
    (tmp_path / "server.db").touch()
    outcome = await admin("repos", "export", "--static", out, "--config", server_config)
    assert outcome.status == Status.REFUSED
    assert "holds other files" in outcome.err or "cannot be written (File exists)" in outcome.err
    assert (out / existing).read_text() == "what is this"


def test_files_that_are_not_ours_are_left_alone(tmp_path):
    publisher = Publisher(GUN)
    first, second = publisher.next(), publisher.next()
    tree = Tree(tmp_path)
    tree.put(contents(first, tree=tree))
    (folder(tmp_path) / "README").write_text("keep me")
    (folder(tmp_path) / "1.other.json").write_text("keep me")
    content = contents(first, second, tree=tree)
    tree.put(content)
    at(tmp_path, seconds_ago=2 * KEPT_SECONDS)
    tree.prune(content, time.time())
    tree.remove(GUN)
    tree.close()
    assert names(tmp_path) == {"README", "1.other.json"}


def test_one_at_a_time(tmp_path):
    tree = Tree(tmp_path)
    with pytest.raises(InvalidArchive, match="another export changes it"):
        Tree(tmp_path)
    tree.close()
    Tree(tmp_path).close()


@pytest.mark.parametrize(
    "gun",
    ["..", ".", "a/../b", "a//b", "/a", "a/", "a/.", "_trust", "a/_trust/tuf/targets", MARKER, f"{PING}/x", "é" * 200],
)
def test_names_that_a_tree_cannot_hold(gun):
    with pytest.raises(InvalidGun):
        gun_path(gun)


@pytest.mark.parametrize("gun", ["a%2Fb", "%2e%2e/x", "a:5000/b", "...", "a b", "A/b", "a\\b", "é" * 32, "-rf", "v2"])
def test_odd_names_that_it_can(tmp_path, gun):
    publisher = Publisher(gun)
    tree = Tree(tmp_path)
    tree.put(contents(publisher.next(), gun=gun, tree=tree))
    assert list(tree.guns()) == [gun]
    tree.close()
    assert names(tmp_path, gun) == expected_names(publisher.files)
    assert {path.name for path in tmp_path.iterdir()} == {"v2"}


@pytest_twisted.ensureDeferred
async def test_odd_names_in_a_database(place, tmp_path):
    for gun in (GUN, "a//b", "../../etc", "x/_trust/tuf/targets"):
        await place.publish(Publisher(gun))
    long = Publisher("long/role")
    long.author.delegate(f"targets/{'x' * 240}")
    await place.publish(long)
    outcome = await export(place, tmp_path, "--prune", status=Status.FOUND)
    assert {record["gun"] for record in outcome.records if record["problem"]} == {
        "a//b", "../../etc", "x/_trust/tuf/targets", "long/role"
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"v2"}
    assert {path.name for path in (tmp_path / "out/v2").iterdir()} == {MARKER, PING, "example.com"}


@pytest_twisted.ensureDeferred
async def test_a_disk_that_takes_no_more(place, tmp_path):
    publisher = Publisher(GUN)
    await place.publish(publisher)
    await export(place, tmp_path)
    for number in range(400):
        publisher.author.add(f"name{number}", b"content")
    await place.publish(publisher, publisher.next("targets"))
    # A limit on the size of files: to the program, a write fails as it does on a full disk.
    command = (SCRIPT, "repos", "export", "--static", tmp_path / "out", "--config", place.config(tmp_path))
    done = run("prlimit", "--fsize=50000", *command)
    assert done.returncode == Status.REFUSED, done
    assert "cannot be written (File too large)" in done.stderr
    assert assert_whole(tmp_path / "out") == {GUN: 1}
    assert not [name for name in names(tmp_path / "out") if name.endswith(".tmp")]
    await export(place, tmp_path)
    assert assert_whole(tmp_path / "out") == {GUN: 2}


def test_where_links_are_impossible_files_are_copied(tmp_path, monkeypatch):
    def no_links(self, target):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    publisher = Publisher(GUN)
    files = publisher.next()
    tree = Tree(tmp_path)
    content = contents(files, tree=tree)
    assert tree.put(content) == [len(expected_names(files))]
    assert tree.put(contents(files, tree=tree)) == [0]
    assert tree.prune(content, time.time()) == 0
    tree.close()
    assert_whole(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="nothing"),
        pytest.param([GUN], id="no file"),
        pytest.param([GUN, "file", "--static", "out"], id="both"),
        pytest.param([GUN, "file", "--prune"], id="prune an archive"),
        pytest.param([GUN, "file", "--gun", GUN], id="select for an archive"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_command_lines_that_make_no_sense(server_config, arguments):
    outcome = await admin("repos", "export", *arguments, "--config", server_config)
    assert outcome.status == Status.USAGE, outcome
