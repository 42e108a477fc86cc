"""A signer's database with keys in it, each under the passphrase of some alias."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from twisted.internet import reactor

from notary.storage import StoredKey, keywrap
from notary.storage.open import open_key_inventory, open_key_store
from notary.storage.sql.dialect import PoolSettings
from notary.tuf import private
from tests.support.stored import Place

OLD, NEW, OTHER = "alias_old", "alias_new", "alias_other"
PASSPHRASES = {OLD: "the old passphrase", NEW: "the new passphrase", OTHER: "another passphrase"}
USED = datetime(2030, 5, 17, 12, 30, 1, tzinfo=UTC)


def environment(*aliases: str) -> dict[str, str]:
    """The variables that give the passphrases of these aliases, by default of the old and the new one."""
    return {f"NOTARY_SIGNER_{alias.upper()}": PASSPHRASES[alias] for alias in aliases or (OLD, NEW)}


def make_key(gun: str, role: str = "timestamp", alias: str = OLD, algorithm: str = "ed25519") -> StoredKey:
    return keywrap.wrap(private.generate(algorithm), gun, role, alias, PASSPHRASES.get)


class KeyPlace(Place):
    """A signer's database."""

    @asynccontextmanager
    async def store(self):
        store = await open_key_store(self.backend, self.db_url, reactor)
        try:
            yield store
        finally:
            await store.close()

    @asynccontextmanager
    async def inventory(self):
        inventory = await open_key_inventory(self.backend, self.db_url, reactor, PoolSettings(connections=2))
        try:
            yield inventory
        finally:
            await inventory.close()

    async def fill(self, *keys: StoredKey, used: bool = False) -> list[StoredKey]:
        """Store pending keys, or keys that have signed."""
        async with self.store() as store:
            for key in keys:
                assert await store.add(key) == key
                if used:
                    await store.mark_used(key.key_id, USED)
        return list(keys)

    async def age(self, key: StoredKey, created: datetime) -> None:
        """Give a key another time of creation, by the owner of the table."""
        await self.date(key, created.isoformat(" ") if self.backend == "sqlite3" else created.replace(tzinfo=None))

    async def date(self, key: StoredKey, created: object, last_used: object = None) -> None:
        """Give a key other times, as the database takes them; without ``last_used`` that one stays."""
        columns = "key_id, algorithm, public, private, gun, role, passphrase_alias, encryption_alg, keywrap_alg"
        ((*row, used),) = await self.all(f"SELECT {columns}, last_used FROM private_keys WHERE key_id == ?", key.key_id)
        await self.execute("DELETE FROM private_keys WHERE key_id == ?", key.key_id)
        marks = ", ".join("?" * (len(row) + 2))
        await self.execute(
            f"INSERT INTO private_keys ({columns}, last_used, created_at) VALUES ({marks})",
            *row,
            last_used or used,
            created,
        )

    async def keys(self) -> Mapping[str, StoredKey]:
        """Every key by its id."""
        async with self.inventory() as inventory:
            return {row.key_id: row.key for row in await inventory.page(0, 100_000)}

    def config(self, folder: Path, keys: Mapping[str, object] | None = None, **sections) -> Path:
        """A signer's configuration for this database, whose default is the old alias; ``keys`` is ``storage.keys``."""
        path = folder / "signer.json"
        storage = {"backend": self.backend, "db_url": self.db_url, "default_alias": OLD, "keys": keys or {}}
        server = {"grpc_addr": ":0", "tls_cert_file": "signer.crt", "tls_key_file": "signer.key"}
        path.write_text(json.dumps({"server": server, "storage": storage, **sections}))
        return path
