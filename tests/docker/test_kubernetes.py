"""The pods of deploy/kubernetes/ really run: their security context, their mounts, their variables, their probes."""

from __future__ import annotations

import json
import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from etc import manifests
from tests.docker.engine import Compose, Engine
from tests.docker.pods import PATIENCE_SECONDS, Files, Object, Pod
from tests.support.certs import Authority, key_pem, pem
from tests.support.goclient import Machine, live
from tests.support.peers import free_port

MARIADB = "{user}:{user}-password@tcp(database:3306)/notary{daemon}?parseTime=true"


def objects(kind: str) -> dict[str, Object]:
    """The objects of a kind in the files that every installation needs."""
    texts = [path.read_text() for path in manifests.MANIFESTS.glob("*.yaml")]
    found = [each for text in texts for each in yaml.safe_load_all(text)]
    return {each["metadata"]["name"]: each for each in found if each["kind"] == kind}


def certificate_files(authority: Authority, *names: str) -> dict[str, str]:
    """A Secret as cert-manager makes it."""
    leaf = authority.leaf(*names)
    return {
        "tls.crt": pem(leaf.chain).decode(),
        "tls.key": key_pem(leaf.key).decode(),
        "ca.crt": pem([authority.certificate]).decode(),
    }


def all_files(authority: Authority) -> Files:
    """ConfigMaps as they are, and the Secrets that docs/kubernetes.md wants."""
    found = {name: dict(each["data"]) for name, each in objects("ConfigMap").items()}
    for daemon in ("server", "signer"):
        for secret, user in (("database", daemon), ("migration", "migrate")):
            found[f"notary-{daemon}-{secret}"] = {"db-url": MARIADB.format(user=user, daemon=daemon)}
    found["notary-signer-passphrases"] = {"passphrase_1": secrets.token_urlsafe()}
    found["notary-server-tls"] = certificate_files(authority, "notary-server", "localhost")
    found["notary-server-client"] = certificate_files(authority, "notary-server")
    found["notary-signer-tls"] = certificate_files(authority, "notary-signer")
    return found


@pytest.fixture
def cluster(engine: Engine, images: dict[str, str], project: str, tmp_path: Path) -> Iterator[Callable[..., Pod]]:
    """Makes pods of manifests, in a network with a database; removes them all at the end."""
    wanted = {
        container["image"]
        for each in objects("Deployment").values()
        for container in each["spec"]["template"]["spec"]["containers"]
    }
    for image in wanted:
        engine.docker("tag", images[image.partition(":")[0]], image)
    Compose(engine, project)("build", "database")  # notary_mariadb
    engine.docker("network", "create", project)
    database = f"{project}-database"
    engine.docker("run", "-d", "--name", database, f"--network={project}", "--network-alias=database", "notary_mariadb")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while engine.docker("inspect", "--format={{.State.Health.Status}}", database).strip() != "healthy":
        assert time.monotonic() < deadline, engine.docker("logs", database)
        time.sleep(0.5)
    made: list[Pod] = []

    def pod(template: Object, files: Files, **more: Any) -> Pod:
        made.append(Pod(engine, project, tmp_path / f"pod-{len(made)}", template, files, **more))
        return made[-1]

    try:
        yield pod
    finally:
        for each in made:
            each.remove()
        engine.docker("rm", "--force", "--volumes", database, check=False)
        engine.docker("network", "rm", project, check=False)


def template_of(kind: str, name: str) -> Object:
    found: Object = objects(kind)[name]["spec"]["template"]
    return found


def test_the_pods_run(cluster: Callable[..., Pod], tmp_path: Path) -> None:
    """Migrated, a client's whole life, a signer and a server replaced while others publish, renewed certificates."""
    authority = Authority.root("authority of the installation")
    files = all_files(authority)
    for daemon in ("server", "signer"):
        job = cluster(template_of("Job", f"notary-migrate-{daemon}"), files)
        assert job.wait_done() == 0, job.log
        assert "done, steps: " in job.log

    port = free_port()
    signer, server = template_of("Deployment", "notary-signer"), template_of("Deployment", "notary-server")
    signers = [cluster(signer, files, hosts=("notary-signer",)) for _ in range(2)]
    servers = [
        cluster(server, files, hosts=("notary-server",), publish=(port, "https")),
        cluster(server, files, hosts=("notary-server",)),
    ]
    for each in (*signers, *servers):
        each.wait_ready()
        assert each.probe("livenessProbe")
        assert each.probe("startupProbe")
        assert "variables" not in each.log  # no service links

    ca = authority.write(tmp_path, "root")
    owner = Machine(tmp_path / "owner", f"https://localhost:{port}", ca)
    live(lambda name: Machine(tmp_path / name, f"https://localhost:{port}", ca), "example.com/team/app")

    # Both signers are used; what the operators of Prometheus scrape is there.
    ready = json.loads(servers[0].get("/readyz", "https", "HTTPS")[1])
    assert sorted(ready["signers"].values()) == ["serving", "serving"]
    assert "notary_server_build_info" in servers[0].get("/metrics", "https", "HTTPS")[1]
    assert "notary_signer_build_info" in signers[0].get("/metrics", "debug")[1]

    # A signer is replaced.
    (owner.directory / "file").write_text("content")
    owner("init", "example.com/kept", "-p")
    owner("key", "rotate", "example.com/kept", "snapshot", "-r")
    signers.append(cluster(signer, files, hosts=("notary-signer",)))
    signers[-1].wait_ready()
    assert signers.pop(0).stop() == 0
    owner("add", "example.com/kept", "v1", "file", "-p")

    # Renewed certificates are taken over without a restart, by the links that the kubelet moves.
    renewed = certificate_files(authority, "notary-server", "localhost")
    servers[0].lay("tls", {"notary-server-tls": renewed})
    wanted = ssl.PEM_cert_to_DER_cert(renewed["tls.crt"])
    deadline = time.monotonic() + 60
    while ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("localhost", port))) != wanted:
        assert time.monotonic() < deadline, servers[0].log
        time.sleep(0.5)
    owner("add", "example.com/kept", "v2", "file", "-p")

    assert [each.stop() for each in (*servers, *signers)] == [0, 0, 0, 0]
