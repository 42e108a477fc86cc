"""The changefeed of all collections while servers are killed in the middle of publishes, and a Go server writes too.

``NOTARY_FEED_PUBLISHES`` says how many publishes there are, ``NOTARY_KILL_SECONDS`` how often a server is killed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.interop.conftest import certificates, reactor
from tests.support.databases import MariaDB, PostgreSQL
from tests.support.feedscene import Scene, scene
from tests.support.peers import Certificates

__all__ = ["certificates", "reactor"]

PUBLISHES = int(os.environ.get("NOTARY_FEED_PUBLISHES", "2000"))
KILL_SECONDS = float(os.environ.get("NOTARY_KILL_SECONDS", "3"))


@pytest.fixture(params=[MariaDB, PostgreSQL], ids=["mariadb", "postgresql"])
def everybody(request: pytest.FixtureRequest, certificates: Certificates, tmp_path: Path) -> Any:
    with request.param() as database, scene(database, certificates, tmp_path) as made:
        yield made


@pytest_twisted.ensureDeferred
async def test_no_kill_makes_a_consumer_miss_a_record(reactor: Any, everybody: Scene) -> None:
    await everybody.run(reactor, publishers=8, total=PUBLISHES, pause_seconds=0.2, kill_seconds=KILL_SECONDS)
    sys.stderr.write(
        f"\n{everybody.acknowledged} publishes, {everybody.failed} failed, {everybody.kills} kills, "
        f"{len(everybody.seen)} records seen\n"
    )
    assert everybody.kills > 0
