"""What every scheme of authentication keeps to, and that a scheme is one row: a toy one works in a whole server.

A new scheme gets a row in ``SECTIONS``.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_twisted
import treq
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor

from notary.config import Auth, ServerConfig, TokenOptions, load_server
from notary.config.table import keys
from notary.errors import Unauthorized
from notary.server import tap
from notary.server.auth import AccessController, Authentication, schemes
from notary.server.sources import Source
from tests.support.tokens import GUN, ISSUER, REALM, SERVICE, World

NOW = datetime(2031, 5, 17, 12, 0, 0, tzinfo=UTC)
HOST = "notary.example.com:4443"
PULL = (("repository", GUN, "pull"),)
SEVERAL = (("repository", GUN, "push"), ("repository", GUN, "pull"), ("registry", "catalog", "*"))
RIGHTS = [
    pytest.param((), id="no-rights"),
    pytest.param(PULL, id="one"),
    pytest.param(
        (("repository", GUN, "push"), ("repository", GUN, "pull"), ("registry", "catalog", "*")), id="several"
    ),
    pytest.param((("repository", 'odd"name\n\x7fä', "pull"),), id="odd-name"),
]
HOSTILE = [
    *(None, "", " ", "Bearer", "Bearer ", "bearer x", "Bearer a b", "Bearer a.b.c", "Basic dXNlcjpwYXNz", "Toy  "),
    *("\x00", "ä" * 10, "Bearer " + "a" * 100_000, "Bearer " + "." * 1000, "Bearer e30.e30.", "Bearer " + "{" * 9000),
]


class Case(NamedTuple):
    """A section ``auth``, an Authorization header that it accepts for PULL, and the subject that it finds there."""

    auth: Auth
    accepted: str | None
    subject: str


def _token(folder: Path) -> Case:
    world = World(NOW)
    bundle = folder / "bundle.crt"
    bundle.write_bytes(world.bundle)
    options = TokenOptions(realm=REALM, service=SERVICE, issuer=ISSUER, rootcertbundle=bundle)
    return Case(Auth(type="token", options=options), world.good(sub="alice"), "alice")


SECTIONS: dict[str, Callable[[Path], Case]] = {"": lambda _: Case(Auth(), None, ""), "token": _token}


@pytest.fixture(params=sorted(SECTIONS), ids=lambda name: name or "none", scope="module")
def case(request, tmp_path_factory) -> Case:
    return SECTIONS[request.param](tmp_path_factory.mktemp("auth"))


@pytest.fixture(scope="module")
def built(case: Case) -> Authentication:
    return schemes.SCHEMES[case.auth.type](case.auth)


def test_every_scheme_is_tested_here():
    assert set(SECTIONS) == set(schemes.SCHEMES)


def test_the_configuration_knows_the_same_schemes():
    (kind,) = (key.kind for path, key, _ in keys(ServerConfig) if path == "auth.type")
    assert set(re.findall(r'"(.*?)"', kind.expected)) == set(schemes.SCHEMES)
    for name in set(schemes.SCHEMES) - {""}:
        assert kind.convert(name) == name


def test_what_is_accepted_has_a_subject(case, built):
    for _ in range(2):  # the answer is the same each time
        assert built.controller.authorize(case.accepted, HOST, PULL, NOW) == case.subject


def verdict(controller: AccessController, authorization: str | None, access: Sequence, host: str = HOST) -> str | None:
    """The subject, or None if the request is refused; a refusal keeps to the form of the port."""
    refusal = None
    try:
        subject = controller.authorize(authorization, host, access, NOW)
    except Unauthorized as error:
        refusal = error
    if refusal is None:
        assert isinstance(subject, str)
        return subject
    assert refusal.access == tuple(access)
    assert refusal.challenge
    assert not set("\r\n") & set(refusal.challenge)
    assert refusal.challenge.encode("latin-1")
    assert len(authorization or "") < 20 or authorization not in f"{refusal} {refusal.challenge}"
    return None


@pytest.mark.parametrize("access", RIGHTS)
@pytest.mark.parametrize("authorization", HOSTILE, ids=lambda text: repr(text)[:20])
def test_a_refusal_is_unauthorized_and_nothing_else(case, built, authorization, access):
    nobody = verdict(built.controller, None, access)
    assert verdict(built.controller, authorization, access) == nobody, "garbage gives what nobody gets"


@pytest.fixture(scope="module")
def controllers(tmp_path_factory) -> list[AccessController]:
    sections = [make(tmp_path_factory.mktemp("auth")).auth for make in SECTIONS.values()]
    return [schemes.SCHEMES[section.type](section).controller for section in sections]


@given(authorization=st.text(max_size=200), host=st.text(max_size=50))
def test_any_header_has_a_verdict(controllers, authorization, host):
    for controller in controllers:
        assert verdict(controller, authorization, PULL, host) in {None, ""}


def test_its_files_are_those_of_the_configuration(case, built):
    """Each file that a scheme reads is a certificate or named by a key, and can be read and used again."""
    named = {f"auth.options.{name}": value for name, value in vars_of(case.auth.options).items() if value}
    for source in built.sources(case.auth):
        assert [named[key] for key in source.keys] == list(source.files)
        source.use(source.load())
    assert built.controller.authorize(case.accepted, HOST, PULL, NOW) == case.subject
    assert built.sources(Auth()) == (), "a configuration without the scheme names none of its files"


def vars_of(options: TokenOptions) -> dict[str, object]:
    return {name: getattr(options, name) for name in options.__dataclass_fields__}


# -- a toy ------------------------------------------------------------------------------------------------------------


class Toy:
    """Lets through who says the password."""

    def __init__(self, password: str) -> None:
        self.password = password

    def authorize(self, authorization, host, access, now) -> str:
        if authorization == f"Toy {self.password}":
            return "toymaker"
        raise Unauthorized("say the password", 'Toy realm="nursery"', tuple(access))


@pytest_twisted.ensureDeferred
async def test_a_toy_scheme_is_one_row(tmp_path: Path, monkeypatch):
    """No other part of the server hears of it: requests are answered by it, and its file is reloaded."""
    password = tmp_path / "password"
    password.write_text("first")

    def build(auth: Auth) -> Authentication:
        toy = Toy(password.read_text())

        def use(text: str) -> None:
            toy.password = text

        def sources(newer: Auth) -> Sequence[Source]:
            assert newer.type == auth.type
            return (Source(("auth.options.rootcertbundle",), (password,), password.read_text, use),)

        return Authentication(toy, sources)

    monkeypatch.setattr(schemes, "SCHEMES", {**schemes.SCHEMES, "toy": build})
    text = json.dumps(
        {
            "server": {"http_addr": "127.0.0.1:1"},
            "trust_service": {"type": "local"},
            "storage": {"backend": "memory"},
        }
    )
    config = replace(load_server(text, {}, tmp_path), auth=Auth(type="toy"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        url = "http://{}:{}/v2/".format(*listening.getsockname())
        server = tap.Server(config, reactor, [listening])
        await server.startService()
        try:
            answer = await asked(url, None)
            assert (answer.code, answer.headers.getRawHeaders("WWW-Authenticate")) == (401, ['Toy realm="nursery"'])
            assert (await asked(url, "Toy first")).code == 200
            password.write_text("second")
            assert (await asked(url, "Toy second")).code == 401
            assert await server.reload(config) == []
            assert [(await asked(url, f"Toy {word}")).code for word in ("first", "second")] == [401, 200]
        finally:
            await server.stopService()


async def asked(url: str, authorization: str | None):
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = await treq.get(url, headers=headers, persistent=False)
    await answer.content()
    return answer
