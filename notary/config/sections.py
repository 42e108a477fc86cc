"""The sections of both configurations: the frozen dataclasses that are the one table of keys.

Rules of this module:

- A field made with ``key`` is a key: its type, its default, the condition for it, whether it is secret, and its text in
  docs/configuration.md. Adding a field adds a key: the reader (``table``) and the page follow.
- The keys are those of Notary 0.7.0 (docs/protocol.md, section 6). Ours are the sections ``limits`` and ``manhole``,
  the keys ``server.client_names``, ``server.drain_timeout`` and ``server.workers``, and the files of secrets.
- Pure. What two sections must agree on is checked here too.
"""

# ruff: noqa: RUF009 - a field made by key() is what dataclasses.field() would be, only with the table's row in it

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from notary.config.backends import BACKENDS, PERSISTENT, REMOTE, Backend
from notary.config.table import key
from notary.config.values import (
    ADDRESS,
    BOOLEAN,
    BYTES,
    BYTES_OR_NONE,
    CERTIFICATE_FILE,
    COUNT,
    COUNT_OR_NONE,
    FILE,
    GUN_PREFIXES,
    HOST,
    LEVEL,
    MAX_AGE,
    NAMES,
    PORT,
    SECONDS,
    SECRET,
    TEXT,
    WORKERS,
    Address,
    Secret,
    one_of,
)
from notary.errors import ConfigError

_REMOTE = ("trust_service.type", ("remote",))
_TOKEN = ("auth.type", ("token",))
_SQL = ("storage.backend", PERSISTENT)
_REMOTE_SQL = ("storage.backend", REMOTE)


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

    api_key: Secret = key(SECRET, "The API key of the Bugsnag project.", default=Secret())
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
    return key(
        WORKERS,
        "How many processes serve; `auto` means one for each processor that the daemon may use. With more than one, a "
        "parent holds the sockets and looks after them, and data must be in a database.",
        default=1,
    )


def _drain_timeout(default: float) -> float:
    return key(
        SECONDS,
        "Seconds that a stopping daemon gives to the answers that it owes; then it cuts the connections.",
        default=default,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The section ``server`` of the server: plain HTTP if ``tls_cert_file`` is None."""

    http_addr: Address = key(ADDRESS, "Where to listen for HTTP or HTTPS. `:4443` means port 4443 of every interface.")
    tls_cert_file: Path | None = key(
        CERTIFICATE_FILE,
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
        CERTIFICATE_FILE,
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
        CERTIFICATE_FILE,
        "Certificates as PEM that the signer's certificate must chain to; by default those of the system.",
        default=None,
        when=_REMOTE,
    )
    tls_client_cert: Path | None = key(
        CERTIFICATE_FILE,
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


_BACKEND = one_of(*BACKENDS)
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
    db_url: Secret = key(SECRET, _DB_URL_DOC, default=Secret(), required=True, when=_SQL)
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

    @property
    def kind(self) -> Backend:
        """What is known of the backend."""
        return BACKENDS[self.backend]

    def resolved(self, directory: Path) -> Self:
        """Return this section with the relative path of an SQLite file made absolute; URLs and ``:memory:`` stay."""
        if not self.kind.file or re.match(r":memory:|[A-Za-z][A-Za-z0-9+.-]*:", self.db_url):
            return self
        return dataclasses.replace(self, db_url=Secret(directory / self.db_url))


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
        CERTIFICATE_FILE,
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
        COUNT_OR_NONE,
        "How many new keys one user, or one address where there are no users, may ask for in an hour; beyond it 429. 0 "
        "means any number. Each worker counts for itself.",
        default=10_000,
    )


DEBUG_DOC = (
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
class SignerServer:
    """The section ``server`` of the signer: always TLS."""

    grpc_addr: Address = key(ADDRESS, "Where to listen for gRPC. `:7899` means port 7899 of every interface.")
    tls_cert_file: Path = key(CERTIFICATE_FILE, "The certificate for TLS: the leaf, then the intermediates, as PEM.")
    tls_key_file: Path = key(FILE, "The private key for TLS, as PEM.")
    client_ca_file: Path | None = key(
        CERTIFICATE_FILE,
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
        COUNT_OR_NONE,
        "How many keys are made in an hour, for all clients together; beyond it RESOURCE_EXHAUSTED. 0 means any "
        "number. Each worker counts for itself.",
        default=50_000,
    )


def check_workers(workers: int, storage: Storage, manhole: Manhole) -> None:
    """Check that several processes would share their data. Raises ConfigError."""
    if workers == 1:
        return
    if not storage.kind.persistent:
        raise ConfigError(
            f'server.workers: more than 1 cannot be used with storage.backend "{storage.backend}", which each '
            "process has for itself; expected 1, or a database"
        )
    if manhole.port:
        raise ConfigError(
            "server.workers: more than 1 cannot be used with manhole.port, which only one process can have; "
            "expected 1, or no manhole"
        )
