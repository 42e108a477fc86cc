"""What a MySQL or MariaDB says of itself, and what that promises.

Rules of this module: every user may ask this. A server lacks the variables of what it does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from notary.storage.sql.backends.mysql.dsn import GALERA_VARIABLES, is_galera
from notary.storage.sql.survey import Ask, Fact, setting

_VARIABLES: Final = (
    "auto_increment_increment",
    "binlog_format",
    "group_replication_group_name",
    "innodb_doublewrite",
    "innodb_flush_log_at_trx_commit",
    "log_bin",
    "pxc_strict_mode",
    "read_only",
    "rpl_semi_sync_master_enabled",
    "rpl_semi_sync_master_timeout",
    "rpl_semi_sync_source_enabled",
    "rpl_semi_sync_source_timeout",
    "super_read_only",
    "sync_binlog",
    "transaction_isolation",
    "tx_isolation",
    "version",
    "version_comment",
    "wsrep_sync_wait",
    *GALERA_VARIABLES,
)
_STATUS: Final = (
    "rpl_semi_sync_master_clients",
    "rpl_semi_sync_master_status",
    "rpl_semi_sync_source_clients",
    "rpl_semi_sync_source_status",
    "slave_running",
    "slaves_connected",
    "wsrep_cluster_size",
    "wsrep_cluster_status",
    "wsrep_local_state_comment",
    "wsrep_ready",
)
_OFF: Final = frozenset({"", "OFF", "0", "none"})


def survey(ask: Ask) -> Sequence[Fact]:
    """Return what the server says of itself."""
    found = {
        str(name).lower(): str(value)
        for kind, names in (("VARIABLES", _VARIABLES), ("STATUS", _STATUS))
        for name, value in ask(f"SHOW GLOBAL {kind} WHERE Variable_name IN ({', '.join(repr(name) for name in names)})")
    }
    # What a session has by default, and what Galera changes by itself, is in the values of the session.
    session = {
        str(name).lower(): str(value)
        for name, value in ask("SHOW VARIABLES WHERE Variable_name IN ('wsrep_sync_wait', 'auto_increment_increment')")
    }
    return facts({**found, **session})


def facts(found: Mapping[str, str]) -> Sequence[Fact]:
    """Return the facts that follow from variables and states, by their names in lower case."""
    return [
        Fact("server", f"{found.get('version', '?')}, {found.get('version_comment', '?')}", "the release in use"),
        *_kind(found),
        *_read_only(found),
        *_durability(found),
        *_sessions(found),
    ]


def _kind(found: Mapping[str, str]) -> Iterator[Fact]:
    if is_galera(found):
        yield from _galera(found)
    elif found.get("group_replication_group_name", "") not in _OFF:
        yield Fact("kind", "Group Replication", "the service was not tried with Group Replication", risk=True)
    else:
        yield from _replication(found)


def _galera(found: Mapping[str, str]) -> Iterator[Fact]:
    size, status = found.get("wsrep_cluster_size", "?"), found.get("wsrep_cluster_status", "?")
    if "pxc_strict_mode" in found:
        name, more = "Percona XtraDB Cluster", "; the service was not tried with this cluster"
    else:
        name, more = "Galera", ""
    yield Fact(
        "kind",
        f"{name}, {size} nodes, {status}",
        "a commit is on every node before it is acknowledged, but not yet applied there; of writers on several nodes "
        f"that want the same, one wins{more}",
        risk=bool(more),
    )
    if status != "Primary" or found.get("wsrep_ready", "ON") != "ON":
        state = found.get("wsrep_local_state_comment", "?")
        yield Fact("wsrep_ready", f"{found.get('wsrep_ready', '?')} ({state})", "this node does no work", risk=True)
    elif size in {"1", "2"}:
        yield Fact("wsrep_cluster_size", size, "if one node fails, the rest may have no majority", risk=True)
    yield from setting(
        found,
        "wsrep_sync_wait",
        dict.fromkeys("1357", "a read waits until its node has applied what was acknowledged before"),
        risky="a read on another node than the last write may be older than what was acknowledged: let a balancer send "
        "everything to one node, or set 1 (docs/high-availability.md)",
    )


def _replication(found: Mapping[str, str]) -> Iterator[Fact]:
    if found.get("slave_running") == "ON":
        yield Fact("kind", "a replica", "what it has is late, and its primary does not know what is written here", True)
        return
    for name in ("master", "source"):
        if found.get(f"rpl_semi_sync_{name}_enabled", "OFF") in _OFF:
            continue
        clients, milliseconds = (
            found.get(f"rpl_semi_sync_{name}_clients", "0"),
            found.get(f"rpl_semi_sync_{name}_timeout", "?"),
        )
        if found.get(f"rpl_semi_sync_{name}_status", "OFF") in _OFF or clients == "0":
            yield Fact(
                "kind",
                "a primary, semi-synchronous, without a replica that answers",
                "a commit waits for nobody now, so a failover may lose it",
                risk=True,
            )
        else:
            yield Fact(
                "kind",
                f"a primary, semi-synchronous, replicas: {clients}",
                f"a commit is acknowledged once a replica has it, or when none has answered for {milliseconds} ms",
            )
        return
    replicas = found.get("slaves_connected", "0")
    if replicas == "0":
        yield Fact("kind", "a single server", "what it acknowledges is as safe as its disk")
    else:
        yield Fact(
            "kind",
            f"a primary, asynchronous, replicas: {replicas}",
            "a failover to a replica may lose what was acknowledged last: use semi-synchronous replication",
            risk=True,
        )


def _read_only(found: Mapping[str, str]) -> Iterator[Fact]:
    for name in ("read_only", "super_read_only"):
        yield from setting(
            found, name, {"OFF": "the server takes writes"}, risky="nothing can be published: name the primary"
        )


def _durability(found: Mapping[str, str]) -> Iterator[Fact]:
    yield from setting(
        found,
        "innodb_flush_log_at_trx_commit",
        dict.fromkeys("13", "a commit is on the disk before it is acknowledged"),
        risky="up to a second of acknowledged commits is lost if the machine fails (of a cluster: if its nodes fail "
        "shortly after one another): set 1",
    )
    yield from setting(
        found,
        "innodb_doublewrite",
        dict.fromkeys(
            ("ON", "1", "fast", "DETECT_AND_RECOVER"), "a page that was half written when the machine failed is mended"
        ),
        risky="a page that was half written when the machine failed is lost: set ON",
    )
    if found.get("log_bin") == "ON":
        yield from setting(
            found,
            "sync_binlog",
            {"1": "the binary log has a commit before it is acknowledged"},
            risky="replicas may lack, or have more than, what this server has after its machine failed: set 1",
        )
        yield from setting(
            found,
            "binlog_format",
            {"ROW": "the service can write", "MIXED": "the service can write"},
            risky="the service cannot write: set ROW",
        )


def _sessions(found: Mapping[str, str]) -> Iterator[Fact]:
    isolation = found.get("transaction_isolation", found.get("tx_isolation", "?"))
    yield Fact("transaction_isolation", isolation, "of no effect: the sessions of the service use READ-COMMITTED")
    yield from setting(
        found,
        "auto_increment_increment",
        {"1": "the changefeed of all collections shows a publish at once"},
        risky="",
        safe="the changefeed of all collections shows a publish some 20 seconds late (docs/protocol.md, Changefeed)",
    )
