"""The signer daemon: the one place where its objects meet.

Rules of this module: wiring only. Nothing listens before everything else works; what was opened is closed in the
opposite order. The process protects what it will hold before it reads any of it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from notary import __version__
from notary.config import SignerConfig, load_signer
from notary.net import daemon, tls
from notary.net.grpc import GrpcFactory
from notary.signer.clients import Clients
from notary.signer.keyring import Keyring
from notary.signer.rpc import Rpc
from notary.storage import KeyStore
from notary.storage.sql import open_key_store

T = TypeVar("T")

DRAIN_SECONDS = 5.0
"""How long a stopping signer waits for the answers that it owes."""

THREADS = 2
"""Threads that wrap, unwrap and make keys."""

_PR_SET_DUMPABLE = 4


class Signer(Service):
    """The signer of one configuration.

    Building it reads certificates and opens nothing; ``startService`` gives a Deferred that fires when it serves.
    """

    def __init__(self, config: SignerConfig, reactor: Any) -> None:
        self._config = config
        self._reactor = reactor
        self._log = Logger(namespace="notary.signer")
        self._threads = ThreadPool(0, THREADS, "keys")
        files = config.server
        self._tls = tls.server_options(files.tls_cert_file, files.tls_key_file, files.client_ca_file, tls.GRPC)
        self._store: KeyStore | None = None
        self._grpc: GrpcFactory | None = None
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
        server, storage = self._config.server, self._config.storage
        if server.client_ca_file is None:
            self._log.warn("server.client_ca_file is not given: whoever reaches this signer can sign with every key")
        self._log.info("Using {backend} backend", backend=storage.backend)
        self._threads.start()
        self._store = store = await open_key_store(storage.backend, storage.db_url, self._reactor)
        keyring = Keyring(store, self._passphrases(), storage.default_alias, self._in_thread, _utc_now)
        methods = Rpc(keyring, store.check).methods()
        if server.client_names:
            methods = Clients(server.client_names).guard(methods)
        self._grpc = GrpcFactory(methods, self._reactor)
        self._log.info("Starting on {address}", address=str(server.grpc_addr))
        self._port = await tls.listen(
            self._reactor, server.grpc_addr.host, server.grpc_addr.port, self._grpc, self._tls
        )

    async def _stop(self) -> None:
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        if self._grpc is not None:
            await self._grpc.stop(DRAIN_SECONDS)
        if self._store is not None:
            await self._store.close()
        if self._threads.started:
            self._threads.stop()

    def _in_thread(self, work: Callable[[], T], /) -> Deferred[T]:
        return deferToThreadPool(self._reactor, self._threads, work)

    def _passphrases(self) -> Callable[[str], str | None]:
        if self._config.storage.backend != "memory":
            return self._config.passphrase
        # What is forgotten with the process needs no passphrase that outlives it.
        passphrase = secrets.token_urlsafe()
        return lambda _alias: passphrase


class Bootstrap(Service):
    """Sets up the storage of a configuration, then ends the process."""

    def __init__(self, config: SignerConfig, reactor: Any) -> None:
        self._config = config
        self._reactor = reactor
        self._log = Logger(namespace="notary.signer")

    def startService(self) -> Deferred[None]:
        """Open the store, which creates what is missing, and close it."""
        super().startService()
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        storage = self._config.storage
        store = await open_key_store(storage.backend, storage.db_url, self._reactor)
        await store.close()
        self._log.info("The {backend} backend is set up", backend=storage.backend)
        self._reactor.stop()


def _utc_now() -> datetime:
    return datetime.now(UTC)


def protect() -> None:
    """Keep this process's memory from other processes of its user, and out of core files, for good (Linux).

    Raises OSError if that is not possible.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the memory of this process cannot be protected: {os.strerror(number)}")


class Options(daemon.Options):
    """The flags of notary-signer."""

    program = "notary-signer"
    version = __version__


def makeService(options: Options) -> daemon.Daemon:
    """The body of the twistd plugin."""
    from twisted.internet import reactor

    def load(text: str, environ: Mapping[str, str], directory: Path) -> SignerConfig:
        if not options["debug"]:
            protect()
        return load_signer(text, environ, directory)

    service = Bootstrap if options["bootstrap"] else Signer
    return daemon.make_daemon(options, load, lambda config: service(config, reactor), reactor)


def main() -> None:
    """The console script: the daemon in the foreground."""
    daemon.run(Options, makeService)
