"""Servers and signers, ours and the reference's, in every combination: none may notice what the other half is.

Rules of this module: all pairs run from its beginning to its end, server and signer as processes of their own that
speak mutual TLS; every test has collections of its own. The Go server and the Go signer keep all in memory (they have
no embedded database); ours are on memory or SQLite.
"""

from __future__ import annotations

import functools
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from tests.support.goclient import Machine, live
from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, Daemon, daemon, remote_signer
from tests.support.sides import Side, clone, make_collection
from tests.support.signer import GO_SIGNER, OUR_SIGNER, Pair, signer_daemon
from tests.support.softhsm import Tokens

MEMORY = {"backend": "memory"}
SQLITE = {"backend": "sqlite3", "db_url": "notary.db"}
KEYS = {"backend": "sqlite3", "db_url": "keys.db", "default_alias": "alias_one"}
ENVIRONMENT = {"NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple"}
FIRST_CHECK_SECONDS = 11.0
"""The Go server calls itself healthy until it has asked the signer for the first time, ten seconds after its start."""

METHODS = {"ecdsa": "ecdsa", "ed25519": "eddsa", "rsa": "rsapss"}


@dataclass(frozen=True)
class Pairing:
    """Which programs, on which storage, with which kind of keys. ``life``: the whole life of the client is lived.

    ``custody`` is the scheme of the key-encrypting key of the signer, "" for a passphrase.
    """

    server: tuple[str, ...]
    server_storage: Mapping[str, str]
    signer: tuple[str, ...]
    signer_storage: Mapping[str, Any]
    algorithm: str
    life: bool = True
    custody: str = ""


PAIRINGS = {
    "go-go-ecdsa": Pairing(GO_SERVER, MEMORY, GO_SIGNER, MEMORY, "ecdsa"),
    "go-ours-ecdsa": Pairing(GO_SERVER, MEMORY, OUR_SIGNER, KEYS, "ecdsa"),
    "ours-go-ecdsa": Pairing(OUR_SERVER, SQLITE, GO_SIGNER, MEMORY, "ecdsa"),
    "ours-ours-ecdsa": Pairing(OUR_SERVER, SQLITE, OUR_SIGNER, KEYS, "ecdsa"),
    "go-ours-ed25519": Pairing(GO_SERVER, MEMORY, OUR_SIGNER, MEMORY, "ed25519"),
    "ours-go-ed25519": Pairing(OUR_SERVER, MEMORY, GO_SIGNER, MEMORY, "ed25519", life=False),
    "ours-ours-ed25519": Pairing(OUR_SERVER, MEMORY, OUR_SIGNER, MEMORY, "ed25519"),
    "go-ours-rsa": Pairing(GO_SERVER, MEMORY, OUR_SIGNER, MEMORY, "rsa", life=False),
    "ours-ours-rsa": Pairing(OUR_SERVER, SQLITE, OUR_SIGNER, KEYS, "rsa"),
    "ours-ours-ecdsa-file": Pairing(OUR_SERVER, SQLITE, OUR_SIGNER, KEYS, "ecdsa", custody="file"),
    "ours-ours-ecdsa-pkcs11": Pairing(OUR_SERVER, SQLITE, OUR_SIGNER, KEYS, "ecdsa", custody="pkcs11"),
}
"""By name: the server, the signer, the algorithm, the custody of keys. The reference's signer cannot make RSA keys."""

LIVES = [name for name, pairing in PAIRINGS.items() if pairing.life]


@dataclass(frozen=True)
class Running:
    """A pair at work; ``since`` is when the server was started (by the monotonic clock, in seconds)."""

    pairing: Pairing
    signer: Daemon
    server: Daemon
    since: float

    def still_alive(self) -> None:
        for each in (self.signer, self.server):
            assert each.alive, f"{each.name} has died:\n{each.output()[-4000:]}"


@pytest.fixture(scope="module")
def pairs(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Running]]:
    """Every pairing, by name."""
    folder = tmp_path_factory.mktemp("pairings")
    pair = Pair.mint(folder / "tls")
    ca, client = pair.authority.write(pair.folder, "root"), pair.client.write(pair.folder, "client")

    def start(name: str, stack: ExitStack) -> Running:
        pairing, directory = PAIRINGS[name], folder / name
        storage, environment = pairing.signer_storage, ENVIRONMENT
        if pairing.custody:
            tokens = Tokens.make(directory / "hsm")
            (directory / "kek").write_bytes(bytes(range(32)))
            keks = {"file": "file:kek", "pkcs11": tokens.uri()}
            storage, environment = {**storage, "keys": {"wrap": keks[pairing.custody]}}, tokens.environment
        signer = signer_daemon(f"{name}-signer", pairing.signer, pair, directory, storage, environment=environment)
        server = daemon(
            f"{name}-server",
            pairing.server,
            directory,
            tls=certificates,
            storage=pairing.server_storage,
            extra=remote_signer(signer.port, ca, client, pairing.algorithm),
        )
        for each in (signer, server):
            stack.callback(each.kill)
            each.start()
        return Running(pairing, signer, server, time.monotonic())

    with ExitStack() as stack:
        with ThreadPoolExecutor(4) as pool:
            started = [pool.submit(start, name, stack) for name in PAIRINGS]
        yield dict(zip(PAIRINGS, [one.result() for one in started], strict=True))


@pytest.fixture(scope="module")
def lives(
    pairs: Mapping[str, Running], certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Future[None]]:
    """The client's life on every pairing, over; two at a time, as each waits for hundreds of processes in turn.

    Nothing else is asked of the servers meanwhile: the Go server may crash under publishers of its own time.
    """
    folder = tmp_path_factory.mktemp("lives")

    def lived(name: str) -> None:
        url = pairs[name].server.url
        live(functools.cache(lambda who: Machine(folder / name / who, url, certificates.ca)), "example.com/team/app")

    with ThreadPoolExecutor(2) as pool:
        return {name: pool.submit(lived, name) for name in LIVES}


@pytest.mark.parametrize("name", LIVES)
def test_the_whole_life(pairs: Mapping[str, Running], lives: Mapping[str, Future[None]], name: str) -> None:
    lives[name].result()
    pairs[name].still_alive()


@pytest.mark.parametrize("name", PAIRINGS)
@pytest_twisted.ensureDeferred
async def test_what_the_signer_signs_verifies(reactor: Any, pairs: Mapping[str, Running], name: str) -> None:
    """With another implementation than ours or the reference's; all of it is signed by keys of the chosen kind."""
    running = pairs[name]
    algorithm = running.pairing.algorithm
    async with Side(running.server, reactor) as side:
        for server_snapshot in (True, False):
            collection = await make_collection(side, server_snapshot=server_snapshot)
            author = clone(collection.author)
            author.add("v2", b"content of v2")
            answer = await collection.push(author, "targets")
            assert answer.status == 200, answer
            await collection.verify()
            for role in ("timestamp", "snapshot") if server_snapshot else ("timestamp",):
                key = await collection.key(role)
                assert key.key_type == algorithm
                signed = json.loads((await side.get(collection.path(f"{role}.json"))).body)
                (signature,) = signed["signatures"]
                assert (signature["keyid"], signature["method"]) == (key.key_id, METHODS[algorithm])
    running.still_alive()


@pytest.mark.parametrize("name", [name for name, pairing in PAIRINGS.items() if pairing.signer is OUR_SIGNER])
@pytest_twisted.ensureDeferred
async def test_a_pending_key_is_given_again(reactor: Any, pairs: Mapping[str, Running], name: str) -> None:
    """To GET and to POST, until it has signed. (The reference's memory store makes a new one each time.)"""
    running = pairs[name]
    async with Side(running.server, reactor) as side:
        collection = await make_collection(side, published=False)
        for method in ("GET", "POST"):
            timestamp, snapshot = await collection.key("timestamp", method), await collection.key("snapshot", method)
            assert timestamp == collection.first().roles["timestamp"].keys[0]
            assert snapshot == await collection.key("snapshot")
            assert timestamp != snapshot
        answer = await collection.publish()
        assert answer.status == 200, answer
        assert await collection.key("timestamp", "POST") != timestamp
    running.still_alive()


@pytest.mark.parametrize("name", PAIRINGS)
@pytest_twisted.ensureDeferred
async def test_keys_rotate(reactor: Any, pairs: Mapping[str, Running], name: str) -> None:
    """The new key takes over with the root that names it, not before."""
    running = pairs[name]
    async with Side(running.server, reactor) as side:
        collection = await make_collection(side, server_snapshot=True)
        for role in ("timestamp", "snapshot"):
            current = await collection.key(role)
            following = await collection.key(role, "POST")
            assert following != current
            assert await collection.key(role) == current
            author = clone(collection.author)
            author.rotate(role, following)
            answer = await collection.push(author, "root", "targets")
            assert answer.status == 200, answer
            await collection.verify()
            assert await collection.key(role) == following
    running.still_alive()


@pytest_twisted.ensureDeferred
async def test_every_server_finds_its_signer_healthy(reactor: Any, pairs: Mapping[str, Running]) -> None:
    checked = max(running.since for running in pairs.values()) + FIRST_CHECK_SECONDS
    await deferLater(reactor, max(0.0, checked - time.monotonic()))
    for name, running in pairs.items():
        async with Side(running.server, reactor) as side:
            answer = await side.get("/_notary_server/health")
        assert (answer.status, json.loads(answer.body)) == (200, {}), f"{name}: {answer}"


@pytest.mark.parametrize("name", [name for name, pairing in PAIRINGS.items() if pairing.signer_storage is KEYS])
@pytest_twisted.ensureDeferred
async def test_the_keys_lie_with_the_signer_alone(reactor: Any, pairs: Mapping[str, Running], name: str) -> None:
    running = pairs[name]
    async with Side(running.server, reactor) as side:
        collection = await make_collection(side, server_snapshot=True)
        held = [await collection.key(role) for role in ("timestamp", "snapshot")]
    with closing(sqlite3.connect(running.signer.directory / "keys.db")) as database:
        found = database.execute(
            "SELECT key_id, public, algorithm, passphrase_alias FROM private_keys WHERE gun = ?", (collection.gun,)
        ).fetchall()
    under = running.pairing.custody or "alias_one"  # a key-encrypting key has the name of its scheme, and more
    assert sorted((*row, alias.partition("-")[0]) for *row, alias in found) == sorted(
        (key.key_id, key.public, running.pairing.algorithm, under) for key in held
    )
