"""``notary-admin`` on what the stock client published, beside a running server; the client judges what is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.goclient import Delegate, Machine
from tests.support.peers import OUR_SERVER, Certificates, Daemon, clean_environment, daemon

GUN = "example.com/team/app"
SCRIPT = Path(sys.executable).parent / "notary-admin"


def admin(server: Daemon, *arguments: str) -> list[dict]:
    """What the console script says; AssertionError if it does not end with status 0."""
    command = (SCRIPT, *arguments, "--config", str(server.directory / "server.json"), "--json")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())
    assert done.returncode == 0, f"{arguments}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_the_stock_client_published(certificates: Certificates, tmp_path: Path) -> None:
    storage = {"backend": "sqlite3", "db_url": "notary.db"}
    with daemon("server", OUR_SERVER, tmp_path / "server", tls=certificates, storage=storage) as server:
        owner, regular, alice, newcomer = (
            Machine(tmp_path / name, server.url, certificates.ca) for name in ("owner", "regular", "alice", "newcomer")
        )
        for name in ("v1", "v2", "v3"):
            (owner.directory / name).write_bytes(name.encode())
        owner("init", GUN, "-p")
        owner("add", GUN, "v1", "v1", "-p")
        owner("key", "rotate", GUN, "snapshot", "-r")
        assert set(regular.targets(GUN)) == {"v1"}
        delegate = Delegate(owner.directory, "alice")
        owner("delegation", "add", GUN, "targets/releases", delegate.certificate, "--all-paths", "-p")
        alice("key", "import", delegate.key, "-r", "targets/releases")
        alice("add", GUN, "v2", str(owner.directory / "v2"), "-r", "targets/releases", "-p")
        for _ in range(2):
            owner("key", "rotate", GUN, "root", stdin=b"yes\n")
        owner("key", "rotate", GUN, "targets")

        assert admin(server, "fsck") == []
        (listed,) = admin(server, "repos", "list")
        assert set(listed["roles"]) == {"root", "targets", "targets/releases", "snapshot", "timestamp"}
        (shown,) = admin(server, "repos", "show", GUN)
        assert [key["type"] for key in shown["roles"]["targets/releases"]["keys"]] == ["ecdsa-x509"]
        assert admin(server, "expiring", "--role", "root", "--role", "targets", "--role", "delegations") == []

        (collected,) = admin(server, "gc", "--keep", "1", "--yes")
        assert collected["files"] > 5
        assert admin(server, "fsck") == []
        assert set(regular.targets(GUN)) == {"v1", "v2"}, "who knows the first root can follow"

        admin(server, "repos", "export", GUN, str(tmp_path / "app.jsonl"))
        admin(server, "repos", "delete", GUN, "--yes")
        assert "does not have trust data" in newcomer.refused("list", GUN)
        admin(server, "repos", "import", str(tmp_path / "app.jsonl"))
        assert set(newcomer.targets(GUN)) == {"v1", "v2"}
        owner("add", GUN, "v3", "v3", "-p")
        for who in (regular, newcomer):
            assert set(who.targets(GUN)) == {"v1", "v2", "v3"}
        assert admin(server, "fsck") == []
