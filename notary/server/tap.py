"""The server daemon: the one place where its objects meet.

Rules of this module: wiring only. Nothing listens before everything else works; what was opened is closed in the
opposite order.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from notary import __version__
from notary.config import ServerConfig, load_server
from notary.errors import ConfigError
from notary.net import daemon, tls
from notary.net.grpc import Channel
from notary.net.http import Limits, Site
from notary.server.api import Api, CachePolicy, edge_response
from notary.server.auth import AccessController, NoAuth, TokenAuth, load_bundle
from notary.server.health import Health
from notary.server.metrics import Metrics
from notary.server.repository import Repository
from notary.server.signing import LocalSigner, MeasuredSigner, RemoteSigner, SigningService
from notary.storage import MetadataStore
from notary.storage.sql import open_metadata_store

T = TypeVar("T")

DRAIN_SECONDS = 10.0
"""How long a stopping server waits for the answers that it owes."""

VALIDATORS = 2
"""Threads that validate uploads. More would only take the interpreter lock from the reactor's thread more often."""


class Server(Service):
    """The server of one configuration.

    Building it reads certificates and opens nothing; ``startService`` gives a Deferred that fires when it serves.
    """

    def __init__(self, config: ServerConfig, reactor: Any) -> None:
        self._config = config
        self._reactor = reactor
        self._log = Logger(namespace="notary.server")
        self._metrics = Metrics(version=__version__)
        self._threads = ThreadPool(0, VALIDATORS, "validate")
        self._access = _access_controller(config)
        files = config.server
        self._tls = None
        if files.tls_cert_file is not None and files.tls_key_file is not None:
            self._tls = tls.server_options(files.tls_cert_file, files.tls_key_file, files.client_ca_file)
        self._signing = MeasuredSigner(self._signing_service(), reactor, self._metrics.observe_signing)
        self._store: MetadataStore | None = None
        self._health: Health | None = None
        self._site: Site | None = None
        self._port: IListeningPort | None = None

    def startService(self) -> Deferred[None]:
        """Open the store, then serve. Fails with StorageFailed, ConfigError or CannotListenError."""
        super().startService()
        return Deferred.fromCoroutine(self._start())

    def stopService(self) -> Deferred[None]:
        """Stop listening, answer what was asked, close the store."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> None:
        config = self._config
        self._log.info("Using {backend} backend", backend=config.storage.backend)
        self._threads.start()
        store = await open_metadata_store(config.storage.backend, config.storage.db_url, self._reactor)
        self._store = store
        self._log.info("Starting Server")
        checks = {"DB operational": store.check, "Trust operational": self._signing.check}
        self._health = Health(checks, self._reactor, self._metrics.set_health)
        self._health.startService()
        repository = Repository(
            store, self._signing, self._in_thread, _utc_now, self._metrics.refreshed, self._metrics.expired_root
        )
        max_age = config.caching.max_age
        api = Api(
            repository,
            self._access,
            self._health,
            self._metrics,
            self._in_thread,
            _utc_now,
            config.repositories.gun_prefixes,
            current=CachePolicy(max_age.current_metadata, must_revalidate=True),
            consistent=CachePolicy(max_age.consistent_metadata, must_revalidate=False),
        )
        self._site = Site(
            api,
            self._reactor,
            edge_error=edge_response,
            on_error=api.failed,
            on_finish=api.finished,
            limits=self._limits(),
        )
        if self._tls is not None:
            self._log.info("Enabling TLS")
        address = config.server.http_addr
        self._log.info("Starting on {address}", address=str(address))
        self._port = await tls.listen(self._reactor, address.host, address.port, self._site, self._tls)

    async def _stop(self) -> None:
        self._log.info("Stopping")
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        if self._site is not None:
            await self._site.stop(DRAIN_SECONDS)
        if self._health is not None:
            self._health.stopService()
        await self._signing.close()
        if self._store is not None:
            await self._store.close()
        if self._threads.started:
            self._threads.stop()

    def _in_thread(self, work: Callable[[], T], /) -> Deferred[T]:
        return deferToThreadPool(self._reactor, self._threads, work)

    def _signing_service(self) -> SigningService:
        trust = self._config.trust_service
        if trust.type == "local":
            self._log.info(
                "Using local signing service, which requires ED25519. "
                "Ignoring all other trust_service parameters, including keyAlgorithm"
            )
            return LocalSigner()
        self._log.info("Using remote signing service")
        options = tls.client_options(trust.hostname, trust.tls_ca_file, trust.tls_client_cert, trust.tls_client_key)
        return RemoteSigner(Channel.to(self._reactor, trust.hostname, trust.port, options), trust.key_algorithm)

    def _limits(self) -> Limits:
        limits = self._config.limits
        return Limits(
            body=limits.upload_bytes,
            head=limits.header_bytes,
            head_seconds=limits.header_timeout,
            body_seconds=limits.body_timeout,
            idle_seconds=limits.idle_timeout,
        )


class Bootstrap(Service):
    """Sets up the storage of a configuration, then ends the process."""

    def __init__(self, config: ServerConfig, reactor: Any) -> None:
        self._config = config
        self._reactor = reactor
        self._log = Logger(namespace="notary.server")

    def startService(self) -> Deferred[None]:
        """Open the store, which creates what is missing, and close it."""
        super().startService()
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        storage = self._config.storage
        store = await open_metadata_store(storage.backend, storage.db_url, self._reactor)
        await store.close()
        self._log.info("The {backend} backend is set up", backend=storage.backend)
        self._reactor.stop()


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _access_controller(config: ServerConfig) -> AccessController:
    if config.auth.type != "token":
        return NoAuth()
    options = config.auth.options
    if options.rootcertbundle is None:
        raise ConfigError("auth.options.rootcertbundle: missing; expected a file of certificates")
    return TokenAuth(
        options.realm, options.service, options.issuer, load_bundle(options.rootcertbundle), options.autoredirect
    )


class Options(daemon.Options):
    """The flags of notary-server."""

    program = "notary-server"
    version = __version__


def makeService(options: Options) -> daemon.Daemon:
    """The body of the twistd plugin."""
    from twisted.internet import reactor

    service = Bootstrap if options["bootstrap"] else Server
    return daemon.make_daemon(options, load_server, lambda config: service(config, reactor), reactor)


def main() -> None:
    """The console script: the daemon in the foreground."""
    daemon.run(Options, makeService)
