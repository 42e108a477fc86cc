"""The images by themselves: small, not root, described, and run as the operator's guide of the reference says."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from etc.images import IMAGES
from notary import __version__
from tests.docker.engine import TREE, Engine, Podman

PROGRAMS = tuple(IMAGES.values())
MEGABYTE = 1_000_000
"""As the engine counts."""


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_image_is_small_and_not_root(engine: Engine, images: dict[str, str], program: str) -> None:
    image = engine.inspect(images[program])
    assert int(str(image["Size"])) < 150 * MEGABYTE
    config = image["Config"]
    assert isinstance(config, dict)
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == [program]
    health = config.get("Healthcheck", {}).get("Test")
    assert health == (None if program == "notary-admin" else ["CMD", "notary-admin", "health"])
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels.pop("description")
    assert re.fullmatch("([0-9a-f]{40})?", labels.pop("revision"))
    assert labels == {
        "title": program,
        "version": __version__,
        "licenses": "Apache-2.0",
        "vendor": "The notary-service developers",
        "base.name": engine.base,
    }


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_image_holds_no_compiler_and_no_pip(engine: Engine, images: dict[str, str], program: str) -> None:
    found = engine.docker(
        "run", "--rm", "--entrypoint", "sh", images[program], "-c", "command -v gcc cc pip pip3 || true"
    )
    assert found == ""


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_starts_without_rights_on_a_read_only_file_system(
    engine: Engine, images: dict[str, str], program: str
) -> None:
    safe = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none")
    option = "--version" if program == "notary-admin" else "-version"
    assert __version__ in engine.docker("run", "--rm", *safe, images[program], option)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_compiles_nothing_when_it_starts(engine: Engine, images: dict[str, str], program: str) -> None:
    option = "--version" if program == "notary-admin" else "-version"
    command = ("python3", images[program], "-v", f"/opt/notary/bin/{program}", option)
    said = engine.docker("run", "--rm", "--network=none", "--entrypoint", *command)
    assert "/opt/notary/bytecode/" in said
    assert re.findall(r"^# code object from (?!.*\.pyc').*", said, re.MULTILINE) == []


def run_as_in_the_guide(engine: Engine, image: str, tmp_path: Path) -> None:
    """Mount a directory with config.json, and override it by variables; the log begins with the reference's lines."""
    directory = tmp_path / "server-configdir"
    directory.mkdir()
    for name in ("notary-server.crt", "notary-server.key"):
        shutil.copy(TREE / "fixtures" / name, directory / name)
    config = {
        "server": {"http_addr": ":4443", "tls_key_file": "./notary-server.key", "tls_cert_file": "./notary-server.crt"},
        "trust_service": {"type": "remote", "hostname": "notarysigner", "port": "7899", "key_algorithm": "ecdsa"},
        "logging": {"level": "error"},
        "storage": {"backend": "mysql", "db_url": "server@tcp(mysql:3306)/notaryserver?parseTime=True"},
    }
    (directory / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, *tmp_path.parents[:2], directory, *directory.iterdir()):
        path.chmod(0o755)
    container = engine.docker(
        *("run", "-d", "--read-only", "--cap-drop=ALL", "-v", f"{directory}:/etc/docker/notary-server/"),
        *("-e", "NOTARY_SERVER_TRUST_SERVICE_TYPE=local", "-e", "NOTARY_SERVER_STORAGE_BACKEND=memory"),
        *("-e", "NOTARY_SERVER_LOGGING_LEVEL=debug"),
        *(image, "-config=/etc/docker/notary-server/config.json", "-logf=json"),
    ).split()[-1]  # Podman without systemd complains first that it cannot time health checks
    try:
        deadline = time.monotonic() + 30
        while "Starting on :4443" not in (log := engine.docker("logs", container)):
            assert time.monotonic() < deadline, log
            time.sleep(0.1)
        messages = [json.loads(line)["msg"] for line in log.splitlines()]
        assert messages[0].startswith("Version: ")
        local = "Using local signing service, which requires ED25519. "
        wanted = [
            f"{local}Ignoring all other trust_service parameters, including keyAlgorithm",
            "Using memory backend",
            "Starting Server",
            "Enabling TLS",
            "Starting on :4443",
        ]
        assert [message for message in messages if message in wanted] == wanted
        engine.docker("exec", container, "notary-admin", "health")
        engine.docker("stop", "-t", "20", container)
        state = engine.inspect(container)["State"]
        assert isinstance(state, dict)
        assert state["ExitCode"] == 0, engine.docker("logs", container)
    finally:
        engine.docker("rm", "-f", container)


def test_run_as_in_the_guide(engine: Engine, images: dict[str, str], tmp_path: Path) -> None:
    run_as_in_the_guide(engine, images["notary-server"], tmp_path)


def test_podman_runs_the_images_too(engine: Engine, images: dict[str, str], tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=TREE / "build") as directory:
        podman = Podman(Path(directory))
        try:
            archive = Path(directory) / "images.tar"
            engine.docker("save", "--output", str(archive), *images.values())
            podman.docker("load", "--input", str(archive))
            run_as_in_the_guide(podman, images["notary-server"], tmp_path)
        finally:
            podman.docker("system", "reset", "--force", check=False)
