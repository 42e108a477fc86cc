"""docs/backup.md, typed on each database while the stock client publishes: lost data comes back, with every key.

Rules of this module: the blocks of the page run as they stand, in one shell of root's; only the values that are the
reader's are of the test. Both daemons are ours.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.test_walk import blocks, with_values
from tests.support.databases import SERVER_RIGHTS, SIGNER_RIGHTS, DatabaseServer
from tests.support.goclient import Machine
from tests.support.peers import OUR_SERVER, Certificates, clean_environment, daemon, remote_signer
from tests.support.signer import OUR_SIGNER, Pair, signer_daemon

ADMIN = str(Path(sys.executable).with_name("notary-admin"))
PAGE = (Path(__file__).parents[2] / "docs/backup.md").read_text("utf-8")
PASSPHRASES = {"NOTARY_SIGNER_DEFAULT_ALIAS": "alias_one", "NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple"}
COMMAND_SECONDS = 120.0
FEWEST_COLLECTIONS = 4
"""Collections that are made before the copy, and at least so many during and after it together."""


class Place(ABC):
    """Two databases of one kind: how each is reached, emptied, and named in the blocks of the page."""

    section: str
    storage: dict[str, dict[str, str]]
    values: dict[str, object]
    environment: dict[str, str]

    @abstractmethod
    def lose(self) -> None:
        """Remove all data of both databases."""


class OnServer(Place):
    """On MariaDB or PostgreSQL."""

    def __init__(self, server: DatabaseServer, folder: Path) -> None:
        self.server = server
        self.section = {"mysql": "MariaDB and MySQL", "postgres": "PostgreSQL"}[server.backend]
        rights = {"server": SERVER_RIGHTS, "signer": SIGNER_RIGHTS}
        self.names = {daemon: server.database() for daemon in rights}
        self.owners = {daemon: server.db_url(name) for daemon, name in self.names.items()}
        self.storage = {
            daemon: {"backend": server.backend, "db_url": server.db_url(name, server.user(name, rights[daemon]))}
            for daemon, name in self.names.items()
        }
        self.values = {f"{daemon}_database": name for daemon, name in self.names.items()}
        login = f"user = {server.admin.name}\npassword = {server.admin.password}\n"
        (folder / ".my.cnf").write_text(f"[client]\n{login}host = 127.0.0.1\nport = {server.port}\n")
        self.environment = {
            "HOME": str(folder),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(server.port),
            "PGUSER": server.admin.name,
            "PGPASSWORD": server.admin.password,
        }

    def lose(self) -> None:
        for name in self.names.values():
            self.server.drop(name)


class InFiles(Place):
    """On SQLite, in the files of the page."""

    section = "SQLite"

    def __init__(self, folder: Path) -> None:
        self.files = {daemon: folder / f"data/notary-{daemon}/notary.sqlite3" for daemon in ("server", "signer")}
        for file in self.files.values():
            file.parent.mkdir(parents=True)
        self.owners = {}
        self.storage = {daemon: {"backend": "sqlite3", "db_url": str(file)} for daemon, file in self.files.items()}
        self.values = {"data": folder / "data"}
        self.environment = {"HOME": str(folder)}

    def lose(self) -> None:
        for file in self.files.values():
            for each in file.parent.glob("notary.sqlite3*"):
                each.write_bytes(b"")


@pytest.fixture(params=["mariadb", "postgresql", "sqlite3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "home").mkdir()
    if request.param == "sqlite3":
        yield InFiles(tmp_path / "home")
    else:
        yield OnServer(request.getfixturevalue(request.param), tmp_path / "home")


def admin(config: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [ADMIN, *arguments, "--config", str(config)],
        env=clean_environment(PASSPHRASES | environment),
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_is_lost_comes_back(place: Place, certificates: Certificates, tmp_path: Path) -> None:
    pair = Pair.mint(tmp_path / "tls")
    ca, client = pair.authority.write(pair.folder, "root"), pair.client.write(pair.folder, "client")
    signer = signer_daemon("signer", OUR_SIGNER, pair, tmp_path, place.storage["signer"], environment=PASSPHRASES)
    server = daemon(
        "server",
        OUR_SERVER,
        tmp_path,
        tls=certificates,
        storage=place.storage["server"],
        extra=remote_signer(signer.port, ca, client),
    )
    configs = {which.name: tmp_path / f"{which.name}.json" for which in (signer, server)}
    for name, url in place.owners.items():
        admin(configs[name], "migrate", **{f"NOTARY_{name.upper()}_STORAGE_DB_URL": url})
    owner = Machine(tmp_path / "owner", server.url, certificates.ca)
    made: list[str] = []

    def make() -> None:
        gun = f"example.com/collection-{len(made)}"
        owner("init", "-p", gun)
        owner("key", "rotate", gun, "snapshot", "-r")
        made.append(gun)

    def more_than(known: list[str]) -> None:
        deadline = time.monotonic() + COMMAND_SECONDS
        while len(made) <= len(known):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    first, copy, restore = shell(place, tmp_path)
    with signer, server:
        for _ in range(FEWEST_COLLECTIONS):
            make()
        before = list(made)
        beside(make, lambda: (more_than(before), copy(first)))
        while len(made) < 2 * FEWEST_COLLECTIONS:
            make()
    place.lose()
    restore(first)

    assert "0 do not open" in admin(configs["signer"], "keys", "verify")
    rows = admin(configs["server"], "repos", "list", "--json").splitlines()
    listed = [json.loads(row)["gun"] for row in rows if row.startswith("{")]
    assert set(before) <= set(listed) <= set(made)
    assert f"{len(listed)} collections checked: 0 errors, 0 notes" in admin(configs["server"], "fsck")
    # The publisher's keys, without what its client has seen.
    shutil.rmtree(owner.directory / "trust/tuf")
    (tmp_path / "file").write_bytes(b"after the restore")
    with signer, server:
        for gun in listed:
            if gun not in before:  # perhaps copied before its rotation, after which the client has no snapshot key
                owner("key", "rotate", gun, "snapshot", "-r")
            owner("add", "-p", gun, "v1", str(tmp_path / "file"))
            assert set(owner.targets(gun)) == {"v1"}


def beside(work: Callable[[], None], wanted: Callable[[], object]) -> None:
    """Do ``wanted`` while another thread does ``work`` again and again."""
    over = threading.Event()
    failed: list[BaseException] = []

    def repeat() -> None:
        try:
            while not over.is_set():
                work()
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        wanted()
    finally:
        over.set()
        thread.join()
    assert failed == []


def shell(place: Place, folder: Path) -> tuple[str, Callable[[str], None], Callable[[str], None]]:
    """The first block with the test's values; what types the block that copies, and what types that which restores."""
    first, *own = blocks(PAGE, "", place.section)
    copy, restore = own
    values: dict[str, object] = {"copies": folder / "copies"}
    values |= {name: value for name, value in place.values.items() if name != "data"}
    if "data" in place.values:
        copy = with_values(copy, {"data": place.values["data"]})
        assert len(re.findall(r'-o "\S+" -g "\S+" ', restore)) == 1, "the users, who are not on this machine"
        restore = f"data={place.values['data']}\n" + re.sub(r'-o "\S+" -g "\S+" ', "", restore)

    def run(script: str) -> None:
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=folder,
            env=clean_environment(place.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return with_values(first, values), lambda before: run(before + copy), lambda before: run(before + restore)
