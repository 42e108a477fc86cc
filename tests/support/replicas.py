"""A second database server that follows a first one, and an address that leads to one of them.

Rules of this module: those of :mod:`tests.support.databases`. A follower has the data and the users of its primary. It
takes no writes until it is promoted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Self

import MySQLdb
from MySQLdb.cursors import DictCursor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.protocols.portforward import ProxyFactory

from tests.support.databases import DatabaseServer, MariaDB, PostgreSQL, User, _program

SYNC_SECONDS = 30.0

BINARY_LOG = (
    "--log-bin=log",
    "--binlog-format=ROW",
    "--log-slave-updates",
    "--rpl-semi-sync-master-enabled=ON",
)
"""Options of a MariaDB that starts as a primary with semi-synchronous replication, and may become a follower."""


class MariaDBPrimary(MariaDB):
    """A MariaDB that others may follow."""

    number = 1

    def _command(self) -> Sequence[str]:
        return [*super()._command(), *BINARY_LOG, f"--server-id={self.number}"]

    def follow(self, primary: MariaDB) -> None:
        """Take no more writes but those of ``primary``."""
        self.execute("", "SET GLOBAL read_only = 1")
        self._acknowledge(primary=False)
        self.execute(
            "",
            "CHANGE MASTER TO master_host = '127.0.0.1', master_port = %s, master_user = %s, master_password = %s, "
            "master_connect_retry = 1, master_use_gtid = slave_pos",
            primary.port,
            *primary.admin,
        )
        self.execute("", "START SLAVE")

    def catch_up(self, primary: MariaDB) -> None:
        """Wait until everything is here that the primary has committed."""
        ((position,),) = primary.execute("", "SELECT @@gtid_binlog_pos")
        ((missed,),) = self.execute("", "SELECT MASTER_GTID_WAIT(%s, %s)", position, SYNC_SECONDS)
        assert missed == 0, f"{position} does not come: {self._status()}\n{primary.execute('', 'SHOW PROCESSLIST')}"

    @contextmanager
    def lagging(self) -> Iterator[None]:
        """Apply nothing within the block; what the primary commits still comes here and is acknowledged.

        ``STOP SLAVE`` would also end the connection to the primary. If its thread on the primary has only just started,
        MariaDB 10.11 can leave that thread half ended, and the primary then sends nothing to this server ever again.
        """
        self.execute("", "STOP SLAVE SQL_THREAD")
        try:
            yield
        finally:
            self.execute("", "START SLAVE SQL_THREAD")

    def take_over(self) -> None:
        """Apply all that came from a primary that has died, then take writes."""
        self.execute("", "STOP SLAVE IO_THREAD")
        received = self._status()["Gtid_IO_Pos"]
        ((missed,),) = self.execute("", "SELECT MASTER_GTID_WAIT(%s, %s)", received, SYNC_SECONDS)
        assert missed == 0, f"{received} is not applied"
        self.promote()

    def promote(self) -> None:
        """Take writes."""
        self.execute("", "STOP SLAVE")
        self.execute("", "RESET SLAVE ALL")
        self._acknowledge(primary=True)
        self.execute("", "SET GLOBAL read_only = 0")

    def _acknowledge(self, *, primary: bool) -> None:
        """Wait for the acknowledgements of a follower, or send them.

        A follower that waits for them as well applies its first transaction after ten seconds: nothing follows it.
        """
        self.execute("", "SET GLOBAL rpl_semi_sync_master_enabled = %s", int(primary))
        self.execute("", "SET GLOBAL rpl_semi_sync_slave_enabled = %s", int(not primary))

    def _status(self) -> dict[str, Any]:
        with closing(self._connect_as_root("")) as connection, closing(connection.cursor(DictCursor)) as cursor:
            cursor.execute("SHOW SLAVE STATUS")
            status: dict[str, Any] = cursor.fetchone()
            return status


class MariaDBReplica(MariaDBPrimary):
    """A follower of a :class:`MariaDBPrimary`, from its very beginning."""

    number = 2

    def __init__(self, primary: MariaDBPrimary) -> None:
        super().__init__()
        self.primary = primary
        self._names = primary._names  # those of both come to both

    def _create_admin(self) -> None:
        self.admin = self.primary.admin  # comes with the data
        self.follow(self.primary)
        self.catch_up(self.primary)


class PostgreSQLStandby(PostgreSQL):
    """A streaming standby of a PostgreSQL."""

    def __init__(self, primary: PostgreSQL) -> None:
        super().__init__()
        self.primary = primary

    def _install(self) -> None:
        if self._account():
            self._give_away()
        self._run(
            _program("pg_basebackup"),
            *("-h", str(self.primary.directory), "-p", str(self.primary.port), "-U", "root"),
            *("-D", f"{self.directory}/data", "-R", "--checkpoint=fast", "--no-sync"),
        )

    def _create_admin(self) -> None:
        self.admin = self.primary.admin

    def catch_up(self, primary: PostgreSQL) -> None:
        """Wait until everything is here that the primary has committed."""
        ((position,),) = primary.execute("", "SELECT pg_current_wal_lsn()::text")
        deadline = time.monotonic() + SYNC_SECONDS
        while self.execute("", "SELECT pg_last_wal_replay_lsn() < %s::pg_lsn", position) != [(False,)]:
            assert time.monotonic() < deadline, f"{position} does not come:\n{self.log()}"
            time.sleep(0.01)

    def promote(self) -> None:
        """Take writes."""
        self.execute("", "SELECT pg_promote()")


class Address(ProxyFactory):  # type: ignore[misc]  # Twisted has no types for it
    """An address that leads to one server or another, as that of a load balancer does; open connections stay."""

    noisy = False

    def __init__(self, server: DatabaseServer) -> None:
        super().__init__("127.0.0.1", server.port)
        self.made = 0

    def listen(self, reactor: Any) -> Self:
        """Listen on a port of its own."""
        self._port = reactor.listenTCP(0, self, interface="127.0.0.1")
        return self

    def buildProtocol(self, addr: Any) -> Any:
        self.made += 1
        return super().buildProtocol(addr)

    def lead_to(self, server: DatabaseServer) -> None:
        """Lead new connections to ``server``."""
        self.port = server.port

    def url(self, server: DatabaseServer, database: str, user: User) -> str:
        """``storage.db_url`` of a database of ``server``, by this address."""
        return server.db_url(database, user).replace(f":{server.port}", f":{self._port.getHost().port}")

    def close(self) -> Deferred[None]:
        """Listen no more."""
        return maybeDeferred(self._port.stopListening)


def hold_connections(server: MariaDB, database: str, user: User, count: int) -> list[Any]:
    """Open connections of a user, which the caller closes."""
    held = [
        MySQLdb.connect(host="127.0.0.1", port=server.port, user=user.name, password=user.password, database=database)
        for _ in range(count)
    ]
    for each in held:
        with closing(each.cursor()) as cursor:
            cursor.execute("SELECT 1")
    return held
