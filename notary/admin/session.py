"""What a command works with: the configuration, the stores it opens, the clock, the one who stdin questions.

Rules of this module: a store is opened when a command asks for it, and closed when the command has ended, however it
ends. The reactor of this process serves nobody but the command: what is pure runs on it, SQL in the pool's threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TextIO, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred

from notary.admin.output import Output
from notary.config import PERSISTENT, ServerConfig, SignerConfig, Storage, load_config
from notary.errors import ConfigError
from notary.storage.open import pool_of
from notary.storage.sql.dialect import PoolSettings
from notary.work.reactor import Reactor


class _Closable(Protocol):
    def close(self) -> Deferred[None]: ...


_Store = TypeVar("_Store", bound=_Closable)


class Session:
    """One run of one command.

    ``environ`` is the environment of the process; ``stdin`` where a person stdin from, if it is a terminal.
    """

    def __init__(
        self, config_file: Path, environ: Mapping[str, str], reactor: Reactor, out: Output, stdin: TextIO
    ) -> None:
        self.reactor = reactor
        self.out = out
        self.config = load_file(config_file, environ)
        self._environ = environ
        self._stdin = stdin
        self._ends: list[Callable[[], object]] = []

    def now(self) -> datetime:
        """The time, aware, UTC."""
        return datetime.fromtimestamp(self.reactor.seconds(), UTC)

    def server(self) -> ServerConfig:
        """The configuration, which must be a server's. Raises ConfigError."""
        if not isinstance(self.config, ServerConfig):
            raise ConfigError("--config: this is a signer's configuration; expected a server's (server.http_addr)")
        return self.config

    def signer(self, config_file: Path | None = None) -> SignerConfig:
        """The configuration, or that in ``config_file``, which must be a signer's. Raises ConfigError."""
        found = self.config if config_file is None else load_file(config_file, self._environ)
        if not isinstance(found, SignerConfig):
            option = "--config" if config_file is None else "--signer-config"
            raise ConfigError(f"{option}: this is a server's configuration; expected a signer's (server.grpc_addr)")
        return found

    async def open(
        self, of: ServerConfig | SignerConfig, opener: Callable[[str, str, Reactor, PoolSettings], Deferred[_Store]]
    ) -> _Store:
        """Open a store of the database that ``of`` names; it is closed when the session is.

        ``opener`` is one of those in :mod:`notary.storage`. Raises ConfigError and StorageFailed.
        """
        storage = self.storage(of)
        store = await opener(storage.backend, storage.db_url, self.reactor, pool_of(storage))
        self.at_end(store.close)
        return store

    def storage(self, of: ServerConfig | SignerConfig, *, must_exist: bool = True) -> Storage:
        """The database that ``of`` names: not memory, and a file that is there if it ``must_exist``.

        Raises ConfigError.
        """
        storage = of.storage
        if not storage.kind.persistent:
            raise ConfigError(
                f'storage.backend: "{storage.backend}" lives in the process of the daemon, where no other can see it; '
                f"expected one of {', '.join(PERSISTENT)}"
            )
        if must_exist and storage.kind.file and not Path(storage.db_url).exists():
            # A daemon would make it, and the command then find nothing in it.
            raise ConfigError(f"storage.db_url: there is no file {storage.db_url!r}; expected that of the daemon")
        return storage

    def at_end(self, close: Callable[[], object]) -> None:
        """Call ``close`` when the command has ended; the last one given is the first one called."""
        self._ends.append(close)

    async def close(self) -> None:
        """Close what was opened."""
        while self._ends:
            await maybeDeferred(self._ends.pop())

    def confirm(self, question: str, *, yes: bool) -> bool:
        """Whether to go on: because of ``yes``, or because the person at the terminal says so.

        Raises ConfigError if there is neither.
        """
        if yes:
            return True
        if not self._stdin.isatty():
            raise ConfigError("--yes: missing; there is no terminal to ask at, so this must say that you are sure")
        self.out.say(f"{question} [y/N]")
        return self._stdin.readline().strip().lower() in ("y", "yes")


def load_file(path: Path, environ: Mapping[str, str]) -> ServerConfig | SignerConfig:
    """Read a daemon's configuration file, with the environment over it as in the daemon. Raises ConfigError."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read ({error.strerror}); expected a configuration file") from None
    except ValueError:
        raise ConfigError(f"{str(path)!r} is not UTF-8; expected a configuration file") from None
    return load_config(text, environ, path.absolute().parent)
