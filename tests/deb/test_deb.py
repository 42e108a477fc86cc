"""The Debian package in a machine of its own: installed, configured by two commands, upgraded, removed, purged.

Rules of this module: the machine is a root of debootstrap in which systemd runs (:mod:`tests.deb.box`), so units,
sockets and the sandbox are the real ones. ``SUITE`` in the environment names the release of Debian or Ubuntu, that
of this machine by default. Packages "of other versions" are the one that was built, packed again with another version.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deb.box import ROOT, Box, lintian
from tests.support.goclient import Machine, live

PASSPHRASES = {f"NOTARY_{role}_PASSPHRASE": "correct-horse" for role in ("ROOT", "TARGETS", "SNAPSHOT")}
README = (ROOT / "debian/notary-service.README.Debian").read_text()
URL = "https://localhost:4443"
CLIENT = f"notary -s {URL} --tlscacert /etc/notary/root-ca.crt"
UNITS = ("notary-signer.service", "notary-server.service", "notary-server.socket", "notary-signer.socket")
UPDATE = "/v2/example.com/first/_trust/tuf/timestamp.json"
DATA = ("/var/lib/notary-server/notary.sqlite3", "/var/lib/notary-signer/notary.sqlite3")
SECRETS = ("/etc/notary/secrets/passphrase_2026", "/etc/notary/root-ca.key", "/etc/notary/notary-server.key")

ENDS = {"bookworm": "+debian12", "trixie": "+debian13", "noble": "+ubuntu24.04", "resolute": "+ubuntu26.04"}


def release() -> tuple[str, str]:
    """The name of the release, and the end of the version of its packages."""
    told = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE))
    suite = os.environ.get("SUITE") or told["VERSION_CODENAME"]
    return suite, ENDS[suite]


SUITE, OF_RELEASE = release()


@pytest.fixture(scope="session")
def package() -> Path:
    """The package that ``make deb`` has built."""
    found = sorted(ROOT.glob(f"dist/notary-service_*{OF_RELEASE}_*.deb"))
    assert len(found) == 1, "run `make deb`, or `make deb SUITE=...`, before"
    return found[0]


def packed_again(package: Path, folder: Path, version: str, changed: str) -> Path:
    """The package with another version, in which these files have one line more."""
    tree = folder / f"tree-{version}"
    subprocess.run(("dpkg-deb", "--raw-extract", package, tree), check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*", f"Version: {version}{OF_RELEASE}", control.read_text()))
    found = sorted(tree.glob(changed))
    assert found
    for path in found:
        path.write_text(path.read_text() + "-- changed\n")
    made = folder / f"notary-service_{version}.deb"
    # Not compressed: that takes longer than all else.
    subprocess.run(("dpkg-deb", "-Znone", "--build", tree, made), check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return made


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with Box(SUITE, tmp_path / "box") as machine:
        yield machine


def test_lintian_finds_no_error(package: Path) -> None:
    done = lintian(SUITE, package)
    assert done.returncode == 0, done.stdout + done.stderr


def install(box: Box, package: Path) -> str:
    shutil.copy(package, box.root / "root/package.deb")
    return box.sh("apt-get install --yes ./package.deb")


def commands() -> list[str]:
    """The two commands of README.Debian."""
    first = README.partition("published over TLS:\n")[2].partition("The first")[0]
    found = [line.strip().removeprefix("sudo ") for line in first.splitlines() if line.strip()]
    assert len(found) == 2
    return found


class Stopwatch:
    """How long steps take, for people: nothing is asserted about it."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}

    def __call__(self, name: str, step: Callable[[], str]) -> str:
        began = time.monotonic()
        said = step()
        self.steps[name] = time.monotonic() - began
        return said

    def __str__(self) -> str:
        each = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.steps.items())
        return f"{each}: {sum(self.steps.values()):.1f} s in all"


def main_pids(box: Box) -> list[str]:
    return [box.sh(f"systemctl show --property=MainPID --value {unit}").strip() for unit in UNITS[:2]]


def admin(box: Box, daemon: str, command: str) -> str:
    run = f"/opt/notary/bin/notary-run {daemon}"
    return box.sh(f"{run} notary-admin {command} --config /etc/notary/{daemon}-config.json")


def state(box: Box) -> str:
    """What nothing may change: checksums, owners and modes of data and secrets."""
    return box.sh(f"stat -c '%n %U %a' {' '.join(DATA + SECRETS)}; sha256sum {' '.join(SECRETS)}")


class Load:
    """Clients that read from the server of a box all the time."""

    def __init__(self, box: Box) -> None:
        program = Path(__file__).with_name("load.py")
        command = (*box.enter("--net"), sys.executable, str(program), UPDATE, str(box.root / "etc/notary/root-ca.crt"))
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def end(self) -> int:
        """How many reads there were; none has failed."""
        said, _ = self.process.communicate("")
        reads = re.match(r"(\d+) reads, 0 failures\n$", said)
        assert reads, said
        return int(reads[1])


def test_from_the_installation_to_the_purge(
    package: Path, box: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Installed: all in its place, and nothing runs.
    timed = Stopwatch()
    said = timed("apt-get install", lambda: install(box, package))
    assert "rror" not in said, said
    assert box.sh("dpkg --verify notary-service") == ""
    enabled = box.run("systemctl", "is-enabled", *UNITS, check=False).stdout.split()
    assert enabled == ["disabled"] * len(UNITS)
    active = box.run("systemctl", "is-active", *UNITS, check=False).stdout.split()
    assert active == ["inactive"] * len(UNITS)
    for user in ("notary-server", "notary-signer"):
        assert box.sh(f"stat -c '%U %G %a' /var/lib/{user}").split() == [user, user, "700"]
    for name in (
        "/usr/share/man/man8/notary-server.8.gz",
        "/usr/share/man/man8/notary-admin.8.gz",
        "/usr/share/bash-completion/completions/notary-admin",
        "/usr/share/notary/config/server-config.json",
        "/usr/share/doc/notary-service/README.Debian",
    ):
        assert (box.root / name[1:]).is_file(), name
    conffiles = box.sh("dpkg-query --showformat='${Conffiles}' --show notary-service")
    assert re.findall(r"^ (\S+)", conffiles, re.MULTILINE) == [
        f"/etc/notary/{name}" for name in ("server-config.json", "server.env", "signer-config.json", "signer.env")
    ]

    # The two commands.
    start, publish = commands()
    assert publish in timed("notary-new-pair", lambda: box.sh(start)), "it says what the second one is"
    assert "Successfully published changes" in timed("signed publish", lambda: box.sh(publish, **PASSPHRASES))
    with capsys.disabled():
        sys.stdout.write(f"\n{SUITE}: {timed}\n")
    assert re.search(r"^v1 +[0-9a-f]{64} ", box.sh(f"{CLIENT} list example.com/first"), re.MULTILINE)
    assert box.run("systemctl", "is-active", *UNITS[:3]).stdout.split() == ["active"] * 3

    # The same client life as through the compose files and the pods, on the database that the package made.
    authority, enter = box.root / "etc/notary/root-ca.crt", box.enter("--net")
    live(lambda name: Machine(tmp_path / "life" / name, URL, authority, enter), "example.com/team/app")
    assert "0 errors" in admin(box, "server", "fsck")
    assert "0 do not open" in admin(box, "signer", "keys verify")
    before, pids = state(box), main_pids(box)
    box.sh(start)
    assert (state(box), main_pids(box)) == (before, pids), "the second time it changes nothing"

    # An operator's change, and upgrades under load.
    config = box.root / "etc/notary/server-config.json"
    changed = json.loads(config.read_text()) | {"logging": {"level": "debug"}}
    config.write_text(json.dumps(changed))
    load = Load(box)
    newer = packed_again(package, tmp_path, "90", "opt/notary/lib/python3*/site-packages/notary/commit.txt")
    install(box, newer)
    restarted = main_pids(box)
    assert set(restarted) & set(pids) == set(), "both daemons run the new release"
    publish_more(box, "v2")
    assert load.end() > 0
    load = Load(box)
    other_tables = packed_again(
        newer, tmp_path, "91", "opt/notary/lib/python3*/site-packages/notary/storage/**/sqlite3/**/indexes.sql"
    )
    said = install(box, other_tables)
    assert "this release has other tables, so no daemon was restarted" in said
    assert main_pids(box) == restarted
    assert load.end() > 0
    assert json.loads(config.read_text()) == changed
    assert state(box) == before

    # Removed, and purged: data and secrets stay.
    box.sh("apt-get remove --yes notary-service")
    assert box.run("systemctl", "is-active", *UNITS, check=False).stdout.split() == ["inactive"] * len(UNITS)
    assert not (box.root / "opt/notary/bin").exists()
    assert json.loads(config.read_text()) == changed
    said = box.sh("apt-get purge --yes notary-service")
    assert all(f"kept {place}" in said for place in ("/var/lib/notary-server", "/var/lib/notary-signer", "/etc/notary"))
    assert state(box) == before
    assert not config.exists()
    assert list((box.root / "etc/systemd/system").glob("*.wants/notary*")) == []

    # Again: what was published is still there, and is continued.
    install(box, package)
    box.sh(start)
    publish_more(box, "v3")
    names = re.findall(r"^(v\d) ", box.sh(f"{CLIENT} list example.com/first"), re.MULTILINE)
    assert names == ["v1", "v2", "v3"]


def publish_more(box: Box, name: str) -> None:
    assert "Successfully published changes" in box.sh(
        f"{CLIENT} add -p example.com/first {name} /etc/hostname", **PASSPHRASES
    )
