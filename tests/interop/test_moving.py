"""docs/moving.md, step by step and back, on both databases: Go's data served by ours, and by Go again.

Each step is a command of the page, run as it is written there.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.storage import historic
from tests.support.databases import SERVER_RIGHTS, SIGNER_RIGHTS, DatabaseServer
from tests.support.goclient import Machine
from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, clean_environment, daemon, remote_signer
from tests.support.signer import GO_SIGNER, OUR_SIGNER, Pair, signer_daemon

ADMIN = str(Path(sys.executable).with_name("notary-admin"))
PASSPHRASES = {"NOTARY_SIGNER_DEFAULT_ALIAS": "alias_one", "NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple"}
PAGE = (Path(__file__).parents[2] / "docs/moving.md").read_text("utf-8")
STATES: Mapping[str, Sequence[Mapping[int, Sequence[str]]]] = {
    "mariadb": (historic.MYSQL_SERVER, historic.MYSQL_SIGNER),
    "postgresql": (historic.POSTGRES_SERVER, historic.POSTGRES_SIGNER),
}


class Move:
    """The two databases of a Go Notary, and the configuration of its daemons."""

    def __init__(self, kind: str, server: DatabaseServer, folder: Path, tls: Certificates) -> None:
        self.database, self.folder, self.tls = server, folder, tls
        self.names = {"server": server.database(), "signer": server.database()}
        self.pair = Pair.mint(folder / "tls")
        for name, states in zip(self.names.values(), STATES[kind], strict=True):
            for statement in (*itertools.chain(*states.values()), *historic.recorded(max(states))):
                server.execute(name, statement)
        # Go's signer needs to UPDATE as well.
        self.urls = {
            name: server.db_url(database, server.user(database, SERVER_RIGHTS)) for name, database in self.names.items()
        }
        ca, client = (
            self.pair.authority.write(self.pair.folder, "root"),
            self.pair.client.write(self.pair.folder, "client"),
        )
        self.signer = signer_daemon(
            "signer", GO_SIGNER, self.pair, folder, self._storage("signer"), environment=PASSPHRASES
        )
        self.server = daemon(
            "server",
            GO_SERVER,
            folder,
            tls=tls,
            storage=self._storage("server"),
            extra=remote_signer(self.signer.port, ca, client),
        )

    def owner_url(self, name: str) -> str:
        """The ``db_url`` of the user who may change tables; in MariaDB as the page makes that user, and connects."""
        if self.database.backend != "mysql":
            return self.database.db_url(self.names[name])
        user, made = f"migrator_{self.names['server']}", {"server": "notaryserver", "signer": "notarysigner"}

        def here(text: str) -> str:
            text = text.replace("migrator", user).replace("127.0.0.1:3306", f"127.0.0.1:{self.database.port}")
            for which, told in made.items():
                text = text.replace(told, self.names[which])
            return text

        if not self.database.execute("", "SELECT 1 FROM mysql.user WHERE user = %s", user):
            (statements,) = re.findall(r"^```sql\n(CREATE USER .*?)^```", PAGE, re.MULTILINE | re.DOTALL)
            for statement in here(statements).split(";\n")[:-1]:
                self.database.execute("", statement)
        (url,) = re.findall(rf"export NOTARY_{name.upper()}_STORAGE_DB_URL='(migrator.*)'", PAGE)
        return here(url)

    def _storage(self, name: str) -> dict[str, str]:
        return {"backend": self.database.backend, "db_url": self.urls[name]}

    def run(self, commands: tuple[Sequence[str], Sequence[str]]) -> None:
        """Start server and signer of these commands, with the same files as before."""
        for which, command in zip((self.signer, self.server), commands, strict=True):
            which.command = (*command, f"-config={self.folder / which.name}.json")
            which.start()

    def stop(self) -> None:
        for which in (self.server, self.signer):
            which.stop()

    def kill(self) -> None:
        for which in (self.server, self.signer):
            which.kill()

    def admin(self, name: str, *arguments: str, as_owner: bool = False) -> str:
        """What notary-admin says; it must do its work."""
        more = dict(PASSPHRASES)
        if as_owner:
            more[f"NOTARY_{name.upper()}_STORAGE_DB_URL"] = self.owner_url(name)
        done = subprocess.run(
            [ADMIN, *arguments, "--config", f"{self.folder / name}.json"],
            env=clean_environment(more),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def publish(self, machine: Machine, gun: str, name: str) -> None:
        """A new target, and a new key of the signer's for the timestamp."""
        machine("add", gun, name, str(machine.directory / "content"))
        machine("publish", gun)
        machine("key", "rotate", gun, "timestamp", "-r")


@pytest.fixture(params=list(STATES))
def move(request: pytest.FixtureRequest, certificates: Certificates, tmp_path: Path) -> Any:
    made = Move(request.param, request.getfixturevalue(request.param), tmp_path, certificates)
    try:
        yield made
    finally:
        made.kill()


def test_there_and_back(move: Move, tmp_path: Path) -> None:
    go, ours = (GO_SIGNER, GO_SERVER), (OUR_SIGNER, OUR_SERVER)
    owner = Machine(tmp_path / "owner", move.server.url, move.tls.ca)
    (owner.directory / "content").write_bytes(b"content")
    guns = [f"example.com/{name}" for name in ("one", "two")]

    move.run(go)
    for gun in guns:
        owner("init", gun)
        move.publish(owner, gun, "of-go")
    move.stop()

    # Steps 2 to 4.
    for name in ("server", "signer"):
        planned = move.admin(name, "migrate", "--dry-run", as_owner=True)
        assert planned == move.admin(name, "migrate", "--dry-run", as_owner=True), "nothing has changed"
        move.admin(name, "migrate", as_owner=True)
        assert "there was nothing to do" in move.admin(name, "migrate", as_owner=True)
        move.admin(name, "check-config")

    # Step 5 and 6, with the rights that ours need.
    as_before = move.urls["signer"]
    needed = move.database.user(move.names["signer"], SIGNER_RIGHTS)
    config = tmp_path / "signer.json"
    config.write_text(config.read_text().replace(as_before, move.database.db_url(move.names["signer"], needed)))
    move.run(ours)
    move.admin("server", "fsck")
    for gun in guns:
        assert set(owner.targets(gun)) == {"of-go"}
        move.publish(owner, gun, "of-ours")
    move.admin("server", "fsck")
    move.stop()

    # Back.
    config.write_text(config.read_text().replace(move.database.db_url(move.names["signer"], needed), as_before))
    move.run(go)
    for gun in guns:
        newcomer = Machine(tmp_path / "newcomer", move.server.url, move.tls.ca)
        assert set(newcomer.targets(gun)) == {"of-go", "of-ours"}
        move.publish(owner, gun, "of-go-again")
    move.stop()

    # And there once more: what Go has written meanwhile is in order.
    move.run(ours)
    move.admin("server", "fsck")
    assert set(owner.targets(guns[0])) == {"of-go", "of-ours", "of-go-again"}
