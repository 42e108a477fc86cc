"""Who may read: token services, Basic, Docker's logins and credential helpers."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import pytest_twisted
from twisted.internet import reactor

from notary.admin.command import Status
from notary.errors import ConfigError, PeerDenied, PeerFailed
from notary.peer import client
from notary.peer.access import Access, Challenge, Login, challenges
from notary.peer.credentials import DockerConfig, OneLogin, read_login
from notary.peer.http import Http, Trust
from notary.work.backoff import Backoff
from tests.admin.conftest import admin
from tests.support.hostile import NotaryServer, publisher, serving

GUN = "docker.io/library/app"


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(client, "BACKOFF", Backoff(first=0.01, most=0.02))


@pytest.fixture
def server():
    with serving(reactor) as made:
        yield made


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param(
            ['Bearer realm="https://example.com/token",service="notary",scope="repository:a:pull"'],
            [
                (
                    "bearer",
                    {"realm": "https://example.com/token", "service": "notary", "scope": "repository:a:pull"},
                )
            ],
            id="bearer",
        ),
        pytest.param(['Basic realm="a \\"quoted\\" word"'], [("basic", {"realm": 'a "quoted" word'})], id="quotes"),
        pytest.param(
            ["Negotiate, Basic realm=x, Bearer realm=y , service = z"],
            [("negotiate", {}), ("basic", {"realm": "x"}), ("bearer", {"realm": "y", "service": "z"})],
            id="several",
        ),
        pytest.param(["BEARER REALM=x", "Basic"], [("bearer", {"realm": "x"}), ("basic", {})], id="two fields"),
        pytest.param(['Bearer realm="open'], [("bearer", {"realm": ""})], id="without an end"),
        pytest.param(["", "=x", '"'], [], id="nothing"),
    ],
)
def test_challenges(fields, expected):
    assert challenges(fields) == [Challenge(*each) for each in expected]


# -- token services ---------------------------------------------------------------------------------------------------


class TokenService:
    """The part of a server that gives tokens and asks for them; ``calls`` are its queries with their logins."""

    def __init__(self, server: NotaryServer, *, lifetime: int | None = None, login: str = "") -> None:
        self.server = server
        self.lifetime = lifetime
        self.login = login
        self.calls: list[tuple[dict, str]] = []
        self.good: set[str] = set()
        server.admit = self.admit
        server.render_POST = self.post

    def admit(self, request, _data):
        if request.path == b"/token":
            return self.token(parse_qs(request.uri.partition(b"?")[2].decode()), request)
        gun = request.path.decode().removeprefix("/v2/").partition("/_trust")[0]
        scope = "registry:catalog:*" if request.path.startswith(b"/v2/_trust") else f"repository:{gun}:pull"
        token = (request.getHeader(b"Authorization") or b"").decode()
        if token.removeprefix("Bearer ") in self.good and scope in token:
            return None
        realm = f"{self.server.url}/token"
        request.setResponseCode(401)
        request.setHeader("WWW-Authenticate", f'Bearer realm="{realm}",service="notary",scope="{scope}"')
        return b"{}"

    def post(self, request):
        return self.token({name.decode(): [each.decode() for each in values] for name, values in request.args.items()},
                          request)  # fmt: skip

    def token(self, query, request):
        login = (request.getHeader(b"Authorization") or b"").decode()
        self.calls.append((query, login))
        if self.login and self.login not in (login, query.get("refresh_token", [""])[0]):
            request.setResponseCode(401)
            return b"{}"
        token = f"{len(self.calls)}-{query['scope'][0]}"
        self.good.add(token)
        lifetime = {} if self.lifetime is None else {"expires_in": self.lifetime}
        return json.dumps({"token": token, **lifetime}).encode()


def fetch(server: NotaryServer, folder: Path, *arguments: object, environ=None):
    return admin(
        "fetch", server.url, *arguments, "--archive", folder / "archives", "--json",
        environ=environ or {"DOCKER_CONFIG": "/nonexistent"},
    )  # fmt: skip


@pytest_twisted.ensureDeferred
async def test_a_token_for_each_collection_and_for_the_list(server, tmp_path):
    service = TokenService(server)
    guns = [GUN, "docker.io/library/other"]
    for gun in guns:
        server.take(publisher(gun))
    outcome = await fetch(server, tmp_path)
    assert [record["outcome"] for record in outcome.records] == ["stored"] * 2, outcome
    asked = sorted(query["scope"][0] for query, _ in service.calls)
    assert asked == ["registry:catalog:*", *sorted(f"repository:{gun}:pull" for gun in guns)]
    assert {query["service"][0] for query, _ in service.calls} == {"notary"}


@pytest_twisted.ensureDeferred
async def test_a_token_that_ends_on_the_way_is_renewed(server, tmp_path):
    service = TokenService(server)
    server.take(publisher(GUN))

    def forget(_request, data):
        service.good.clear()
        return data

    server.lies["snapshot."] = forget
    assert (await fetch(server, tmp_path, GUN)).status == Status.OK
    assert len(service.calls) == 2


@pytest_twisted.ensureDeferred
async def test_a_token_is_not_used_after_its_life(server):
    service = TokenService(server, lifetime=100)
    seconds = [0.0]
    connections = Http(reactor, server.url, Trust(), connections=1, timeout=5)
    access = Access(connections, server.url, OneLogin(Login("me", "secret")), lambda: seconds[0])
    await access.answer(GUN, [f'Bearer realm="{server.url}/token",scope="repository:{GUN}:pull"'])
    assert service.calls[0][1] == "Basic " + base64.b64encode(b"me:secret").decode()
    assert access.headers(GUN)
    assert access.headers("another") == {}
    seconds[0] = 91
    assert access.headers(GUN) == {}
    await connections.close()


@pytest.mark.parametrize(
    ("challenge", "error", "expected"),
    [
        ("Negotiate", PeerDenied, "neither Bearer nor Basic"),
        ('Bearer realm="nowhere"', PeerFailed, "not a URL"),
        ('Bearer realm="{url}/missing"', PeerFailed, "answers with status 404"),
        ('Bearer realm="{url}/html"', PeerFailed, "something else than a token"),
        ('Bearer realm="{url}/newline"', PeerFailed, "something else than a token"),
        ('Bearer realm="http://192.0.2.1/token"', PeerDenied, "no login is sent there"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_challenge_that_leads_to_nothing(server, challenge, error, expected):
    server.files |= {"/html": b"<html>", "/newline": b'{"token": "a\\nInjected: x"}'}
    connections = Http(reactor, server.url, Trust(), connections=1, timeout=5)
    access = Access(connections, server.url, OneLogin(Login("me", "secret")), reactor.seconds)
    with pytest.raises(error, match=expected) as caught:
        await access.answer(GUN, [challenge.format(url=server.url)])
    assert "secret" not in str(caught.value)
    await connections.close()


# -- logins -----------------------------------------------------------------------------------------------------------

BASIC = "Basic " + base64.b64encode(b"me:secret:word").decode()


def basic(server: NotaryServer) -> None:
    def admit(request, _data):
        if (request.getHeader(b"Authorization") or b"").decode() == BASIC:
            return None
        request.setResponseCode(401)
        request.setHeader("WWW-Authenticate", 'Basic realm="x"')
        return b"{}"

    server.admit = admit


def docker(folder: Path, **value) -> Path:
    (folder / "config.json").write_text(json.dumps(value))
    return folder / "config.json"


def helper(folder: Path, name: str, body: str) -> dict[str, str]:
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin", "DOCKER_CONFIG": str(folder)}


@pytest_twisted.ensureDeferred
async def test_basic_from_a_file(server, tmp_path):
    basic(server)
    server.take(publisher(GUN))
    (tmp_path / "login").write_text("me:secret:word\n")
    assert (await fetch(server, tmp_path, GUN, "--credentials", tmp_path / "login")).status == Status.OK
    outcome = await fetch(server, tmp_path, GUN)
    assert outcome.records[0]["outcome"] == "denied"
    assert "--credentials" in outcome.records[0]["reason"]
    (tmp_path / "login").write_text("me:wrong\n")
    outcome = await fetch(server, tmp_path, GUN, "--credentials", tmp_path / "login")
    assert (outcome.status, outcome.records[0]["outcome"]) == (Status.FOUND, "denied")
    assert "wrong" not in outcome.out + outcome.err


@pytest_twisted.ensureDeferred
async def test_logins_of_docker(server, tmp_path):
    basic(server)
    server.take(publisher(GUN))
    host = server.url.partition("//")[2]
    auth = {"auth": base64.b64encode(b"me:secret:word").decode()}
    for config in (
        {"auths": {host: auth}},
        {"auths": {f"http://{host}/v2/": auth}},
        {"auths": {"https://index.docker.io/v1/": auth}},
    ):
        docker(tmp_path, **config)
        outcome = await fetch(server, tmp_path, GUN, environ={"DOCKER_CONFIG": str(tmp_path)})
        assert outcome.status == Status.OK, (config, outcome)


@pytest_twisted.ensureDeferred
async def test_credential_helpers(server, tmp_path):
    basic(server)
    server.take(publisher(GUN))
    host = server.url.partition("//")[2]
    environ = helper(
        tmp_path,
        "shelf",
        f'read -r url; [ "$1 $url" = "get https://{host}" ] && '
        """echo '{"ServerURL": "x", "Username": "me", "Secret": "secret:word"}'""",
    )
    for config in ({"credHelpers": {host: "shelf"}}, {"credsStore": "shelf", "auths": {host: {}}}):
        docker(tmp_path, **config)
        outcome = await fetch(server, tmp_path, GUN, environ=environ)
        assert outcome.status == Status.OK, (config, outcome)


@pytest_twisted.ensureDeferred
async def test_an_identity_token_goes_to_the_token_service(server, tmp_path):
    service = TokenService(server, login="refresh-me")
    server.take(publisher(GUN))
    host = server.url.partition("//")[2]
    environ = helper(tmp_path, "shelf", """echo '{"Username": "<token>", "Secret": "refresh-me"}'""")
    docker(tmp_path, credHelpers={host: "shelf"})
    assert (await fetch(server, tmp_path, GUN, environ=environ)).status == Status.OK
    ((query, login),) = service.calls
    assert login == ""
    assert query == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["refresh-me"],
        "client_id": ["notary-admin"],
        "service": ["notary"],
        "scope": [f"repository:{GUN}:pull"],
    }


@pytest.mark.parametrize(
    ("body", "error", "expected"),
    [
        ("echo credentials not found in native keychain; exit 1", None, ""),
        ("echo sesame >&2; exit 3", PeerFailed, "failed with status 3"),
        ("echo sesame", PeerFailed, "something else than a login"),
        ("kill -9 $$", PeerFailed, "did not answer"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_helper_without_a_login(tmp_path, body, error, expected):
    environ = helper(tmp_path, "shelf", body)
    config = DockerConfig(docker(tmp_path, credsStore="shelf"), reactor, environ)
    if error is None:
        assert await config.find("notary.example.com", GUN) is None
        return
    with pytest.raises(error, match=expected) as caught:
        await config.find("notary.example.com", GUN)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"auths": {"notary.example.com": {"auth": "*"}}}, "cannot be read"),
        ({"credsStore": "../../bin/sh"}, "cannot be one"),
        ({"credsStore": "missing"}, "is not in PATH"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_configuration_that_cannot_be_used(tmp_path, value, expected):
    config = DockerConfig(docker(tmp_path, **value), reactor, {"PATH": "/usr/bin"})
    with pytest.raises(ConfigError, match=expected):
        await config.find("notary.example.com", GUN)


def test_a_file_that_holds_no_login(tmp_path):
    path = tmp_path / "login"
    for text in ("", "nothing", ":password", "a:b\nc:d\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="one line name:password"):
            read_login(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_login(tmp_path / "missing")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("notary.example.com", "expected something like https://"),
        ("ftp://notary.example.com", "expected something like https://"),
        ("https://me:secret@notary.example.com", "expected them in a file"),
        ("https://notary.example.com/?a=b", "has a query"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_url_that_cannot_be_used(tmp_path, url, expected):
    outcome = await admin("fetch", url, GUN, "--archive", tmp_path)
    assert (outcome.status, expected in outcome.err, "secret" in outcome.err) == (Status.USAGE, True, False), outcome
