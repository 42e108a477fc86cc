"""A publisher to be killed: publishes version after version and prints each one that was acknowledged."""

from __future__ import annotations

import sys

from twisted.internet import task

from notary.storage import Update
from notary.storage.open import open_metadata_store
from notary.tuf.model import BASE_ROLES, TIMESTAMP, Gun


def content(role: str, version: int) -> bytes:
    """Several pages of the database for each role."""
    return f"{role} {version} ".encode() * 1000


async def publish_forever(reactor, db_url: str, gun: Gun) -> None:
    store = await open_metadata_store("sqlite3", db_url, reactor)
    current = await store.current(gun, [TIMESTAMP])
    version = current[TIMESTAMP].version if current else 0
    while True:
        version += 1
        await store.publish(gun, [Update(role, version, content(role, version)) for role in BASE_ROLES])
        sys.stdout.write(f"{version}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    task.react(lambda reactor: publish_forever(reactor, sys.argv[1], Gun(sys.argv[2])))
