"""The engine, the images and the names that all tests with Docker share."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.docker.engine import Engine, OwnEngine, say


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """An engine with the base image."""
    given = Engine()
    if given.answers:
        given.need_base()
        yield given
        return
    say("no Docker engine answers: starting one")
    with OwnEngine() as own:
        own.need_base()
        yield own


@pytest.fixture(scope="session")
def images(engine: Engine) -> dict[str, str]:
    """The images of the daemons, by program."""
    names = {"notary-server": "notary_server", "notary-signer": "notary_signer"}
    for target, name in names.items():
        engine.docker("build", "-q", "-f", "docker/Dockerfile", "--target", target, "-t", name, ".")
    return names


@pytest.fixture
def project() -> str:
    """A name for a compose project that nobody has."""
    return f"notarytest{secrets.token_hex(4)}"
