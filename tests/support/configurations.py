"""Builders of accepted configurations, for tests that change one value; and the check of a message of an error."""

from __future__ import annotations

import json
from typing import Any

from notary import config
from notary.config import load_server, load_signer

DIRECTORY = "/etc/notary"


HIDDEN = "hunter2-hunter3-hunter4"


def server(path: str = "", value: Any = None, **sections: Any) -> dict[str, Any]:
    """A server configuration that is accepted, with other sections or one other value."""
    tree: dict[str, Any] = {
        "server": {"http_addr": ":4443"},
        "trust_service": {"type": "local"},
        "storage": {"backend": "memory"},
        **sections,
    }
    return put(tree, path, value)


def signer(path: str = "", value: Any = None, **sections: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "server": {"grpc_addr": ":7899", "tls_cert_file": "signer.crt", "tls_key_file": "signer.key"},
        "storage": {"backend": "memory"},
        **sections,
    }
    return put(tree, path, value)


def put(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, name = path.split(".")
    inner = tree
    for parent in parents:
        inner = inner.setdefault(parent, {})
    if name:
        inner[name] = value
    return tree


REMOTE = {"type": "remote", "hostname": "notarysigner", "port": "7899", "key_algorithm": "ecdsa"}


TOKEN = {
    "type": "token",
    "options": {"realm": "https://auth/token", "service": "notary", "issuer": "auth", "rootcertbundle": "auth.crt"},
}


MYSQL = {"backend": "mysql", "db_url": f"server:{HIDDEN}@tcp(mysql:3306)/notaryserver?parseTime=True"}


SIGNER_STORAGE = {"backend": "mysql", "db_url": f"signer:{HIDDEN}@tcp(mysql:3306)/notarysigner"}


def read_server(tree: Any, **environ: str) -> config.ServerConfig:
    return load_server(json.dumps(tree), environ, DIRECTORY)


def read_signer(tree: Any, **environ: str) -> config.SignerConfig:
    return load_signer(json.dumps(tree), environ, DIRECTORY)


def value_of(loaded: object, path: str) -> Any:
    for name in path.split("."):
        loaded = getattr(loaded, name)
    return loaded


def assert_one_line(message: str, name: str, parts: list[str]) -> None:
    assert message.startswith(f"{name}: ")
    assert "expected" in message
    assert message.isprintable()
    assert HIDDEN not in message
    for part in parts:
        assert part in message
