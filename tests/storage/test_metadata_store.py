"""The contract of MetadataStore, on every backend."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import hypothesis.strategies as st
import pytest
import pytest_twisted
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import blockingCallFromThread, deferToThread

from notary.errors import InvalidGun, NotFound, OldVersion
from notary.storage import Update
from notary.storage.cache import OVERHEAD_BYTES, CachedMetadataStore
from notary.storage.memory import MemoryMetadataStore
from notary.storage.open import open_metadata_store
from notary.tuf.model import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Gun, RoleName

GUN = Gun("docker.io/library/alpine")
OTHER = Gun("docker.io/library/busybox")
ROLES = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
RELEASES = RoleName("targets/releases")


def content(role: RoleName, version: int, by: str = "") -> bytes:
    return f"{role} {version} {by}".encode()


def update(role: RoleName, version: int, by: str = "") -> Update:
    return Update(role, version, content(role, version, by))


def whole(version: int, by: str = "") -> list[Update]:
    """A publish of all base roles."""
    return [update(role, version, by) for role in ROLES]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def a_second_ago() -> datetime:
    """Some databases store whole seconds."""
    return datetime.now(UTC) - timedelta(seconds=1)


async def everything(store) -> tuple:
    """All that can be seen of the two collections, for "nothing changed"."""
    return [await store.current(gun, (*ROLES, RELEASES)) for gun in (GUN, OTHER)], await store.changes(None, None, 1000)


@pytest_twisted.ensureDeferred
async def test_names_come_page_by_page(metadata_stores):
    store = await metadata_stores()
    assert list(await store.guns("", 10)) == []
    names = [f"example.com/app{number}" for number in (3, 1, 5, 2, 4)]
    for name in names:
        for version in (1, 2):
            await store.publish(Gun(name), whole(version))
    found, after = [], ""
    while page := await store.guns(after, 2):
        assert len(page) <= 2
        found += page
        after = page[-1]
    assert found == sorted(names)
    await store.delete(Gun(names[0]))
    assert names[0] not in await store.guns("", 10)


# -- reading and writing ----------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_an_empty_store_holds_nothing(metadata_stores):
    store = await metadata_stores()
    assert await store.current(GUN, ROLES) == {}
    assert list(await store.changes(None, None, 10)) == []
    with pytest.raises(NotFound):
        await store.by_version(GUN, ROOT, 1)
    with pytest.raises(NotFound):
        await store.by_checksum(GUN, ROOT, "0" * 64)
    await store.check()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(bytes(range(256)), id="every-byte"),
        pytest.param(b"", id="empty"),
        pytest.param("ünïcode \U0001f600 ' \" \\ % ? %s".encode(), id="text-and-quotes"),
        pytest.param(b"\x00" * 5_000_000, id="5-MB"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_bytes_come_back_as_they_went_in(metadata_stores, data):
    store = await metadata_stores()
    before = a_second_ago()
    await store.publish(GUN, [Update(RELEASES, 3, data)])
    after = datetime.now(UTC)
    found = (await store.current(GUN, [RELEASES]))[RELEASES]
    assert (found.role, found.version, found.data, found.sha256) == (RELEASES, 3, data, sha256(data))
    assert before <= found.modified <= after
    assert found.modified.utcoffset().total_seconds() == 0
    assert await store.by_version(GUN, RELEASES, 3) == found
    assert await store.by_checksum(GUN, RELEASES, sha256(data)) == found


@pytest_twisted.ensureDeferred
async def test_current_is_the_newest_of_each_role_that_exists(metadata_stores):
    store = await metadata_stores()
    await store.publish(GUN, whole(1))
    await store.publish(GUN, [update(TARGETS, 2), update(TIMESTAMP, 9)])
    await store.publish(GUN, [update(TIMESTAMP, 10)])
    found = await store.current(GUN, [*ROLES, RELEASES])
    assert {role: stored.version for role, stored in found.items()} == {ROOT: 1, TARGETS: 2, SNAPSHOT: 1, TIMESTAMP: 10}
    assert set(await store.current(GUN, [ROOT])) == {ROOT}
    assert await store.current(GUN, []) == {}
    assert await store.current(OTHER, ROLES) == {}


@pytest_twisted.ensureDeferred
async def test_every_version_stays(metadata_stores):
    store = await metadata_stores()
    for version in (1, 2, 3):
        await store.publish(GUN, whole(version))
    for role in ROLES:
        for version in (1, 2, 3):
            data = content(role, version)
            assert (await store.by_version(GUN, role, version)).data == data
            assert (await store.by_checksum(GUN, role, sha256(data))).version == version


@pytest.mark.parametrize("version", [0, -1, 4, 2**31, 2**63, 10**30])
@pytest_twisted.ensureDeferred
async def test_a_version_that_is_not_there(metadata_stores, version):
    store = await metadata_stores()
    await store.publish(GUN, whole(3))
    with pytest.raises(NotFound):
        await store.by_version(GUN, ROOT, version)


@pytest_twisted.ensureDeferred
async def test_a_checksum_is_looked_up_for_its_own_role_and_collection(metadata_stores):
    store = await metadata_stores()
    await store.publish(GUN, whole(1))
    root = sha256(content(ROOT, 1))
    for gun, role in [(GUN, TARGETS), (OTHER, ROOT)]:
        with pytest.raises(NotFound):
            await store.by_checksum(gun, role, root)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param("a/b", "a/b/", id="slash"),
        pytest.param("a_b", "axb", id="like-underscore"),
        pytest.param("a%", "ab", id="like-percent"),
        pytest.param("e\u0301", "\u00e9", id="normal-forms"),
        pytest.param("\u4e2d", "\u6587", id="beyond-latin"),
        pytest.param("stra\u00dfe", "strasse", id="sharp-s"),
        pytest.param("o'brien", "o''brien", id="quote"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_names_match_exactly(metadata_stores, one, two):
    store = await metadata_stores()
    await store.publish(Gun(one), [update(TIMESTAMP, 1, "one")])
    await store.publish(Gun(two), [update(TIMESTAMP, 1, "two")])
    assert (await store.by_version(Gun(one), TIMESTAMP, 1)).data == content(TIMESTAMP, 1, "one")
    assert [change.gun for change in await store.changes(Gun(two), None, 10)] == [two]
    assert await store.delete(Gun(one)) is True
    assert (await store.by_version(Gun(two), TIMESTAMP, 1)).data == content(TIMESTAMP, 1, "two")


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param("a/b", "A/b", id="case"),
        pytest.param("caf\u00e9", "cafe", id="accent"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_names_that_a_database_may_not_tell_apart(metadata_stores, fresh_database, one, two):
    """The second one is a collection of its own, or none at all: it is never the first one."""
    (backend, _) = fresh_database()
    store = await metadata_stores()
    await store.publish(Gun(one), whole(1, "one"))
    before = await everything(store)
    assert await store.has(Gun(one)) is True
    assert await store.has(OTHER) is False
    if backend == "mysql":
        with pytest.raises(InvalidGun, match="cannot tell") as told:
            await store.has(Gun(two))
        assert one not in str(told.value)
        for version in (1, 2):
            for updates in (whole(version), [update(RELEASES, version)]):
                with pytest.raises(InvalidGun, match="cannot tell") as told:
                    await store.publish(Gun(two), updates)
                assert one not in str(told.value)
    else:
        assert await store.has(Gun(two)) is False
    assert await store.current(Gun(two), ROLES) == {}
    with pytest.raises(NotFound):
        await store.by_version(Gun(two), ROOT, 1)
    with pytest.raises(NotFound):
        await store.by_checksum(Gun(two), ROOT, sha256(content(ROOT, 1, "one")))
    assert list(await store.changes(Gun(two), None, 10)) == []
    assert await store.delete(Gun(two)) is False
    assert await everything(store) == before
    if backend != "mysql":
        await store.publish(Gun(two), whole(1, "two"))
    assert (await store.by_version(Gun(one), ROOT, 1)).data == content(ROOT, 1, "one")


# -- publishing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "updates",
    [
        pytest.param([update(ROOT, 5, "again")], id="same-version"),
        pytest.param([update(ROOT, 4)], id="below"),
        pytest.param([*whole(6)[:3], update(TIMESTAMP, 5)], id="one-of-several"),
        pytest.param([update(TIMESTAMP, 6), update(ROOT, 6), update(TARGETS, 1)], id="timestamp-before-the-old-one"),
        pytest.param([update(ROOT, 6), update(ROOT, 6)], id="twice-the-same"),
        pytest.param([update(TIMESTAMP, 6, "a"), update(TIMESTAMP, 6, "b")], id="twice-with-other-content"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_old_version_changes_nothing(metadata_stores, updates):
    store = await metadata_stores()
    await store.publish(GUN, whole(5))
    before = await everything(store)
    with pytest.raises(OldVersion):
        await store.publish(GUN, updates)
    assert await everything(store) == before
    await store.publish(GUN, whole(6))


@pytest.mark.parametrize("between", ["nothing", "deletion", "publish", "other life"])
@pytest_twisted.ensureDeferred
async def test_what_an_update_was_to_follow_must_still_be_there(metadata_stores, between):
    store = await metadata_stores()
    await store.publish(GUN, whole(1))
    followed = sha256(content(TIMESTAMP, 1))
    if between == "publish":
        await store.publish(GUN, whole(2), followed)
    elif between != "nothing":
        assert await store.delete(GUN)
    if between == "other life":
        await store.publish(GUN, whole(1, "somebody else"))
    before = await everything(store)
    last = [update(TARGETS, 7), update(TIMESTAMP, 7)]
    if between == "nothing":
        await store.publish(GUN, last, followed)
        assert (await store.current(GUN, [TIMESTAMP]))[TIMESTAMP].version == 7
    else:
        with pytest.raises(OldVersion):
            await store.publish(GUN, last, followed)
        assert await everything(store) == before


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(sha256(content(TIMESTAMP, 1)), id="an-older-one"),
        pytest.param(sha256(content(SNAPSHOT, 2)), id="another-role"),
        pytest.param("", id="empty"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_only_the_newest_timestamp_can_be_followed(metadata_stores, after):
    store = await metadata_stores()
    await store.publish(GUN, whole(1))
    await store.publish(GUN, whole(2), sha256(content(TIMESTAMP, 1)))
    before = await everything(store)
    for gun in (GUN, OTHER):
        with pytest.raises(OldVersion):
            await store.publish(gun, whole(3), after)
    assert await everything(store) == before


@pytest_twisted.ensureDeferred
async def test_a_delete_that_races_never_leaves_half_a_collection(metadata_stores):
    stores = [await metadata_stores(), await metadata_stores()]
    followed = sha256(content(TIMESTAMP, 1))
    for _ in range(10):
        await stores[0].publish(GUN, whole(1))
        results = await DeferredList(
            [stores[0].publish(GUN, [update(TIMESTAMP, 2)], followed), stores[1].delete(GUN)], consumeErrors=True
        )
        assert results[0][0] or results[0][1].check(OldVersion)
        assert results[1] == (True, True)
        assert await stores[0].current(GUN, ROLES) == {}


@pytest_twisted.ensureDeferred
async def test_versions_of_one_role_may_come_together_in_any_order(metadata_stores):
    store = await metadata_stores()
    await store.publish(GUN, [update(TIMESTAMP, 2), update(TIMESTAMP, 7), update(TIMESTAMP, 1)])
    assert (await store.current(GUN, [TIMESTAMP]))[TIMESTAMP].version == 7
    assert (await store.by_version(GUN, TIMESTAMP, 1)).data == content(TIMESTAMP, 1)
    assert [change.version for change in await store.changes(GUN, None, 10)] == [2, 7, 1]


@pytest_twisted.ensureDeferred
async def test_publishing_nothing_changes_nothing(metadata_stores):
    store = await metadata_stores()
    await store.publish(GUN, [])
    assert await everything(store) == ([{}, {}], [])


@pytest_twisted.ensureDeferred
async def test_of_those_who_publish_one_version_one_wins(metadata_stores):
    stores = [await metadata_stores(), await metadata_stores()]
    await stores[0].publish(GUN, whole(1))
    results = await DeferredList(
        [stores[n % 2].publish(GUN, whole(2, by=str(n))) for n in range(20)], consumeErrors=True
    )
    winners = [str(n) for n, (success, _) in enumerate(results) if success]
    assert len(winners) == 1
    assert all(result.check(OldVersion) for success, result in results if not success)
    for store in stores:
        found = await store.current(GUN, ROLES)
        assert {role: stored.data for role, stored in found.items()} == {
            role: content(role, 2, winners[0]) for role in ROLES
        }
        assert [change.version for change in await store.changes(GUN, None, 10)] == [1, 2]


@pytest_twisted.ensureDeferred
async def test_readers_see_whole_publishes_only(metadata_stores):
    writer, reader = await metadata_stores(), await metadata_stores()
    await writer.publish(GUN, whole(1))

    async def write() -> None:
        for version in range(2, 40):
            await writer.publish(GUN, whole(version))

    writes = Deferred.fromCoroutine(write())
    while not writes.called:
        found = await reader.current(GUN, ROLES)
        assert len({stored.version for stored in found.values()}) == 1
    await writes
    assert {stored.version for stored in (await reader.current(GUN, ROLES)).values()} == {39}


# -- deleting ---------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_delete_removes_every_version_of_one_collection(metadata_stores):
    store = await metadata_stores()
    for gun in (GUN, OTHER):
        await store.publish(gun, [*whole(1), update(RELEASES, 1)])
        await store.publish(gun, whole(2))
    assert await store.delete(GUN) is True
    assert await store.current(GUN, [*ROLES, RELEASES]) == {}
    with pytest.raises(NotFound):
        await store.by_version(GUN, ROOT, 1)
    with pytest.raises(NotFound):
        await store.by_checksum(GUN, ROOT, sha256(content(ROOT, 1)))
    assert len(await store.current(OTHER, [*ROLES, RELEASES])) == 5
    last = (await store.changes(None, None, 100))[-1]
    assert (last.gun, last.category, last.version, last.sha256) == (GUN, "deletion", 0, "")
    assert await store.delete(GUN) is False
    assert (await store.changes(None, None, 100))[-1] == last


@pytest_twisted.ensureDeferred
async def test_a_deleted_name_can_be_used_again(metadata_stores):
    store = await metadata_stores()
    await store.publish(GUN, whole(7))
    await store.delete(GUN)
    await store.publish(GUN, whole(1, by="the next owner"))
    assert (await store.by_version(GUN, ROOT, 1)).data == content(ROOT, 1, "the next owner")
    assert [(c.category, c.version) for c in await store.changes(GUN, None, 10)] == [
        ("update", 7),
        ("deletion", 0),
        ("update", 1),
    ]


# -- the changefeed ---------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_only_a_timestamp_is_a_change(metadata_stores):
    store = await metadata_stores()
    before = a_second_ago()
    await store.publish(GUN, [update(SNAPSHOT, 1), update(ROOT, 1), update(TARGETS, 1), update(RELEASES, 1)])
    assert list(await store.changes(None, None, 10)) == []
    await store.publish(GUN, [update(TIMESTAMP, 3)])
    (change,) = await store.changes(None, None, 10)
    assert (change.gun, change.version, change.category) == (GUN, 3, "update")
    assert change.sha256 == sha256(content(TIMESTAMP, 3))
    assert before <= change.created <= datetime.now(UTC)
    assert change.created.utcoffset().total_seconds() == 0


PAGES = [
    # The feed: numbers 1 to 8; GUN has 1 to 4 and OTHER 5 to 8, both with versions 1 to 4.
    pytest.param(None, None, 8, [1, 2, 3, 4, 5, 6, 7, 8], id="all"),
    pytest.param(None, None, 1000, [1, 2, 3, 4, 5, 6, 7, 8], id="more-than-there-are"),
    pytest.param(None, None, 3, [1, 2, 3], id="first-page"),
    pytest.param(None, 0, 3, [1, 2, 3], id="from-zero"),
    pytest.param(None, 3, 3, [4, 5, 6], id="next-page"),
    pytest.param(None, 8, 4, [], id="after-the-last"),
    pytest.param(None, 10**30, 4, [], id="far-beyond"),
    pytest.param(None, 7, -4, [3, 4, 5, 6], id="before-one"),
    pytest.param(None, 3, -4, [1, 2], id="before-one-at-the-start"),
    pytest.param(None, 1, -4, [], id="before-the-first"),
    pytest.param(None, 10**30, -2, [7, 8], id="before-far-beyond"),
    pytest.param(None, -1, 4, [5, 6, 7, 8], id="from-the-end"),
    pytest.param(None, -1, -4, [5, 6, 7, 8], id="from-the-end-backwards"),
    pytest.param(None, -(10**30), 2, [7, 8], id="from-the-end-by-an-absurd-number"),
    pytest.param(None, None, -2, [7, 8], id="backwards-from-nowhere"),
    pytest.param(None, 0, -2, [7, 8], id="backwards-from-zero"),
    pytest.param(None, None, 10**30, [1, 2, 3, 4, 5, 6, 7, 8], id="absurdly-many"),
    pytest.param(None, None, -(10**30), [1, 2, 3, 4, 5, 6, 7, 8], id="absurdly-many-backwards"),
    pytest.param(OTHER, 0, 8, [5, 6, 7, 8], id="of-one-collection"),
    pytest.param(OTHER, None, 2, [5, 6], id="first-page-of-one-collection"),
    pytest.param(OTHER, 6, 8, [7, 8], id="next-page-of-one-collection"),
    pytest.param(OTHER, -1, -8, [5, 6, 7, 8], id="of-one-collection-from-the-end"),
    pytest.param(GUN, -1, 2, [3, 4], id="of-the-other-collection-from-the-end"),
    pytest.param(GUN, 8, -2, [3, 4], id="of-the-other-collection-before-one"),
    pytest.param(Gun("nobody"), None, 8, [], id="of-none"),
]


@pytest.mark.parametrize(("gun", "change_id", "records", "expected"), PAGES)
@pytest_twisted.ensureDeferred
async def test_pages_of_the_changefeed(metadata_stores, gun, change_id, records, expected):
    store = await metadata_stores()
    for each in (GUN, OTHER):
        for version in range(1, 5):
            await store.publish(each, whole(version))
    found = await store.changes(gun, change_id, records)
    assert [change.id for change in found] == expected
    for change in found:
        assert change.gun == (GUN if change.id <= 4 else OTHER)
        assert change.version == (change.id - 1) % 4 + 1


@pytest_twisted.ensureDeferred
async def test_a_publish_says_when_it_was_as_it_will_be_read(metadata_stores):
    store = await metadata_stores()
    for version in (1, 2):
        modified = await store.publish(GUN, whole(version))
        found = await store.current(GUN, [ROOT, TIMESTAMP])
        assert {stored.modified for stored in found.values()} == {modified}


@pytest_twisted.ensureDeferred
async def test_which_files_there_are_is_told_without_reading_them(metadata_stores):
    store = await metadata_stores()
    await store.publish(GUN, whole(1))
    await store.publish(GUN, [update(TARGETS, 2), update(TIMESTAMP, 2)])
    many = [(Gun(f"{GUN}/{number}"), TARGETS, None) for number in range(250)]
    wanted = [*many, (GUN, TARGETS, None), (GUN, TARGETS, 1), (GUN, TARGETS, 3), (GUN, ROOT, None), (OTHER, ROOT, 1)]
    assert await store.identify(wanted) == {
        (GUN, TARGETS, None): (2, sha256(content(TARGETS, 2))),
        (GUN, TARGETS, 1): (1, sha256(content(TARGETS, 1))),
        (GUN, ROOT, None): (1, sha256(content(ROOT, 1))),
    }
    assert await store.identify([]) == {}


@pytest_twisted.ensureDeferred
async def test_what_stood_somewhere_lately_does_not_change_the_answer(metadata_stores):
    store = await metadata_stores()
    for version in range(1, 6):
        await store.publish(GUN, [update(TARGETS, version), update(TIMESTAMP, version)])
    await store.publish(OTHER, whole(7))
    await store.delete(OTHER)
    await store.publish(OTHER, [update(ROOT, 1)])
    wanted = [
        (GUN, TARGETS, None),
        (GUN, TIMESTAMP, None),
        (GUN, TARGETS, 2),
        (OTHER, ROOT, None),
        (OTHER, TARGETS, None),
    ]
    expected = {
        (GUN, TARGETS, None): (5, sha256(content(TARGETS, 5))),
        (GUN, TIMESTAMP, None): (5, sha256(content(TIMESTAMP, 5))),
        (GUN, TARGETS, 2): (2, sha256(content(TARGETS, 2))),
        (OTHER, ROOT, None): (1, sha256(content(ROOT, 1))),
    }
    for last_seen in (
        {},
        {wanted[0]: 5},
        {wanted[0]: 5, wanted[1]: 3},
        {wanted[0]: 1, wanted[1]: 5, wanted[3]: 1},
        {wanted[0]: 6},  # as after a deletion, or where another instance sees what this one does not
        {wanted[0]: 5, wanted[3]: 7, wanted[4]: 7},
        {(Gun("elsewhere"), TARGETS, None): 1},
    ):
        assert await store.identify(wanted, last_seen) == expected, last_seen


# -- any sequence of calls --------------------------------------------------------------------------------------------

guns = st.sampled_from([GUN, OTHER])
roles = st.sampled_from([TARGETS, TIMESTAMP])
updates = st.builds(update, roles, st.integers(1, 6), st.sampled_from(["", "a"]))
followed = st.none() | updates.map(lambda each: sha256(each.data))


def outcome(call: Callable[[], Deferred]) -> object:
    """What a call gave, in a form that two stores can be compared by: times left out. Not for the reactor's thread."""
    try:
        result = blockingCallFromThread(reactor, call)
    except (NotFound, OldVersion) as error:
        return type(error)
    if isinstance(result, dict):
        return {place: getattr(stored, "data", stored) for place, stored in result.items()}
    if isinstance(result, list):
        return [(c.id, c.gun, c.version, c.sha256, c.category) for c in result]
    return getattr(result, "data", result)


@pytest.mark.parametrize("cached", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_database_does_what_memory_does(fresh_database, cached):
    """Checks each backend, as it is and behind the cache, against the simplest one."""

    class Both(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.model = MemoryMetadataStore()
            self.store = blockingCallFromThread(reactor, open_metadata_store, *fresh_database(), reactor)
            if cached:
                self.store = CachedMetadataStore(self.store, 12 * OVERHEAD_BYTES, reactor)

        def both(self, call):
            assert outcome(lambda: call(self.store)) == outcome(lambda: call(self.model))

        @rule(gun=guns, updates=st.lists(updates, max_size=4), after=followed)
        def publish(self, gun, updates, after):
            self.both(lambda store: store.publish(gun, updates, after).addCallback(lambda _modified: None))

        @rule(gun=guns)
        def delete(self, gun):
            self.both(lambda store: store.delete(gun))

        @rule(gun=guns, role=roles, version=st.integers(0, 7))
        def by_version(self, gun, role, version):
            self.both(lambda store: store.by_version(gun, role, version))

        @rule(places=st.lists(st.tuples(guns, roles, st.none() | st.integers(-1, 2**31)), max_size=4))
        def identify(self, places):
            self.both(lambda store: store.identify(places))

        @rule(gun=guns, role=roles, named=updates)
        def by_checksum(self, gun, role, named):
            self.both(lambda store: store.by_checksum(gun, role, sha256(named.data)))

        @rule(
            gun=st.none() | guns,
            start=st.none() | st.integers(-2, 12),
            records=st.integers(-9, 9).filter(bool),
        )
        def changes(self, gun, start, records):
            self.both(lambda store: store.changes(gun, start, records))

        @invariant()
        def same_current(self):
            self.both(lambda store: store.current(GUN, ROLES))

        def teardown(self) -> None:
            blockingCallFromThread(reactor, self.store.close)

    # Hypothesis waits for each call, so it gets a thread.
    limits = settings(max_examples=15, stateful_step_count=25, deadline=None)
    await deferToThread(run_state_machine_as_test, Both, settings=limits)
