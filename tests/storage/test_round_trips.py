"""How often a publish, and the making of a key, wait for MariaDB: messages to it, and how many statements each has.

What follows one another in one message costs one wait and one turn of a thread. A list that has grown means that every
publish has become slower: if that is meant, change the list. The stores run as in the daemons, on a real server.
"""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from notary.signer.custody.jwe import JweCustody
from notary.signer.keyring import Keyring
from notary.storage.cache import CachedMetadataStore
from notary.storage.open import open_key_store, open_metadata_store
from notary.storage.sql.backends.mysql import driver as mysql
from notary.storage.sql.dialect import PoolSettings
from tests.support.api import TUF, new_author
from tests.support.inmemory import NOW, Server
from tests.support.migrated import migrated_database

ONE = PoolSettings(connections=1)
"""A new connection would be told how to behave."""
LOOK = [1]
"""One statement by itself."""
WRITE = [3, 3]
"""BEGIN, lock, look; two INSERTs and COMMIT."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of statements in each message to MariaDB, in their order."""
    messages: list[int] = []
    together, query = mysql._Cursor.execute_together, mysql._Cursor._query

    def execute_together(cursor, statements):
        cursor.at_once = len(statements)
        together(cursor, statements)

    def send(cursor, text: bytes) -> int:
        messages.append(vars(cursor).pop("at_once", 1))
        return query(cursor, text)

    monkeypatch.setattr(mysql._Cursor, "execute_together", execute_together)
    monkeypatch.setattr(mysql._Cursor, "_query", send)
    return messages


@pytest.fixture
def server_url(mariadb) -> str:
    return migrated_database(mariadb, "server")[1]


@pytest.fixture
def signer_url(mariadb) -> str:
    return migrated_database(mariadb, "signer")[1]


def since(sent: list[int]) -> list[int]:
    """What was sent since the last call."""
    new = sent[:]
    sent.clear()
    return new


@pytest_twisted.ensureDeferred
async def test_a_publish_waits_for_the_database_three_times(server_url, sent):
    store = await open_metadata_store("mysql", server_url, reactor, ONE)
    try:
        server = Server(CachedMetadataStore(store, 1 << 20, reactor))
        since(sent)
        author = await new_author(server)  # asks for two keys
        assert since(sent) == LOOK * 2
        for version in (1, 2, 3):
            author.add(f"v{version}", b"content")
            files = author.first() if version == 1 else author.publish("targets")
            assert (await server.upload(author.gun, files)).status == 200
            assert since(sent) == [*LOOK, *WRITE]
        # Another instance has nothing in memory: it looks which files there are, then reads them.
        other = Server(CachedMetadataStore(store, 1 << 20, reactor), signing=server.signing)
        author.add("yet more", b"content")
        assert (await other.upload(author.gun, author.publish("targets"))).status == 200
        assert since(sent) == [*LOOK, *LOOK, *WRITE]
        assert (await server.get(f"{TUF}timestamp.json")).status == 200
    finally:
        await store.close()


@pytest_twisted.ensureDeferred
async def test_a_key_waits_for_the_database_twice_when_made_and_three_times_when_first_used(signer_url, sent):
    store = await open_key_store("mysql", signer_url, reactor, ONE)
    try:
        keyring = Keyring(store, JweCustody({"alias": "a passphrase"}.get, "alias"), deferToThread, lambda: NOW)
        since(sent)
        key = await keyring.create("example.com/a", "timestamp", "ecdsa")
        # BEGIN, take the turn (a row that comes and goes), is one pending? INSERT, COMMIT.
        assert since(sent) == [4, 2]
        assert await keyring.create("example.com/a", "timestamp", "ecdsa") == key
        assert since(sent) == [1]  # who asks again is likely to find one
        await keyring.sign(key.key_id, b"message")
        assert since(sent) == [2, 1, 2]  # BEGIN and look; DELETE, if it is still so; INSERT and COMMIT
        await keyring.sign(key.key_id, b"message")
        assert since(sent) == []
    finally:
        await store.close()
