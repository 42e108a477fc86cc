"""What the tests of key-encrypting keys share."""

from __future__ import annotations

import pytest

from tests.support.softhsm import Tokens


@pytest.fixture
def tokens(tmp_path, monkeypatch) -> Tokens:
    return Tokens.make(tmp_path / "hsm").seen_by(monkeypatch)
