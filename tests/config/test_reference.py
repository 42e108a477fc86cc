"""docs/configuration.md is the page that the table makes."""

from __future__ import annotations

from pathlib import Path

from notary import config
from notary.config.__main__ import reference


def test_the_reference_documentation_is_current() -> None:
    page = Path(config.__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text("utf-8") == reference(), "run: python -m notary.config > docs/configuration.md"
