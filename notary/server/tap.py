"""The server daemon: the one place where its objects meet.

Rules of this module: wiring only. Nothing listens before everything else works; what was opened is closed in the
opposite order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

from notary import __version__
from notary.config import DEBUG_ADDRESS, ServerConfig, load_server
from notary.errors import ConfigError, InvalidGun, KeyNotFound, NotFound, OldVersion
from notary.net import daemon, tls
from notary.net.assembly import Assembly, Bootstrap, utc_now
from notary.net.grpc import Channel
from notary.net.http import Limits, Response, Site
from notary.net.measured import measured
from notary.net.readiness import STARTING
from notary.net.watching import make_manhole, watch
from notary.server.api import Api, CachePolicy, edge_response
from notary.server.auth import AccessController, NoAuth, TokenAuth, load_bundle
from notary.server.health import DATABASE, SIGNER, Health
from notary.server.metrics import Metrics
from notary.server.repository import Repository
from notary.server.signing import LocalSigner, RemoteSigner, SigningService
from notary.storage.sql import open_metadata_store

DRAIN_SECONDS = 10.0
"""How long a stopping server waits for the answers that it owes."""

VALIDATORS = 2
"""Threads that validate uploads. More would only take the interpreter lock from the reactor's thread more often."""

ANSWERS = (NotFound, OldVersion, InvalidGun)
"""What a store may say without having failed."""


class Server(Assembly):
    """The server of one configuration.

    Building it reads certificates and opens nothing; ``startService`` gives a Deferred that fires when it serves, and
    fails with StorageFailed, ConfigError or CannotListenError.
    """

    def __init__(self, config: ServerConfig, reactor: Any) -> None:
        super().__init__(reactor, VALIDATORS)
        self._config = config
        self._log = Logger(namespace="notary.server")
        self._metrics = Metrics(version=__version__)
        self._access = _access_controller(config)
        files = config.server
        self._tls = None
        if files.tls_cert_file is not None and files.tls_key_file is not None:
            self._tls = tls.server_options(files.tls_cert_file, files.tls_key_file, files.client_ca_file)
        self._signing = measured(self._signing_service(), reactor, self._metrics.observe_signing, KeyNotFound)
        self._health: Health | None = None
        self._manhole = make_manhole(reactor, config.manhole, self)

    async def assemble(self) -> None:
        """Open the store, then serve."""
        config, metrics = self._config, self._metrics
        await watch(self, metrics, config.debug, self._manhole, self._certificates(), self._ready)
        self._log.info("Using {backend} backend", backend=config.storage.backend)
        store = await open_metadata_store(config.storage.backend, config.storage.db_url, self.reactor)
        self.at_end(store.close)
        store = measured(store, self.reactor, metrics.observe_storage, ANSWERS)
        self._log.info("Starting Server")
        self.at_end(self._signing.close)
        checks = {DATABASE: store.check, SIGNER: self._signing.check}
        self._health = health = Health(checks, self.reactor, metrics.set_health)
        await self.run(health)
        repository = Repository(store, self._signing, self.in_thread, utc_now, metrics.refreshed, metrics.expired_root)
        max_age = config.caching.max_age
        api = Api(
            repository,
            self._access,
            health,
            metrics,
            self.in_thread,
            utc_now,
            config.repositories.gun_prefixes,
            current=CachePolicy(max_age.current_metadata, must_revalidate=True),
            consistent=CachePolicy(max_age.consistent_metadata, must_revalidate=False),
        )
        site = Site(
            api,
            self.reactor,
            edge_error=edge_response,
            on_error=api.failed,
            on_finish=api.finished,
            admit=api.admit,
            limits=self._limits(),
        )
        metrics.watch("connections", "Open connections of clients", lambda: {(): site.connections})
        self.at_end(lambda: site.stop(DRAIN_SECONDS))
        if self._tls is not None:
            self._log.info("Enabling TLS")
        address = config.server.http_addr
        self._log.info("Starting on {address}", address=str(address))
        port = await tls.listen(self.reactor, address.host, address.port, site, self._tls)
        self.at_end(port.stopListening)
        self.at_end(health.retire)
        self.at_end(lambda: self._log.info("Stopping"))

    def _ready(self) -> Response:
        return (STARTING if self._health is None else self._health.readiness()).response()

    def _certificates(self) -> Mapping[str, Path | None]:
        server, trust, auth = self._config.server, self._config.trust_service, self._config.auth
        return {
            "server.tls_cert_file": server.tls_cert_file,
            "server.client_ca_file": server.client_ca_file,
            "trust_service.tls_ca_file": trust.tls_ca_file,
            "trust_service.tls_client_cert": trust.tls_client_cert,
            "auth.options.rootcertbundle": auth.options.rootcertbundle,
        }

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
        return RemoteSigner(Channel.to(self.reactor, trust.hostname, trust.port, options), trust.key_algorithm)

    def _limits(self) -> Limits:
        limits = self._config.limits
        return Limits(
            body=limits.upload_bytes,
            head=limits.header_bytes,
            head_seconds=limits.header_timeout,
            body_seconds=limits.body_timeout,
            idle_seconds=limits.idle_timeout,
        )


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
    from twisted.internet import reactor as installed

    reactor: Any = installed

    def build(config: ServerConfig) -> Service:
        if not options["bootstrap"]:
            debug = config.debug or (DEBUG_ADDRESS if options["debug"] else None)
            return Server(replace(config, debug=debug), reactor)
        storage = config.storage
        open_store = partial(open_metadata_store, storage.backend, storage.db_url, reactor)
        return Bootstrap(open_store, storage.backend, reactor)

    return daemon.make_daemon(options, load_server, build, reactor)


def main() -> None:
    """The console script: the daemon in the foreground."""
    daemon.run(Options, makeService)
