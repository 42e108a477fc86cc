"""``check-database``: what it says of real databases, and of the variables of some that are not here."""

from __future__ import annotations

import pytest
import pytest_twisted

from notary.admin.command import Status
from notary.storage.sql.backends.mysql.survey import facts as mysql_facts
from notary.storage.sql.backends.postgres.survey import facts as postgres_facts
from notary.storage.sql.survey import risks
from tests.admin.conftest import admin, write_config

SAFE = {"innodb_flush_log_at_trx_commit": "1", "innodb_doublewrite": "ON", "read_only": "OFF"}
SEMI = {**SAFE, "rpl_semi_sync_master_enabled": "ON", "rpl_semi_sync_master_timeout": "10000"}
GALERA = {
    **SAFE,
    "wsrep_on": "ON",
    "wsrep_provider": "/usr/lib/libgalera_smm.so",
    "wsrep_cluster_size": "3",
    "wsrep_cluster_status": "Primary",
    "wsrep_ready": "ON",
    "wsrep_sync_wait": "1",
}
SAFE_POSTGRES = {
    "default_transaction_read_only": "off",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "synchronous_standby_names": "",
}


def risky(found) -> list[str]:
    return [fact.subject for fact in found if fact.risk]


@pytest.mark.parametrize(
    ("variables", "kind", "wanted"),
    [
        (SAFE, "a single server", []),
        ({**SAFE, "slaves_connected": "1"}, "a primary, asynchronous, replicas: 1", ["kind"]),
        ({**SAFE, "slave_running": "ON", "read_only": "ON"}, "a replica", ["kind", "read_only"]),
        (
            {**SEMI, "rpl_semi_sync_master_status": "ON", "rpl_semi_sync_master_clients": "1"},
            "a primary, semi-synchronous, replicas: 1",
            [],
        ),
        (
            {**SEMI, "rpl_semi_sync_master_status": "OFF", "rpl_semi_sync_master_clients": "1"},
            "a primary, semi-synchronous, without a replica that answers",
            ["kind"],
        ),
        (
            {
                **SAFE,
                "rpl_semi_sync_source_enabled": "ON",
                "rpl_semi_sync_source_status": "ON",
                "rpl_semi_sync_source_clients": "2",
            },
            "a primary, semi-synchronous, replicas: 2",
            [],
        ),
        (GALERA, "Galera, 3 nodes, Primary", []),
        ({**GALERA, "wsrep_sync_wait": "0"}, "Galera, 3 nodes, Primary", ["wsrep_sync_wait"]),
        ({**GALERA, "wsrep_cluster_size": "2"}, "Galera, 2 nodes, Primary", ["wsrep_cluster_size"]),
        (
            {**GALERA, "wsrep_cluster_status": "non-Primary", "wsrep_ready": "OFF"},
            "Galera, 3 nodes, non-Primary",
            ["wsrep_ready"],
        ),
        ({**GALERA, "pxc_strict_mode": "ENFORCING"}, "Percona XtraDB Cluster, 3 nodes, Primary", ["kind"]),
        ({**SAFE, "group_replication_group_name": "aaaa"}, "Group Replication", ["kind"]),
        (
            {**SAFE, "innodb_flush_log_at_trx_commit": "2", "innodb_doublewrite": "OFF"},
            "a single server",
            ["innodb_flush_log_at_trx_commit", "innodb_doublewrite"],
        ),
        (
            {**SAFE, "log_bin": "ON", "sync_binlog": "0", "binlog_format": "STATEMENT"},
            "a single server",
            ["sync_binlog", "binlog_format"],
        ),
        ({**SAFE, "sync_binlog": "0", "auto_increment_increment": "3"}, "a single server", []),
    ],
)
def test_what_mysql_says(variables, kind, wanted):
    found = mysql_facts(variables)
    assert next(fact.value for fact in found if fact.subject == "kind") == kind
    assert risky(found) == wanted
    assert all(fact.promise for fact in found)
    assert all(f"{name} is" in risks(found) for name in wanted)


@pytest.mark.parametrize(
    ("settings", "in_recovery", "standbys", "kind", "wanted"),
    [
        ({}, False, 0, "a single server", []),
        ({}, False, 1, "a primary, asynchronous, standbys: 1", ["kind"]),
        ({}, True, 0, "a standby", ["kind"]),
        ({"synchronous_standby_names": "*"}, False, 1, "a primary, synchronous (*), standbys: 1", []),
        ({"fsync": "off"}, False, 0, "a single server", ["fsync"]),
        ({"synchronous_commit": "off"}, False, 0, "a single server", ["synchronous_commit"]),
        ({"synchronous_commit": "local"}, False, 0, "a single server", []),
        ({"full_page_writes": "off"}, False, 0, "a single server", ["full_page_writes"]),
        ({"default_transaction_read_only": "on"}, False, 0, "a single server", ["default_transaction_read_only"]),
    ],
)
def test_what_postgresql_says(settings, in_recovery, standbys, kind, wanted):
    found = postgres_facts({**SAFE_POSTGRES, **settings}, in_recovery, standbys, {"changefeed_id_seq": 1})
    assert next(fact.value for fact in found if fact.subject == "kind") == kind
    assert risky(found) == wanted
    assert "the sequence changefeed_id_seq" in risky(postgres_facts({}, False, 0, {"changefeed_id_seq": 20}))


def config_of(folder, backend: str, db_url: str):
    return write_config(
        folder,
        f"{backend}.json",
        {
            "server": {"http_addr": ":0"},
            "trust_service": {"type": "local"},
            "storage": {"backend": backend, "db_url": db_url},
        },
    )


@pytest.mark.parametrize("kind", ["mariadb", "postgresql"])
@pytest_twisted.ensureDeferred
async def test_real_databases(request, kind, tmp_path):
    """Those of the tests never wait for the disk. They need no tables, and the user no right."""
    server = request.getfixturevalue(kind)
    database = server.database()
    config = config_of(tmp_path, server.backend, server.db_url(database, server.user(database, ["SELECT"])))
    done = await admin("check-database", "--config", config)
    assert (done.status, done.err) == (Status.FOUND, "")
    records = {
        record["what"]: record for record in (await admin("check-database", "--json", "--config", config)).records
    }
    flush = "innodb_flush_log_at_trx_commit" if kind == "mariadb" else "fsync"
    assert records[flush]["risk"] is True
    assert records["kind"]["value"] == "a single server"
    assert f"{flush}\t" in done.out
    assert "RISK" in done.out
    isolation = "transaction_isolation" if kind == "mariadb" else "default_transaction_isolation"
    assert records[isolation]["risk"] is False


@pytest_twisted.ensureDeferred
async def test_other_backends(tmp_path):
    path = tmp_path / "notary.db"
    path.touch()
    done = await admin("check-database", "--config", config_of(tmp_path, "sqlite3", str(path)))
    assert (done.status, done.err) == (Status.OK, "")
    assert "a file" in done.out
    memory = write_config(
        tmp_path,
        "memory.json",
        {"server": {"http_addr": ":0"}, "trust_service": {"type": "local"}, "storage": {"backend": "memory"}},
    )
    refused = await admin("check-database", "--config", memory)
    assert refused.status == Status.USAGE
    assert "nothing else can read" in refused.err
