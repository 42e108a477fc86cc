"""The warning of a limit of open files that is too low for what is configured."""

from __future__ import annotations

import resource
from types import SimpleNamespace
from typing import Any

import pytest

from notary.daemon import program
from notary.server.tap import PROGRAM as SERVER
from notary.signer.tap import PROGRAM as SIGNER

NEEDED = {"of its own": 32, "to the database (storage.connections)": 10, "of clients": 512}


@pytest.mark.parametrize(
    ("limit", "warned"), [(12, True), (553, True), (554, False), (1024, False), (resource.RLIM_INFINITY, False)]
)
def test_a_limit_of_open_files_that_is_too_low(monkeypatch: pytest.MonkeyPatch, limit: int, warned: bool) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    found = program._few_files(NEEDED)
    assert bool(found) == warned
    if warned:
        assert f"RLIMIT_NOFILE: {limit} files may be open at a time, and 554 are needed (32 of its own, 10 to " in found
        assert "LimitNOFILE=" in found


@pytest.mark.parametrize(
    ("made", "connections", "workers", "needed"),
    [
        pytest.param(SERVER, 10, 1, 554, id="server"),
        pytest.param(SERVER, 900, 1, 1444, id="many connections to the database"),
        pytest.param(SERVER, 10, 3, 566, id="workers"),
        pytest.param(SIGNER, 10, 1, 106, id="signer"),
    ],
)
def test_the_open_files_that_are_needed_follow_the_configuration(
    made: program.Program[Any], connections: int, workers: int, needed: int
) -> None:
    config = SimpleNamespace(server=SimpleNamespace(workers=workers), storage=SimpleNamespace(connections=connections))
    assert sum(made._files(config).values()) == needed
