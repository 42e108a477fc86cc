"""A PostgreSQL on a disk that gets full: a file system in memory, which only root can mount."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater

from notary.errors import StorageFailed, StorageUnreachable
from notary.storage import MetadataStore, Update
from notary.storage.open import open_metadata_store
from notary.tuf.model import TIMESTAMP, Gun
from tests.support.databases import SERVER_RIGHTS, PostgreSQL
from tests.support.migrated import migrate_new_database

GUN = Gun("example.com/app")
WAIT_SECONDS = 60.0


@contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own at ``folder``; root mounts it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def until(works: bool, store: MetadataStore, what: str) -> None:
    """Wait until a probe says that the database takes writes, or not; write how long that took."""
    started = time.monotonic()
    while True:
        try:
            await store.check_writes()
            found = True
        except StorageFailed:
            found = False
        if found is works:
            break
        assert time.monotonic() < started + WAIT_SECONDS
        await deferLater(reactor, 0.1)
    sys.stderr.write(f"\n{what}: {time.monotonic() - started:.1f} s\n")


async def lives_through(store: MetadataStore, filler: Path, *, failed: bool) -> None:
    """Fill the disk, and make room again."""
    await store.publish(GUN, [Update(TIMESTAMP, 1, b"one")])
    await store.check_writes()
    with filler.open("wb") as file:
        try:
            while True:
                file.write(os.urandom(65_536))
                file.flush()
        except OSError:
            pass
    if failed:
        await publish_until_it_fails(store)
    await until(False, store, "full")
    await store.check()
    os.unlink(filler)  # noqa: PTH108  # as Path, it is said to block
    await until(True, store, "room again")
    newest = (await store.current(GUN, [TIMESTAMP]))[TIMESTAMP].version
    await store.publish(GUN, [Update(TIMESTAMP, newest + 1, b"more")])


async def publish_until_it_fails(store: MetadataStore) -> None:
    """Use up what the tables have left."""
    for version in range(2, 1000):
        try:
            await store.publish(GUN, [Update(TIMESTAMP, version, os.urandom(50_000))])
        except StorageUnreachable:
            break
    with pytest.raises(StorageUnreachable, match="full"):
        await store.publish(GUN, [Update(TIMESTAMP, version, os.urandom(50_000))])


@pytest.mark.parametrize("failed", [False, True], ids=["asked", "after-a-failure"])
@pytest_twisted.ensureDeferred
async def test_postgresql(failed: bool) -> None:
    with PostgreSQL() as server:
        folder = Path(tempfile.mkdtemp(prefix="notary-tests-"))
        try:
            with disk(folder, 24):
                shutil.chown(folder, "postgres", "postgres")
                server.execute("", f"CREATE TABLESPACE small LOCATION '{folder}'")
                database, _ = await migrate_new_database(server, "server")
                server.execute("", f"ALTER DATABASE {database} SET TABLESPACE small")
                url = server.db_url(database, server.user(database, SERVER_RIGHTS))
                store = await open_metadata_store("postgres", url, reactor)
                try:
                    await lives_through(store, folder / "filler", failed=failed)
                finally:
                    await store.close()
                    server.kill()
        finally:
            os.rmdir(folder)  # noqa: PTH106  # likewise
