"""docs/high-availability.md as it stands: HAProxy's configuration, two servers and two signers on one MariaDB.

Rules of this module: of the page's configuration and commands only names, ports and paths are replaced; for systemctl
stands a function. Every process is ended by the test that started it.
"""

from __future__ import annotations

import re
import shlex
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import pytest

from tests.support.author import Author, server_key_from
from tests.support.databases import MariaDB
from tests.support.doc_haproxy import block
from tests.support.migrated import migrated_database
from tests.support.peers import OUR_SERVER, Daemon, daemon, free_port, mint_certificates, remote_signer
from tests.support.sides import MULTIPART, form_of
from tests.support.signer import OUR_SIGNER, Pair, signer_daemon
from tests.support.waiting import until

PAGE = Path(__file__).parents[2] / "docs/high-availability.md"
HAPROXY = "/usr/sbin/haproxy"
GUN = "example.com/team/app"
WAIT_SECONDS = 30.0
RUNNING, PASSED = "2", "3"
RESTARTS = PAGE.read_text().partition("## Restart one after the other")[2].partition("\n## ")[0]
DRAIN, SHOW, RESTART, READY = re.findall(r"^(?:echo|systemctl) .*$", RESTARTS, re.MULTILINE)
COLUMNS = re.findall(r"^# (pxname,.*)$", RESTARTS, re.MULTILINE)[0].split(",")


@dataclass
class Cluster:
    """Everything behind the load balancer, by the names on the page; ``failures`` are those of readers."""

    balancer: Daemon
    daemons: dict[str, Daemon]
    admin: Path
    context: ssl.SSLContext
    failures: list[str] = field(default_factory=list)
    reads: int = 0

    def send(self, path: str, data: bytes | None = None) -> bytes:
        """One request on a connection of its own; raises OSError, of which HTTPError is one."""
        url = f"{self.balancer.url}/v2/{GUN}/_trust/tuf/{path}"
        request = urllib.request.Request(url, data, {"Content-Type": MULTIPART} if data else {})
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS, context=self.context) as answer:
            return bytes(answer.read())

    def tell(self, command: str) -> str:
        """Say something to HAProxy, as the page does with socat; its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(WAIT_SECONDS)
            connection.connect(str(self.admin))
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def type(self, command: str, name: str) -> str:
        """Run a command of the page as it is printed there, for the server or signer of this name; its output."""
        backend = f"{name.partition('-')[0]}s"
        command = command.replace("servers/server-1", f"{backend}/{name}").replace(
            "show stat servers", f"show stat {backend}"
        )
        command = command.replace("/run/haproxy/admin.sock", shlex.quote(str(self.admin)))
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=WAIT_SECONDS)
        assert done.stderr == ""
        return done.stdout

    def restart(self, name: str) -> None:
        """Stop a daemon and start it, as `systemctl restart` does."""
        assert RESTART == "systemctl restart notary-server.service"
        self.daemons[name].stop()
        self.daemons[name].start()

    def stands(self, name: str) -> dict[str, str]:
        """What the page's command shows of a server or signer, by the page's names of the columns."""
        head, *lines = self.type(SHOW, name).splitlines()
        assert head == f"# {','.join(COLUMNS)}"
        (found,) = (line.split(",") for line in lines if line.split(",")[1:2] == [name])
        return dict(zip(COLUMNS, found, strict=True))

    def await_stand(self, name: str, **wanted: str) -> None:
        """Wait until the page's command shows these values."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not wanted.items() <= (found := self.stands(name)).items():
            assert time.monotonic() < deadline, f"{name} does not come to {wanted}: {found}\n{self.balancer.output()}"
            time.sleep(0.05)

    def await_running(self, *names: str) -> None:
        """Wait until HAProxy finds these well, by a check: before the first one it takes every server for well."""
        until(self.admin.exists, "HAProxy has its own socket, which it makes after the ports")
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            lines = [
                line.split()
                for each in ("servers", "signers")
                for line in self.tell(f"show servers state {each}").splitlines()
            ]
            states = {words[3]: (words[5], words[11]) for words in lines if len(words) > 11}
            if all(states.get(name) == (RUNNING, PASSED) for name in names):
                return
            assert time.monotonic() < deadline, f"{names} do not come back: {states}\n{self.balancer.output()}"
            time.sleep(0.05)

    def read_until(self, done: threading.Event) -> None:
        """What a reader does, in a thread."""
        while not done.is_set():
            try:
                self.send("timestamp.json")
                self.reads += 1
            except OSError as error:
                self.failures.append(str(error))


@contextmanager
def behind_haproxy(
    databases: Mapping[str, Mapping[str, str]],
    directory: Path,
    *,
    server: Sequence[str] = OUR_SERVER,
    signer: Sequence[str] = OUR_SIGNER,
) -> Iterator[Cluster]:
    """Two servers and two signers of these programs, on the ``storage`` of each daemon, behind the page's HAProxy."""
    tls = mint_certificates(directory / "tls")
    pair = Pair.mint(directory / "pair")
    root = pair.authority.write(pair.folder, "root")
    ports = {"https": free_port(), "grpc": free_port()}
    daemons: dict[str, Daemon] = {}
    for name in ("signer-1", "signer-2"):
        storage = {**databases["signer"], "default_alias": "one"}
        environment = {"NOTARY_SIGNER_ONE": "correct horse"}
        daemons[name] = signer_daemon(name, signer, pair, directory, storage, environment=environment)
    trust = remote_signer(ports["grpc"], root, pair.client.write(pair.folder, "client"))
    for name in ("server-1", "server-2"):
        daemons[name] = daemon(name, server, directory, tls=tls, storage=databases["server"], extra=trust)
    admin = directory / "admin.sock"
    text = block("global\n    maxconn", "text")
    text = re.sub(r"((?:server|signer)-\d):\d+", lambda name: f"127.0.0.1:{daemons[name[1]].port}", text)
    text = text.replace("bind :4443", f"bind 127.0.0.1:{ports['https']}").replace(
        "bind :7899", f"bind 127.0.0.1:{ports['grpc']}"
    )
    text = text.replace("/run/haproxy/admin.sock", str(admin)).replace("/etc/notary/root-ca.crt", str(tls.ca))
    assert "/etc" not in text
    (directory / "haproxy.cfg").write_text(text)
    balancer = Daemon(
        "haproxy", (HAPROXY, "-db", "-f", str(directory / "haproxy.cfg")), ports["https"], directory, tls=tls
    )
    with ExitStack() as stack:
        for each in (*daemons.values(), balancer):
            stack.enter_context(each)
        found = Cluster(balancer, daemons, admin, ssl.create_default_context(cafile=tls.ca))
        found.await_running(*daemons)
        yield found


@pytest.fixture
def cluster(mariadb: MariaDB, tmp_path: Path) -> Iterator[Cluster]:
    databases = {
        service: {"backend": "mysql", "db_url": migrated_database(mariadb, service)[1]}
        for service in ("server", "signer")
    }
    with behind_haproxy(databases, tmp_path) as found:
        yield found


def publish_until_stored(cluster: Cluster, author: Author, *roles: str) -> None:
    """Publish, and again as long as that fails with 500, as a publisher would."""
    files = author.publish(*roles)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            assert cluster.send("", form_of(files)) == b""
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != HTTPStatus.INTERNAL_SERVER_ERROR or time.monotonic() > deadline:
                raise
        else:
            return


def test_no_read_fails_while_servers_restart_and_publishing_outlives_any_signer(cluster: Cluster) -> None:
    author = Author(
        GUN,
        timestamp=server_key_from(cluster.send("timestamp.key")),
        snapshot=server_key_from(cluster.send("snapshot.key")),
    )
    publish_until_stored(cluster, author, "root", "targets")

    done = threading.Event()
    readers = [threading.Thread(target=cluster.read_until, args=[done]) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        for name in ("server-1", "server-2"):
            cluster.type(DRAIN, name)
            if name == "server-1":  # with the other, the requests under way are not waited for
                cluster.await_stand(name, status="DRAIN", scur="0", check_status="L7OK")
            before = cluster.reads
            publish_until_stored(cluster, author, "targets")
            cluster.restart(name)
            cluster.await_stand(name, status="DRAIN", scur="0", check_status="L7OK")
            cluster.type(READY, name)
            cluster.await_stand(name, status="UP", check_status="L7OK")
            assert cluster.reads > before
        for name in ("signer-1", "signer-2"):
            cluster.type(DRAIN, name)
            cluster.await_stand(name, status="DRAIN", check_status="L4OK")
            cluster.restart(name)
            publish_until_stored(cluster, author, "targets")
            cluster.type(READY, name)
            cluster.await_stand(name, status="UP", check_status="L4OK")
        for name, other in (("signer-1", "signer-2"), ("signer-2", "signer-1")):
            cluster.daemons[name].kill()
            publish_until_stored(cluster, author, "targets")
            cluster.daemons[name].start()
            cluster.await_running(name, other)
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert cluster.failures == [], cluster.balancer.output()
    assert author.versions["targets"] == 7

    cluster.daemons["server-1"].kill()
    cluster.await_running("server-2")
    publish_until_stored(cluster, author, "targets")
    assert cluster.send("targets.json") == author.stored["targets"]
