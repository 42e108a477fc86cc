"""A crash at any moment leaves the state before a publish or the state after it, and never less than what was said."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import ProcessProtocol

from notary.storage import Update
from notary.storage.open import open_metadata_store
from notary.tuf.model import BASE_ROLES, Gun
from tests.storage import publish_forever


class Publisher(ProcessProtocol):
    """Kills its process after so many acknowledged publishes."""

    def __init__(self, kill_after: int) -> None:
        self.kill_after = kill_after
        self.output = b""
        self.errors = b""
        self.ended: Deferred[list[int]] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.output += data
        if self.output.count(b"\n") >= self.kill_after and self.transport.pid:
            self.transport.signalProcess("KILL")

    def errReceived(self, data: bytes) -> None:
        self.errors += data

    def processEnded(self, reason) -> None:
        if reason.value.signal != 9:
            self.ended.errback(AssertionError(self.errors.decode()))
        else:
            self.ended.callback([int(line) for line in self.output.split(b"\n")[:-1]])


def run_until_killed(db_url: str, gun: Gun, kill_after: int) -> Deferred:
    """Publish in another process; the versions that it says it has published."""
    publisher = Publisher(kill_after)
    arguments = [sys.executable, "-W", "error", publish_forever.__file__, db_url, gun]
    reactor.spawnProcess(publisher, sys.executable, arguments, env=dict(os.environ))
    return publisher.ended


@pytest.mark.parametrize("kill_after", [1, 7, 40])
@pytest_twisted.ensureDeferred
async def test_a_killed_publisher_leaves_whole_publishes(tmp_path, kill_after):
    db_url = str(tmp_path / "notary.db")
    guns = [Gun("example.com/one"), Gun("example.com/two")]
    for _ in range(2):  # the second time on a file that the first one left behind
        acknowledged = await gatherResults([run_until_killed(db_url, gun, kill_after) for gun in guns])
        store = await open_metadata_store("sqlite3", db_url, reactor)
        for gun, versions in zip(guns, acknowledged, strict=True):
            found = await store.current(gun, BASE_ROLES)
            (newest,) = {stored.version for stored in found.values()}
            assert newest in (versions[-1], versions[-1] + 1)
            for version in range(1, newest + 1):
                for role in BASE_ROLES:
                    stored = await store.by_version(gun, role, version)
                    assert stored.data == publish_forever.content(role, version)
            changes = await store.changes(gun, None, 10_000)
            assert [change.version for change in changes] == list(range(1, newest + 1))
            newest += 1
            await store.publish(
                gun, [Update(role, newest, publish_forever.content(role, newest)) for role in BASE_ROLES]
            )
        await store.close()
        with closing(sqlite3.connect(db_url)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
