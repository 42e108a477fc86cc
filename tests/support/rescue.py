"""The new service of docs/rescue.md: our server and signer, and the script by which owners take over."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.peers import OUR_SERVER, Certificates, Daemon, daemon, remote_signer
from tests.support.signer import OUR_SIGNER, Pair, signer_daemon

ROOT = Path(__file__).parents[2]
ALIAS = {"NOTARY_SIGNER_DEFAULT_ALIAS": "alias_one", "NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple"}


@contextmanager
def new_pair(certificates: Certificates, folder: Path) -> Iterator[Daemon]:
    """Our server on SQLite, with our signer; both run."""
    pair = Pair.mint(folder / "tls")
    ca, client = pair.authority.write(pair.folder, "root"), pair.client.write(pair.folder, "client")
    signer = signer_daemon(
        "signer", OUR_SIGNER, pair, folder, {"backend": "sqlite3", "db_url": "keys.db"}, environment=ALIAS
    )
    server = daemon(
        "server",
        OUR_SERVER,
        folder,
        tls=certificates,
        storage={"backend": "sqlite3", "db_url": "notary.db"},
        extra=remote_signer(signer.port, ca, client),
    )
    with signer, server:
        yield server


def take_over(server: Daemon, gun: str, trust: Path) -> None:
    """Stage new keys of timestamp and snapshot in a trust directory, by etc/take-over.sh."""
    assert server.tls is not None
    command = (ROOT / "etc/take-over.sh", server.url, gun, trust, "--cacert", server.tls.ca)
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
