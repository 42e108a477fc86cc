"""The units in etc/systemd, judged by systemd; that the daemons speak its protocols is in interop/test_life."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from notary.config import SERVER_PREFIX, SIGNER_PREFIX
from tests.support.peers import OUR_SERVER

FOLDER = Path(__file__).parents[1] / "etc" / "systemd"
DAEMONS = ("notary-server", "notary-signer")
BIN = Path(OUR_SERVER[0]).parent

MOST_EXPOSED = 11
"""The most that ``systemd-analyze security`` may say, in tenths: 1.1, as docs/systemd.md states."""


def run(*command: str, directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with their drop-ins, as installed, but with the programs of this environment."""
    shutil.copytree(FOLDER, tmp_path / "units")
    for path in (tmp_path / "units").glob("*.service"):
        path.write_text(path.read_text().replace("/opt/notary/bin/", f"{BIN}/"))
    return tmp_path / "units"


def test_systemd_accepts_them(units: Path) -> None:
    names = [path.name for path in sorted(units.iterdir()) if path.suffix in {".service", ".socket"}]
    assert names == ["notary-server.service", "notary-server.socket", "notary-signer.service", "notary-signer.socket"]
    # Warnings (an unknown setting, a path that is missing) do not change its status.
    assert run("systemd-analyze", "verify", "--man=no", *[f"./{name}" for name in names], directory=units) == ""


def test_an_unknown_setting_would_be_found(units: Path) -> None:
    unit = units / "notary-server.service"
    unit.write_text(unit.read_text().replace("ProtectHome=", "ProtectHouse="))
    assert "ProtectHouse" in run("systemd-analyze", "verify", "--man=no", f"./{unit.name}", directory=units)


@pytest.mark.parametrize("name", DAEMONS)
def test_how_exposed_they_are(units: Path, name: str) -> None:
    command = ("systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED}")
    said = run(*command, f"./{name}.service", directory=units)
    figure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert figure is not None
    page = (FOLDER.parents[1] / "docs" / "systemd.md").read_text()
    assert f"**{figure[1]}**" in page


@pytest.mark.parametrize(("name", "prefix"), list(zip(DAEMONS, (SERVER_PREFIX, SIGNER_PREFIX), strict=True)))
def test_credentials_are_what_variables_name(name: str, prefix: str) -> None:
    text = (FOLDER / f"{name}.service.d" / "credentials.conf").read_text()
    loaded = re.findall(r"^LoadCredential=(\w+):", text, re.MULTILINE)
    named = re.findall(rf"^Environment={prefix}\w+_FILE=%d/(\w+)$", text, re.MULTILINE)
    assert loaded
    assert sorted(loaded) == sorted(named)


@pytest.mark.parametrize("name", DAEMONS)
def test_a_daemon_outlives_a_process_of_its_own_that_lacks_memory(name: str) -> None:
    assert "\nOOMPolicy=continue\n" in (FOLDER / f"{name}.service").read_text()


@pytest.mark.parametrize("name", DAEMONS)
def test_systemd_reads_its_users(name: str) -> None:
    assert re.search(rf'^u {name} - ".+" /var/lib/{name}$', (FOLDER / "notary.sysusers").read_text(), re.MULTILINE)
    service = (FOLDER / f"{name}.service").read_text()
    assert f"\nUser={name}\n" in service
    assert f"\nStateDirectory={name}\n" in service
