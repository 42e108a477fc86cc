"""Which errors end the start of a daemon, and after which it waits: the table of docs/databases.md, on each backend.

Rules of this module: each row of the table is a situation here, and each situation has a row. ``StorageUnreachable``
means that a daemon waits (see ``notary.daemon.serving``), any other ``StorageFailed`` that its start ends.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.python.filepath import FilePath

from notary.errors import StorageFailed, StorageUnreachable
from notary.storage.open import open_metadata_store
from notary.storage.sql.backends import DIALECTS
from notary.storage.sql.dialect import PoolSettings
from notary.storage.sql.migrate import SERVER
from tests.storage.sqlite_files import execute, make, special_database
from tests.storage.test_dsn_tls import OTHER_HOST, Authorities
from tests.support.databases import DatabaseServer, MariaDB, PostgreSQL, User
from tests.support.migrated import migrated_database
from tests.support.peers import free_port

DOCUMENT = (Path(__file__).parents[2] / "docs" / "databases.md").read_text("utf-8")
IMPATIENT = PoolSettings(connections=1, connect_timeout=1.0, query_timeout=1.0)
NOBODY = User("nobody", "wrong-password")


def documented() -> dict[str, str]:
    """What a daemon does, by the situation, as the page says it."""
    section = re.search(r"(?ms)^### When a daemon starts\n(.*?)(?=^##|\Z)", DOCUMENT)
    rows = re.findall(r"(?m)^\| (.+?) \| \*\*(waits|ends)\*\* \|$", section[1])
    assert rows
    return dict(rows)


class Place:
    """A migrated database of a server that has, or lacks, TLS; ``url`` changes one part of its address."""

    def __init__(self, server: DatabaseServer, authorities: Authorities) -> None:
        self.server = server
        self.authorities = authorities
        self.mysql = server.backend == "mysql"
        self.name, url = migrated_database(server, "server")
        account = url.removeprefix("postgres://").partition("@")[0]
        self.user = User(*account.split(":"))

    def url(
        self, *, user: User | None = None, host: str = "localhost", port: int = 0, name: str = "", tls: str = ""
    ) -> str:
        who, password = user or self.user
        port, name = port or self.server.port, name or self.name
        if self.mysql:
            return f"{who}:{password}@tcp({host}:{port})/{name}?tls={tls or 'skip-verify'}"
        return f"postgres://{who}:{password}@{host}:{port}/{name}?sslmode={tls or 'require'}"

    @property
    def verified(self) -> str:
        return "true" if self.mysql else "verify-full"


async def fails(backend: str, url: str) -> StorageFailed:
    with pytest.raises(StorageFailed) as caught:
        await (await open_metadata_store(backend, url, reactor, IMPATIENT)).close()
    return caught.value


@asynccontextmanager
async def connections_are_taken(there: Place):
    """No other connection of the user is let in."""
    if there.mysql:
        there.server.execute("", f"GRANT USAGE ON *.* TO {there.user.name}@'%' WITH MAX_USER_CONNECTIONS 1")
    else:
        there.server.execute("", f"ALTER ROLE {there.user.name} CONNECTION LIMIT 1")
    holder = await open_metadata_store(there.server.backend, there.url(), reactor, IMPATIENT)
    try:
        yield
    finally:
        await holder.close()


@asynccontextmanager
async def table_is_locked(there: Place):
    """As by a migration that changes a column."""
    with closing(there.server._connect_as_root(there.name)) as connection, closing(connection.cursor()) as cursor:
        if there.mysql:
            cursor.execute("LOCK TABLES tuf_files WRITE")
        else:
            cursor.execute("BEGIN")
            cursor.execute("LOCK TABLE tuf_files IN ACCESS EXCLUSIVE MODE")
        yield


async def nobody_answers(there: Place) -> StorageFailed:
    return await fails(there.server.backend, there.url(port=free_port()))


async def no_such_host(there: Place) -> StorageFailed:
    return await fails(there.server.backend, there.url(host="nowhere.invalid"))


async def it_hangs(there: Place) -> StorageFailed:
    try:
        there.server.pause()
        return await fails(there.server.backend, there.url())
    finally:
        there.server.resume()


async def no_connection_left(there: Place) -> StorageFailed:
    async with connections_are_taken(there):
        return await fails(there.server.backend, there.url())


async def busy(there: Place) -> StorageFailed:
    async with table_is_locked(there):
        return await fails(there.server.backend, there.url())


async def no_such_database(there: Place) -> StorageFailed:
    return await fails(there.server.backend, there.url(user=there.server.admin, name="nothing"))


async def wrong_password(there: Place) -> StorageFailed:
    return await fails(there.server.backend, there.url(user=User(there.user.name, "wrong-password")))


async def no_such_user(there: Place) -> StorageFailed:
    return await fails(there.server.backend, there.url(user=NOBODY))


async def other_authority(there: Place, monkeypatch) -> StorageFailed:
    monkeypatch.setenv("SSL_CERT_FILE", str(there.authorities.wrong))
    return await fails(there.server.backend, there.url(tls=there.verified))


async def other_name(there: Place, monkeypatch) -> StorageFailed:
    monkeypatch.setenv("SSL_CERT_FILE", str(there.authorities.right))
    return await fails(there.server.backend, there.url(host=OTHER_HOST, tls=there.verified))


async def no_rights(there: Place) -> StorageFailed:
    nothing = there.server.user(there.name, ["CREATE TEMPORARY TABLES"] if there.mysql else ["TRIGGER"])
    return await fails(there.server.backend, there.url(user=nothing))


async def empty(there: Place) -> StorageFailed:
    return await fails(there.server.backend, there.url(user=there.server.admin, name=there.server.database()))


async def of_a_newer_release(there: Place) -> StorageFailed:
    there.server.execute(there.name, "UPDATE schema_migrations SET version = 9")
    return await fails(there.server.backend, there.url())


SITUATIONS: dict[str, list[Callable]] = {
    "does not answer, hangs, or its host name cannot be resolved": [nobody_answers, no_such_host, it_hangs],
    "has no connection left": [no_connection_left],
    "is so busy that a statement or a lock takes too long": [busy],
    "does not exist": [no_such_database],
    "refuses the user, the password or the host": [wrong_password, no_such_user],
    "lacks TLS that `db_url` demands": [],
    "has a certificate that does not prove who it is": [other_authority, other_name],
    "does not let the user read the tables": [no_rights],
    "is empty, half migrated, of an older or newer release, or of another program": [empty, of_a_newer_release],
    "is a file that cannot be opened, is damaged, or is no database": [],
}


@pytest.fixture(scope="module")
def authorities():
    with TemporaryDirectory() as folder:  # pytest's own is closed to other users
        yield Authorities(Path(folder))


@pytest.fixture(scope="module", params=["mysql", "postgres"])
def server(request, authorities):
    certificate, key = authorities.certificate, authorities.key
    if request.param == "mysql":
        options = [f"--ssl-cert={certificate}", f"--ssl-key={key}", f"--bind-address=127.0.0.1,{OTHER_HOST}"]
        made: DatabaseServer = MariaDB(options=options)
    else:
        settings = ["ssl=on", f"ssl_cert_file={certificate}", f"ssl_key_file={key}"]
        settings.append(f"listen_addresses=127.0.0.1,{OTHER_HOST}")
        made = PostgreSQL(options=[word for setting in settings for word in ("-c", setting)])
    with made as running:
        yield running


@pytest.fixture
def there(server, authorities) -> Place:
    return Place(server, authorities)


@pytest.fixture(params=["mysql", "postgres"])
def there_without_tls(request, authorities):
    with MariaDB(options=["--skip-ssl"]) if request.param == "mysql" else PostgreSQL() as running:
        yield Place(running, authorities)


def judge(situation: str, error: StorageFailed) -> None:
    """Compare an error with the page, and look at its text."""
    assert documented()[situation] == ("waits" if isinstance(error, StorageUnreachable) else "ends"), error
    text = str(error)
    assert text.startswith("storage.db_url: ")
    assert "\n" not in text
    assert "wrong-password" not in text
    if not isinstance(error, StorageUnreachable):
        assert "does not answer" not in text


def test_the_page_and_this_module_have_the_same_rows():
    assert list(documented()) == list(SITUATIONS)


@pytest.mark.parametrize(
    ("situation", "make_it"),
    [pytest.param(row, each, id=each.__name__) for row, makers in SITUATIONS.items() for each in makers],
)
@pytest_twisted.ensureDeferred
async def test_a_server_of_databases(situation, make_it, there, monkeypatch):
    given = (monkeypatch,) if make_it in {other_authority, other_name} else ()
    judge(situation, await make_it(there, *given))


@pytest.mark.parametrize("verified", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_server_without_tls(there_without_tls, authorities, verified, monkeypatch):
    there = there_without_tls
    monkeypatch.setenv("SSL_CERT_FILE", str(authorities.right))
    error = await fails(there.server.backend, there.url(tls=there.verified if verified else ""))
    judge("lacks TLS that `db_url` demands", error)
    assert "TLS" in str(error)


def test_tls_that_is_cut_off_is_waited_for():
    """A connection that ends within the handshake is no certificate that waiting cannot cure."""
    for text in (
        "TLS/SSL error: unexpected eof while reading",
        "TLS/SSL error: Connection reset by peer (104)",
    ):
        assert DIALECTS["mysql"].trouble(_MySQLError(2026, text)).name == "LOST"
    blocked = "Received error packet before completion of TLS handshake. It cannot be verified: {} - Some text"
    assert DIALECTS["mysql"].trouble(_MySQLError(2002, blocked.format(1040))).name == "CROWDED"
    assert DIALECTS["mysql"].trouble(_MySQLError(2002, blocked.format(1130))).name == "REFUSED"


class _MySQLError(Exception):
    """As the driver makes one: a number and a text."""


# -- SQLite -----------------------------------------------------------------------------------------------------------


async def damaged(path: Path) -> StorageFailed:
    FilePath(str(path)).setContent(b"This is no database, but some text that is long enough. " * 100)
    return await fails("sqlite3", str(path))


async def no_folder(path: Path) -> StorageFailed:
    return await fails("sqlite3", str(path / "missing" / "notary.db"))


async def newer_file(path: Path) -> StorageFailed:
    await make(open_metadata_store, path)
    execute(path, "UPDATE schema_migrations SET version = 9")
    return await fails("sqlite3", str(path))


async def locked_file(path: Path) -> StorageFailed:
    await make(open_metadata_store, path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageFailed) as caught:
            await special_database(SERVER, path, patience=0.1)
    return caught.value


@pytest.mark.parametrize(
    ("situation", "make_it"),
    [
        pytest.param("is a file that cannot be opened, is damaged, or is no database", damaged, id="damaged"),
        pytest.param("is a file that cannot be opened, is damaged, or is no database", no_folder, id="no_folder"),
        pytest.param(
            "is empty, half migrated, of an older or newer release, or of another program", newer_file, id="newer"
        ),
        pytest.param("is so busy that a statement or a lock takes too long", locked_file, id="locked"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_file(situation, make_it, path):
    judge(situation, await make_it(path))
