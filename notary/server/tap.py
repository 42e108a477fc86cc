"""The server daemon: the one place where its objects meet.

Rules of this module: wiring only. Nothing listens before everything else works; what was opened is closed in the
opposite order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any, Final

from twisted.logger import Logger

from notary import __version__
from notary.config import DEBUG_ADDRESS, SERVER_PREFIX, ServerConfig, TrustService, differences, load_server
from notary.config.files import SERVER_TLS, certificate_files
from notary.daemon import options
from notary.daemon.inspection import make_manhole, open_inspection
from notary.daemon.program import Program, Surroundings
from notary.daemon.reload import Part, part, restart_lines
from notary.daemon.serving import Serving
from notary.daemon.workers.worker import Worker
from notary.errors import InvalidGun, KeyNotFound, NotFound, OldVersion
from notary.net.http.site import HttpLimits, Response, Site
from notary.net.tls import contexts
from notary.net.tls.wording import Wording
from notary.observe.readiness import STARTING
from notary.observe.timed import timed
from notary.server.api import Api
from notary.server.auth import schemes
from notary.server.caching import CachePolicy
from notary.server.faults import edge_response
from notary.server.health import DATABASE, SIGNER, WRITES, Health
from notary.server.metrics import ServerMetrics
from notary.server.mirrored import Mirrored
from notary.server.renewal import Schedule
from notary.server.repository import Repository
from notary.server.signing import SigningService, no_sources, no_states, services
from notary.server.sources import Source
from notary.server.sweep import Sweep
from notary.server.validators import Turns, Validators
from notary.storage import MetadataStore
from notary.storage.cache import CachedMetadataStore
from notary.storage.open import migrate_database, open_metadata_store, pool_of
from notary.storage.sql.migrate import SERVER
from notary.tuf.draft import Lifetimes
from notary.work.allowance import Allowance
from notary.work.machine import MACHINE, Machine
from notary.work.processes import Offload
from notary.work.reactor import Reactor
from notary.work.usage import PoolUsage

READERS = 2
"""Threads for the work that readers wait for and for other short work; validations never use these threads."""

VALIDATORS = 2
"""Threads that validate uploads. More would only take the interpreter lock from the reactor's thread more often."""

EXPECTED_STORE_ERRORS = (NotFound, OldVersion, InvalidGun)
"""Domain errors that metrics do not count as failures of the store."""


VALIDATING_PROCESSES = 1
"""Processes for large uploads at the same time: each may take several times the memory of its upload."""


class Server(Serving):
    """The server of one configuration.

    Building it reads certificates and opens nothing; ``startService`` gives a Deferred that fires when it serves, and
    fails with StorageFailed, ConfigError or CannotListenError. ``logs_info`` says whether log
    lines of level info are written.
    """

    def __init__(
        self,
        config: ServerConfig,
        reactor: Reactor,
        sockets: Sequence[socket] = (),
        logs_info: Callable[[], bool] = lambda: True,
        worker: Worker | None = None,
        machine: Machine = MACHINE,
    ) -> None:
        super().__init__(reactor, READERS, sockets, machine)
        self._logs_info = logs_info
        self._worker = worker
        self._config = config
        self._log = Logger(namespace="notary.server")
        self._metrics = ServerMetrics(version=__version__, together=None if worker is None else worker.all_metrics)
        self._authentication = schemes.SCHEMES[config.auth.type](config.auth)
        files = config.server
        self._tls = None
        if files.tls_cert_file is not None and files.tls_key_file is not None:
            self._tls = contexts.server_options(
                files.tls_cert_file,
                files.tls_key_file,
                files.client_ca_file,
                wording=Wording(**SERVER_TLS),
                to_plaintext=lambda _first: _NO_TLS,
            )
        self._signing: SigningService | None = None
        self._signing_sources: Callable[[TrustService], Sequence[Source]] = no_sources
        self._signer_states: Callable[[], Mapping[str, str]] = no_states
        if config.server.read_only:
            self._log.info("Read-only: nothing is published, deleted or renewed, and no keys are made")
        else:
            trust = config.trust_service
            signing = services.SERVICES[trust.type](trust, reactor)
            self._log.info(signing.log_line)
            self._signing_sources = signing.sources
            self._signer_states = signing.states
            signing.show(self._metrics)
            self._signing = timed(
                SigningService, signing.service, reactor, self._metrics.observe_signing, expected=KeyNotFound
            )
        self._health: Health | None = None
        self._manhole = make_manhole(reactor, config.manhole, self)

    async def assemble(self) -> None:
        """Open the store, then serve."""
        config, metrics = self._config, self._metrics
        await open_inspection(
            self, metrics, config.debug, self._manhole, certificate_files(config), self._ready, self._worker
        )
        self._log.info("Using {backend} backend", backend=config.storage.backend)
        storage = config.storage
        usage = PoolUsage()
        metrics.watch_pool(usage)
        pool = pool_of(storage, usage, read_only=config.server.read_only)
        open_store = partial(open_metadata_store, storage.backend, storage.db_url, self.reactor, pool, self.machine)
        opened = await self.open(MetadataStore, self._log, open_store)
        observe = metrics.observe_storage
        uncached = timed(MetadataStore, opened, self.reactor, observe, expected=EXPECTED_STORE_ERRORS)
        store = uncached
        self._reloader = self.reload_when_changed(self._parts(config))
        if storage.kind.persistent and config.caching.memory_bytes:
            store = CachedMetadataStore(store, config.caching.memory_bytes, self.reactor)
            self.at_end(store.close)
        self._log.info("Starting Server")
        read_only = config.server.read_only
        checks = {DATABASE: store.check, **({} if read_only else {WRITES: store.check_writes})}
        if self._signing is not None:
            self.at_end(self._signing.close)
            checks[SIGNER] = self._signing.check
        details: Callable[[], Mapping[str, object]] = dict
        if config.server.mirror_status_file is not None:
            details = await self._mirrored(config.server.mirror_status_file)
        self._health = health = Health(
            checks,
            self.reactor,
            metrics.set_health,
            read_only=read_only,
            signers=self._signer_states,
            details=details,
        )
        await self.run(health)
        offload = Offload(self.reactor)
        self.at_end(offload.close)
        validators = Validators(
            self.own_threads(VALIDATORS), Turns(VALIDATORS), offload.run, Turns(VALIDATING_PROCESSES)
        )
        self.at_end(validators.close)
        metrics.gauge("uploads_waiting", "Uploads that wait to be validated", lambda: {(): validators.waiting})
        repository = await self._repository(store, uncached)
        max_age = config.caching.max_age
        api = Api(
            repository,
            self._authentication.controller,
            health,
            metrics,
            self.in_thread,
            validators,
            self.machine.time_of_day,
            config.repositories.gun_prefixes,
            current=CachePolicy(max_age.current_metadata, must_revalidate=True),
            consistent=CachePolicy(max_age.consistent_metadata, must_revalidate=False),
            keys=Allowance(config.limits.pending_keys_per_hour, self.reactor.seconds),
            seconds=self.reactor.seconds,
            logs_info=self._logs_info,
            read_only=read_only,
        )
        site = Site(
            api,
            self.reactor,
            edge_error=edge_response,
            on_error=api.failed,
            on_finish=api.finished,
            admit=api.admit,
            takes_body=api.takes_body,
            limits=self._limits(),
            time_of_day=self.machine.time_of_day,
        )
        metrics.gauge("connections", "Open connections of clients", lambda: {(): site.connections})
        metrics.gauge("body_bytes", "Bytes of requests' bodies that are held", lambda: {(): site.bodies.held})
        self.at_end(lambda: site.stop(config.server.drain_timeout))
        if self._tls is not None:
            self._log.info("Enabling TLS")
        refusals = self.refusals(self._log, mutual=config.server.client_ca_file is not None)
        await self.listen("server.http_addr", config.server.http_addr, site, self._tls, refusals)
        self.at_end(health.retire)
        self.at_end(lambda: self._log.info("Stopping"))
        if await self.wait_for_store():
            health.stopService()
            health.startService()  # checks at once

    async def _repository(self, store: MetadataStore, uncached: MetadataStore) -> Repository:
        """Return the use cases on ``store``, and renew in the background what is stored."""
        config, metrics = self._config, self._metrics
        schedule = Schedule(
            Lifetimes(
                timestamp=timedelta(seconds=config.lifetimes.timestamp),
                snapshot=timedelta(seconds=config.lifetimes.snapshot),
            ),
            share=config.lifetimes.renew_at,
            renews=not config.server.read_only,
        )
        repository = Repository(
            store,
            self._signing,
            self.in_thread,
            self.machine.utc_now,
            metrics.refreshed,
            metrics.expired_root,
            self.reactor,
            schedule,
            self.machine.random,
        )
        renewals = repository.renewals
        self.at_end(renewals.close)
        metrics.counter("renewal_failures", "Renewals of metadata that failed", lambda: {(): renewals.counts.failures})
        if schedule.in_background:
            # By the store itself: what a sweep reads is not worth a place in the cache.
            sweep = Sweep(uncached, renewals, self.in_thread, self.machine.utc_now, self.reactor, self.machine.random)
            metrics.gauge(
                "metadata_expiry_seconds",
                "Seconds until the first of all timestamps, and of all snapshots, expires",
                sweep.seconds_to_expiry,
                ("role",),
                across_workers="min",
            )
            await self.run(sweep)
        return repository

    async def _mirrored(self, path: Path) -> Callable[[], Mapping[str, object]]:
        """Watch how far this server is behind the Notary that it mirrors; return what ``/readyz`` says of it."""
        mirrored = Mirrored(path, self.reactor, self.in_thread, self.machine.utc_now)
        await self.run(mirrored)
        self._metrics.gauge(
            "mirror_behind_seconds",
            "Seconds that this server may be behind the Notary that it mirrors; infinite if that is not known",
            lambda: {(): mirrored.behind_seconds},
            across_workers="max",
        )
        self._metrics.gauge(
            "mirror_due_collections",
            "Collections that have changed at that Notary and could not be taken over",
            lambda: {(): mirrored.due},
            across_workers="max",
        )
        return mirrored.details

    async def reload(self, config: ServerConfig) -> Sequence[str]:
        """See `notary.daemon.service.Managed`."""
        parts = self._parts(config)
        await self._reloader.reload(parts)
        return restart_lines(differences(self._config, config), parts)

    def _parts(self, config: ServerConfig) -> Sequence[Part]:
        """What is read from files, by a configuration that may be newer than the one that this server runs by."""
        server = config.server
        parts = []
        if self._tls is not None and server.tls_cert_file is not None and server.tls_key_file is not None:
            pair = server.tls_cert_file, server.tls_key_file
            load: Callable[[], Any] = partial(
                contexts.server_context, *pair, server.client_ca_file, wording=Wording(**SERVER_TLS)
            )
            keys: tuple[str, ...] = ("server.tls_cert_file", "server.tls_key_file", "server.client_ca_file")
            parts.append(part(keys, (*pair, server.client_ca_file), load, self._tls.use))
        sources = (*self._signing_sources(config.trust_service), *self._authentication.sources(config.auth))
        return [*parts, *(part(*source) for source in sources)]

    def _ready(self) -> Response:
        return (STARTING if self._health is None else self._health.readiness()).response()

    def _limits(self) -> HttpLimits:
        limits = self._config.limits
        return HttpLimits(
            body=limits.upload_bytes,
            bodies=limits.bodies_bytes,
            peer_bodies=limits.peer_bodies_bytes,
            answers=limits.answer_bytes,
            head=limits.header_bytes,
            head_seconds=limits.header_timeout,
            body_seconds=limits.body_timeout,
            body_rate=limits.body_rate,
            idle_seconds=limits.idle_timeout,
        )


_NO_TLS: Final = edge_response(
    400, "the client speaks HTTP without TLS, and this port demands TLS: use https://"
).alone()


class Options(options.Options):
    """The flags of notary-server."""

    program = "notary-server"
    version = __version__


def _build(config: ServerConfig, around: Surroundings) -> Server:
    return Server(config, around.reactor, around.sockets, around.logs_info, around.worker)


def _migration(config: ServerConfig, reactor: Reactor) -> Callable[..., Awaitable[object]]:
    return partial(migrate_database, config.storage.backend, config.storage.db_url, SERVER, reactor)


PROGRAM = Program(
    module=__name__,
    options=Options,
    prefix=SERVER_PREFIX,
    metrics_prefix="notary_server_",
    load=load_server,
    with_debug=lambda config: replace(config, debug=DEBUG_ADDRESS),
    build=_build,
    migrate=_migration,
    address=lambda config: config.server.http_addr,
    address_key="server.http_addr",
    differences=differences,
    clients=512,
)
makeService, main = PROGRAM.make_service, PROGRAM.main  # noqa: N816 - the name that twistd asks for
