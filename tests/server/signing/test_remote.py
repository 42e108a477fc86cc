"""RemoteSigner on a real channel to a real gRPC server in memory, whose answers are scripted; no sockets, a fake clock.

Rules of this module: what a signer does wrong is SigningFailed, and 500 to a client, within the deadline; that it has
no such key is KeyNotFound. Nothing is written that was not signed completely.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.logger import LogLevel, capturedLogs, formatEvent

from notary.errors import KeyNotFound, SigningFailed
from notary.net.grpc import Channel, GrpcFactory, RpcError, Status
from notary.proto import health_pb2, signer_pb2
from notary.server.signing.remote import SIGNER_SECONDS, RemoteSigner
from notary.storage.memory import MemoryMetadataStore
from notary.tuf.model import Gun, RoleName
from notary.tuf.public import PublicKey
from tests.support.author import Author, make_key, server_key_from
from tests.support.inmemory import Server
from tests.support.rawgrpc import Memory
from tests.support.scripted import (
    CHECK,
    CREATE,
    INFO,
    NOT_SERVING,
    SERVING,
    SIGN,
    STEP_SECONDS,
    Scripted,
    key_info,
    signature_of,
)
from tests.support.sides import Answer, parse_response

NAME = "signer.example:7899"
GUN = "example.com/app"
TUF = f"/v2/{GUN}/_trust/tuf/"
HELD = make_key()
KEY_ID = HELD.key_id
SERVICES = ["grpc.health.v1.Health.KeyManagement", "grpc.health.v1.Health.Signer"]
ANSWER_SECONDS = 10.0

CALLS = {
    CREATE: lambda signer: signer.create_key(Gun(GUN), RoleName("snapshot")),
    INFO: lambda signer: signer.get_key(KEY_ID),
    SIGN: lambda signer: signer.sign(KEY_ID, b"payload"),
    CHECK: lambda signer: signer.check(),
}
each_call = pytest.mark.parametrize("method", CALLS, ids=lambda method: method.rpartition("/")[2])


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
def signer(scripted: Scripted) -> Iterator[RemoteSigner]:
    """A signer's client, closed after the test; then nothing may be left to be done."""
    made = RemoteSigner(Channel(scripted, scripted.clock, name=NAME, chance=lambda: 0.5), "ecdsa")
    yield made
    scripted.result(made.close())
    left = [call for call in scripted.clock.getDelayedCalls() if call.active()]
    assert not left, left


# -- calls ------------------------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_by_algorithm_collection_and_role(scripted: Scripted, signer: RemoteSigner) -> None:
    made = scripted.result(CALLS[CREATE](signer))
    ((path, request),) = scripted.requests
    assert path == CREATE
    assert signer_pb2.CreateKeyRequest.FromString(request) == signer_pb2.CreateKeyRequest(
        algorithm="ecdsa", gun=GUN, role="snapshot"
    )
    (key,) = scripted.keys.values()
    assert made == PublicKey("ecdsa", key.public)
    assert made.key_id == key.key_id
    assert scripted.result(signer.get_key(key.key_id)) == made


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519", "rsa"])
def test_a_signature_comes_with_its_method(scripted: Scripted, signer: RemoteSigner, algorithm: str) -> None:
    key = make_key(algorithm)
    scripted.answers[SIGN] = signature_of(key, b"payload").SerializeToString()
    method, signature = scripted.result(signer.sign(key.key_id, b"payload"))
    ((path, request),) = scripted.requests
    assert path == SIGN
    assert signer_pb2.SignatureRequest.FromString(request) == signer_pb2.SignatureRequest(
        keyID=signer_pb2.KeyID(ID=key.key_id), content=b"payload"
    )
    assert method == key.method
    assert signature == signer_pb2.Signature.FromString(scripted.answers[SIGN]).content


@pytest.mark.parametrize("method", [INFO, SIGN])
def test_a_key_that_the_signer_does_not_hold(scripted: Scripted, signer: RemoteSigner, method: str) -> None:
    with pytest.raises(KeyNotFound):
        scripted.result(CALLS[method](signer))


@each_call
@pytest.mark.parametrize("status", [status for status in Status if status not in (Status.OK, Status.NOT_FOUND)])
def test_any_other_status_is_a_failure(scripted: Scripted, signer: RemoteSigner, method: str, status: Status) -> None:
    error = RpcError(status, "the reason")
    scripted.answers |= {method: error, INFO: error}  # which is asked where there is no health service
    with pytest.raises(SigningFailed, match=f"^the signer at {NAME}: {status.name}: the reason$"):
        scripted.result(CALLS[method](signer))


@each_call
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"\xff\xff\xff", id="no message"),
        pytest.param(b"\x0a\x7fabc", id="cut short"),
        pytest.param(b"\x0a\x02\xc3\x28", id="malformed inside"),
        pytest.param(b"", id="empty"),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_failure(
    scripted: Scripted, signer: RemoteSigner, method: str, answer: bytes
) -> None:
    scripted.answers[method] = answer
    with pytest.raises(SigningFailed, match=NAME):
        scripted.result(CALLS[method](signer))


def test_a_key_other_than_the_one_asked_for_is_a_failure(scripted: Scripted, signer: RemoteSigner) -> None:
    key = make_key()
    answer = signer_pb2.GetKeyInfoResponse(keyInfo=key_info(key), publicKey=key.public)
    scripted.answers[INFO] = answer.SerializeToString()
    with pytest.raises(SigningFailed, match=NAME):
        scripted.result(signer.get_key(KEY_ID))


@given(answer=st.binary(max_size=200))
def test_any_answer_is_a_key_or_a_failure(answer: bytes) -> None:
    for method, ask_for in CALLS.items():
        clock = Clock()
        memory = Memory(clock, GrpcFactory({method: lambda *_: answer}, clock))
        signer = RemoteSigner(Channel(memory, clock, name=NAME), "ecdsa")
        found: list[object] = []
        ask_for(signer).addBoth(found.append)
        memory.settle()
        assert isinstance(getattr(found[0], "value", found[0]), (PublicKey, tuple, SigningFailed, type(None)))
        signer.close()
        memory.settle(5)
        assert clock.getDelayedCalls() == []


# -- deadlines and connections ----------------------------------------------------------------------------------------


@each_call
def test_a_signer_that_does_not_answer(scripted: Scripted, signer: RemoteSigner, method: str) -> None:
    scripted.answers[method] = None
    with pytest.raises(SigningFailed, match=f"^the signer at {NAME}: DEADLINE_EXCEEDED: "):
        scripted.result(CALLS[method](signer), SIGNER_SECONDS + 1)


@each_call
def test_a_signer_that_is_down(scripted: Scripted, signer: RemoteSigner, method: str) -> None:
    scripted.up = False
    with pytest.raises(SigningFailed, match=f"^the signer at {NAME}: UNAVAILABLE: no connection to {NAME}: .*refused"):
        scripted.result(CALLS[method](signer), SIGNER_SECONDS + 1)
    assert not scripted.requests


@each_call
def test_a_signer_that_comes_up_in_time(scripted: Scripted, signer: RemoteSigner, method: str) -> None:
    """A call waits for the connection as long as its deadline allows."""
    scripted.up = False
    scripted.keys[KEY_ID] = HELD
    call = CALLS[method](signer)
    scripted.let_pass(SIGNER_SECONDS / 4)
    assert not call.called
    scripted.up = True
    scripted.result(call, SIGNER_SECONDS)


@each_call
def test_a_signer_that_dies_over_a_call_and_comes_back(scripted: Scripted, signer: RemoteSigner, method: str) -> None:
    scripted.keys[KEY_ID] = HELD
    as_usual = dict(scripted.answers)
    scripted.answers[method] = None
    call = CALLS[method](signer)
    scripted.let_pass(1.0)
    assert [path for path, _ in scripted.requests] == [method]
    scripted.crash()
    with pytest.raises(SigningFailed, match=f"^the signer at {NAME}: UNAVAILABLE: "):
        scripted.result(call, 0.0)
    scripted.answers = as_usual
    scripted.up = True
    scripted.result(CALLS[method](signer), SIGNER_SECONDS)


def test_closing_ends_what_is_under_way(scripted: Scripted, signer: RemoteSigner) -> None:
    scripted.answers |= dict.fromkeys(CALLS)
    calls = [call(signer) for call in CALLS.values()]
    scripted.let_pass(1.0)
    assert not any(call.called for call in calls)
    scripted.result(signer.close())
    for call in calls:
        with pytest.raises(SigningFailed):
            scripted.result(call, 0.0)


# -- the server around it -------------------------------------------------------------------------------------------


class _Transport(StringTransportWithDisconnection):
    def setTcpNoDelay(self, enabled: bool) -> None:
        pass


class Waiting(Server):
    """The server, whose signer takes its time: by the signer's clock, a request is answered within ten seconds."""

    def __init__(self, scripted: Scripted, signer: RemoteSigner) -> None:
        super().__init__(MemoryMetadataStore(), signing=signer)
        self.scripted = scripted

    async def raw(self, data: bytes, *, head_only: bool = False) -> Answer:
        assert not head_only
        transport = _Transport(peerAddress=IPv4Address("TCP", "192.0.2.7", 4711))
        protocol = self.site.buildProtocol(transport.getPeer())
        transport.protocol = protocol
        protocol.makeConnection(transport)
        protocol.dataReceived(data)
        begun = self.scripted.clock.seconds()
        while not transport.value():
            self.scripted.let_pass(STEP_SECONDS)
            assert self.scripted.clock.seconds() < begun + ANSWER_SECONDS
        transport.loseConnection()
        return parse_response(transport.value())


def ask(coroutine: Any) -> Answer:
    """The answer to a request."""
    answered = Deferred.fromCoroutine(coroutine)
    assert isinstance(answered.result, Answer), answered.result
    return answered.result


@pytest.fixture
def server(scripted: Scripted, signer: RemoteSigner) -> Waiting:
    return Waiting(scripted, signer)


# -- health -----------------------------------------------------------------------------------------------------------


def test_health_is_that_of_both_services(scripted: Scripted, signer: RemoteSigner) -> None:
    assert scripted.result(signer.check()) is None
    asked = [health_pb2.HealthCheckRequest.FromString(request).service for _, request in scripted.requests]
    assert sorted(asked) == SERVICES


@pytest.mark.parametrize("status", ["NOT_SERVING", "UNKNOWN"])
def test_a_signer_that_does_not_serve_is_not_healthy(scripted: Scripted, signer: RemoteSigner, status: str) -> None:
    answer = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.ServingStatus.Value(status))
    scripted.answers[CHECK] = answer.SerializeToString()
    with pytest.raises(SigningFailed, match=NAME):
        scripted.result(signer.check())


def test_a_signer_that_knows_no_such_service_is_not_healthy(scripted: Scripted, signer: RemoteSigner) -> None:
    scripted.answers[CHECK] = RpcError(Status.NOT_FOUND, "unknown service")
    with pytest.raises(SigningFailed, match=NAME):
        scripted.result(signer.check())


def test_a_signer_without_a_health_service_is_healthy_while_it_answers(
    scripted: Scripted, signer: RemoteSigner
) -> None:
    scripted.answers[CHECK] = RpcError(Status.UNIMPLEMENTED, "unknown service grpc.health.v1.Health")
    with capturedLogs() as logs:
        for _ in range(3):
            assert scripted.result(signer.check()) is None
    (line,) = [formatEvent(each) for each in logs if each["log_level"] is LogLevel.warn]
    assert NAME in line
    assert "no health service" in line
    for failure in (Status.UNIMPLEMENTED, Status.UNAVAILABLE, Status.INTERNAL):
        scripted.answers[INFO] = RpcError(failure, "no route")
        with pytest.raises(SigningFailed, match=failure.name):
            scripted.result(signer.check())
    scripted.crash()
    with pytest.raises(SigningFailed, match=NAME):
        scripted.result(signer.check(), SIGNER_SECONDS + 1)


def test_the_health_page_follows_the_signer(scripted: Scripted, signer: RemoteSigner, server: Waiting) -> None:
    server.checks["Trust operational"] = signer.check
    server.health.startService()

    def page(seconds: float) -> tuple[int, Mapping[str, str]]:
        for _ in range(round(seconds)):
            server.clock.advance(1)
            scripted.let_pass(1)
        answer = ask(server.get("/_notary_server/health"))
        return answer.status, json.loads(answer.body)

    assert page(1) == (200, {})
    scripted.crash()
    status, failures = page(16)
    assert (status, list(failures)) == (503, ["Trust operational"])
    assert failures["Trust operational"].startswith(f"the signer at {NAME}: UNAVAILABLE: ")
    scripted.up = True
    scripted.answers[CHECK] = NOT_SERVING
    status, failures = page(16)
    assert (status, list(failures)) == (503, ["Trust operational"])
    assert "its log says why" in failures["Trust operational"]
    scripted.answers[CHECK] = SERVING
    assert page(16) == (200, {})
    server.health.stopService()


# -- through the server -----------------------------------------------------------------------------------------------


@pytest.fixture
def author(scripted: Scripted, server: Waiting) -> Author:
    """The author of a collection that has been published once; the server holds its snapshot key."""
    timestamp, snapshot = (
        server_key_from(ask(server.get(f"{TUF}{role}.key")).body) for role in ("timestamp", "snapshot")
    )
    made = Author(GUN, timestamp=timestamp, snapshot=snapshot)
    assert ask(server.upload(GUN, made.first())).status == 200
    return made


def everything(server: Waiting) -> list[tuple[int, bytes]]:
    """All that can be read, and the next version, which there must not be."""
    roles = ("root", "targets", "snapshot", "timestamp")
    names = [*(f"{role}.json" for role in roles), *(f"2.{role}.json" for role in roles)]
    answers = [ask(server.get(TUF + name)) for name in names]
    return [(answer.status, answer.body) for answer in answers]


class Unlucky(Scripted):
    """Signs ``good`` times more, then does what ``answers`` says."""

    good = 1_000

    def _method(self, path: str) -> Any:
        scripted = super()._method(path)

        def handle(request: bytes, context: object) -> Any:
            if path == SIGN:
                self.good -= 1
                if self.good >= 0:
                    return self._sign(request).SerializeToString()
            return scripted(request, context)

        return handle


FAILURES = {
    "an error": RpcError(Status.INTERNAL, "the store is gone"),
    "silence": None,
    "no message": b"\xff\xff\xff",
    "a signature that is none": signature_of(make_key(), b"something else").SerializeToString(),
    "an empty signature": b"",
}


class TestHalfSigned:
    @pytest.fixture
    def scripted(self) -> Unlucky:
        return Unlucky()

    @pytest.mark.parametrize("failure", FAILURES)
    @pytest.mark.parametrize("good", [0, 1], ids=["snapshot", "timestamp"])
    def test_nothing_is_written(
        self, scripted: Unlucky, server: Waiting, author: Author, good: int, failure: str
    ) -> None:
        """The signer fails at the first signature of a publish, or at the second; then the same publish succeeds."""
        before = everything(server)
        assert [status for status, _ in before] == [200] * 4 + [404] * 4
        author.add("v1", b"content")
        files = author.publish("targets")
        scripted.answers[SIGN] = FAILURES[failure]
        scripted.good = good
        answer = ask(server.upload(GUN, files))
        assert answer.brief == "500 UPDATING"
        assert answer.errors[0]["detail"] is None
        assert everything(server) == before
        scripted.good = 2
        assert ask(server.upload(GUN, files)).status == 200
        after = everything(server)
        assert [status for status, _ in after] == [200] * 4 + [404] + [200] * 3


def test_a_signer_that_has_lost_the_keys_is_the_publishers_to_heal(
    scripted: Scripted, server: Waiting, author: Author
) -> None:
    scripted.keys.clear()
    author.add("v1", b"content")
    answer = ask(server.upload(GUN, author.publish("targets")))
    assert answer.brief == "400 INVALID_UPDATE ErrBadHierarchy snapshot"
    author.rotate("timestamp", server_key_from(ask(server.get(f"{TUF}timestamp.key")).body))
    author.rotate("snapshot", server_key_from(ask(server.get(f"{TUF}snapshot.key")).body))
    assert ask(server.upload(GUN, author.publish("root", "targets"))).status == 200


def test_reads_go_on_without_a_signer(scripted: Scripted, server: Waiting, author: Author) -> None:
    before = everything(server)
    scripted.crash()
    assert everything(server) == before
    answer = ask(server.get(f"{TUF}timestamp.key"))
    assert answer.brief == "503 UNAVAILABLE"
    assert answer.headers["retry-after"] == "5"


def test_what_has_expired_is_served_until_the_signer_is_back(
    scripted: Scripted, server: Waiting, author: Author
) -> None:
    """It would be renewed, but an expired timestamp is better than none: its expiry is the client's to judge."""
    old = ask(server.get(f"{TUF}timestamp.json"))
    server.advance(days=30)
    scripted.crash()
    answer = ask(server.get(f"{TUF}timestamp.json"))
    assert (answer.status, answer.body) == (200, old.body)
    scripted.up = True
    scripted.let_pass(SIGNER_SECONDS)
    server.advance(minutes=1)  # not every reader asks a signer that was down a moment ago
    answer = ask(server.get(f"{TUF}timestamp.json"))
    assert json.loads(answer.body)["signed"]["version"] == 2
