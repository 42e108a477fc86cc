"""docs/rescue.md for an owner who has signed with Docker: from a Go server to ours, with Docker's keys."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.docker.engine import Engine
from tests.support.copies import admin
from tests.support.goclient import CLIENT, PASSPHRASE
from tests.support.peers import GO_SERVER, Certificates, Daemon, clean_environment, daemon
from tests.support.rescue import new_pair, take_over


def make_image(engine: Engine, tag: str, folder: Path) -> None:
    """Make an image with one file."""
    path = folder / "image.tar"
    with tarfile.open(path, "w") as tar:
        content = tag.encode()
        entry = tarfile.TarInfo("file")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    engine.docker("import", str(path), tag)


def trusting(server: Daemon, home: Path) -> dict[str, str]:
    """The environment of a user of Docker who trusts ``server``; ``home`` is the directory of the configuration."""
    assert server.tls is not None
    place = home / "tls" / server.url.removeprefix("https://")
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(server.tls.ca, place / "ca.crt")
    return {
        "DOCKER_CONFIG": str(home),
        "DOCKER_CONTENT_TRUST": "1",
        "DOCKER_CONTENT_TRUST_SERVER": server.url,
        "DOCKER_CONTENT_TRUST_ROOT_PASSPHRASE": PASSPHRASE,
        "DOCKER_CONTENT_TRUST_REPOSITORY_PASSPHRASE": PASSPHRASE,
    }


def notary(server: Daemon, trust: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the stock client with a trust directory of Docker."""
    assert server.tls is not None
    roles = ("ROOT", "TARGETS", "SNAPSHOT", "DELEGATION")
    return subprocess.run(
        (CLIENT, "-s", server.url, "--tlscacert", str(server.tls.ca), "-d", str(trust), *arguments),
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment({f"NOTARY_{role}_PASSPHRASE": PASSPHRASE for role in roles}),
    )


def test_an_owner_with_dockers_keys(
    bare_engine: Engine, registry: str, certificates: Certificates, tmp_path: Path
) -> None:
    engine = bare_engine
    gun = f"{registry}/team/app"
    one, two = f"{gun}:one", f"{gun}:two"
    for tag in (one, two):
        make_image(engine, tag, tmp_path)
    home = tmp_path / "home"
    with new_pair(certificates, tmp_path / "new") as new:
        with daemon("old", GO_SERVER, tmp_path / "old", tls=certificates) as old:
            pushed = engine.run("docker", "push", one, environment=trusting(old, home)).stdout
            assert "Successfully signed" in pushed
            admin(new.directory / "server.json", "fetch", old.url, gun, "--ca", certificates.ca)

        # Only the address changes for who reads, with what Docker has cached and without.
        for reader in (home, tmp_path / "newcomer"):
            engine.docker("rmi", one)
            engine.run("docker", "pull", one, environment=trusting(new, reader))
        # Nobody publishes before the owner has taken over, and neither key rotates alone: the service held both.
        refused = engine.run("docker", "push", two, environment=trusting(new, home), check=False)
        assert refused.returncode != 0
        assert "Successfully signed" not in refused.stdout
        trust = home / "trust"
        alone = notary(new, trust, "key", "rotate", gun, "timestamp", "-r")
        assert alone.returncode != 0
        assert "no snapshot was uploaded" in alone.stdout + alone.stderr
        take_over(new, gun, trust)
        published = notary(new, trust, "publish", gun)
        assert published.returncode == 0, published.stdout + published.stderr

        pushed = engine.run("docker", "push", two, environment=trusting(new, home)).stdout
        assert "Successfully signed" in pushed
        engine.docker("rmi", one, two)
        for tag in (one, two):
            engine.run("docker", "pull", tag, environment=trusting(new, tmp_path / "newcomer"))
        engine.docker("rmi", one, two)
