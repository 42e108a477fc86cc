"""The certificates in fixtures/ are good, and stay good for a while; the configurations that we ship can be loaded."""

from __future__ import annotations

import runpy
import subprocess
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from notary import config

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures"

ENOUGH = timedelta(days=90)

NAMES = {
    "notary-server": {"notary-server", "notaryserver", "localhost"},
    "notary-signer": {"notary-signer", "notarysigner", "localhost"},
}
LEAVES = sorted(NAMES)
FILES = ["root-ca.crt", "intermediate-ca.crt", *(f"{leaf}.crt" for leaf in LEAVES)]


def chain(path: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(path.read_bytes())


def complaints(folder: Path, now: datetime) -> list[str]:
    """What is wrong with the certificates in a folder, one line each."""
    found = []
    for name in FILES:
        for certificate in chain(folder / name):
            if certificate.not_valid_before_utc > now:
                found.append(f"{name}: not valid before {certificate.not_valid_before_utc}")
            if certificate.not_valid_after_utc - now < ENOUGH:
                found.append(
                    f"{name}: expires on {certificate.not_valid_after_utc:%Y-%m-%d}; run `make fixtures`, commit"
                )
    for leaf in LEAVES:
        certificates = chain(folder / f"{leaf}.crt")
        if certificates[1:] != chain(folder / "intermediate-ca.crt"):
            found.append(f"{leaf}.crt: is not the leaf, then the intermediate")
        key = load_pem_private_key((folder / f"{leaf}.key").read_bytes(), None)
        if key.public_key() != certificates[0].public_key():
            found.append(f"{leaf}.key: not the key of {leaf}.crt")
    return found


def openssl_verify(folder: Path, leaf: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Let openssl judge the chain of a leaf as server and as client, with nothing trusted but the root CA."""
    certificates = folder / f"{leaf}.crt"
    trust: list[str | Path] = ["-no-CApath", "-no-CAstore", "-CAfile", folder / "root-ca.crt"]
    return subprocess.run(
        ["openssl", "verify", "-x509_strict", *trust, "-untrusted", certificates, *options, certificates],
        capture_output=True,
        text=True,
        check=False,
    )


def test_certificates_are_valid_for_90_days_and_match_their_keys() -> None:
    assert complaints(FIXTURES, datetime.now(UTC)) == []


def test_a_certificate_about_to_expire_is_noticed() -> None:
    expiry = min(certificate.not_valid_after_utc for name in FILES for certificate in chain(FIXTURES / name))
    found = complaints(FIXTURES, expiry - ENOUGH + timedelta(seconds=1))
    assert found
    assert all("make fixtures" in line for line in found)


@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
@pytest.mark.parametrize("leaf", LEAVES)
def test_openssl_accepts_the_chain(leaf: str, purpose: str) -> None:
    result = openssl_verify(FIXTURES, leaf, "-purpose", purpose)
    assert result.returncode == 0, result.stderr


def test_openssl_refuses_a_chain_to_another_root(tmp_path: Path) -> None:
    runpy.run_path(str(FIXTURES / "regenerate.py"))["regenerate"](tmp_path, datetime.now(UTC))
    (tmp_path / "root-ca.crt").write_bytes((FIXTURES / "root-ca.crt").read_bytes())
    assert openssl_verify(tmp_path, "notary-server").returncode != 0


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_has_the_names_of_the_operators_guide(leaf: str) -> None:
    certificate = chain(FIXTURES / f"{leaf}.crt")[0]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == NAMES[leaf]
    assert set(names.get_values_for_type(x509.IPAddress)) == {ip_address("127.0.0.1"), ip_address("::1")}
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == leaf
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def test_no_key_of_an_authority_is_kept() -> None:
    assert sorted(path.name for path in FIXTURES.glob("*.key")) == ["notary-server.key", "notary-signer.key"]


def test_regenerating_writes_the_same_files_with_new_content(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    written = runpy.run_path(str(FIXTURES / "regenerate.py"))["regenerate"](tmp_path, now)
    kept = {path.name for path in FIXTURES.iterdir() if path.suffix in {".crt", ".key"}}
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()} == kept
    assert complaints(tmp_path, now) == []
    assert complaints(tmp_path, now + timedelta(days=3550)) == []
    assert all((tmp_path / name).read_bytes() != (FIXTURES / name).read_bytes() for name in kept)
    for leaf in LEAVES:
        result = openssl_verify(tmp_path, leaf)
        assert result.returncode == 0, result.stderr


def shipped_pair() -> tuple[config.ServerConfig, config.SignerConfig]:
    """The two configurations that `make up` runs."""
    server, signer = (FIXTURES / f"{name}-config.json" for name in ("server", "signer"))
    return (
        config.load_server(server.read_text(), {}, FIXTURES),
        config.load_signer(signer.read_text(), {"NOTARY_SIGNER_PASSPHRASE_1": "a secret of the tests"}, FIXTURES),
    )


def test_the_configurations_of_make_up_name_files_of_this_folder() -> None:
    server, signer = shipped_pair()
    assert server.warnings == signer.warnings == ()
    assert server.server.http_addr == ("localhost", 4443)
    trust = server.trust_service
    assert {server.server.tls_cert_file, trust.tls_client_cert} == {FIXTURES / "notary-server.crt"}
    assert {server.server.tls_key_file, trust.tls_client_key} == {FIXTURES / "notary-server.key"}
    assert trust.tls_ca_file == FIXTURES / "root-ca.crt"
    assert signer.server.tls_cert_file == FIXTURES / "notary-signer.crt"
    assert signer.server.tls_key_file == FIXTURES / "notary-signer.key"
    assert signer.server.client_ca_file == FIXTURES / "notary-server.crt"
    assert signer.server.client_names == ("notary-server",)
    for storage in (server.storage, signer.storage):
        assert Path(storage.db_url).parent.resolve() == ROOT / "var"


def test_make_up_looks_at_the_ports_that_the_pair_uses() -> None:
    server, signer = shipped_pair()
    assert signer.server.grpc_addr == (server.trust_service.hostname, server.trust_service.port)
    ports = f"for port in {server.server.http_addr.port} {signer.server.grpc_addr.port}; do"
    assert ports in (ROOT / "etc/up.sh").read_text()
