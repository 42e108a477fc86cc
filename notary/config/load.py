"""Reads the configuration of either daemon: ``(text, environ, directory) -> ServerConfig | SignerConfig``.

Rules of this module: pure, but for the files of secrets (:mod:`notary.config.secrets`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from notary.config.server import SERVER_PREFIX, ServerConfig, load_server
from notary.config.signer import SIGNER_PREFIX, SignerConfig, load_signer
from notary.config.table import parse
from notary.errors import ConfigError

_DAEMONS: Final = (("http_addr", SERVER_PREFIX, load_server), ("grpc_addr", SIGNER_PREFIX, load_signer))
"""For each daemon the key of the section ``server`` that only it has, its prefix of variables, and its reader."""


def load_config(text: str, environ: Mapping[str, str], directory: str | Path) -> ServerConfig | SignerConfig:
    """Read the configuration of the daemon that the configuration itself shows.

    A server has the key ``server.http_addr``, a signer ``server.grpc_addr``. The environment counts only if the file
    has neither. Arguments and errors are those of :func:`load_server` and :func:`load_signer`.
    """
    section = parse(text).get("server")
    members = section if isinstance(section, dict) else {}
    named = [read for key, _, read in _DAEMONS if members.get(key) not in (None, "")] or [
        read for key, prefix, read in _DAEMONS if environ.get(f"{prefix}SERVER_{key.upper()}")
    ]
    if len(named) != 1:
        both = "both are given" if named else "neither is given"
        raise ConfigError(
            f"server.http_addr, server.grpc_addr: {both}; expected http_addr for a server, or grpc_addr for a signer"
        )
    return named[0](text, environ, directory)
