"""Collections in a database: published by an author who holds every key, the server's too, and broken by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from twisted.internet import reactor

from notary.storage import Update
from notary.storage.open import open_metadata_store
from notary.storage.sql.backends import DIALECTS
from notary.storage.sql.database import Database
from notary.storage.sql.dialect import PoolSettings
from notary.tuf.collection import File
from notary.tuf.model import Gun, RoleName
from tests.support.author import Author


class Publisher:
    """One collection and its publishes; ``author`` may be changed between them, ``files`` is what is current."""

    def __init__(self, gun: str, **how) -> None:
        self.gun = gun
        self.author = Author(gun, **how)
        self.files: dict[str, bytes] = {}

    def next(self, *roles: str, **timestamp) -> dict[str, bytes]:
        """The files of the next publish of ``roles``; by default, of all."""
        made = self.author.publish(*(roles or ("root", "targets", *self.author.delegations)))
        return self.stamped(made, **timestamp)

    def stamped(self, made: Mapping[str, bytes], **timestamp) -> dict[str, bytes]:
        """``made``, and a timestamp over the snapshot in it."""
        if "timestamp" in self.files:
            self.author.bump("timestamp")
        made = {**made, "timestamp": self.author.timestamp(made["snapshot"], **timestamp)}
        self.files.update(made)
        return made


def updates(files: Mapping[str, bytes]) -> list[Update]:
    return [Update(RoleName(role), json.loads(data)["signed"]["version"], data) for role, data in files.items()]


class Place:
    """A server's database."""

    def __init__(self, backend: str, db_url: str) -> None:
        self.backend = backend
        self.db_url = db_url

    @asynccontextmanager
    async def store(self):
        store = await open_metadata_store(self.backend, self.db_url, reactor)
        try:
            yield store
        finally:
            await store.close()

    async def make(self) -> None:
        """See that there are tables: a SQLite file is made when it is first opened."""
        async with self.store():
            pass

    async def publish(self, publisher: Publisher, *rounds: Mapping[str, bytes]) -> None:
        """Store what was published, as the server would."""
        async with self.store() as store:
            for files in rounds or [publisher.next()]:
                await store.publish(Gun(publisher.gun), updates(files))

    async def execute(self, sql: str, *values: object) -> int:
        """Change something behind the service's back; the number of rows."""
        return await self._run(lambda cursor: cursor.run(sql, *values))

    async def all(self, sql: str, *values: object) -> list[tuple]:
        return [tuple(row) for row in await self._run(lambda cursor: cursor.all(sql, *values))]

    async def rows(self, gun: str) -> list[tuple[str, int]]:
        """Role and version of every row of a collection."""
        return sorted(await self.all("SELECT role, version FROM tuf_files WHERE gun == ?", gun))

    async def _run(self, work):
        database = Database(DIALECTS[self.backend], self.db_url, reactor, PoolSettings(connections=1))
        try:
            return await database.write(work)
        finally:
            await database.close()

    def config(self, folder: Path, **sections) -> Path:
        """A server's configuration for this database."""
        path = folder / "server.json"
        storage = {"backend": self.backend, "db_url": self.db_url}
        value = {"server": {"http_addr": ":0"}, "trust_service": {"type": "local"}, "storage": storage}
        path.write_text(json.dumps({**value, **sections}))
        return path


class InMemory:
    """A :class:`notary.tuf.collection.Collection` made of files."""

    def __init__(self, gun: str) -> None:
        self.gun = gun
        self.contents = {}

    def add(self, files: Mapping[str, bytes]) -> None:
        for update in updates(files):
            digest = hashlib.sha256(update.data).hexdigest()
            self.contents[File(str(update.role), update.version, digest, len(update.data))] = update.data

    @property
    def files(self):
        return sorted(self.contents, key=lambda file: (file.role, file.version))

    def data(self, file) -> bytes:
        return self.contents[file]
