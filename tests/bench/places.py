"""Our signer with its keys in every custody: new keys, signatures, a start on many keys, and growth.

Rules of this module: one MariaDB, which waits for the disk at each commit, has a database for the signer of each
custody. Signers are measured in alternation, and the order changes every round. Of the many stored keys, those that
sign are real; the others are copies of a row under ids of their own, made inside the database, and nobody uses them.
Vault is a server of the tests, KMS is moto, the token is SoftHSM.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc
import MySQLdb

from notary.admin.private_keys import PrivateKeys
from notary.config import load_signer
from notary.envelope.envelopes import Envelopes
from notary.proto import signer_pb2
from notary.storage import StoredKey
from notary.tuf import private
from tests.bench.figures import BenchError, order_of
from tests.bench.grpcload import FRAMES, Target, load
from tests.bench.processes import Side, texts
from tests.bench.report import number
from tests.support.databases import SERVER_RIGHTS, MariaDB, User
from tests.support.elsewhere import second_reactor
from tests.support.kms import Kms
from tests.support.peers import READY_SECONDS, Daemon, clean_environment
from tests.support.signer import OUR_SIGNER, Client, Pair, signer_config, signer_daemon
from tests.support.softhsm import Tokens
from tests.support.vault import Vault

PASSPHRASE, INSIDE, FILE, TRANSIT = "passphrase", "`pkcs11:`, `keep=inside`", "`file:`", "`vault:`"
"""The names of custodies that are treated in a way of their own."""

SIGN_MOST = 1.05
"""How many times the CPU of a signature under a passphrase one in another custody may take."""

MOVE_SECONDS = 600
"""How long all keys may take to move to another version of the key that encrypts their data keys."""

START_SECONDS = 30
"""How long a start may take, to the first signature."""

_SECRETS = {
    "NOTARY_SIGNER_DEFAULT_ALIAS": "bench",
    "NOTARY_SIGNER_BENCH": "of no worth at all",
    "NOTARY_SIGNER_LIMITS_PENDING_KEYS_PER_HOUR": "0",
}
_ADMIN = str(Path(sys.executable).with_name("notary-admin"))
_IN_TURN = 50
_MOST_A_SECOND = 3000
_DATA_KEYS = 10
_COLUMNS = (
    "created_at, updated_at, last_used, key_id, algorithm, public, private, gun, role, passphrase_alias, "
    "encryption_alg, keywrap_alg"
)
_MESSAGE = json.dumps({"signed": {"_type": "Timestamp", "filling": "x" * 460}}).encode()


@dataclass(frozen=True)
class Sizes:
    """How many keys are stored, how many of them sign, how many are made in a token, and how long all that takes.

    ``growth`` are the numbers of keys at which one custody is started.
    """

    keys: int
    signing: int
    inside: int
    growth: Sequence[int]
    rounds: int
    seconds: float


FULL = Sizes(100_000, 4_000, 200, (10_000, 100_000, 1_000_000), rounds=5, seconds=1.5)
QUICK = Sizes(2_000, 200, 20, (1_000, 5_000), rounds=1, seconds=1)

TITLE = "Custody by custody, on MariaDB"


def text(sizes: Sizes) -> str:
    """What to know about the tables."""
    return (
        f"Our signer, with {sizes.keys:,} stored ecdsa keys under {_DATA_KEYS} data keys ([Custody of keys](keys.md)). "
        "First signature: from\nthe start of the process to the answer. Memory: all processes of the signer, each page "
        f"that several share counted\nonce (PSS), after {sizes.signing:,} of the keys have signed. Signatures: "
        f"{_IN_TURN} keys in turn, 16 in flight. New keys: 8 in\nflight; the database waits for the disk at each "
        "commit. Vault is a server of the tests, KMS is moto, the token is\n"
        f"SoftHSM, which has {sizes.inside:,} keys inside. Goals: a signature takes at most {SIGN_MOST} times the CPU "
        "of one under a\npassphrase, by the lowest round of each, since what disturbs a round only adds; the first one "
        f"is there within {START_SECONDS} s."
    )


@dataclass
class _Place:
    """A custody: its name, its configuration, what its signer is told by the environment, and its figures."""

    name: str
    keys: Mapping[str, str]
    environment: Mapping[str, str]
    database: str = ""
    user: User | None = None
    ids: Sequence[str] = ()
    daemon: Daemon | None = None
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, found: Mapping[str, float]) -> None:
        for name, value in found.items():
            self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        return statistics.median(self.figures[name])


class Places:
    """A MariaDB, what the custodies need, and a signer for each."""

    def __init__(self, folder: Path, sizes: Sizes, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._sizes = sizes
        self._say = say
        self._pair = Pair.mint(folder / "certificates")
        self._numbers = itertools.count()
        self._stack = contextlib.ExitStack()
        self._places: list[_Place] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._mariadb = stack.enter_context(MariaDB(options=["--innodb-buffer-pool-size=512M"]))
            self._reactor = stack.enter_context(second_reactor())
            self._vault = stack.enter_context(Vault(self._folder / "vault"))
            kms = stack.enter_context(Kms(self._folder / "kms"))
            tokens = Tokens.make(self._folder / "hsm")
            os.environ |= kms.environment | tokens.environment  # keys are made in this process too
            (self._folder / "kek").write_bytes(bytes(range(32)))
            self._places = [
                _Place(PASSPHRASE, {}, {}),
                _Place(FILE, {"wrap": f"file:{self._folder}/kek"}, {}),
                _Place("`pkcs11:`", {"wrap": tokens.uri()}, tokens.environment),
                _Place(TRANSIT, {"wrap": self._vault.uri()}, {}),
                _Place("`awskms:`", {"wrap": kms.uri()}, kms.environment),
                _Place(INSIDE, {"wrap": tokens.inside()}, tokens.environment),
            ]
            for place in self._places:
                place.database = self._mariadb.database()
                self._create_tables(place)
                place.user = self._mariadb.user(place.database, SERVER_RIGHTS)
                stack.callback(lambda place=place: place.daemon and place.daemon.kill())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self) -> str:
        """Measure everything; the tables."""
        for place in self._places:
            self._say(f"{place.name}: filling, and start on {self._sizes.keys:,} keys")
            if place.name == INSIDE:
                self._make_inside(place)
            else:
                self._fill(place, self._sizes.signing, self._sizes.keys)
            self._start(place)
        names = [place.name for place in self._places]
        for round_number in range(self._sizes.rounds):
            self._say(f"signatures and new keys: round {round_number + 1} of {self._sizes.rounds}")
            for work in (self._sign, self._create):
                for name in order_of(round_number, names):
                    place = self._places[names.index(name)]
                    place.add(work(place))
        moved = self._rotate(next(place for place in self._places if place.name == TRANSIT))
        return f"{self._table()}\n{moved}\n{self._growth()}"

    # -- what runs ----------------------------------------------------------------------------------------------------

    def _storage(self, place: _Place) -> dict[str, object]:
        db_url = self._mariadb.db_url(place.database, place.user)
        keys = {"keys": dict(place.keys)} if place.keys else {}
        return {"backend": "mysql", "db_url": db_url, "default_alias": "bench", **keys}

    def _create_tables(self, place: _Place) -> None:
        one = self._signer(place, "tables", "-bootstrap")
        one.spawn()
        if one.wait(READY_SECONDS) != 0:
            raise BenchError(f"no tables could be made:\n{one.output()}")

    def _signer(self, place: _Place, name: str, *flags: str) -> Daemon:
        environment = _SECRETS | place.environment
        return signer_daemon(
            name, (*OUR_SIGNER, *flags), self._pair, self._folder, self._storage(place), environment=environment
        )

    def _start(self, place: _Place) -> None:
        place.daemon = daemon = self._signer(place, f"signer-{self._places.index(place)}")
        place.add({"start": self._first_signature(daemon, place.ids[0])})
        place.add({"idle": _memory(daemon.pid)})
        with Client(self._pair, daemon.port) as client, ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda key_id: client.sign(key_id, _MESSAGE), place.ids))
        place.add({"memory": _memory(daemon.pid)})

    def _first_signature(self, daemon: Daemon, key_id: str) -> float:
        """Start a signer; the seconds until it has signed."""
        begun = time.perf_counter()
        daemon.spawn()
        while time.perf_counter() - begun < 2 * START_SECONDS and daemon.alive:
            with contextlib.suppress(grpc.RpcError), Client(self._pair, daemon.port) as client:
                client.sign(key_id, _MESSAGE)
                return time.perf_counter() - begun
            time.sleep(0.01)
        raise BenchError(f"{daemon.name} does not sign:\n{daemon.output()}")

    # -- filling ------------------------------------------------------------------------------------------------------

    def _fill(self, place: _Place, signing: int, keys: int) -> None:
        """Store real keys, half of them as the oldest and half as the newest, and copies between them."""
        config = json.dumps(signer_config(self._pair, 0, self._storage(place)))
        custody = PrivateKeys(load_signer(config, _SECRETS, self._folder), self._reactor)
        seal = custody.seal
        if custody.envelopes is not None:
            seal = Envelopes([custody.envelopes.first], -(-signing // _DATA_KEYS)).seal
        try:
            rows = [
                seal(private.generate("ecdsa"), f"example.com/real/{number}", "timestamp") for number in range(signing)
            ]
        finally:
            custody.close()
        place.ids = [row.key_id for row in rows]
        self._insert(place.database, rows[: signing // 2])
        self._copy(place.database, keys - signing)
        self._insert(place.database, rows[signing // 2 :])

    def _insert(self, database: str, rows: Sequence[StoredKey]) -> None:
        marks = f"(NOW(), NOW(), NOW(), {', '.join(['%s'] * 9)})"
        with contextlib.closing(
            MySQLdb.connect(unix_socket=str(self._mariadb.socket), user="root", database=database, autocommit=True)
        ) as connection:
            connection.cursor().executemany(
                f"INSERT INTO private_keys ({_COLUMNS}) VALUES {marks}",
                [
                    (
                        row.key_id,
                        row.algorithm,
                        row.public,
                        row.private,
                        row.gun,
                        row.role,
                        row.passphrase_alias,
                        row.encryption_alg,
                        row.keywrap_alg,
                    )
                    for row in rows
                ],
            )

    def _copy(self, database: str, count: int) -> None:
        if count <= 0:
            return
        begin = next(self._numbers)
        copied = _COLUMNS.replace("key_id", "SHA2(CONCAT(%s, seq), 256)").replace("gun", "CONCAT('copy/', %s, seq)")
        self._mariadb.execute(
            database,
            f"INSERT INTO private_keys ({_COLUMNS}) SELECT {copied} FROM seq_1_to_{count}, "
            "(SELECT * FROM private_keys ORDER BY id LIMIT 1) AS one",
            f"{begin} ",
            f"{begin} ",
        )

    def _make_inside(self, place: _Place) -> None:
        daemon = self._signer(place, "inside")
        daemon.spawn()
        try:
            begun = time.perf_counter()
            while not place.ids:
                if time.perf_counter() - begun > READY_SECONDS:
                    raise BenchError(f"{daemon.name} makes no key:\n{daemon.output()}")
                with contextlib.suppress(grpc.RpcError), Client(self._pair, daemon.port) as client:
                    place.ids = [self._made(client, 0)]
            with Client(self._pair, daemon.port) as client, ThreadPoolExecutor(8) as threads:
                made = threads.map(lambda each: self._made(client, each), range(1, self._sizes.inside))
                place.ids = [*place.ids, *made]
        finally:
            daemon.kill()

    @staticmethod
    def _made(client: Client, each: int) -> str:
        key_id: str = client.create(f"example.com/real/{each}", "timestamp", "ecdsa").keyInfo.keyID.ID
        client.sign(key_id, _MESSAGE)
        return key_id

    # -- what is measured ---------------------------------------------------------------------------------------------

    def _target(self, place: _Place, path: str, requests: Sequence[bytes]) -> Target:
        assert place.daemon is not None
        certificate, key = self._pair.client.write(self._pair.folder, "load")
        ca = self._pair.authority.write(self._pair.folder, "root")
        return Target(place.daemon.port, ca, certificate, key, path, requests)

    def _measured(self, place: _Place, work: str, target: Target, in_flight: int) -> dict[str, float]:
        assert place.daemon is not None
        side = Side(place.name, {"signer": place.daemon})
        return side.measure(work, lambda: load(target, FRAMES, in_flight, self._sizes.seconds))

    def _sign(self, place: _Place) -> dict[str, float]:
        requests = [
            signer_pb2.SignatureRequest(keyID=signer_pb2.KeyID(ID=key_id), content=_MESSAGE).SerializeToString()
            for key_id in place.ids[:_IN_TURN]
        ]
        return self._measured(place, "sign", self._target(place, "/proto.Signer/Sign", requests), 16)

    def _create(self, place: _Place) -> dict[str, float]:
        requests = [
            signer_pb2.CreateKeyRequest(
                algorithm="ecdsa", gun=f"example.com/new/{next(self._numbers)}", role="timestamp"
            ).SerializeToString()
            for _ in range(int(_MOST_A_SECOND * self._sizes.seconds))
        ]
        return self._measured(place, "create", self._target(place, "/proto.KeyManagement/CreateKey", requests), 8)

    def _rotate(self, place: _Place) -> str:
        """Give the key in Transit a new version, and move all keys to it while their signer signs."""
        assert place.daemon is not None
        self._say(f"{place.name}: a new version")
        self._vault.rotate()
        config = self._folder / f"{place.daemon.name}.json"
        begun = time.perf_counter()
        with subprocess.Popen(
            [_ADMIN, "keys", "reencrypt", "--to-kek", "--config", config, "--json"],
            env=clean_environment(_SECRETS),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            rates = []
            while process.poll() is None:
                rates.append(self._sign(place)["sign rate"])
            seconds = time.perf_counter() - begun
            output, errors = process.communicate()
        if process.returncode:
            raise BenchError(f"keys reencrypt failed:\n{errors.decode()[-2000:]}")
        count = json.loads(output)["reencrypted"]
        met = "met" if seconds < MOVE_SECONDS else "**not met**"
        return (
            f"After a rotation of the key in Transit, `notary-admin keys reencrypt --to-kek` moved {count:,} keys in "
            f"{number(seconds)} s (goal: under {MOVE_SECONDS} s, {met}), while the signer gave "
            f"{number(statistics.median(rates))} signatures a second.\n"
        )

    # -- tables -------------------------------------------------------------------------------------------------------

    def _table(self) -> str:
        head = ("custody", "new keys/s", "CPU, ms", "signatures/s", "CPU, ms", "÷ passphrase")
        head += ("first signature, s", "memory, MB", "after signatures, MB", "met")
        lines = [head, ["---", *["---:"] * (len(head) - 2), "---"]]
        usual = min(self._places[0].figures["sign signer cpu"])
        for place in self._places:
            ratio, start = min(place.figures["sign signer cpu"]) / usual, place.median("start")
            met = (ratio <= SIGN_MOST or place.name == INSIDE) and start < START_SECONDS
            names = ("create rate", "create signer cpu", "sign rate", "sign signer cpu")
            cells = [number(place.median(name)) for name in names]
            cells += [f"{ratio:.2f}", *[number(place.median(name)) for name in ("start", "idle", "memory")]]
            lines.append((place.name, *cells, "yes" if met else "**no**"))
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def _growth(self) -> str:
        """Start one custody on more and more keys."""
        place = next(place for place in self._places if place.name == FILE)
        assert place.daemon is not None
        place.daemon.kill()
        lines = [("keys", "first signature, s", "memory, MB"), ("---:",) * 3]
        self._mariadb.empty(place.database, ["private_keys"])
        self._fill(place, 2 * _DATA_KEYS, 2 * _DATA_KEYS)
        have = 2 * _DATA_KEYS
        for size in self._sizes.growth:
            self._say(f"start on {size:,} keys")
            self._copy(place.database, size - have)
            self._fill(place, 2 * _DATA_KEYS, 0)  # the newest keys are real: a signer tries them when it starts
            have = size + 2 * _DATA_KEYS
            daemon = self._signer(place, f"growth-{size}")
            try:
                seconds = self._first_signature(daemon, place.ids[0])
                lines.append((f"{size:,}", number(seconds), number(_memory(daemon.pid))))
            finally:
                daemon.kill()
        rows = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        return f"A start with {FILE} as the number of keys grows:\n\n{rows}"


def _memory(pid: int) -> float:
    """Megabytes of a process and its children, where shared pages count once."""
    kilobytes = 0
    for status in texts(pid, "smaps_rollup"):
        kilobytes += next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Pss:"))
    return kilobytes * 1024 / 1e6
