"""Files that are too large for the cache: they are loaded once, and held once, for all who want them."""

from __future__ import annotations

import gc
import hashlib
import os
import tracemalloc

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from notary.errors import NotFound
from notary.net.http.site import HttpLimits
from notary.storage import Update
from notary.storage.cache import SHARED_BYTES, CachedMetadataStore
from notary.tuf.model import SNAPSHOT, TARGETS, TIMESTAMP, Gun
from tests.support.inmemory import Server
from tests.support.rawhttp import Transport

GUN = Gun("example.com/large")
MIB = 1 << 20
READERS = 20


class Counting:
    """The store behind the cache: notes what it is asked, and holds the answers back while ``held`` is a list."""

    def __init__(self, store) -> None:
        self.store = store
        self.asked = []
        self.held: list[Deferred[None]] | None = None

    def __getattr__(self, method):
        def call(*arguments):
            self.asked.append(method)
            answer = getattr(self.store, method)(*arguments)
            if self.held is None:
                return answer
            return answer.addBoth(self._hold)

        return call

    def _hold(self, result):
        go: Deferred[None] = Deferred()
        self.held.append(go)
        return go.addCallback(lambda _: result)

    async def answered(self) -> None:
        """Wait for an answer that is held back."""
        while not self.held:
            await deferLater(reactor, 0)

    def let_go(self) -> None:
        """Give the answers that were held back, and hold none from now on."""
        held, self.held = self.held, None
        for go in held:
            go.callback(None)


async def file_of(stores, data: bytes):
    counting = Counting(await stores())
    files = {TARGETS: data, SNAPSHOT: b"x", TIMESTAMP: b"y"}
    await counting.store.publish(GUN, [Update(role, 1, content) for role, content in files.items()])
    return counting, hashlib.sha256(data).hexdigest()


WAYS = {
    "by_checksum": lambda cache, sha256: cache.by_checksum(GUN, TARGETS, sha256),
    "by_version": lambda cache, _: cache.by_version(GUN, TARGETS, 1),
    "current": lambda cache, _: cache.current(GUN, [TARGETS]).addCallback(lambda found: found[TARGETS]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_what_is_asked_for_at_the_same_time_is_loaded_once(metadata_stores, way):
    store, sha256 = await file_of(metadata_stores, os.urandom(SHARED_BYTES + 1))
    cache = CachedMetadataStore(store, SHARED_BYTES, reactor)
    found = await gatherResults([WAYS[way](cache, sha256) for _ in range(READERS)])
    assert store.asked.count(way) == 1
    assert {id(stored) for stored in found} == {id(found[0])}


@pytest_twisted.ensureDeferred
async def test_what_somebody_holds_is_not_loaded_again(metadata_stores):
    store, sha256 = await file_of(metadata_stores, os.urandom(SHARED_BYTES + 1))
    cache = CachedMetadataStore(store, SHARED_BYTES, reactor)
    held = await cache.by_checksum(GUN, TARGETS, sha256)
    store.asked.clear()
    assert await cache.by_checksum(GUN, TARGETS, sha256) is held
    assert await cache.by_version(GUN, TARGETS, 1) is held
    assert (await cache.current(GUN, [TARGETS]))[TARGETS] is held
    assert set(store.asked) == {"identify"}
    await store.store.delete(GUN)
    with pytest.raises(NotFound):
        await cache.by_checksum(GUN, TARGETS, sha256)
    assert await cache.current(GUN, [TARGETS]) == {}


@pytest_twisted.ensureDeferred
async def test_a_load_that_began_before_a_delete_is_no_answer_to_who_asks_after_it(metadata_stores):
    store, sha256 = await file_of(metadata_stores, os.urandom(SHARED_BYTES + 1))
    cache = CachedMetadataStore(store, SHARED_BYTES, reactor)
    store.held = []
    first = cache.by_checksum(GUN, TARGETS, sha256)
    await store.answered()
    await store.store.delete(GUN)
    second = cache.by_checksum(GUN, TARGETS, sha256)
    store.let_go()
    assert (await first).sha256 == sha256
    with pytest.raises(NotFound):
        await second


@pytest_twisted.ensureDeferred
async def test_what_is_published_while_it_is_looked_for_in_vain_is_found(metadata_stores):
    store = Counting(await metadata_stores())
    data = os.urandom(SHARED_BYTES + 1)
    sha256 = hashlib.sha256(data).hexdigest()
    cache = CachedMetadataStore(store, SHARED_BYTES, reactor)
    store.held = []
    first = cache.by_checksum(GUN, TARGETS, sha256)
    first.addErrback(lambda failure: failure.trap(NotFound))
    await store.answered()
    await store.store.publish(GUN, [Update(TARGETS, 1, data)])
    second = cache.by_checksum(GUN, TARGETS, sha256)
    store.let_go()
    assert (await first) is NotFound
    assert (await second).data == data


async def slow(server: Server, request: bytes) -> Transport:
    """A client that has taken the beginning of its answer."""
    transport = Transport(IPv4Address("TCP", "192.0.2.1", 1234))
    transport.protocol = protocol = server.site.buildProtocol(transport.getPeer())
    protocol.makeConnection(transport)
    protocol.pauseProducing()
    protocol.dataReceived(request)
    while not transport.value():
        await deferLater(reactor, 0)
    return transport


@pytest_twisted.ensureDeferred
async def test_slow_readers_of_one_file_hold_it_once(metadata_stores):
    store, sha256 = await file_of(metadata_stores, os.urandom(2 * MIB))
    server = Server(CachedMetadataStore(store, MIB, reactor), limits=HttpLimits(answers=3 * MIB))
    request = f"GET /v2/{GUN}/_trust/tuf/targets.{sha256}.json HTTP/1.1\r\nHost: notary.example\r\n\r\n".encode()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        readers = [await slow(server, request) for _ in range(READERS)]
        held, _ = tracemalloc.get_traced_memory()
        assert server.site.answers.held_bytes == 2 * MIB
        for transport in readers:
            transport.loseConnection()
        readers.clear()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held - before < 2 * MIB + READERS * 256 * 1024
    assert server.site.answers.held_bytes == 0
    assert after - before < MIB
