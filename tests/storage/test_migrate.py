"""Migrations: from everything that a Notary has ever left in a database, and from all that can go wrong on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import globalLogPublisher

from notary.errors import StorageFailed
from notary.storage import StoredKey, Update
from notary.storage import open as sql
from notary.storage.open import migrate_database, migration_plan, open_key_store, open_metadata_store
from notary.storage.sql.migrate import SERVER, SIGNER, Service, numbered_files
from notary.tuf.model import ROOT, TIMESTAMP, Gun, RoleName
from tests.storage import historic
from tests.support.databases import SERVER_RIGHTS, SIGNER_RIGHTS, DatabaseServer, User

GUN = Gun(historic.OLD_GUN)


@dataclass(frozen=True)
class Line:
    """The history of one service on one backend."""

    fixture: str
    service: Service
    states: Mapping[int, Sequence[str]]
    rows: Callable[[set[str]], Iterable[tuple[str, Sequence[object]]]]

    @property
    def newest(self) -> int:
        return max(self.states)

    def __str__(self) -> str:
        return f"{self.fixture}-{self.service.folder}"


MYSQL_SERVER = Line("mariadb", SERVER, historic.MYSQL_SERVER, historic.server_rows)
MYSQL_SIGNER = Line("mariadb", SIGNER, historic.MYSQL_SIGNER, historic.signer_rows)
POSTGRES_SERVER = Line("postgresql", SERVER, historic.POSTGRES_SERVER, historic.server_rows)
POSTGRES_SIGNER = Line("postgresql", SIGNER, historic.POSTGRES_SIGNER, historic.signer_rows)
LINES = [MYSQL_SERVER, MYSQL_SIGNER, POSTGRES_SERVER, POSTGRES_SIGNER]


class Place:
    """One database of a server, for one line; it is empty at first."""

    def __init__(self, server: DatabaseServer, line: Line) -> None:
        self.server = server
        self.line = line
        self.name = server.database()
        self.said: list[str] = []

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.server.execute(self.name, statement)

    def ask(self, sql: str, *values: object) -> list[tuple]:
        return self.server.execute(self.name, sql, *values)

    @property
    def here(self) -> str:
        return "DATABASE()" if self.server.backend == "mysql" else "current_schema()"

    def columns(self, table: str) -> set[str]:
        sql = f"SELECT column_name FROM information_schema.columns WHERE table_schema = {self.here} AND table_name = %s"
        return {name for (name,) in self.ask(sql, table)}

    def tables(self) -> set[str]:
        rows = self.ask(f"SELECT table_name FROM information_schema.tables WHERE table_schema = {self.here}")
        return {name for (name,) in rows}

    def reach(self, state: int, form: Callable[[int], Iterable[str]] = historic.recorded, *, fill: bool = True) -> None:
        """Bring the database to a state of old, the reference's way, with data from its beginning."""
        for number in range(1, state + 1):
            self.run(*self.line.states[number])
            if fill and number == 1:
                main = self.line.service.main
                for statement, values in self.line.rows(self.columns(main)):
                    self.server.execute(self.name, statement, *values)
        self.run(*form(state))

    def url(self, user: User | None = None) -> str:
        return self.server.db_url(self.name, user)

    async def migrate(self, user: User | None = None, *, resume: bool = False) -> int:
        return await migrate_database(
            self.server.backend, self.url(user), self.line.service, reactor, resume=resume, report=self.said.append
        )

    async def plan(self) -> list[str]:
        steps = await migration_plan(self.server.backend, self.url(), self.line.service, reactor)
        return [step.what for step in steps]

    async def open(self, user: User | None = None):
        opener = open_metadata_store if self.line.service is SERVER else open_key_store
        return await opener(self.server.backend, self.url(user), reactor)

    def state(self) -> list[tuple]:
        return self.ask("SELECT version, dirty FROM schema_migrations")

    def schema(self) -> Mapping[str, object]:
        """All that makes up the tables, but for the order of the columns."""
        return MYSQL_SCHEMA(self) if self.server.backend == "mysql" else POSTGRES_SCHEMA(self)


def described(**queries: str) -> Callable[[Place], Mapping[str, object]]:
    return lambda place: {name: sorted(map(repr, place.ask(query))) for name, query in queries.items()}


MYSQL_SCHEMA = described(
    tables="SELECT table_name, engine, table_collation FROM information_schema.tables WHERE table_schema = DATABASE()",
    columns="SELECT table_name, column_name, column_type, is_nullable, column_default, extra, collation_name "
    "FROM information_schema.columns WHERE table_schema = DATABASE()",
    indexes="SELECT table_name, index_name, seq_in_index, column_name, non_unique "
    "FROM information_schema.statistics WHERE table_schema = DATABASE()",
    references="SELECT table_name, column_name, referenced_table_name, referenced_column_name "
    "FROM information_schema.key_column_usage WHERE table_schema = DATABASE()",
)
POSTGRES_SCHEMA = described(
    columns="SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default "
    "FROM information_schema.columns WHERE table_schema = current_schema()",
    indexes="SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema()",
    constraints="SELECT conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE connamespace = current_schema()::regnamespace",
)


@pytest.fixture
def place(request) -> Callable[[Line], Place]:
    """Makes an empty database."""
    return lambda line: Place(request.getfixturevalue(line.fixture), line)


@pytest.fixture
def warnings():
    """The warnings that are logged meanwhile, but for those that a database without fsync earns: that of the tests."""
    seen: list[str] = []

    def observe(event) -> None:
        text = event["log_format"].format(**event)
        if event["log_level"].name == "warn" and "`notary-admin check-database` says more" not in text:
            seen.append(text)

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


def rows_of(place: Place, table: str) -> list[tuple]:
    """What is in a table, apart from columns that came later."""
    later = {"sha256", "gun", "role", "last_used"} if table == "private_keys" else {"sha256"}
    columns = ", ".join(sorted(place.columns(table) - later))
    return sorted(place.ask(f"SELECT {columns} FROM {table}"), key=repr)


async def use_metadata(place: Place, *, checksums: bool) -> None:
    """The old collection is there, and can be gone on with; ``checksums`` tells whether its changes have theirs."""
    store = await place.open()
    try:
        newest = {file.role: file for file in historic.FILES if file.gun == historic.OLD_GUN and file.version == 2}
        current = await store.current(GUN, [RoleName(role) for role in historic.ROLES])
        assert {str(role): (each.version, each.data) for role, each in current.items()} == {
            role: (file.version, file.data) for role, file in newest.items()
        }
        for file in (file for file in historic.FILES if file.gun == historic.OLD_GUN):
            assert (await store.by_checksum(GUN, RoleName(file.role), file.sha256)).data == file.data
            assert (await store.by_version(GUN, RoleName(file.role), file.version)).data == file.data
        assert await store.current(Gun(historic.DELETED_GUN), [ROOT]) == {}
        changes = await store.changes(GUN, None, 10)
        first, second = (
            next(f for f in historic.FILES if (f.gun, f.role, f.version) == (str(GUN), "timestamp", n)) for n in (1, 2)
        )
        assert [(c.version, c.sha256, c.category) for c in changes] == [
            (1, first.sha256 if checksums else "", "update"),
            (2, second.sha256 if checksums else "", "update"),
        ]
        await store.publish(GUN, [Update(TIMESTAMP, 3, b"three")], second.sha256)
        assert [c.version for c in await store.changes(GUN, None, 10)] == [1, 2, 3]
        assert await store.delete(GUN)
    finally:
        await store.close()


async def use_keys(place: Place) -> None:
    """The old keys are there; new ones can be made and used."""
    store = await place.open()
    try:
        for key_id in historic.KEYS:
            key = await store.get(key_id)
            assert (key.public, key.private, key.passphrase_alias) == (
                historic.KEY_PUBLIC,
                historic.KEY_PRIVATE,
                "alias1",
            )
        made = StoredKey("ef" * 32, "ed25519", b"p\x00", b"q\x00", str(GUN), "snapshot", "alias1")
        assert await store.add(made) == made
        assert await store.pending(str(GUN), "snapshot", "ed25519") == made
    finally:
        await store.close()


async def use(place: Place, *, checksums: bool = True) -> None:
    await (use_metadata(place, checksums=checksums) if place.line.service is SERVER else use_keys(place))


# -- from what there is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", LINES, ids=str)
@pytest_twisted.ensureDeferred
async def test_a_new_database(place, line, warnings):
    there = place(line)
    assert await there.plan()
    assert there.tables() == set()
    assert await there.migrate() == len(there.said) > 0
    assert there.state() == [(line.newest, False)]
    assert await there.plan() == []
    before = there.schema()
    assert await there.migrate() == 0
    assert there.schema() == before
    store = await there.open()
    await store.close()
    assert warnings == []


@pytest.mark.parametrize("form", historic.FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize(
    ("line", "state"),
    [pytest.param(line, state, id=f"{line}-{state}") for line in LINES for state in line.states],
)
@pytest_twisted.ensureDeferred
async def test_from_every_state_of_old(place, line, state, form):
    old, new = place(line), place(line)
    old.reach(state, form)
    before = rows_of(old, line.service.main)
    await old.migrate()
    await new.migrate()
    assert old.schema() == new.schema()
    assert old.state() == [(line.newest, False)]
    assert rows_of(old, line.service.main) == before
    assert await old.migrate() == 0
    # The reference's last step takes checksums as it finds them, and it finds none of the first files.
    await use(old, checksums=line is not MYSQL_SERVER or state < 5)


HARBOR = [
    "CREATE SEQUENCE moved_id_seq",
    "SELECT setval('moved_id_seq', max(id)) FROM {table}",
    "ALTER TABLE {table} ALTER COLUMN id SET DEFAULT nextval('moved_id_seq')",
]
"""How Harbor's migrator leaves the numbers of the main table's rows: to a sequence that no column owns."""


@pytest.mark.parametrize("dirty", ["", "false"], ids=["without-dirty", "with-dirty"])
@pytest.mark.parametrize("rows", ["each", "last"])
@pytest.mark.parametrize(
    ("line", "highest"), [pytest.param(POSTGRES_SERVER, 5, id="server"), pytest.param(POSTGRES_SIGNER, 2, id="signer")]
)
@pytest_twisted.ensureDeferred
async def test_postgresql_with_the_numbers_of_mysql(place, line, highest, rows, dirty):
    there = place(line)
    numbers = [*range(1, highest + 1)] if rows == "each" else [highest]
    there.reach(line.newest, historic.counted_as_mysql(numbers, dirty=dirty))
    there.run(*(statement.format(table=line.service.main) for statement in HARBOR))
    before, counted = rows_of(there, line.service.main), there.ask("SELECT * FROM schema_migrations ORDER BY version")
    store = await there.open()  # a daemon needs no migration, and makes none
    await store.close()
    assert there.ask("SELECT * FROM schema_migrations ORDER BY version") == counted
    await there.migrate()
    assert there.state() == [(line.newest, False)]
    assert rows_of(there, line.service.main) == before
    assert await there.plan() == []
    await use(there)


@pytest_twisted.ensureDeferred
async def test_numbers_of_mysql_whose_migration_broke_off(place):
    there = place(POSTGRES_SERVER)
    there.reach(2, historic.counted_as_mysql([5], dirty="true"))
    for attempt in (there.open, there.migrate):
        with pytest.raises(StorageFailed, match="notary-admin migrate --resume"):
            await attempt()
    await there.migrate(resume=True)
    assert there.state() == [(2, False)]
    await use(there)


@pytest_twisted.ensureDeferred
async def test_numbers_of_mysql_without_its_tables_are_those_of_a_newer_release(place):
    there = place(POSTGRES_SERVER)
    there.reach(1, historic.counted_as_mysql([5], dirty="false"))
    for attempt in (there.open, there.migrate):
        with pytest.raises(StorageFailed, match="made by a newer release"):
            await attempt()


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("line", [MYSQL_SERVER, MYSQL_SIGNER, POSTGRES_SERVER], ids=str)
@pytest_twisted.ensureDeferred
async def test_a_number_below_what_the_tables_show(place, line, number):
    """As where the record was copied from PostgreSQL, or restored from an older backup than the tables."""
    there, whole = place(line), place(line)
    there.reach(line.newest, lambda newest: historic.recorded(min(number, newest - 1)))
    before = rows_of(there, line.service.main)
    await there.migrate()
    await whole.migrate()
    assert there.schema() == whole.schema()
    assert there.state() == [(line.newest, False)]
    assert rows_of(there, line.service.main) == before
    await use(there, checksums=line is not MYSQL_SERVER)


@pytest_twisted.ensureDeferred
async def test_what_a_changefeed_holds_is_left_as_it_is(place):
    there = place(MYSQL_SERVER)
    there.reach(5)
    there.run("DELETE FROM changefeed WHERE version = 1", "UPDATE changefeed SET category = 'deletion'")
    before = there.ask("SELECT * FROM changefeed")
    await there.migrate()
    assert there.ask("SELECT * FROM changefeed") == before != []


@pytest.mark.parametrize(
    ("line", "statements", "wanted"),
    [
        pytest.param(MYSQL_SERVER, historic.GORM_SERVER, {"sha256", "idx_changefeed_gun"}, id="server"),
        pytest.param(MYSQL_SIGNER, historic.GORM_SIGNER, {"idx_private_keys_pending"}, id="signer"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_tables_that_the_object_mapper_made(place, line, statements, wanted):
    there = place(line)
    there.run(*statements)
    for statement, values in line.rows(there.columns(line.service.main)):
        there.server.execute(there.name, statement, *values)
    if line.service is SERVER:
        there.run(
            line.states[5][-1]
            .replace("version, sha256)", "version, sha256, category)")
            .replace("version, sha256 FROM", "version, sha256, 'update' FROM")
        )
    await there.migrate()
    assert there.state() == [(line.newest, False)]
    assert wanted <= {
        name
        for _table, name in there.ask(
            "SELECT table_name, index_name FROM information_schema.statistics WHERE table_schema = DATABASE()"
        )
    }
    await use(there)


@pytest_twisted.ensureDeferred
async def test_keys_from_before_there_were_pending_ones_are_never_handed_out(place):
    there = place(MYSQL_SIGNER)
    there.reach(1)
    await there.migrate()
    store = await there.open()
    assert await store.pending(str(GUN), "timestamp", "ecdsa") is None
    assert (await store.get("ab" * 32)).gun == ""
    await store.close()


# -- indexes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [MYSQL_SIGNER, POSTGRES_SERVER, POSTGRES_SIGNER], ids=str)
@pytest_twisted.ensureDeferred
async def test_a_daemon_works_without_the_indexes_and_says_what_adds_them(place, line, warnings):
    there = place(line)
    there.reach(line.newest)
    before = there.schema()
    await use(there)
    assert there.schema() == before
    assert "the database lacks the index idx_" in warnings[0]
    assert "`notary-admin migrate`" in warnings[0]


@pytest_twisted.ensureDeferred
async def test_an_index_by_another_name_will_do(place):
    there = place(MYSQL_SIGNER)
    there.reach(2)
    there.run("CREATE INDEX the_operators_own ON private_keys (gun, role, algorithm, last_used, key_id)")
    assert await there.plan() == []
    assert await there.migrate() == 0


@pytest_twisted.ensureDeferred
async def test_an_index_whose_making_broke_off_is_made_anew(place):
    there = place(POSTGRES_SIGNER)
    await there.migrate()
    there.run("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_private_keys_pending'::regclass")
    assert ["idx_private_keys_pending" in line for line in await there.plan()] == [True]
    await there.migrate()
    assert await there.plan() == []
    assert there.ask("SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_private_keys_pending'::regclass") == [
        (True,)
    ]


# -- several at once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [0, 1])
@pytest.mark.parametrize("line", LINES, ids=str)
@pytest_twisted.ensureDeferred
async def test_ten_at_once(place, line, state):
    there, alone = place(line), place(line)
    if state:
        there.reach(state)
    await alone.migrate()
    done = [Deferred.fromCoroutine(there.migrate()) for _ in range(10)]
    outcomes = await DeferredList(done, consumeErrors=True)
    assert [result.getErrorMessage() for success, result in outcomes if not success] == []
    assert sorted(steps for _, steps in outcomes)[:9] == [0] * 9
    assert there.schema() == alone.schema()
    assert there.state() == [(line.newest, False)]


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dirty", "offset", "match"),
    [
        pytest.param(True, 0, r"broke off \(dirty in schema_migrations\).*notary-admin migrate --resume", id="dirty"),
        pytest.param(False, 1, r"made by a newer release.*run the newer release, or restore a backup", id="newer"),
        pytest.param(True, 1, r", which broke off, made by a newer release", id="newer-and-dirty"),
    ],
)
@pytest.mark.parametrize("line", LINES, ids=str)
@pytest_twisted.ensureDeferred
async def test_a_state_that_needs_a_person(place, line, dirty, offset, match):
    there = place(line)
    highest = max(each.newest for each in LINES if each.service is line.service)
    there.reach(line.newest, lambda newest: historic.recorded(highest + 1 if offset else newest, dirty=dirty))
    before = there.schema()
    for attempt in (there.migrate, there.open, *([there.plan] if dirty else [])):
        with pytest.raises(StorageFailed, match=match) as caught:
            await attempt()
        assert str(caught.value).startswith("storage.db_url: ")
    assert there.schema() == before


@pytest.mark.parametrize("line", [MYSQL_SERVER, MYSQL_SIGNER, POSTGRES_SERVER], ids=str)
@pytest_twisted.ensureDeferred
async def test_a_daemon_wants_the_newest_and_alters_nothing(place, line):
    there = place(line)
    with pytest.raises(StorageFailed, match="the database is empty: run `notary-admin migrate` first"):
        await there.open()
    assert there.tables() == set()
    there.reach(line.newest - 1)
    before = there.schema()
    with pytest.raises(StorageFailed, match=f"version {line.newest} is needed: run `notary-admin migrate` first"):
        await there.open()
    assert there.schema() == before


@pytest.mark.parametrize("form", historic.FORMS, ids=lambda form: form.__name__)
@pytest_twisted.ensureDeferred
async def test_a_daemon_reads_every_form_of_the_state(place, form):
    there = place(MYSQL_SERVER)
    there.reach(5, form)
    there.run("UPDATE tuf_files SET sha256 = SHA2(data, 256)")
    await use(there, checksums=False)


@pytest.mark.parametrize("line", [MYSQL_SERVER, POSTGRES_SIGNER], ids=str)
@pytest_twisted.ensureDeferred
async def test_a_database_of_somebody_else(place, line):
    there = place(line)
    there.run("CREATE TABLE bookmarks (url varchar(20))")
    for attempt in (there.migrate, there.open):
        with pytest.raises(StorageFailed, match="give each daemon a database of its own"):
            await attempt()
    assert there.tables() == {"bookmarks"}


@pytest_twisted.ensureDeferred
async def test_a_state_without_its_tables(place):
    there = place(POSTGRES_SERVER)
    there.run(*historic.recorded(2))
    with pytest.raises(StorageFailed, match=r"version 2, but tuf_files is not there.*drop schema_migrations"):
        await there.migrate()


# -- rights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["none", "older"])
@pytest.mark.parametrize("line", LINES, ids=str)
@pytest_twisted.ensureDeferred
async def test_a_user_who_may_not_change_tables(place, line, state):
    there = place(line)
    if state == "older":
        there.reach(line.newest - 1 or 1)
    before = there.schema()
    was = there.state() if state == "older" else None
    user = there.server.user(there.name, SERVER_RIGHTS)
    with pytest.raises(StorageFailed, match=r"this user may not change tables: migrate as one who has .*CREATE"):
        await there.migrate(user)
    assert there.schema() == before
    if was is not None:
        assert there.state() == was
    await there.migrate()


@pytest.mark.parametrize("version_is_readable", [True, False], ids=["readable", "unreadable"])
@pytest.mark.parametrize("line", [POSTGRES_SERVER, POSTGRES_SIGNER], ids=str)
@pytest_twisted.ensureDeferred
async def test_postgresql_without_rights_on_the_tables_is_not_empty(place, line, version_is_readable, warnings):
    """As a role that an administrator has just created, for tables that another role owns."""
    there = place(line)
    there.reach(line.newest)
    there.run(*(f"CREATE SEQUENCE IF NOT EXISTS {table}_id_seq" for table in line.service.tables))
    user = there.server.user(there.name, ["TRIGGER"])
    there.run(f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM {user.name}")
    if version_is_readable:
        there.run(f"GRANT SELECT ON schema_migrations TO {user.name}")
    with pytest.raises(StorageFailed, match=f"SELECT on the table {line.service.main}") as caught:
        await there.open(user)
    said = str(caught.value)
    assert "empty" not in said
    assert "UPDATE" not in said or line.service is SERVER
    there.run(*said.partition("say ")[2].split("; "))
    store = await there.open(user)
    await store.check()
    await store.close()
    assert not any("lacks INSERT" in line or "lacks USAGE" in line for line in warnings)


@pytest.mark.parametrize("right", ["INSERT", "DELETE", "USAGE"])
@pytest.mark.parametrize("line", [POSTGRES_SERVER, POSTGRES_SIGNER], ids=str)
@pytest_twisted.ensureDeferred
async def test_postgresql_with_rights_to_read_only(place, line, right, warnings):
    there = place(line)
    await there.migrate()
    user = there.server.user(there.name, SERVER_RIGHTS)
    kind = "SEQUENCES" if right == "USAGE" else "TABLES"
    there.run(f"REVOKE {right} ON ALL {kind} IN SCHEMA public FROM {user.name}")
    store = await there.open(user)
    await store.close()
    (warning,) = warnings
    assert f"{right} on the " in warning
    there.run(*warning.partition("say ")[2].split("; "))
    warnings.clear()
    store = await there.open(user)
    await store.close()
    assert warnings == []


@pytest_twisted.ensureDeferred
async def test_postgresql_without_a_schema(place):
    there = place(POSTGRES_SERVER)
    await there.migrate()
    there.run("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    user = there.server.user(there.name, SERVER_RIGHTS)
    with pytest.raises(StorageFailed, match="USAGE on the schema public: as the owner of the tables, say") as caught:
        await there.open(user)
    with pytest.raises(StorageFailed, match="may use no schema"):
        await there.migrate(user)
    there.run(*str(caught.value).partition("say ")[2].split("; "))
    store = await there.open(user)
    await store.close()


@pytest.mark.parametrize("line", [MYSQL_SERVER, MYSQL_SIGNER], ids=str)
@pytest_twisted.ensureDeferred
async def test_mysql_hides_tables_without_rights(place, line):
    there = place(line)
    await there.migrate()
    user = there.server.user(there.name, ["CREATE TEMPORARY TABLES"])
    with pytest.raises(StorageFailed, match=r"the database is empty.*this user has no right on them: GRANT") as caught:
        await there.open(user)
    there.run(str(caught.value).partition("on them: ")[2])
    store = await there.open(user)
    await store.close()


@pytest.mark.parametrize("line", LINES, ids=str)
@pytest_twisted.ensureDeferred
async def test_a_daemon_s_own_user_can_look(place, line, warnings):
    there = place(line)
    user = there.server.user(there.name, SERVER_RIGHTS if line.service is SERVER else SIGNER_RIGHTS)
    await there.migrate()
    store = await there.open(user)
    await store.check()
    await store.close()
    assert warnings == []


# -- what breaks off --------------------------------------------------------------------------------------------------


def interruptions() -> Iterable:
    """Every place in a numbered file of MySQL: after how many statements of which migration."""
    for line in (MYSQL_SERVER, MYSQL_SIGNER):
        for migration in numbered_files(sql.DIALECTS["mysql"], line.service):
            for done in range(len(migration.statements) + 1):
                yield pytest.param(line, migration, done, id=f"{line}-{migration.number}-after-{done}")


@pytest.mark.parametrize(("line", "migration", "done"), [*interruptions()])
@pytest_twisted.ensureDeferred
async def test_resumed_wherever_it_broke_off(place, line, migration, done):
    """Tables cannot be changed in a transaction there; so the process may die between any two statements."""
    there, whole = place(line), place(line)
    number = migration.number
    there.reach(number - 1, historic.unrecorded)
    there.run(*historic.recorded(number, dirty=True), *migration.statements[:done])
    with pytest.raises(StorageFailed, match=f"migration {number} of the database broke off"):
        await there.migrate()
    await there.migrate(resume=True)
    await whole.migrate()
    assert there.schema() == whole.schema()
    assert there.state() == [(line.newest, False)]
    if number > 1:
        await use(there)


@pytest_twisted.ensureDeferred
async def test_a_step_that_fails_half_way_leaves_its_mark(place):
    there, whole = place(MYSQL_SERVER), place(MYSQL_SERVER)
    there.reach(4)
    user = there.server.user(there.name, ["SELECT", "UPDATE", "CREATE", "ALTER", "INDEX", "DROP"])  # but not INSERT
    with pytest.raises(
        StorageFailed, match=r"^storage\.db_url: migration 5: changefeed: this user may not .*dirty.*--resume"
    ):
        await there.migrate(user)
    assert there.state() == [(5, True)]
    with pytest.raises(StorageFailed, match="broke off"):
        await there.open()
    with pytest.raises(StorageFailed, match="broke off"):
        await there.migrate()
    await there.migrate(resume=True)
    await whole.migrate()
    assert there.schema() == whole.schema()
    await use(there)


@pytest_twisted.ensureDeferred
async def test_a_step_that_fails_in_a_transaction_never_was(place):
    there = place(POSTGRES_SERVER)
    there.reach(1, historic.recorded_as_of_old)
    there.run("CREATE VIEW changefeed AS SELECT 1 AS category")
    before = there.schema()
    with pytest.raises(StorageFailed, match=r"^storage\.db_url: migration 2: changefeed: "):
        await there.migrate()
    assert there.schema() == before
    there.run("DROP VIEW changefeed")
    await there.migrate()
    await use(there)
