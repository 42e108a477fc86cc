"""Numbers in sentences: one file, two files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from notary import admin
from notary.admin.output import counted

SOURCES = sorted(Path(admin.__file__).parent.rglob("*.py"))
WORDS = "collection|error|file|key|note|record|step|target|version"


@pytest.mark.parametrize(("count", "text"), [(0, "0 files"), (1, "1 file"), (2, "2 files")])
def test_one_and_many(count: int, text: str) -> None:
    assert counted(count, "file") == text


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_number_stands_before_a_plural_that_is_always_one(path: Path) -> None:
    found = re.findall(rf"\{{[^{{}}]+\}} (?:{WORDS})s\b.*", path.read_text())
    assert [line for line in found if "were changed by another process" not in line] == []
