"""The tables of each service: which columns they must have, how they are created, and whether a database has them.

Rules of this module: migrations are numbered SQL files in ``backends/<backend>/schema/<service>/``. The version of a
database is recorded in the table of the reference's migration tool (docs/protocol.md, section 5), never with a number
that the reference does not know; an index that the reference lacks is recorded by its presence (docs/adr/0012). The
tables of a database are changed only if the database is ours alone (SQLite) or an operator asked for a migration.
Every function blocks and runs in a thread.

A connection that is passed in is in autocommit mode.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Final

from notary.errors import StorageFailed
from notary.storage.sql.catalogue import Run, Taken
from notary.storage.sql.cursor import Cursor
from notary.storage.sql.dialect import Dialect

_VERSIONS: Final = "schema_migrations"
"""golang-migrate's table: one row, the number of the last migration and whether it broke off."""

_LOCK_RETRY_SECONDS: Final = 0.25
"""Pause between two attempts to take the lock for migrations."""

_INDEX: Final = re.compile(r"CREATE (?:UNIQUE )?INDEX (?:CONCURRENTLY )?(\w+) ON (\w+) \(([\w, ]+)\)")

_NUMBERED: Final = re.compile(r"(\d+)_(\w+)\.up\.sql")
"""The names of the numbered files."""

_FILL: Final = re.compile(r"UPDATE (\w+) SET (\w+) = .* WHERE \2 IS NULL$")


@dataclass(frozen=True, slots=True)
class Service:
    """The tables of one daemon.

    ``folder`` is the folder's name in ``schema`` of each backend. ``tables`` holds the columns in use by table, the
    main table first. ``rights`` are those that the daemon needs on their rows.
    """

    folder: str
    tables: Mapping[str, str]
    rights: str

    @property
    def main(self) -> str:
        """The table without which there is no data of this service."""
        return next(iter(self.tables))


SERVER: Final = Service(
    "server",
    {
        "tuf_files": "created_at, updated_at, deleted_at, gun, role, version, sha256, data",
        "changefeed": "id, created_at, gun, version, sha256, category",
    },
    "SELECT, INSERT, UPDATE, DELETE",
)
SIGNER: Final = Service(
    "signer",
    {
        "private_keys": "id, created_at, updated_at, deleted_at, key_id, encryption_alg, keywrap_alg, algorithm, "
        "passphrase_alias, public, private, gun, role, last_used"
    },
    "SELECT, INSERT, DELETE",
)


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a migration: ``what`` describes it in words.

    ``number`` is the number of the migration's file. It is None for a step whose effect, such as an index, shows by
    itself that the step is done.
    """

    what: str
    statements: Sequence[str]
    number: int | None = None


# -- the files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file.

    The file has been run if the database has all columns of ``signs`` and no table of ``gone``.
    """

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


@cache
def _files(backend: str, folder: str) -> Mapping[str, str]:
    """The texts of the files of a service by their names."""
    found = (resources.files("notary.storage.sql.backends") / backend / "schema" / folder).iterdir()
    return {file.name: file.read_text("utf-8") for file in found}


def _statements(text: str) -> Sequence[str]:
    """The statements of a file. One ends with ``;`` at the end of a line."""
    plain = re.sub(r"(?m)^[ \t]*+--.*\n", "", text)
    return [statement.strip() for statement in re.split(r";\s*(?:\n|\Z)", plain) if statement.strip()]


def numbered_files(dialect: Dialect, service: Service) -> Sequence[Migration]:
    """The numbered files of a service, in order."""
    found = []
    for name, text in _files(dialect.name, service.folder).items():
        match = _NUMBERED.fullmatch(name)
        if match is None:
            continue
        (recognised,) = re.findall(r"(?m)^-- Recognised by: (.+)$", text)
        marks = recognised.split(", ")
        signs = [(table, column) for table, dot, column in (mark.partition(".") for mark in marks) if dot]
        gone = [mark.removeprefix("no ") for mark in marks if "." not in mark]
        found.append(Migration(int(match[1]), match[2].replace("_", " "), _statements(text), signs, gone))
    return sorted(found, key=lambda migration: migration.number)


def _indexes(dialect: Dialect, service: Service) -> Sequence[_Index]:
    """The indexes of a service. A statement that creates no index belongs to the next one that does."""
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
    """The statements of a file without a number; none if there is no such file."""
    return _statements(_files(dialect.name, service.folder).get(name, ""))


# -- what is there ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _State:
    """What a database holds: the columns of each table, and how far it was migrated.

    ``version`` is the number of the last migration, 0 if none was run; ``dirty`` says that this migration broke off.
    ``recorded`` is false if the version was deduced from the columns, or is recorded in golang-migrate's old form (a
    row for each migration) or with the number of another backend.
    """

    columns: Mapping[str, set[str]]
    version: int
    dirty: bool
    recorded: bool

    @property
    def empty(self) -> bool:
        return not self.columns.keys() - {_VERSIONS}


def _columns(cursor: Cursor, dialect: Dialect) -> Mapping[str, set[str]]:
    columns: dict[str, set[str]] = {}
    for table, column in cursor.all(dialect.catalogue.columns):
        columns.setdefault(table, set()).add(column)
    return columns


def _highest_number(service: Service) -> int:
    """The highest number that a migration of the service has on any backend."""
    return max(
        int(found[1])
        for backend in resources.files("notary.storage.sql.backends").iterdir()
        if (folder := backend / "schema" / service.folder).is_dir()
        for file in folder.iterdir()
        if (found := _NUMBERED.fullmatch(file.name))
    )


def _look(cursor: Cursor, dialect: Dialect, service: Service, migrations: Sequence[Migration]) -> _State:
    columns = _columns(cursor, dialect)
    kept = columns.get(_VERSIONS, set())
    if kept and ("TABLE", _VERSIONS, "SELECT", _VERSIONS) in _missing_rights(cursor, dialect):
        kept = set()  # a daemon may do without: Go's does not read this table
    new_form = "dirty" in kept
    # A conversion from the old form to the new one that broke off may have left several rows.
    fields = "version, dirty" if new_form else "version, 0"
    rows = cursor.all(f"SELECT {fields} FROM {_VERSIONS} ORDER BY version DESC") if kept else []  # noqa: S608
    if rows:
        version, dirty = rows[0]
        newest = migrations[-1].number
        if newest < version <= _highest_number(service) and all(each.seen(columns) for each in migrations):
            # A tool that moved the database to another backend, such as Harbor's, copied the numbers with the rows.
            return _State(columns, newest, bool(dirty), recorded=False)
        return _State(columns, version, bool(dirty), recorded=new_form and len(rows) == 1)
    version = max((each.number for each in migrations if each.seen(columns)), default=0)
    return _State(columns, version, dirty=False, recorded=new_form and version == 0)


def _missing(cursor: Cursor, dialect: Dialect, service: Service) -> Sequence[_Index]:
    """The indexes that the database lacks. An index of any name that begins with the same columns will do."""
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


def _missing_rights(cursor: Cursor, dialect: Dialect) -> Collection[tuple[str, str, str, str]]:
    """The rights that the user lacks, as rows of ``missing_rights`` in the catalogue."""
    query = dialect.catalogue.missing_rights
    return {(kind, name, right, table) for kind, name, right, table in cursor.all(query)} if query else set()


def _grants(cursor: Cursor, dialect: Dialect, service: Service) -> str:
    """The statements that give the user all rights on the service's tables, "" where there are no users."""
    query = dialect.catalogue.grants.format(rights=service.rights)
    return str(cursor.all(query)[0][0]) if query else ""


def _check_rights(cursor: Cursor, dialect: Dialect, service: Service) -> Sequence[str]:
    """Raise StorageFailed if the user may not read the tables. Return warnings of what else the user may not."""
    missing = [
        (kind, name, right)
        for kind, name, right, table in _missing_rights(cursor, dialect)
        if table in {"", *service.tables}
        and right in {"USAGE", *service.rights.split(", ")}
        and (kind != "SEQUENCE" or "INSERT" in service.rights)
    ]
    if not missing:
        return []
    lacking = ", ".join(sorted(f"{right} on the {kind.lower()} {name}" for kind, name, right in missing))
    cure = f"as the owner of the tables, say {_grants(cursor, dialect, service)}"
    if any(kind == "SCHEMA" or right == "SELECT" for kind, _, right in missing):
        raise StorageFailed(f"the database user lacks {lacking}: {cure}")
    return [f"the database user lacks {lacking}, so some requests will fail: {cure}"]


def _or_no_rights(cursor: Cursor, dialect: Dialect, service: Service) -> str:
    """What else it may mean that a table is not shown, and what to do then; "" if every table is shown."""
    grants = "" if dialect.catalogue.missing_rights else _grants(cursor, dialect, service)
    return f". If its tables are there, this user has no right on them: {grants}" if grants else ""


def _refuse(found: _State, service: Service, newest: int, no_rights: Callable[[], str]) -> None:
    """Raise StorageFailed for a database that can be neither used nor migrated.

    ``no_rights`` returns what is said of tables that are not shown.
    """
    started = service.main in found.columns or found.dirty
    if not started and not found.empty:
        raise StorageFailed(
            f"the database has tables, but not the {service.folder}'s ({service.main}): give each daemon a database "
            f"of its own{no_rights()}"
        )
    if not started and found.version:
        raise StorageFailed(
            f"{_VERSIONS} says that the database is at schema version {found.version}, but {service.main} is not "
            f"there: restore the database from a backup, or drop {_VERSIONS} to begin anew"
        )
    if found.version > newest:
        broken = ", which broke off" if found.dirty else ""
        raise StorageFailed(
            f"the database is at schema version {found.version}{broken}, made by a newer release; this one knows "
            f"version {newest}: run the newer release, or restore a backup from before the upgrade"
        )


def _refuse_dirty(found: _State) -> None:
    if found.dirty:
        raise StorageFailed(
            f"migration {found.version} of the database broke off (dirty in {_VERSIONS}): finish it with `notary-admin "
            "migrate --resume`, or restore the database from a backup"
        )


# -- the daemons ------------------------------------------------------------------------------------------------------


def set_up(connection: Any, dialect: Dialect, service: Service, *, read_only: bool = False) -> Sequence[str]:
    """Check that the database has the tables of ``service``; create them if it is empty and ours alone.

    With ``read_only``, nothing is created, and no right but SELECT is needed. Returns warnings: of missing indexes,
    without which the service gets slow, and of missing rights, without which some requests fail. Raises StorageFailed.
    """
    ours = dialect.embedded is not None and not read_only
    if dialect.embedded is not None and ours:
        dialect.embedded(connection)
    cursor = Cursor(connection.cursor(), dialect)
    for statement in dialect.begin_write if ours else dialect.begin_read:
        cursor.run(statement)
    migrations = numbered_files(dialect, service)
    if read_only:
        service = replace(service, rights="SELECT")
    warnings = _check_rights(cursor, dialect, service)
    found = _look(cursor, dialect, service, migrations)
    if found.empty and ours:
        for step in _numbered(cursor, dialect, service, resume=False):
            _run(cursor, dialect, step)
        for step in _unnumbered(cursor, dialect, service):
            _run(cursor, dialect, step)
    else:
        _check(found, service, migrations[-1].number, lambda: _or_no_rights(cursor, dialect, service))
    _fit(cursor, service)
    missing = " and ".join(f"the index {index.name}" for index in _missing(cursor, dialect, service))
    if missing:
        slow = (
            f"the database lacks {missing}, and gets slow as it grows: `notary-admin migrate` adds what is missing, "
            "while the daemons run"
        )
        warnings = [*warnings, slow]
    return warnings


def _check(found: _State, service: Service, newest: int, no_rights: Callable[[], str]) -> None:
    """Raise StorageFailed for a database whose tables this release does not know."""
    if found.empty and not found.version:
        raise StorageFailed(f"the database is empty: run `notary-admin migrate` first{no_rights()}")
    _refuse(found, service, newest, no_rights)
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
    """Return the steps that :func:`migrate` would take now, and raise what it would raise."""
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
    """Bring the tables of ``service`` to their newest form, from an empty database or from any form of a Go Notary.

    Returns the number of steps that were needed. Several migrations may run at the same time, and a migration may be
    repeated. ``report`` is called with a line before each step, in this thread. With ``resume``, a migration that broke
    off is run again first.

    Raises StorageFailed if a step fails, for a database that a newer release or a broken migration has left, and for
    the database of another program; also what the driver raises when the database is inspected. Where tables cannot be
    changed in a transaction, a failure within a numbered migration leaves the database marked as dirty, unless no
    statement was run.
    """
    if dialect.embedded:
        dialect.embedded(connection)
    cursor = Cursor(connection.cursor(), dialect)

    def run(steps: Sequence[Step], *, whole: bool) -> int:
        for step in steps:
            report(f"starting: {step.what}")
            _run(cursor, dialect, step, whole=whole)
        return len(steps)

    def numbered() -> int:
        done = run(_numbered(cursor, dialect, service, resume=resume), whole=dialect.catalogue.transactional)
        _fit(cursor, service)
        return done

    def unnumbered() -> int:
        return run(_unnumbered(cursor, dialect, service), whole=dialect.catalogue.take_turn is None)

    if dialect.catalogue.take_turn is None:
        with _transaction(cursor, dialect):
            return numbered() + unnumbered()
    with _locked(cursor, dialect.catalogue.take_turn, report):
        with _transaction(cursor, dialect) if dialect.catalogue.transactional else contextlib.nullcontext():
            done = numbered()
        return done + unnumbered()


@contextlib.contextmanager
def _locked(cursor: Cursor, take_turn: Callable[[Run], Taken], report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock for migrations, after waiting until it is free."""
    told = None
    while isinstance(taken := take_turn(cursor.all), str):
        if told is None or taken not in {"", told}:
            who = f" ({taken})" if taken else ""
            report(f"another migration of this database is under way{who}: waiting for its end")
            told = taken
        time.sleep(_LOCK_RETRY_SECONDS)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # if the session was lost, the lock was lost with it
            taken()


@contextlib.contextmanager
def _transaction(cursor: Cursor, dialect: Dialect) -> Iterator[None]:
    for statement in dialect.begin_write:
        cursor.run(statement)
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # the connection may be lost
            cursor.run("ROLLBACK")
        raise
    cursor.run("COMMIT")


def _numbered(cursor: Cursor, dialect: Dialect, service: Service, *, resume: bool) -> Sequence[Step]:
    """The steps that are recorded by their number, up to the newest version."""
    migrations = numbered_files(dialect, service)
    found = _look(cursor, dialect, service, migrations)
    _refuse(found, service, migrations[-1].number, lambda: _or_no_rights(cursor, dialect, service))
    if not resume:
        _refuse_dirty(found)
    steps = []
    if not found.recorded:
        what = f"recording version {found.version} of the database in {_VERSIONS}"
        steps.append(Step(what, _make_versions(found.version)))
    shown = max((each.number for each in migrations if each.seen(found.columns)), default=0)
    for migration in migrations:
        seen = migration.seen(found.columns)
        if migration.number <= found.version - found.dirty or (not seen and migration.number < shown):
            continue
        statements = migration.statements
        if seen:
            # Run before, but broken off or not recorded: a statement that adds a column cannot be repeated; every other
            # statement can.
            statements = [each for each in statements if not each.startswith("ALTER TABLE ")]
        steps.append(Step(f"migration {migration.number}: {migration.name}", statements, migration.number))
    return steps


def _make_versions(version: int) -> Sequence[str]:
    """Statements that create the table anew. If they break off, the state is deduced from the columns."""
    return [
        f"DROP TABLE IF EXISTS {_VERSIONS}",
        f"CREATE TABLE {_VERSIONS} (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)",
        *([f"INSERT INTO {_VERSIONS} (version, dirty) VALUES ({version}, false)"] if version else []),  # noqa: S608
    ]


def _unnumbered(cursor: Cursor, dialect: Dialect, service: Service, made: Collection[str] = ()) -> Sequence[Step]:
    """The steps whose effect shows that they are done.

    ``made`` holds the words of statements that will run before: an index named there is not missing.
    """
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


def _run(cursor: Cursor, dialect: Dialect, step: Step, *, whole: bool = True) -> None:
    """Run a step; record its number if it has one. Raises StorageFailed.

    ``whole`` says that a transaction holds this step and the steps before it, and is rolled back if the step fails.
    """
    marks = step.number is not None and not dialect.catalogue.transactional
    before: tuple[int | None, bool] = (None, False)
    ran = 0
    try:
        if marks:
            before = _recorded(cursor)
            _record(cursor, step.number, dirty=True)
        for statement in step.statements:
            cursor.run(statement)
            ran += 1
        if step.number is not None:
            _record(cursor, step.number, dirty=False)
    except Exception as error:
        advice = "; nothing was changed" if whole else "; this step has changed nothing" if not ran else ""
        if marks and ran:
            advice = f"; {_VERSIONS} has it as dirty: once the cause is gone, `notary-admin migrate --resume` goes on"
        elif marks:  # no statement was run, so the database is as it was before
            with contextlib.suppress(Exception):  # without the right to do this, the mark was not set either
                _record(cursor, before[0], dirty=before[1])
        raise StorageFailed(f"{step.what}: {_reason(dialect, error)}{advice}") from error


def _reason(dialect: Dialect, error: Exception) -> str:
    if dialect.catalogue.forbidden(error):
        return f"this user may not change tables: migrate as one who has {dialect.catalogue.rights}"
    return dialect.explain(error)


def _recorded(cursor: Cursor) -> tuple[int | None, bool]:
    """The recorded version, None if there is none, and whether it is dirty."""
    row = cursor.first(f"SELECT version, dirty FROM {_VERSIONS}")  # noqa: S608  # a constant
    return (None, False) if row is None else (row[0], bool(row[1]))


def _record(cursor: Cursor, version: int | None, *, dirty: bool) -> None:
    """Record the version in one statement, so that the table never has two rows."""
    if version is None:
        cursor.run(f"DELETE FROM {_VERSIONS}")  # noqa: S608  # a constant
    elif _recorded(cursor) == (None, False):
        cursor.run(f"INSERT INTO {_VERSIONS} (version, dirty) VALUES (?, ?)", version, dirty)  # noqa: S608  # a constant
    else:
        cursor.run(f"UPDATE {_VERSIONS} SET version = ?, dirty = ?", version, dirty)  # noqa: S608  # a constant
