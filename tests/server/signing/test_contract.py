"""What every signing service keeps to, and that a service is one row: a toy one works in a whole server.

The remote service is tested with the real signer behind it, on a real channel in memory. A new service gets a row in
``PLACES``.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_twisted
import treq
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from notary.config import ServerConfig, TrustService, load_server
from notary.config.table import keys
from notary.config.values import Address
from notary.errors import KeyNotFound
from notary.net.grpc import Channel, GrpcFactory
from notary.server import tap
from notary.server.signing import Signing, SigningService, services
from notary.server.signing.directory import Directory
from notary.server.signing.local import LocalSigner
from notary.server.signing.spread import Signers
from notary.signer.custody.jwe import JweCustody
from notary.signer.keyring import Keyring
from notary.signer.metrics import SignerMetrics
from notary.signer.rpc import Rpc
from notary.storage.memory import MemoryKeyStore
from notary.tuf.model import Gun, RoleName, Signature
from notary.tuf.public import verify
from tests.support.rawgrpc import Memory

GUN, OTHER_GUN = Gun("example.com/app"), Gun("example.com/other")
TIMESTAMP, SNAPSHOT = RoleName("timestamp"), RoleName("snapshot")
NOW = datetime(2031, 5, 17, 12, 0, 0, tzinfo=UTC)
SECONDS = 2.0


class Place:
    """A signing service, and what lets its calls go on until they have a result."""

    def __init__(self, service: SigningService, settle: Callable[[], None] = lambda: None) -> None:
        self.service = service
        self._settle = settle

    def result(self, deferred: Deferred):
        results: list[object] = []
        deferred.addBoth(results.append)
        self._settle()
        assert results, "the call has no result"
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    def failure(self, deferred: Deferred) -> Exception:
        with pytest.raises(Exception) as caught:
            self.result(deferred)
        return caught.value


def remote() -> Place:
    clock, store = Clock(), MemoryKeyStore()
    keyring = Keyring(store, JweCustody(lambda _: "a passphrase", "one"), maybeDeferred, lambda: NOW)
    rpc = Rpc(keyring, store.check, SignerMetrics(version="0"), seconds=clock.seconds)
    memory = Memory(clock, GrpcFactory(rpc.methods(), clock))

    def connect(place: Address, on_ready: Callable[[], object], quiet: bool) -> Channel:
        return Channel(memory, clock, name=str(place), on_ready=on_ready, quiet=quiet)

    directory = Directory([Address("signer.example", 7899)], lambda _host: succeed([]), clock)
    return Place(Signers(directory, connect, "ecdsa", clock), lambda: memory.settle(SECONDS))


PLACES: dict[str, Callable[[], Place]] = {"local": lambda: Place(LocalSigner()), "remote": remote}


@pytest.fixture(params=sorted(PLACES))
def place(request) -> Iterator[Place]:
    made = PLACES[request.param]()
    yield made
    assert made.result(made.service.close()) is None


def test_every_service_is_tested_here():
    assert set(PLACES) == set(services.SERVICES)


def test_the_configuration_knows_the_same_services():
    (kind,) = (key.kind for path, key, _ in keys(ServerConfig) if path == "trust_service.type")
    assert set(re.findall(r'"(.*?)"', kind.expected)) == set(services.SERVICES)


def test_a_key_is_pending_until_its_first_signature(place):
    service = place.service
    key = place.result(service.create_key(GUN, TIMESTAMP))
    assert place.result(service.create_key(GUN, TIMESTAMP)) == key
    place.result(service.sign(key.key_id, b"payload"))
    assert place.result(service.create_key(GUN, TIMESTAMP)) != key


def test_each_collection_and_role_has_its_own_key(place):
    wanted = [(GUN, TIMESTAMP), (GUN, SNAPSHOT), (OTHER_GUN, TIMESTAMP)]
    made = [place.result(place.service.create_key(*each)) for each in wanted]
    assert len({key.key_id for key in made}) == len(wanted)


def test_a_key_is_found_before_and_after_its_first_signature(place):
    key = place.result(place.service.create_key(GUN, TIMESTAMP))
    assert place.result(place.service.get_key(key.key_id)) == key
    place.result(place.service.sign(key.key_id, b"payload"))
    assert place.result(place.service.get_key(key.key_id)) == key


@pytest.mark.parametrize("payload", [b"", b"x", b"\x00\xff" * 50_000], ids=["empty", "short", "long"])
def test_a_signature_is_that_of_the_whole_payload(place, payload):
    key = place.result(place.service.create_key(GUN, TIMESTAMP))
    for _ in range(2):
        method, signature = place.result(place.service.sign(key.key_id, payload))
        assert verify(key, Signature(key.key_id, method, signature), payload)
        assert not verify(key, Signature(key.key_id, method, signature), payload + b"more")


@pytest.mark.parametrize("key_id", ["", "0" * 64, "é", "x" * 1000], ids=["empty", "unknown", "odd", "long"])
def test_a_key_that_is_not_there(place, key_id):
    assert isinstance(place.failure(place.service.get_key(key_id)), KeyNotFound)
    assert isinstance(place.failure(place.service.sign(key_id, b"payload")), KeyNotFound)


def test_a_working_service_passes_its_check(place):
    assert place.result(place.service.check()) is None


# -- a toy ------------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_toy_service_is_one_row(tmp_path: Path, monkeypatch):
    """No other part of the server hears of it: its keys are handed out, and its check is that of the health page."""

    class Toy(LocalSigner):
        checks = 0

        def check(self):
            self.checks += 1
            return super().check()

    toy = Toy()

    def build(_trust: TrustService, _reactor) -> Signing:
        return Signing(toy, "Using a toy")

    monkeypatch.setattr(services, "SERVICES", {**services.SERVICES, "toy": build})
    text = json.dumps(
        {
            "server": {"http_addr": "127.0.0.1:1"},
            "trust_service": {"type": "local"},
            "storage": {"backend": "memory"},
        }
    )
    config = replace(load_server(text, {}, tmp_path), trust_service=TrustService(type="toy"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        url = "http://{}:{}".format(*listening.getsockname())
        server = tap.Server(config, reactor, [listening])
        await server.startService()
        try:
            answer = await treq.get(f"{url}/v2/{GUN}/_trust/tuf/timestamp.key", persistent=False)
            assert answer.code == 200
            shown = json.loads(await answer.content())
            made = await toy.create_key(GUN, TIMESTAMP)
            assert shown == made.to_json() | {"keyval": shown["keyval"]}
            assert toy.checks
            assert await server.reload(config) == []
        finally:
            await server.stopService()
