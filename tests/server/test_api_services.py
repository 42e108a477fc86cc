"""The HTTP API when the services behind it fail, when metadata expires, and what it says of its health."""

import re
from urllib.parse import quote

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import globalLogPublisher

from notary.errors import SigningFailed, StorageFailed
from notary.server.repository import LARGE_BYTES, SMALL_BYTES
from notary.server.signing.local import LocalSigner
from tests.support.api import GUN, TUF, new_store, published
from tests.support.inmemory import Server


@pytest.fixture
def server():
    return Server(new_store())


@pytest.fixture
def log():
    events = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


# -- failures of the services behind ----------------------------------------------------------------------------------


class Broken:
    """A store or signing service whose every method fails."""

    def __init__(self, error):
        self.error = error

    def __getattr__(self, name):
        return lambda *_: fail(self.error)


@pytest_twisted.ensureDeferred
async def test_a_broken_store_gives_500_without_details():
    server = Server(Broken(StorageFailed("the disk of db7.internal is full")))
    for method, target, code in (
        ("GET", TUF + "root.json", "UNKNOWN"),
        ("GET", TUF + "timestamp.key", "UNKNOWN"),
        ("DELETE", TUF, "UNKNOWN"),
        ("GET", "/v2/_trust/changefeed?records=1", "UNKNOWN"),
    ):
        answer = await server.request(method, target)
        assert (answer.status, answer.code, answer.detail) == (500, code, None)
    answer = await server.upload(GUN, {})
    assert (answer.status, answer.code, answer.detail) == (500, "UPDATING", None)


@pytest.mark.parametrize("size", [1, SMALL_BYTES + 1, LARGE_BYTES + 1], ids=["small", "middle", "large"])
@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        pytest.param("targets", b"{", "MALFORMED_JSON", id="json"),
        pytest.param("targets", b"[]", "MALFORMED_JSON", id="shape"),
        pytest.param("", b"{}", "NO_FILENAME", id="no-name"),
        pytest.param("mirrors", b"{}", "INVALID_ROLE", id="role"),
        pytest.param("targets", b'{"signed": {}, "signatures": []}', "UPDATING", id="well-formed"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_malformed_upload_of_any_size_is_refused_while_the_store_is_down(name, content, code, size):
    server = Server(Broken(StorageFailed("away")))
    answer = await server.upload(GUN, {name: content.ljust(size)})
    assert (answer.status, answer.code) == (500 if code == "UPDATING" else 400, code)


@pytest.mark.parametrize("name", ["a" * 300, "a/\x01b"], ids=["long", "control"])
@pytest_twisted.ensureDeferred
async def test_a_name_that_cannot_exist_is_like_any_that_is_not_there(server, name):
    answer = await server.request("DELETE", f"/v2/{quote(name)}/_trust/tuf/")
    assert (answer.status, answer.body) == (200, b"")
    await published(server)
    feed = await server.get(f"/v2/{quote(name)}/_trust/changefeed?records=9")
    assert (feed.status, feed.json) == (200, {"count": 0, "records": []})
    assert (await server.get(f"/v2/{quote(name)}/_trust/changefeed?records=x")).status == 400


@pytest_twisted.ensureDeferred
async def test_an_unforeseen_error_gives_500_and_the_next_request_is_served(log):
    server = Server(Broken(ZeroDivisionError("secret detail")))
    answer = await server.get(TUF + "root.json")
    assert (answer.status, answer.code) == (500, "UNKNOWN")
    assert b"secret" not in answer.body
    assert answer.detail == {"id": re.fullmatch("[0-9a-f]{12}", answer.detail["id"])[0]}
    (logged,) = [event for event in log if event.get("error_id") == answer.detail["id"]]
    assert logged["log_failure"].type is ZeroDivisionError
    assert server.metrics.counters()["notary_server_unexpected_errors_total"] == 1
    assert server.metrics.counters()['notary_server_errors_total{code="UNKNOWN"}'] == 1
    assert (await server.get("/v2/")).status == 200


class Stoppable(LocalSigner):
    down = False

    def sign(self, key_id, payload):
        return fail(SigningFailed("no route to the signer")) if self.down else super().sign(key_id, payload)


@pytest_twisted.ensureDeferred
async def test_publishing_fails_and_reading_goes_on_while_the_signer_is_down():
    signing = Stoppable()
    server = Server(new_store(), signing=signing)
    author = await published(server)
    before = await server.get(TUF + "timestamp.json")
    author.add("v1", b"content")
    files = author.publish("targets")
    signing.down = True
    answer = await server.upload(GUN, files)
    assert (answer.status, answer.code) == (500, "UPDATING")
    server.advance(days=20)  # the timestamp has expired and cannot be renewed
    assert (await server.get(TUF + "timestamp.json")).body == before.body
    signing.down = False
    assert (await server.upload(GUN, files)).status == 200


# -- renewal ----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_an_expired_timestamp_is_renewed_once(server):
    await published(server)
    old = await server.get(TUF + "timestamp.json")
    server.advance(days=13)
    assert (await server.get(TUF + "timestamp.json")).body == old.body
    server.advance(days=2)
    new = await server.get(TUF + "timestamp.json")
    assert new.json["signed"]["version"] == 2
    assert new.json["signed"]["meta"] == old.json["signed"]["meta"]
    assert (await server.get(TUF + "timestamp.json")).body == new.body
    assert (await server.get(TUF + "1.snapshot.json")).body == (await server.get(TUF + "snapshot.json")).body


@pytest_twisted.ensureDeferred
async def test_an_expired_snapshot_of_the_server_is_renewed_with_its_timestamp(server):
    await published(server)
    server.advance(days=3 * 365 + 1)
    snapshot = await server.get(TUF + "snapshot.json")
    assert snapshot.json["signed"]["version"] == 2
    timestamp = await server.get(TUF + "timestamp.json")
    assert timestamp.json["signed"]["meta"]["snapshot"]["length"] == len(snapshot.body)


@pytest_twisted.ensureDeferred
async def test_an_expired_snapshot_of_the_publisher_is_served_as_it_is(server):
    author = await published(server, snapshot="client")
    server.advance(days=4 * 365)
    assert (await server.get(TUF + "snapshot.json")).body == author.stored["snapshot"]
    assert (await server.get(TUF + "timestamp.json")).json["signed"]["version"] == 2


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_renewed_is_not_tried_at_every_read():
    signing = Counting()
    server = Server(new_store(), signing=signing)
    await published(server, snapshot="client")
    server.advance(days=4 * 365)
    await server.get(TUF + "timestamp.json")  # the timestamp is renewed, the snapshot cannot be
    before = signing.asked
    for _ in range(3):
        assert (await server.get(TUF + "timestamp.json")).json["signed"]["version"] == 2
    assert signing.asked - before <= 1
    server.advance(minutes=2)
    await server.get(TUF + "timestamp.json")
    assert signing.asked - before <= 2


class Counting(LocalSigner):
    asked = 0

    def sign(self, key_id, payload):
        self.asked += 1
        return super().sign(key_id, payload)


@pytest_twisted.ensureDeferred
async def test_an_expired_root_does_not_stop_renewal_and_is_counted(server):
    await published(server)
    server.advance(days=11 * 365)
    assert (await server.get(TUF + "timestamp.json")).json["signed"]["version"] == 2
    assert (await server.get(TUF + "root.json")).status == 200
    assert b"notary_server_expired_root_renewals_total 1.0" in (await server.get("/metrics")).body


# -- health and metrics -----------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_check_that_does_not_answer_has_failed():
    server = Server(new_store())
    server.checks["Trust operational"] = Deferred
    server.health.startService()
    server.clock.advance(10)
    answer = await server.get("/_notary_server/health")
    assert (answer.status, answer.json) == (503, {"Trust operational": "no answer within 10 seconds"})
    server.health.stopService()


@pytest.mark.parametrize("name", ["DB operational", "DB takes writes"])
@pytest_twisted.ensureDeferred
async def test_a_database_that_hangs_is_known_after_four_seconds(name):
    server = Server(new_store())
    hangs = []
    server.checks[name] = lambda: Deferred() if hangs else succeed(None)
    server.health.startService()
    hangs.append(True)
    for turned in (503, 200):
        for _ in range(4):
            server.clock.advance(1)
        assert (await server.get("/_notary_server/health")).status == turned
        hangs.clear()
    server.health.stopService()


@pytest_twisted.ensureDeferred
async def test_health_says_which_check_fails_and_recovers():
    server = Server(new_store())
    outcome = [StorageFailed("cannot connect")]
    server.checks["DB operational"] = lambda: fail(outcome[0]) if outcome else succeed(None)
    server.health.startService()
    answer = await server.get("/_notary_server/health")
    assert (answer.status, answer.json) == (503, {"DB operational": "cannot connect"})
    outcome.clear()
    server.clock.advance(10)
    answer = await server.get("/_notary_server/health")
    assert (answer.status, answer.json) == (200, {})
    server.health.stopService()
    assert server.clock.getDelayedCalls() == [] or all(not call.active() for call in server.clock.getDelayedCalls())


@pytest_twisted.ensureDeferred
async def test_readiness_follows_what_can_be_served():
    server = Server(new_store())
    broken = {"DB operational": None, "DB takes writes": None, "Trust operational": Deferred()}
    server.checks.update({name: lambda name=name: broken[name] or succeed(None) for name in broken})

    async def ready():
        answer = await server.get("/readyz")
        return answer.status, answer.json

    server.health.startService()
    assert await ready() == (503, {"status": "starting"})
    assert (await server.get("/livez")).json == {"status": "alive"}
    broken["Trust operational"].callback(None)
    broken["Trust operational"] = None
    assert await ready() == (200, {"status": "ok", "reads": True, "writes": True, "failures": {}})
    for name, status, reads in (
        ("Trust operational", "degraded", True),
        ("DB takes writes", "degraded", True),
        ("DB operational", "failing", False),
    ):
        broken[name] = fail(StorageFailed("away"))
        server.clock.advance(10)
        facts = {"status": status, "reads": reads, "writes": False, "failures": {name: "away"}}
        assert await ready() == (200 if reads else 503, facts)
        assert (await server.get("/livez")).status == 200
        broken[name] = None
        server.clock.advance(10)
    server.health.retire()
    assert await ready() == (503, {"status": "stopping"})
    server.health.stopService()


@pytest_twisted.ensureDeferred
async def test_metrics_count_requests_by_operation(server):
    await published(server)
    await server.get(TUF + "root.json")
    await server.get(TUF + "9.root.json")
    text = (await server.get("/metrics")).body.decode()
    assert 'operation="GetRole"' in text
    assert 'operation="UpdateTUF"' in text
    assert "process_resident_memory_bytes" in text
