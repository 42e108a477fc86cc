"""Every statement of a hot path uses an index, on every database: its plan is read, on tables that hold something."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import NamedTuple

import pytest
import pytest_twisted
from twisted.internet import reactor

from notary.storage import StoredKey, Update
from notary.storage.open import open_key_store, open_metadata_store
from notary.storage.sql.cursor import Cursor
from notary.tuf.model import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Gun
from tests.support.migrated import migrated_database

GUN = Gun("docker.io/library/alpine")
"""A collection that has half of all rows."""
SMALL = Gun("docker.io/library/busybox")
KEY = StoredKey("ab" * 32, "ecdsa", b"public", b"a.jwe", str(GUN), "timestamp", "alias1")
ROLES = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)

LONG_AGO = "2024-01-02 03:04:05"

MANY = 3000
"""Rows before the test begins: with few, reading all of them is the best plan."""


class Explained(NamedTuple):
    """One database whose plans can be read: ``explain`` gives those of a statement, one string a table access."""

    backend: str
    db_url: str
    execute: Callable[..., list[tuple]]
    explain: Callable[..., list[str]]
    analyze: str


def sqlite(request, service: str) -> Explained:
    path = request.getfixturevalue("tmp_path") / f"{service}.db"

    def execute(sql: str, *values: object) -> list[tuple]:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            return connection.execute(sql.replace("%s", "?"), values).fetchall()

    def explain(sql: str, *values: object) -> list[str]:
        return [row[3] for row in execute(f"EXPLAIN QUERY PLAN {sql}", *values)]

    return Explained("sqlite3", str(path), execute, explain, "ANALYZE")


def mysql(request, service: str) -> Explained:
    server = request.getfixturevalue("mariadb")
    database, db_url = migrated_database(server, service)

    def explain(sql: str, *values: object) -> list[str]:
        rows = server.execute(database, f"EXPLAIN {sql}", *values)
        # (id, select_type, table, type, possible_keys, key, key_len, ref, rows, Extra)
        return ["\t".join(str(row[column]) for column in (2, 3, 9)) for row in rows]

    return Explained(
        "mysql", db_url, lambda sql, *values: server.execute(database, sql, *values), explain, "ANALYZE TABLE {0}"
    )


def postgres(request, service: str) -> Explained:
    server = request.getfixturevalue("postgresql")
    database, db_url = migrated_database(server, service)

    def explain(sql: str, *values: object) -> list[str]:
        return [row[0] for row in server.execute(database, f"EXPLAIN {sql}", *values)]

    return Explained(
        "postgres", db_url, lambda sql, *values: server.execute(database, sql, *values), explain, "ANALYZE {0}"
    )


@pytest.fixture(params=[sqlite, mysql, postgres])
def explained(request):
    return lambda service: request.param(request, service)


@pytest.fixture
def statements(monkeypatch) -> list[tuple]:
    """What goes to the database from now on: statements and values, as the driver gets them."""
    seen = []

    class Spy:
        def __init__(self, cursor) -> None:
            self.cursor = cursor

        def __getattr__(self, name: str):
            return getattr(self.cursor, name)

        def execute(self, text: str, *given):
            seen.append((text, *map(tuple, given)))
            return self.cursor.execute(text, *given)

        def execute_together(self, statements):
            seen.extend((text, tuple(values)) for text, values, _ in statements)
            return self.cursor.execute_together(statements)

    class Seen(Cursor):
        def __init__(self, cursor, dialect) -> None:
            super().__init__(Spy(cursor), dialect)

    monkeypatch.setattr("notary.storage.sql.database.Cursor", Seen)
    return seen


def fill(database: Explained, table: str, row: dict[str, Callable[[int], object]]) -> None:
    values = [value(number) for number in range(MANY) for value in row.values()]
    step = 300 * len(row)
    for start in range(0, len(values), step):
        some = values[start : start + step]
        marks = ", ".join([f"({', '.join(['%s'] * len(row))})"] * (len(some) // len(row)))
        database.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES {marks}", *some)
    database.execute(database.analyze.format(table))


def is_indexed(backend: str, sql: str, plan: str, *, few: bool) -> bool:
    """Whether a line of a plan finds rows by an index, in order unless they are ``few``, or finds none itself."""
    if backend == "sqlite3":
        whole = re.match(r"SCAN (?!\(subquery|CONSTANT)", plan) and "ORDER BY id DESC LIMIT" not in sql
        return not whole and (few or "TEMP B-TREE" not in plan)
    if backend == "mysql":
        table, access, extra = plan.split("\t")
        if table == "None" or table.startswith("<"):
            return True
        # "index" reads a whole index, unless a LIMIT ends it soon.
        found = access.split("|")[0] in {"ref", "range", "const", "eq_ref"} or (
            access == "index" and "ORDER BY id" in sql
        )
        return found and ("filesort" not in extra or few)
    return "Seq Scan" not in plan and (few or "Sort" not in plan)


def check_plans(database: Explained, statements: list[tuple], needed: set[str]) -> None:
    seen = set()
    for sql, *given in statements:
        table = re.search(r"(?:FROM|UPDATE) (tuf_files|changefeed|private_keys)\b", sql)
        if table is None or "1 = 0" in sql or "SELECT 1 FROM" in sql:
            continue
        seen.add(re.sub(r"\W.*", "", sql.lstrip("( ")) + " " + table[1])
        plans = database.explain(sql, *(given[0] if given else ()))
        assert plans
        assert all(is_indexed(database.backend, sql, plan, few=table[1] == "private_keys") for plan in plans), (
            "\n".join([sql, *plans])
        )
    assert seen == needed


@pytest_twisted.ensureDeferred
async def test_the_server_uses_indexes(statements, database_of_server):
    database = database_of_server
    store = await open_metadata_store(database.backend, database.db_url, reactor)
    fill(
        database,
        "tuf_files",
        {
            "created_at": lambda n: LONG_AGO,
            "gun": lambda n: GUN if n % 2 else f"docker.io/library/{n % 300}",
            "role": lambda n: ROLES[n // 2 % 4],
            "version": lambda n: n + 1,
            "sha256": lambda n: hashlib.sha256(str(n).encode()).hexdigest(),
            "data": lambda n: b"-" * 1000,
        },
    )
    fill(
        database,
        "changefeed",
        {
            "created_at": lambda n: LONG_AGO,
            "gun": lambda n: GUN if n % 2 else f"docker.io/library/{n % 300}",
            "version": lambda n: n + 1,
            "sha256": lambda n: "0" * 64,
            "category": lambda n: "update",
        },
    )
    database.execute("DELETE FROM changefeed WHERE id = %s", MANY // 2 + 3)  # a gap costs more statements
    statements.clear()
    timestamp = (await store.current(GUN, [TIMESTAMP]))[TIMESTAMP]
    assert len(await store.current(GUN, ROLES)) == 4
    await store.publish(GUN, [Update(role, MANY + 1, role.encode()) for role in ROLES], timestamp.sha256)
    await store.by_version(GUN, ROOT, MANY + 1)
    await store.by_checksum(GUN, ROOT, hashlib.sha256(b"root").hexdigest())
    for gun in (None, GUN):
        for start, records in ((MANY // 2, 10), (MANY // 2, -10), (-1, 10)):
            assert len(await store.changes(gun, start, records)) == 10
    await store.publish(SMALL, [Update(TIMESTAMP, 1, b"{}")])
    assert await store.delete(SMALL)
    await store.close()
    check_plans(database, statements, {"SELECT tuf_files", "SELECT changefeed", "DELETE tuf_files"})


@pytest_twisted.ensureDeferred
async def test_the_signer_uses_indexes(statements, database_of_signer):
    database = database_of_signer
    store = await open_key_store(database.backend, database.db_url, reactor)
    fill(
        database,
        "private_keys",
        {
            "key_id": lambda n: f"{n:064x}",
            "encryption_alg": lambda n: "A256GCM",
            "keywrap_alg": lambda n: "PBES2-HS256+A128KW",
            "algorithm": lambda n: "ecdsa",
            "passphrase_alias": lambda n: "alias1",
            "public": lambda n: b"public",
            "private": lambda n: b"private",
            "gun": lambda n: f"docker.io/library/{n // 2}",
            "role": lambda n: ROLES[n % 2 + 2],
            "last_used": lambda n: LONG_AGO,
        },
    )
    statements.clear()
    await store.add(KEY)
    await store.pending(KEY.gun, KEY.role, KEY.algorithm)
    await store.get(KEY.key_id)
    await store.mark_used(KEY.key_id, datetime.now(UTC))
    await store.delete(KEY.key_id)
    await store.close()
    check_plans(database, statements, {"SELECT private_keys", "DELETE private_keys"})


@pytest.fixture
def database_of_server(explained) -> Explained:
    return explained("server")


@pytest.fixture
def database_of_signer(explained) -> Explained:
    return explained("signer")
