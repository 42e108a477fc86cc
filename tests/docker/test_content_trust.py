"""Docker Content Trust: push and pull signed images through a real registry and the composed service."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.docker.engine import TREE, Compose, Engine


def test_push_and_pull_with_content_trust(
    engine: Engine, images: dict[str, str], project: str, registry: str, tmp_path: Path
) -> None:
    with Compose(engine, project) as compose:
        compose.wait_healthy("server", "signer")
        home = tmp_path / "docker-config"
        (home / "tls/localhost:4443").mkdir(parents=True)
        shutil.copy(TREE / "fixtures/root-ca.crt", home / "tls/localhost:4443/ca.crt")
        trust = {
            "DOCKER_CONFIG": str(home),
            "DOCKER_CONTENT_TRUST": "1",
            "DOCKER_CONTENT_TRUST_SERVER": "https://localhost:4443",
            "DOCKER_CONTENT_TRUST_ROOT_PASSPHRASE": "correct horse battery",
            "DOCKER_CONTENT_TRUST_REPOSITORY_PASSPHRASE": "correct horse battery",
        }
        signed, unsigned = f"{registry}/team/app:signed", f"{registry}/team/app:unsigned"
        # A tag by itself is not signed, only a push with content trust is.
        for tag in (signed, unsigned):
            engine.docker("tag", images["notary-server"], tag)
        pushed = engine.run("docker", "push", signed, environment=trust).stdout
        assert "Successfully signed" in pushed, pushed
        engine.docker("push", unsigned)

        engine.docker("rmi", signed, unsigned)
        pulled = engine.run("docker", "pull", signed, environment=trust).stdout
        assert "sha256:" in pulled
        refused = engine.run("docker", "pull", unsigned, environment=trust, check=False)
        assert refused.returncode != 0
        assert "No valid trust data for unsigned" in refused.stdout, refused.stdout
        shown = engine.run("docker", "trust", "inspect", "--pretty", f"{registry}/team/app", environment=trust).stdout
        assert "signed" in shown
        engine.docker("rmi", signed)
