"""The configuration of both daemons: ``(text, environ, directory) -> ServerConfig | SignerConfig``.

Rules of this package:

- Pure, but for files that hold secrets (``secrets``): it reads no other file, no environment and no clock; it imports
  nothing of ours but ``notary.errors``.
- The frozen dataclasses of ``sections`` are the one table of keys. One reader serves all of them (``table``), and
  ``python -m notary.config`` writes docs/configuration.md from them.
- What looks like a mistake but harms nothing (an unknown key) becomes a line in ``config.warnings``.
- This module only hands names on.
"""

from __future__ import annotations

from notary.config.backends import PERSISTENT
from notary.config.load import load_config
from notary.config.sections import (
    Auth,
    Bugsnag,
    Caching,
    KeyEncryption,
    Lifetimes,
    Limits,
    Logging,
    Manhole,
    MaxAge,
    Reporting,
    Repositories,
    Server,
    SignerLimits,
    SignerServer,
    SignerStorage,
    Storage,
    TokenOptions,
    TrustService,
)
from notary.config.server import SERVER_PREFIX, ServerConfig, load_server
from notary.config.signer import SIGNER_PREFIX, SignerConfig, load_signer
from notary.config.table import differences
from notary.config.values import DEBUG_ADDRESS, LOG_LEVELS, Address, KekUri, Secret

__all__ = [
    "DEBUG_ADDRESS",
    "LOG_LEVELS",
    "PERSISTENT",
    "SERVER_PREFIX",
    "SIGNER_PREFIX",
    "Address",
    "Auth",
    "Bugsnag",
    "Caching",
    "KekUri",
    "KeyEncryption",
    "Lifetimes",
    "Limits",
    "Logging",
    "Manhole",
    "MaxAge",
    "Reporting",
    "Repositories",
    "Secret",
    "Server",
    "ServerConfig",
    "SignerConfig",
    "SignerLimits",
    "SignerServer",
    "SignerStorage",
    "Storage",
    "TokenOptions",
    "TrustService",
    "differences",
    "load_config",
    "load_server",
    "load_signer",
]
