"""The life of both daemons, as processes: reloads and restarts under load, drains, systemd's two protocols.

Rules of this module: clients keep their connections and count what fails. They send nothing twice, although they may
(RFC 9112, section 9.3.1): a connection that ends without an answer is a failure.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_twisted

from tests.support.certs import Authority, Leaf
from tests.support.peers import OUR_SERVER, OUR_TWISTD, Certificates, Daemon, daemon, is_open, remote_signer
from tests.support.readers import CLIENTS, Load, get, lines_of, messages, shown
from tests.support.sides import Side, make_collection
from tests.support.signer import OUR_SIGNER, SIGNER, Client, Pair, signer_daemon
from tests.support.waiting import PATIENCE_SECONDS, until

STORAGE = {"backend": "sqlite3", "db_url": "notary.db"}
HEALTH = "/_notary_server/health"


# -- the server -------------------------------------------------------------------------------------------------------


class World:
    """A server with HTTPS on a listening socket that this process holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.root("root")
        ca = self.authority.write(folder, "ca")
        self.tls = Certificates(ca, *self.new_pair())
        self.server = daemon("server", OUR_SERVER, folder, tls=self.tls, storage=STORAGE)
        self.server.passed = socket.create_server(("127.0.0.1", self.server.port), backlog=1024)

    def start(self) -> None:
        """Start the server and wait until it serves: the port takes connections all the time."""
        self.server.start()
        shown(self.server.port, self.tls.ca)

    def mint(self) -> Leaf:
        return self.authority.leaf("localhost")

    def new_pair(self) -> tuple[Path, Path]:
        """Write a new certificate and key where the server has its own."""
        self.current = self.mint()
        return self.current.write(self.folder, "server")

    @property
    def serial(self) -> int:
        return self.current.chain[0].serial_number

    def reconfigure(self, **sections: Mapping[str, Any]) -> None:
        path = self.folder / "server.json"
        config = json.loads(path.read_text())
        for name, changes in sections.items():
            config[name] |= changes
        path.write_text(json.dumps(config))

    def hang_up(self) -> dict[str, Any]:
        """Send SIGHUP and return the line that tells what came of it."""
        before = len(lines_of(self.server))
        self.server.signal(signal.SIGHUP)
        until(lambda: [line for line in lines_of(self.server)[before:] if "eloaded" in line["msg"]], "a reload")
        return next(line for line in lines_of(self.server)[before:] if "eloaded" in line["msg"])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    try:
        yield world
    finally:
        world.server.kill()
        world.server.passed.close()


@pytest_twisted.ensureDeferred
async def test_reloads_and_a_restart_under_load_fail_no_request(reactor: Any, world: World) -> None:
    world.reconfigure(server={"drain_timeout": 3 * PATIENCE_SECONDS})  # a third of it for the next request
    world.start()
    async with Side(world.server, reactor) as side:
        collection = await make_collection(side)
        path = collection.path("targets.json")
        expected = (await side.get(path)).body
    with Load(world.server.port, world.tls.ca, path, expected) as load:
        for _ in range(3):
            before = world.serial
            world.new_pair()
            assert shown(world.server.port, world.tls.ca) == before, "nobody has looked yet"
            assert world.hang_up()["level"] == "info"
            assert shown(world.server.port, world.tls.ca) == world.serial
            load.go_on()
        assert load.connects == CLIENTS, "no connection was dropped"
        assert world.server.stop() == -signal.SIGTERM, world.server.output()
        world.server.spawn()
        load.go_on()
        assert load.connects > CLIENTS
    assert "traceback" not in world.server.output().lower()
    assert not [line for line in lines_of(world.server) if line["level"] in ("error", "fatal")]


def test_bad_files_change_nothing(world: World) -> None:
    world.start()
    good = world.serial
    certificate, key = world.tls.certificate, world.tls.key
    other = world.mint()
    for name, spoil in {
        "is not the key of the first certificate": lambda: other.write(world.folder, "other")[1].replace(key),
        "holds no certificate": lambda: certificate.write_text("nothing"),
        "cannot be read": certificate.unlink,
    }.items():
        spoil()
        line = world.hang_up()
        assert line["level"] == "error"
        assert name in line["msg"], line
        assert shown(world.server.port, world.tls.ca) == good
    (world.folder / "server.json").write_text("{")
    assert "expected JSON" in world.hang_up()["msg"]
    assert shown(world.server.port, world.tls.ca) == good
    assert world.server.stop() == -signal.SIGTERM


def test_what_a_new_configuration_can_change_and_what_needs_a_restart(world: World) -> None:
    world.start()
    moved = world.mint()
    certificate, key = moved.write(world.folder, "moved")
    world.reconfigure(
        server={"tls_cert_file": str(certificate), "tls_key_file": str(key), "http_addr": "127.0.0.1:1"},
        logging={"level": "info"},
    )
    assert world.hang_up()["msg"] == "Reloaded; the log level is info"
    assert shown(world.server.port, world.tls.ca) == moved.chain[0].serial_number
    (warning,) = (line["msg"] for line in lines_of(world.server) if line["level"] == "warning")
    assert warning.startswith("server.http_addr has changed, which needs a restart")
    world.server.stop()


def test_certificates_are_picked_up_when_their_files_change(world: World) -> None:
    world.reconfigure(logging={"level": "info"})
    world.start()
    until(lambda: any(each.startswith("Starting on") for each in messages(world.server)), "a start")
    world.new_pair()
    until(lambda: shown(world.server.port, world.tls.ca) == world.serial, "the new certificate")
    until(lambda: any("changed and is used from now on" in each for each in messages(world.server)), "its line")
    world.server.stop()


def test_a_stopping_server_finishes_what_is_in_flight(world: World) -> None:
    world.reconfigure(logging={"level": "info"})
    world.start()
    context = ssl.create_default_context(cafile=str(world.tls.ca))
    body = b"x" * 1000
    with (
        socket.create_connection(("127.0.0.1", world.server.port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        secure.sendall(b"POST /v2/example.com/app/_trust/tuf/ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n")
        secure.sendall(b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000\r\n\r\n")
        assert secure.recv(1000).startswith(b"HTTP/1.1 100 ")
        for _ in range(2):
            world.server.signal(signal.SIGTERM)
        until(lambda: "Stopping" in messages(world.server), "the stop begins")
        secure.sendall(body)
        answer = secure.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert world.server.wait() == -signal.SIGTERM
    assert "traceback" not in world.server.output().lower()


def test_a_drain_has_an_end(world: World) -> None:
    world.reconfigure(server={"drain_timeout": 0.2})
    world.start()
    context = ssl.create_default_context(cafile=str(world.tls.ca))
    with (
        socket.create_connection(("127.0.0.1", world.server.port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=True) as secure,
    ):
        secure.sendall(b"GET / HTTP/1.1\r\n")  # and never an end
        secure.sendall(b"Host: a\r\n")
        until(lambda: is_open(world.server.port), "the server is up")
        assert world.server.stop() == -signal.SIGTERM


@pytest.mark.parametrize(
    "command", [OUR_SERVER, (*OUR_TWISTD, "-n", "--pidfile=", "notary-server")], ids=["console", "twistd"]
)
def test_signals_in_numbers_leave_no_traceback(tmp_path: Path, command: tuple[str, ...]) -> None:
    with daemon("server", command, tmp_path) as server:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            server.signal(number)
        assert server.wait() in (-signal.SIGTERM, -signal.SIGINT)
        assert "traceback" not in server.output().lower()


# -- the signer, and the server as its client -------------------------------------------------------------------------


def test_the_signer_and_its_client_take_new_certificates(tmp_path: Path) -> None:
    pair = Pair.mint(tmp_path / "tls")
    signer = signer_daemon("signer", OUR_SIGNER, pair, tmp_path, {"backend": "memory"})
    ca, shown_pair = pair.authority.write(pair.folder, "root"), pair.client.write(pair.folder, "client")
    server = daemon("server", OUR_SERVER, tmp_path, extra=remote_signer(signer.port, ca, shown_pair))
    with signer, server, Client(pair, signer.port) as client:
        assert client.health(SIGNER) == 1
        until(lambda: get(server.port, HEALTH) == (200, {}), "health")
        # Another authority for everybody: the connections that are open go on.
        other = Authority.root("another root")
        other.leaf("localhost").write(pair.folder, "signer")
        other.write(pair.folder, "clients")
        signer.signal(signal.SIGHUP)
        until(lambda: any(each.startswith("Reloaded") for each in messages(signer)), "the signer's reload")
        assert client.health(SIGNER) == 1
        with Client(pair, signer.port) as late, pytest.raises(grpc.RpcError):
            late.health(SIGNER)
        other.write(pair.folder, "root")
        other.leaf("notary-server").write(pair.folder, "client")
        server.signal(signal.SIGHUP)
        until(lambda: any(each.startswith("Reloaded") for each in messages(server)), "the server's reload")
        # The next connection shows and trusts what is new.
        assert signer.stop() == -signal.SIGTERM
        signer.start()
        until(lambda: get(server.port, "/v2/example.com/app/_trust/tuf/timestamp.key")[0] == 200, "a key")
        assert server.stop() == -signal.SIGTERM


# -- systemd ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(PATIENCE_SECONDS)
        yield made


def heard(manager: socket.socket, what: str) -> str:
    """The next message that begins with ``what``."""
    while not (said := manager.recv(4096).decode()).startswith(what):
        assert said.startswith("WATCHDOG=1"), said
    return said


@pytest.mark.parametrize("which", ["server", "signer"])
def test_the_service_manager_is_told(tmp_path: Path, manager: socket.socket, which: str) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    if which == "server":
        service = daemon("server", OUR_SERVER, tmp_path, environment=environment)
    else:
        pair = Pair.mint(tmp_path / "tls")
        service = signer_daemon("signer", OUR_SIGNER, pair, tmp_path, {"backend": "memory"}, environment=environment)
    with service:
        assert heard(manager, "READY=1") == "READY=1\nSTATUS=Serving"
        assert heard(manager, "WATCHDOG=1") == "WATCHDOG=1"
        service.signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in heard(manager, "RELOADING=1")
        heard(manager, "READY=1")
        (tmp_path / f"{which}.json").write_text("{")
        service.signal(signal.SIGHUP)
        heard(manager, "RELOADING=1")
        assert "STATUS=Serving; the last reload failed: " in heard(manager, "READY=1")
        service.signal(signal.SIGTERM)
        heard(manager, "STOPPING=1")
        assert service.wait() == -signal.SIGTERM


def activated(service: Daemon, *flags: str) -> subprocess.Popen[bytes]:
    """systemd-socket-activate on a daemon's port; it becomes the daemon at the first connection."""
    with service.log.open("ab") as log:
        return subprocess.Popen(
            ["systemd-socket-activate", "-l", f"127.0.0.1:{service.port}", *flags, *service.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=service.environment,
            cwd=service.directory,
        )


def end(process: subprocess.Popen[bytes]) -> int:
    os.kill(process.pid, signal.SIGTERM)  # the daemon by now: it took the place of the activator
    return process.wait(PATIENCE_SECONDS)


def test_systemd_starts_the_server_with_its_socket(tmp_path: Path) -> None:
    server = daemon("server", OUR_SERVER, tmp_path, level="info")
    process = activated(server, "--fdname=http")
    try:
        until(lambda: is_open(server.port), "the activator listens")
        assert get(server.port, HEALTH) == (200, {})
        assert end(process) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert f"Starting on 127.0.0.1:{server.port}, a socket that was passed" in server.output()


def test_systemd_starts_the_signer_with_its_socket(tmp_path: Path) -> None:
    pair = Pair.mint(tmp_path / "tls")
    signer = signer_daemon("signer", OUR_SIGNER, pair, tmp_path, {"backend": "memory"}, level="info")
    process = activated(signer)
    try:
        until(lambda: is_open(signer.port), "the activator listens")
        with Client(pair, signer.port) as client:
            assert client.health(SIGNER) == 1
            assert end(process) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()


def test_a_socket_that_cannot_be_served_ends_the_start(tmp_path: Path) -> None:
    server = daemon("server", OUR_SERVER, tmp_path)
    with ExitStack() as stack:
        server.passed = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.passed.bind(("127.0.0.1", 0))
        server.spawn()
        assert server.wait() == 1
    (fatal,) = (line for line in lines_of(server) if line["level"] == "fatal")
    assert fatal["msg"].startswith("LISTEN_FDS: descriptor 3 is not a listening stream socket")


def test_a_unix_socket_is_served_and_its_file_stays(tmp_path: Path) -> None:
    server = daemon("server", OUR_SERVER, tmp_path)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        server.passed = listening
        server.spawn()
        try:
            for number in range(3):
                if number == 2:
                    assert server.stop() == -signal.SIGTERM
                    server.spawn()
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(PATIENCE_SECONDS)
                    client.connect(str(path))
                    client.sendall(f"GET {HEALTH} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
                    assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
            assert server.stop() == -signal.SIGTERM
        finally:
            server.kill()
        assert path.exists()
