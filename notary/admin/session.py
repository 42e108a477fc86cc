"""The session of a command: its configuration, the stores that it opens, its clock, and questions to the operator.

Rules of this module: a store is opened when a command asks for it, and closed when the command has ended, also after an
error. Only the command uses the reactor of this process, so pure functions run on it at any length; SQL runs in the
pool's threads.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol, TextIO, TypeVar

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred

from notary.admin.output import Output
from notary.config import PERSISTENT, ServerConfig, SignerConfig, Storage, load_config
from notary.errors import ConfigError, InvalidFile
from notary.storage.open import pool_of
from notary.storage.sql.dialect import PoolSettings
from notary.work.machine import MACHINE
from notary.work.reactor import Reactor


class _Closable(Protocol):
    def close(self) -> Deferred[None]: ...


_Store = TypeVar("_Store", bound=_Closable)


class Session:
    """One run of one command.

    ``config_file`` is None if the command line names none. ``environ`` is the environment of the process; ``daemon``
    names the daemon of the configuration, None if the configuration shows it. Answers are read from ``stdin`` if it is
    a terminal.
    """

    def __init__(
        self,
        config_file: Path | None,
        environ: Mapping[str, str],
        reactor: Reactor,
        out: Output,
        stdin: TextIO,
        daemon: str | None = None,
    ) -> None:
        self.reactor = reactor
        self.out = out
        self.environ = environ
        self.stdin = stdin
        self._config = None if config_file is None else load_file(config_file, environ, daemon)
        self._ends: list[Callable[[], object]] = []

    def now(self) -> datetime:
        """Return the time (aware, UTC)."""
        return MACHINE.utc_now()

    @property
    def config(self) -> ServerConfig | SignerConfig:
        """The configuration of the daemon. Raises ConfigError if the command line names none."""
        if self._config is None:
            raise ConfigError("--config: missing; expected the configuration file of a server")
        return self._config

    def server(self) -> ServerConfig:
        """Return the configuration, which must be that of a server. Raises ConfigError."""
        if not isinstance(self.config, ServerConfig):
            raise ConfigError("--config: this is a signer's configuration; expected a server's (server.http_addr)")
        return self.config

    def signer(self, config_file: Path | None = None) -> SignerConfig:
        """Return the configuration, or that in ``config_file``; it must be that of a signer. Raises ConfigError."""
        found = self.config if config_file is None else load_file(config_file, self.environ)
        if not isinstance(found, SignerConfig):
            option = "--config" if config_file is None else "--signer-config"
            raise ConfigError(f"{option}: this is a server's configuration; expected a signer's (server.grpc_addr)")
        return found

    async def open(
        self,
        config: ServerConfig | SignerConfig,
        opener: Callable[[str, str, Reactor, PoolSettings], Deferred[_Store]],
        *,
        read_only: bool = False,
    ) -> _Store:
        """Open a store on the database of a daemon; the session closes the store when the session is closed.

        ``opener`` is a function of :mod:`notary.storage.open`. With ``read_only``, the store is opened for reading
        only. Raises ConfigError and StorageFailed.
        """
        storage = self.storage(config)
        store = await opener(storage.backend, storage.db_url, self.reactor, pool_of(storage, read_only=read_only))
        self.at_end(store.close)
        return store

    def storage(self, config: ServerConfig | SignerConfig, *, must_exist: bool = True) -> Storage:
        """Return the section ``storage`` of a daemon. Raises ConfigError if this process cannot open its database.

        Such a database is in the memory of the daemon, or ``must_exist`` and is a file that does not.
        """
        storage = config.storage
        if not storage.kind.persistent:
            raise ConfigError(
                f'storage.backend: "{storage.backend}" is in the memory of the daemon, which nothing else can read; '
                f"expected one of {', '.join(PERSISTENT)}"
            )
        if must_exist and storage.kind.file and not Path(storage.db_url).exists():
            # Opening the store would create the file, and the command would find an empty database.
            raise ConfigError(f"storage.db_url: there is no file {storage.db_url!r}; expected the daemon's database")
        return storage

    def at_end(self, close: Callable[[], object]) -> None:
        """Call ``close`` when the command has ended. The calls are in reverse order."""
        self._ends.append(close)

    async def close(self) -> None:
        """Close everything that the session opened."""
        while self._ends:
            await maybeDeferred(self._ends.pop())

    def confirm(self, question: str, *, yes: bool) -> bool:
        """Return whether the action is confirmed: by ``yes``, or by an answer at the terminal.

        Raises ConfigError if there is neither ``yes`` nor a terminal, and CancelledError on a signal.
        """
        if yes:
            return True
        if not self.stdin.isatty():
            raise ConfigError(
                "--yes: missing; without a terminal for the question, this option must confirm the action"
            )
        with _signals_end_waiting():
            self.out.say(f"{question} [y/N]")
            answer = self.stdin.readline()
        return answer.strip().lower() in ("y", "yes")


@contextmanager
def _signals_end_waiting() -> Iterator[None]:
    """Raise CancelledError when a signal comes; the reactor, which handles signals otherwise, waits meanwhile."""
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]  # raises KeyboardInterrupt
    try:
        yield
    except KeyboardInterrupt:
        raise CancelledError from None
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def load_file(path: Path, environ: Mapping[str, str], daemon: str | None = None) -> ServerConfig | SignerConfig:
    """Read a daemon's configuration file; the environment overrides it as in the daemon. Raises ConfigError.

    ``daemon`` is as for :func:`notary.config.load_config`.
    """
    try:
        text = path.read_text("utf-8")
        return load_config(text, environ, path.absolute().parent, daemon)
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read ({error.strerror}); expected a configuration file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{str(path)!r} is not UTF-8; expected a configuration file") from None
    except InvalidFile as error:
        raise ConfigError(f"{path}: {error}") from None
