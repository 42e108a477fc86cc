"""A machine for a test: a root of debootstrap in which systemd runs, in namespaces of its own.

Rules of this module: root only. The roots are in ``build/deb``, made once; each box is a copy. A box has a network
of its own with nothing but loopback, so what is installed in it must come with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
ROOTS = ROOT / "build/deb"
PACKAGES = "systemd,systemd-sysv,dbus,iproute2,ca-certificates,notary,openssl,libmariadb3,libstdc++6,python3"
"""What the package depends on, and the stock client."""

LINTIAN = "lintian,perl-openssl-defaults"
"""debootstrap does not find by itself which package provides lintian's ABI of OpenSSL."""

BOOT_SECONDS = 120.0
COMMAND_SECONDS = 300.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def made(purpose: str, suite: str, packages: str) -> Path:
    """A root of a release, with packages of that release."""
    root = ROOTS / f"{purpose}-{suite}"
    subprocess.run((ROOT / "etc/debootstrap.sh", suite, root, packages), check=True, stdout=subprocess.DEVNULL)
    return root


def base(suite: str) -> Path:
    """A root of a release, for :class:`Box`."""
    root = made("box", suite, PACKAGES)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    return root


def lintian(suite: str, package: Path) -> subprocess.CompletedProcess[str]:
    """A release's own lintian, which knows what packages of its release look like; its status is 0 without an error."""
    root = made("lintian", suite, LINTIAN)
    shutil.copy(package, root / "var/tmp/package.deb")
    enter = ("chroot", root, "env", "-i", f"PATH={PATH}", "LC_ALL=C.UTF-8")
    return subprocess.run(
        (*enter, "lintian", "--fail-on=error", "/var/tmp/package.deb"),
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )


class Box:
    """A running machine; it ends with the context."""

    def __init__(self, suite: str, root: Path) -> None:
        assert os.geteuid() == 0, "only root can make such a machine: run this as root"
        self.root = root
        subprocess.run(("cp", "--archive", "--reflink=auto", base(suite), root), check=True)
        self._log = root.with_suffix(".log")

    def __enter__(self) -> Self:
        options = ("--quiet", "--register=no", "--keep-unit", "--private-network", "--console=read-only", "--boot")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ("systemd-nspawn", *options, f"--directory={self.root}", f"--machine=notary-{os.getpid()}"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # systemd 258 and later boots with cgroup v2 only, also where the host still has v1.
                env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                start_new_session=True,
            )
        deadline = time.monotonic() + BOOT_SECONDS
        while self.run("systemctl", "is-system-running", check=False).stdout.strip() not in {"running", "degraded"}:
            assert self._process.poll() is None, self._log.read_text("utf-8", "replace")
            assert time.monotonic() < deadline, self._log.read_text("utf-8", "replace")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(BOOT_SECONDS)
        shutil.rmtree(self.root)

    def enter(self, *namespaces: str) -> Sequence[str]:
        """The beginning of a command that enters namespaces of this machine."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text("ascii").split()
        return ("nsenter", "--target", children[0] if children else "0", *namespaces)

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine, as its root in root's home."""
        settings = {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        variables = [f"{name}={value}" for name, value in (settings | environment).items()]
        done = subprocess.run(
            (*self.enter("--all", "--root", "--wd=/"), "env", "-i", "--chdir=/root", *variables, *command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def sh(self, script: str, **environment: str) -> str:
        """What a script prints that runs in the machine; it must succeed."""
        done = self.run("bash", "-e", "-o", "pipefail", "-c", script, **environment)
        return done.stdout + done.stderr
