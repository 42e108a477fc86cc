"""Reads a configuration whose daemon is not known: a file of the server or of the signer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from notary.config.server import SERVER_PREFIX, ServerConfig, load_server
from notary.config.signer import SIGNER_PREFIX, SignerConfig, load_signer
from notary.config.table import parse
from notary.errors import ConfigError

_TELLTALES = (("http_addr", SERVER_PREFIX, load_server), ("grpc_addr", SIGNER_PREFIX, load_signer))
"""The key of the section ``server`` that only one of the daemons has, its prefix of variables, and its reader."""


def load_config(text: str, environ: Mapping[str, str], directory: str | Path) -> ServerConfig | SignerConfig:
    """Read the configuration of whichever daemon it is.

    The server's has ``server.http_addr``, the signer's ``server.grpc_addr``: in the file or, where the file has
    neither, in the environment.

    Arguments and errors are those of :func:`load_server` and :func:`load_signer`.
    """
    section = parse(text).get("server")
    members = section if isinstance(section, dict) else {}
    named = [read for key, _, read in _TELLTALES if members.get(key) not in (None, "")] or [
        read for key, prefix, read in _TELLTALES if environ.get(f"{prefix}SERVER_{key.upper()}")
    ]
    if len(named) != 1:
        both = "both are given" if named else "neither is given"
        raise ConfigError(
            f"server.http_addr, server.grpc_addr: {both}; expected http_addr for a server, or grpc_addr for a signer"
        )
    return named[0](text, environ, directory)
