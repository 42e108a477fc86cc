"""The trial of passphrases on stored keys: when keys are tried, what follows; real keys, a fake clock."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from notary.errors import SigningFailed, StorageFailed
from notary.net.grpc import Context, Peer, RpcError, Status
from notary.proto import health_pb2, instance_pb2, paths, signer_pb2
from notary.signer.custody.jwe import JweCustody
from notary.signer.keyring import Keyring
from notary.signer.metrics import SignerMetrics
from notary.signer.rpc import Rpc
from notary.signer.trial import INTERVAL_SECONDS, Trial
from notary.storage.memory import MemoryKeyStore
from notary.work.machine import MACHINE

RIGHT, WRONG, ALIAS = "the right passphrase", "the wrong passphrase", "one"


_numbers = itertools.count()


class Bench:
    """A store, and a signer's trial on it; ``opened`` are the ids of the keys that were opened."""

    def __init__(self) -> None:
        self.store = MemoryKeyStore()
        self.clock = Clock()
        self.passphrase = RIGHT
        self.opened: list[str] = []
        self.samples = 0
        self.away = False
        self.custody = JweCustody(lambda alias: self.passphrase if alias == ALIAS else None, ALIAS)
        self.trial = Trial(self.sample, self.open, ALIAS, maybeDeferred, self.clock.seconds)

    def sample(self) -> Deferred[Any]:
        self.samples += 1
        return fail(StorageFailed("away")) if self.away else self.store.sample()

    def open(self, row: Any) -> object:
        self.opened.append(row.key_id)
        return self.custody.open(row)

    async def add(self, passphrase: str = RIGHT, alias: str = ALIAS) -> str:
        """Store a key that another signer has made."""
        _, row = JweCustody(lambda _alias: passphrase, alias).make(f"example.com/{next(_numbers)}", "snapshot", "ecdsa")
        await self.store.add(row)
        return row.key_id


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest_twisted.ensureDeferred
async def test_an_empty_store_refuses_nothing(bench: Bench) -> None:
    assert await bench.trial.reason() == ""
    await bench.trial.before_a_key()


@pytest_twisted.ensureDeferred
async def test_a_key_is_opened_once(bench: Bench) -> None:
    key_id = await bench.add()
    for _ in range(3):
        assert await bench.trial.reason() == ""
        await bench.trial.before_a_key()
        bench.clock.advance(INTERVAL_SECONDS)
    assert bench.opened == [key_id]
    bench.trial.begin_anew()
    assert await bench.trial.reason() == ""
    assert bench.opened == [key_id] * 2


@pytest_twisted.ensureDeferred
async def test_the_store_is_not_asked_each_time(bench: Bench) -> None:
    await bench.add()
    for _ in range(10):
        await bench.trial.reason()
    assert bench.samples == 1
    bench.trial.suspect()
    for _ in range(10):
        await bench.trial.reason()
    assert bench.samples == 2


@pytest_twisted.ensureDeferred
async def test_a_wrong_passphrase_is_told_once_and_healed(bench: Bench) -> None:
    await bench.add(WRONG)
    with capturedLogs() as logs:
        for _ in range(3):
            assert "passphrase alias 'one': it does not open" in (await bench.trial.reason()).replace('"', "'")
            with pytest.raises(SigningFailed, match="does not open"):
                await bench.trial.before_a_key()
        bench.passphrase = WRONG
        bench.trial.begin_anew()
        assert await bench.trial.reason() == ""
    refused, healed = [formatEvent(each) or "" for each in logs]
    assert "no keys are made, and health checks fail" in refused
    assert "opens the stored keys again" in healed
    assert RIGHT not in refused + healed
    assert WRONG not in refused + healed


@pytest_twisted.ensureDeferred
async def test_a_key_of_another_signer_is_seen_before_the_first_own_one(bench: Bench) -> None:
    """Both began on an empty store; the other one has made a key since the last trial."""
    assert await bench.trial.reason() == ""
    await bench.add(WRONG)
    with pytest.raises(SigningFailed):
        await bench.trial.before_a_key()


@pytest_twisted.ensureDeferred
async def test_a_key_under_another_alias_refuses_nothing(bench: Bench) -> None:
    await bench.add(WRONG, "two")
    assert await bench.trial.reason() == ""
    await bench.trial.before_a_key()


@pytest_twisted.ensureDeferred
async def test_one_key_that_opens_is_enough(bench: Bench) -> None:
    await bench.add(WRONG)
    await bench.add()
    assert await bench.trial.reason() == ""


@pytest_twisted.ensureDeferred
async def test_own_keys_prove_nothing_beside_those_of_others(bench: Bench) -> None:
    """Two signers have each made a key at the same moment, with different passphrases."""
    bench.trial.made(await bench.add())
    assert await bench.trial.reason() == ""
    await bench.add(WRONG)
    bench.trial.suspect()
    assert "does not open" in await bench.trial.reason()


@pytest_twisted.ensureDeferred
async def test_own_keys_that_no_longer_open(bench: Bench) -> None:
    bench.trial.made(await bench.add())
    assert await bench.trial.reason() == ""
    bench.passphrase = WRONG
    bench.trial.begin_anew()
    assert "does not open" in await bench.trial.reason()


@pytest_twisted.ensureDeferred
async def test_before_a_key_the_trial_is_repeated_if_it_is_due(bench: Bench) -> None:
    await bench.add()
    await bench.trial.before_a_key()
    await bench.trial.before_a_key()
    assert bench.samples == 1
    bench.clock.advance(INTERVAL_SECONDS)
    await bench.trial.before_a_key()
    assert bench.samples == 2


@pytest_twisted.ensureDeferred
async def test_a_store_that_is_away_changes_nothing(bench: Bench) -> None:
    await bench.add(WRONG)
    first = await bench.trial.reason()
    bench.away = True
    bench.trial.suspect()
    assert await bench.trial.reason() == first
    with pytest.raises(StorageFailed):
        await bench.trial.before_a_key()


# -- the signer around it ---------------------------------------------------------------------------------------------


class Signer(Bench):
    """The methods of a signer that has this trial."""

    def __init__(self) -> None:
        super().__init__()
        keyring = Keyring(self.store, self.custody, maybeDeferred, MACHINE.utc_now, on_made=self.trial.made)
        self.metrics = SignerMetrics(version="0")
        self.rpc = Rpc(
            keyring, lambda: succeed(None), self.metrics, seconds=self.clock.seconds, trial=self.trial, processes=3
        )

    async def send(self, path: str, request: Any, answer: Any) -> Any:
        context = Context("", Peer("192.0.2.1:5", None), self.clock, None)
        made: Any = self.rpc.methods()[path](request.SerializeToString(), context)
        return answer.FromString(made if isinstance(made, bytes) else await made)

    async def serves(self) -> bool:
        request = health_pb2.HealthCheckRequest(service=paths.HEALTH_OF_SIGNER)
        answer = await self.send(paths.CHECK_HEALTH, request, health_pb2.HealthCheckResponse)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def create(self) -> str:
        request = signer_pb2.CreateKeyRequest(algorithm="ecdsa", gun="example.com/app", role="snapshot")
        return str((await self.send(paths.CREATE_KEY, request, signer_pb2.PublicKey)).keyInfo.keyID.ID)

    async def sign(self, key_id: str) -> bytes:
        request = signer_pb2.SignatureRequest(keyID=signer_pb2.KeyID(ID=key_id), content=b"content")
        return bytes((await self.send(paths.SIGN, request, signer_pb2.Signature)).content)


@pytest_twisted.ensureDeferred
async def test_a_signer_whose_passphrase_opens_nothing_does_not_serve_and_makes_no_keys() -> None:
    signer = Signer()
    key_id = await signer.create()
    await signer.add()
    assert await signer.serves()
    signer.passphrase = WRONG  # as if the rows had been wrapped again
    signer.trial.begin_anew()
    assert not await signer.serves()
    readiness = await signer.rpc.readiness()
    assert (readiness.ready, readiness.status) == (False, "failing")
    assert readiness.facts["failures"] == {"passphrase": "the passphrase opens no stored key; the log says why"}
    with pytest.raises(RpcError, match="does not open") as caught:
        await signer.create()
    assert caught.value.status is Status.INTERNAL
    assert await signer.sign(key_id)  # which is open already
    assert b'notary_signer_health_check{check="passphrase"} 0.0' in signer.metrics.render()[1]
    signer.passphrase = RIGHT
    signer.trial.begin_anew()
    assert await signer.serves()
    assert await signer.create()


@pytest_twisted.ensureDeferred
async def test_a_key_that_does_not_open_is_followed_by_a_trial() -> None:
    signer = Signer()
    await signer.add()
    assert await signer.serves()
    strange = await signer.add(WRONG)
    with pytest.raises(RpcError, match="does not open"):
        await signer.sign(strange)
    samples = signer.samples
    assert await signer.serves()  # since another key opens
    assert signer.samples == samples + 1


@pytest_twisted.ensureDeferred
async def test_a_signer_says_which_process_it_is() -> None:
    one, two = Signer(), Signer()
    found = [
        await each.send(paths.DESCRIBE, instance_pb2.DescribeRequest(), instance_pb2.InstanceDescription)
        for each in (one, one, two)
    ]
    assert [each.processes for each in found] == [3, 3, 3]
    assert found[0].id == found[1].id != found[2].id
