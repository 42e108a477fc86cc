"""Real servers for the interoperability tests: the Go ``notary-server`` and ours, as processes on loopback.

Rules of this module: a server is a process of its own, found and ended by its pid; its port is ephemeral; it is ready
when its port accepts; its output goes to a file that every failure shows. The code that starts one ends it (``Daemon``
is a context manager). Certificates are minted for the tests, never read from the repository.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support.certs import Authority

GO_SERVER = ("/usr/bin/notary-server",)
OUR_SERVER = tuple(
    shlex.split(os.environ.get("INTEROP_SERVER", "")) or [str(Path(sys.executable).with_name("notary-server"))]
)
"""The server under test: the console script of this environment, or the command in ``INTEROP_SERVER``."""
OUR_TWISTD = (str(Path(sys.executable).with_name("twistd")),)

READY_SECONDS = 60.0
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Certificates:
    """Files of one TLS server: its CA, its certificate chain and its key, all PEM."""

    ca: Path
    certificate: Path
    key: Path


def mint_certificates(directory: Path, names: Iterable[str] = ("localhost", "notary-server")) -> Certificates:
    """A CA and a server certificate that it signed, for ``names`` and 127.0.0.1, valid for a day."""
    directory.mkdir(parents=True, exist_ok=True)
    authority = Authority.root("interop test CA")
    certificate, key = authority.leaf(*names, "127.0.0.1").write(directory, "server")
    return Certificates(authority.write(directory, "ca"), certificate, key)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_open(port: int) -> bool:
    """Whether something accepts connections on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would configure a server, and with ``extra``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NOTARY_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **(extra or {})}


def server_config(
    port: int, tls: Certificates | None = None, storage: Mapping[str, str] | None = None, level: str = "error"
) -> dict[str, dict[str, str]]:
    """A configuration that both servers read the same: local signer, memory unless ``storage`` says otherwise."""
    server = {"http_addr": f"127.0.0.1:{port}"}
    if tls is not None:
        server |= {"tls_cert_file": str(tls.certificate), "tls_key_file": str(tls.key)}
    return {
        "server": server,
        "trust_service": {"type": "local"},
        "storage": dict(storage or {"backend": "memory"}),
        "logging": {"level": level},
    }


def remote_signer(
    port: int, ca: Path, client: tuple[Path, Path] | None, algorithm: str = "ecdsa"
) -> dict[str, dict[str, str]]:
    """The section of a server whose signer, on ``port`` of localhost, ``ca`` vouches for.

    ``client`` holds the server's certificate and key for it; ``algorithm`` is that of the keys to be made.
    """
    section = {
        "type": "remote",
        "hostname": "localhost",
        "port": str(port),
        "tls_ca_file": str(ca),
        "key_algorithm": algorithm,
    }
    if client is not None:
        section |= {"tls_client_cert": str(client[0]), "tls_client_key": str(client[1])}
    return {"trust_service": section}


class Daemon:
    """One server process.

    ``command`` is what to run; ``port`` where it will listen (it is told so by its configuration, not by us). Output of
    every start is appended to ``log``. ``passed`` is a listening socket to pass to it, as systemd does.
    """

    passed: socket.socket | None = None

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        directory: Path,
        *,
        tls: Certificates | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self.port = port
        self.directory = directory
        self.tls = tls
        self.environment = clean_environment(environment)
        self.log = directory / f"{name}.log"
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Scheme, host and port, without a trailing slash."""
        return f"{'https' if self.tls else 'http'}://localhost:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def output(self) -> str:
        """All that the server has printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def spawn(self) -> None:
        """Start the process and return at once."""
        assert not self.alive, f"{self.name} runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        command, descriptors = self.command, ()
        if self.passed is not None:
            descriptors = (self.passed.fileno(),)
            shell = f'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&{descriptors[0]}'
            command = ("bash", "-c", shell, "bash", *command)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.directory,
                pass_fds=descriptors,
            )
        self.starts += 1

    def start(self) -> Self:
        """Start the process and wait until its port accepts; AssertionError with its output if that does not happen."""
        self.spawn()
        deadline = time.monotonic() + READY_SECONDS
        while not is_open(self.port):
            assert self.alive, f"{self.name} ended while starting (status {self.wait()}):\n{self.output()}"
            assert time.monotonic() < deadline, f"{self.name} is not ready:\n{self.output()}"
            time.sleep(0.02)
        return self

    def ensure(self) -> bool:
        """Start the process again if it has died; True if that was necessary."""
        if self.alive:
            return False
        sys.stderr.write(f"\n{self.name} died (status {self.wait()}) and is started afresh:\n{self.output()[-2000:]}\n")
        self.start()
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = READY_SECONDS) -> int:
        """The exit status, once the process has ended by itself (negative: the signal that ended it).

        The process may have to start first, which takes long if something else has all processors.
        """
        assert self._process is not None, f"{self.name} was never started"
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended in {seconds:g} s:\n{self.output()}") from None

    def stop(self) -> int:
        """Ask the process to end, with SIGTERM, and return its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End the process with SIGKILL, if it runs."""
        if self._process is not None and self.alive:
            self._process.kill()
            self._process.wait(STOP_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def daemon(
    name: str,
    command: Sequence[str],
    directory: Path,
    *,
    tls: Certificates | None = None,
    storage: Mapping[str, str] | None = None,
    level: str = "error",
    environment: Mapping[str, str] | None = None,
    extra: Mapping[str, object] | None = None,
) -> Daemon:
    """A server of ``command`` on a free port, with a configuration file; not started yet.

    ``extra`` holds more sections of the configuration.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = directory / f"{name}.json"
    config.write_text(json.dumps(server_config(port, tls, storage, level) | dict(extra or {})))
    return Daemon(name, (*command, f"-config={config}"), port, directory, tls=tls, environment=environment)
