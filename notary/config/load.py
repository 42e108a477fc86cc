"""Reads the configuration of either daemon: ``(text, environ, directory) -> ServerConfig | SignerConfig``.

Rules of this module: pure, but for the files of secrets (:mod:`notary.config.secrets`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from notary.config.server import SERVER_PREFIX, ServerConfig, load_server
from notary.config.signer import SIGNER_PREFIX, SignerConfig, load_signer
from notary.config.table import parse
from notary.errors import ConfigError

SERVER: Final = "server"
SIGNER: Final = "signer"
_READERS: Final[Mapping[str, Callable[[str, Mapping[str, str], str | Path], ServerConfig | SignerConfig]]] = {
    SERVER: load_server,
    SIGNER: load_signer,
}
_ADDRESSES: Final = {SERVER: "http_addr", SIGNER: "grpc_addr"}
"""The key of the section ``server`` that says where each daemon listens."""
_PREFIXES: Final = {SERVER: SERVER_PREFIX, SIGNER: SIGNER_PREFIX}

DAEMONS: Final = tuple(_READERS)
"""The names of the daemons."""


def load_config(
    text: str, environ: Mapping[str, str], directory: str | Path, daemon: str | None = None
) -> ServerConfig | SignerConfig:
    """Read the configuration of ``daemon``, one of :data:`DAEMONS`, or of the one that the configuration itself shows.

    A server has the key ``server.http_addr``, a signer ``server.grpc_addr``. The environment counts only if the file
    has neither. A file with both, such as that of Docker's official image, is a signer's if it has no
    ``trust_service``, and else a server's if it has no ``storage.default_alias``. Arguments and errors are otherwise
    those of :func:`load_server` and :func:`load_signer`.
    """
    found = daemon or _shown_by(parse(text), environ)
    return _READERS[found](text, environ, directory)


def _shown_by(tree: Mapping[str, object], environ: Mapping[str, str]) -> str:
    """Return the name of the daemon that a configuration is for. Raises ConfigError if that cannot be told."""
    named = [daemon for daemon, key in _ADDRESSES.items() if _given(tree, "server", key)] or [
        daemon for daemon, key in _ADDRESSES.items() if environ.get(f"{_PREFIXES[daemon]}SERVER_{key.upper()}")
    ]
    if len(named) > 1:
        others = {SERVER: bool(tree.get("trust_service")), SIGNER: _given(tree, "storage", "default_alias")}
        named = [daemon for daemon in named if others[daemon]] if any(others.values()) else [SIGNER]
    if len(named) == 1:
        return named[0]
    told = "the keys of both daemons are given" if named else "neither is given"
    raise ConfigError(
        f"server.http_addr, server.grpc_addr: {told}; expected http_addr for a server, or grpc_addr for a signer, or "
        f"the option --daemon with {' or '.join(DAEMONS)}"
    )


def _given(tree: Mapping[str, object], section: str, key: str) -> bool:
    inner = tree.get(section)
    return isinstance(inner, dict) and inner.get(key) not in (None, "")
