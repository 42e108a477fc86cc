"""The configuration of both daemons: ``(text, environ, directory) -> ServerConfig | SignerConfig``.

Rules of this package:

- Pure, but for files that hold secrets (``secrets``): it reads no other file, no environment and no clock; it imports
  nothing of ours but ``notary.errors``.
- The frozen dataclasses below are the one table of keys. A field made with ``key`` is a key: its type, its default,
  when it is required, whether it is secret and what it means. One reader serves all of them (``table``), and
  ``python -m notary.config`` writes docs/configuration.md from them. To add a key is to add a field.
- The keys are those of Notary 0.7.0 (docs/protocol.md, section 6); ``limits``, ``server.client_names`` and
  ``server.drain_timeout``, ``server.workers`` and the files of secrets are ours.
- What looks like a mistake but harms nothing (an unknown key) becomes a line in ``config.warnings``.
"""

# ruff: noqa: RUF009 - a field made by key() is what dataclasses.field() would be, only with the table's row in it

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from notary.config import secrets
from notary.config.secrets import SUFFIX
from notary.config.table import Reader, differences, key, parse, shown, variable_part
from notary.config.values import (
    ADDRESS,
    BOOLEAN,
    BYTES,
    BYTES_OR_NONE,
    COUNT,
    DEBUG,
    DEBUG_ADDRESS,
    FILE,
    GUN_PREFIXES,
    HOST,
    LEVEL,
    LOG_LEVELS,
    MAX_AGE,
    NAMES,
    NUMBER_OR_NONE,
    PORT,
    SECONDS,
    TEXT,
    WORKERS,
    Address,
    Secret,
    one_of,
)
from notary.errors import ConfigError

__all__ = ["DEBUG_ADDRESS", "LOG_LEVELS", "Address", "Secret", "differences"]

SQL_BACKENDS = ("mysql", "postgres", "sqlite3")
"""The storage backends that need ``storage.db_url``."""

SERVER_PREFIX = "NOTARY_SERVER_"
SIGNER_PREFIX = "NOTARY_SIGNER_"
_DEFAULT_ALIAS = "DEFAULT_ALIAS"

_REMOTE = ("trust_service.type", ("remote",))
_TOKEN = ("auth.type", ("token",))
_SQL = ("storage.backend", SQL_BACKENDS)
_REMOTE_SQL = ("storage.backend", ("mysql", "postgres"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Logging:
    """The section ``logging``."""

    level: str = key(
        LEVEL,
        "The least severe level that is logged; letter case does not matter, `warn` means `warning`, `trace` means "
        "`debug`. SIGUSR1 makes a running daemon one step more verbose, SIGUSR2 one step less.",
        default="error",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bugsnag:
    """The section ``reporting.bugsnag``; ``api_key`` is "" if errors are reported to nobody."""

    api_key: Secret = key(TEXT, "The API key of the Bugsnag project.", default=Secret(), secret=True)
    release_stage: str = key(
        TEXT, "The release stage that reports carry.", default="", needs=("reporting.bugsnag.api_key",)
    )
    endpoint: str = key(
        TEXT, "The URL to report to, where it is not Bugsnag's own.", default="", needs=("reporting.bugsnag.api_key",)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporting:
    """The section ``reporting``."""

    bugsnag: Bugsnag = field(default_factory=Bugsnag)


def _workers() -> int:
    workers: int = key(
        WORKERS,
        "How many processes serve; `auto` means one for each processor that the daemon may use. With more than one, a "
        "parent holds the sockets and looks after them, and data must be in a database.",
        default=1,
    )
    return workers


def _drain_timeout(default: float) -> float:
    timeout: float = key(
        SECONDS,
        "Seconds that a stopping daemon gives to the answers that it owes; then it cuts the connections.",
        default=default,
    )
    return timeout


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The section ``server`` of the server: plain HTTP if ``tls_cert_file`` is None."""

    http_addr: Address = key(ADDRESS, "Where to listen for HTTP or HTTPS. `:4443` means port 4443 of every interface.")
    tls_cert_file: Path | None = key(
        FILE,
        "The certificate for HTTPS: the leaf, then the intermediates, as PEM. Both files, or neither for plain HTTP.",
        default=None,
        needs=("server.tls_key_file",),
    )
    tls_key_file: Path | None = key(
        FILE,
        "The private key for HTTPS, as PEM. Both files, or neither for plain HTTP.",
        default=None,
        needs=("server.tls_cert_file",),
    )
    client_ca_file: Path | None = key(
        FILE,
        "Certificates as PEM. If given, every client must show a certificate that is, or chains to, one of these.",
        default=None,
        needs=("server.tls_cert_file",),
    )
    drain_timeout: float = _drain_timeout(10.0)
    workers: int = _workers()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustService:
    """The section ``trust_service``; a local one ignores everything but ``type``."""

    type: str = key(
        one_of("local", "remote"),
        "Who holds the timestamp and snapshot keys: `remote` is a Notary signer; `local` keeps Ed25519 keys in this "
        "process's memory until it ends, which is for trying things out.",
    )
    hostname: str = key(
        HOST, "The host of the signer; its certificate must carry this name.", default="", required=True, when=_REMOTE
    )
    port: int = key(PORT, "The gRPC port of the signer.", default=0, required=True, when=_REMOTE)
    key_algorithm: str = key(
        one_of("ecdsa", "rsa", "ed25519"),
        "The algorithm of the keys that the signer makes.",
        default="ed25519",
        required=True,
        when=_REMOTE,
    )
    tls_ca_file: Path | None = key(
        FILE,
        "Certificates as PEM that the signer's certificate must chain to; by default those of the system.",
        default=None,
        when=_REMOTE,
    )
    tls_client_cert: Path | None = key(
        FILE,
        "The certificate to show to the signer. Both files or neither.",
        default=None,
        when=_REMOTE,
        needs=("trust_service.tls_client_key",),
    )
    tls_client_key: Path | None = key(
        FILE,
        "The private key of `tls_client_cert`. Both files or neither.",
        default=None,
        when=_REMOTE,
        needs=("trust_service.tls_client_cert",),
    )


_BACKEND = one_of("mysql", "postgres", "sqlite3", "memory")
_BACKEND_DOC = "Where data lives; `memory` forgets it when the process ends."
_DB_URL_DOC = (
    "Which database: a DSN of go-sql-driver (`user:password@tcp(host:3306)/database?parseTime=true`) for mysql, a "
    "`postgres://` URL for postgres, the path of a file for sqlite3 (relative to the directory of the configuration "
    "file)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """The section ``storage`` of the server. A relative SQLite path in ``db_url`` has been made absolute."""

    backend: str = key(_BACKEND, _BACKEND_DOC)
    db_url: Secret = key(TEXT, _DB_URL_DOC, default=Secret(), required=True, when=_SQL, secret=True)
    connections: int = key(
        COUNT,
        "How many connections to the database are open at most; whatever is more waits for one to be free. All "
        "instances together must stay below what the database allows.",
        default=10,
        when=_REMOTE_SQL,
    )
    connect_timeout: float = key(
        SECONDS,
        "Seconds that a new connection to the database may take, rounded up to whole ones.",
        default=5.0,
        when=_REMOTE_SQL,
    )
    query_timeout: float = key(
        SECONDS,
        "Seconds that the database may take for one statement, and that a request waits for a free connection; "
        "beyond it the request fails.",
        default=10.0,
        when=_REMOTE_SQL,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOptions:
    """The section ``auth.options``; empty unless ``auth.type`` is "token"."""

    realm: str = key(
        TEXT,
        "The URL where clients get their token; it goes into the challenge.",
        default="",
        required=True,
        when=_TOKEN,
    )
    service: str = key(
        TEXT,
        "The name of this service; tokens must have it as their audience.",
        default="",
        required=True,
        when=_TOKEN,
    )
    issuer: str = key(TEXT, "The issuer that tokens must have.", default="", required=True, when=_TOKEN)
    rootcertbundle: Path | None = key(
        FILE,
        "Certificates as PEM: a token must be signed by one of them or by a chain that leads to one.",
        default=None,
        required=True,
        when=_TOKEN,
    )
    autoredirect: bool = key(
        BOOLEAN,
        "Send clients to `https://<the host they asked>/auth/token` instead of `realm`.",
        default=False,
        when=_TOKEN,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """The section ``auth``; ``type`` is "" (everybody may do everything) or "token"."""

    type: str = key(
        one_of("token")._replace(expected='"token", or "" for no authentication'),
        "Who may read and write: `token` is the bearer scheme of the Docker registry; without it, everybody.",
        default="",
    )
    options: TokenOptions = field(default_factory=TokenOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxAge:
    """The section ``caching.max_age``: ``max-age`` of answers in seconds; 0 turns caching by clients off."""

    current_metadata: int = key(
        MAX_AGE, "Seconds that clients may cache the current metadata of a role; 0 means not at all.", default=300
    )
    consistent_metadata: int = key(
        MAX_AGE,
        "Seconds that clients may cache metadata that was asked for by checksum or version; 0 means not at all.",
        default=2_592_000,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Caching:
    """The section ``caching``."""

    max_age: MaxAge = field(default_factory=MaxAge)
    memory_bytes: int = key(
        BYTES_OR_NONE,
        "How much metadata a server keeps in memory, in bytes; 0 means none. Whatever is kept, every read is as fresh "
        "as the database. The memory backend does not need it.",
        default=64 << 20,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Repositories:
    """The section ``repositories``; without prefixes every GUN is accepted."""

    gun_prefixes: tuple[str, ...] = key(
        GUN_PREFIXES,
        "If given, only GUNs that begin with one of these are held. In the environment: separated by spaces.",
        default=(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The section ``limits``: sizes in bytes, times in seconds."""

    upload_bytes: int = key(BYTES, "The largest body of a request, in bytes; beyond it 413.", default=100 << 20)
    answer_bytes: int = key(
        BYTES,
        "Bytes of large answers that clients have not taken yet, all together, a file that goes to several of them "
        "counted once; beyond it 503. One answer always has room.",
        default=256 << 20,
    )
    header_bytes: int = key(
        BYTES, "The largest headers of a request, all together, in bytes; beyond it 431.", default=64 << 10
    )
    header_timeout: float = key(
        SECONDS, "Seconds from the first byte of a request to the end of its headers.", default=15.0
    )
    body_timeout: float = key(SECONDS, "Seconds that a request's body may stand still.", default=30.0)
    body_rate: int = key(
        BYTES, "Bytes a second that a request's body must bring in the long run; slower ones get 408.", default=1024
    )
    bodies_bytes: int = key(
        BYTES,
        "How much a process holds of the bodies of all requests together, in bytes, until they are answered; beyond it "
        "503. One body of the largest size always has room.",
        default=400 << 20,
    )
    peer_bodies_bytes: int = key(
        BYTES,
        "The same for one client: the subject of its token, else its address (of IPv6 the /64), which is that of the "
        "proxy if there is one. Never less than `limits.upload_bytes`.",
        default=100 << 20,
    )
    idle_timeout: float = key(SECONDS, "Seconds that a connection may stay open without a request.", default=60.0)
    pending_keys_per_hour: int = key(
        NUMBER_OR_NONE,
        "How many new keys one user, or one address where there are no users, may ask for in an hour; beyond it 429. 0 "
        "means any number. Each worker counts for itself.",
        default=10_000,
    )


_DEBUG_DOC = (
    "The debug server: profiles, variables and figures for whoever reaches it. `true`, like the flag `-debug`, means "
    "localhost:8080; two daemons on one host need two addresses. An address that is not loopback must be allowed by "
    "`unsafe_any_interface`."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manhole:
    """The section ``manhole``; ``port`` is 0 if there is none."""

    port: int = key(
        PORT,
        "A port of 127.0.0.1 that serves, over SSH, a Python prompt inside the running daemon. Whoever may log in "
        "can do and read everything that the daemon can, keys included. It needs the extra `manhole`.",
        default=0,
        needs=("manhole.authorized_keys_file",),
    )
    authorized_keys_file: Path | None = key(
        FILE,
        "Who may log in: public keys, one a line, as in OpenSSH's `authorized_keys` (without options). Nobody else may "
        "be able to write to the file.",
        default=None,
        needs=("manhole.port",),
    )
    host_key_file: Path | None = key(
        FILE,
        "The private key by which clients recognise the prompt, as OpenSSH writes it, without a passphrase; by default "
        "a new one is made at each start, and the log has its fingerprint.",
        default=None,
        needs=("manhole.port",),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The configuration of ``notary-server``; ``warnings`` are lines for the log."""

    server: Server
    trust_service: TrustService
    storage: Storage
    auth: Auth = field(default_factory=Auth)
    logging: Logging = field(default_factory=Logging)
    reporting: Reporting = field(default_factory=Reporting)
    caching: Caching = field(default_factory=Caching)
    repositories: Repositories = field(default_factory=Repositories)
    limits: Limits = field(default_factory=Limits)
    debug: Address | None = key(DEBUG, _DEBUG_DOC, default=None)
    manhole: Manhole = field(default_factory=Manhole)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerServer:
    """The section ``server`` of the signer: always TLS."""

    grpc_addr: Address = key(ADDRESS, "Where to listen for gRPC. `:7899` means port 7899 of every interface.")
    tls_cert_file: Path = key(FILE, "The certificate for TLS: the leaf, then the intermediates, as PEM.")
    tls_key_file: Path = key(FILE, "The private key for TLS, as PEM.")
    client_ca_file: Path | None = key(
        FILE,
        "Certificates as PEM. If given, every client must show a certificate that is, or chains to, one of these.",
        default=None,
    )
    client_names: tuple[str, ...] = key(
        NAMES,
        "If given, a client's certificate must also carry one of these, as a DNS name or, if it has none, as its "
        "common name. In the environment: separated by spaces.",
        default=(),
        needs=("server.client_ca_file",),
    )
    drain_timeout: float = _drain_timeout(5.0)
    workers: int = _workers()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerStorage(Storage):
    """The section ``storage`` of the signer: that of the server, and the alias of a passphrase."""

    default_alias: str = key(
        TEXT,
        "The alias of the passphrase that encrypts new keys; `NOTARY_SIGNER_DEFAULT_ALIAS` stands in for it. The "
        "passphrase itself is the value of `NOTARY_SIGNER_<ALIAS>`, or what the file holds that "
        "`NOTARY_SIGNER_<ALIAS>_FILE` names.",
        default="",
        required=True,
        when=_SQL,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerLimits:
    """The section ``limits`` of the signer."""

    pending_keys_per_hour: int = key(
        NUMBER_OR_NONE,
        "How many keys are made in an hour, for all clients together; beyond it RESOURCE_EXHAUSTED. 0 means any "
        "number. Each worker counts for itself.",
        default=50_000,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerConfig:
    """The configuration of ``notary-signer``; ``passphrases`` are keyed by the variable name after the prefix."""

    server: SignerServer
    storage: SignerStorage
    logging: Logging = field(default_factory=Logging)
    reporting: Reporting = field(default_factory=Reporting)
    limits: SignerLimits = field(default_factory=SignerLimits)
    debug: Address | None = key(DEBUG, _DEBUG_DOC, default=None)
    manhole: Manhole = field(default_factory=Manhole)
    passphrases: Mapping[str, Secret] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def passphrase(self, alias: str) -> Secret | None:
        """Return the passphrase of an alias, or None if the environment does not give it. Letter case is ignored."""
        return self.passphrases.get(variable_part(alias))


_Store = TypeVar("_Store", Storage, SignerStorage)


def _resolved(storage: _Store, directory: Path) -> _Store:
    """Make a relative path of an SQLite file absolute; URLs and ``:memory:`` are left alone."""
    if storage.backend != "sqlite3" or re.match(r":memory:|[A-Za-z][A-Za-z0-9+.-]*:", storage.db_url):
        return storage
    return dataclasses.replace(storage, db_url=Secret(directory / storage.db_url))


def _check_workers(config: ServerConfig | SignerConfig) -> None:
    """Raises ConfigError if several processes would not see the same."""
    if config.server.workers == 1:
        return
    if config.storage.backend == "memory":
        raise ConfigError(
            'server.workers: more than 1 cannot be used with storage.backend "memory", which each process has for '
            "itself; expected 1, or a database"
        )
    if config.manhole.port:
        raise ConfigError(
            "server.workers: more than 1 cannot be used with manhole.port, which only one process can have; "
            "expected 1, or no manhole"
        )


def load_server(text: str, environ: Mapping[str, str], directory: str | Path) -> ServerConfig:
    """Read the configuration of the server.

    Args:
        text: The configuration file, JSON.
        environ: The environment, for ``NOTARY_SERVER_*``.
        directory: The directory of the configuration file, where relative paths begin.

    Raises:
        ConfigError: A value is missing or cannot be used.
    """
    reader = Reader(ServerConfig, text, environ, SERVER_PREFIX, Path(directory))
    reader.warn_of_variables("ignored")
    config = reader.read(ServerConfig, warnings=tuple(reader.warnings))
    _check_workers(config)
    if config.server.workers != 1 and config.trust_service.type == "local":
        raise ConfigError(
            'server.workers: more than 1 cannot be used with trust_service.type "local", which keeps its keys in the '
            "memory of one process; expected 1, or a signer"
        )
    return dataclasses.replace(config, storage=_resolved(config.storage, Path(directory)))


def load_signer(text: str, environ: Mapping[str, str], directory: str | Path) -> SignerConfig:
    """Read the configuration of the signer.

    Every variable ``NOTARY_SIGNER_*`` that names no key is the passphrase of the alias that it names; with ``_FILE``
    behind the alias, it names the file that holds it. A database needs the passphrase of its default alias from the
    start, lest the first key creation be the one to find out.

    Args:
        text: The configuration file, JSON.
        environ: The environment, for ``NOTARY_SIGNER_*``.
        directory: The directory of the configuration file, where relative paths begin.

    Raises:
        ConfigError: A value is missing or cannot be used.
    """
    reader = Reader(SignerConfig, text, environ, SIGNER_PREFIX, Path(directory))
    reader.warn_of_variables("taken for a passphrase", ("SERVER_", "STORAGE_", "LOGGING_", "REPORTING_"))
    reader.stand_in("storage.default_alias", SIGNER_PREFIX + _DEFAULT_ALIAS)
    passphrases = _passphrases(reader.other_variables, Path(directory))
    weak = [_weakness(alias) for alias, passphrase in passphrases.items() if _is_weak(passphrase)]
    warnings = (*reader.warnings, *weak)
    config = reader.read(SignerConfig, passphrases=MappingProxyType(passphrases), warnings=warnings)
    _check_workers(config)
    alias = config.storage.default_alias
    if config.storage.backend in SQL_BACKENDS and config.passphrase(alias) is None:
        raise ConfigError(
            f"{SIGNER_PREFIX}{variable_part(alias)}: missing or empty; "
            f"expected the passphrase of storage.default_alias {shown(alias)}, "
            f"or its file in {SIGNER_PREFIX}{variable_part(alias)}{SUFFIX.upper()}"
        )
    return dataclasses.replace(config, storage=_resolved(config.storage, Path(directory)))


def _passphrases(variables: Mapping[str, str], directory: Path) -> dict[str, Secret]:
    """The passphrases of all aliases, by the variable name after the prefix. Raises ConfigError."""
    found: dict[str, Secret] = {}
    for name, value in variables.items():
        plain = name.removesuffix(SUFFIX.upper())
        alias = plain.removeprefix(SIGNER_PREFIX)
        if alias == _DEFAULT_ALIAS:
            continue
        if plain != name and plain in variables:
            raise ConfigError(f"{plain}, {name}: both are given; expected the passphrase, or the file that holds it")
        found[alias] = Secret(value if plain == name else secrets.read(name, directory / value))
    return found


_LEAST_PASSPHRASE_BYTES = 16


def _is_weak(passphrase: str) -> bool:
    """Whether a passphrase can be guessed by a holder of a copy of the wrapped keys."""
    size = len(passphrase.encode("utf-8", "surrogateescape"))
    return 0 < size < _LEAST_PASSPHRASE_BYTES or (bool(passphrase) and len(set(passphrase)) == 1)


def _weakness(alias: str) -> str:
    return (
        f"{SIGNER_PREFIX}{alias}: this passphrase is weak (fewer than {_LEAST_PASSPHRASE_BYTES} bytes, or one "
        "character repeated): it can be guessed from a copy of the database; make a random one "
        "(openssl rand -base64 32) under another alias, and move the keys to it (notary-admin keys reencrypt)"
    )


_TELLTALES = (("http_addr", SERVER_PREFIX, load_server), ("grpc_addr", SIGNER_PREFIX, load_signer))
"""The key of the section ``server`` that only one of the daemons has, its prefix of variables, and its reader."""


def load(text: str, environ: Mapping[str, str], directory: str | Path) -> ServerConfig | SignerConfig:
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
