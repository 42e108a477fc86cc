"""concil, a client that shares no code with the stock one, reads a server of ours and every kind of copy."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from tests.support.copies import GUN, KINDS, ROOT, copies, publish_more, rotate_root
from tests.support.peers import Certificates, Daemon, clean_environment


def read(server: Daemon, directory: Path) -> dict[str, dict[str, str]]:
    """What concil finds in the collection."""
    assert server.tls is not None
    command = (sys.executable, str(ROOT / "tests/support/concilclient.py"), server.url, GUN, str(directory))
    environment = clean_environment({"REQUESTS_CA_BUNDLE": str(server.tls.ca)})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{server.name}: {done.stdout}{done.stderr}"
    found: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def digests(*names: str, **others: str) -> dict[str, str]:
    contents = {**{name: name for name in names}, **others}
    return {name: hashlib.sha256(content.encode()).hexdigest() for name, content in contents.items()}


def test_concil_reads_what_was_brought_over(certificates: Certificates, tmp_path: Path) -> None:
    def require(targets: dict[str, str], *directories: str) -> None:
        expected = {"targets": targets, **dict.fromkeys(("targets/releases", "targets/alice"), digests("rel1"))}
        for kind in KINDS:
            for directory in directories:
                assert read(made.servers[kind], tmp_path / f"{directory}-{kind}") == expected, f"{directory} {kind}"

    with copies(certificates, tmp_path) as made:
        require(digests("v1"), "regular")
        publish_more(made)
        require(digests("v1", "v2"), "regular", "newcomer")
        # concil compares the root that it knows with the current one alone: it cannot follow over several roots
        rotate_root(made)
        require(digests("v1", "v2", v3="v2"), "latecomer")
