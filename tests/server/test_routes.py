"""The router alone, on a toy table: which row a path belongs to, and what the path names."""

from __future__ import annotations

import pytest

from notary.errors import InvalidGun, NotFound
from notary.server.routes import ANY, CHECKSUM, ROLE, SERVER_ROLE, VERSION, Route, Router

ROUTES = (
    Route("Root", "GET", r"/v2/", "root", None),
    Route("Key", "POST", rf"tuf/{SERVER_ROLE}\.key", "key", ("push", "pull"), bad_name=InvalidGun),
    Route("ByHash", "GET", rf"tuf/{ROLE}\.{CHECKSUM}\.json", "hash", ("pull",)),
    Route("ByVersion", "GET", rf"tuf/{VERSION}\.{ROLE}\.json", "version", ("pull",)),
    Route("Current", "GET", rf"tuf/{ROLE}\.json", "current", ("pull",)),
)
NOTHING = Route("Nothing", "", r"/", "nothing")
ROUTER = Router(ROUTES, options=Route("Options", "OPTIONS", r"/", "options", None), otherwise=NOTHING)
TUF = "/v2/example.com/app/_trust/tuf/"


@pytest.mark.parametrize(
    ("method", "path", "handler", "role", "names"),
    [
        pytest.param("GET", "/v2/", "root", None, {}, id="absolute"),
        pytest.param("HEAD", "/v2/", "root", None, {}, id="HEAD"),
        pytest.param("GET", TUF + "root.json", "current", "root", {}, id="role"),
        pytest.param("GET", TUF + "targets/a/b.json", "current", "targets/a/b", {}, id="delegation"),
        pytest.param("GET", TUF + "3.targets.json", "version", "targets", {"version": "3"}, id="version"),
        pytest.param("GET", f"{TUF}root.{'aB' * 32}.json", "hash", "root", {"checksum": "aB" * 32}, id="hash"),
        pytest.param("POST", TUF + "snapshot.key", "key", "snapshot", {}, id="key"),
        pytest.param("POST", TUF + "root.key", "nothing", None, {}, id="no-key-of-this-role"),
        pytest.param("DELETE", TUF + "root.json", "nothing", None, {}, id="other-method"),
        pytest.param("GET", "/v2", "nothing", None, {}, id="not-the-whole-path"),
        pytest.param("GET", "/v2/_trust/tuf/root.json", "nothing", None, {}, id="no-gun"),
        pytest.param("GET", "/v2/a*b/_trust/tuf/root.json", "nothing", None, {}, id="star"),
        pytest.param("GET", f"{TUF}targets/{'a' * 600}.json", "nothing", None, {}, id="long-tail"),
        pytest.param("GET", TUF + "root.json\n", "nothing", None, {}, id="newline"),
        pytest.param("OPTIONS", "/v2/", "options", None, {"allow": "GET, HEAD, OPTIONS"}, id="options"),
        pytest.param("OPTIONS", TUF + "snapshot.key", "options", None, {"allow": "OPTIONS, POST"}, id="options-no-get"),
        pytest.param("OPTIONS", ANY, "options", None, {"allow": "GET, HEAD, OPTIONS, POST"}, id="options-of-all"),
        pytest.param("OPTIONS", "/nowhere", "nothing", None, {}, id="options-of-nothing"),
        pytest.param("OPTIONS", "", "nothing", None, {}, id="options-of-no-path"),
        pytest.param("GET", ANY, "nothing", None, {}, id="get-of-all"),
    ],
)
def test_which_row_a_path_belongs_to(method, path, handler, role, names) -> None:
    match = ROUTER.find(method, path)
    assert (match.route.handler, match.role, dict(match.names)) == (handler, role, names)


def test_the_longest_collection_is_tried_first() -> None:
    match = ROUTER.find("GET", "/v2/a/_trust/tuf/b/_trust/tuf/root.json")
    assert (match.name, match.role) == ("a/_trust/tuf/b", "root")
    match = ROUTER.find("GET", "/v2/a/_trust/tuf/targets/b/_trust/c.json")
    assert (match.name, match.role) == ("a", "targets/b/_trust/c")


def test_a_name_or_role_that_cannot_exist_is_kept_until_it_is_asked_for() -> None:
    match = ROUTER.find("GET", f"/v2/{'a' * 300}/_trust/tuf/targets/{'b' * 300}.json")
    assert (match.route.operation, match.gun, match.role) == ("Current", None, None)
    assert match.bad_name
    assert match.bad_role
    with pytest.raises(NotFound):
        match.gun_and_role()
    with pytest.raises(NotFound):
        match.collection()


def test_the_rights_are_those_of_the_row_for_the_collection_or_the_catalogue() -> None:
    name = "example.com/app"
    assert ROUTER.find("POST", TUF + "snapshot.key").access == [
        ("repository", name, "push"),
        ("repository", name, "pull"),
    ]
    for path in ("/v2/", "/elsewhere"):
        assert ROUTER.find("GET", path).access == [("registry", "catalog", "*")]


def test_short_paths_are_remembered_and_long_ones_are_not() -> None:
    short, long = TUF + "root.json", f"/v2/{'a/' * 300}b/_trust/tuf/root.json"
    assert ROUTER.find("GET", short) is ROUTER.find("HEAD", short)
    assert ROUTER.find("GET", long) is not ROUTER.find("GET", long)
    assert ROUTER.find("GET", long) == ROUTER.find("GET", long)
