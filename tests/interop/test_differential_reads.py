"""Everything but uploads, sent to the Go server and to ours: same status, same code, same kind of body, same headers.

Rules of this module: each case gets a collection of its own on each side, with two versions of targets, of
``targets/releases``, of the snapshot and of the timestamp, and one of root. ``reference`` is what the Go server
answers; where ours must answer otherwise the case says so and quotes its reason.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_twisted

from tests.interop.conftest import Sides
from tests.support.author import Author, make_root_key
from tests.support.peers import GO_SERVER, OUR_SERVER, Daemon, daemon
from tests.support.sides import (
    BASE_ROLES,
    MULTIPART,
    PREFIX,
    Answer,
    Case,
    Collection,
    Side,
    Table,
    clone,
    form,
    form_of,
    make_collection,
)

NOT_FOUND = "404 METADATA_NOT_FOUND"
BAD_PARAMETERS = "400 INVALID_PARAMETERS"
INVALID_GUN = "400 INVALID_GUN"
MALFORMED = "400 UNKNOWN"
JSON = "application/json"

# What the exceptions rest on: docs/protocol.md, section 9, unless it is said otherwise.
HEAD_ROW = "no HEAD: HEAD works wherever GET does"
CACHE_ROW = "a hash of one role read under another role's name answers 200 (0.7.0's cache): 404"
HEX_ROW = "section 1: <hex 64>; the reference finds it in upper case on MySQL and does not on memory"
GUN_ROW = "a name that the table cannot hold or cannot tell from an existing one: 400 INVALID_GUN on uploads and .key"
ANYTHING_ELSE = "section 1: (anything else) 404 METADATA_NOT_FOUND"
EVERY_ERROR = 'section 1: body of every error: {"errors": …}, application/json'
LIMITS = "no limit on upload size: 413 beyond a configurable limit; requests are limited likewise"
OPTIONS_ROW = "answers 405 without a body to OPTIONS of any path: 200 with Allow, 404 if nothing is there"
NEVER_DROPPED = "never a dropped connection where an answer is possible"

CASES = Table()
case = CASES.case


async def history(side: Side, **options: Any) -> Collection:
    """The collection that every case gets."""
    collection = await make_collection(side, **options)
    author = clone(collection.author)
    author.add("v2", b"content of v2")
    author.add("rel2", b"content of rel2", "targets/releases")
    answer = await collection.push(author, "targets", "targets/releases")
    assert answer.status == 200, f"{side.name}: {answer}"
    return collection


async def filled(c: Collection, template: str) -> str:
    """A path with ``{g}`` (the collection), ``{gun}`` and digests (``{root}``, ``{sha512_root}``) put in."""
    places = {"g": f"/v2/{c.quoted}/_trust", "gun": c.quoted}
    if "{" in template.replace("{g}", "").replace("{gun}", ""):
        served = await c.current()
        for role, data in served.items():
            name = role.rpartition("/")[2]
            for algorithm in ("sha224", "sha256", "sha384", "sha512"):
                places[f"{algorithm}_{name}"] = hashlib.new(algorithm, data).hexdigest()
            places[name] = places[f"sha256_{name}"]
            places[f"upper_{name}"] = places[name].upper()
    return template.format(**places)


def asks(template: str, method: str = "GET", body: bytes | None = None) -> Any:
    """One request by treq."""

    async def recipe(c: Collection, _author: Author) -> Answer:
        return await c.side.request(method, await filled(c, template), body)

    return recipe


def raw(template: str, method: str = "GET", body: bytes = b"", headers: tuple[str, ...] = ()) -> Any:
    """One request whose target goes out byte for byte (Latin-1 of the template)."""

    async def recipe(c: Collection, _author: Author) -> Answer:
        return await c.side.raw(method, (await filled(c, template)).encode("latin-1"), body, headers)

    return recipe


def get(template: str, reference: str, **options: Any) -> None:
    case(f"GET {template}", asks(template), reference, **options)


# -- metadata ---------------------------------------------------------------------------------------------------------

get("{g}/tuf/root.json", "200 Root 1")
get("{g}/tuf/targets.json", "200 Targets 2")
get("{g}/tuf/targets/releases.json", "200 Targets 2")
get("{g}/tuf/snapshot.json", "200 Snapshot 2")
get("{g}/tuf/timestamp.json", "200 Timestamp 2")
get("{g}/tuf/root.{root}.json", "200 Root 1")
get("{g}/tuf/targets.{targets}.json", "200 Targets 2")
get("{g}/tuf/targets/releases.{releases}.json", "200 Targets 2")
get("{g}/tuf/snapshot.{snapshot}.json", "200 Snapshot 2")
get("{g}/tuf/timestamp.{timestamp}.json", "200 Timestamp 2")
for _role, _type in {"root": "Root", "targets": "Targets", "snapshot": "Snapshot", "timestamp": "Timestamp"}.items():
    get(f"{{g}}/tuf/1.{_role}.json", f"200 {_type} 1")
    get(f"{{g}}/tuf/2.{_role}.json", NOT_FOUND if _role == "root" else f"200 {_type} 2")
    get(f"{{g}}/tuf/0.{_role}.json", NOT_FOUND)
    get(f"{{g}}/tuf/3.{_role}.json", NOT_FOUND)
get("{g}/tuf/1.targets/releases.json", "200 Targets 1")
get("{g}/tuf/01.root.json", "200 Root 1")
get("{g}/tuf/0001.root.json", "200 Root 1")
get("{g}/tuf/00.root.json", NOT_FOUND)
get("{g}/tuf/10.root.json", NOT_FOUND)
get("{g}/tuf/-1.root.json", NOT_FOUND)
get("{g}/tuf/+1.root.json", NOT_FOUND)
get("{g}/tuf/1.0.root.json", NOT_FOUND)
get("{g}/tuf/0x1.root.json", NOT_FOUND)
get("{g}/tuf/2147483648.root.json", NOT_FOUND)
get("{g}/tuf/4294967297.root.json", NOT_FOUND)
get("{g}/tuf/18446744073709551617.root.json", NOT_FOUND)
case("GET a version of 1,000 digits", asks("{g}/tuf/" + "9" * 1000 + ".root.json"), NOT_FOUND)
get("{g}/tuf/%D9%A1.root.json", NOT_FOUND)
get("{g}/tuf/root.{upper_root}.json", NOT_FOUND, own="200 Root 1", row=HEX_ROW)
get("{g}/tuf/root.{sha512_root}.json", NOT_FOUND)
get("{g}/tuf/root.{sha384_root}.json", NOT_FOUND)
get("{g}/tuf/root.{sha224_root}.json", NOT_FOUND)
get("{g}/tuf/root.{root}0.json", NOT_FOUND)
get("{g}/tuf/root." + "0" * 64 + ".json", NOT_FOUND)
get("{g}/tuf/root." + "g" * 64 + ".json", NOT_FOUND)
get("{g}/tuf/root.{targets}.json", "200 Targets 2", own=NOT_FOUND, row=CACHE_ROW)
get("{g}/tuf/targets.{releases}.json", "200 Targets 2", own=NOT_FOUND, row=CACHE_ROW)
get("{g}/tuf/targets/nobody.{targets}.json", "200 Targets 2", own=NOT_FOUND, row=CACHE_ROW)
get("{g}/tuf/mirrors.{targets}.json", NOT_FOUND)
get("{g}/tuf/targets/nobody.json", NOT_FOUND)
get("{g}/tuf/targets/releases/nobody.json", NOT_FOUND)
get("{g}/tuf/1.targets/nobody.json", NOT_FOUND)
get("{g}/tuf/targets/Releases.json", NOT_FOUND)
get("{g}/tuf/targets/releases.json.json", NOT_FOUND)
get("{g}/tuf/targets/.json", NOT_FOUND)
get("{g}/tuf/targets/a*b.json", NOT_FOUND)
get("{g}/tuf/targets/a.b.json", NOT_FOUND)
get("{g}/tuf/targets/a%20b.json", NOT_FOUND)
get("{g}/tuf/targets%2Freleases.json", "200 Targets 2")
get("{g}/tuf/targets%2freleases.json", "200 Targets 2")
get("{g}/tuf/%72oot.json", "200 Root 1")
get("{g}/tuf/root%2Ejson", "200 Root 1")
get("{g}/tuf/root%252Ejson", NOT_FOUND)
get("{g}/tuf/root.json%00", NOT_FOUND)
get("{g}/tuf/root.json%0A", "404 text", own=NOT_FOUND, row=ANYTHING_ELSE)
get("{g}/tuf/root.json/", NOT_FOUND)
get("{g}/tuf/root", NOT_FOUND)
get("{g}/tuf/root.JSON", NOT_FOUND)
get("{g}/tuf/Root.json", NOT_FOUND)
get("{g}/tuf/root.json.json", NOT_FOUND)
get("{g}/tuf/rootxjson", NOT_FOUND)
get("{g}/tuf/mirrors.json", NOT_FOUND)
get("{g}/tuf/.json", NOT_FOUND)
get("{g}/tuf/root.json?version=9&x", "200 Root 1")
get("{g}/tuf/root.json?%zz", "200 Root 1")
get("{g}/tuf/", NOT_FOUND)
get("{g}/tuf", NOT_FOUND)
get("{g}/", NOT_FOUND)
get("{g}/TUF/root.json", NOT_FOUND)
for _role in BASE_ROLES:
    get(f"/v2/example.com/nobody/_trust/tuf/{_role}.json", NOT_FOUND)


# -- paths ------------------------------------------------------------------------------------------------------------

get("/v2/", "200 {}")
get("/v2", NOT_FOUND)
get("/", NOT_FOUND)
get("/v1/", NOT_FOUND)
get("/v2/?x=1", "200 {}")
get("/v2/_trust/tuf/root.json", NOT_FOUND)
get("/v2/{gun}", NOT_FOUND)
get("/v2/{gun}/", NOT_FOUND)
get("/v2/{gun}/manifests/latest", NOT_FOUND)
get("/v2/{gun}*/_trust/tuf/root.json", NOT_FOUND)
get("/v2/{gun}%2A/_trust/tuf/root.json", NOT_FOUND)
get("/v2/%2F/_trust/tuf/root.json", "301")
get("/favicon.ico", NOT_FOUND)
get("/_notary_server/health", "200 {}")
get("/_notary_server/health/", NOT_FOUND)
get("/_notary_signer/health", NOT_FOUND)
get("/metrics", "200 text")
get("/debug/vars", NOT_FOUND)
get("/v2/{gun}/_trust/tuf/../tuf/root.json", "301")
get("/v2/{gun}/_trust/./tuf/root.json", "301")
get("/v2//{gun}/_trust/tuf/root.json", "301")
get("/v2/{gun}//_trust/tuf/root.json", "301")
get("//v2/", "301")
get("/../../../etc/passwd", "301")
get("/v2/%2E%2E/%2E%2E/etc/passwd", "301")
get("/v2/..%2F..%2F_trust/tuf/root.json", "301")
case("GET a path of 7,000 characters", asks("/v2/" + "a" * 7000 + "/_trust/tuf/root.json"), NOT_FOUND)
case(
    "GET a path of 10,000 characters",
    asks("/v2/" + "a" * 10_000 + "/_trust/tuf/root.json"),
    NOT_FOUND,
    own="414 UNKNOWN",
    row=LIMITS,
)
case("GET with a space in the target", raw("/v2/a b/_trust/tuf/root.json"), "400 text", own=MALFORMED, row=EVERY_ERROR)
case("GET with a broken escape", raw("/v2/%zz/_trust/tuf/root.json"), "400 text", own=MALFORMED, row=EVERY_ERROR)
case("GET with a short escape", raw("/v2/a%2"), "400 text", own=MALFORMED, row=EVERY_ERROR)
case("GET with a NUL in the target", raw("/v2/\x00/_trust/tuf/root.json"), "400 text", own=MALFORMED, row=EVERY_ERROR)
case("GET with Latin-1 in the target", raw("/v2/\xe9/_trust/tuf/root.json"), NOT_FOUND, own=MALFORMED, row=EVERY_ERROR)
case("GET with escaped Latin-1", raw("/v2/%E9/_trust/tuf/root.json"), NOT_FOUND)
case("GET with a fragment", raw("{g}/tuf/root.json#part"), NOT_FOUND)
case("GET with the whole URL", raw("http://localhost{g}/tuf/root.json"), "200 Root 1")
case("GET of no path", raw("v2/"), "400 text", own=MALFORMED, row=EVERY_ERROR)
case("GET of an asterisk", raw("*"), "301", own=NOT_FOUND, row=ANYTHING_ELSE)
case(
    "GET with 150 header fields", raw("{g}/tuf/root.json", headers=tuple(f"X-{n}: y" for n in range(150))), "200 Root 1"
)
case(
    "GET with 1,100 header fields",
    raw("{g}/tuf/root.json", headers=tuple(f"X-{n}: y" for n in range(1100))),
    "200 Root 1",
    own="431 UNKNOWN",
    row=LIMITS,
)
case("GET with a body", asks("{g}/tuf/root.json", "GET", b"body"), "200 Root 1")


# -- methods ----------------------------------------------------------------------------------------------------------

for _path in ("{g}/tuf/root.json", "{g}/changefeed?records=1", "/v2/", "{g}/tuf/timestamp.key", "/metrics"):
    case(f"HEAD {_path}", asks(_path, "HEAD"), "404", own="200", row=HEAD_ROW)
case("HEAD of nothing", asks("/nothing", "HEAD"), "404")
for _method in ("POST", "PUT", "DELETE"):
    for _path in ("{g}/tuf/root.json", "/v2/", "{g}/changefeed", "/nothing"):
        case(f"{_method} {_path}", asks(_path, _method), NOT_FOUND)
for _path in ("{g}/tuf/root.json", "/v2/", "{g}/tuf/", "/nothing"):
    for _method in ("PATCH", "TRACE", "get", "BREW"):
        case(f"{_method} {_path}", raw(_path, _method), "405", own=NOT_FOUND, row=ANYTHING_ELSE)
    _own = NOT_FOUND if _path == "/nothing" else "200"
    case(f"OPTIONS {_path}", raw(_path, "OPTIONS"), "405", own=_own, row=OPTIONS_ROW)
case("OPTIONS *", raw("*", "OPTIONS"), "200")
case("PUT {g}/tuf/", asks("{g}/tuf/", "PUT"), NOT_FOUND)
case("POST {g}/tuf", asks("{g}/tuf", "POST", form()), NOT_FOUND)
case("DELETE {g}/tuf", asks("{g}/tuf", "DELETE"), NOT_FOUND)
case("DELETE /v2/_trust/tuf/", asks("/v2/_trust/tuf/", "DELETE"), NOT_FOUND)
case("POST /v2/_trust/tuf/", asks("/v2/_trust/tuf/", "POST", form()), NOT_FOUND)


# -- keys -------------------------------------------------------------------------------------------------------------

for _method in ("GET", "POST"):
    for _role in ("timestamp", "snapshot"):
        case(f"{_method} {_role}.key", asks(f"{{g}}/tuf/{_role}.key", _method), "200 ed25519 key")
        case(
            f"{_method} {_role}.key of nobody",
            asks(f"/v2/example.com/nobody-{_method}/_trust/tuf/{_role}.key", _method),
            "200 ed25519 key",
        )
    for _role in ("root", "targets", "targets/releases", "Timestamp", "mirrors", ""):
        case(f"{_method} {_role or 'empty'}.key", asks(f"{{g}}/tuf/{_role}.key", _method), NOT_FOUND)
for _method in ("PUT", "DELETE"):
    case(f"{_method} timestamp.key", asks("{g}/tuf/timestamp.key", _method), NOT_FOUND)


def same(*requests: tuple[str, str]) -> Any:
    """Ask for keys one after the other; the answer is which of them are alike."""

    async def recipe(c: Collection, _author: Author) -> Answer:
        bodies = [(await c.side.request(method, await filled(c, path))).body for method, path in requests]
        letters = "".join(chr(ord("a") + bodies.index(body)) for body in bodies)
        return Answer(
            200, {"content-type": JSON}, json.dumps({"signed": {"_type": "keys", "version": letters}}).encode()
        )

    return recipe


_TIMESTAMP, _SNAPSHOT = "{g}/tuf/timestamp.key", "{g}/tuf/snapshot.key"
case("the timestamp key is the same each time", same(("GET", _TIMESTAMP), ("GET", _TIMESTAMP)), "200 keys aa")
case("the snapshot key is another", same(("GET", _TIMESTAMP), ("GET", _SNAPSHOT)), "200 keys ab")
case(
    "a pending timestamp key is not shown by GET",
    same(("GET", _TIMESTAMP), ("POST", _TIMESTAMP), ("GET", _TIMESTAMP)),
    "200 keys aba",
)
case(
    "the server's snapshot key is the same each time",
    same(("GET", _SNAPSHOT), ("GET", _SNAPSHOT)),
    "200 keys aa",
    server_snapshot=True,
)


# -- changefeed -------------------------------------------------------------------------------------------------------

_BOTH = "200 changes update:1 update:2"
for _query, _reference in {
    "records=100": _BOTH,
    "records=2": _BOTH,
    "records=1": "200 changes update:1",
    "records=0": _BOTH,
    "records=00": _BOTH,
    "records=+1": BAD_PARAMETERS,
    "records=%2B1": "200 changes update:1",
    "records=01": "200 changes update:1",
    "records=-0": _BOTH,
    "records=1000000": _BOTH,
    "records=1&records=x": "200 changes update:1",
    "records=x&records=1": BAD_PARAMETERS,
    "": BAD_PARAMETERS,
    "change_id=1": BAD_PARAMETERS,
    "records": BAD_PARAMETERS,
    "records=": BAD_PARAMETERS,
    "Records=1": BAD_PARAMETERS,
    "records=abc": BAD_PARAMETERS,
    "records=1.0": BAD_PARAMETERS,
    "records=1e1": BAD_PARAMETERS,
    "records=0x1": BAD_PARAMETERS,
    "records=1_0": BAD_PARAMETERS,
    "records=%201": BAD_PARAMETERS,
    "records=1%00": BAD_PARAMETERS,
    "records=%D9%A1": BAD_PARAMETERS,
    "records=2147483648": BAD_PARAMETERS,
    "records=-2147483649": BAD_PARAMETERS,
    "records=" + "9" * 1000: BAD_PARAMETERS,
    "records=100&change_id=": _BOTH,
    "records=100&change_id=0": _BOTH,
    "records=100&change_id={1}": "200 changes update:2",
    "records=100&change_id={2}": "200 changes",
    "records=1&change_id={0}": "200 changes update:1",
    "records=-1&change_id={2}": "200 changes update:1",
    "records=-100&change_id={1}": "200 changes",
    "records=-100&change_id=-1": _BOTH,
    "records=1&change_id=-1": "200 changes update:2",
    "records=100&change_id=-7": _BOTH,
    "records=100&change_id=2147483647": "200 changes",
    "records=-100&change_id=2147483647": _BOTH,
    "records=100&change_id=2147483648": BAD_PARAMETERS,
    "records=100&change_id=-2147483649": BAD_PARAMETERS,
    "records=100&change_id=abc": BAD_PARAMETERS,
    "records=100&change_id=1.0": BAD_PARAMETERS,
    "records=100&change_id=%20": BAD_PARAMETERS,
    "records=100&change_id=" + "9" * 1000: BAD_PARAMETERS,
    "records=x&change_id=x": BAD_PARAMETERS,
}.items():

    def _feed(query: str = _query) -> Any:
        async def recipe(c: Collection, _author: Author) -> Answer:
            known = await c.side.get(f"/v2/{c.quoted}/_trust/changefeed?records=100")
            ids = [int(record["ID"]) for record in json.loads(known.body)["records"]]
            return await c.side.get(f"/v2/{c.quoted}/_trust/changefeed?" + query.format(ids[0] - 1, *ids))

        return recipe

    case(f"changefeed {_query[:50]}", _feed(), _reference)

for _query, _own in {
    "records=-1": "200 changes update:2",
    "records=-100": _BOTH,
    "records=-1&change_id=": "200 changes update:2",
    "records=-1&change_id=0": "200 changes update:2",
}.items():
    # What the Go server does on a database; on memory it does not survive the question.
    case(f"changefeed {_query}", asks(f"{{g}}/changefeed?{_query}"), "dropped", own=_own, row=NEVER_DROPPED)
case("changefeed of a name too long", asks(f"/v2/example.com/{'a' * 300}/_trust/changefeed?records=1"), "200 changes")
case("changefeed of nobody", asks("/v2/example.com/nobody/_trust/changefeed?records=1"), "200 changes")
case(
    "changefeed of all, newest",
    asks("/v2/_trust/changefeed?records=-2"),
    "dropped",
    own=_BOTH,
    row=NEVER_DROPPED,
)
case("changefeed of all, newest, by change_id", asks("/v2/_trust/changefeed?records=2&change_id=-1"), _BOTH)
case("changefeed of all, absurd", asks("/v2/_trust/changefeed?records=-2147483648&change_id=x"), BAD_PARAMETERS)
case("changefeed of all, no number", asks("/v2/_trust/changefeed"), BAD_PARAMETERS)
case("changefeed with a slash", asks("{g}/changefeed/?records=1"), NOT_FOUND)


async def most_changes(c: Collection, _author: Author) -> Answer:
    answer = await c.side.get("/v2/_trust/changefeed?records=2147483647")
    records = json.loads(answer.body)["records"][-2:]
    return Answer(answer.status, answer.headers, json.dumps({"count": len(records), "records": records}).encode())


case("changefeed of all, as many as can be", most_changes, _BOTH)


# -- deleting ---------------------------------------------------------------------------------------------------------


def after_deleting(template: str, method: str = "GET", times: int = 1) -> Any:
    async def recipe(c: Collection, _author: Author) -> Answer:
        path = await filled(c, template)
        for _ in range(times):
            answer = await c.side.request("DELETE", c.path())
            assert (answer.status, answer.body) == (200, b""), f"{c.side.name}: {answer}"
        return await c.side.request(method, path)

    return recipe


case("DELETE", asks("{g}/tuf/", "DELETE"), "200")
case("DELETE of nobody", asks("/v2/example.com/nobody/_trust/tuf/", "DELETE"), "200")
case("DELETE of a name that is too long", asks(f"/v2/example.com/{'a' * 300}/_trust/tuf/", "DELETE"), "200")
case("DELETE twice", after_deleting("{g}/tuf/", "DELETE"), "200")
for _path in (
    *(f"{role}.json" for role in BASE_ROLES),
    "targets/releases.json",
    "root.{root}.json",
    "snapshot.{snapshot}.json",
    "1.root.json",
):
    case(f"DELETE, then GET {_path}", after_deleting("{g}/tuf/" + _path), NOT_FOUND)
case("DELETE, then the changefeed", after_deleting("{g}/changefeed?records=9"), _BOTH + " deletion:0")
case("DELETE twice, then the changefeed", after_deleting("{g}/changefeed?records=9", times=2), _BOTH + " deletion:0")
case("DELETE, then GET timestamp.key", after_deleting("{g}/tuf/timestamp.key"), "200 ed25519 key")


# -- names of collections ---------------------------------------------------------------------------------------------


def living(name: str) -> Any:
    """A first publish of a collection of this name (``{}`` makes it the case's own), read back by name."""

    async def recipe(c: Collection, _author: Author) -> Answer:
        gun = name.replace("{}", c.gun.rpartition("/")[2])
        answer = await c.side.get(Collection(c.side, gun, lambda: Author(PREFIX)).path("timestamp.key"))
        if answer.status != 200:
            return answer
        other = await make_collection(c.side, published=False, gun=gun, root=make_root_key("*"))
        answer = await other.publish()
        if answer.status != 200:
            return answer
        await other.verify()
        feed = await c.side.get(f"/v2/{other.quoted}/_trust/changefeed?records=9")
        assert [record["GUN"] for record in json.loads(feed.body)["records"]] == [gun], f"{c.side.name}: {feed}"
        return await c.side.get(other.path("root.json"))

    return recipe


for _gun in (
    "{}",
    "{}/a/b/c/d",
    "localhost:5000/{}",
    "UPPER/Case/{}",
    "{}/über/ñ",
    "{}/with space",
    "{}/plus+sign",
    "{}/percent%41",
    "{}/question?mark",
    "{}/hash#sign",
    "{}/tilde~ and 'quotes'",
    '{}/"double"',
    "{}/back\\slash",
    "{}/semi;colon=1,2",
    "{}/_trust/tuf/inside",
    "{}/_trust",
    "{}/v2/x",
    "{}.json",
    "_trust/{}",
    "-{}",
    "{}" + "/long" * 40,
):
    case(f"collection {_gun[:40]!r}", living(_gun), "200 Root 1")
case("collection with an asterisk", living("{}*"), NOT_FOUND)
for _gun in ("{}/😀", "{}/line\nbreak", "{}/control\x01", "{}/ending ", " {}"):
    case(f"collection {_gun!r}", living(_gun), "200 Root 1", own=INVALID_GUN, row=GUN_ROW)
case("collection of 300 characters", living("{}" + "/long" * 60), "200 Root 1", own=INVALID_GUN, row=GUN_ROW)
case(
    "timestamp key of a collection of 300 characters",
    asks("/v2/" + "b" * 300 + "/_trust/tuf/timestamp.key"),
    "200 ed25519 key",
    own=INVALID_GUN,
    row=GUN_ROW,
)
case("reading a collection of 300 characters", asks("/v2/" + "b" * 300 + "/_trust/tuf/root.json"), NOT_FOUND)
case("reading with another case", asks("/v2/EXAMPLE.com/{gun}/_trust/tuf/root.json"), NOT_FOUND)
case("reading with a space behind", asks("/v2/{gun}%20/_trust/tuf/root.json"), NOT_FOUND)


# -- the test ---------------------------------------------------------------------------------------------------------


def _without_name(location: str) -> str:
    return re.sub(r"app\d+x", "app", location)


def compare_ages(said: Answer, answer: Answer) -> None:
    """Both may be kept equally long, but for a file that expires before that (section 9)."""
    ours, theirs = (each.headers.get("cache-control", "") for each in (answer, said))
    assert re.sub(r"\d+", "N", ours) == re.sub(r"\d+", "N", theirs)
    if ours != theirs:
        age, most = (int(re.search(r"max-age=(\d+)", each)[1]) for each in (ours, theirs))
        expires = datetime.fromisoformat(json.loads(answer.body)["signed"]["expires"])
        assert age < most
        assert datetime.now(UTC) + timedelta(seconds=age) < expires < datetime.now(UTC) + timedelta(seconds=most)


def compare(said: Answer, answer: Answer) -> None:
    """Two answers that say the same must say it in the same headers."""
    for name in ("pragma", "www-authenticate"):
        assert answer.headers.get(name) == said.headers.get(name), name
    compare_ages(said, answer)
    assert _without_name(answer.headers.get("location", "")) == _without_name(said.headers.get("location", ""))
    assert ("last-modified" in answer.headers) == ("last-modified" in said.headers)
    if answer.brief.split()[1:2] and answer.status == 200 and answer.body.startswith((b'{"signed"', b'{"keytype"')):
        # The Go server says text/plain; section 1 says what it should be.
        assert answer.headers["content-type"] == JSON
    if said.errors:
        assert answer.headers["content-type"] == said.headers["content-type"] == "application/json; charset=utf-8"
        (error,), (other,) = answer.errors, said.errors
        assert error["message"] == other["message"]
        assert {"code", "message"} <= set(error) <= {"code", "message", "detail"}


@pytest.mark.parametrize("case", [pytest.param(one, id=one.name) for one in CASES])
@pytest_twisted.ensureDeferred
async def test_read(case: Case, sides: Sides) -> None:
    answers = []
    for side, expected in ((sides.go, case.reference), (sides.ours, case.expected)):
        side.daemon.ensure()
        collection = await history(side, server_snapshot=case.server_snapshot)
        answer = await case.recipe(collection, clone(collection.author))
        assert answer.brief == expected, f"{side.name}: {answer}\n{side.daemon.output()[-2000:]}"
        answers.append(answer)
    if case.expected == case.reference:
        compare(*answers)


# -- servers that hold some names only, and forbid caching ------------------------------------------------------------


@pytest.fixture(scope="module")
def strict_daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    directory = tmp_path_factory.mktemp("strict")
    extra = {
        "repositories": {"gun_prefixes": ["example.org/", PREFIX]},
        "caching": {"max_age": {"current_metadata": 0, "consistent_metadata": 0}},
    }
    with (
        daemon("strict-go", GO_SERVER, directory, extra=extra) as go,
        daemon("strict-ours", OUR_SERVER, directory, extra=extra) as ours,
    ):
        yield go, ours


@pytest.mark.parametrize(
    ("method", "path", "brief"),
    [
        ("GET", "/v2/{}/_trust/tuf/root.json", "200 Root 1"),
        ("GET", "/v2/{}/_trust/tuf/1.root.json", "200 Root 1"),
        ("GET", "/v2/{}/_trust/changefeed?records=1", "200 changes update:1"),
        ("GET", "/v2/_trust/changefeed?records=1", "200 changes update:1"),
        ("GET", "/v2/", "200 {}"),
        ("GET", "/v2/elsewhere/_trust/tuf/root.json", NOT_FOUND),
        ("GET", "/v2/elsewhere/_trust/tuf/timestamp.key", NOT_FOUND),
        ("POST", "/v2/elsewhere/_trust/tuf/timestamp.key", NOT_FOUND),
        ("GET", "/v2/elsewhere/_trust/changefeed?records=1", NOT_FOUND),
        ("DELETE", "/v2/elsewhere/_trust/tuf/", NOT_FOUND),
        ("POST", "/v2/elsewhere/_trust/tuf/", INVALID_GUN),
        ("POST", "/v2/example.com/_trust/tuf/", INVALID_GUN),
        ("POST", "/v2/EXAMPLE.com/a/_trust/tuf/", INVALID_GUN),
        ("POST", "/v2/example.comx/a/_trust/tuf/", INVALID_GUN),
        ("POST", "/v2/other/example.com/a/_trust/tuf/", INVALID_GUN),
    ],
)
@pytest_twisted.ensureDeferred
async def test_strict_servers(
    reactor: Any, strict_daemons: tuple[Daemon, Daemon], method: str, path: str, brief: str
) -> None:
    answers = []
    for one in strict_daemons:
        async with Side(one, reactor) as side:
            collection = await make_collection(side)
            body = form_of(collection.author.first()) if method == "POST" else None
            answer = await side.request(method, path.format(collection.gun), body, {"Content-Type": MULTIPART})
        if "_trust/changefeed" in path:
            # Other tests published, too.
            assert answer.brief.startswith("200 changes update:" if answer.status == 200 else brief)
        else:
            assert answer.brief == brief, f"{one.name}: {answer}"
        answers.append(answer)
    compare(*answers)


def test_there_are_enough_cases() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 120
