"""The images by themselves: small, not root, and run as the operator's guide of the reference says."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.docker.engine import BASE, TREE, Engine

MEGABYTE = 1 << 20


@pytest.mark.parametrize("program", ["notary-server", "notary-signer"])
def test_an_image_is_small_and_not_root(engine: Engine, images: dict[str, str], program: str) -> None:
    image, base = engine.inspect(images[program]), engine.inspect(BASE)
    added = int(str(image["Size"])) - int(str(base["Size"]))
    assert added < 200 * MEGABYTE, f"{added / MEGABYTE:.0f} MB on top of the base"
    config = image["Config"]
    assert isinstance(config, dict)
    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["Test"] == ["CMD", "notary-admin", "health"]
    assert config["Entrypoint"] == [program]


@pytest.mark.parametrize("program", ["notary-server", "notary-signer"])
def test_an_image_holds_no_compiler_and_no_pip(engine: Engine, images: dict[str, str], program: str) -> None:
    found = engine.docker(
        "run", "--rm", "--entrypoint", "sh", images[program], "-c", "command -v gcc cc pip pip3 || true"
    )
    assert found == ""


def test_run_as_in_the_guide(engine: Engine, images: dict[str, str], tmp_path: Path) -> None:
    """A mounted directory with config.json, overridden by variables; the log begins with the lines of the reference."""
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
        *(images["notary-server"], "-config=/etc/docker/notary-server/config.json", "-logf=json"),
    ).strip()
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
        engine.docker("stop", "--time", "20", container)
        state = engine.inspect(container)["State"]
        assert isinstance(state, dict)
        assert state["ExitCode"] == 0, engine.docker("logs", container)
    finally:
        engine.docker("rm", "-f", container)
