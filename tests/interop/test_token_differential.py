"""The same bearer tokens to the Go server and to ours: the same are let through, and the challenges are the same."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from notary.errors import Unauthorized
from notary.server.auth.token import TokenAuth, load_bundle
from tests.support.peers import GO_SERVER, Daemon, free_port, server_config
from tests.support.tokens import ACCEPTED, CASES, GUN, ISSUER, NO_TOKEN, REALM, SERVICE, Case, World

Ask = Callable[..., str]
"""Asks the Go server: (authorization, method, path, host) -> its challenge, "" if it let the request through."""

PUSH_PULL = ("push", "pull")


@pytest.fixture(scope="module")
def world() -> World:
    return World(datetime.now(UTC))


@pytest.fixture(scope="module")
def bundle(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "bundle.pem"
    path.write_bytes(world.bundle)
    return path


def go_server(directory: Path, bundle: Path, options: dict[str, Any]) -> Daemon:
    port = free_port()
    auth = {"realm": REALM, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(bundle), **options}
    config = directory / "go.json"
    config.write_text(json.dumps(server_config(port) | {"auth": {"type": "token", "options": auth}}))
    return Daemon("go", (*GO_SERVER, f"-config={config}"), port, directory)


def asker(daemon: Daemon) -> Ask:
    def ask(authorization: str | None, method: str = "GET", path: str = "/", host: str | None = None) -> str:
        daemon.ensure()
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=10)
        headers = {} if authorization is None else {"Authorization": authorization}
        if host is not None:
            headers["Host"] = host
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            response.read()
        finally:
            connection.close()
        challenge = response.getheader("WWW-Authenticate")
        assert (response.status == 401) == (challenge is not None), response.status
        return challenge or ""

    return ask


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[Ask]:
    with go_server(tmp_path_factory.mktemp("go"), bundle, {}) as daemon:
        yield asker(daemon)


@pytest.fixture(scope="module")
def go_redirecting(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[Ask]:
    with go_server(tmp_path_factory.mktemp("go"), bundle, {"autoredirect": True}) as daemon:
        yield asker(daemon)


@pytest.fixture(scope="module")
def ours(bundle: Path) -> TokenAuth:
    return TokenAuth(REALM, SERVICE, ISSUER, load_bundle(bundle))


def challenge_of(controller: TokenAuth, authorization: str | None, access: Any, host: str = "localhost") -> str:
    try:
        controller.authorize(authorization, host, access, datetime.now(UTC))
    except Unauthorized as error:
        return error.challenge
    return ""


def verdict(challenge: str) -> str:
    if not challenge:
        return ACCEPTED
    found = re.search(r',error="([^"]*)"$', challenge)
    return found[1] if found else NO_TOKEN


def read_path(gun: str) -> str:
    return f"/v2/{quote(gun)}/_trust/tuf/root.json"


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_both_give_the_expected_verdict_and_the_same_challenge(case: Case, world: World, go: Ask, ours: TokenAuth):
    authorization = case.authorization(world)
    theirs = go(authorization, path=read_path(GUN))
    mine = challenge_of(ours, authorization, [("repository", GUN, "pull")])
    assert verdict(mine) == case.verdict
    assert verdict(theirs) == (case.verdict if case.at_reference is None else case.at_reference)
    if case.at_reference is None:
        assert mine == theirs


@pytest.mark.parametrize(
    ("method", "path", "name", "actions"),
    [
        pytest.param("GET", read_path(GUN), GUN, ("pull",), id="read"),
        pytest.param("POST", f"/v2/{GUN}/_trust/tuf/", GUN, PUSH_PULL, id="publish"),
        pytest.param("DELETE", f"/v2/{GUN}/_trust/tuf/", GUN, ("*",), id="delete"),
        pytest.param("GET", f"/v2/{GUN}/_trust/tuf/timestamp.key", GUN, PUSH_PULL, id="key"),
        pytest.param("POST", f"/v2/{GUN}/_trust/tuf/timestamp.key", GUN, ("*",), id="rotation"),
        pytest.param("GET", f"/v2/{GUN}/_trust/changefeed", GUN, ("pull",), id="changefeed"),
        pytest.param("GET", "/v2/_trust/changefeed", "", (), id="whole changefeed"),
        pytest.param("GET", "/v2/", "", (), id="ping"),
        pytest.param("GET", "/anything", "", (), id="anything else"),
    ],
)
@pytest.mark.parametrize("given", [(), ("pull",), PUSH_PULL, ("*",)], ids=["none", "pull", "push,pull", "star"])
def test_the_rights_of_every_route(method, path, name, actions, given, world: World, go: Ask, ours: TokenAuth):
    """The reference writes the actions of a challenge in an order that changes from answer to answer."""
    access = [("repository", name, action) for action in actions] if name else [("registry", "catalog", "*")]
    kind, resource = ("repository", name) if name else ("registry", "catalog")
    authorization = world.good(access=[{"type": kind, "name": resource, "actions": list(given)}])
    theirs = go(authorization, method, path)
    mine = challenge_of(ours, authorization, access)
    assert mine == theirs.replace("pull,push", "push,pull")


@pytest.mark.parametrize(
    "gun",
    [
        pytest.param("a", id="short"),
        pytest.param("localhost:5000/a/b", id="port"),
        pytest.param('a"b', id="quote"),
        pytest.param("a\\b", id="backslash"),
        pytest.param("a b", id="space"),
        pytest.param("a\r\nb", id="line break"),
        pytest.param("a\tb\x01\x7f", id="control characters"),
        pytest.param("é/日本", id="not ASCII"),
        pytest.param("a\u2028b\u00a0", id="odd spaces"),
        pytest.param("a\U000e0001", id="invisible"),
    ],
)
def test_collections_of_odd_names_are_quoted_alike(gun: str, go: Ask, ours: TokenAuth):
    mine = challenge_of(ours, None, [("repository", gun, "pull")])
    assert mine
    assert mine == go(None, path=read_path(gun))


@pytest.mark.parametrize("host", ["notary.example.com", "notary.example.com:4443", "[::1]:4443", "127.0.0.1"])
def test_autoredirect_goes_to_the_same_place(host: str, go_redirecting: Ask, bundle: Path):
    redirecting = TokenAuth(REALM, SERVICE, ISSUER, load_bundle(bundle), autoredirect=True)
    mine = challenge_of(redirecting, None, [("repository", GUN, "pull")], host)
    assert f'realm="https://{host}/auth/token"' in mine
    assert mine == go_redirecting(None, path=read_path(GUN), host=host)
