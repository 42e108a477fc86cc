"""docs/databases.md: what it tells an administrator to type gives each daemon what it needs, and no more."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from notary.errors import StorageFailed
from notary.storage import StoredKey, Update
from notary.storage.open import migrate_database, open_database, open_key_store, open_metadata_store
from notary.storage.sql.backends import DIALECTS
from notary.storage.sql.dialect import PoolSettings
from notary.storage.sql.migrate import SERVER, SIGNER
from notary.tuf.model import TIMESTAMP, Gun
from tests.support.databases import MariaDB, PostgreSQL
from tests.support.migrated import migrated_database

DOCUMENT = (Path(__file__).parents[2] / "docs" / "databases.md").read_text("utf-8")
GUN = Gun("example.com/app")
WHEN = datetime(2024, 5, 6, tzinfo=UTC)
KEY = StoredKey("ab" * 32, "ecdsa", b"public", b"a.jwe", str(GUN), "timestamp", "alias1")


def blocks(heading: str, language: str) -> list[str]:
    """The blocks of one language in a section."""
    section = re.search(rf"(?ms)^### {heading}\n(.*?)(?=^##|\Z)", DOCUMENT)
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", section[1])


def type_in(client: list[str], sql: str) -> None:
    done = subprocess.run(client, input=sql, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def mysql():
    with MariaDB() as server:
        yield server, ["mariadb", "--no-defaults", f"--socket={server.socket}", "--user=root"], "MySQL and MariaDB"


@pytest.fixture
def postgres():
    with PostgreSQL() as server:
        client = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", str(server.directory), "-p", str(server.port)]
        yield server, [*client, "-U", "root", "-d", "postgres"], "PostgreSQL"


@pytest.mark.parametrize("database", ["mysql", "postgres"])
@pytest_twisted.ensureDeferred
async def test_the_rights_that_are_documented(request, database):
    server, client, heading = request.getfixturevalue(database)
    (sql,) = blocks(heading, "sql")
    type_in(client, sql)
    (configuration,) = blocks(heading, "json")
    storage = json.loads(configuration)["storage"]
    assert storage["backend"] == server.backend
    # The same on this machine, without its TLS.
    url = re.sub(r"db\.example\.com(:3306)?", f"127.0.0.1:{server.port}", storage["db_url"])
    url = url.replace("tls=true", "tls=false").replace("sslmode=verify-full", "sslmode=disable")

    def as_user(name: str, number: int, service: str) -> str:
        return url.replace("server:change-me-1", f"{name}:change-me-{number}").replace(
            "notaryserver", f"notary{service}"
        )

    for tables in (SERVER, SIGNER):
        assert await migrate_database(server.backend, as_user("migrator", 3, tables.folder), tables, reactor) > 0
    metadata = await open_metadata_store(server.backend, as_user("server", 1, "server"), reactor)
    await metadata.publish(GUN, [Update(TIMESTAMP, 1, b"{}")])
    assert await metadata.delete(GUN)
    await metadata.close()
    keys = await open_key_store(server.backend, as_user("signer", 2, "signer"), reactor)
    assert await keys.add(KEY) == KEY
    await keys.mark_used(KEY.key_id, WHEN)
    assert (await keys.get(KEY.key_id)) == replace(KEY, last_used=WHEN)
    await keys.close()
    for name, number, service in (("server", 1, "signer"), ("signer", 2, "server")):
        with pytest.raises(StorageFailed, match=r"correct storage.db_url"):
            await open_metadata_store(server.backend, as_user(name, number, service), reactor)
    database = await open_database(
        DIALECTS[server.backend], as_user("signer", 2, "signer"), SIGNER, reactor, PoolSettings(connections=1)
    )
    with pytest.raises(StorageFailed, match="lacks a right"):
        await database.write(lambda cursor: cursor.run("UPDATE private_keys SET role = 'x'"))
    await database.close()


@pytest.fixture
def server_database(mariadb):
    return migrated_database(mariadb, "server")


@pytest_twisted.ensureDeferred
async def test_columns_that_tell_all_names_apart(mariadb, server_database):
    database, url = server_database
    section = re.search(r"(?ms)^#### Names that look alike\n(.*?)^##", DOCUMENT)
    for statement in re.findall(r"ALTER TABLE .*?;", section[1]):
        mariadb.execute(database, statement)
    store = await open_metadata_store("mysql", url, reactor)
    try:
        for name, content in ((GUN, b"one"), (Gun(GUN.upper()), b"two")):
            await store.publish(name, [Update(TIMESTAMP, 1, content)])
        assert (await store.by_version(GUN, TIMESTAMP, 1)).data == b"one"
        assert await store.delete(Gun(GUN.upper())) is True
        assert await store.has(GUN) is True
        assert await store.has(Gun(GUN.upper())) is False
    finally:
        await store.close()
