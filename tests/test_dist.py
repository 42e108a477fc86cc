"""``make dist``: the same bytes for one commit, and a wheel that puts in place all that belongs to the program."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree, ignore_patterns
from types import ModuleType

import pytest

from etc.dist import completion
from etc.manual import pages
from tests.support.configurations import read_server, read_signer
from tests.test_layout import ROOT

LEFT_OUT = ignore_patterns(
    ".git", ".venv", "build", "dist", "var", "__pycache__", ".*_cache", ".hypothesis", ".coverage*", "dropin.cache"
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
EPOCH = "1700000000"


@dataclass
class Built:
    """What one build made."""

    wheel: Path
    archive: Path
    said: str

    @property
    def hashes(self) -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in (self.wheel, self.archive)]


def build(folder: Path, mask: int) -> Built:
    """Build from a copy of the tree in which every time is new, and modes follow ``mask``."""
    tree = folder / "tree"
    copytree(
        ROOT,
        tree,
        ignore=LEFT_OUT,
        copy_function=lambda source, target: Path(target).write_bytes(Path(source).read_bytes()),
    )
    environment = os.environ | {"SOURCE_DATE_EPOCH": EPOCH, "GIT_COMMIT": COMMIT, "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "etc/dist.py", folder / "made"],
        cwd=tree,
        env=environment,
        umask=mask,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (archive,) = (list((folder / "made").glob(each)) for each in ("*.whl", "*.tar.gz"))
    return Built(wheel, archive, done.stdout)


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> list[Built]:
    return [build(tmp_path_factory.mktemp(name), mask) for name, mask in (("one", 0o022), ("another-place", 0o077))]


@pytest.fixture(scope="module")
def installed(builds: list[Built], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index")
    subprocess.run((*pip, "--no-compile", "--target", folder, builds[0].wheel), check=True)
    return folder


def admin(installed: Path, *arguments: object) -> tuple[int, str, str]:
    """Run the ``notary-admin`` of the installed wheel."""
    program = "from notary.admin.start import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(installed)},
        cwd=installed,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def made() -> dict[str, str]:
    """What the programs write themselves, by its path in the tree."""
    return {f"build/man/{name}": text for name, text in pages().items()} | {
        f"build/completion/{name}": text for name, text in completion().items()
    }


def hook() -> ModuleType:
    """The build hook, which imports hatchling."""
    spec = importlib.util.spec_from_file_location("stamp", ROOT / "etc/stamp.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_builds_are_equal_in_every_byte(builds: list[Built]) -> None:
    assert builds[0].hashes == builds[1].hashes
    assert all(each in builds[0].said for each in builds[0].hashes)


def test_twine_has_nothing_to_say(builds: list[Built]) -> None:
    # It colours its words, and breaks lines anywhere.
    said = "".join(re.sub(r"\x1b\[[0-9;]*m", "", builds[0].said).split())
    assert all(f"Checking{path}:PASSED" in said for path in (builds[0].wheel, builds[0].archive))
    assert "warning" not in said


def test_the_archive_has_the_tree_and_what_the_programs_write(builds: list[Built]) -> None:
    with tarfile.open(builds[0].archive) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        assert {member.mtime for member in archive.getmembers()} == {int(EPOCH)}
    assert set(made()) <= names
    tree = builds[0].archive.parents[1] / "tree"
    kept = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert kept - names == set(), "name it in pyproject.toml: a test, or the build, may read it"
    assert "notary/commit.txt" in names


def test_the_wheel_has_all_that_the_program_reads(builds: list[Built]) -> None:
    with zipfile.ZipFile(builds[0].wheel) as wheel:
        names = set(wheel.namelist())
        assert wheel.read("notary/commit.txt").decode().strip() == COMMIT
        for source, name in hook().PROGRAMS.items():
            (program,) = (each for each in names if each.endswith(f".data/scripts/{name}"))
            assert wheel.read(program) == (ROOT / source).read_bytes()
        (metadata,) = (wheel.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    packaged = {str(path.relative_to(ROOT)) for path in (ROOT / "notary").rglob("*") if path.is_file()}
    packaged = {name for name in packaged if "__pycache__" not in name}
    assert packaged <= names
    assert {"notary/py.typed", "twisted/plugins/notary_plugins.py"} <= names
    beside = re.compile(r"\.(?:dist-info|data)/")
    assert {name.partition("/")[0] for name in names if not beside.search(name)} == {"notary", "twisted"}
    extras = re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE)
    assert {"mysql", "postgres", "bugsnag", "manhole", "all"} <= set(extras)


def sources() -> Iterator[tuple[str, str]]:
    """What the wheel must have below ``notary/files``, with its content."""
    written = made()
    for pattern, place in hook().FILES.items():
        found = {name: text for name, text in written.items() if Path(name).match(pattern)}
        found |= {
            str(path.relative_to(ROOT)): path.read_text() for path in ROOT.glob(pattern) if "build/" not in pattern
        }
        assert found, f"{pattern}: nothing in the tree matches"
        for name, text in found.items():
            yield (place + Path(name).name if place.endswith("/") else place), text


def undated(text: str) -> str:
    """A manual page without the day on which it was made."""
    return re.sub(r'^(\.TH .* 8) "[0-9-]+"', r"\1", text)


def test_the_files_are_listed_and_put_in_place(installed: Path, tmp_path: Path) -> None:
    wanted = dict(sources())
    assert len(wanted) >= len(made()) + 12
    status, listed, _ = admin(installed, "files", "--list", "--json")
    assert (status, {json.loads(line)["file"] for line in listed.splitlines()}) == (0, set(wanted))
    status, said, errors = admin(installed, "files", "--install", tmp_path)
    assert status == 0, said + errors
    found = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    assert {name: undated(path.read_text()) for name, path in found.items()} == {
        name: undated(text) for name, text in wanted.items()
    }
    assert {path.stat().st_mode & 0o777 for path in found.values()} == {0o644}


def test_the_manual_page_is_of_the_day_of_the_commit(installed: Path) -> None:
    page = (installed / "notary/files/share/man/man8/notary-server.8").read_text()
    assert page.startswith('.TH NOTARY-SERVER 8 "2023-11-14"')


def test_sample_configurations_are_those_of_the_page_and_are_valid() -> None:
    page = (ROOT / "docs/deployment.md").read_text()
    names = dict(re.findall(r"^(\w+)=(\S+)", page.partition("## Names")[2].partition("## Install")[0], re.MULTILINE))
    url = "user:password@tcp(database:3306)/notary?parseTime=true"
    for daemon, read, environment in (
        ("server", read_server, {"NOTARY_SERVER_STORAGE_DB_URL": url}),
        ("signer", read_signer, {"NOTARY_SIGNER_STORAGE_DB_URL": url, "NOTARY_SIGNER_PASSPHRASE_2026": "x" * 20}),
    ):
        block = page.partition(f"cat >{daemon}-config.json <<END\n")[2].partition("END\n")[0]
        text = (ROOT / f"etc/config/{daemon}-config.json").read_text()
        assert text == re.sub(r"\$(\w+)", lambda found: names[found[1]], block)
        read(json.loads(text), **environment)
