"""The tables of each service: what they must have, how they come to be, and whether a database has them.

Rules of this module: numbered SQL files in ``schema/<backend>/<service>/``, state in the table of the reference's
migration tool (docs/protocol.md, section 5). A database is never altered unless it is ours alone (SQLite) or somebody
asked for it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Final

from notary.errors import StorageFailed
from notary.storage.dialect import Dialect
from notary.storage.pool import Cursor


@dataclass(frozen=True, slots=True)
class Service:
    """Whose tables: ``folder`` is that of ``schema/<backend>/``; ``tables`` the columns we use, main table first."""

    folder: str
    tables: Mapping[str, str]


_STATE: Final = "schema_migrations"
"""golang-migrate's table: one row, the number of the last migration and whether it broke off."""

SERVER: Final = Service(
    "server",
    {
        "tuf_files": "created_at, updated_at, deleted_at, gun, role, version, sha256, data",
        "changefeed": "id, created_at, gun, version, sha256, category",
    },
)
SIGNER: Final = Service(
    "signer",
    {
        "private_keys": "id, created_at, updated_at, deleted_at, key_id, encryption_alg, keywrap_alg, algorithm, "
        "passphrase_alias, public, private, gun, role, last_used"
    },
)


def _migrations(dialect: Dialect, service: Service) -> Mapping[int, Sequence[str]]:
    """The statements of each numbered file of a service, in order."""
    files = {int(file.name.split("_")[0]): file for file in _files(dialect, service) if file.name.endswith(".up.sql")}
    return {number: _statements(files[number]) for number in sorted(files)}


def _indexes(dialect: Dialect, service: Service) -> Sequence[str]:
    """The statements that make the indexes which the reference's tables lack."""
    return [line for file in _files(dialect, service) if file.name == "indexes.sql" for line in _statements(file)]


def _files(dialect: Dialect, service: Service) -> Iterable[Traversable]:
    return (resources.files("notary.storage") / "schema" / dialect.name / service.folder).iterdir()


def _statements(file: Traversable) -> Sequence[str]:
    """The statements of a file. One ends with ``;`` at the end of a line."""
    text = re.sub(r"(?m)^\s*--.*\n", "", file.read_text("utf-8"))
    return [statement.strip() for statement in re.split(r";\s*(?:\n|\Z)", text) if statement.strip()]


def migrate(connection: Any, dialect: Dialect, service: Service) -> None:
    """Give an empty database the tables of ``service``, in their newest form.

    ``connection`` begins no transaction by itself (autocommit). Blocks.
    """
    cursor = Cursor(connection.cursor(), dialect)
    _create(cursor, _migrations(dialect, service))
    for statement in _indexes(dialect, service):
        cursor.run(statement)


def set_up(connection: Any, dialect: Dialect, service: Service) -> None:
    """See that the tables of ``service`` are there and fit; create them if the database is ours alone and empty."""
    if dialect.embedded:
        dialect.embedded(connection)
    transaction = connection.cursor()
    transaction.execute(dialect.begin_write if dialect.embedded else dialect.begin_read)
    cursor = Cursor(transaction, dialect)
    migrations = _migrations(dialect, service)
    tables = {name for (name,) in cursor.all(dialect.tables)}
    if not tables and dialect.embedded:
        _create(cursor, migrations)
    else:
        _check(cursor, tables, service, max(migrations))
    for table, columns in service.tables.items():
        cursor.all(f"SELECT {columns} FROM {table} WHERE 1 = 0")  # noqa: S608  # both are constants above


def _create(cursor: Cursor, migrations: Mapping[int, Sequence[str]]) -> None:
    """Run every migration. The caller's transaction makes it all or nothing, so the state is never dirty."""
    for statements in migrations.values():
        for statement in statements:
            cursor.run(statement)
    cursor.run(f"CREATE TABLE {_STATE} (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)")
    cursor.run(f"INSERT INTO {_STATE} (version, dirty) VALUES (?, ?)", max(migrations), False)  # noqa: S608


def _check(cursor: Cursor, tables: Collection[str], service: Service, newest: int) -> None:
    """Refuse a database that we would misread. One without any recorded state is judged by its columns alone."""
    main = next(iter(service.tables))
    if main not in tables:
        raise StorageFailed(
            f"the database has tables, but not the {service.folder}'s ({main}): give each daemon a database of its own"
        )
    state = cursor.first(f"SELECT version, dirty FROM {_STATE}") if _STATE in tables else None  # noqa: S608
    if state is None:
        return
    version, dirty = state
    if dirty:
        raise StorageFailed(
            f"migration {version} of the database broke off: restore the database from a backup, or finish that "
            f"migration by hand and set dirty to false in {_STATE}"
        )
    if version > newest:
        raise StorageFailed(
            f"the database is at schema version {version}, made by a newer release; this one knows version {newest}: "
            "run the newer release, or restore a backup from before the upgrade"
        )
    if version < newest:
        raise StorageFailed(
            f"the database is at schema version {version}, and version {newest} is needed: migrate it first, or "
            "name another one"
        )


def probe(cursor: Cursor, service: Service) -> None:
    """Read the main table of a service: the smallest real piece of work."""
    cursor.all(f"SELECT 1 FROM {next(iter(service.tables))} LIMIT 1")  # noqa: S608  # a constant
