"""No answer says that it may be kept for longer than the file in it is valid."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import pytest
import pytest_twisted

from notary.server import caching
from notary.server.renewal import Schedule
from notary.storage import Update
from notary.tuf.draft import Lifetimes
from notary.tuf.model import TARGETS, Gun
from notary.tuf.validity import WINDOW_BYTES
from tests.support.api import GUN, TUF, new_store, published
from tests.support.inmemory import Server

NO_STORE = "max-age=0, no-cache, no-store"


def server_with(**lifetimes):
    schedule = Schedule(Lifetimes(**{role: timedelta(seconds=each) for role, each in lifetimes.items()}), share=0)
    return Server(new_store(), schedule=schedule)


def ages(answer):
    return [int(each) for each in re.findall(r"max-?age=(\d+)", answer.headers["cache-control"])]


async def versions(server, role):
    current = await server.get(f"{TUF}{role}.json")
    return [current, await server.get(f"{TUF}1.{role}.json"), await server.get(f"{TUF}{role}.{_tag(current)}.json")]


def _tag(answer):
    return answer.headers["etag"].strip('"')


@pytest_twisted.ensureDeferred
async def test_what_is_valid_for_long_may_be_kept_as_configured():
    server = Server(new_store())
    await published(server)
    for role in ("root", "targets", "snapshot"):
        current, *consistent = await versions(server, role)
        assert ages(current) == [300, 300]
        assert [ages(each) for each in consistent] == [[2592000, 2592000]] * 2


@pytest.mark.parametrize("left", [250, 100, 3, 2])
@pytest_twisted.ensureDeferred
async def test_what_expires_soon_may_be_kept_until_a_second_before(left):
    server = server_with(timestamp=1000, snapshot=1000)
    await published(server)
    for _ in range(2):  # also once the answer could be remembered
        for role in ("timestamp", "snapshot"):
            await versions(server, role)
    server.advance(seconds=1000 - left)
    for role in ("timestamp", "snapshot"):
        for answer in await versions(server, role):
            assert ages(answer) == [left - 1, left - 1]
            expires = datetime.fromisoformat(answer.json["signed"]["expires"])
            assert server.now + timedelta(seconds=ages(answer)[0]) < expires


@pytest.mark.parametrize("left", [1, 0, -1000])
@pytest_twisted.ensureDeferred
async def test_what_has_expired_is_not_kept(left):
    server = server_with(timestamp=1000, snapshot=1000)
    await published(server)
    old = (await server.get(TUF + "timestamp.json")).headers["etag"].strip('"')
    server.advance(seconds=1000 - left)
    for answer in (await server.get(TUF + "1.timestamp.json"), await server.get(f"{TUF}timestamp.{old}.json")):
        assert answer.headers["cache-control"] == NO_STORE
        assert answer.headers["pragma"] == "no-cache"


@pytest_twisted.ensureDeferred
async def test_a_304_says_the_same():
    server = server_with(timestamp=1000)
    await published(server)
    first = await server.get(TUF + "timestamp.json")
    server.advance(seconds=900)
    again = await server.get(TUF + "timestamp.json", If_None_Match=first.headers["etag"])
    assert (again.status, ages(again)) == (304, [99, 99])


@pytest_twisted.ensureDeferred
async def test_a_large_file_is_looked_through_in_a_thread_and_once():
    store = new_store()
    server = Server(store)
    await published(server)
    expires = (server.now + timedelta(seconds=200)).strftime("%Y-%m-%dT%H:%M:%SZ")
    data = f'{{"signed":{{"_type":"Targets","a":"{"x" * WINDOW_BYTES}","expires":"{expires}"}}}}'.encode()
    await store.publish(Gun(GUN), [Update(TARGETS, 2, data)])
    threads = []
    answers = server.api._answers
    answers._in_thread = lambda work, run=answers._in_thread: threads.append(work) or run(work)
    for _ in range(3):
        answer = await server.get(TUF + "2.targets.json")
        assert (answer.status, ages(answer)) == (200, [199, 199])
    assert len(threads) == 1
    server.advance(seconds=150)
    assert ages(await server.get(TUF + "2.targets.json")) == [49, 49]
    assert len(threads) == 1
    assert list(answers._large._kept.values()) == [datetime.fromisoformat(expires)]
    assert caching.KEPT > 1
