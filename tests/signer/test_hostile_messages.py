"""A client that sends any bytes as a message is told a status, and nothing is unexpected."""

from __future__ import annotations

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import maybeDeferred, succeed
from twisted.internet.task import Clock

from notary.net.grpc import Context, Peer, RpcError, Status
from notary.proto import paths, signer_pb2
from notary.signer.custody.jwe import JweCustody
from notary.signer.keyring import Keyring
from notary.signer.metrics import SignerMetrics
from notary.signer.rpc import Rpc
from tests.signer.conftest import ALIAS, NOW, PASSPHRASES

_TEXTS = st.text(max_size=300)
_MESSAGES = st.one_of(
    st.binary(max_size=200),
    st.builds(signer_pb2.CreateKeyRequest, algorithm=_TEXTS, gun=_TEXTS, role=_TEXTS).map(
        lambda message: message.SerializeToString()
    ),
    st.builds(lambda name: signer_pb2.KeyID(ID=name).SerializeToString(), _TEXTS),
)
NAMED = [
    pytest.param(b"\x0a" * 5_000, id="lengths without end"),
    pytest.param(b"\x1b" * 100_000, id="groups that nest 100,000 deep"),
    pytest.param(b"\x0a\x02\xed\xa0", id="half a surrogate"),
    pytest.param(b"\x0a\x84\x80\x80\x08abcd", id="a length of a gigabyte"),
    pytest.param(b"\xfa\xff\xff\xff\x0f\x01x" * 10_000, id="unknown fields"),
    pytest.param(signer_pb2.CreateKeyRequest(algorithm="x" * 100_000, gun="g").SerializeToString(), id="algorithm"),
    pytest.param(signer_pb2.KeyID(ID="\u0660" * 64).SerializeToString(), id="digits of another script"),
]


async def is_answered(bench, data: bytes) -> None:
    metrics = SignerMetrics(version="0")
    keyring = Keyring(bench.store, JweCustody(PASSPHRASES.get, ALIAS), maybeDeferred, lambda: NOW)
    context = Context("", Peer("192.0.2.1:5", None), Clock(), None)
    for path, handle in Rpc(keyring, lambda: succeed(None), metrics).methods().items():
        known = {Status.INTERNAL, Status.NOT_FOUND}
        if path == paths.CREATE_KEY:
            known = {Status.INTERNAL, Status.UNKNOWN}  # of an unknown algorithm
        try:
            answer = handle(data, context)
            assert isinstance(answer if isinstance(answer, bytes) else await answer, bytes)
        except RpcError as error:
            assert error.status in known  # noqa: PT017 - not raised by some
    assert "notary_signer_unexpected_errors_total 0.0" in metrics.render()[1].decode()


@pytest.mark.parametrize("backend", ["memory"], indirect=False)
@pytest.mark.parametrize("data", NAMED)
@pytest_twisted.ensureDeferred
async def test_odd_messages_are_answered(bench, backend, data):
    await is_answered(bench, data)


@pytest.mark.parametrize("backend", ["memory"], indirect=False)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(data=_MESSAGES)
@pytest_twisted.ensureDeferred
async def test_any_message_is_answered(bench, backend, data):
    await is_answered(bench, data)
