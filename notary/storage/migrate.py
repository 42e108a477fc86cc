"""The tables of each service: what they must have, how they come to be, and whether a database has them.

Rules of this module: numbered SQL files in ``schema/<backend>/<service>/``, state in the table of the reference's
migration tool (docs/protocol.md, section 5), never with a number that the reference does not know; indexes that it
lacks are recorded by their presence (docs/adr/0012). A database is never altered unless it is ours alone (SQLite) or
somebody asked for it. Everything here blocks: it runs in a thread.

A connection that comes in begins no transaction by itself (autocommit).
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Final

from notary.errors import StorageFailed
from notary.storage.catalogue import Lock
from notary.storage.dialect import Dialect
from notary.storage.pool import Cursor

_STATE: Final = "schema_migrations"
"""golang-migrate's table: one row, the number of the last migration and whether it broke off."""

_AGAIN_SECONDS: Final = 0.25
"""How long to wait before the right to migrate is asked for again."""

_INDEX: Final = re.compile(r"CREATE (?:UNIQUE )?INDEX (?:CONCURRENTLY )?(\w+) ON (\w+) \(([\w, ]+)\)")

_FILL: Final = re.compile(r"UPDATE (\w+) SET (\w+) = .* WHERE \2 IS NULL$")


@dataclass(frozen=True, slots=True)
class Service:
    """Whose tables: ``folder`` is that of ``schema/<backend>/``; ``tables`` the columns we use, main table first."""

    folder: str
    tables: Mapping[str, str]

    @property
    def main(self) -> str:
        """The table that this service cannot be without."""
        return next(iter(self.tables))


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


@dataclass(frozen=True, slots=True)
class Step:
    """Something that a migration does: ``what`` in words, and the statements.

    ``number`` is that of the migration, None for what is recorded by its own presence.
    """

    what: str
    statements: Sequence[str]
    number: int | None = None


# -- the files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file. It has run if there are the columns ``signs``, and none of the tables ``gone``."""

    number: int
    name: str
    statements: Sequence[str]
    signs: Sequence[tuple[str, str]]
    gone: Sequence[str]

    def seen(self, columns: Mapping[str, set[str]]) -> bool:
        """Whether tables with these columns show that this file has run."""
        return all(column in columns.get(table, ()) for table, column in self.signs) and not any(
            table in columns for table in self.gone
        )


@dataclass(frozen=True, slots=True)
class _Index:
    """An index that the reference's tables lack."""

    name: str
    table: str
    columns: Sequence[str]
    statements: Sequence[str]


def _files(dialect: Dialect, service: Service) -> Iterable[Traversable]:
    return (resources.files("notary.storage") / "schema" / dialect.name / service.folder).iterdir()


def _statements(text: str) -> Sequence[str]:
    """The statements of a file. One ends with ``;`` at the end of a line."""
    plain = re.sub(r"(?m)^[ \t]*+--.*\n", "", text)
    return [statement.strip() for statement in re.split(r";\s*(?:\n|\Z)", plain) if statement.strip()]


def numbered_files(dialect: Dialect, service: Service) -> Sequence[Migration]:
    """The numbered files of a service, in order."""
    found = []
    for file in _files(dialect, service):
        match = re.fullmatch(r"(\d+)_(\w+)\.up\.sql", file.name)
        if match is None:
            continue
        text = file.read_text("utf-8")
        (recognised,) = re.findall(r"(?m)^-- Recognised by: (.+)$", text)
        marks = recognised.split(", ")
        signs = [(table, column) for table, dot, column in (mark.partition(".") for mark in marks) if dot]
        gone = [mark.removeprefix("no ") for mark in marks if "." not in mark]
        found.append(Migration(int(match[1]), match[2].replace("_", " "), _statements(text), signs, gone))
    return sorted(found, key=lambda migration: migration.number)


def _indexes(dialect: Dialect, service: Service) -> Sequence[_Index]:
    """The indexes of a service; a statement that is none belongs to the one after it."""
    found: list[_Index] = []
    before: list[str] = []
    for statement in _beside(dialect, service, "indexes.sql"):
        before.append(statement)
        match = _INDEX.match(statement)
        if match is not None:
            found.append(_Index(match[1], match[2], match[3].split(", "), before))
            before = []
    return found


def _beside(dialect: Dialect, service: Service, name: str) -> Sequence[str]:
    """The statements of a file without a number; it need not be there."""
    return [
        statement
        for file in _files(dialect, service)
        if file.name == name
        for statement in _statements(file.read_text("utf-8"))
    ]


# -- what is there ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """What a database has: its columns by table, and its state. ``version`` is 0 if there is nothing yet.

    ``recorded`` is false where the state had to be recognised by the columns, or is kept in the old form: a row for
    each migration.
    """

    columns: Mapping[str, set[str]]
    version: int
    dirty: bool
    recorded: bool

    @property
    def empty(self) -> bool:
        return not self.columns.keys() - {_STATE}


def _columns(cursor: Cursor, dialect: Dialect) -> Mapping[str, set[str]]:
    columns: dict[str, set[str]] = {}
    for table, column in cursor.all(dialect.catalogue.columns):
        columns.setdefault(table, set()).add(column)
    return columns


def _look(cursor: Cursor, dialect: Dialect, migrations: Sequence[Migration]) -> _Found:
    columns = _columns(cursor, dialect)
    kept = columns.get(_STATE, set())
    new_form = "dirty" in kept
    # What broke off while the old form was turned into the new one may have left several rows.
    fields = "version, dirty" if new_form else "version, 0"
    rows = cursor.all(f"SELECT {fields} FROM {_STATE} ORDER BY version DESC") if kept else []  # noqa: S608
    if rows:
        version, dirty = rows[0]
        return _Found(columns, version, bool(dirty), recorded=new_form and len(rows) == 1)
    version = max((each.number for each in migrations if each.seen(columns)), default=0)
    return _Found(columns, version, dirty=False, recorded=new_form and version == 0)


def _missing(cursor: Cursor, dialect: Dialect, service: Service) -> Sequence[_Index]:
    """The indexes that are not there: none of their table, whatever its name, begins with the same columns."""
    there: dict[tuple[str, str], list[str]] = {}
    for table, name, column in cursor.all(dialect.catalogue.indexes):
        there.setdefault((table, name), []).append(column)
    return [
        index
        for index in _indexes(dialect, service)
        if not any(
            table == index.table and columns[: len(index.columns)] == index.columns
            for (table, _), columns in there.items()
        )
    ]


def _refuse(found: _Found, service: Service, newest: int) -> None:
    """Refuse what cannot be used, whether it is to be migrated or not."""
    started = service.main in found.columns or found.dirty
    if not started and not found.empty:
        raise StorageFailed(
            f"the database has tables, but not the {service.folder}'s ({service.main}): give each daemon a database "
            "of its own"
        )
    if not started and found.version:
        raise StorageFailed(
            f"{_STATE} says that the database is at schema version {found.version}, but {service.main} is not there: "
            f"restore the database from a backup, or drop {_STATE} to begin anew"
        )
    if found.version > newest:
        broken = ", which broke off" if found.dirty else ""
        raise StorageFailed(
            f"the database is at schema version {found.version}{broken}, made by a newer release; this one knows "
            f"version {newest}: run the newer release, or restore a backup from before the upgrade"
        )


def _refuse_dirty(found: _Found) -> None:
    if found.dirty:
        raise StorageFailed(
            f"migration {found.version} of the database broke off (dirty in {_STATE}): finish it with `notary-admin "
            "migrate --resume`, or restore the database from a backup"
        )


# -- the daemons ------------------------------------------------------------------------------------------------------


def set_up(connection: Any, dialect: Dialect, service: Service) -> Sequence[str]:
    """See that the tables of ``service`` are there and fit; create them if the database is ours alone and empty.

    The names of the indexes that are missing: it works without them, but slowly. Raises StorageFailed.
    """
    if dialect.embedded:
        dialect.embedded(connection)
    cursor = Cursor(connection.cursor(), dialect)
    for statement in dialect.begin_write if dialect.embedded else dialect.begin_read:
        cursor.run(statement)
    migrations = numbered_files(dialect, service)
    found = _look(cursor, dialect, migrations)
    if found.empty and dialect.embedded:
        for step in _numbered(cursor, dialect, service, resume=False):
            _run(cursor, dialect, step)
        for step in _unnumbered(cursor, dialect, service):
            _run(cursor, dialect, step)
    else:
        _check(found, service, migrations[-1].number)
    _fit(cursor, service)
    return [index.name for index in _missing(cursor, dialect, service)]


def _check(found: _Found, service: Service, newest: int) -> None:
    """Refuse a database that we would misread."""
    if found.empty and not found.version:
        raise StorageFailed("the database is empty: run `notary-admin migrate` first")
    _refuse(found, service, newest)
    _refuse_dirty(found)
    if found.version < newest:
        raise StorageFailed(
            f"the database is at schema version {found.version}, and version {newest} is needed: run `notary-admin "
            "migrate` first"
        )


def _fit(cursor: Cursor, service: Service) -> None:
    for table, columns in service.tables.items():
        cursor.all(f"SELECT {columns} FROM {table} WHERE 1 = 0")  # noqa: S608  # both are constants above


def probe(cursor: Cursor, service: Service) -> None:
    """Read the main table of a service: the smallest real piece of work."""
    cursor.all(f"SELECT 1 FROM {service.main} LIMIT 1")  # noqa: S608  # a constant


# -- the migration ----------------------------------------------------------------------------------------------------


def plan(connection: Any, dialect: Dialect, service: Service, *, resume: bool = False) -> Sequence[Step]:
    """What :func:`migrate` would do now; nothing if all is in place. Raises StorageFailed as it does."""
    cursor = Cursor(connection.cursor(), dialect)
    steps = _numbered(cursor, dialect, service, resume=resume)
    made = " ".join(statement for step in steps for statement in step.statements).split()
    return [*steps, *_unnumbered(cursor, dialect, service, made)]


def migrate(
    connection: Any,
    dialect: Dialect,
    service: Service,
    *,
    resume: bool = False,
    report: Callable[[str], None] = lambda _line: None,
) -> int:
    """Bring the tables of ``service`` to their newest form, from nothing or from any form that a Go Notary left.

    The number of steps that this took. May run at the same time as others, and may run again. ``report`` gets a line
    before each step, in this thread. With ``resume``, a migration that broke off is run again first.

    Raises StorageFailed if a step fails, and for a database that a newer release or a broken migration has left, or
    that is not ours; and what the driver raises when the database is looked at. Where tables cannot be changed in a
    transaction, a failure within a numbered migration leaves the database marked as dirty, unless nothing was done.
    """
    if dialect.embedded:
        dialect.embedded(connection)
    cursor = Cursor(connection.cursor(), dialect)

    def run(steps: Sequence[Step]) -> int:
        for step in steps:
            report(step.what)
            _run(cursor, dialect, step)
        return len(steps)

    def numbered() -> int:
        done = run(_numbered(cursor, dialect, service, resume=resume))
        _fit(cursor, service)
        return done

    def unnumbered() -> int:
        return run(_unnumbered(cursor, dialect, service))

    if dialect.catalogue.lock is None:
        with _transaction(cursor, dialect):
            return numbered() + unnumbered()
    with _locked(cursor, dialect.catalogue.lock, report):
        with _transaction(cursor, dialect) if dialect.catalogue.transactional else contextlib.nullcontext():
            done = numbered()
        return done + unnumbered()


@contextlib.contextmanager
def _locked(cursor: Cursor, lock: Lock, report: Callable[[str], None]) -> Iterator[None]:
    """Keep others from migrating the same database."""
    told = False
    while not cursor.all(lock.take)[0][0]:
        if not told:
            report("another migration of this database is under way: waiting for its end")
            told = True
        time.sleep(_AGAIN_SECONDS)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # the session may be gone, and the lock with it
            cursor.all(lock.give_back)


@contextlib.contextmanager
def _transaction(cursor: Cursor, dialect: Dialect) -> Iterator[None]:
    for statement in dialect.begin_write:
        cursor.run(statement)
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # what broke it may be the loss of the connection
            cursor.run("ROLLBACK")
        raise
    cursor.run("COMMIT")


def _numbered(cursor: Cursor, dialect: Dialect, service: Service, *, resume: bool) -> Sequence[Step]:
    """The steps to the newest recorded state."""
    migrations = numbered_files(dialect, service)
    found = _look(cursor, dialect, migrations)
    _refuse(found, service, migrations[-1].number)
    if not resume:
        _refuse_dirty(found)
    steps = []
    if not found.recorded:
        what = f"the state of the database, version {found.version}, goes into {_STATE}"
        steps.append(Step(what, _state_table(found.version)))
    for migration in migrations:
        statements = migration.statements
        if found.dirty and migration.number == found.version and migration.seen(found.columns):
            # What adds a column is the one kind of statement that cannot be repeated.
            statements = [each for each in statements if not each.startswith("ALTER TABLE ")]
        elif migration.number <= found.version - found.dirty:
            continue
        steps.append(Step(f"migration {migration.number}: {migration.name}", statements, migration.number))
    return steps


def _state_table(version: int) -> Sequence[str]:
    """Statements that make the table anew: if they break off, the columns tell the state."""
    return [
        f"DROP TABLE IF EXISTS {_STATE}",
        f"CREATE TABLE {_STATE} (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)",
        *([f"INSERT INTO {_STATE} (version, dirty) VALUES ({version}, false)"] if version else []),  # noqa: S608
    ]


def _unnumbered(cursor: Cursor, dialect: Dialect, service: Service, made: Collection[str] = ()) -> Sequence[Step]:
    """The steps that are recorded by their own presence; ``made`` are words of the statements that will run before."""
    columns = _columns(cursor, dialect)
    steps = []
    for statement in _beside(dialect, service, "fills.sql"):
        match = _FILL.match(statement)
        assert match is not None, statement  # noqa: S101  # our own file
        table, column = match.groups()
        if table in columns and (
            column not in columns[table] or cursor.all(f"SELECT 1 FROM {table} WHERE {column} IS NULL LIMIT 1")  # noqa: S608  # from our own file
        ):
            steps.append(Step(f"{table}.{column} of rows from before there was one", [statement]))
    for index in _missing(cursor, dialect, service):
        if index.name not in made:
            what = f"index {index.name} on {index.table} ({', '.join(index.columns)}); a big table takes minutes"
            steps.append(Step(what, index.statements))
    return steps


def _run(cursor: Cursor, dialect: Dialect, step: Step) -> None:
    """Run a step, and record it if it has a number. Raises StorageFailed."""
    marks = step.number is not None and not dialect.catalogue.transactional
    before: tuple[int | None, bool] = (None, False)
    ran = 0
    try:
        if marks:
            before = _state(cursor)
            _record(cursor, step.number, dirty=True)
        for statement in step.statements:
            cursor.run(statement)
            ran += 1
        if step.number is not None:
            _record(cursor, step.number, dirty=False)
    except Exception as error:
        advice = ""
        if marks and ran:
            advice = f"; {_STATE} has it as dirty: once the cause is gone, `notary-admin migrate --resume` goes on"
        elif marks:  # nothing was done: a statement is done or not
            with contextlib.suppress(Exception):  # who may not do this could not mark it either
                _record(cursor, before[0], dirty=before[1])
        raise StorageFailed(f"{step.what}: {_reason(dialect, error)}{advice}") from error


def _reason(dialect: Dialect, error: Exception) -> str:
    if dialect.catalogue.forbidden(error):
        return f"this user may not change tables: migrate as one who has {dialect.catalogue.rights}"
    return dialect.explain(error)


def _state(cursor: Cursor) -> tuple[int | None, bool]:
    """What is recorded: number and whether it is dirty; no number if nothing is."""
    row = cursor.first(f"SELECT version, dirty FROM {_STATE}")  # noqa: S608  # a constant
    return (None, False) if row is None else (row[0], bool(row[1]))


def _record(cursor: Cursor, version: int | None, *, dirty: bool) -> None:
    """Record it in one statement, so that there is one row at any time."""
    if version is None:
        cursor.run(f"DELETE FROM {_STATE}")  # noqa: S608  # a constant
    elif _state(cursor) == (None, False):
        cursor.run(f"INSERT INTO {_STATE} (version, dirty) VALUES (?, ?)", version, dirty)  # noqa: S608  # a constant
    else:
        cursor.run(f"UPDATE {_STATE} SET version = ?, dirty = ?", version, dirty)  # noqa: S608  # a constant
