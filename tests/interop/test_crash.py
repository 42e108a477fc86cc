"""``kill -9`` in the middle of publishing, on SQLite: each collection is then in its old state or in its new one.

Rules of this module: the moment of the kill is counted in answers, not in seconds; at that moment other publishes are
under way. What was answered with 200 must be there afterwards. The local signer keeps its keys in memory only, so after
the restart a collection goes on by naming new keys in its root, as a user would with ``key rotate``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from tests.support.newcomer import verify_collection
from tests.support.peers import OUR_SERVER, Daemon, daemon
from tests.support.sides import MULTIPART, Collection, Side, clone, form_of, make_collection

PUBLISHERS = 4


def version_of(data: bytes) -> int:
    return int(json.loads(data)["signed"]["version"])


async def publish_until_killed(server: Daemon, collections: list[Collection], answers: int) -> None:
    """All collections publish at once, again and again; the answer after ``answers`` others kills the server."""
    counter = itertools.count()

    async def publish(collection: Collection) -> None:
        while True:
            author = clone(collection.author)
            author.add("file", b"content" * version_of(author.stored["targets"]))
            files = collection.make(author, "targets", "targets/releases")
            answer = await collection.side.request(
                "POST", collection.path(), form_of(files), {"Content-Type": MULTIPART}
            )
            if answer.status != 200:
                assert not server.alive, f"refused by a living server: {answer}"
                return
            collection.took(files, author)
            if next(counter) == answers:
                server.kill()

    await gatherResults([Deferred.fromCoroutine(publish(one)) for one in collections], consumeErrors=True)


@pytest.mark.parametrize("answers", [0, 1, 2, 5, 9, 17])
@pytest_twisted.ensureDeferred
async def test_killed_while_publishing(reactor: Any, answers: int, tmp_path: Path) -> None:
    storage = {"backend": "sqlite3", "db_url": "notary.db"}
    with daemon("ours", OUR_SERVER, tmp_path, storage=storage) as server:
        async with Side(server, reactor) as side:
            collections = [await make_collection(side, server_snapshot=one % 2 == 0) for one in range(PUBLISHERS)]
            await publish_until_killed(server, collections, answers)
        server.start()
        async with Side(server, reactor) as side:
            for collection in collections:
                collection.side = side
                await check_state(collection)
                await check_goes_on(collection)
            newcomer = await make_collection(side)
            await newcomer.verify()


async def check_state(collection: Collection) -> None:
    """The files fit together, and are those of the last answered publish, or of the one that was under way."""
    served = await collection.current()
    verify_collection(served)
    answered = version_of(collection.author.stored["targets"])
    versions = {role: version_of(served[role]) for role in ("targets", "targets/releases", "snapshot", "timestamp")}
    assert set(versions.values()) <= {answered, answered + 1}, f"{versions}, answered {answered}"
    assert len(set(versions.values())) == 1, versions
    if versions["targets"] == answered:
        assert served["targets"] == collection.author.stored["targets"]
    beyond = await collection.side.get(collection.path(f"{answered + 2}.targets.json"))
    assert beyond.status == 404, beyond
    feed = await collection.side.get(f"/v2/{collection.quoted}/_trust/changefeed?records=-1")
    (change,) = json.loads(feed.body)["records"]
    assert change["Version"] == versions["timestamp"]
    assert change["SHA256"] == hashlib.sha256(served["timestamp"]).hexdigest()
    collection.author.stored |= {role: served[role] for role in collection.author.stored}
    collection.author.versions |= versions


async def check_goes_on(collection: Collection) -> None:
    """The keys of the local signer are gone: a publish says so, and one with new keys in root is taken."""
    author = clone(collection.author)
    answer = await collection.push(author, "targets")
    expected = "ErrBadRoot" if author.holds_snapshot else "ErrBadHierarchy snapshot"
    assert answer.brief == f"400 INVALID_UPDATE {expected}"
    author = clone(collection.author)
    author.rotate("timestamp", await collection.key("timestamp"))
    if not author.holds_snapshot:
        author.rotate("snapshot", await collection.key("snapshot"))
    answer = await collection.push(author, "root", "targets")
    assert answer.status == 200, answer
    await collection.verify()
