"""The signer daemon: the one place where its objects meet.

Rules of this module: wiring only. Nothing listens before everything else works; what was opened is closed in the
opposite order. The process protects what it will hold before it reads any of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from socket import socket
from typing import Final

from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from notary import __version__
from notary.config import DEBUG_ADDRESS, SIGNER_PREFIX, SignerConfig, differences, load_signer
from notary.config.files import SERVER_TLS, certificate_files
from notary.config.table import variable_part
from notary.daemon import options
from notary.daemon.inspection import make_manhole, open_inspection
from notary.daemon.program import Program, Surroundings
from notary.daemon.reload import Part, part, restart_lines
from notary.daemon.serving import Serving
from notary.daemon.workers.worker import Worker
from notary.envelope import INSIDE, KEYWRAP, envelopes
from notary.envelope.inside import SESSIONS
from notary.errors import ConfigError, CustodyUnavailable, KeyNotFound, StorageFailed, StorageUnreachable
from notary.net.grpc import GrpcFactory, refuse_plaintext
from notary.net.http.site import Response
from notary.net.tls import contexts
from notary.net.tls.wording import Wording
from notary.observe.readiness import STARTING
from notary.observe.timed import timed
from notary.signer import memory
from notary.signer.clients import Clients
from notary.signer.custody import custodies
from notary.signer.keyring import MAKERS, Keyring
from notary.signer.metrics import SignerMetrics
from notary.signer.rpc import SERVICES, Rpc
from notary.signer.trial import Trial
from notary.signer.watches import HealthWatches
from notary.storage import KeyStore
from notary.storage.keywrap import refused_aliases, unwrap
from notary.storage.open import migrate_database, open_key_store, pool_of
from notary.storage.sql.migrate import SIGNER
from notary.tuf.jwe import KEYWRAP as PASSPHRASE
from notary.work.allowance import Allowance
from notary.work.machine import MACHINE, Machine
from notary.work.reactor import Reactor
from notary.work.threads import InThread
from notary.work.usage import PoolUsage

_LOOK_SECONDS: Final = 30.0
"""Seconds between two looks if the custody of keys works."""


THREADS: Final = MAKERS + 1
"""How many threads make and open keys: one is always left for a signature whose key must be opened."""


def threads(config: SignerConfig) -> int:
    """Return how many threads work with keys: those inside tokens sign in them too, as many at a time as sessions."""
    return MAKERS + SESSIONS if any(uri.inside for uri in config.storage.keys.uris) else THREADS


class Signer(Serving):
    """The signer of one configuration.

    Building it reads certificates and opens nothing; ``startService`` gives a Deferred that fires when it serves, and
    fails with StorageFailed, ConfigError or CannotListenError. ``logs_info`` says whether log lines of level info are
    written.
    """

    def __init__(
        self,
        config: SignerConfig,
        reactor: Reactor,
        sockets: Sequence[socket] = (),
        logs_info: Callable[[], bool] = lambda: True,
        worker: Worker | None = None,
        machine: Machine = MACHINE,
    ) -> None:
        super().__init__(reactor, threads(config), sockets, machine)
        self._logs_info = logs_info
        self._worker = worker
        self._config = config
        self._latest = config
        self._custody = custodies.custody_of(lambda: self._latest, reactor)
        self._trouble = ""  # what keeps the custody from working
        self._log = Logger(namespace="notary.signer")
        files = config.server
        self._tls = contexts.server_options(
            files.tls_cert_file,
            files.tls_key_file,
            files.client_ca_file,
            contexts.GRPC,
            wording=Wording(**SERVER_TLS),
            to_plaintext=refuse_plaintext,
        )
        self._metrics = SignerMetrics(version=__version__, together=None if worker is None else worker.all_metrics)
        self._manhole = make_manhole(reactor, config.manhole, self)
        self._rpc: Rpc | None = None
        self._store: KeyStore | None = None
        self._trial: Trial | None = None

    async def assemble(self) -> None:
        """Open the store, then serve."""
        config, metrics = self._config, self._metrics
        server, storage = config.server, config.storage
        await open_inspection(
            self, metrics, config.debug, self._manhole, certificate_files(config), self._ready, self._worker
        )
        if server.client_ca_file is None:
            self._log.warn(
                "server.client_ca_file is not given: every client that reaches this signer can sign with every key"
            )
        looks = self.own_threads(1)  # where a look may hang without holding up a signature
        pool_of_all = self.reactor.getThreadPool()  # the service's own threads may all wait for the custody
        self.at_end(lambda: deferToThreadPool(self.reactor, pool_of_all, self._custody.close))
        self._log.info("Using {backend} backend", backend=storage.backend)
        usage = PoolUsage()
        metrics.watch_pool(usage)
        pool = pool_of(storage, usage)
        open_store = partial(open_key_store, storage.backend, storage.db_url, self.reactor, pool, self.machine)
        opened = await self.open(KeyStore, self._log, open_store)
        store = timed(KeyStore, opened, self.reactor, metrics.observe_storage, expected=KeyNotFound)
        self._reloader = self.reload_when_changed(self._parts(self._config))
        allowance = Allowance(config.limits.pending_keys_per_hour, self.reactor.seconds)
        self._trial = trial = Trial(
            store.sample, self._custody.open, self._custody.under, self.in_thread, self.reactor.seconds, _what(config)
        )
        keyring = Keyring(
            store,
            self._custody,
            self.in_thread,
            self.machine.utc_now,
            allow=allowance.take,
            on_made=trial.made,
        )
        self._rpc = rpc = Rpc(
            keyring,
            store.check,
            metrics,
            self._logs_info,
            self.reactor.seconds,
            trial=trial,
            processes=1 if self._worker is None else self._worker.count,
            trouble=lambda: self._trouble,
        )
        methods = rpc.methods()
        watches = HealthWatches(rpc.works, SERVICES, self.reactor)
        streams = watches.methods()
        metrics.serving([*methods, *streams], keyring)
        if server.client_names:
            clients = Clients(server.client_names)
            methods, streams = clients.guard(methods), clients.guard(streams)
        refusals = self.refusals(self._log, mutual=server.client_ca_file is not None)
        grpc = GrpcFactory(
            methods, self.reactor, streaming=streams, on_refused=refusals, on_finish=metrics.observe_call
        )
        metrics.gauge("connections", "Open connections of clients", lambda: {(): grpc.connections})
        self.at_end(lambda: grpc.stop(server.drain_timeout))
        self._store = store
        tried = False
        with suppress(StorageUnreachable, CustodyUnavailable):  # they are waited for below
            await self._try_keys()
            tried = True
        await self.listen("server.grpc_addr", server.grpc_addr, grpc, self._tls, refusals)
        self.at_end(rpc.retire)
        await self.wait_for_store()
        if not tried:
            await self._wait_for_custody()
        if config.storage.keys.uris:
            self._look_from_time_to_time(looks)

    async def _wait_for_custody(self) -> None:
        """Try stored keys, again and again while the custody is away. Raises ConfigError as :meth:`_try_keys`."""
        try:
            await self._try_keys()
        except CustodyUnavailable as error:
            what = "the custody of keys"
            await self.retry(
                self._log, self._try_keys, error, CustodyUnavailable, waits_for=what, success=f"{what} works"
            )

    def _look_from_time_to_time(self, in_own_thread: InThread) -> None:
        """Notice in time that the custody has gone away, and that it works again."""
        looking = LoopingCall(self._look_at_custody, in_own_thread)
        looking.clock = self.reactor
        looking.start(_LOOK_SECONDS, now=False).addErrback(self._cannot_look)
        self.at_end(looking.stop)

    async def _look_at_custody(self, in_own_thread: InThread) -> None:
        try:
            await self._check_custody(in_own_thread)
        except CustodyUnavailable as error:
            if not self._trouble:
                self._log.error("{error}; keys that are open in memory go on signing", error=str(error))
            self._trouble = str(error)
        else:
            if self._trouble:
                self._log.error("the custody of keys works again")
            self._trouble = ""

    async def _check_custody(self, in_thread: InThread) -> None:
        """Find out whether the custody works, and have the metrics tell. Raises CustodyUnavailable."""
        try:
            await in_thread(self._custody.check)
        except CustodyUnavailable:
            self._metrics.set_health("custody", ok=False)
            raise
        self._metrics.set_health("custody", ok=True)

    def _cannot_look(self, failure: Failure) -> None:
        self._log.failure("the custody of keys is not looked at any more", failure)

    async def _try_keys(self) -> None:
        """Open a few stored keys.

        Raises ConfigError if what encrypts new keys opens none of those under it, and CustodyUnavailable.
        """
        config = self._config
        await self._check_custody(self.in_thread)
        if self._store is None or not config.storage.kind.persistent:
            return
        keys = await self._store.sample()
        refused = await self.in_thread(partial(refused_aliases, keys, self._custody.open, envelopes.under))
        if config.storage.keys.wrap is not None:
            own = INSIDE if config.storage.keys.makes_inside else KEYWRAP
            sealed = {envelopes.under(key) for key in keys if key.keywrap_alg == own}
            if sealed and sealed <= refused.keys():
                raise ConfigError(
                    f"storage.keys.wrap: {refused[min(sealed)]}; expected a configuration that opens stored keys, "
                    "since no one could open new keys next to them otherwise"
                )
        self._judge_passphrases(config, refused)

    def _judge_passphrases(self, config: SignerConfig, refused: Mapping[str, str]) -> None:
        """Log what does not open. Raises ConfigError if the passphrase of new keys opens none of those under it."""
        default = config.storage.default_alias
        if default in refused and config.storage.keys.wrap is None:
            raise ConfigError(
                f"{SIGNER_PREFIX}{variable_part(default)}: {refused[default]}; expected the passphrase that the stored "
                "keys are wrapped with, since no one could open new keys next to them otherwise"
            )
        for reason in refused.values():
            self._log.error("{reason}; such keys cannot sign", reason=reason)

    async def _try_passphrases(self, config: SignerConfig) -> None:
        """Try the passphrases of a newer configuration on stored keys; key-encrypting keys need a restart."""
        if self._store is None or not config.storage.kind.persistent:
            return
        keys = [key for key in await self._store.sample() if key.keywrap_alg == PASSPHRASE]
        opened = partial(unwrap, passphrases=config.passphrase)
        self._judge_passphrases(config, await self.in_thread(partial(refused_aliases, keys, opened)))

    async def reload(self, config: SignerConfig) -> Sequence[str]:
        """See `notary.daemon.service.Managed`."""
        parts = self._parts(config)
        if self._trial is not None:
            self._trial.begin_anew()
        with suppress(StorageFailed):  # which says nothing of the passphrases
            await self._try_passphrases(config)
        await self._reloader.reload(parts)
        self._latest = config
        if self._trial is not None:
            self._trial.begin_anew()
        return restart_lines(differences(self._config, config), parts)

    def _parts(self, config: SignerConfig) -> Sequence[Part]:
        """What is read from files, by a configuration that may be newer than the one that this signer runs by."""
        files = config.server.tls_cert_file, config.server.tls_key_file, config.server.client_ca_file
        keys = ("server.tls_cert_file", "server.tls_key_file", "server.client_ca_file")
        return [
            part(
                keys,
                files,
                partial(contexts.server_context, *files, contexts.GRPC, wording=Wording(**SERVER_TLS)),
                self._tls.use,
            )
        ]

    async def _ready(self) -> Response:
        return (STARTING if self._rpc is None else await self._rpc.readiness()).response()


def _what(config: SignerConfig) -> str:
    """Name what new keys are under, for log lines."""
    keys = config.storage.keys
    if keys.wrap is None:
        return f"the passphrase of alias {config.storage.default_alias}"
    return "the token" if keys.makes_inside else "the key-encrypting key"


class Options(options.Options):
    """The flags of notary-signer."""

    program = "notary-signer"
    version = __version__


def _build(config: SignerConfig, around: Surroundings) -> Signer:
    return Signer(config, around.reactor, around.sockets, around.logs_info, around.worker)


def _migration(config: SignerConfig, reactor: Reactor) -> Callable[..., Awaitable[object]]:
    return partial(migrate_database, config.storage.backend, config.storage.db_url, SIGNER, reactor)


def _protect(flags: options.Options) -> None:
    (memory.show if flags["debug"] else memory.protect)()


PROGRAM = Program(
    module="notary.signer.start",
    options=Options,
    prefix=SIGNER_PREFIX,
    metrics_prefix="notary_signer_",
    load=load_signer,
    with_debug=lambda config: replace(config, debug=DEBUG_ADDRESS),
    build=_build,
    migrate=_migration,
    address=lambda config: config.server.grpc_addr,
    address_key="server.grpc_addr",
    differences=differences,
    clients=64,
    before_load=_protect,
)
makeService, main = PROGRAM.make_service, PROGRAM.main  # noqa: N816 - the name that twistd asks for
