"""A daemon that does nothing, for tests of what all daemons share: its configuration says how it starts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger

from notary.config import Bugsnag
from notary.daemon import options, program, service
from notary.errors import ConfigError, StorageFailed


@dataclass(frozen=True)
class Logging:
    level: str


@dataclass(frozen=True)
class Reporting:
    bugsnag: Bugsnag = field(default_factory=Bugsnag)


@dataclass(frozen=True)
class Config:
    mode: str
    logging: Logging
    warnings: tuple[str, ...]
    reporting: Reporting = Reporting()


def load(text: str, environ: Mapping[str, str], directory: Path) -> Config:
    members = json.loads(text)
    if "mode" not in members:
        raise ConfigError(f"mode: missing; expected one, in {directory.name} or in {environ['TOY_VARIABLE']}")
    return Config(members["mode"], Logging(members.get("level", "info")), tuple(members.get("warnings", ())))


class Toy(Service):
    log = Logger(namespace="notary.toy")

    def __init__(self, mode: str, reactor: Any) -> None:
        self.mode = mode
        self.reactor = reactor

    def startService(self) -> Deferred[None] | None:
        super().startService()
        if self.mode == "fails at once":
            raise StorageFailed("the store is away")
        if self.mode == "has a fault":
            return deferLater(self.reactor, 0, lambda: {}["no such key"])
        if self.mode == "fails later":
            return Deferred.fromCoroutine(self.fail())
        if self.mode == "never starts":
            return Deferred()
        self.port = self.reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        self.log.info("Toy of process {pid} started", pid=os.getpid())
        sys.stdout.write("printed by a library\n")
        return None

    async def fail(self) -> None:
        await deferLater(self.reactor, 0, lambda: None)
        raise StorageFailed("the store went away")

    def stopService(self) -> object:
        super().stopService()
        self.log.info("Toy stopped")
        return self.port.stopListening() if hasattr(self, "port") else None


class Options(options.Options):
    program = "toy"
    version = "1.2.3"
    commit = "0123abcd"


def makeService(options: Options) -> service.Daemon:
    from twisted.internet import reactor

    def build(config: Config) -> Toy:
        Toy.log.info("Toy built")
        if config.mode == "cannot be built":
            raise ConfigError('mode: "cannot be built" cannot be used; expected another')
        return Toy(config.mode, reactor)

    return program.make_daemon(options, load, build, reactor)


if __name__ == "__main__":
    program.run(Options, makeService)
