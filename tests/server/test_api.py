"""The HTTP API through the real Site, Api, Repository and store, in memory (docs/protocol.md, section 1)."""

import hashlib
import json
from datetime import timedelta
from email.utils import parsedate_to_datetime

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from notary.errors import Unauthorized
from notary.server.api import ROUTES
from notary.server.faults import FAULTS
from notary.tuf.model import Gun, RoleName, Update
from notary.tuf.publish import MAX_FILES
from tests.support.api import GUN, TUF, new_author, new_store, published
from tests.support.author import make_key, server_key_from
from tests.support.inmemory import BOUNDARY, NOW, Server, multipart


@pytest.fixture
def server():
    return Server(new_store())


def sha256(data):
    return hashlib.sha256(data).hexdigest()


# -- the good life ----------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_what_was_uploaded_comes_back_byte_for_byte(server):
    author = await published(server)
    for role in ("root", "targets"):
        data = author.stored[role]
        by_name = await server.get(f"{TUF}{role}.json")
        by_version = await server.get(f"{TUF}1.{role}.json")
        by_hash = await server.get(f"{TUF}{role}.{sha256(data)}.json")
        assert [answer.body for answer in (by_name, by_version, by_hash)] == [data] * 3
        assert by_name.headers["content-type"] == "application/json"
        assert by_name.headers["etag"] == f'"{sha256(data)}"'
        assert parsedate_to_datetime(by_name.headers["last-modified"]).tzinfo is not None
        assert by_name.headers["last-modified"].endswith("GMT")


@pytest_twisted.ensureDeferred
async def test_the_server_signs_snapshot_and_timestamp_over_the_stored_bytes(server):
    author = await published(server)
    timestamp = await server.get(f"{TUF}timestamp.json")
    snapshot = await server.get(f"{TUF}snapshot.json")
    meta = snapshot.json["signed"]["meta"]
    assert set(meta) == {"root", "targets"}
    assert meta["root"]["length"] == len(author.stored["root"])
    assert timestamp.json["signed"]["meta"]["snapshot"]["length"] == len(snapshot.body)
    assert (await server.get(f"{TUF}snapshot.{sha256(snapshot.body)}.json")).body == snapshot.body


@pytest_twisted.ensureDeferred
async def test_a_second_publish_replaces_the_first_and_both_stay_readable(server):
    author = await published(server)
    before = author.stored["targets"]
    author.add("v1", b"content")
    assert (await server.upload(GUN, author.publish("targets"))).status == 200
    assert (await server.get(f"{TUF}targets.json")).body == author.stored["targets"] != before
    assert (await server.get(f"{TUF}1.targets.json")).body == before
    assert (await server.get(f"{TUF}timestamp.json")).json["signed"]["version"] == 2


@pytest_twisted.ensureDeferred
async def test_a_delegation_is_uploaded_and_read_under_its_whole_name(server):
    author = await new_author(server)
    author.delegate("targets/releases")
    assert (await server.upload(GUN, author.first())).status == 200
    assert (await server.get(f"{TUF}targets/releases.json")).body == author.stored["targets/releases"]


@pytest_twisted.ensureDeferred
async def test_deleting_forgets_everything_and_the_name_can_be_used_again(server):
    await published(server)
    assert (await server.request("DELETE", TUF)).status == 200
    assert (await server.get(f"{TUF}root.json")).code == "METADATA_NOT_FOUND"
    assert (await server.request("DELETE", TUF)).status == 200
    await published(server)


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
@pytest_twisted.ensureDeferred
async def test_a_key_stays_the_same_until_it_is_used_and_then_is_what_root_names(server, role):
    first = await server.get(f"{TUF}{role}.key")
    assert first.headers["content-type"] == "application/json"
    assert first.json["keytype"] == "ed25519"
    assert first.json["keyval"]["private"] is None
    assert (await server.get(f"{TUF}{role}.key")).body == first.body
    assert (await server.request("POST", f"{TUF}{role}.key")).body == first.body  # still pending
    await published(server)
    assert (await server.get(f"{TUF}{role}.key")).body == first.body
    rotated = await server.request("POST", f"{TUF}{role}.key")
    assert rotated.body != first.body
    assert (await server.request("POST", f"{TUF}{role}.key")).body == rotated.body
    assert (await server.get(f"{TUF}{role}.key")).body == first.body


@pytest_twisted.ensureDeferred
async def test_a_rotated_timestamp_key_signs_from_when_root_names_it(server):
    author = await published(server)
    rotated = server_key_from((await server.request("POST", f"{TUF}timestamp.key")).body)
    author.rotate("timestamp", rotated)
    assert (await server.upload(GUN, author.publish("root"))).status == 200
    (signature,) = (await server.get(f"{TUF}timestamp.json")).json["signatures"]
    assert signature["keyid"] == rotated.key_id


# -- caching and HTTP -------------------------------------------------------------------------------------------------

CURRENT, CONSISTENT = "public, max-age=300, s-maxage=300, must-revalidate", "public, max-age=2592000, s-maxage=2592000"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("timestamp.json", CURRENT),
        ("snapshot.json", CURRENT),
        ("root.json", CURRENT),
        ("targets.json", CURRENT),
        ("1.root.json", CONSISTENT),
        ("01.root.json", CONSISTENT),
        ("timestamp.key", None),
        ("2.root.json", None),
        ("targets/a.json", None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_cache_headers_are_on_metadata_of_200_only(server, target, expected):
    await published(server)
    answer = await server.get(TUF + target)
    assert answer.headers.get("cache-control") == expected
    assert "pragma" not in answer.headers


@pytest_twisted.ensureDeferred
async def test_a_maximal_age_of_0_forbids_caching():
    server = Server(new_store(), max_age=(0, 0))
    await published(server)
    for target in ("timestamp.json", "1.root.json"):
        answer = await server.get(TUF + target)
        assert answer.headers["cache-control"] == "max-age=0, no-cache, no-store"
        assert answer.headers["pragma"] == "no-cache"


@pytest_twisted.ensureDeferred
async def test_a_client_that_has_the_file_is_told_so(server):
    await published(server)
    full = await server.get(f"{TUF}root.json")
    same = await server.get(f"{TUF}root.json", If_None_Match=full.headers["etag"])
    assert (same.status, same.body) == (304, b"")
    assert same.headers["cache-control"] == CURRENT
    assert (await server.get(f"{TUF}root.json", If_None_Match='"other"')).status == 200


@pytest.mark.parametrize(
    "target", [TUF + "root.json", TUF + "1.targets.json", "/v2/", "/_notary_server/health", "/v2/x"]
)
@pytest_twisted.ensureDeferred
async def test_head_is_get_without_the_body(server, target):
    await published(server)
    got, head = await server.get(target), await server.request("HEAD", target)
    assert (head.status, head.body) == (got.status, b"")
    assert {**head.headers, "date": ""} == {**got.headers, "date": ""}


@pytest_twisted.ensureDeferred
async def test_ping(server):
    answer = await server.get("/v2/")
    assert (answer.status, answer.json) == (200, {})


@pytest_twisted.ensureDeferred
async def test_every_request_leaves_one_event_that_names_gun_and_operation(server):
    await published(server)
    server.events.clear()
    await server.get(f"{TUF}root.json")
    await server.get("/nowhere")
    await server.raw(b"NONSENSE\r\n\r\n")
    noted = [(call.notes.get("operation"), call.notes.get("gun"), status) for call, status, _ in server.events]
    assert noted == [("GetRole", GUN, 200), ("NotFound", None, 404), (None, None, 400)]


# -- reads that find nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target"),
    [
        pytest.param("GET", "/v2/example.com/other/_trust/tuf/root.json", id="unknown gun"),
        pytest.param("GET", "/v2/EXAMPLE.com/app/_trust/tuf/root.json", id="gun in another case"),
        pytest.param("GET", "/v2/example.com/app%20/_trust/tuf/root.json", id="gun with a trailing space"),
        pytest.param("GET", f"/v2/{'x' * 256}/_trust/tuf/root.json", id="gun too long"),
        pytest.param("GET", "/v2/%F0%9F%98%80/_trust/tuf/root.json", id="gun outside the basic plane"),
        pytest.param("GET", "/v2/%FF/_trust/tuf/root.json", id="gun that is not UTF-8"),
        pytest.param("GET", "/v2/a%00b/_trust/tuf/root.json", id="gun with NUL"),
        pytest.param("GET", "/v2/a*b/_trust/tuf/root.json", id="gun with an asterisk"),
        pytest.param("GET", TUF + "0.root.json", id="version 0"),
        pytest.param("GET", TUF + "00.root.json", id="version 00"),
        pytest.param("GET", TUF + "2.root.json", id="version not there"),
        pytest.param("GET", TUF + "9" * 5000 + ".root.json", id="version of 5,000 digits"),
        pytest.param("GET", TUF + "%D9%A1.root.json", id="version in Arabic digits"),
        pytest.param("GET", TUF + "-1.root.json", id="negative version"),
        pytest.param("GET", TUF + f"root.{'0' * 64}.json", id="unknown hash"),
        pytest.param("GET", TUF + f"root.{'0' * 128}.json", id="sha512"),
        pytest.param("GET", TUF + f"root.{'0' * 63}.json", id="hash too short"),
        pytest.param("GET", TUF + "targets/none.json", id="delegation not there"),
        pytest.param("GET", TUF + "targets/UPPER.json", id="delegation name not allowed"),
        pytest.param("GET", TUF + f"targets/{'x' * 300}.json", id="delegation name too long"),
        pytest.param("GET", TUF + "mirrors.json", id="no role"),
        pytest.param("GET", TUF, id="no file"),
        pytest.param("GET", TUF + "root.key", id="a key the server never holds"),
        pytest.param("POST", TUF + "targets.key", id="a key the server never rotates"),
        pytest.param("PUT", TUF + "root.json", id="put"),
        pytest.param("GET", "/", id="root of the site"),
        pytest.param("GET", "/v2", id="v2 without a slash"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_not_found(server, method, target):
    await published(server)
    answer = await server.request(method, target)
    assert (answer.status, answer.code) == (404, "METADATA_NOT_FOUND")
    assert "cache-control" not in answer.headers


@pytest_twisted.ensureDeferred
async def test_a_hash_of_one_role_is_not_found_under_another(server):
    author = await published(server)
    digest = sha256(author.stored["root"])
    assert (await server.get(f"{TUF}root.{digest.upper()}.json")).status == 200
    assert (await server.get(f"{TUF}targets.{digest}.json")).status == 404
    assert (await server.get(f"/v2/other/_trust/tuf/root.{digest}.json")).status == 404


@pytest_twisted.ensureDeferred
async def test_a_file_that_no_timestamp_vouches_for_is_not_current():
    store = new_store()
    server = Server(store)
    author = await published(server)
    await store.publish(Gun(GUN), [Update(RoleName("targets"), 2, b"{}"), Update(RoleName("targets/a"), 1, b"{}")])
    assert (await server.get(f"{TUF}targets.json")).body == author.stored["targets"]
    assert (await server.get(f"{TUF}targets/a.json")).status == 404
    assert (await server.get(f"{TUF}2.targets.json")).body == b"{}"


@pytest.mark.parametrize(
    ("target", "clean"),
    [
        ("//v2/", "/v2/"),
        ("/v2/a/../b/_trust/tuf/root.json", "/v2/b/_trust/tuf/root.json"),
        ("/v2/a//b/_trust/tuf/root.json?x=%2F", "/v2/a/b/_trust/tuf/root.json?x=%2F"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_path_that_is_not_clean_is_redirected(server, target, clean):
    answer = await server.get(target)
    assert (answer.status, answer.headers["location"]) == (301, clean)


@pytest_twisted.ensureDeferred
async def test_an_encoded_slash_is_a_slash(server):
    author = await published(server)
    assert (await server.get("/v2/example.com%2Fapp/_trust/tuf/root.json")).body == author.stored["root"]


@pytest_twisted.ensureDeferred
async def test_a_delegation_may_be_named_like_the_fixed_parts_of_a_path(server):
    author = await new_author(server)
    author.delegate("targets/_trust")
    author.delegate("targets/_trust/tuf")
    assert (await server.upload(GUN, author.first())).status == 200
    assert (await server.get(f"{TUF}targets/_trust/tuf.json")).body == author.stored["targets/_trust/tuf"]


@pytest_twisted.ensureDeferred
async def test_a_gun_may_hold_the_fixed_parts_of_a_path(server):
    gun = "a/_trust/tuf/b"
    author = await published(server, gun)
    assert (await server.get(f"/v2/{gun}/_trust/tuf/root.json")).body == author.stored["root"]


@pytest.mark.parametrize("role", ["root", "snapshot", "timestamp"])
@pytest_twisted.ensureDeferred
async def test_stored_bytes_that_are_no_metadata_are_a_failure_of_the_service(role):
    store = new_store()
    server = Server(store)
    await store.publish(
        Gun(GUN), [Update(RoleName(each), 1, b"not JSON") for each in ("root", "snapshot", "timestamp")]
    )
    answer = await server.get(f"{TUF}{role}.json")
    assert (answer.status, answer.code, answer.detail) == (500, "UNKNOWN", None)
    assert (await server.get(f"{TUF}timestamp.key")).status == 500


# -- uploads that are refused -----------------------------------------------------------------------------------------


def _raw_upload(body, content_type=f"multipart/form-data; boundary={BOUNDARY}"):
    return {"Content-Type": content_type}, body


GOOD_JSON = b'{"signed":{"_type":"Targets","version":1,"expires":"2099-01-01T00:00:00Z"},"signatures":[]}'
BAD_UPLOADS = [
    pytest.param(_raw_upload(b""), "MALFORMED_UPLOAD", id="empty body"),
    pytest.param(_raw_upload(b"{}", "application/json"), "MALFORMED_UPLOAD", id="JSON"),
    pytest.param(_raw_upload(b"", "multipart/form-data"), "MALFORMED_UPLOAD", id="no boundary"),
    pytest.param(_raw_upload(multipart({"targets": GOOD_JSON})[1][:-40]), "MALFORMED_UPLOAD", id="truncated"),
    pytest.param(_raw_upload(multipart({"": GOOD_JSON})[1]), "NO_FILENAME", id="no file name"),
    pytest.param(_raw_upload(multipart({".json": GOOD_JSON})[1]), "NO_FILENAME", id="only the suffix"),
    pytest.param(_raw_upload(multipart({"mirrors": GOOD_JSON})[1]), "INVALID_ROLE", id="no role"),
    pytest.param(_raw_upload(multipart({"targets/": GOOD_JSON})[1]), "INVALID_ROLE", id="role with a slash at the end"),
    pytest.param(_raw_upload(multipart({"../root": GOOD_JSON})[1]), "INVALID_ROLE", id="role with dots"),
    pytest.param(_raw_upload(multipart({"targets.JSON": GOOD_JSON})[1]), "INVALID_ROLE", id="suffix in capitals"),
    *(
        pytest.param(_raw_upload(multipart({"targets": data})[1]), "MALFORMED_JSON", id=f"json: {name}")
        for name, data in {
            "empty": b"",
            "text": b"hello",
            "array": b"[]",
            "trailing data": GOOD_JSON + b"x",
            "BOM": b"\xef\xbb\xbf" + GOOD_JSON,
            "Latin-1": GOOD_JSON.replace(b"Targets", b"T\xe4rgets"),
            "lone surrogate": GOOD_JSON.replace(b"Targets", rb"\ud800"),
            "control character": GOOD_JSON.replace(b"Targets", b"T\x01"),
            "duplicate key": GOOD_JSON.replace(b'"version":1', b'"version":1,"version":1'),
            "unsigned member": GOOD_JSON.replace(b'{"signed"', b'{"x":1,"signed"'),
            "NaN": GOOD_JSON.replace(b'"version":1', b'"version":1,"x":NaN'),
            "100,000 arrays": GOOD_JSON.replace(b'"version":1', b'"version":1,"x":' + b"[" * 100_000 + b"]" * 100_000),
            "100,000 objects": GOOD_JSON.replace(
                b'"version":1', b'"version":1,"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000
            ),
            "5,000 digits": GOOD_JSON.replace(b'"version":1', b'"version":1,"x":' + b"9" * 5000),
        }.items()
    ),
]


@pytest.mark.parametrize(("upload", "code"), BAD_UPLOADS)
@pytest_twisted.ensureDeferred
async def test_a_bad_upload_is_refused_and_changes_nothing(server, upload, code):
    author = await published(server)
    before = await server.get(f"{TUF}timestamp.json")
    answer = await server.request("POST", TUF, *upload)
    assert (answer.status, answer.code) == (400, code)
    assert (await server.get(f"{TUF}timestamp.json")).body == before.body
    author.add("v1", b"content")
    assert (await server.upload(GUN, author.publish("targets"))).status == 200


@pytest_twisted.ensureDeferred
async def test_a_faulty_update_says_which_part_is_wrong(server):
    author = await new_author(server)
    files = author.first()
    answer = await server.upload(GUN, {**files, "targets": author.targets(signers=[make_key()])})
    assert (answer.status, answer.code) == (400, "INVALID_UPDATE")
    assert answer.detail["Name"] == "ErrBadTargets"
    assert "targets" in answer.detail["Error"]["Msg"]
    assert (await server.get(f"{TUF}root.json")).status == 404


@pytest_twisted.ensureDeferred
async def test_a_missing_snapshot_is_named(server):
    author = await new_author(server, snapshot="client")
    answer = await server.upload(GUN, {role: data for role, data in author.first().items() if role != "snapshot"})
    assert (answer.code, answer.detail["Name"]) == ("INVALID_UPDATE", "ErrBadHierarchy")
    assert answer.detail["Error"]["Missing"] == "snapshot"


@pytest_twisted.ensureDeferred
async def test_the_same_version_again_is_old(server):
    author = await published(server)
    answer = await server.upload(GUN, {"targets": author.stored["targets"]})
    assert (answer.status, answer.code) == (400, "VERSION")


@pytest.mark.parametrize(
    "gun", ["x" * 256, "%F0%9F%98%80", "a%00b", "a%20"], ids=["too long", "astral", "NUL", "trailing space"]
)
@pytest_twisted.ensureDeferred
async def test_a_name_that_no_collection_can_have_is_refused(server, gun):
    for answer in (
        await server.upload(gun, {}),
        await server.get(f"/v2/{gun}/_trust/tuf/timestamp.key"),
        await server.request("POST", f"/v2/{gun}/_trust/tuf/snapshot.key"),
    ):
        assert (answer.status, answer.code) == (400, "INVALID_GUN")


@pytest_twisted.ensureDeferred
async def test_a_name_outside_the_prefixes():
    server = Server(new_store(), prefixes=["example.com/"])
    await published(server)
    refused = await server.upload("elsewhere/app", {})
    assert (refused.status, refused.code) == (400, "INVALID_GUN")
    assert "example.com/" in refused.detail
    for method, file in (("GET", "root.json"), ("GET", "timestamp.key"), ("POST", "timestamp.key"), ("DELETE", "")):
        answer = await server.request(method, f"/v2/elsewhere/app/_trust/tuf/{file}")
        assert (answer.status, answer.code) == (404, "METADATA_NOT_FOUND")
    assert (await server.get("/v2/_trust/changefeed?records=1")).status == 200


@pytest_twisted.ensureDeferred
async def test_an_upload_over_the_limit_is_too_large():
    from notary.net.http.site import HttpLimits

    server = Server(new_store(), limits=HttpLimits(body=1000))
    answer = await server.upload(GUN, {"targets": b"x" * 1000})
    assert (answer.status, answer.code) == (413, "TOO_LARGE")


@pytest_twisted.ensureDeferred
async def test_an_upload_of_too_many_files_is_refused(server):
    answer = await server.upload(GUN, [("targets", GOOD_JSON)] * (MAX_FILES + 1))
    assert (answer.status, answer.code) == (400, "MALFORMED_UPLOAD")
    assert str(MAX_FILES) in answer.detail


@pytest_twisted.ensureDeferred
async def test_a_collection_that_is_deleted_during_a_publish_stays_deleted(server):
    """What the upload was judged against is gone: without its root the rest would lock the name."""
    author = await published(server)
    author.add("v1", b"content")
    files = author.publish("targets")
    signed = server.signing.sign

    def deleting(key_id, payload):
        server.signing.sign = signed
        return server.repository.delete(Gun(GUN)), signed(key_id, payload)

    async def sign(key_id, payload):
        deleted, signature = deleting(key_id, payload)
        assert await deleted
        return await signature

    server.signing.sign = lambda *arguments: Deferred.fromCoroutine(sign(*arguments))
    answer = await server.upload(GUN, files)
    assert (answer.status, answer.code) == (400, "VERSION")
    assert (await server.get(f"{TUF}timestamp.json")).status == 404
    await published(server)


# -- changefeed -------------------------------------------------------------------------------------------------------


@pytest.fixture
def feed_server():
    server = Server(new_store())

    async def fill():
        author = await published(server, "a/one")
        author.add("v1", b"1")
        await server.upload("a/one", author.publish("targets"))
        await published(server, "a/two")
        await server.request("DELETE", "/v2/a/one/_trust/tuf/")

    pytest_twisted.blockon(pytest_twisted.defer.ensureDeferred(fill()))
    return server


@pytest.mark.parametrize(
    ("path", "query", "expected"),
    [
        ("/v2/_trust/changefeed", "records=0", ["1", "2", "3", "4"]),
        ("/v2/_trust/changefeed", "records=10", ["1", "2", "3", "4"]),
        ("/v2/_trust/changefeed", "records=2", ["1", "2"]),
        ("/v2/_trust/changefeed", "records=2&change_id=2", ["3", "4"]),
        ("/v2/_trust/changefeed", "records=2&change_id=", ["1", "2"]),
        ("/v2/_trust/changefeed", "records=-2&change_id=-1", ["3", "4"]),
        ("/v2/_trust/changefeed", "records=2&change_id=-1", ["3", "4"]),
        ("/v2/_trust/changefeed", "records=-2&change_id=4", ["2", "3"]),
        ("/v2/_trust/changefeed", "records=2147483647&change_id=3", ["4"]),
        ("/v2/_trust/changefeed", "records=5&change_id=99", []),
        ("/v2/a/one/_trust/changefeed", "records=10", ["1", "2", "4"]),
        ("/v2/a/two/_trust/changefeed", "records=10", ["3"]),
        ("/v2/a/none/_trust/changefeed", "records=10", []),
    ],
)
@pytest_twisted.ensureDeferred
async def test_changefeed(feed_server, path, query, expected):
    answer = await feed_server.get(f"{path}?{query}")
    assert answer.status == 200
    assert [record["ID"] for record in answer.json["records"]] == expected
    assert answer.json["count"] == len(expected)


@pytest_twisted.ensureDeferred
async def test_records_of_the_changefeed(feed_server):
    records = (await feed_server.get("/v2/_trust/changefeed?records=10")).json["records"]
    assert [record["Category"] for record in records] == ["update", "update", "update", "deletion"]
    assert [record["Version"] for record in records] == [1, 2, 1, 0]
    assert [record["GUN"] for record in records] == ["a/one", "a/one", "a/two", "a/one"]
    timestamp = await feed_server.get("/v2/a/two/_trust/tuf/timestamp.json")
    assert [record["SHA256"] for record in records][2:] == [sha256(timestamp.body), ""]
    assert all(record["CreatedAt"].endswith("Z") for record in records)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "records=",
        "records=x",
        "records=1.5",
        "records=2147483648",
        "records=-2147483649",
        "records=" + "9" * 5000,
        "records=%D9%A1",
        "records=1&change_id=x",
        "records=1&change_id=1_0",
        "records=1&change_id=99999999999",
    ],
)
@pytest_twisted.ensureDeferred
async def test_bad_numbers_in_a_changefeed_query(server, query):
    answer = await server.get(f"/v2/_trust/changefeed?{query}")
    assert (answer.status, answer.code) == (400, "INVALID_PARAMETERS")


# -- who may ----------------------------------------------------------------------------------------------------------


class Gate:
    """Lets nobody in, and remembers what was asked."""

    def __init__(self):
        self.asked = []

    def authorize(self, authorization, host, access, now):
        self.asked.append(tuple(access))
        raise Unauthorized("authentication required", 'Bearer realm="r"', tuple(access))


@pytest.mark.parametrize(
    ("method", "target", "asked"),
    [
        ("GET", "/v2/", [("registry", "catalog", "*")]),
        ("POST", TUF, [("repository", GUN, "push"), ("repository", GUN, "pull")]),
        ("GET", TUF + "root.json", [("repository", GUN, "pull")]),
        ("GET", TUF + "1.root.json", [("repository", GUN, "pull")]),
        ("GET", TUF + f"root.{'0' * 64}.json", [("repository", GUN, "pull")]),
        ("GET", TUF + "timestamp.key", [("repository", GUN, "push"), ("repository", GUN, "pull")]),
        ("POST", TUF + "timestamp.key", [("repository", GUN, "*")]),
        ("DELETE", TUF, [("repository", GUN, "*")]),
        ("GET", f"/v2/{GUN}/_trust/changefeed", [("repository", GUN, "pull")]),
        ("GET", "/v2/_trust/changefeed", [("registry", "catalog", "*")]),
        ("GET", "/nowhere", [("registry", "catalog", "*")]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_rights_that_are_asked_for(method, target, asked):
    gate = Gate()
    answer = await Server(new_store(), access=gate).request(method, target)
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
    assert answer.headers["www-authenticate"] == 'Bearer realm="r"'
    assert answer.detail == [{"Type": kind, "Class": "", "Name": name, "Action": what} for kind, name, what in asked]
    assert gate.asked == [tuple(asked)]


@pytest.mark.parametrize("target", ["/_notary_server/health", "/metrics"])
@pytest_twisted.ensureDeferred
async def test_health_and_metrics_ask_for_nothing(target):
    assert (await Server(new_store(), access=Gate()).get(target)).status == 200


def test_tables_are_complete():
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)
    assert len({fault.code for fault in FAULTS.values()}) == len(set(FAULTS.values()))
    assert json.dumps([fault.message for fault in FAULTS.values()])
    assert NOW.utcoffset() == timedelta(0)
