"""Whose configuration a file is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from notary.config import ServerConfig, SignerConfig, load_config
from notary.errors import ConfigError
from tests.support.configurations import DIRECTORY, server, signer

IMAGE = signer("server.http_addr", ":4444")
"""As the sample configuration of the signer in Docker's official image: it has both addresses."""
OLD = server("server.grpc_addr", ":7899")
MIXED = {**OLD, "storage": {"backend": "memory", "default_alias": "a"}}


def load(tree: Any, daemon: str | None = None, **environ: str) -> ServerConfig | SignerConfig:
    return load_config(json.dumps(tree), environ, DIRECTORY, daemon)


@pytest.mark.parametrize(
    ("tree", "daemon", "expected", "warned"),
    [
        pytest.param(server(), None, ServerConfig, [], id="server"),
        pytest.param(signer(), None, SignerConfig, [], id="signer"),
        pytest.param(IMAGE, None, SignerConfig, ["server.http_addr"], id="signer with both"),
        pytest.param(OLD, None, ServerConfig, ["server.grpc_addr"], id="server with both"),
        pytest.param(MIXED, "server", ServerConfig, ["server.grpc_addr", "storage.default_alias"], id="told"),
        pytest.param(IMAGE, "signer", SignerConfig, ["server.http_addr"], id="told what it shows"),
    ],
)
def test_the_daemon_of_a_configuration(tree: Any, daemon: str | None, expected: type, warned: list[str]) -> None:
    loaded = load(tree, daemon)
    assert type(loaded) is expected
    assert [each.partition(":")[0] for each in loaded.warnings] == warned


@pytest.mark.parametrize(
    ("tree", "environ", "told"),
    [
        pytest.param(MIXED, {}, "the keys of both daemons are given", id="both"),
        pytest.param({}, {}, "neither is given", id="neither"),
        pytest.param({"server": 5, "storage": "x"}, {}, "neither is given", id="no sections"),
    ],
)
def test_it_cannot_be_told(tree: Any, environ: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        load(tree, None, **environ)
    assert "--daemon with server or signer" in str(caught.value)


def test_a_variable_tells_where_the_file_does_not() -> None:
    tree = signer("server.grpc_addr", None)
    assert isinstance(load(tree, None, NOTARY_SIGNER_SERVER_GRPC_ADDR=":1"), SignerConfig)
