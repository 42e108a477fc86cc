"""The sections of both configurations: the frozen dataclasses that are the one table of keys.

Rules of this module:

- A field made with ``key`` is a key: its type, its default, the condition for it, whether it is secret, and its text in
  docs/configuration.md. Adding a field adds a key: the reader (``table``) and the page follow.
- The keys are those of Notary 0.7.0 (docs/protocol.md, section 6). Ours are the sections ``lifetimes``, ``limits``,
  ``manhole`` and ``storage.keys``, the keys ``server.client_names``, ``server.drain_timeout``,
  ``server.mirror_status_file``, ``server.read_only``, ``server.workers`` and ``trust_service.addresses``, and the files
  of secrets.
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
from notary.config.table import key, section
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
    KEK_URI,
    KEK_URIS,
    LEVEL,
    LIFETIME,
    MAX_AGE,
    NAMES,
    PORT,
    SECONDS,
    SECRET,
    SHARE,
    SIGNERS,
    TEXT,
    WORKERS,
    Address,
    KekUri,
    Secret,
    one_of,
    signer_address,
)
from notary.errors import ConfigError

_SIGNS = ("server.read_only", (False,))
_MIRRORS = ("server.read_only", (True,))
_REMOTE = ("trust_service.type", ("remote",))
_TOKEN = ("auth.type", ("token",))
_SQL = ("storage.backend", PERSISTENT)
_REMOTE_SQL = ("storage.backend", REMOTE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Logging:
    """The section ``logging``."""

    level: str = key(
        LEVEL,
        "The least severe level that is logged. Letter case does not matter; `warn` means `warning`, and `trace` means "
        "`debug`. SIGUSR1 makes a running daemon one level more verbose, SIGUSR2 one level less.",
        default="error",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bugsnag:
    """The section ``reporting.bugsnag``; nothing is reported if ``api_key`` is ""."""

    api_key: Secret = key(SECRET, "The API key of the Bugsnag project.", default=Secret())
    release_stage: str = key(
        TEXT, "The release stage in each report.", default="", needs=("reporting.bugsnag.api_key",)
    )
    endpoint: str = key(
        TEXT,
        "The URL that reports are sent to, if it is not Bugsnag's own.",
        default="",
        needs=("reporting.bugsnag.api_key",),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporting:
    """The section ``reporting``."""

    bugsnag: Bugsnag = section(Bugsnag)


def _workers() -> int:
    return key(
        WORKERS,
        "The number of worker processes; `auto` means one for each processor that the daemon may use. With more than "
        "one, a parent process holds the sockets and restarts workers, and data must be in a database.",
        default=1,
    )


def _drain_timeout(default: float) -> float:
    return key(
        SECONDS,
        "Seconds that a stopping daemon waits for requests to be answered before it closes their connections.",
        default=default,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The section ``server`` of the server; without ``tls_cert_file`` it serves plain HTTP."""

    http_addr: Address = key(
        ADDRESS, "The address to listen on for HTTP or HTTPS. `:4443` means port 4443 of every interface."
    )
    tls_cert_file: Path | None = key(
        CERTIFICATE_FILE,
        "The certificate for HTTPS: the leaf, then the intermediates, as PEM. Without it, the server speaks plain "
        "HTTP.",
        default=None,
        needs=("server.tls_key_file",),
    )
    tls_key_file: Path | None = key(
        FILE,
        "The private key of `tls_cert_file`, as PEM.",
        default=None,
        needs=("server.tls_cert_file",),
    )
    client_ca_file: Path | None = key(
        CERTIFICATE_FILE,
        "Certificates as PEM. If given, every client must present a certificate that is, or chains to, one of these.",
        default=None,
        needs=("server.tls_cert_file",),
    )
    drain_timeout: float = _drain_timeout(10.0)
    workers: int = _workers()
    read_only: bool = key(
        BOOLEAN,
        "Serve what is stored, and never write: publishes, requests for keys and deletions get 403, and expired "
        "metadata is served as it is stored. The section `trust_service` is ignored; the database user needs the right "
        "SELECT only.",
        default=False,
    )
    mirror_status_file: Path | None = key(
        FILE,
        "The file of `notary-admin mirror --status-file`, if that command fills the database: `/readyz` and the "
        "metrics then say how far this server is behind.",
        default=None,
        when=_MIRRORS,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustService:
    """The section ``trust_service``; if ``type`` is "local", the other keys are ignored.

    ``type`` is "" for a server that is read-only.
    """

    type: str = key(
        one_of("local", "remote"),
        "The holder of the timestamp and snapshot keys: `remote` is a Notary signer; `local` keeps Ed25519 keys in the "
        "memory of the server's process until it ends, which is for trials only.",
        default="",
        required=True,
        when=_SIGNS,
    )
    hostname: str = key(
        HOST,
        "The host of the signer; the signer's certificate must have this name. A name with several addresses stands "
        "for several signers, and the server uses all of them.",
        default="",
        required=True,
        when=_REMOTE,
    )
    port: int = key(PORT, "The gRPC port of the signer.", default=0, required=True, when=_REMOTE)
    addresses: tuple[str, ...] = key(
        SIGNERS,
        'The signers, if they are not at the addresses of `hostname`, such as `["signer-1", "signer-2:7900"]`; '
        "`port` is the port of those without one. The certificate of each must have the name `hostname`. In the "
        "environment: separated by spaces. The Go server ignores this key, and goes to `hostname`.",
        default=(),
        when=_REMOTE,
    )
    key_algorithm: str = key(
        one_of("ecdsa", "rsa", "ed25519"),
        "The algorithm of the keys that the signer creates.",
        default="ed25519",
        required=True,
        when=_REMOTE,
    )
    tls_ca_file: Path | None = key(
        CERTIFICATE_FILE,
        "Certificates as PEM. The signer's certificate must chain to one of these; by default, to one of the system.",
        default=None,
        when=_REMOTE,
    )
    tls_client_cert: Path | None = key(
        CERTIFICATE_FILE,
        "The certificate to present to the signer, as PEM.",
        default=None,
        when=_REMOTE,
        needs=("trust_service.tls_client_key",),
    )
    tls_client_key: Path | None = key(
        FILE,
        "The private key of `tls_client_cert`, as PEM.",
        default=None,
        when=_REMOTE,
        needs=("trust_service.tls_client_cert",),
    )

    @property
    def signers(self) -> tuple[Address, ...]:
        """Where the signers are."""
        if not self.addresses:
            return (Address(self.hostname, self.port),)
        return tuple(signer_address(text, self.port) for text in self.addresses)


_BACKEND = one_of(*BACKENDS)
_BACKEND_DOC = "Where data is kept; with `memory`, data is lost when the process ends."
_DB_URL_DOC = (
    "The database: for mysql a DSN of go-sql-driver (`user:password@tcp(host:3306)/database?parseTime=true`), for "
    "postgres a `postgres://` URL, for sqlite3 the path of a file, relative to the directory of the configuration "
    "file."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """The section ``storage`` of the server. The path of an SQLite file in ``db_url`` is absolute."""

    backend: str = key(_BACKEND, _BACKEND_DOC)
    db_url: Secret = key(SECRET, _DB_URL_DOC, default=Secret(), required=True, when=_SQL)
    connections: int = key(
        COUNT,
        "The largest number of open connections to the database; further calls wait in a queue. Each worker has as "
        "many. All of them together must stay below the limit of the database.",
        default=10,
        when=_REMOTE_SQL,
    )
    connect_timeout: float = key(
        SECONDS,
        "Seconds that a new connection to the database may take, rounded up to a whole number.",
        default=5.0,
        when=_REMOTE_SQL,
    )
    query_timeout: float = key(
        SECONDS,
        "Seconds that one statement may take, and that a request waits for a free connection; after that, the request "
        "fails.",
        default=10.0,
        when=_REMOTE_SQL,
    )
    connection_lifetime: float = key(
        SECONDS,
        "Seconds after which a connection to the database is replaced by a new one, at most; the real time is up to a "
        "fifth less. It bounds how long a daemon stays with a server that its address does not lead to any more.",
        default=300.0,
        when=_REMOTE_SQL,
    )

    @property
    def kind(self) -> Backend:
        """The row of the backend in the table of backends."""
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
        "The URL where clients get a token; the challenge to clients contains it.",
        default="",
        required=True,
        when=_TOKEN,
    )
    service: str = key(
        TEXT,
        "The name of this service; tokens must have this name as their audience.",
        default="",
        required=True,
        when=_TOKEN,
    )
    issuer: str = key(TEXT, "The issuer that tokens must have.", default="", required=True, when=_TOKEN)
    rootcertbundle: Path | None = key(
        CERTIFICATE_FILE,
        "Certificates as PEM: a token must be signed by one of these, or by a certificate that chains to one of these.",
        default=None,
        required=True,
        when=_TOKEN,
    )
    autoredirect: bool = key(
        BOOLEAN,
        "Use `https://<host of the request>/auth/token` in place of `realm`.",
        default=False,
        when=_TOKEN,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """The section ``auth``; ``type`` is "token", or "" for no authentication: every client may do everything."""

    type: str = key(
        one_of("token")._replace(expected='"token", or "" for no authentication'),
        "How clients authenticate: `token` is the bearer scheme of the Docker registry. Without it, every client may "
        "read and write.",
        default="",
    )
    options: TokenOptions = field(default_factory=TokenOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxAge:
    """The section ``caching.max_age``: the ``max-age`` of answers in seconds; 0 turns caching by clients off."""

    current_metadata: int = key(
        MAX_AGE, "Seconds that clients may cache the current metadata of a role; 0 turns caching off.", default=300
    )
    consistent_metadata: int = key(
        MAX_AGE,
        "Seconds that clients may cache metadata requested by checksum or by version; 0 turns caching off.",
        default=2_592_000,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Caching:
    """The section ``caching``."""

    max_age: MaxAge = section(MaxAge)
    memory_bytes: int = key(
        BYTES_OR_NONE,
        "Bytes of metadata that a process caches in memory; 0 turns the cache off. A read returns what the database "
        "has at that moment, with and without the cache. The memory backend has no cache.",
        default=64 << 20,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """The section ``lifetimes``: how long what the server signs is valid, and when the server renews it."""

    timestamp: int = key(LIFETIME, "Seconds that a timestamp is valid; by default 14 days.", default=1_209_600)
    snapshot: int = key(
        LIFETIME, "Seconds that a snapshot signed by the server is valid; by default 3 years.", default=94_608_000
    )
    renew_at: float = key(
        SHARE,
        "The share of a lifetime that is left when the server renews a timestamp, or a snapshot whose key it has, in "
        "the background. 0 means that it renews only what has expired, when a client asks for it.",
        default=0.33,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Repositories:
    """The section ``repositories``; without prefixes every GUN is accepted."""

    gun_prefixes: tuple[str, ...] = key(
        GUN_PREFIXES,
        "If given, the server holds only GUNs that begin with one of these. In the environment: separated by spaces.",
        default=(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The section ``limits``: sizes in bytes, times in seconds."""

    upload_bytes: int = key(BYTES, "The largest body of a request, in bytes; a larger one gets 413.", default=100 << 20)
    answer_bytes: int = key(
        BYTES,
        "The most bytes of large answers that clients have not read yet, in total; a file that several clients read "
        "counts once. Beyond it, requests get 503. A single answer is always allowed.",
        default=256 << 20,
    )
    header_bytes: int = key(
        BYTES, "The largest size of all headers of a request, in bytes; larger ones get 431.", default=64 << 10
    )
    header_timeout: float = key(
        SECONDS, "Seconds from the first byte of a request to the end of its headers.", default=15.0
    )
    body_timeout: float = key(SECONDS, "Seconds that may pass without a byte of a request's body.", default=30.0)
    body_rate: int = key(
        BYTES, "The slowest average rate of a request's body, in bytes a second; a slower one gets 408.", default=1024
    )
    bodies_bytes: int = key(
        BYTES,
        "The most bytes that a process holds of the bodies of all unanswered requests; beyond it, requests get 503. A "
        "single body of the largest size is always allowed.",
        default=400 << 20,
    )
    peer_bodies_bytes: int = key(
        BYTES,
        "The same for one client. The subject of its token identifies a client; without a token its address does (of "
        "IPv6 the /64), or that of the proxy. At least `limits.upload_bytes`.",
        default=100 << 20,
    )
    idle_timeout: float = key(
        SECONDS,
        "Seconds that a connection may stay open without a request. A load balancer that speaks HTTP must end its idle "
        "connections earlier; most do after 60 seconds.",
        default=75.0,
    )
    pending_keys_per_hour: int = key(
        COUNT_OR_NONE,
        "The most new keys that one user (without authentication: one address) may request in an hour; beyond it, "
        "requests get 429. 0 means no limit. Each worker counts for itself.",
        default=10_000,
    )


DEBUG_DOC = (
    "The address of the debug server, which serves profiles, variables and metrics without authentication. `true`, "
    "like the flag `-debug`, means localhost:8080; two daemons on one host need two addresses. An address that is not "
    "loopback needs `unsafe_any_interface`."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manhole:
    """The section ``manhole``; without a manhole ``port`` is 0."""

    port: int = key(
        PORT,
        "A port of 127.0.0.1 that serves, over SSH, a Python prompt inside the running daemon. A user of this prompt "
        "can do and read everything that the daemon can, keys included. It needs the extra `manhole` of the package.",
        default=0,
        needs=("manhole.authorized_keys_file",),
    )
    authorized_keys_file: Path | None = key(
        FILE,
        "The public keys that may log in, one a line, as in OpenSSH's `authorized_keys` (without options). The "
        "group and other users must not have write access to the file.",
        default=None,
        needs=("manhole.port",),
    )
    host_key_file: Path | None = key(
        FILE,
        "The SSH host key, a private key in OpenSSH's format without a passphrase. By default, a new key is generated "
        "at each start, and the log has its fingerprint.",
        default=None,
        needs=("manhole.port",),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerServer:
    """The section ``server`` of the signer, which always uses TLS."""

    grpc_addr: Address = key(ADDRESS, "The address to listen on for gRPC. `:7899` means port 7899 of every interface.")
    tls_cert_file: Path = key(CERTIFICATE_FILE, "The certificate for TLS: the leaf, then the intermediates, as PEM.")
    tls_key_file: Path = key(FILE, "The private key of `tls_cert_file`, as PEM.")
    client_ca_file: Path | None = key(
        CERTIFICATE_FILE,
        "Certificates as PEM. If given, every client must present a certificate that is, or chains to, one of these.",
        default=None,
    )
    client_names: tuple[str, ...] = key(
        NAMES,
        "If given, a client's certificate must also have one of these names: as a DNS name or, if it has no DNS name, "
        "as its common name. In the environment: separated by spaces.",
        default=(),
        needs=("server.client_ca_file",),
    )
    drain_timeout: float = _drain_timeout(5.0)
    workers: int = _workers()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEncryption:
    """The section ``storage.keys`` of the signer; the path of a file is absolute."""

    wrap: KekUri | None = key(
        KEK_URI,
        "The key-encrypting key under which new private keys are stored, in place of a passphrase; "
        "[Custody of keys](keys.md) says how to make one, and that a Go signer cannot open such keys. With "
        "`&keep=inside` it is a token in which new private keys are made, and which they never leave.",
        default=None,
        when=_SQL,
    )
    unwrap: tuple[KekUri, ...] = key(
        KEK_URIS,
        "Further key-encrypting keys, which only open stored keys: the earlier ones, after `storage.keys.wrap` has "
        "changed or was removed.",
        default=(),
        when=_SQL,
    )

    @property
    def uris(self) -> tuple[KekUri, ...]:
        """All key-encrypting keys, and tokens that keep keys inside, each once; that of new keys is the first."""
        return tuple(dict.fromkeys(self.unwrap if self.wrap is None else (self.wrap, *self.unwrap)))

    @property
    def makes_inside(self) -> bool:
        """Whether new private keys are made in a token, which they never leave."""
        return self.wrap is not None and self.wrap.inside

    @property
    def wraps(self) -> bool:
        """Whether new private keys are encrypted under a key-encrypting key."""
        return self.wrap is not None and not self.wrap.inside


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerStorage(Storage):
    """The section ``storage`` of the signer: the keys of the server's, and what encrypts private keys."""

    default_alias: str = key(
        TEXT,
        "The alias of the passphrase that encrypts new keys, **required** with a database but for one case: "
        "`storage.keys.wrap` is given, and encrypts new keys. Without this key, the variable "
        "`NOTARY_SIGNER_DEFAULT_ALIAS` counts. The passphrase itself is the value of `NOTARY_SIGNER_<ALIAS>`, or the "
        "content of the file that `NOTARY_SIGNER_<ALIAS>_FILE` names.",
        default="",
        when=_SQL,
    )
    keys: KeyEncryption = field(default_factory=KeyEncryption)

    def resolved(self, directory: Path) -> Self:
        """See the base class; the files of key-encrypting keys become absolute too."""
        found = super(SignerStorage, self).resolved(directory)  # a class with slots is made anew: no bare super()
        keys = self.keys
        wrap = None if keys.wrap is None else keys.wrap.resolved(directory)
        unwrap = tuple(each.resolved(directory) for each in keys.unwrap)
        return dataclasses.replace(found, keys=KeyEncryption(wrap=wrap, unwrap=unwrap))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerLimits:
    """The section ``limits`` of the signer."""

    pending_keys_per_hour: int = key(
        COUNT_OR_NONE,
        "The most keys that are created in an hour, for all clients together; beyond it, calls get RESOURCE_EXHAUSTED. "
        "0 means no limit. Each worker counts for itself.",
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
