"""The methods of the signer, called with bytes: what they answer, which status an error has, and what the log says."""

from __future__ import annotations

import re

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from notary.errors import CustodyUnavailable, KeyNotFound, StorageFailed, UnsupportedAlgorithm
from notary.net.grpc import Context, Peer, RpcError, Status
from notary.observe.logs import LineObserver
from notary.proto import health_pb2, signer_pb2
from notary.signer.metrics import SignerMetrics
from notary.signer.rpc import Rpc

GUN = "example.com/app"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SECRET = "SECRET-7f3a"
CREATE, DELETE, INFO = (f"/proto.KeyManagement/{name}" for name in ("CreateKey", "DeleteKey", "GetKeyInfo"))
SIGN, CHECK = "/proto.Signer/Sign", "/grpc.health.v1.Health/Check"


class Lines:
    """Stands for standard error."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.fixture
def log():
    """What the daemon would write at level debug."""
    lines = Lines()
    observer = LineObserver(lines, level="debug")
    globalLogPublisher.addObserver(observer)
    yield lines
    globalLogPublisher.removeObserver(observer)


class Caller:
    def __init__(self, keyring, check=lambda: succeed(None), logs_info=lambda: True):
        self.methods = Rpc(keyring, check, SignerMetrics(version="0"), logs_info).methods()
        self.context = Context("", Peer("192.0.2.1:5", None), Clock(), None)

    async def send(self, path, request, answer):
        data = request if isinstance(request, bytes) else request.SerializeToString()
        made = self.methods[path](data, self.context)
        return answer.FromString(made if isinstance(made, bytes) else await made)

    async def create(self, algorithm, gun=GUN, role="snapshot"):
        request = signer_pb2.CreateKeyRequest(algorithm=algorithm, gun=gun, role=role)
        return await self.send(CREATE, request, signer_pb2.PublicKey)

    async def health(self, service=""):
        request = health_pb2.HealthCheckRequest(service=service)
        return (await self.send(CHECK, request, health_pb2.HealthCheckResponse)).status


def key_id_message(key_id):
    return signer_pb2.KeyID(ID=key_id)


def sign_message(key_id, content=b"a message"):
    return signer_pb2.SignatureRequest(keyID=key_id_message(key_id), content=content)


async def status_of(call):
    with pytest.raises(RpcError) as caught:
        await call
    return caught.value.status, caught.value.message


@pytest.mark.parametrize(
    ("algorithm", "method"), [("ecdsa", "ecdsa"), ("ed25519", "eddsa"), ("rsa", "rsapss")], ids=lambda value: value
)
@pytest_twisted.ensureDeferred
async def test_every_field_is_filled(bench, algorithm, method):
    caller = Caller(bench.keyring())
    made = await caller.create(algorithm)
    key_id = made.keyInfo.keyID.ID
    row = await bench.store.get(key_id)
    info = signer_pb2.KeyInfo(keyID=key_id_message(row.key_id), algorithm=signer_pb2.Algorithm(algorithm=algorithm))
    assert made == signer_pb2.PublicKey(keyInfo=info, publicKey=row.public)

    found = await caller.send(INFO, key_id_message(key_id), signer_pb2.GetKeyInfoResponse)
    assert found == signer_pb2.GetKeyInfoResponse(keyInfo=info, publicKey=row.public, role="snapshot")

    signed = await caller.send(SIGN, sign_message(key_id), signer_pb2.Signature)
    assert signed.content
    assert signed == signer_pb2.Signature(
        keyInfo=info, algorithm=signer_pb2.Algorithm(algorithm=method), content=signed.content
    )

    for _ in range(2):  # deleting what is gone succeeds
        assert await caller.send(DELETE, key_id_message(key_id), signer_pb2.Void) == signer_pb2.Void()
    assert await status_of(caller.send(INFO, key_id_message(key_id), signer_pb2.GetKeyInfoResponse)) == (
        Status.NOT_FOUND,
        f"there is no key {key_id}",
    )


@pytest_twisted.ensureDeferred
async def test_errors_and_their_statuses(bench, log):
    caller = Caller(bench.keyring(alias="alias_three"))
    cases = [
        (INFO, key_id_message("0" * 64), Status.NOT_FOUND, f"there is no key {'0' * 64}"),
        (SIGN, sign_message("0" * 64), Status.NOT_FOUND, f"there is no key {'0' * 64}"),
        (SIGN, signer_pb2.SignatureRequest(content=b"x"), Status.NOT_FOUND, "64 hexadecimal digits"),
        (SIGN, b"", Status.NOT_FOUND, "64 hexadecimal digits"),
        (CREATE, signer_pb2.CreateKeyRequest(algorithm="dsa"), Status.UNKNOWN, "algorithm 'dsa' are not supported"),
        (CREATE, signer_pb2.CreateKeyRequest(algorithm="ecdsa"), Status.INTERNAL, "no passphrase of alias"),
        (CREATE, signer_pb2.CreateKeyRequest(gun="g" * 300), Status.INTERNAL, "more than 255 characters"),
        (CREATE, b"\xff", Status.INTERNAL, "the request is not a proto.CreateKeyRequest"),
        (SIGN, b"\x12\x05ab", Status.INTERNAL, "the request is not a proto.SignatureRequest"),
        (CREATE, b"\x12\x01\xff", Status.INTERNAL, "the request is not a proto.CreateKeyRequest"),
    ]
    for path, request, status, message in cases:
        got, text = await status_of(caller.send(path, request, signer_pb2.Void))
        assert (got, message in text) == (status, True), (path, text)
    assert f'"msg":"get_key_info failed: there is no key {"0" * 64}"' in log.text
    assert "alias_three" in log.text


class Broken:
    """A keyring with a fault, whose error would show a secret; ``at_once`` or only after a while."""

    def __init__(self, error, *, at_once):
        self.error = error
        self.at_once = at_once

    def sign_fast(self, _key_id, _message):
        if self.at_once:
            raise self.error

    async def sign(self, _key_id, _message):
        raise self.error


@pytest.mark.parametrize("at_once", [True, False])
@pytest_twisted.ensureDeferred
async def test_of_a_fault_the_client_learns_nothing_and_the_log_its_place(log, at_once):
    caller = Caller(Broken(ValueError(SECRET), at_once=at_once))
    status, message = await status_of(caller.send(SIGN, sign_message("0" * 64), signer_pb2.Signature))
    assert status is Status.INTERNAL
    known_as = re.fullmatch(r"the signer could not do this; its log says why, at error_id ([0-9a-f]{12})", message)[1]
    assert f'"error_id":"{known_as}"' in log.text
    assert SECRET not in log.text
    assert "ValueError" in log.text
    assert "test_rpc.py" in log.text


@pytest.mark.parametrize("at_once", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_call_that_is_given_up_stays_given_up(log, at_once):
    caller = Caller(Broken(CancelledError(), at_once=at_once))
    with pytest.raises(CancelledError):
        await caller.send(SIGN, sign_message("0" * 64), signer_pb2.Signature)
    assert "Sign" not in log.text
    assert "sign" not in log.text


@pytest_twisted.ensureDeferred
async def test_the_log_names_keys_and_no_message(bench, log):
    caller = Caller(bench.keyring())
    made = await caller.create("ecdsa", gun=f"example.com/{chr(10)}app")
    key_id = made.keyInfo.keyID.ID
    await caller.send(SIGN, sign_message(key_id, SECRET.encode()), signer_pb2.Signature)
    await caller.send(DELETE, key_id_message(SECRET), signer_pb2.Void)
    await caller.send(DELETE, key_id_message(key_id), signer_pb2.Void)
    for line in (f"created, or found pending, key {key_id}", f"signed with key {key_id}", f"deleted key {key_id}"):
        assert line in log.text
    assert '"gun":"example.com/\\napp"' in log.text
    assert SECRET not in log.text


@pytest_twisted.ensureDeferred
async def test_who_reads_no_log_is_written_none_for_each_signature(bench, log):
    level = "info"
    caller = Caller(bench.keyring(), logs_info=lambda: level == "info")
    key_id = (await caller.create("ecdsa")).keyInfo.keyID.ID
    for level, lines in (("error", 0), ("info", 1), ("error", 1)):  # noqa: B007 - what the caller asks for
        await caller.send(SIGN, sign_message(key_id), signer_pb2.Signature)
        assert log.text.count("signed with key") == lines


@pytest_twisted.ensureDeferred
async def test_a_key_that_has_signed_signs_at_once(bench):
    caller = Caller(bench.keyring())
    key_id = (await caller.create("ecdsa")).keyInfo.keyID.ID
    request = sign_message(key_id).SerializeToString()
    first = caller.methods[SIGN](request, caller.context)
    assert not isinstance(first, bytes), "its use is yet to be recorded"
    await first
    assert isinstance(caller.methods[SIGN](request, caller.context), bytes)
    await caller.send(DELETE, key_id_message(key_id), signer_pb2.Void)
    assert (await status_of(caller.methods[SIGN](request, caller.context)))[0] is Status.NOT_FOUND


# -- health -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["", "grpc.health.v1.Health.KeyManagement", "grpc.health.v1.Health.Signer"])
@pytest_twisted.ensureDeferred
async def test_serving_while_the_store_answers(bench, service):
    assert await Caller(bench.keyring(), bench.store.check).health(service) == SERVING


@pytest.mark.parametrize("service", ["proto.Signer", "grpc.health.v1.Health.Overall", " "])
@pytest_twisted.ensureDeferred
async def test_other_services_are_not_known(bench, service):
    caller = Caller(bench.keyring(), bench.store.check)
    assert await status_of(caller.health(service)) == (Status.NOT_FOUND, "unknown service")


@pytest_twisted.ensureDeferred
async def test_not_serving_while_the_store_does_not_answer(bench, log):
    answers = [fail(StorageFailed("it is away")), fail(StorageFailed("it is away")), succeed(None), succeed(None)]
    caller = Caller(bench.keyring(), lambda: answers.pop(0))
    assert [await caller.health() for _ in range(4)] == [NOT_SERVING, NOT_SERVING, SERVING, SERVING]
    assert log.text.count("the key store does not answer: it is away") == 1
    assert log.text.count("the key store answers again") == 1


@pytest_twisted.ensureDeferred
async def test_asking_often_asks_the_store_once(bench):
    asked = []

    def check():
        asked.append(Deferred())
        return asked[-1]

    caller = Caller(bench.keyring(), check)
    waiting = [Deferred.fromCoroutine(caller.health()) for _ in range(10)]
    assert len(asked) == 1
    asked[0].callback(None)
    assert [await each for each in waiting] == [SERVING] * 10


@pytest_twisted.ensureDeferred
async def test_a_check_with_a_fault_is_an_error(bench, log):
    caller = Caller(bench.keyring(), lambda: fail(KeyError(SECRET)))
    status, _ = await status_of(caller.health())
    assert status is Status.INTERNAL
    assert SECRET not in log.text


def test_clients_tell_these_errors_from_others():
    from notary.signer.rpc import _STATUSES

    assert dict(_STATUSES) == {
        KeyNotFound: Status.NOT_FOUND,
        UnsupportedAlgorithm: Status.UNKNOWN,
        CustodyUnavailable: Status.UNAVAILABLE,
    }
