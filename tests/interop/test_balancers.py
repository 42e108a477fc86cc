"""HAProxy between server and signer, ending TLS on both sides, and in front of the server, with checks by OPTIONS.

Rules of this module: all programs are real processes; every pairing of ours and the reference's works behind the same
balancer, whose configuration says nothing of ALPN.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.support.peers import GO_SERVER, OUR_SERVER, Daemon, daemon, free_port, remote_signer
from tests.support.sides import Side, make_collection
from tests.support.signer import GO_SIGNER, OUR_SIGNER, Pair, signer_daemon

HAPROXY = "/usr/sbin/haproxy"
MEMORY = {"backend": "memory"}
KEYS = {"backend": "sqlite3", "db_url": "keys.db", "default_alias": "alias_one"}
ENVIRONMENT = {"NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple"}
CHECK_SECONDS = 30.0

SIGNERS: Mapping[str, tuple[tuple[str, ...], Mapping[str, str]]] = {
    "go": (GO_SIGNER, MEMORY),
    "ours": (OUR_SIGNER, KEYS),
}
SERVERS = {"go": GO_SERVER, "ours": OUR_SERVER}
TIMES = "defaults\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"


def haproxy(folder: Path, text: str, port: int) -> Daemon:
    config = folder / "haproxy.cfg"
    config.write_text(TIMES + text)
    return Daemon("haproxy", (HAPROXY, "-db", "-f", str(config)), port, folder)


@pytest.mark.parametrize("signed_by", SIGNERS)
@pytest.mark.parametrize("served_by", SERVERS)
@pytest_twisted.ensureDeferred
async def test_a_balancer_that_ends_tls_between_server_and_signer(
    tmp_path: Path, reactor: Any, served_by: str, signed_by: str
) -> None:
    pair = Pair.mint(tmp_path / "tls")
    ca, client = pair.authority.write(pair.folder, "root"), pair.client.write(pair.folder, "client")
    for name, leaf in (("front", pair.signer), ("back", pair.client)):
        certificate, key = leaf.write(pair.folder, name)
        (pair.folder / f"{name}.pem").write_bytes(certificate.read_bytes() + key.read_bytes())
    command, storage = SIGNERS[signed_by]
    signer = signer_daemon("signer", command, pair, tmp_path, storage, environment=ENVIRONMENT, level="info")
    port, tls = free_port(), pair.folder
    balancer = haproxy(
        tmp_path,
        f"listen signer\n mode tcp\n bind 127.0.0.1:{port} ssl crt {tls}/front.pem ca-file {ca} verify required\n"
        f" server one 127.0.0.1:{signer.port} ssl crt {tls}/back.pem ca-file {ca} verify required sni str(localhost)\n",
        port,
    )
    section = remote_signer(port, ca, client)
    server = daemon("server", SERVERS[served_by], tmp_path, storage=MEMORY, extra=section, level="info")
    with signer, balancer, server:
        async with Side(server, reactor) as side:
            collection = await make_collection(side, server_snapshot=True)
            await collection.verify()
        for each, ours in ((server, served_by == "ours"), (signer, signed_by == "ours")):
            assert each.output().count("does not say so in TLS (ALPN)") == ours, each.output()


def wait_for_check(balancer: Daemon) -> None:
    """Wait until a check of the balancer has succeeded; AssertionError if one fails."""
    deadline = time.monotonic() + CHECK_SECONDS
    while "Health check for server server/one succeeded" not in balancer.output():
        assert time.monotonic() < deadline, balancer.output()
        assert "is DOWN" not in balancer.output()
        time.sleep(0.05)


@pytest.mark.parametrize("check", ["OPTIONS *", "OPTIONS /", "OPTIONS /v2/"])
@pytest_twisted.ensureDeferred
async def test_a_balancer_that_checks_by_options(tmp_path: Path, reactor: Any, check: str) -> None:
    server, port = daemon("server", OUR_SERVER, tmp_path, storage=MEMORY), free_port()
    balancer = haproxy(
        tmp_path,
        f"listen server\n mode http\n bind 127.0.0.1:{port}\n option httpchk {check}\n"
        f" option log-health-checks\n log stdout format raw local0\n"
        f" server one 127.0.0.1:{server.port} check inter 200ms rise 1 fall 1\n",
        port,
    )
    with server, balancer:
        wait_for_check(balancer)
        async with Side(balancer, reactor) as side:
            assert (await side.get("/v2/")).status == 200
