"""What a read-only server knows of the mirror that fills its database."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from notary.errors import ConfigError
from notary.server.mirrored import INTERVAL_SECONDS, Mirrored
from notary.work.mirror_status import MirrorStatus
from tests.support.configurations import read_server, server

START = datetime(2026, 11, 27, tzinfo=UTC)


class Scene:
    """A mirrored server on a clock; ``now`` is the time of day."""

    def __init__(self, path):
        self.path = path
        self.clock = Clock()
        self.mirrored = Mirrored(path, self.clock, self.in_thread, self.now)

    def now(self):
        return START + timedelta(seconds=self.clock.seconds())

    async def in_thread(self, work):
        return work()

    def wrote(self, *, seconds_ago: float = 0.0, due: int = 0) -> None:
        MirrorStatus(self.now().timestamp() - seconds_ago, due).write(self.path)


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path / "status.json")


@pytest_twisted.ensureDeferred
async def test_how_far_it_is_behind(scene):
    scene.wrote(seconds_ago=1.5)
    await scene.mirrored.startService()
    assert scene.mirrored.details() == {"mirror": {"behind_seconds": 1.5, "due": 0}}
    scene.clock.advance(INTERVAL_SECONDS)
    assert scene.mirrored.behind_seconds == 1.5 + INTERVAL_SECONDS
    scene.wrote(due=3)
    scene.clock.advance(INTERVAL_SECONDS)
    assert scene.mirrored.details() == {"mirror": {"behind_seconds": INTERVAL_SECONDS, "due": 3}}
    assert scene.mirrored.due == 3
    scene.wrote(seconds_ago=-3600)  # the clock was set back
    scene.clock.advance(INTERVAL_SECONDS)
    assert scene.mirrored.behind_seconds == 0.0
    scene.mirrored.stopService()
    assert scene.clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_a_file_that_says_nothing(scene):
    await scene.mirrored.startService()
    for said, change in (
        ("cannot be read (No such file or directory)", lambda: scene.path.write_text("{}")),
        ("is not what notary-admin mirror --status-file writes", scene.path.unlink),
        ("cannot be read (No such file or directory)", scene.wrote),
    ):
        (details,) = scene.mirrored.details().values()
        assert details["behind_seconds"] is None
        assert said in details["error"]
        assert "server.mirror_status_file: " in details["error"]
        assert scene.mirrored.behind_seconds == math.inf
        assert math.isnan(scene.mirrored.due)
        json.dumps(details, allow_nan=False)
        change()
        scene.clock.advance(INTERVAL_SECONDS)
    assert scene.mirrored.behind_seconds == INTERVAL_SECONDS
    scene.mirrored.stopService()


def test_the_configuration():
    sqlite = {"backend": "sqlite3", "db_url": "n.db"}
    tree = server("server.read_only", True, storage=sqlite)
    assert read_server(tree).server.mirror_status_file is None
    tree["server"]["mirror_status_file"] = "status.json"
    found = read_server(tree).server.mirror_status_file
    assert found is not None
    assert (found.is_absolute(), found.name) == (True, "status.json")
    tree["server"]["read_only"] = False
    tree["trust_service"] = {"type": "local"}
    assert read_server(tree).server.mirror_status_file is None
    tree["server"] |= {"read_only": True, "mirror_status_file": 1}
    with pytest.raises(ConfigError, match=r"server\.mirror_status_file"):
        read_server(tree)
