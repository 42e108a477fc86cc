"""Numbers in sentences: one file, two files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from notary import admin
from notary.admin.output import Output, counted

SOURCES = sorted(Path(admin.__file__).parent.rglob("*.py"))
WORDS = "collection|error|file|key|note|record|step|target|version"


@pytest.mark.parametrize(("count", "text"), [(0, "0 files"), (1, "1 file"), (2, "2 files")])
def test_one_and_many(count: int, text: str) -> None:
    assert counted(count, "file") == text


def test_the_totals_come_last_where_both_outputs_go_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "said"
    with path.open("a") as out, path.open("a", buffering=1) as err:
        said = Output(out, err, as_json=False)
        with said.table("Name", "Size") as add:
            add(["one", "1"], {})
        said.summary("1 file")
    assert path.read_text() == "Name\tSize\none\t1\n1 file\n"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_number_stands_before_a_plural_that_is_always_one(path: Path) -> None:
    found = re.findall(rf"\{{[^{{}}]+\}} (?:{WORDS})s\b.*", path.read_text())
    assert [line for line in found if "were changed by another process" not in line] == []
