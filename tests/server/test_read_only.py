"""A server that is read-only: it serves what is stored, and refuses every client's request that would write."""

import json

import pytest
import pytest_twisted

from notary.errors import ConfigError, ReadOnly, Unauthorized
from notary.server.api import ROUTES
from tests.support.api import GUN, TUF, new_store, published
from tests.support.configurations import read_server, server
from tests.support.inmemory import Server, multipart


class Locked:
    """Access for nobody."""

    def authorize(self, *_):
        raise Unauthorized("no token", 'Bearer realm="https://auth.example/token"')


class Recording:
    """A store, and the names of the methods that were called."""

    def __init__(self, store):
        self.store = store
        self.called = set()

    def __getattr__(self, name):
        self.called.add(name)
        return getattr(self.store, name)


WRITES = [
    pytest.param("POST", TUF, "GET, HEAD", id="UpdateTUF"),
    pytest.param("DELETE", TUF, "GET, HEAD", id="DeleteTUF"),
    pytest.param("GET", TUF + "timestamp.key", "", id="GetKey"),
    pytest.param("HEAD", TUF + "snapshot.key", "", id="HeadKey"),
    pytest.param("POST", TUF + "timestamp.key", "", id="RotateKey"),
    pytest.param("DELETE", "/v2/%00/_trust/tuf/", "GET, HEAD", id="no collection has this name"),
]


def test_every_route_says_whether_it_writes():
    assert {route.operation for route in ROUTES if route.writes} == {"UpdateTUF", "GetKey", "RotateKey", "DeleteTUF"}


@pytest.mark.parametrize("access", [None, Locked()], ids=["everybody", "nobody"])
@pytest.mark.parametrize(("method", "target", "allow"), WRITES)
@pytest_twisted.ensureDeferred
async def test_whatever_writes_is_refused(method, target, allow, access):
    store = Recording(new_store())
    server = Server(store, read_only=True, access=access)
    content_type, body = multipart({"root": b"{}"}) if method == "POST" else ("", b"")
    answer = await server.request(method, target, {"Content-Type": content_type}, body)
    assert (answer.status, answer.headers["allow"]) == (403, allow)
    assert "www-authenticate" not in answer.headers
    if method != "HEAD":
        assert answer.code == "READ_ONLY"
        assert answer.detail == "this server is read-only: send changes to the server whose collections it serves"
    assert store.called == set()
    assert server.metrics.counters()['notary_server_errors_total{code="READ_ONLY"}'] == 1


@pytest_twisted.ensureDeferred
async def test_an_upload_is_refused_before_its_body_comes():
    server = Server(new_store(), read_only=True)
    head = f"POST {TUF} HTTP/1.1\r\nHost: n\r\nContent-Length: 90000000\r\nExpect: 100-continue\r\n\r\n"
    assert (await server.raw(head.encode())).status == 403


@pytest_twisted.ensureDeferred
async def test_reads_go_on_and_nothing_is_renewed():
    store = new_store()
    writer = Server(store)
    await published(writer)
    recording = Recording(store)
    reader = Server(recording, read_only=True)
    names = ("root", "targets", "snapshot", "timestamp", "1.root", "1.timestamp")
    before = {name: (await writer.get(f"{TUF}{name}.json")).body for name in names}
    for days in (0, 15, 4000):  # the timestamp expires, then everything
        reader.advance(days=days)
        for name, body in before.items():
            for _ in range(2):
                answer = await reader.get(f"{TUF}{name}.json")
                assert (answer.status, answer.body) == (200, body)
    snapshot = await reader.get(f"{TUF}snapshot.json")
    digest = snapshot.headers["etag"].strip('"')
    assert (await reader.get(f"{TUF}snapshot.{digest}.json")).body == snapshot.body
    assert (await reader.request("HEAD", f"{TUF}timestamp.json")).status == 200
    assert (await reader.get(f"{TUF}targets/releases.json")).status == 404
    feed = (await reader.get("/v2/_trust/changefeed?records=10")).json
    assert [record["GUN"] for record in feed["records"]] == [GUN]
    assert recording.called == {"current", "by_version", "by_checksum", "changes"}
    writer.advance(days=15)
    assert json.loads((await writer.get(f"{TUF}timestamp.json")).body)["signed"]["version"] == 2
    assert (await reader.get(f"{TUF}timestamp.json")).body != before["timestamp"]


@pytest_twisted.ensureDeferred
async def test_a_collection_without_a_timestamp_is_not_found():
    reader = Server(new_store(), read_only=True)
    for role in ("timestamp", "snapshot", "root"):
        assert (await reader.get(f"{TUF}{role}.json")).status == 404


@pytest_twisted.ensureDeferred
async def test_use_cases_that_write_are_refused_by_themselves():
    server = Server(new_store(), read_only=True)
    repository = server.repository
    for call in (
        repository.publish(GUN, [], None),
        repository.delete(GUN),
        repository.get_key(GUN, "timestamp"),
        repository.rotate_key(GUN, "timestamp"),
    ):
        with pytest.raises(ReadOnly):
            await call


@pytest_twisted.ensureDeferred
async def test_readiness_says_so():
    server = Server(new_store(), read_only=True)
    answer = await server.get("/readyz")
    assert (answer.status, answer.json) == (
        200,
        {"status": "ok", "reads": True, "writes": False, "read_only": True, "failures": {}},
    )


# -- the configuration ------------------------------------------------------------------------------------------------


def test_no_signing_service_is_needed_and_none_is_looked_at():
    sqlite = {"backend": "sqlite3", "db_url": "n.db"}
    for trust in ({}, {"type": "local"}, {"type": "remote", "port": "no number"}, {"type": "yubikey"}):
        tree = server("server.read_only", True, storage=sqlite, trust_service=trust)
        config = read_server(tree)
        assert (config.server.read_only, config.trust_service.type) == (True, "")
    assert read_server(server("server.read_only", True, storage=sqlite, trust_service={"type": "local"})).server.workers


@pytest.mark.parametrize("value", [True, "true"])
def test_a_store_that_is_empty_at_each_start_cannot_be_read_only(value):
    with pytest.raises(ConfigError, match="read_only: true cannot be used with storage"):
        read_server(server("server.read_only", value, storage={"backend": "memory"}))
