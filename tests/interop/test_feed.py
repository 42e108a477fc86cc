"""The changefeed of all collections while two of our servers and a Go server write to one database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.support.feedscene import Scene, scene
from tests.support.peers import Certificates


@pytest.fixture(params=["mariadb", "postgresql"])
def everybody(request: pytest.FixtureRequest, certificates: Certificates, tmp_path: Path) -> Any:
    with scene(request.getfixturevalue(request.param), certificates, tmp_path) as made:
        yield made


@pytest_twisted.ensureDeferred
async def test_a_consumer_sees_every_record_once_and_in_order(reactor: Any, everybody: Scene) -> None:
    await everybody.run(reactor, publishers=12, total=150, pause_seconds=0.02, kill_seconds=0)
    assert everybody.failed == 0 or everybody.go.starts > 1  # a Go server may crash under concurrent publishers
