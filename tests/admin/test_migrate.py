"""``migrate``: what it says, what it writes, and how it ends; the migrations themselves are tested with the storage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_twisted

from notary.admin.command import Status
from tests.admin.conftest import admin, write_config
from tests.storage import historic
from tests.support.databases import SERVER_RIGHTS


@pytest.fixture
def old_server(mariadb, tmp_path):
    """The database of a Notary 0.5; a configuration for a user of it."""
    database = mariadb.database()
    for number in range(1, 5):
        for statement in historic.MYSQL_SERVER[number]:
            mariadb.execute(database, statement)
    for statement in historic.recorded_as_of_old(4):
        mariadb.execute(database, statement)

    def configured(user=None) -> Path:
        return write_config(
            tmp_path,
            "mysql.json",
            {
                "server": {"http_addr": ":0"},
                "trust_service": {"type": "local"},
                "storage": {"backend": "mysql", "db_url": mariadb.db_url(database, user)},
            },
        )

    configured.database = database
    return configured


@pytest_twisted.ensureDeferred
async def test_an_old_database(old_server, mariadb):
    config = old_server()
    planned = await admin("migrate", "--config", config, "--dry-run")
    assert planned.status == Status.OK
    assert "-- migration 5: changefeed\n" in planned.out
    assert "CREATE TABLE IF NOT EXISTS changefeed (" in planned.out
    assert mariadb.execute(old_server.database, "SELECT MAX(version) FROM schema_migrations") == [(4,)]
    records = (await admin("migrate", "--config", config, "--dry-run", "--json")).records
    assert [record["step"] for record in records][1] == "migration 5: changefeed"

    done = await admin("migrate", "--config", config)
    assert (done.status, done.out) == (Status.OK, "")
    assert "migration 5: changefeed\n" in done.err
    assert f"done, steps: {len(records)}" in done.err
    assert mariadb.execute(old_server.database, "SELECT version, dirty FROM schema_migrations") == [(5, 0)]
    again = await admin("migrate", "--config", config)
    assert (again.status, again.err) == (Status.OK, "there was nothing to do\n")
    assert (await admin("check-config", "--config", config)).status == Status.OK


@pytest_twisted.ensureDeferred
async def test_a_migration_that_broke_off(old_server, mariadb):
    config = old_server()
    await admin("migrate", "--config", config)
    mariadb.execute(old_server.database, "UPDATE schema_migrations SET dirty = true")
    refused = await admin("migrate", "--config", config)
    assert refused.status == Status.STORAGE
    assert "`notary-admin migrate --resume`" in refused.err
    assert (await admin("migrate", "--config", config, "--resume")).status == Status.OK
    assert (await admin("check-config", "--config", config)).status == Status.OK


@pytest_twisted.ensureDeferred
async def test_a_daemon_s_user_may_not(old_server, mariadb):
    user = mariadb.user(old_server.database, SERVER_RIGHTS)
    refused = await admin("migrate", "--config", old_server(user))
    assert refused.status == Status.STORAGE
    assert "migrate as one who has SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER" in refused.err
    assert user.password not in refused.err
    started, failed = refused.err.splitlines()
    assert started.startswith("starting: ")
    assert failed.endswith("; this step has changed nothing")


@pytest_twisted.ensureDeferred
async def test_a_user_of_postgresql_may_not(postgresql, tmp_path):
    database = postgresql.database()
    user = postgresql.user(database, SERVER_RIGHTS)
    storage = {"backend": "postgres", "db_url": postgresql.db_url(database, user)}
    config = write_config(
        tmp_path,
        "postgres.json",
        {"server": {"http_addr": ":0"}, "trust_service": {"type": "local"}, "storage": storage},
    )
    refused = await admin("migrate", "--config", config)
    started, failed = refused.err.splitlines()
    assert started.startswith("starting: ")
    assert failed.endswith("; nothing was changed")


@pytest_twisted.ensureDeferred
async def test_a_file(server_config, tmp_path):
    assert (await admin("migrate", "--config", server_config, "--dry-run")).status == Status.USAGE
    assert not (tmp_path / "server.db").exists()
    assert (await admin("migrate", "--config", server_config)).status == Status.OK
    assert (await admin("check-config", "--config", server_config)).status == Status.OK


@pytest_twisted.ensureDeferred
async def test_memory_has_nothing_to_migrate(tmp_path):
    config = write_config(
        tmp_path,
        "memory.json",
        {
            "server": {"http_addr": ":0"},
            "trust_service": {"type": "local"},
            "storage": {"backend": "memory"},
        },
    )
    refused = await admin("migrate", "--config", config)
    assert refused.status == Status.USAGE
    assert "is in the memory of the daemon" in refused.err


@pytest.mark.parametrize(
    "command", [["notary-admin", "migrate", "--config"], ["notary-server", "-logf=json", "-bootstrap", "-config"]]
)
def test_ten_processes_at_once(old_server, mariadb, command):
    config = old_server()
    program = Path(sys.executable).with_name(command[0])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NOTARY_")}
    running = [
        subprocess.Popen(
            [program, *command[1:], config], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
        )
        for _ in range(10)
    ]
    said = [(process.communicate(timeout=60)[1].decode(), process.returncode) for process in running]
    assert [status for _, status in said] == [0] * 10, said
    assert sum("migration 5: changefeed" in text for text, _ in said) == (1 if "admin" in command[0] else 0)
    assert mariadb.execute(old_server.database, "SELECT version, dirty FROM schema_migrations") == [(5, 0)]
