"""Server and signer of either side, both on one MariaDB: the suite that is nearest to what people run.

Rules of this module: each side has databases of its own on the one server, which waits for the disk at every commit, as
MariaDB does by default. Go's tables are as its migrations make them, ours as ours do. Collections that are read were
made by the stock client, those that are published by :mod:`tests.support.author`, whose crypto is done before the clock
starts. Every answer must be a success.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from tests.bench.figures import GO, SIDES, WORKERS, BenchError, Row, at_least, at_most, under
from tests.bench.grpcload import FRAMES, Target, load
from tests.bench.httpload import Crowd, Request, get, lua_of, wrk
from tests.bench.processes import DatabaseProcess, Side, memory, start
from tests.bench.suites import FIXTURES, KEYS, ROOT_CA, Pace, Work, sign_target
from tests.storage import historic
from tests.support.author import Author, server_key_from
from tests.support.databases import SERVER_RIGHTS, MariaDB
from tests.support.goclient import Machine
from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, Daemon, daemon, remote_signer
from tests.support.sides import MULTIPART, form_of
from tests.support.signer import GO_SIGNER, OUR_SIGNER, Pair, signer_daemon

MANY = 50
"""How many collections are read in turn."""

LARGE = 100
"""How many targets the large collection has; its targets file has some 20 KB."""

CONNECTIONS, DEFAULT_CONNECTIONS = 500, 151
"""How many the database takes: for the measurements, and by default."""

_PATIENCE_SECONDS = 20.0
_PASSPHRASES = {"NOTARY_SIGNER_DEFAULT_ALIAS": "bench", "NOTARY_SIGNER_BENCH": "of no worth"}
_IN_FLIGHT = 8

_CLIENTS = (32, 256)
_TAILS = {("one", 256), ("fifty", 256)}
_LONGER = 3
"""How many times as long as others the measurements are whose p99 has a goal: while wrk makes its connections, it keeps
what the first of them are answered waiting for up to 0.2 s, and that must be less than one answer in a hundred."""

_READS = (
    ("one", "GET current timestamp of one collection"),
    ("fifty", f"GET current timestamp of {MANY} collections in turn"),
    ("small", "GET by checksum, 0.5 KB"),
    ("large", "GET by checksum, 20 KB"),
)


def _rows() -> tuple[Row, ...]:
    goals = {
        ("one", 32): at_least(3),
        ("fifty", 32): at_least(3),
        ("small", 32): at_least(0.8),
        ("large", 32): at_least(0.9),
    }
    rows = []
    for key, label in _READS:
        for connections in _CLIENTS:
            name, work = f"{label}, {connections} connections", f"{key}-{connections}"
            p99 = at_most(0.25) if (key, connections) in _TAILS else None
            rows += [
                Row(f"{work} rate", name, "requests/s", goals.get((key, connections))),
                Row(f"{work} p99", f"{name}, p99", "ms", p99),
                Row(f"{work} server cpu", f"{name}, CPU of the server", "ms/request"),
                Row(f"{work} database cpu", f"{name}, CPU of the database", "ms/request"),
            ]
    rows += [
        Row(
            "crowded failures",
            f"256 connections, the database takes {DEFAULT_CONNECTIONS}: requests that failed",
            "%",
            under(0.001, "%"),
        ),
        Row("pair-handshake rate", "a new TLS connection per request", "requests/s", at_least(1.3)),
        Row("pair-handshake server cpu", "a new TLS connection per request, CPU of the server", "ms/request"),
    ]
    for work, label in (("key", "key creation"), ("first", "first publish"), ("second", "second publish")):
        one, eight = f"{label}, 1 in flight", f"{label}, {_IN_FLIGHT} in flight"
        rows += [
            Row(f"{work}-1 p50", f"{one}, p50", "ms", at_most(1) if work != "key" else None),
            Row(f"{work}-{_IN_FLIGHT} rate", eight, "requests/s", at_least(1.5)),
            Row(f"{work}-{_IN_FLIGHT} p99", f"{eight}, p99", "ms"),
            *(
                Row(f"{work}-{_IN_FLIGHT} {part} cpu", f"{eight}, CPU of the {part}", "ms/request")
                for part in ("server", "signer", "database")
            ),
        ]
    for number in (1, 16, 32):
        name, work = f"Sign, {number} in flight", f"pair-sign-{number}"
        rows += [
            Row(f"{work} rate", name, "signs/s", at_least(1.5) if number == 32 else None),
            Row(f"{work} p50", f"{name}, p50", "ms", at_most(1) if number == 1 else None),
            Row(f"{work} signer cpu", f"{name}, CPU of the signer", "ms/sign"),
            Row(f"{work} database cpu", f"{name}, CPU of the database", "ms/sign"),
        ]
    for part in ("server", "signer"):
        rows += [
            Row(f"pair-{part} start", f"{part}: start to ready", "ms", under(1000, "ms")),
            Row(f"pair-{part} idle", f"{part}: memory, idle", "MB"),
            Row(f"pair-{part} peak", f"{part}: memory, most, per process", "MB", under(90, "MB")),
        ]
    return tuple(rows)


@dataclass
class _Place:
    """What one side runs on and has learned: its databases, what it serves, and what to sign there."""

    metadata: str
    keys: str
    paths: dict[str, list[str]] = field(default_factory=dict)
    target: Target | None = None


class Pairs:
    """A MariaDB, and on it server and signer of each side, with mutual TLS between the two."""

    title = "Server and signer, on MariaDB"
    text = (
        "Reads by wrk. Keys are created and collections published by one process of Python over keep-alive\n"
        "connections: a first publish uploads root, targets and snapshot, a second one targets and snapshot; the\n"
        f"signer's ecdsa key signs the timestamp. Sign: from ready-made frames, {KEYS} keys in turn. The database\n"
        f"waits for the disk at each commit. It takes {CONNECTIONS} connections, since Go's server opens one for each\n"
        f"request at work; with MariaDB's default of {DEFAULT_CONNECTIONS}, 256 clients are too many for that."
    )
    rows = _rows()
    names: Sequence[str] = (*SIDES, WORKERS)
    fast = False  # for the database: waiting for the disk

    def __init__(self, folder: Path, pace: Pace) -> None:
        self.pace = pace
        self.sides: dict[str, Side] = {}
        self._names = [name for name in self.names if name != WORKERS or pace.workers]
        self._folder = folder
        self._numbers = itertools.count()
        self._places: dict[str, _Place] = {}
        self._pair = Pair.mint(folder / "certificates")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._mariadb = mariadb = stack.enter_context(
                MariaDB(fast=self.fast, options=[f"--max-connections={CONNECTIONS}"])
            )
            for name in self._names:
                self._places[name] = place = _Place(mariadb.database(), mariadb.database())
                self._create_tables(name, place)
                signer = self._signer(name, f"{name}-signer")
                server = self._server(name, f"{name}-server", signer.port)
                for each in (signer, server):
                    stack.callback(each.kill)
                    start(each)
                database = DatabaseProcess(mariadb)
                self.sides[name] = Side(name, {"server": server, "signer": signer, "database": database})
                self.fill(name, server)
                place.target = sign_target(self._pair, signer.port)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -- what runs ----------------------------------------------------------------------------------------------------

    def _storage(self, database: str, **more: str) -> dict[str, str]:
        """As the guide has it, but for the right to UPDATE that Go's signer needs."""
        user = self._mariadb.user(database, SERVER_RIGHTS)
        return {"backend": "mysql", "db_url": self._mariadb.db_url(database, user), **more}

    def _signer(self, side: str, name: str) -> Daemon:
        command = GO_SIGNER if side == GO else OUR_SIGNER
        storage = self._storage(self._places[side].keys, default_alias="bench")
        environment = {**_PASSPHRASES, **({"NOTARY_SIGNER_SERVER_WORKERS": "2"} if side == WORKERS else {})}
        return signer_daemon(name, command, self._pair, self._folder, storage, environment=environment)

    def _server(self, side: str, name: str, signer_port: int) -> Daemon:
        command = GO_SERVER if side == GO else OUR_SERVER
        environment = {"NOTARY_SERVER_SERVER_WORKERS": "2"} if side == WORKERS else {}
        tls = Certificates(ROOT_CA, FIXTURES / "notary-server.crt", FIXTURES / "notary-server.key")
        ca, client = (
            self._pair.authority.write(self._pair.folder, "root"),
            self._pair.client.write(self._pair.folder, "client"),
        )
        storage = self._storage(self._places[side].metadata)
        return daemon(
            name,
            command,
            self._folder,
            tls=tls,
            storage=storage,
            extra=remote_signer(signer_port, ca, client),
            environment=environment,
        )

    def _create_tables(self, side: str, place: _Place) -> None:
        """As the migrations of each side do."""
        if side == GO:
            for database, states in ((place.metadata, historic.MYSQL_SERVER), (place.keys, historic.MYSQL_SIGNER)):
                for statement in (*itertools.chain(*states.values()), *historic.recorded(max(states))):
                    self._mariadb.execute(database, statement)
            return
        for database, make in ((place.metadata, daemon), (place.keys, self._bare_signer)):
            storage = {"backend": "mysql", "db_url": self._mariadb.db_url(database), "default_alias": "bench"}
            command = {daemon: OUR_SERVER}.get(make, OUR_SIGNER)
            one = make("tables", (*command, "-bootstrap"), self._folder, storage=storage, environment=_PASSPHRASES)
            one.spawn()
            if one.wait(60) != 0:
                raise BenchError(f"no tables could be made:\n{one.output()}")

    def _bare_signer(self, name: str, command: Sequence[str], folder: Path, **more: Any) -> Daemon:
        return signer_daemon(name, command, self._pair, folder, more.pop("storage"), **more)

    def fill(self, side: str, server: Daemon) -> None:
        """Publish what is read, by the stock client."""
        owner = Machine(self._folder / f"{side}-client", server.url, ROOT_CA)
        content = owner.directory / "content"
        content.write_bytes(b"content")
        guns = [f"example.com/bench/{side}/{number}" for number in range(MANY)]
        for gun in guns:
            owner("init", gun)
            owner("add", gun, "v1", str(content), "-p")
        large = f"example.com/bench/{side}/large"
        owner("init", large)
        for number in range(LARGE):
            owner("add", large, f"v{number}", str(content))
        owner("publish", large)
        paths = [f"/v2/{gun}/_trust/tuf/" for gun in guns]
        place = self._places[side]
        for name, path in (("small", paths[0]), ("large", f"/v2/{large}/_trust/tuf/")):
            digest = hashlib.sha256(get(server.port, ROOT_CA, f"{path}targets.json")).hexdigest()
            place.paths[name] = [f"{path}targets.{digest}.json"]
        place.paths["fifty"] = [f"{path}timestamp.json" for path in paths]
        place.paths["one"] = place.paths["fifty"][:1]

    # -- what is measured ---------------------------------------------------------------------------------------------

    def works(self) -> Mapping[str, Work]:
        """See the port."""
        reads = {
            f"{label}, {connections} connections": partial(self._read, key, connections)
            for key, label in _READS
            for connections in _CLIENTS
        }
        return {
            "start": self._starting,
            **reads,
            "few connections to the database": self._crowded,
            "new TLS connections": self._handshakes,
            **{f"keys and publishes, {n} in flight": partial(self._publish, n) for n in (1, _IN_FLIGHT)},
            **{f"sign, {n} in flight": partial(self._sign, n) for n in (1, 16, 32)},
            "memory": lambda side: {f"pair-{name}": value for name, value in side.peak().items()},
        }

    def _url(self, side: Side) -> str:
        return f"https://localhost:{side.processes['server'].port}"

    def _read(self, key: str, connections: int, side: Side) -> dict[str, float]:
        paths = self._places[side.name].paths[key]
        script = None
        if len(paths) > 1:
            script = self._folder / f"{side.name}-{key}.lua"
            script.write_text(lua_of(paths))
        url = self._url(side) + paths[0]
        seconds = self.pace.seconds * (_LONGER if (key, connections) in _TAILS else 1)
        return side.measure(f"{key}-{connections}", lambda: wrk(url, connections, seconds, script=script))

    def _crowded(self, side: Side) -> dict[str, float]:
        """More clients than the database takes connections; of a server of its own, since Go's may die of it."""
        one = self._server(side.name, f"{side.name}-server-crowded", side.processes["signer"].port)
        try:
            start(one)
            self._allow_connections(DEFAULT_CONNECTIONS)
            url = one.url + self._places[side.name].paths["one"][0]
            return {"crowded failures": 100 * wrk(url, 256, self.pace.seconds, forgiving=True)["failed"]}
        finally:
            one.kill()
            self._allow_connections(CONNECTIONS)

    def _allow_connections(self, count: int) -> None:
        """To the database, which has to let us in for that: when those have gone that the load before has opened."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                self._mariadb.execute("", f"SET GLOBAL max_connections = {count}")
            except MariaDB.unreachable as error:
                if time.monotonic() > deadline:
                    raise BenchError(f"the database lets nobody in: {error}") from error
                time.sleep(0.05)
            else:
                return

    def _handshakes(self, side: Side) -> dict[str, float]:
        url = self._url(side) + self._places[side.name].paths["one"][0]
        return side.measure("pair-handshake", lambda: wrk(url, 32, self.pace.seconds, keep_alive=False))

    def _publish(self, in_flight: int, side: Side) -> dict[str, float]:
        """New collections: their keys, their first publish, their second."""
        count = self.pace.uploads if in_flight > 1 else self.pace.uploads // 4
        guns = [f"example.com/bench/{side.name}/new/{next(self._numbers)}" for _ in range(count)]
        paths = [f"/v2/{gun}/_trust/tuf/" for gun in guns]
        found: dict[str, float] = {}
        with contextlib.closing(Crowd(in_flight, side.processes["server"].port, ROOT_CA)) as crowd:

            def send(work: str, requests: Sequence[Request]) -> list[bytes]:
                bodies: list[bytes] = []

                def all_of_them() -> dict[str, float]:
                    bodies[:], figures = crowd.send(requests)
                    return figures

                found.update(side.measure(f"{work}-{in_flight}", all_of_them))
                return bodies

            def publish(work: str, files: Sequence[Mapping[str, bytes]]) -> None:
                uploads = zip(paths, files, strict=True)
                send(work, [Request("POST", path, form_of(each), MULTIPART) for path, each in uploads])

            keys = send("key", [Request("GET", f"{path}timestamp.key") for path in paths])
            authors = [Author(gun, timestamp=server_key_from(key)) for gun, key in zip(guns, keys, strict=True)]
            for version, work in (("v1", "first"), ("v2", "second")):
                for author in authors:
                    author.add(version, b"content")
                files = [author.first() if work == "first" else author.publish("targets") for author in authors]
                publish(work, files)
        return found

    def _sign(self, in_flight: int, side: Side) -> dict[str, float]:
        target = self._places[side.name].target
        assert target is not None
        work = f"pair-sign-{in_flight}"
        return side.measure(work, lambda: load(target, FRAMES, in_flight, self.pace.seconds))

    def _starting(self, side: Side) -> dict[str, float]:
        """Start one more of each, let it rest, end it."""
        found: dict[str, float] = {}
        signer_port = side.processes["signer"].port
        for part, one in (
            ("signer", self._signer(side.name, f"{side.name}-signer-idle")),
            ("server", self._server(side.name, f"{side.name}-server-idle", signer_port)),
        ):
            try:
                found[f"pair-{part} start"] = 1000 * start(one)
                time.sleep(self.pace.rest)
                found[f"pair-{part} idle"] = memory(one.pid, "VmRSS")
            finally:
                one.kill()
        return found
