"""Galera with two nodes that both take writes: what is acknowledged is there, whole, and in the changefeed.

``NOTARY_CONTENDED`` and ``NOTARY_RACES`` say how many publishes and races there are, by default so many that the faults
which these tests were written for showed each time.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import closing
from datetime import UTC, datetime

import MySQLdb
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults

from notary.errors import OldVersion
from notary.storage import StoredKey, Update
from notary.storage.open import open_metadata_store
from notary.storage.sql.dialect import PoolSettings
from notary.storage.sql.feed import SETTLED_SECONDS, Horizon
from notary.tuf.model import BASE_ROLES, TIMESTAMP, Gun

CONTENDED = int(os.environ.get("NOTARY_CONTENDED", "1600"))
RACES = int(os.environ.get("NOTARY_RACES", "150"))
WHEN = datetime(2024, 5, 6, tzinfo=UTC)


def whole(version: int, by: str = "", roles=BASE_ROLES) -> list[Update]:
    return [Update(role, version, f"{role} {version} {by}".encode()) for role in roles]


def timestamp_of(updates: list[Update]) -> str:
    return next(hashlib.sha256(update.data).hexdigest() for update in updates if update.role == TIMESTAMP)


@pytest_twisted.ensureDeferred
async def test_what_two_nodes_acknowledge_at_once_is_there(metadata, metadata_stores):
    """Publishers on both nodes want the same versions of the same collections."""
    guns = [Gun(f"example.com/{number}") for number in range(4)]
    acknowledged: dict[tuple[str, int], list[str]] = {}
    rest = []

    async def publish(gun: Gun, version: int, node: int, by: str) -> None:
        await metadata_stores[node].publish(gun, whole(version, by))
        acknowledged.setdefault((str(gun), version), []).append(by)

    for version in range(1, CONTENDED // (2 * len(guns)) + 1):
        races = [Deferred.fromCoroutine(publish(gun, version, node, f"{node}")) for gun in guns for node in range(2)]
        for success, result in await DeferredList(races, consumeErrors=True):
            if not success and not result.check(OldVersion):
                rest.append(result.getErrorMessage())
    rows = metadata.everywhere("SELECT gun, role, version, data FROM tuf_files ORDER BY 1, 2, 3")
    stored = {(gun, role, version): data.decode().split()[-1] for gun, role, version, data in rows}
    lost = [
        (gun, version, by)
        for (gun, version), winners in acknowledged.items()
        for by in winners
        if any(stored.get((gun, role, version)) != by for role in BASE_ROLES)
    ]
    assert lost == []
    assert rest == []
    feed = metadata.everywhere("SELECT gun, version FROM changefeed ORDER BY id")
    assert sorted(feed) == sorted(acknowledged)
    for gun in guns:
        of_one = [version for name, version in feed if name == gun]
        assert of_one == sorted(of_one)


@pytest_twisted.ensureDeferred
async def test_a_delete_beside_a_publish_leaves_all_or_nothing(metadata, metadata_stores):
    one, two = metadata_stores
    halves = []
    for number in range(RACES):
        gun = Gun(f"example.com/{number}")
        first = whole(1)
        await one.publish(gun, first)
        metadata.execute(1, "SELECT COUNT(*) FROM tuf_files")  # the second node has it
        updates = whole(2, "", [role for role in BASE_ROLES if role != "root"])
        deleted, published = await DeferredList(
            [one.delete(gun), two.publish(gun, updates, timestamp_of(first))], consumeErrors=True
        )
        assert deleted == (True, True), deleted[1]
        if not published[0]:
            assert published[1].check(OldVersion), published[1]
        left = metadata.everywhere("SELECT role FROM tuf_files WHERE gun = %s", str(gun))
        feed = metadata.everywhere("SELECT version, category FROM changefeed WHERE gun = %s ORDER BY id", str(gun))
        if left or feed != [(1, "update"), *([(2, "update")] if published[0] else []), (0, "deletion")]:
            halves.append((gun, left, feed))
    assert halves == []


@pytest_twisted.ensureDeferred
async def test_signers_on_two_nodes_agree_on_a_pending_key(galera, keys, key_stores):
    node = galera.nodes[0]
    node.execute("", "SET GLOBAL log_output = 'TABLE', general_log = 1")
    try:
        for number in range(20):
            made = [
                StoredKey(f"{number:032x}{caller:032x}", "ecdsa", b"p", b"a.jwe", f"a/{number}", "timestamp", "alias1")
                for caller in range(6)
            ]
            kept = await gatherResults([key_stores[caller % 2].add(key) for caller, key in enumerate(made)])
            assert len({key.key_id for key in kept}) == 1
            await gatherResults([store.mark_used(kept[0].key_id, WHEN) for store in key_stores])
            used = keys.everywhere("SELECT key_id, last_used IS NULL FROM private_keys WHERE gun = %s", f"a/{number}")
            assert used == [(kept[0].key_id, 0)]
        assert len(keys.everywhere("SELECT 1 FROM private_keys")) == 20
        asked = "SELECT argument FROM mysql.general_log WHERE argument LIKE %s AND argument NOT LIKE %s"
        assert node.execute("", asked, "%GET_LOCK(%", "%general_log%") == []  # some clusters refuse it
    finally:
        node.execute("", "SET GLOBAL general_log = 0, log_output = 'FILE'")


@pytest_twisted.ensureDeferred
async def test_a_reader_of_any_node_misses_nothing(metadata, metadata_stores):
    seen: list[int] = []

    async def write(number: int) -> None:
        for version in range(1, 31):
            await metadata_stores[number % 2].publish(Gun(f"example.com/{number}"), whole(version))

    async def read(node: int) -> int:
        found = await metadata_stores[node].changes(None, seen[-1] if seen else 0, 50)
        seen.extend(change.id for change in found)
        return len(found)

    writing = gatherResults([Deferred.fromCoroutine(write(number)) for number in range(8)])
    while not writing.called:
        for node in range(2):
            await read(node)
    await writing
    metadata.cluster.nodes[0].execute(metadata.name, "UPDATE changefeed SET created_at = created_at - INTERVAL 1 HOUR")
    written = [id_ for (id_,) in metadata.everywhere("SELECT id FROM changefeed ORDER BY id")]
    while await read(0):
        pass
    assert len(written) == 8 * 30
    assert seen == written


@pytest_twisted.ensureDeferred
async def test_a_number_of_another_node_is_waited_for(metadata, metadata_stores):
    """A node shows nothing of what others have under way, so a missing number of theirs counts as lost after a time."""
    one, _ = metadata_stores
    gun, slow = Gun("example.com/quick"), "example.com/slow"
    now = 1000.0
    one._horizon = Horizon(lambda: now)
    await one.publish(gun, whole(1))
    (first,) = await one.changes(gun, 0, 100)
    metadata.execute(1, "SELECT COUNT(*) FROM tuf_files")  # the second node has it, and numbers from there
    node = metadata.cluster.nodes[1]
    with closing(MySQLdb.connect(unix_socket=str(node.socket), user="root", database=metadata.name)) as other:
        other.cursor().execute(
            "INSERT INTO changefeed (created_at, gun, version, category) VALUES (NOW(), %s, 1, 'update')", (slow,)
        )
        await one.publish(gun, whole(2))
        assert await one.changes(None, first.id, 100) == []
        other.commit()
    metadata.execute(0, "SELECT COUNT(*) FROM changefeed")  # the first node has it
    last = (await one.changes(None, first.id, 100))[-1]
    assert [change.gun for change in await one.changes(None, first.id, 100)] == [slow, gun]
    now += 2  # what is known is noted once a second
    await one.publish(gun, whole(3))  # the second node may still give the number before this one
    assert await one.changes(None, last.id, 100) == []
    now += SETTLED_SECONDS - 1
    assert await one.changes(None, last.id, 100) == []
    now += 1
    assert [change.version for change in await one.changes(None, last.id, 100)] == [3]


@pytest_twisted.ensureDeferred
async def test_with_one_writer_that_numbers_without_gaps_the_feed_is_not_late(galera, metadata):
    """As docs/high-availability.md says; by default a node leaves gaps for the numbers of the others."""
    settings = "wsrep_auto_increment_control = {}, auto_increment_increment = {}, auto_increment_offset = {}"
    try:
        for node in galera.nodes:
            node.execute("", f"SET GLOBAL {settings.format('OFF', 1, 1)}".replace(", ", ", GLOBAL "))
        for number, url in enumerate(metadata.urls):  # the second one becomes the writer
            store = await open_metadata_store("mysql", url, reactor, PoolSettings(connections=2))
            for version in range(1, 6):
                await store.publish(Gun(f"example.com/{number}"), whole(version))
            found = await store.changes(None, 0, 100)
            assert [change.version for change in found] == [1, 2, 3, 4, 5] * (number + 1)
            await store.close()
            metadata.execute(1, "SELECT COUNT(*) FROM tuf_files")  # it has everything
    finally:
        for place, node in enumerate(galera.nodes, 1):
            node.execute("", f"SET GLOBAL {settings.format('ON', 2, place)}".replace(", ", ", GLOBAL "))
