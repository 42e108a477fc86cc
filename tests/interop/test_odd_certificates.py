"""Go's programs and ours with certificates for TLS that are odd in every way at once, on all sides.

Rules of this module: each pair has an odd authority, and an odd leaf for its server and for its signer; the server
shows the signer an odd certificate as well. The stock client publishes to the pair and reads what it published.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import oddcerts
from tests.support.author import make_private
from tests.support.goclient import Machine
from tests.support.oddcerts import PRINTABLE, TELETEX, Form, attribute, authority, der, distinguished, make, write
from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, Daemon, daemon, free_port, remote_signer
from tests.support.signer import GO_SIGNER, OUR_SIGNER

ENVIRONMENT = {"NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple"}
KEYS = {"backend": "sqlite3", "db_url": "keys.db", "default_alias": "alias_one"}
MEMORY = {"backend": "memory"}
MORE = (
    attribute(oddcerts.ORGANISATION, PRINTABLE, b"Smith & Sons"),
    attribute(oddcerts.COUNTRY, TELETEX, b"Soci\xe9t\xe9"),
)
ODD_IN_ALL = Form(
    name=lambda common: distinguished(PRINTABLE, b"*" + common, *MORE),
    serial=b"\x85",
    begins=der(oddcerts.UTC, b"200101000000+0100"),
    constraints=oddcerts.ODD["CA:FALSE written out"].constraints,
    hosts=(*oddcerts.LOOPBACK, "127.0.0.1", "a*b.example.com"),
)
SERVERS = {"go": (GO_SERVER, MEMORY), "ours": (OUR_SERVER, MEMORY)}
SIGNERS = {"go": (GO_SIGNER, MEMORY), "ours": (OUR_SIGNER, KEYS)}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """One authority and one leaf, for everybody."""
    folder = tmp_path_factory.mktemp("odd")
    root, leaf = make_private(), make_private()
    above = authority(ODD_IN_ALL)
    ca, _ = write(folder, "ca", root, make(above, "an authority", root))
    shown = make(ODD_IN_ALL, "notary-server", leaf, issuer=(above, "an authority", root))
    return Certificates(ca, *write(folder, "leaf", leaf, shown))


@pytest.mark.parametrize("signer", SIGNERS)
@pytest.mark.parametrize("server", SERVERS)
def test_a_pair_works(server: str, signer: str, tls: Certificates, tmp_path: Path) -> None:
    command, storage = SIGNERS[signer]
    port, config = free_port(), tmp_path / "signer.json"
    section = {
        "grpc_addr": f"127.0.0.1:{port}",
        "tls_cert_file": str(tls.certificate),
        "tls_key_file": str(tls.key),
        "client_ca_file": str(tls.ca),
    }
    if signer == "ours":
        section["client_names"] = ["notary-server"]
    config.write_text(json.dumps({"server": section, "storage": storage, "logging": {"level": "error"}}))
    extra = remote_signer(port, tls.ca, (tls.certificate, tls.key))
    with (
        Daemon("signer", (*command, f"-config={config}"), port, tmp_path, environment=ENVIRONMENT) as signing,
        daemon("server", SERVERS[server][0], tmp_path, tls=tls, storage=SERVERS[server][1], extra=extra) as serving,
    ):
        gun, content = "example.com/odd", tmp_path / "content"
        content.write_bytes(b"content")
        owner = Machine(tmp_path / "owner", serving.url, tls.ca)
        owner("init", gun)
        owner("add", gun, "v1", str(content))
        owner("publish", gun)
        assert set(Machine(tmp_path / "reader", serving.url, tls.ca).targets(gun)) == {"v1"}
        assert signing.alive
