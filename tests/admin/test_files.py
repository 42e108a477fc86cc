"""``notary-admin files`` on a folder as a wheel has it; that of a real wheel is in tests/test_dist."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted

from notary.admin.commands import files
from tests.admin.conftest import admin


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "files"
    for name in ("share/man/man8/a.8", "lib/b.service"):
        path = made / name
        path.parent.mkdir(parents=True)
        path.write_text(name)
    monkeypatch.setattr(files, "FOLDER", made)
    return made


@pytest_twisted.ensureDeferred
async def test_a_clone_has_none_and_says_where_they_are() -> None:
    outcome = await admin("files")
    assert (outcome.status, outcome.out) == (4, "")
    assert "a clone of the repository has them in etc/ and docs/" in outcome.err


@pytest.mark.usefixtures("folder")
@pytest_twisted.ensureDeferred
async def test_a_list() -> None:
    for arguments in ((), ("--list",)):
        outcome = await admin("files", *arguments)
        assert (outcome.status, outcome.out) == (0, "File\nlib/b.service\nshare/man/man8/a.8\n")


@pytest.mark.usefixtures("folder")
@pytest_twisted.ensureDeferred
async def test_what_differs_is_written_and_nothing_else_is_touched(tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    outcome = await admin("files", "--install", prefix)
    assert outcome.out == "File\tResult\nlib/b.service\twritten\nshare/man/man8/a.8\twritten\n"
    (prefix / "lib/b.service").write_text("changed")
    (prefix / "lib/c.service").write_text("somebody's")
    outcome = await admin("files", "--install", prefix)
    assert outcome.out == "File\tResult\nlib/b.service\twritten\nshare/man/man8/a.8\tup to date\n"
    assert outcome.err == f"1 file written, 1 up to date, below {prefix}\n"
    assert {str(path.relative_to(prefix)): path.read_text() for path in prefix.rglob("*") if path.is_file()} == {
        "lib/b.service": "lib/b.service",
        "lib/c.service": "somebody's",
        "share/man/man8/a.8": "share/man/man8/a.8",
    }


@pytest.mark.usefixtures("folder")
@pytest_twisted.ensureDeferred
async def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "prefix").mkdir()
    (tmp_path / "prefix/lib").write_text("a file where a folder must be")
    outcome = await admin("files", "--install", tmp_path / "prefix")
    assert outcome.status == 74
    assert outcome.err.startswith(f"notary-admin: {tmp_path}/prefix/lib/b.service: cannot be written: ")


@pytest.mark.usefixtures("folder")
@pytest_twisted.ensureDeferred
async def test_one_thing_at_a_time(tmp_path: Path) -> None:
    outcome = await admin("files", "--list", "--install", tmp_path / "prefix")
    assert (outcome.status, (tmp_path / "prefix").exists()) == (2, False)
