"""Keys made by signers of either side, with ours under a key-encrypting key in a file.

Rules of this module: those of :mod:`tests.bench.pairs`; the database waits for the disk at each commit here too.
Clients speak to the signers alone, without a server between.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from notary.proto import signer_pb2
from tests.bench.figures import GO, SIDES, BenchError, Row, at_least
from tests.bench.grpcload import FRAMES, Target, load
from tests.bench.processes import DatabaseProcess, Side, start
from tests.bench.suites import Pace, Work, sign_target
from tests.storage import historic
from tests.support.databases import SERVER_RIGHTS, MariaDB
from tests.support.peers import clean_environment
from tests.support.signer import GO_SIGNER, OUR_SIGNER, Pair, signer_config, signer_daemon

_PASSPHRASES = {"NOTARY_SIGNER_DEFAULT_ALIAS": "bench", "NOTARY_SIGNER_BENCH": "of no worth at all"}
_WITHOUT_LIMIT = {"NOTARY_SIGNER_LIMITS_PENDING_KEYS_PER_HOUR": "0"}
_IN_FLIGHT = 8
_MOST_A_SECOND = 3000
"""More keys than any signer makes: each request names another collection."""


def _rows() -> tuple[Row, ...]:
    rows = []
    for number in (1, _IN_FLIGHT):
        name, work = f"CreateKey, {number} in flight", f"custody-create-{number}"
        rows += [
            Row(f"{work} rate", name, "keys/s", at_least(3) if number == _IN_FLIGHT else None),
            Row(f"{work} p50", f"{name}, p50", "ms"),
            Row(f"{work} p99", f"{name}, p99", "ms"),
            Row(f"{work} signer cpu", f"{name}, CPU of the signer", "ms/key"),
            Row(f"{work} database cpu", f"{name}, CPU of the database", "ms/key"),
        ]
    rows.append(Row("custody-sign-32 rate", "Sign, 32 in flight", "signs/s", at_least(1.5)))
    return tuple(rows)


class Custodies:
    """A MariaDB, and on it a signer of each side."""

    title = "Keys under a key-encrypting key, on MariaDB"
    text = (
        "gRPC over mutual TLS, one connection, ready-made frames. Go's signer wraps each new ecdsa key under a\n"
        "passphrase; ours wraps it under a data key, and data keys under a key-encrypting key in a file\n"
        "([Custody of keys](keys.md)). The database waits for the disk at each commit."
    )
    rows = _rows()

    def __init__(self, folder: Path, pace: Pace) -> None:
        self.pace = pace
        self.sides: dict[str, Side] = {}
        self._folder = folder
        self._numbers = itertools.count()
        self._pair = Pair.mint(folder / "certificates")
        self._targets: dict[str, Target] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        (self._folder / "kek").write_bytes(bytes(range(32)))
        with contextlib.ExitStack() as stack:
            mariadb = stack.enter_context(MariaDB())
            for name in SIDES:
                database = mariadb.database()
                self._create_tables(name, mariadb, database)
                user = mariadb.user(database, SERVER_RIGHTS)
                command = GO_SIGNER if name == GO else OUR_SIGNER
                environment = _PASSPHRASES if name == GO else _PASSPHRASES | _WITHOUT_LIMIT
                signer = signer_daemon(
                    f"{name}-signer",
                    command,
                    self._pair,
                    self._folder,
                    self._storage(name, mariadb.db_url(database, user)),
                    environment=environment,
                )
                stack.callback(signer.kill)
                start(signer)
                self.sides[name] = Side(name, {"signer": signer, "database": DatabaseProcess(mariadb)})
                self._targets[name] = sign_target(self._pair, signer.port)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _storage(self, side: str, db_url: str) -> dict[str, object]:
        storage: dict[str, object] = {"backend": "mysql", "db_url": db_url, "default_alias": "bench"}
        return storage if side == GO else {**storage, "keys": {"wrap": f"file:{self._folder}/kek"}}

    def _create_tables(self, side: str, mariadb: MariaDB, database: str) -> None:
        """As the migrations of each side do."""
        if side == GO:
            for statement in (
                *itertools.chain(*historic.MYSQL_SIGNER.values()),
                *historic.recorded(max(historic.MYSQL_SIGNER)),
            ):
                mariadb.execute(database, statement)
            return
        config = self._folder / "tables.json"
        config.write_text(json.dumps(signer_config(self._pair, 0, self._storage(side, mariadb.db_url(database)))))
        done = subprocess.run(
            [*OUR_SIGNER, "-bootstrap", f"-config={config}"],
            env=clean_environment(_PASSPHRASES),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"no tables could be made:\n{done.stderr.decode()}")

    # -- what is measured ---------------------------------------------------------------------------------------------

    def _requests(self) -> Sequence[bytes]:
        numbers = itertools.islice(self._numbers, int(_MOST_A_SECOND * self.pace.seconds))
        return [
            signer_pb2.CreateKeyRequest(
                algorithm="ecdsa", gun=f"example.com/new/{number}", role="timestamp"
            ).SerializeToString()
            for number in numbers
        ]

    def create(self, side: Side, in_flight: int) -> dict[str, float]:
        there = self._targets[side.name]
        target = Target(
            there.port, there.ca, there.certificate, there.key, "/proto.KeyManagement/CreateKey", self._requests()
        )
        work = f"custody-create-{in_flight}"
        return side.measure(work, lambda: load(target, FRAMES, in_flight, self.pace.seconds))

    def sign(self, side: Side) -> dict[str, float]:
        target = self._targets[side.name]
        return side.measure("custody-sign-32", lambda: load(target, FRAMES, 32, self.pace.seconds))

    def works(self) -> Mapping[str, Work]:
        return {
            **{f"CreateKey, {n} in flight": lambda side, n=n: self.create(side, n) for n in (1, _IN_FLIGHT)},
            "Sign, 32 in flight": self.sign,
        }
