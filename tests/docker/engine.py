"""A Docker engine, a base image and compose: what is there is used, what is not is made.

Rules of this module: an engine that answers is used as it is. Otherwise root gets one of its own, with its data in
``build/docker`` so that a second run finds the layers of the first. Without a registry, the base image comes from
debootstrap, as small as the published one, and with the authorities that were added to those of this machine: it may
reach the packages through a proxy that they vouch for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

TREE = Path(__file__).resolve().parents[2]
MADE_BASE = "notary_base:bookworm"
START_SECONDS = 60.0
AUTHORITIES = Path("/usr/local/share/ca-certificates")
LEFT_OUT = (
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
)
"""Folders whose content the published image has not either."""

SOURCES = """\
deb http://deb.debian.org/debian bookworm main
deb http://deb.debian.org/debian bookworm-updates main
deb http://deb.debian.org/debian-security bookworm-security main
"""


def pinned_base() -> str:
    """The base that the images are built on, unless the variable NOTARY_BASE names another."""
    found = re.search(r"^ARG BASE=\$\{NOTARY_BASE:-(\S+)\}$", (TREE / "docker/Dockerfile").read_text(), re.MULTILINE)
    assert found
    return found[1]


class Engine:
    """A Docker engine at ``host`` ("" is the command's own default)."""

    command: tuple[str, ...] = ("docker",)

    def __init__(self, host: str = "") -> None:
        self.environment = {**os.environ, **({"DOCKER_HOST": host} if host else {}), "DOCKER_CLI_HINTS": "false"}

    def run(
        self,
        *command: str,
        environment: Mapping[str, str] | None = None,
        check: bool = True,
        seconds: float = 900,
        stdin: int | None = subprocess.DEVNULL,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that talks to the engine; AssertionError with what it printed if it fails."""
        done = subprocess.run(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=TREE,
            env={**self.environment, **(environment or {})},
            timeout=seconds,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout[-6000:]}"
        return done

    def docker(self, *arguments: str, check: bool = True) -> str:
        """What a docker command prints."""
        return self.run(*self.command, *arguments, check=check).stdout

    def inspect(self, what: str) -> dict[str, object]:
        """What the engine knows of an image or a container."""
        found: list[dict[str, object]] = json.loads(self.docker("inspect", what))
        return found[0]

    @property
    def answers(self) -> bool:
        """Whether an engine is there."""
        return self.run("docker", "info", check=False).returncode == 0

    def has(self, image: str) -> bool:
        """Whether an image is here."""
        return self.run("docker", "image", "inspect", image, check=False).returncode == 0

    @property
    def base(self) -> str:
        """The base of the images."""
        return self.environment.get("NOTARY_BASE") or pinned_base()

    def need_base(self) -> None:
        """See that the base image is there."""
        if self.has(self.base) or self.run("docker", "pull", "--quiet", self.base, check=False).returncode == 0:
            return
        self.environment["NOTARY_BASE"] = MADE_BASE
        if self.has(MADE_BASE):
            return
        say("no registry answers: making the base image with debootstrap")
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory) / "root"
            self.run("debootstrap", "--variant=minbase", "bookworm", str(root))
            (root / "etc/apt/sources.list").write_text(SOURCES)
            excludes = "".join(f"path-exclude /{name}/*\n" for name in LEFT_OUT if name.startswith("usr"))
            (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(excludes)
            if AUTHORITIES.is_dir():
                shutil.copytree(AUTHORITIES, root / AUTHORITIES.relative_to("/"), dirs_exist_ok=True)
            left_out = [f"--exclude=./{name}/*" for name in LEFT_OUT]
            with subprocess.Popen(("tar", "-C", str(root), *left_out, "-c", "."), stdout=subprocess.PIPE) as tar:
                assert tar.stdout is not None
                self.run("docker", "import", "-", MADE_BASE, stdin=tar.stdout.fileno())
            assert tar.returncode == 0

    def build(self, target: str, image: str) -> None:
        """Build one of our images."""
        options = ("--file", "docker/Dockerfile", "--target", target, "--build-arg", f"BASE={self.base}")
        self.docker("build", "--quiet", *options, "--tag", image, ".")


class OwnEngine(Engine):
    """An engine of our own, for as long as the context lasts. Wants root."""

    def __init__(self) -> None:
        self._runtime = Path(tempfile.mkdtemp(prefix="notary-docker-"))
        super().__init__(f"unix://{self._runtime}/docker.sock")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        assert os.geteuid() == 0, "no Docker engine answers, and only root can start one: start it, or run this as root"
        data = TREE / "build/docker"
        data.mkdir(parents=True, exist_ok=True)
        self._log = self._runtime / "dockerd.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                (
                    "dockerd",
                    f"--host={self.environment['DOCKER_HOST']}",
                    f"--data-root={data}",
                    f"--exec-root={self._runtime}/exec",
                    f"--pidfile={self._runtime}/docker.pid",
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.answers:
            ended = self._process.poll()
            late = time.monotonic() > deadline
            assert ended is None, f"dockerd ended ({ended}):\n{self._log.read_text(errors='replace')[-3000:]}"
            assert not late, f"dockerd does not answer:\n{self._log.read_text(errors='replace')[-3000:]}"
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(60)
        shutil.rmtree(self._runtime, ignore_errors=True)


class Podman(Engine):
    """Podman, which answers to the same commands, with its data in a directory of its own. Wants root."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.command = ("podman", "--root", str(directory / "root"), "--runroot", str(directory / "run"))
        # Podman's own default is more than root may have everywhere.
        (directory / "containers.conf").write_text(
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n'
        )
        self.environment["CONTAINERS_CONF"] = str(directory / "containers.conf")


class Compose:
    """One project: ``arguments`` say which files; everything of it goes when the context ends."""

    def __init__(
        self, engine: Engine, name: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        plugin = engine.run("docker", "compose", "version", check=False).returncode == 0
        program = ("docker", "compose") if plugin else ("docker-compose",)
        self.engine = engine
        self._command = (*program, *arguments, "-p", name)
        self._environment = {**(environment or {}), "COMPOSE_PROJECT_NAME": name}

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """What a compose command prints."""
        return self.engine.run(*self._command, *arguments, environment=self._environment, check=check).stdout

    def container(self, service: str) -> str:
        """The id of a service's container."""
        found = self("ps", "-q", service).split()
        assert found, f"{service} has no container:\n{self('ps')}"
        return found[-1]

    def health(self, service: str) -> str:
        """What the engine says of a service's health check: starting, healthy or unhealthy."""
        state = self.engine.docker("inspect", "--format", "{{.State.Health.Status}}", self.container(service))
        return state.strip()

    def wait_healthy(self, *services: str, seconds: float = 120) -> None:
        """Wait until these services are healthy; AssertionError with the logs if that does not happen."""
        deadline = time.monotonic() + seconds
        while unhealthy := [name for name in services if self.health(name) != "healthy"]:
            assert time.monotonic() < deadline, f"not healthy: {unhealthy}\n{self('logs', '--tail=40')}"
            time.sleep(0.2)

    def __enter__(self) -> Self:
        self("up", "-d", "--build")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(AssertionError):
            self("down", "-v", "--timeout", "20")


def say(line: str) -> None:
    """Say on standard error what takes so long."""
    sys.stderr.write(f"\n{line}\n")
