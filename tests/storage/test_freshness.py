"""Several instances on one database: no read, on any of them, answers what was no longer true when it was asked.

A checker judges whole histories. Publishes, deletes and reads go to two instances in random order, many of them at the
same time. Writes to one collection follow each other, so its states are known; a read may have seen any of those that
can have been current between its beginning and its end, and its answer must be that of one of them.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, DeferredList, gatherResults, succeed
from twisted.internet.task import Clock, deferLater

from notary.errors import NotFound, StorageFailed
from notary.storage import Update
from notary.storage.cache import MAX_PLACES, OVERHEAD_BYTES, CachedMetadataStore
from notary.tuf.model import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Gun
from tests.support.api import GUN as NAME
from tests.support.api import TUF, published
from tests.support.inmemory import Server

GUN, OTHER = Gun("example.com/a"), Gun("example.com/b")
ROLES = (TARGETS, SNAPSHOT, TIMESTAMP)
LARGE, SMALL = 1 << 20, 5 * 4 * OVERHEAD_BYTES
"""Room for all files of a test, and for some of them."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- histories --------------------------------------------------------------------------------------------------------

State = dict  # what a collection holds: (role, version) -> content


@dataclass
class History:
    """The states of one collection, in order. Times are ticks of a clock that all operations share."""

    states: list[State] = field(default_factory=lambda: [{}])
    begun: list[int] = field(default_factory=lambda: [0])
    acknowledged: list[int | None] = field(default_factory=lambda: [0])

    def between(self, began: int, ended: int) -> list[State]:
        """Those that a read may have seen that began and ended at these times."""
        oldest = max(number for number, when in enumerate(self.acknowledged) if when is not None and when <= began)
        return [state for state, when in zip(self.states, self.begun, strict=True) if when <= ended][oldest:]


class Run:
    """One random history: two writers, many readers, two instances."""

    def __init__(self, stores, seed: int) -> None:
        self.stores = stores
        self.random = random.Random(seed)
        self.ticks = 0
        self.writing = 0  # how many still write: readers go on as long, however slow the disk is
        self.histories = {GUN: History(), OTHER: History()}
        self.seen = []  # (what was asked, began, ended, answer)

    def tick(self) -> int:
        self.ticks += 1
        return self.ticks

    async def write(self, gun: Gun, steps: int) -> None:
        history = self.histories[gun]
        self.writing += 1
        for _ in range(steps):
            await deferLater(reactor, 0)  # memory answers at once: let the others in
            before = history.states[-1]
            store = self.random.choice(self.stores)
            newest = max((version for _, version in before), default=0)
            delete = bool(before) and self.random.random() < 0.3
            # Few contents, so that after a deletion the same file may come again, or another one in its place.
            by = self.random.choice("xy")
            updates = [Update(role, newest + 1, f"{gun} {role} {newest + 1} {by}".encode()) for role in ROLES]
            after = {} if delete else before | {(each.role, each.version): each.data for each in updates}
            history.states.append(after)
            history.begun.append(self.tick())
            history.acknowledged.append(None)
            await (store.delete(gun) if delete else store.publish(gun, updates))
            history.acknowledged[-1] = self.tick()
        self.writing -= 1

    async def read(self, steps: int) -> None:
        done = 0
        while done < steps or self.writing:
            done += 1
            await deferLater(reactor, 0)
            gun = self.random.choice((GUN, OTHER))
            store = self.random.choice(self.stores)
            role, version = self.random.choice(ROLES), self.random.randint(1, 4)
            digest = sha256(f"{gun} {role} {version} {self.random.choice('xy')}".encode())
            kind = self.random.choice(("current", "by_version", "by_checksum"))
            began = self.tick()
            try:
                if kind == "current":
                    found = await store.current(gun, ROLES)
                    answer = {each: stored.data for each, stored in found.items()}
                elif kind == "by_version":
                    answer = (await store.by_version(gun, role, version)).data
                else:
                    answer = (await store.by_checksum(gun, role, digest)).data
            except NotFound:
                answer = None
            self.seen.append(((kind, gun, role, version, digest), began, self.tick(), answer))

    def wrong(self) -> list:
        """The reads whose answer none of the states gives that they may have seen."""
        return [
            (asked, began, ended, answer)
            for asked, began, ended, answer in self.seen
            if answer not in [expected(asked, state) for state in self.histories[asked[1]].between(began, ended)]
        ]


def expected(asked, state: State):
    kind, _, role, version, digest = asked
    if kind == "current":
        newest = max((each for _, each in state), default=0)
        return {each: state[each, newest] for each in ROLES} if state else {}
    if kind == "by_version":
        return state.get((role, version))
    return next((data for (each, _), data in state.items() if each == role and sha256(data) == digest), None)


@pytest.mark.parametrize("size", [pytest.param(LARGE, id="large"), pytest.param(SMALL, id="small")])
@pytest_twisted.ensureDeferred
async def test_no_read_is_older_than_what_was_committed_when_it_began(metadata_stores, size):
    stores = [CachedMetadataStore(await metadata_stores(), size, reactor) for _ in range(2)]
    for seed in range(4):
        run = Run(stores, seed)
        work = [run.write(gun, 25) for gun in (GUN, OTHER)] + [run.read(60) for _ in range(10)]
        await gatherResults([Deferred.fromCoroutine(each) for each in work], consumeErrors=True)
        assert len(run.seen) >= 600
        assert run.wrong() == []
        answers = {answer is None or answer == {} for _, _, _, answer in run.seen}
        assert answers == {True, False}  # both were seen: this history had something to find
        await gatherResults([stores[0].delete(gun) for gun in (GUN, OTHER)])


def test_the_checker_finds_what_is_too_old_and_what_is_not_there_yet():
    run = Run([], 0)
    one = {(TARGETS, 1): b"1", (SNAPSHOT, 1): b"1", (TIMESTAMP, 1): b"1"}
    run.histories[GUN] = History([{}, one, {}], [0, 10, 20], [0, 12, 22])
    asked = ("by_version", GUN, TARGETS, 1, "")
    verdicts = {
        (5, 9): {None: True, b"1": False},
        (5, 11): {None: True, b"1": True},
        (13, 15): {None: False, b"1": True},
        (13, 21): {None: True, b"1": True},
        (23, 25): {None: True, b"1": False},
    }
    for (began, ended), answers in verdicts.items():
        for answer, right in answers.items():
            run.seen = [(asked, began, ended, answer)]
            assert (run.wrong() == []) is right, (began, ended, answer)


# -- the server -------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_what_one_server_writes_or_deletes_the_other_answers_at_once(metadata_stores):
    one, two = [Server(CachedMetadataStore(await metadata_stores(), LARGE, reactor)) for _ in range(2)]
    two.signing = two.repository._signing = one.signing
    author = await published(one)
    first = author.stored["targets"]
    names = ("targets.json", "1.targets.json", f"targets.{sha256(first)}.json")
    for _ in range(2):
        assert [(await two.get(TUF + name)).body for name in names] == [first] * 3
    author.add("v1", b"content")
    assert (await one.upload(NAME, author.publish("targets"))).status == 200
    assert [(await two.get(TUF + name)).body for name in names] == [author.stored["targets"], first, first]
    assert (await one.request("DELETE", TUF)).status == 200
    assert [(await two.get(TUF + name)).status for name in names] == [404] * 3
    again = await published(one)
    assert [(await two.get(TUF + name)).status for name in names] == [200, 200, 404]
    assert (await two.get(TUF + names[1])).body == again.stored["targets"] != first


# -- what the cache asks of its store ---------------------------------------------------------------------------------


class Slow:
    """A store that answers when the test says so, and counts; its answers are those of ``store``."""

    def __init__(self, store) -> None:
        self.store = store
        self.clock = Clock()
        self.asked = []  # (method, arguments, Deferred that lets it go on)

    def __getattr__(self, method):
        def call(*arguments):
            go: Deferred[None] = Deferred()
            self.asked.append((method, arguments, go))
            return go.addCallback(lambda _: getattr(self.store, method)(*arguments))

        return call

    async def release(self, failure: Exception | None = None, seconds: float = 1.0) -> list[str]:
        """Let what waits go on, or fail; what it was. Then so many seconds pass."""
        asked, self.asked = self.asked, []
        for _, _, go in asked:
            go.errback(failure) if failure else go.callback(None)
        await DeferredList([go for _, _, go in asked], consumeErrors=True)
        self.clock.advance(seconds)
        return [method for method, _, _ in asked]


@pytest_twisted.async_fixture
async def slow(metadata_stores):
    store = await metadata_stores()
    for gun in (GUN, OTHER):
        await store.publish(gun, [Update(role, 1, f"{gun} {role}".encode()) for role in ROLES])
    return Slow(store)


async def settled(slow: Slow, *reads: Deferred) -> list[list[str]]:
    """Release the store until all reads are done; what was asked for in each turn."""
    turns = []
    done = DeferredList(list(reads), consumeErrors=True)
    while not done.called:
        turns.append(await slow.release())
    return turns


@pytest_twisted.ensureDeferred
async def test_one_question_at_a_time_is_asked_for_all_who_wait(slow):
    cache = CachedMetadataStore(slow, LARGE, slow.clock)
    await_first = [cache.current(GUN, ROLES)]
    assert await settled(slow, *await_first) == [["identify"], ["current"]]
    reads = [cache.current(GUN, ROLES)]
    reads += [cache.current(gun, roles) for gun in (GUN, OTHER) for roles in (ROLES, [ROOT, TARGETS]) for _ in range(3)]
    reads += [cache.by_version(GUN, TARGETS, 1), cache.by_checksum(GUN, TARGETS, sha256(f"{GUN} targets".encode()))]
    assert [(method, len(places)) for method, (places, _), _ in slow.asked] == [("identify", 3)]
    await slow.release()
    # All that came meanwhile waited for this one: three roles and root of two collections, and one place by version.
    assert [(method, len(places)) for method, (places, _), _ in slow.asked] == [("identify", 9)]
    # Calls that need the same files read them once.
    assert await settled(slow, *reads) == [["identify"], ["current", "current"]]
    assert [len(read.result) for read in reads[:-2]] == [3] * 4 + [1] * 3 + [3] * 3 + [1] * 3


@pytest_twisted.ensureDeferred
async def test_what_was_published_here_need_not_be_loaded(slow):
    cache = CachedMetadataStore(slow, LARGE, slow.clock)
    published = cache.publish(GUN, [Update(role, 2, f"{role} 2".encode()) for role in ROLES])
    assert await settled(slow, published) == [["publish"]]
    read = cache.current(GUN, ROLES)
    assert await settled(slow, read) == [["identify"]]
    assert read.result == await slow.store.current(GUN, ROLES)
    assert await settled(slow, cache.delete(GUN)) == [["delete"]]
    gone = cache.current(GUN, ROLES)
    await settled(slow, gone)
    assert gone.result == {}


@pytest_twisted.ensureDeferred
async def test_a_question_is_bounded(slow):
    cache = CachedMetadataStore(slow, LARGE, slow.clock)
    reads = [cache.by_version(GUN, TARGETS, version) for version in range(1, 3 * MAX_PLACES)]
    sizes = []
    while slow.asked:
        sizes += [len(arguments[0]) for method, arguments, _ in slow.asked if method == "identify"]
        await slow.release()
    assert sizes == [1, MAX_PLACES, MAX_PLACES, MAX_PLACES - 2]
    outcomes = await DeferredList(reads, consumeErrors=True)
    assert [ok for ok, _ in outcomes] == [True] + [False] * (3 * MAX_PLACES - 2)


@pytest_twisted.ensureDeferred
async def test_where_many_come_a_question_waits_for_those_who_were_just_answered(slow):
    cache = CachedMetadataStore(slow, LARGE, slow.clock)

    def read() -> Deferred:
        return cache.by_version(GUN, TARGETS, 1)

    async def answered() -> list[str]:
        return await slow.release(seconds=0)

    await settled(slow, read())
    assert not slow.clock.getDelayedCalls()
    reads = [read() for _ in range(5)]
    assert await answered() == ["identify"]  # the first one's
    assert reads[0].called
    assert slow.asked == []
    reads.append(read())  # now all five are here
    assert await answered() == ["identify"]
    assert all(read.called for read in reads)
    reads += [read() for _ in range(4)]
    assert slow.asked == []
    slow.clock.advance(0.1)  # the fifth has stayed away
    assert await answered() == ["identify"]
    assert all(read.called for read in reads)
    slow.clock.advance(0.1)
    few = [read() for _ in range(3)]
    assert await answered() == ["identify"]
    assert await answered() == ["identify"]  # nobody waited for the one who was answered
    assert all(read.called for read in few)
    assert not slow.clock.getDelayedCalls()


@pytest_twisted.ensureDeferred
async def test_a_cache_that_is_closed_lets_nobody_wait(slow):
    cache = CachedMetadataStore(slow, LARGE, slow.clock)
    reads = [cache.current(GUN, ROLES) for _ in range(5)]
    await slow.release(seconds=0)  # the first question
    await slow.release(seconds=0)  # the load of what it found
    assert [read.called for read in reads] == [True, False, False, False, False]
    assert len(slow.clock.getDelayedCalls()) == 1
    cache.close()
    assert not slow.clock.getDelayedCalls()
    assert [method for method, _, _ in slow.asked] == ["identify", "close"]
    await settled(slow, *reads)
    assert all(set(read.result) == set(ROLES) for read in reads)
    assert not slow.clock.getDelayedCalls()


@pytest_twisted.ensureDeferred
async def test_a_cache_may_be_closed_by_one_of_those_who_are_answered(slow):
    cache = CachedMetadataStore(slow, LARGE, slow.clock)
    reads = [cache.by_version(GUN, ROOT, 1) for _ in range(6)]
    for read in reads:
        read.addErrback(lambda failure: failure.trap(NotFound))
    await slow.release(seconds=0)
    reads += [cache.by_version(GUN, ROOT, 1).addErrback(lambda failure: failure.trap(NotFound))]
    reads[1].addCallback(lambda _: cache.close())
    await settled(slow, *reads)
    assert not slow.clock.getDelayedCalls()


@pytest_twisted.ensureDeferred
async def test_a_failure_reaches_those_who_waited_for_it_and_nobody_else(slow):
    cache = CachedMetadataStore(slow, LARGE, slow.clock)
    failed, later, given_up = cache.current(GUN, ROLES), cache.current(GUN, ROLES), cache.current(OTHER, ROLES)
    given_up.addErrback(lambda failure: failure.trap(CancelledError))
    given_up.cancel()
    await slow.release(StorageFailed("no"))
    with pytest.raises(StorageFailed, match="no"):
        await failed
    await settled(slow, later)
    assert set(later.result) == set(ROLES)


@pytest_twisted.ensureDeferred
async def test_what_is_replaced_while_it_is_read_is_read_again_as_of_one_moment(slow):
    cache = CachedMetadataStore(slow, LARGE, slow.clock)
    read = cache.current(GUN, ROLES)
    assert await slow.release() == ["identify"]
    await slow.store.publish(GUN, [Update(role, 2, b"two") for role in ROLES])
    assert await settled(slow, read) == [["current"], ["current"]]
    assert {stored.version for stored in read.result.values()} == {2}


@pytest_twisted.ensureDeferred
async def test_the_memory_has_a_bound_and_large_files_are_not_kept(slow):
    for version in range(2, 20):
        await slow.store.publish(GUN, [Update(TARGETS, version, bytes([version]) * (3 * OVERHEAD_BYTES))])
    await slow.store.publish(GUN, [Update(TARGETS, 20, bytes(5 * OVERHEAD_BYTES))])
    cache = CachedMetadataStore(slow, SMALL, slow.clock)  # five files of three times the overhead, none of five times
    for version in [*range(2, 20), 20]:
        await settled(slow, cache.by_version(GUN, TARGETS, version))
    kept = []
    for version in range(20, 14, -1):
        turns = await settled(slow, cache.by_version(GUN, TARGETS, version))
        kept.append(turns == [["identify"]])
    assert kept == [False, True, True, True, True, True]
    assert cache._files._room == 0
    assert await settled(slow, succeed(None)) == []
