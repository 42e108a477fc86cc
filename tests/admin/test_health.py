"""``notary-admin health`` against running daemons."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.admin.conftest import admin
from tests.support.certs import Leaf
from tests.support.peers import OUR_SERVER, Certificates, Daemon, daemon, free_port, mint_certificates
from tests.support.signer import OUR_SIGNER, Pair, signer_daemon


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return mint_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["https", "http"])
def server(request: pytest.FixtureRequest, tmp_path: Path, certificates: Certificates) -> Iterator[Daemon]:
    tls = certificates if request.param == "https" else None
    with daemon("server", OUR_SERVER, tmp_path, tls=tls) as started:
        yield started


@pytest_twisted.ensureDeferred
async def test_a_server_that_works(server: Daemon, tmp_path: Path) -> None:
    outcome = await admin("health", "--config", tmp_path / "server.json")
    assert (outcome.status, outcome.err) == (0, "healthy\n")
    await deferToThread(server.kill)
    outcome = await admin("health", "--config", tmp_path / "server.json")
    assert outcome.status == 1
    assert f"the server at 127.0.0.1:{server.port} does not answer: [Errno 111] Connection refused" in outcome.err


def old_fashioned(folder: Path) -> Certificates:
    """A leaf, then an authority that does not say what its key is for; ``openssl req -x509`` makes such ones."""
    ca, ca_key, server, key = (folder / name for name in ("ca.crt", "ca.key", "server.crt", "server.key"))
    new = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")
    for command in (
        (*new, "-subj", "/CN=CA", "-out", ca, "-keyout", ca_key),
        (*new, "-subj", "/CN=localhost", "-out", server, "-keyout", key, "-CA", ca, "-CAkey", ca_key),
    ):
        subprocess.run(command, check=True, capture_output=True)
    server.write_text(server.read_text() + ca.read_text())
    return Certificates(ca, server, key)


@pytest_twisted.ensureDeferred
async def test_a_server_whose_authority_python_does_not_like(tmp_path: Path) -> None:
    """Python 3.13 and later, and no client of Notary, refuse what RFC 5280 does not allow."""
    with daemon("server", OUR_SERVER, tmp_path, tls=old_fashioned(tmp_path)):
        outcome = await admin("health", "--config", tmp_path / "server.json")
    assert (outcome.status, outcome.err) == (0, "healthy\n")


@pytest_twisted.ensureDeferred
async def test_a_server_without_its_signer(tmp_path: Path, certificates: Certificates) -> None:
    trust = {"type": "remote", "hostname": "localhost", "port": free_port(), "key_algorithm": "ecdsa"}
    trust["tls_ca_file"] = str(certificates.ca)
    with daemon("server", OUR_SERVER, tmp_path, tls=certificates, extra={"trust_service": trust}):
        outcome = await admin("health", "--config", tmp_path / "server.json")
        while "Trust operational" not in outcome.err:  # the first check has not ended yet
            outcome = await admin("health", "--config", tmp_path / "server.json")
    assert outcome.status == 1
    assert "says 503: " in outcome.err


@pytest_twisted.ensureDeferred
async def test_somebody_else_at_the_address_of_the_server(
    certificates: Certificates, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = mint_certificates(tmp_path_factory.mktemp("other"))
    with daemon("server", OUR_SERVER, tmp_path, tls=certificates):
        config = json.loads((tmp_path / "server.json").read_text())
        config["server"] |= {"tls_cert_file": str(other.certificate), "tls_key_file": str(other.key)}
        (tmp_path / "other.json").write_text(json.dumps(config))
        outcome = await admin("health", "--config", tmp_path / "other.json")
    assert outcome.status == 1
    assert "certificate verify failed" in outcome.err


@pytest.mark.parametrize("names", [{}, {"client_names": ["notary-server"]}])
@pytest_twisted.ensureDeferred
async def test_a_signer(tmp_path: Path, names: dict[str, list[str]]) -> None:
    pair = Pair.mint(tmp_path / "tls")
    memory = {"backend": "memory"}
    with signer_daemon("signer", OUR_SIGNER, pair, tmp_path, memory, **names) as signer:
        outcome = await admin("health", "--config", tmp_path / "signer.json")
        assert (outcome.status, outcome.err) == (0, "healthy\n")
        await deferToThread(signer.kill)
        outcome = await admin("health", "--config", tmp_path / "signer.json")
    assert outcome.status == 1
    assert f"the signer at 127.0.0.1:{signer.port} does not answer: " in outcome.err


@pytest_twisted.ensureDeferred
async def test_a_signer_that_lets_in_the_certificate_of_its_server_only(tmp_path: Path) -> None:
    """The second good way of docs/deployment.md."""
    pair = Pair.mint(tmp_path / "tls")
    alone, key = Leaf(pair.client.key, pair.client.chain[:1]).write(tmp_path, "server-leaf")
    with signer_daemon("signer", OUR_SIGNER, pair, tmp_path, {"backend": "memory"}, client_ca_file=str(alone)):
        config = tmp_path / "signer.json"
        own = await admin("health", "--config", config)
        shown = await admin("health", "--config", config, "--tls-client-cert", alone, "--tls-client-key", key)
        strange = await admin("health", "--config", config, "--tls-client-cert", key, "--tls-client-key", key)
    assert own.status == 1
    assert "give one that server.client_ca_file accepts with --tls-client-cert and --tls-client-key" in own.err
    assert (shown.status, shown.err) == (0, "healthy\n")
    assert strange.status == 2
    assert str(key) in strange.err
    assert "trust_service" not in strange.err
    lonely = await admin("health", "--config", config, "--tls-client-cert", alone)
    assert lonely.status == 2
    assert "one is given without the other" in lonely.err


@pytest_twisted.ensureDeferred
async def test_a_server_that_lets_in_one_certificate(
    tmp_path: Path, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pair = Pair.mint(tmp_path_factory.mktemp("probe"))
    alone, key = Leaf(pair.client.key, pair.client.chain[:1]).write(tmp_path, "probe")
    probe = daemon("server", OUR_SERVER, tmp_path, tls=certificates)
    tree = json.loads((tmp_path / "server.json").read_text())
    tree["server"]["client_ca_file"] = str(alone)
    (tmp_path / "server.json").write_text(json.dumps(tree))
    with probe:
        config = tmp_path / "server.json"
        own = await admin("health", "--config", config)
        shown = await admin("health", "--config", config, "--tls-client-cert", alone, "--tls-client-key", key)
        strange = await admin("health", "--config", config, "--tls-client-cert", key, "--tls-client-key", key)
    assert own.status == 1
    assert "--tls-client-cert" in own.err
    assert (shown.status, shown.err) == (0, "healthy\n")
    assert strange.status == 2
    assert str(key) in strange.err


@pytest_twisted.ensureDeferred
async def test_the_variable_that_names_the_configuration(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with daemon("server", OUR_SERVER, tmp_path, tls=certificates):
        monkeypatch.setenv("NOTARY_CONFIG", str(tmp_path / "server.json"))
        assert (await admin("health")).status == 0
