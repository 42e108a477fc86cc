"""Floods of requests for keys: what is made, what waits, what is dropped, and that signatures go on meanwhile."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs

from notary.errors import SigningUnavailable
from notary.net.grpc import Context, Peer, RpcError, Status
from notary.proto import signer_pb2
from notary.signer.custody.jwe import JweCustody
from notary.signer.keyring import CREATIONS, MAKERS, MAX_WAITING, Keyring
from notary.signer.metrics import SignerMetrics
from notary.signer.rpc import Rpc
from notary.signer.tap import THREADS
from notary.storage.open import open_key_store
from tests.signer.conftest import ALIAS, NOW, PASSPHRASES
from tests.support.configurations import SIGNER_STORAGE, read_signer, signer

MESSAGE = b"message"


class Gate:
    """Threads that begin when they are let: ``begun`` counts what was asked of them."""

    def __init__(self) -> None:
        self.open = True
        self.begun = 0
        self.held: list[Deferred[None]] = []

    def in_thread(self, work):
        self.begun += 1
        if self.open:
            return deferToThread(work)
        held: Deferred[None] = Deferred()
        self.held.append(held)
        return held.addCallback(lambda _: deferToThread(work))

    def let(self) -> None:
        self.open = True
        while self.held:
            self.held.pop(0).callback(None)


class Flooded:
    """A keyring whose threads are busy making keys; ``asked`` are the callers."""

    def __init__(self, store, allow=lambda: 0.0) -> None:
        self.store = store
        self.gate = Gate()
        self.keyring = Keyring(store, JweCustody(PASSPHRASES.get, ALIAS), self.gate.in_thread, lambda: NOW, 4096, allow)
        self.asked: list[Deferred] = []
        self.results: list[object] = []

    def ask(self, number: int) -> Deferred:
        asked = Deferred.fromCoroutine(self.keyring.create(f"flood/{number}", "timestamp", "ecdsa"))
        self.asked.append(asked)
        return asked.addBoth(self._note)

    def _note(self, result):
        self.results.append(getattr(result, "value", result))


@pytest_twisted.async_yield_fixture
async def flooded():
    store = await open_key_store("memory", "", reactor)
    made = Flooded(store)
    yield made
    made.gate.let()
    await gatherResults(made.asked)
    await store.close()


def test_a_thread_and_connections_are_left_for_signatures() -> None:
    assert MAKERS < THREADS
    config = read_signer(signer(storage={**SIGNER_STORAGE, "keys": {"wrap": "file:kek"}}))
    assert config.storage.connections > CREATIONS


@pytest_twisted.ensureDeferred
async def test_few_are_made_at_a_time_and_so_many_wait(flooded):
    flooded.gate.open = False
    for number in range(CREATIONS + MAX_WAITING + 100):
        flooded.ask(number)
    assert flooded.gate.begun == MAKERS
    assert flooded.keyring.waiting == MAX_WAITING
    assert len(flooded.results) == 100  # at once
    assert all(isinstance(result, SigningUnavailable) for result in flooded.results)
    assert flooded.keyring.creations["busy"] == 100
    flooded.gate.let()
    await gatherResults(flooded.asked)
    assert flooded.keyring.creations["made"] == flooded.gate.begun == CREATIONS + MAX_WAITING
    assert flooded.keyring.waiting == 0
    assert (await flooded.keyring.create("another", "timestamp", "ecdsa")).key_type == "ecdsa"


@pytest_twisted.ensureDeferred
async def test_keys_that_nobody_waits_for_any_more_are_not_begun(flooded):
    flooded.gate.open = False
    for number in range(CREATIONS + 100):
        flooded.ask(number)
    for asked in flooded.asked[CREATIONS : CREATIONS + 90]:
        asked.cancel()
    flooded.gate.let()
    await gatherResults(flooded.asked)
    assert flooded.gate.begun == CREATIONS + 10
    assert flooded.keyring.creations == {"made": CREATIONS + 10, "found": 0, "limited": 0, "busy": 0, "abandoned": 90}
    assert sum(isinstance(result, CancelledError) for result in flooded.results) == 90


@pytest_twisted.ensureDeferred
async def test_the_dead_make_room_for_the_living(flooded):
    flooded.gate.open = False
    for number in range(CREATIONS + MAX_WAITING):
        flooded.ask(number)
    for asked in flooded.asked[CREATIONS:]:
        asked.cancel()
    flooded.ask(1_000_000)
    assert flooded.keyring.waiting == 1
    assert flooded.keyring.creations["busy"] == 0


@pytest_twisted.ensureDeferred
async def test_one_of_several_who_wait_for_a_key_keeps_it_wanted(flooded):
    flooded.gate.open = False
    for number in [*range(CREATIONS), 7000, 7000, 7000]:
        flooded.ask(number)
    flooded.asked[-1].cancel()
    flooded.asked[-2].cancel()
    flooded.gate.let()
    await gatherResults(flooded.asked)
    assert flooded.keyring.creations["made"] == CREATIONS + 1


@pytest_twisted.ensureDeferred
async def test_signatures_go_on_meanwhile(flooded):
    """Of keys that must be unwrapped too: their threads are not those that make keys."""
    key = await flooded.keyring.create("honest", "timestamp", "ecdsa")
    cold = Flooded(flooded.store)
    cold.gate.open = False
    for number in range(CREATIONS + MAX_WAITING):
        cold.ask(number)
    before = cold.gate.begun
    cold.gate.open = True  # for a thread that is not making keys
    assert (await cold.keyring.sign(key.key_id, MESSAGE)).key == key
    assert cold.gate.begun == before + 1
    assert cold.keyring.creations["made"] == 0
    cold.gate.let()
    await gatherResults(cold.asked)


@pytest_twisted.ensureDeferred
async def test_no_more_keys_are_made_in_an_hour_than_may_be(flooded):
    left = [0.0, 0.0, 0.0]
    limited = Flooded(flooded.store, lambda: left.pop() if left else 72.0)
    for number in range(10):
        await limited.ask(number)
    assert limited.gate.begun == 3
    assert limited.keyring.creations["limited"] == 7
    assert limited.results[-1].retry_seconds == 72.0
    first = limited.results[0]
    await limited.ask(0)  # it is there already
    assert limited.results[-1] == first
    assert (await limited.keyring.sign(first.key_id, MESSAGE)).key == first


@pytest_twisted.ensureDeferred
async def test_a_refusal_is_resource_exhausted_and_one_line_a_minute(flooded):
    now = [0.0]
    limited = Flooded(flooded.store, lambda: 10.0)
    methods = Rpc(limited.keyring, lambda: None, SignerMetrics(version="0"), seconds=lambda: now[0]).methods()
    request = signer_pb2.CreateKeyRequest(algorithm="ecdsa", gun="a/b", role="timestamp").SerializeToString()
    context = Context("", Peer("192.0.2.1:5", None), reactor, None)
    with capturedLogs() as logs:
        for _ in range(50):
            with pytest.raises(RpcError, match=r"limits\.pending_keys_per_hour") as caught:
                await methods["/proto.KeyManagement/CreateKey"](request, context)
            assert caught.value.status is Status.RESOURCE_EXHAUSTED
        now[0] = 61.0
        with pytest.raises(RpcError):
            await methods["/proto.KeyManagement/CreateKey"](request, context)
    said = [event["why"] for event in logs if "no key is made" in event.get("log_format", "")]
    assert len(said) == 2
    assert "(and 49 more" in said[1]
