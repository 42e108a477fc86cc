"""The configuration of ``notary-signer``: ``(text, environ, directory) -> SignerConfig``; and its passphrases.

Rules of this module: pure, but for the files of secrets (:mod:`notary.config.secrets`).
"""

# ruff: noqa: RUF009 - a field made by key() is what dataclasses.field() would be, only with the table's row in it

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from notary.config import secrets
from notary.config.secrets import FILE_SUFFIX
from notary.config.sections import (
    DEBUG_DOC,
    Logging,
    Manhole,
    Reporting,
    SignerLimits,
    SignerServer,
    SignerStorage,
    check_workers,
)
from notary.config.table import Reader, key, section, shown, variable_part
from notary.config.values import DEBUG, Address, Secret
from notary.errors import ConfigError

SIGNER_PREFIX: Final = "NOTARY_SIGNER_"
"""The beginning of the names of the signer's variables."""

_DEFAULT_ALIAS: Final = "DEFAULT_ALIAS"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerConfig:
    """The configuration of ``notary-signer``; ``warnings`` are lines for the log.

    The keys of ``passphrases`` are variable names without the prefix.
    """

    server: SignerServer
    storage: SignerStorage
    logging: Logging = section(Logging)
    reporting: Reporting = section(Reporting)
    limits: SignerLimits = field(default_factory=SignerLimits)
    debug: Address | None = key(DEBUG, DEBUG_DOC, default=None)
    manhole: Manhole = field(default_factory=Manhole)
    passphrases: Mapping[str, Secret] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def passphrase(self, alias: str) -> Secret | None:
        """Return the passphrase of an alias, or None if the environment has none. Letter case is ignored."""
        return self.passphrases.get(variable_part(alias))


def load_signer(text: str, environ: Mapping[str, str], directory: str | Path) -> SignerConfig:
    """Read the configuration of the signer.

    Every variable ``NOTARY_SIGNER_<ALIAS>`` that names no key holds the passphrase of an alias, and
    ``NOTARY_SIGNER_<ALIAS>_FILE`` names a file that holds it. With a database, the passphrase of the default alias must
    be given, unless new keys are wrapped by a key-encrypting key: without it the signer could create no key.

    Args:
        text: The configuration file, JSON.
        environ: The environment, for ``NOTARY_SIGNER_*``.
        directory: The directory of the configuration file, from which relative paths start.

    Raises:
        ConfigError: A value is missing or cannot be used.
    """
    reader = Reader(SignerConfig, text, environ, SIGNER_PREFIX, Path(directory))
    reader.warn_of_unknown_variables("read as a passphrase", ("SERVER_", "STORAGE_", "LOGGING_", "REPORTING_"))
    reader.fall_back("storage.default_alias", SIGNER_PREFIX + _DEFAULT_ALIAS)
    passphrases = _passphrases(reader.unknown_variables, Path(directory))
    weak = [_weakness(alias) for alias, passphrase in passphrases.items() if _is_weak(passphrase)]
    warnings = (*reader.warnings, *weak)
    config = reader.read(passphrases=MappingProxyType(passphrases), warnings=warnings)
    check_workers(config.server.workers, config.storage, config.manhole)
    storage = config.storage
    alias = storage.default_alias
    by_passphrase = storage.kind.persistent and storage.keys.wrap is None
    if by_passphrase and not alias:
        raise ConfigError(
            f"storage.default_alias: missing; expected the alias of a passphrase, because storage.backend is "
            f"{shown(storage.backend)}; or the URI of a key-encrypting key in storage.keys.wrap"
        )
    if by_passphrase and config.passphrase(alias) is None:
        raise ConfigError(
            f"{SIGNER_PREFIX}{variable_part(alias)}: missing or empty; "
            f"expected the passphrase of storage.default_alias {shown(alias)}, "
            f"or its file in {SIGNER_PREFIX}{variable_part(alias)}{FILE_SUFFIX.upper()}"
        )
    return dataclasses.replace(config, storage=storage.resolved(Path(directory)))


def _passphrases(variables: Mapping[str, str], directory: Path) -> dict[str, Secret]:
    """Return the passphrases of all aliases, by the variable name after the prefix. Raises ConfigError."""
    found: dict[str, Secret] = {}
    for name, value in variables.items():
        plain = name.removesuffix(FILE_SUFFIX.upper())
        alias = plain.removeprefix(SIGNER_PREFIX)
        if alias == _DEFAULT_ALIAS:
            continue
        if plain != name and plain in variables:
            raise ConfigError(f"{plain}, {name}: both are given; expected the passphrase, or the file that holds it")
        # The bytes count, as for the reference. The environment was decoded by the locale, which may not be UTF-8.
        own = os.fsencode(value).decode("utf-8", "surrogateescape")
        found[alias] = Secret(own if plain == name else secrets.read(name, directory / value, any_bytes=True))
    return found


_MIN_PASSPHRASE_BYTES = 16


def _is_weak(passphrase: str) -> bool:
    """Return whether a passphrase can be guessed with a copy of the encrypted keys at hand."""
    size = len(passphrase.encode("utf-8", "surrogateescape"))
    return 0 < size < _MIN_PASSPHRASE_BYTES or (bool(passphrase) and len(set(passphrase)) == 1)


def _weakness(alias: str) -> str:
    return (
        f"{SIGNER_PREFIX}{alias}: this passphrase is weak (fewer than {_MIN_PASSPHRASE_BYTES} bytes, or one "
        "character repeated): it can be guessed from a copy of the database; make a random one "
        "(openssl rand -base64 32) under another alias, and move the keys to it (notary-admin keys reencrypt)"
    )
