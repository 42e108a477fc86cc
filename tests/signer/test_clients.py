"""The allow-list of clients: which clients it knows, and what the log and other clients are told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from notary.net.grpc import Context, Peer, RpcError, Status
from notary.signer.clients import Clients


def certificate(common_names=(), dns=(), extension=None):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each) for each in common_names])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    if dns:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in dns]), False)
    if extension is not None:
        oid = x509.SubjectAlternativeName.oid
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, extension), False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def call(clients, shown, handler=lambda request, _context: request):
    methods = clients.guard({"/toy.Toy/Echo": handler})
    return methods["/toy.Toy/Echo"](b"echo", Context("/toy.Toy/Echo", peer_of(shown), Clock(), None))


def peer_of(shown):
    return shown if isinstance(shown, Peer) else Peer("192.0.2.1:5", shown)


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(certificate(["other"], ["notary-server"]), id="DNS name"),
        pytest.param(certificate([], ["other", "Notary-Server"]), id="second DNS name, capitals"),
        pytest.param(certificate(["notary-server"]), id="common name"),
        pytest.param(certificate(["other", "NOTARY-SERVER"]), id="second common name, capitals"),
        pytest.param(certificate(["second.example"]), id="second of the list"),
    ],
)
def test_these_pass(shown):
    assert call(Clients(["notary-server", "Second.example"]), shown) == b"echo"


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        pytest.param(None, "it showed no certificate", id="no certificate"),
        pytest.param(certificate(["other"], ["a.example", "b.example"]), "a.example, b.example", id="other names"),
        pytest.param(certificate(["notary-server"], ["other"]), "certificate: other", id="only its common name"),
        pytest.param(certificate(["notary-server.example.com"]), "notary-server.example.com", id="longer name"),
        pytest.param(certificate(["notary-serve"]), "certificate: notary-serve", id="shorter name"),
        pytest.param(certificate([], ["*"]), "certificate: *", id="wildcard"),
        pytest.param(certificate(), "there are none", id="no name"),
        pytest.param(certificate(["notary-server"], extension=b"\xff"), "cannot be read", id="broken extension"),
    ],
)
def test_these_are_refused_and_the_log_says_why(shown, reason):
    with capturedLogs() as events, pytest.raises(RpcError) as caught:
        call(Clients(["notary-server"]), shown)
    assert caught.value.status is Status.PERMISSION_DENIED
    assert "its log says why" in caught.value.message
    (line,) = [formatEvent(event) for event in events]
    assert line.startswith("client 192.0.2.1:5 is refused: ")
    assert reason in line


def test_a_refusal_is_logged_once_a_connection():
    clients = Clients(["notary-server"])
    one, two = Peer("192.0.2.1:5", None), Peer("192.0.2.1:6", None)
    with capturedLogs() as events:
        for peer in (one, one, two, one):
            with pytest.raises(RpcError):
                call(clients, peer)
    assert [formatEvent(event)[:18] for event in events] == ["client 192.0.2.1:5", "client 192.0.2.1:6"]
