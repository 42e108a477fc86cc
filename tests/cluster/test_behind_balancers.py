"""Restarts of two servers behind a load balancer fail no request, on a machine whose processors are busy otherwise.

Rules of this module: of the balancers' configurations in docs/high-availability.md only names, ports and paths are
replaced. Nobody tells the balancer of a restart. wrk and the Python clients send nothing twice; Go's client repeats a
GET as it likes, and no POST. ``NOTARY_REQUESTS`` and ``NOTARY_RESTARTS`` say how many there are at least; the requests
are those of the Python clients, two thirds of all.
"""

from __future__ import annotations

import http.client
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.interop.conftest import reactor
from tests.support.databases import MariaDB
from tests.support.migrated import migrated_database
from tests.support.peers import OUR_SERVER, Daemon, daemon, free_port, mint_certificates
from tests.support.readers import Reader
from tests.support.sides import Side, make_collection
from tests.support.waiting import until

__all__ = ["reactor"]

PAGE = (Path(__file__).parents[2] / "docs/high-availability.md").read_text()
BLOCKS = re.findall(r"^```(?:text|nginx)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
REQUESTS = int(os.environ.get("NOTARY_REQUESTS", "75000"))
RESTARTS = int(os.environ.get("NOTARY_RESTARTS", "20"))
READERS, POSTERS, SLOW_POSTERS, GO_CLIENTS, WRK_CONNECTIONS, BUSY = 4, 2, 20, 4, 4, 2
SLOW_SECONDS = 1.0
BROKEN_UPLOAD = b"not a form", {"Content-Type": "multipart/form-data; boundary=b"}
"""A POST of this is answered 400, and changes nothing."""


def block(first_line: str) -> str:
    """The one block of the page that begins so."""
    (found,) = (each for each in BLOCKS if each.startswith(first_line))
    return found


# -- balancers --------------------------------------------------------------------------------------------------------


class Scene:
    """Two servers on one database, and what a balancer's configuration has to name."""

    def __init__(self, mariadb: MariaDB, folder: Path) -> None:
        self.folder = folder
        self.tls = mint_certificates(folder / "tls")
        _, url = migrated_database(mariadb, "server")
        storage = {"backend": "mysql", "db_url": url}
        names = ("server-1", "server-2")
        self.servers = {name: daemon(name, OUR_SERVER, folder, tls=self.tls, storage=storage) for name in names}
        self.port = free_port()
        self.path, self.expected = "", b""  # what clients read
        self.both = folder / "both.pem"
        self.both.write_bytes(self.tls.certificate.read_bytes() + self.tls.key.read_bytes())

    def with_places(self, text: str) -> str:
        """A configuration with our ports and paths."""
        text = re.sub(r"server-\d:4443", lambda name: f"127.0.0.1:{self.servers[name[0][:8]].port}", text)
        for there, here in {
            "bind :4443": f"bind 127.0.0.1:{self.port}",
            "listen 4443": f"listen 127.0.0.1:{self.port}",
            "/etc/notary/root-ca.crt": str(self.tls.ca),
            "/etc/haproxy/notary.pem": str(self.both),
            "/etc/nginx/notary.crt": str(self.tls.certificate),
            "/etc/nginx/notary.key": str(self.tls.key),
            "/run/haproxy/admin.sock": str(self.folder / "admin.sock"),
        }.items():
            text = text.replace(there, here)
        assert "/etc" not in text
        return text


class HAProxy:
    """HAProxy; ``text`` stands for what is between its defaults and the signers on the page."""

    def __init__(self, scene: Scene, text: str | None = None) -> None:
        whole = block("global\n    maxconn")
        servers = whole[whole.index("frontend https") : whole.index("frontend grpc")]
        whole = whole[: whole.index("frontend grpc")].replace(servers, text or servers)
        config = scene.folder / "haproxy.cfg"
        config.write_text(scene.with_places(whole))
        self.admin = scene.folder / "admin.sock"
        command = ("/usr/sbin/haproxy", "-db", "-f", str(config))
        self.daemon = Daemon("haproxy", command, scene.port, scene.folder, tls=scene.tls)

    def finds_well(self) -> bool:
        """Whether both servers are in use, by a check."""
        if not self.admin.exists():
            return False
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.admin))
            connection.sendall(b"show stat servers 4 -1\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        rows = [line.split(",") for line in text.splitlines() if ",server-" in f",{line}"]
        return [(row[17], row[36].lstrip("* ")) for row in rows] == [("UP", "L7OK")] * 2


class Nginx:
    """nginx, which finds out about a server when it asks it."""

    def __init__(self, scene: Scene) -> None:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{kind}_temp_path {scene.folder}/{kind};\n" for kind in kinds)
        text = scene.with_places(block("upstream notary {\n"))
        config = scene.folder / "nginx.conf"
        config.write_text(
            f"user root; daemon off; worker_processes 1; pid {scene.folder}/nginx.pid; error_log stderr;\n"
            f"events {{}}\nhttp {{\naccess_log off;\n{paths}{text}}}\n"
        )
        command = ("/usr/sbin/nginx", "-p", str(scene.folder), "-c", str(config))
        self.daemon = Daemon("nginx", command, scene.port, scene.folder, tls=scene.tls)

    def finds_well(self) -> bool:
        return True


BALANCERS = {
    "haproxy-tcp": HAProxy,
    "haproxy-http": lambda scene: HAProxy(scene, block("frontend https\n    mode http\n")),
    "nginx": Nginx,
}


# -- clients ----------------------------------------------------------------------------------------------------------


class Poster(Reader):
    """Posts what is refused, again and again."""

    def ask(self, connection: http.client.HTTPConnection) -> None:
        connection.request("POST", self.path, *BROKEN_UPLOAD)


def ask(server: Daemon, trusted: ssl.SSLContext, method: str, path: str) -> tuple[int, bytes]:
    """One request to a server itself: the status and the body of its answer."""
    connection = http.client.HTTPSConnection("localhost", server.port, timeout=30, context=trusted)
    try:
        connection.request(method, path, *(BROKEN_UPLOAD if method == "POST" else ()))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class SlowPoster(Poster):
    """Posts now and then: its connection is idle most of the time."""

    def ask(self, connection: http.client.HTTPConnection) -> None:
        time.sleep(random.uniform(0, SLOW_SECONDS))
        super().ask(connection)


@contextmanager
def running(threads: Sequence[Reader]) -> Iterator[None]:
    """Run these clients."""
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.over = True
        for thread in threads:
            thread.join()


class Program:
    """A client that is a process of its own. It counts by itself, and tells when it has ended."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def end(self) -> str:
        self._process.send_signal(signal.SIGINT)
        output, _ = self._process.communicate(timeout=60)
        return output

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def count_of_wrk(output: str) -> int:
    """The answers that wrk got; AssertionError if it saw anything but good ones."""
    assert "Socket errors" not in output, output
    assert "Non-2xx" not in output, output
    (count,) = re.findall(r"(\d+) requests in", output)
    return int(count)


def count_of_go(output: str) -> int:
    (line,) = re.findall(r"^\d+ answers$", output, re.MULTILINE)
    assert output == f"{line}\n", output
    return int(line.split()[0])


GO_PROGRAM = Path(__file__).with_name("keepalive.go")


@pytest.fixture(scope="session")
def go_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("go") / "keepalive"
    subprocess.run(
        ["go", "build", "-o", str(built), str(GO_PROGRAM)], check=True, env={**os.environ, "GO111MODULE": "off"}
    )
    return built


@pytest.fixture
def busy() -> Iterator[None]:
    """Something else that wants all processors."""
    loops = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(BUSY)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


async def published(server: Daemon, reactor: Any) -> tuple[str, bytes]:
    """The path of a file of a new collection, and what it holds."""
    async with Side(server, reactor) as side:
        path = (await make_collection(side)).path("targets.json")
        return path, (await side.get(path)).body


@pytest.fixture
def scene(reactor: Any, mariadb: MariaDB, tmp_path: Path, busy: None) -> Iterator[Scene]:
    made = Scene(mariadb, tmp_path)
    with ExitStack() as stack:
        for server in made.servers.values():
            stack.enter_context(server)
        first = made.servers["server-1"]
        made.path, made.expected = pytest_twisted.blockon(Deferred.fromCoroutine(published(first, reactor)))
        yield made


@pytest.mark.parametrize("balancer", BALANCERS)
def test_restarts_fail_no_request(scene: Scene, go_client: Path, balancer: str) -> None:
    trusted = ssl.create_default_context(cafile=str(scene.tls.ca))
    path, upload = scene.path, scene.path.removesuffix("targets.json")
    refused = ask(scene.servers["server-1"], trusted, "POST", upload)[1]
    threads: list[Reader] = [Reader(scene.port, trusted, path, scene.expected) for _ in range(READERS)]
    threads += [Poster(scene.port, trusted, upload, refused, status=400) for _ in range(POSTERS)]
    threads += [SlowPoster(scene.port, trusted, upload, refused, status=400) for _ in range(SLOW_POSTERS)]
    url = f"https://localhost:{scene.port}"
    commands = {
        "wrk": ("wrk", "-t1", f"-c{WRK_CONNECTIONS}", "-d3600s", "--timeout", "30s", url + path),
        "go": (str(go_client), str(scene.tls.ca), url + path, url + upload, str(GO_CLIENTS)),
    }
    restarts = 0
    with ExitStack() as stack:
        behind = BALANCERS[balancer](scene)
        stack.enter_context(behind.daemon)
        until(behind.finds_well, "the balancer uses both")
        programs = {name: stack.enter_context(Program(command)) for name, command in commands.items()}
        stack.enter_context(running(threads))
        while restarts < RESTARTS or sum(thread.reads for thread in threads) < REQUESTS:
            for server in scene.servers.values():
                assert server.stop() == -signal.SIGTERM
                server.start()
                until(lambda server=server: ask(server, trusted, "GET", "/readyz")[0] == 200, "it serves")
                until(behind.finds_well, "the balancer uses both")
                restarts += 1
            assert [failure for thread in threads for failure in thread.failures] == []
        said = {name: program.end() for name, program in programs.items()}
    assert [failure for thread in threads for failure in thread.failures] == []
    counts = {"python": sum(thread.reads for thread in threads)}
    counts |= {"wrk": count_of_wrk(said["wrk"]), "go": count_of_go(said["go"])}
    sys.stderr.write(f"\n{balancer}: {sum(counts.values())} requests, {restarts} restarts: {counts}\n")
