"""A private Galera cluster for tests: nodes of MariaDB on loopback, each a :class:`tests.support.databases.MariaDB`.

Rules of this module: those of :mod:`tests.support.databases`. The first node makes the cluster; the others join it, and
get their data from it. A node that is started again joins what is left.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.support.databases import MariaDB
from tests.support.peers import free_port

PROVIDERS = ("/usr/lib/galera/libgalera_smm.so", "/usr/lib/libgalera_smm.so", "/usr/lib64/galera-4/libgalera_smm.so")


class GaleraNode(MariaDB):
    """One node; ``others`` are the nodes of its cluster that are there before it."""

    def __init__(self, number: int, others: Sequence[GaleraNode], *, options: Sequence[str] = ()) -> None:
        super().__init__(options=options)
        self.number = number
        self.address = f"127.0.0.1:{free_port()}"
        self._incremental, self._whole = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.others = list(others)

    @property
    def runs_as(self) -> str:
        """The user of the server's process: not root, since rsync, which makes whole copies, gives up root's rights."""
        return "mysql" if os.geteuid() == 0 else super().runs_as

    def _account(self) -> Sequence[str]:
        return ["--reuid=mysql", "--regid=mysql", "--clear-groups"] if os.geteuid() == 0 else []

    def _install(self) -> None:
        if self._account():
            mysql = pwd.getpwnam("mysql")
            os.chown(self.directory, mysql.pw_uid, mysql.pw_gid)
        super()._install()

    def _command(self) -> Sequence[str]:
        provider = next((path for path in PROVIDERS if Path(path).exists()), None)
        assert provider, "Galera is not installed: run etc/require-packages.sh cluster"
        running = [node.address for node in self.others if node._process is not None]
        provider_options = [
            f"base_port={self.address.rpartition(':')[2]}",
            f"gmcast.listen_addr=tcp://{self.address}",
            f"ist.recv_addr={self._incremental}",
            "gcache.size=16M",
        ]
        return [
            *super()._command(),
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
            "--wsrep-on=ON",
            f"--wsrep-provider={provider}",
            "--wsrep-cluster-name=notary",
            f"--wsrep-node-name=node{self.number}",
            f"--wsrep-node-address={self.address}",
            "--wsrep-sst-method=rsync",
            f"--wsrep-sst-receive-address={self._whole}",
            f"--wsrep-provider-options={';'.join(provider_options)}",
            f"--wsrep-cluster-address=gcomm://{','.join(running)}",
        ]

    def _create_admin(self) -> None:
        if self.others:
            self.admin = self.others[0].admin  # it came with the data
        else:
            super()._create_admin()

    def is_synced(self) -> bool:
        """Whether the node has everything, and takes part."""
        return self.status("wsrep_local_state_comment") == "Synced"

    def status(self, variable: str) -> str:
        """A status variable of the node."""
        ((_, value),) = self.execute("", "SHOW STATUS LIKE %s", variable)
        return str(value)


class Galera:
    """A cluster of ``size`` nodes. A context manager: started when it is entered, removed when it is left."""

    def __init__(self, size: int, *, options: Sequence[str] = ()) -> None:
        self.nodes: list[GaleraNode] = []
        for number in range(1, size + 1):
            self.nodes.append(GaleraNode(number, self.nodes, options=options))
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            self._stack = stack.pop_all()
        for node in self.nodes:
            node.others = [other for other in self.nodes if other is not node]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
