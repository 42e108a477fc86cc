"""The configuration of ``notary-server``: ``(text, environ, directory) -> ServerConfig``.

Rules of this module: pure, but for the files of secrets (:mod:`notary.config.secrets`).
"""

# ruff: noqa: RUF009 - a field made by key() is what dataclasses.field() would be, only with the table's row in it

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from notary.config.sections import (
    DEBUG_DOC,
    Auth,
    Caching,
    Limits,
    Logging,
    Manhole,
    Reporting,
    Repositories,
    Server,
    Storage,
    TrustService,
    check_workers,
)
from notary.config.table import Reader, key, section
from notary.config.values import DEBUG, Address
from notary.errors import ConfigError

SERVER_PREFIX: Final = "NOTARY_SERVER_"
"""The beginning of the names of the server's variables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The configuration of ``notary-server``; ``warnings`` are lines for the log."""

    server: Server
    trust_service: TrustService
    storage: Storage
    auth: Auth = field(default_factory=Auth)
    logging: Logging = section(Logging)
    reporting: Reporting = section(Reporting)
    caching: Caching = section(Caching)
    repositories: Repositories = field(default_factory=Repositories)
    limits: Limits = field(default_factory=Limits)
    debug: Address | None = key(DEBUG, DEBUG_DOC, default=None)
    manhole: Manhole = field(default_factory=Manhole)
    warnings: tuple[str, ...] = ()


def load_server(text: str, environ: Mapping[str, str], directory: str | Path) -> ServerConfig:
    """Read the configuration of the server.

    Args:
        text: The configuration file, JSON.
        environ: The environment, for ``NOTARY_SERVER_*``.
        directory: The directory of the configuration file, from which relative paths start.

    Raises:
        ConfigError: A value is missing or cannot be used.
    """
    reader = Reader(ServerConfig, text, environ, SERVER_PREFIX, Path(directory))
    reader.warn_of_unknown_variables("ignored")
    config = reader.read(warnings=tuple(reader.warnings))
    check_workers(config.server.workers, config.storage, config.manhole)
    if config.server.workers != 1 and config.trust_service.type == "local":
        raise ConfigError(
            'server.workers: more than 1 cannot be used with trust_service.type "local", which keeps its keys in the '
            "memory of one process; expected 1, or a signer"
        )
    return dataclasses.replace(config, storage=config.storage.resolved(Path(directory)))
