"""Requests for keys beyond what a user or an address may have, and a signer that makes no more of them."""

from __future__ import annotations

from collections import Counter

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from notary.net.grpc import Channel, GrpcFactory, RpcError, Status
from notary.server.signing.remote import MAX_CREATIONS, RemoteSigner
from notary.tuf.model import Gun, RoleName
from tests.support.api import new_store
from tests.support.inmemory import Server
from tests.support.rawgrpc import Memory

CREATE, SIGN, INFO = "/proto.KeyManagement/CreateKey", "/proto.Signer/Sign", "/proto.KeyManagement/GetKeyInfo"
KEY_ID = "0" * 64
ROLE = RoleName("timestamp")


def key_path(number: int) -> str:
    return f"/v2/flood/{number}/_trust/tuf/timestamp.key"


@pytest_twisted.ensureDeferred
async def test_an_address_is_given_so_many_keys_in_an_hour():
    server = Server(new_store(), keys_per_hour=10)
    with capturedLogs() as logs:
        answers = [await server.get(key_path(number)) for number in range(15)]
        answers.append(await server.request("POST", key_path(3)))
    assert [answer.status for answer in answers] == [200] * 10 + [429] * 6
    assert answers[-1].code == "TOOMANYREQUESTS"
    assert answers[-1].headers["retry-after"] == "360"
    assert len([event for event in logs if "192.0.2.7" in str(event.get("why"))]) == 1
    shown = server.metrics.render()[1].decode()
    assert 'notary_server_key_requests_total{result="asked"} 10.0' in shown
    assert 'notary_server_key_requests_total{result="refused"} 6.0' in shown
    server.clock.advance(3600)
    assert (await server.get(key_path(20))).status == 200


class Far:
    """A signer behind a connection, which answers each call as ``answer`` says: a status, or never (None)."""

    def __init__(self, answer: Status | None) -> None:
        self.answer = answer
        self.calls: Counter[str] = Counter()
        self.pending: list[Deferred[bytes]] = []
        self.clock = Clock()
        methods = dict.fromkeys((CREATE, SIGN, INFO), self._handle)
        self.memory = Memory(self.clock, GrpcFactory(methods, self.clock))
        self.signer = RemoteSigner(Channel(self.memory, self.clock, name="signer:7899"), "ecdsa")
        self.failures: list[str] = []

    def _handle(self, _request, context):
        self.calls[context.path] += 1
        if self.answer is not None:
            raise RpcError(self.answer, "so it is")
        self.pending.append(Deferred())
        return self.pending[-1]

    def create(self, number: int) -> None:
        self.signer.create_key(Gun(f"a/{number}"), ROLE).addErrback(self._failed)

    def get(self) -> None:
        self.signer.get_key(KEY_ID).addErrback(self._failed)

    def sign(self) -> None:
        self.signer.sign(KEY_ID, b"x").addErrback(self._failed)

    def _failed(self, failure) -> None:
        self.failures.append(type(failure.value).__name__)

    def close(self) -> None:
        self.signer.close()
        self.memory.settle(5)
        assert self.clock.getDelayedCalls() == []


def test_a_signer_is_asked_for_so_many_keys_at_a_time():
    """With any signer: a Go signer has no bound of its own, and signatures need room on the connection."""
    far = Far(None)
    for number in range(MAX_CREATIONS + 50):
        far.create(number)
    assert far.failures == ["SigningUnavailable"] * 50  # at once
    far.sign()
    far.memory.settle()
    assert far.calls == {CREATE: MAX_CREATIONS, SIGN: 1}
    far.failures.clear()
    while far.pending:
        far.pending.pop().errback(RpcError(Status.INTERNAL, "broken"))
    far.memory.settle()
    assert far.failures == ["SigningFailed"] * (MAX_CREATIONS + 1)
    far.create(0)
    far.memory.settle()
    assert far.calls[CREATE] == MAX_CREATIONS + 1
    far.close()


LATER = {Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED, Status.DEADLINE_EXCEEDED}


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.OK])
def test_which_failures_of_a_signer_may_pass(status: Status):
    far = Far(status)
    far.create(0)
    far.get()
    far.sign()
    far.memory.settle()
    of_keys = "SigningUnavailable" if status in LATER else "SigningFailed"
    expected = ["KeyNotFound"] * 3 if status is Status.NOT_FOUND else [of_keys, of_keys, "SigningFailed"]
    assert far.failures == expected
    far.close()


@pytest_twisted.ensureDeferred
async def test_a_signer_that_makes_no_more_keys_is_503_and_one_line():
    far = Far(Status.RESOURCE_EXHAUSTED)
    server = Server(new_store(), signing=far.signer)
    far.signer.check()  # connects
    far.memory.settle()
    with capturedLogs() as logs:
        answers = []
        for number in range(20):
            asked = Deferred.fromCoroutine(server.get(key_path(number)))
            far.memory.settle()
            answers.append(await asked)
    assert {(answer.status, answer.code, answer.headers["retry-after"]) for answer in answers} == {
        (503, "UNAVAILABLE", "5")
    }
    assert b"so it is" not in answers[0].body
    assert len([event for event in logs if "so it is" in str(event.get("why"))]) == 1
    far.close()
