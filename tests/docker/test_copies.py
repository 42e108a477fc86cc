"""``docker trust inspect``, which needs no engine, against a fetched collection, a mirror and a static tree."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.support.copies import GUN, KINDS, copies, publish_more, rotate_root
from tests.support.peers import Certificates, Daemon, clean_environment


def inspect(server: Daemon, home: Path, what: str) -> dict[str, Any]:
    """What ``docker trust inspect`` says; ``home`` is the directory of Docker's configuration."""
    assert server.tls is not None
    place = home / "tls" / server.url.removeprefix("https://")
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(server.tls.ca, place / "ca.crt")
    environment = clean_environment(
        {
            "DOCKER_CONFIG": str(home),
            "DOCKER_CONTENT_TRUST_SERVER": server.url,
            "DOCKER_HOST": "unix:///nonexistent",
        }
    )
    command = ("docker", "trust", "inspect", what)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{server.name}: {done.stdout}{done.stderr}"
    (found,) = json.loads(done.stdout)
    return found


def signed(content: str, *signers: str) -> tuple[str, list[str]]:
    return hashlib.sha256(content.encode()).hexdigest(), list(signers)


def tags(found: dict[str, Any]) -> dict[str, tuple[str, list[str]]]:
    return {each["SignedTag"]: (each["Digest"], each["Signers"]) for each in found["SignedTags"]}


def test_docker_trusts_what_was_brought_over(certificates: Certificates, tmp_path: Path) -> None:
    expected = {"v1": signed("v1", "Repo Admin"), "rel1": signed("rel1", "alice")}

    def require(*homes: str) -> None:
        for kind in KINDS:
            for home in homes:
                found = inspect(made.servers[kind], tmp_path / f"{home}-{kind}", GUN)
                assert tags(found) == expected, f"{home} {kind}"
                assert [each["Name"] for each in found["Signers"]] == ["alice"]
            one = inspect(made.servers[kind], tmp_path / f"{homes[0]}-{kind}", f"{GUN}:v1")
            assert tags(one) == {"v1": expected["v1"]}

    with copies(certificates, tmp_path) as made:
        require("regular")
        publish_more(made)
        expected["v2"] = signed("v2", "Repo Admin")
        require("regular", "newcomer")
        rotate_root(made)
        expected["v3"] = signed("v2", "Repo Admin")
        require("regular", "latecomer")
