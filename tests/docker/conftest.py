"""The engine, the images and the names that all tests with Docker share."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from etc.images import IMAGES
from tests.docker.engine import Engine, OwnEngine, say
from tests.support.peers import Certificates, free_port, is_open, mint_certificates

REGISTRY = """\
version: 0.1
storage:
  filesystem:
    rootdirectory: {directory}
http:
  addr: 127.0.0.1:{port}
"""


@pytest.fixture(scope="session")
def bare_engine() -> Iterator[Engine]:
    """An engine."""
    given = Engine()
    if given.answers:
        yield given
        return
    say("no Docker engine answers: starting one")
    with OwnEngine() as own:
        yield own


@pytest.fixture(scope="session")
def engine(bare_engine: Engine) -> Engine:
    """An engine with the base image."""
    bare_engine.need_base()
    return bare_engine


@pytest.fixture(scope="session")
def images(engine: Engine) -> dict[str, str]:
    """Our images, by program."""
    for image, target in IMAGES.items():
        engine.build(target, image)
    return {target: image for image, target in IMAGES.items()}


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Debian's registry on loopback: host and port."""
    port = free_port()
    (tmp_path / "registry").mkdir()
    config = tmp_path / "registry.yml"
    config.write_text(REGISTRY.format(directory=tmp_path / "registry", port=port))
    with (tmp_path / "registry.log").open("wb") as log:
        process = subprocess.Popen(("docker-registry", "serve", str(config)), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while not is_open(port):
            assert process.poll() is None, (tmp_path / "registry.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"localhost:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """Certificates for servers on localhost."""
    return mint_certificates(tmp_path / "tls")


@pytest.fixture
def project() -> str:
    """A name for a compose project that nobody has."""
    return f"notarytest{secrets.token_hex(4)}"
