"""HAProxy before databases, configured as docs/high-availability.md says: only names, ports and paths are replaced."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tests.support.databases import DatabaseServer
from tests.support.peers import free_port

PAGE = Path(__file__).parents[2] / "docs/high-availability.md"
HAPROXY = "/usr/sbin/haproxy"
READY_SECONDS = 30.0


def block(beginning: str, language: str) -> str:
    """The one block of the page that begins so."""
    (found,) = re.findall(
        rf"^```{language}\n({re.escape(beginning)}.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    return str(found)


class DatabaseProxy:
    """HAProxy with the page's section ``listen <name>``. A context manager; ``port`` is where it listens."""

    def __init__(self, name: str, directory: Path, servers: Mapping[str, DatabaseServer]) -> None:
        self.port = free_port()
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        script = directory / "takes-writes"
        script.write_text(block("#!/bin/sh\n", "sh"))
        script.chmod(0o755)
        text = block("global\n    external-check", "text") + block(f"listen {name}\n", "text")
        text = text.replace("/usr/local/bin/takes-writes", str(script))
        text = re.sub(r"bind \S+", f"bind 127.0.0.1:{self.port}", text)
        for each, server in servers.items():
            text = text.replace(f" {each} {each}:3306", f" {each} 127.0.0.1:{server.port}")
        first = next(iter(servers.values()))  # the others have it from there
        first.execute("", "CREATE USER IF NOT EXISTS 'check'@'%%' IDENTIFIED BY %s", "change-me-4")
        assert ":3306" not in text
        self._file = directory / "haproxy.cfg"
        self._socket = directory / "admin.sock"
        self._file.write_text(text.replace("global\n", f"global\n    stats socket {self._socket} level admin\n", 1))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", HAPROXY, "-db", "-f", str(self._file)],
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def states(self) -> dict[str, str]:
        """What HAProxy takes its servers for, by their names, after at least one check of each."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(READY_SECONDS)
            connection.connect(str(self._socket))
            connection.sendall(b"show stat\n")
            lines = b"".join(iter(lambda: connection.recv(65536), b"")).decode().splitlines()
        head = lines[0].removeprefix("# ").split(",")
        rows = [dict(zip(head, line.split(","), strict=False)) for line in lines[1:] if line]
        return {
            row["svname"]: row["status"] if row["check_status"].startswith("PROC") else "unknown"
            for row in rows
            if row["svname"] not in {"FRONTEND", "BACKEND"}
        }

    def await_states(self, **wanted: str) -> None:
        """Wait until HAProxy takes these servers for UP or DOWN."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            found: Mapping[str, str] = {}
            with suppress(OSError, IndexError):  # it does not listen yet
                found = self.states()
            if all(found.get(name.replace("_", "-"), "").partition(" ")[0] == state for name, state in wanted.items()):
                return
            assert time.monotonic() < deadline, f"{found}\n{(self.directory / 'log').read_text()}"
            time.sleep(0.1)

    def url(self, server: DatabaseServer, database: str, user: Any, more: str = "") -> str:
        """``storage.db_url`` of a database behind HAProxy."""
        return server.db_url(database, user).replace(f":{server.port}", f":{self.port}") + more
