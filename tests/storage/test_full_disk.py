"""A MariaDB whose tables may not grow: publishes fail whole, and the probe knows; with room again, all is well."""

from __future__ import annotations

import time

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from notary.errors import StorageFailed, StorageUnreachable
from notary.storage import Update
from notary.storage.open import open_metadata_store
from notary.tuf.model import ROOT, TIMESTAMP, Gun
from tests.support.databases import MariaDB
from tests.support.migrated import migrate_new_database

GUN = Gun("example.com/app")
WAIT_SECONDS = 60.0


def options(megabytes: int) -> list[str]:
    """Those of a MariaDB whose tables all are in one file, which may have this size."""
    return ["--innodb-file-per-table=0", f"--innodb-data-file-path=ibdata1:12M:autoextend:max:{megabytes}M"]


async def fill(store) -> None:
    """Publish until nothing more fits, not even little."""
    number = 0
    for size in (400_000, 20_000, 1):
        while True:
            number += 1
            try:
                await store.publish(Gun(f"filler/{number}"), [Update(TIMESTAMP, 1, b"x" * size)])
            except StorageUnreachable:
                break


@pytest_twisted.ensureDeferred
async def test_tables_that_may_not_grow():
    with MariaDB(options=options(20)) as full:
        _, url = await migrate_new_database(full, "server")
        store = await open_metadata_store("mysql", url, reactor)
        try:
            await store.publish(GUN, [Update(TIMESTAMP, 1, b"one")])
            await store.check_writes()
            await fill(store)
            with pytest.raises(StorageUnreachable, match="make room"):
                await store.check_writes()
            await store.check()
            with pytest.raises(StorageUnreachable, match="make room"):
                await store.publish(GUN, [Update(ROOT, 2, b"two"), Update(TIMESTAMP, 2, b"x" * 400_000)])
            assert {found.version for found in (await store.current(GUN, [ROOT, TIMESTAMP])).values()} == {1}
            assert [change.version for change in await store.changes(GUN, 0, 10)] == [1]
            full.options = options(32)  # to delete something needs room too
            await deferToThread(full.restart)
            deadline = time.monotonic() + WAIT_SECONDS
            while True:
                try:
                    await store.check_writes()
                except StorageFailed:
                    assert time.monotonic() < deadline
                    await deferLater(reactor, 0.1)
                else:
                    break
            await store.publish(GUN, [Update(TIMESTAMP, 2, b"two")])
        finally:
            await store.close()
