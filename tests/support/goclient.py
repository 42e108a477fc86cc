"""The stock ``notary`` 0.7.0 command, one trust directory a "machine".

Rules of this module: a machine knows only its own directory, the server's URL and its CA; what the command prints is
returned, and shown when it fails.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.peers import clean_environment

CLIENT = "/usr/bin/notary"
PASSPHRASE = "correct horse battery"
COMMAND_SECONDS = 60.0


class Machine:
    """One user of the stock client: a trust directory and a server."""

    def __init__(self, directory: Path, url: str, ca: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._base = (CLIENT, "-s", url, "--tlscacert", str(ca), "-d", str(directory / "trust"))
        roles = ("ROOT", "TARGETS", "SNAPSHOT", "DELEGATION")
        self._environment = clean_environment({f"NOTARY_{role}_PASSPHRASE": PASSPHRASE for role in roles})

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run the command to its end, whatever the end is."""
        return subprocess.run(
            (*self._base, *arguments),
            input=stdin,
            capture_output=True,
            cwd=self.directory,
            env=self._environment,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def __call__(self, *arguments: str, stdin: bytes = b"") -> str:
        """What the command printed; AssertionError if it failed."""
        done = self.run(*arguments, stdin=stdin)
        output = (done.stdout + done.stderr).decode()
        assert done.returncode == 0, f"notary {' '.join(arguments)}: status {done.returncode}\n{output}"
        return output

    def refused(self, *arguments: str, stdin: bytes = b"") -> str:
        """What the command printed when it failed; AssertionError if it succeeded."""
        done = self.run(*arguments, stdin=stdin)
        output = (done.stdout + done.stderr).decode()
        assert done.returncode != 0, f"notary {' '.join(arguments)} succeeded:\n{output}"
        return output

    def targets(self, gun: str, *roles: str) -> dict[str, tuple[str, int, str]]:
        """What ``list`` shows: for each name its SHA-256 (hex), its size in bytes and the role that signed it."""
        chosen = [flag for role in roles for flag in ("--roles", role)]
        lines = [line.split() for line in self("list", gun, *chosen).splitlines()]
        return {line[0]: (line[1], int(line[2]), line[3]) for line in lines if len(line) == 4 and line[2].isdigit()}

    def delegations(self, gun: str) -> dict[str, list[str]]:
        """What ``delegation list`` shows: for each role the ids of its keys."""
        found: dict[str, list[str]] = {}
        for line in self("delegation", "list", gun).splitlines():
            words = line.split()
            if words and words[0].startswith("targets/"):
                found[words[0]] = [word for word in words if len(word) == 64]
        return found
