"""docs/deployment.md, typed from its first block to its last: with MariaDB, and with SQLite in place of it.

Rules of this module: the blocks of the page run as they stand, in one shell, with a home of its own. Only the values of
the first block, which are the reader's, are of the test. Stand-ins take the place of the commands that change a whole
machine (packages, users, owners of files, services); everything else is real: the certificates, the database, both
daemons, and the stock client.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.databases import MariaDB
from tests.support.peers import clean_environment, free_port, is_open

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BIN = Path(sys.executable).parent
PAGE = (DOCS / "deployment.md").read_text("utf-8")
WALK_SECONDS = 240.0
STOP_SECONDS = 30.0

STAND_INS = {
    "apt-get": """
        [ "$*" = update ] || [ "$1 $2" = "install -y" ]
        """,
    "useradd": """
        printf '%s\\n' "${@: -1}" >>"$STAND_INS/users"
        """,
    "chown": """
        grep -qx "$1" "$STAND_INS/users"
        ls -d "${@:2}" >/dev/null
        """,
    "setpriv": """
        [[ "$1 $2" =~ ^--reuid=(.*)\\ --regid=(.*)$ ]]
        [ "$3" = --init-groups ]
        grep -qx "${BASH_REMATCH[1]}" "$STAND_INS/users"
        exec "${@:4}"
        """,
    "service": """
        [ "$*" = "mariadb restart" ]
        touch "$STAND_INS/asked"
        while [ -e "$STAND_INS/asked" ]; do sleep 0.05; done
        """,
    "python": f"""
        [ "$1 $2" = "-m venv" ]
        mkdir -p "$3/bin"
        ln -s {BIN}/notary-admin {BIN}/notary-server {BIN}/notary-signer "$STAND_INS/pip" "$3/bin"
        """,
    "pip": """
        [ "$1" = install ]
        [[ "$2" =~ ^\\.(\\[[a-z]+\\])?$ ]]
        [ -f pyproject.toml ]
        """,
}
"""What stands in for the commands that change a machine: each fails unless it is called as the real one may be."""


class Guarded(MariaDB):
    """A MariaDB that reads the files of a folder at its start, as Debian's does."""

    @property
    def settings(self) -> Path:
        return self.directory / "conf.d"

    def _command(self) -> Sequence[str]:
        program, _, *others = super()._command()
        return [program, f"--defaults-file={self.directory}/my.cnf", *others]

    def _install(self) -> None:
        super()._install()
        self.settings.mkdir()
        (self.directory / "my.cnf").write_text(f"[client]\nsocket = {self.socket}\n!includedir {self.settings}\n")


def blocks(page: str, *headings: str) -> list[str]:
    """The blocks to type of a page, in order; of these sections only, if any are named (``""``: before the first)."""
    found, heading = [], ""
    for match in re.finditer(r"^(?:#{2,} ([^\n]+)|```sh\n(.*?)^```)$", page, re.MULTILINE | re.DOTALL):
        if match[1] is not None:
            heading = match[1]
        elif not headings or heading in headings:
            found.append(match[2])
    return found


def sections(page: str) -> list[str]:
    return re.findall(r"^#{2,} (.+)$", page, re.MULTILINE)


def with_values(block: str, values: Mapping[str, object]) -> str:
    """The first block, with other values of its variables; each of them must be there."""
    for name, value in values.items():
        block, count = re.subn(rf"(?m)^{name}=\S+", f"{name}={value}", block)
        assert count == 1, f"the first block has no {name}"
    return block


class Walk:
    """A reader with a home, a place for each thing that the page makes, and commands that change no machine."""

    def __init__(self, folder: Path, server: MariaDB | None) -> None:
        self.folder, self.server = folder, server
        self.home, self.stand_ins = folder / "home", folder / "stand-ins"
        for each in (self.home, self.stand_ins):
            each.mkdir()
        for name, text in STAND_INS.items():
            (self.stand_ins / name).write_text(f"#!/bin/bash\nset -eu\n{text}")
            (self.stand_ins / name).chmod(0o755)
        (self.stand_ins / "users").write_text("mysql\n")
        self.ports = {name: free_port() for name in ("server", "signer")}
        self.values: dict[str, object] = {
            "opt": folder / "opt",
            "etc": folder / "etc",
            "data": folder / "data",
            "python": self.stand_ins / "python",
            "server": "localhost",
            "server_port": self.ports["server"],
            "signer": "localhost",
            "signer_port": self.ports["signer"],
        }
        if isinstance(server, Guarded):
            self.values |= {"mariadb_conf": server.settings, "database_port": server.port}
            (self.home / ".my.cnf").write_text(f"[client]\nuser = root\nsocket = {server.socket}\n")

    def type(self, script: str) -> str:
        """Type this into a new shell; what it and the daemons in its background said."""
        environment = clean_environment(
            {
                "HOME": str(self.home),
                "STAND_INS": str(self.stand_ins),
                "PATH": f"{self.stand_ins}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            }
        )
        said = self.folder / "said"
        # A command that fails ends it here (-e).
        command = ["bash", "-e", "-o", "pipefail", "-c", script]
        with said.open("wb") as output:
            shell = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + WALK_SECONDS
        asked = self.stand_ins / "asked"
        try:
            while shell.poll() is None:
                assert time.monotonic() < deadline, said.read_text("utf-8", "replace")
                if asked.exists():
                    assert self.server is not None
                    self.server.restart()
                    asked.unlink()
                time.sleep(0.02)
        finally:
            shell.terminate()  # it then stops the daemons
            shell.wait(STOP_SECONDS)
        text = said.read_text("utf-8", "replace")
        assert shell.returncode == 0, text
        return text


STOPPED = re.search(r"^`(kill %1 %2)`", PAGE, re.MULTILINE)


def script(walk: Walk, left_out: set[str], more: str = "") -> str:
    """All that is typed, with ``more`` before the daemons are told to stop; they stop also if anything fails."""
    first, *others = blocks(PAGE, *(set(sections(PAGE)) - left_out))
    assert STOPPED is not None
    stop = f"{STOPPED[1]} 2>/dev/null || true; wait"
    return "\n".join([f"trap '{stop}' EXIT", with_values(first, walk.values), *others, more])


def assert_went_well(walk: Walk, said: str) -> None:
    assert "\nfirst.txt is what was signed\n" in said, said
    assert "Successfully published changes for repository example.com/first" in said
    assert re.search(r"^v1 +[0-9a-f]{64} +18 +targets", said, re.MULTILINE)
    assert "1 collection checked: 0 errors, 0 notes" in said
    assert re.search(r"^ +2 passphrase_2026$", said, re.MULTILINE), "timestamp and snapshot are the signer's"
    assert said.count("certificate, key and authorities match") >= 2
    complaints = re.findall(r"^.*(?:level=(?:warning|error|fatal)|\tPROBLEM\t).*$", said, re.MULTILINE)
    assert [line for line in complaints if "no gRPC connection to localhost" not in line] == []
    for secret in walk.folder.glob("etc/secrets/*"):
        assert secret.stat().st_mode & 0o077 == 0
        assert secret.read_text().strip() not in said
    deadline = time.monotonic() + STOP_SECONDS
    while any(map(is_open, walk.ports.values())):
        assert time.monotonic() < deadline, said
        time.sleep(0.02)


def operations(walk: Walk) -> str:
    """What docs/operations.md says to type, at these places."""
    page = (DOCS / "operations.md").read_text("utf-8")
    typed = "\n".join(blocks(page, "Is it well?", "When the signer is down", "Metrics"))
    for name, port in (("server", 4443), ("signer", 7899)):
        assert f"notary-{name}:{port}" in typed
        typed = typed.replace(f"notary-{name}:{port}", f"localhost:{walk.ports[name]}")
    return typed.replace("/etc/notary/", f"{walk.folder}/etc/")


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    with Guarded(fast=False) as server:  # the daemons warn of one that does not wait for the disk
        yield server


def test_on_mariadb(guarded: Guarded, tmp_path: Path) -> None:
    walk = Walk(tmp_path, guarded)
    said = walk.type(script(walk, {"SQLite instead of MariaDB"}, operations(walk)))
    assert_went_well(walk, said)
    assert said.count("mysql answers, and has the tables") == 2
    assert guarded.execute("", "SELECT COUNT(*) FROM mysql.user WHERE ssl_type = 'ANY'") == [(3,)]
    assert "DNS:localhost" in said, "the certificate, as docs/operations.md shows it"
    assert "# HELP notary_server_" in said


def test_on_sqlite(tmp_path: Path) -> None:
    walk = Walk(tmp_path, None)
    said = walk.type(script(walk, {"MariaDB"}))
    assert_went_well(walk, said)
    assert said.count("sqlite3 answers, and has the tables") == 2


def test_each_package_is_one_that_the_checks_install_too() -> None:
    lines = re.findall(r"^apt-get install -y (.*)$", PAGE, re.MULTILINE)
    named = {word for line in lines for word in line.partition("#")[0].split()}
    known = (ROOT / "etc/require-packages.sh").read_text().replace("python$version-", "python3-")
    assert len(named) >= 8
    assert {name for name in named if not re.search(rf'\becho "?{re.escape(name)}\b', known)} == set()
