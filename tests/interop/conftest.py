"""Servers for the interoperability tests. They are started once and shared: every case has a collection of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_twisted

from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, daemon, mint_certificates
from tests.support.sides import Side


class Sides(NamedTuple):
    """The reference and the server under test."""

    go: Side
    ours: Side


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return mint_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def running_sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    from twisted.internet import reactor

    directory = tmp_path_factory.mktemp("sides")
    with ExitStack() as stack:
        go = stack.enter_context(daemon("go", GO_SERVER, directory))
        ours = stack.enter_context(daemon("ours", OUR_SERVER, directory))
        sides = Sides(Side(go, reactor), Side(ours, reactor))
        yield sides
        for side in sides:
            pytest_twisted.blockon(side.close())


@pytest.fixture
def sides(running_sides: Sides) -> Sides:
    """Both servers. The Go server is started afresh if the test before has killed it; ours must never die."""
    running_sides.go.daemon.ensure()
    assert running_sides.ours.daemon.alive, f"our server has died:\n{running_sides.ours.daemon.output()[-4000:]}"
    return running_sides


@pytest.fixture
def machines(tmp_path: Path) -> Path:
    """Where trust directories go."""
    return tmp_path / "machines"
