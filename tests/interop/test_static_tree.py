"""The static tree under a real nginx, configured as docs/mirror.md says: clients read it with only the URL changed."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.copies import nginx
from tests.support.goclient import Delegate, Machine
from tests.support.peers import OUR_SERVER, Certificates, Daemon, clean_environment, daemon

GUN = "example.com/team/app"
SCRIPT = str(Path(sys.executable).parent / "notary-admin")
TUF = f"/v2/{GUN}/_trust/tuf/"


@dataclass
class Site:
    """A server, and the tree of its collections under nginx."""

    server: Daemon
    front: Daemon
    tls: Certificates
    tree: Path
    machine: Callable[[str], Machine]
    """A user of the server, by name."""
    reader: Callable[[str], Machine]
    """A user of the tree, by name."""

    def export(self, *arguments: str) -> list[dict[str, object]]:
        config = self.server.directory / "server.json"
        command = (SCRIPT, "repos", "export", "--static", self.tree, *arguments, "--config", config, "--json")
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def get(self, path: str, method: str = "GET") -> tuple[int, http.client.HTTPMessage, bytes]:
        trusted = ssl.create_default_context(cafile=str(self.tls.ca))
        connection = http.client.HTTPSConnection("localhost", self.front.port, context=trusted)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()


@pytest.fixture
def site(certificates: Certificates, tmp_path: Path) -> Iterator[Site]:
    storage = {"backend": "sqlite3", "db_url": "notary.db"}
    tree = tmp_path / "tree"
    with (
        daemon("server", OUR_SERVER, tmp_path / "server", tls=certificates, storage=storage) as server,
        nginx(tmp_path / "nginx", tree, certificates) as front,
    ):

        def of(daemon: Daemon) -> Callable[[str], Machine]:
            return lambda name: Machine(tmp_path / name, daemon.url, certificates.ca)

        yield Site(server, front, certificates, tree, of(server), of(front))
        front.stop()


def test_the_stock_client_reads_the_tree(site: Site) -> None:
    owner, regular = site.machine("owner"), site.reader("regular")
    for name in ("v1", "v2", "v3", "rel1"):
        (owner.directory / name).write_bytes(name.encode())
    owner("init", GUN, "-p")
    owner("add", GUN, "v1", "v1", "-p")
    site.export()
    assert set(regular.targets(GUN)) == {"v1"}
    assert regular("verify", GUN, "v1", stdin=b"v1") == "v1"
    regular.refused("verify", GUN, "v1", "-q", stdin=b"v2")

    owner("key", "rotate", GUN, "snapshot", "-r")
    delegate = Delegate(owner.directory, "alice")
    owner("delegation", "add", GUN, "targets/releases", delegate.certificate, "--all-paths", "-p")
    alice = site.machine("alice")
    alice("key", "import", delegate.key, "-r", "targets/releases")
    alice("add", GUN, "rel1", str(owner.directory / "rel1"), "-r", "targets/releases", "-p")
    site.export("--prune")
    for who in (regular, site.reader("newcomer")):
        assert {name: found[2] for name, found in who.targets(GUN).items()} == {
            "v1": "targets",
            "rel1": "targets/releases",
        }

    # everything rotates, several times between two exports; who knew the first root follows
    for role, flags, stdin in (
        ("root", [], b"yes\n"),
        ("root", [], b"yes\n"),
        ("timestamp", ["-r"], b""),
        ("targets", [], b""),
    ):
        owner("key", "rotate", GUN, role, *flags, stdin=stdin)
    owner("add", GUN, "v2", "v2", "-p")
    site.export("--prune")
    for who in (regular, site.reader("latecomer")):
        assert set(who.targets(GUN)) == {"v1", "v2", "rel1"}

    # the tree is the server's, byte for byte
    for name in ("root", "targets", "snapshot", "timestamp", "targets/releases", "1.root", "2.root"):
        assert site.get(f"{TUF}{name}.json")[::2] == (200, (site.tree / f"{TUF[1:]}{name}.json").read_bytes())
    # what a tree cannot do is refused
    (regular.directory / "v3").write_bytes(b"v3")
    regular("add", GUN, "v3", "v3")
    regular.refused("publish", GUN)
    assert "does not have trust data" in site.reader("other").refused("list", "example.com/nothing")
    owner("delete", GUN, "--remote")
    owner("init", "example.com/other", "-p")
    site.export("--prune")
    assert "does not have trust data" in site.reader("last").refused("list", GUN)


def test_the_headers(site: Site) -> None:
    owner = site.machine("owner")
    owner("init", GUN, "-p")
    gun = "odd/a:5000/0.root"
    site.machine("odd")("init", gun, "-p")
    site.export()
    assert site.get("/v2/")[::2] == (200, b"{}")
    current = "public, max-age=300, s-maxage=300, must-revalidate"
    forever = "public, max-age=2592000, s-maxage=2592000"
    for base in (TUF, "/v2/odd/a:5000/0.root/_trust/tuf/"):
        status, headers, body = site.get(f"{base}timestamp.json")
        assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "application/json", current)
        assert "ETag" in headers
        digest = base64.b64decode(json.loads(body)["signed"]["meta"]["snapshot"]["hashes"]["sha256"]).hex()
        for name in (f"snapshot.{digest}.json", "1.root.json"):
            status, headers, _ = site.get(base + name)
            assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "application/json", forever)
    for path, method, expected in (
        (f"{TUF}timestamp.key", "GET", 404),
        (f"{TUF}2.root.json", "GET", 404),
        (f"{TUF}targets/releases.json", "GET", 404),
        ("/v2/.notary-static", "GET", 404),
        ("/v2/index.json", "GET", 404),
        (TUF, "GET", 404),
        ("/v2/example.com/", "GET", 404),
        (f"{TUF}root.json", "POST", 405),
        (f"{TUF}root.json", "HEAD", 200),
    ):
        status, headers, _ = site.get(path, method)
        assert status == expected, path
        assert ("Cache-Control" in headers) is (expected == 200)


def test_who_reads_while_the_tree_is_renewed_sees_one_state(site: Site) -> None:
    owner, regular = site.machine("owner"), site.reader("regular")
    (owner.directory / "v").write_bytes(b"content")
    owner("init", GUN, "-p")
    owner("key", "rotate", GUN, "snapshot", "-r")
    site.export()
    ended = threading.Event()
    failures: list[str] = []
    walks: list[int] = []

    def walk() -> None:
        version = 0
        while not ended.is_set():
            status, _, body = site.get(f"{TUF}timestamp.json")
            timestamp = json.loads(body)["signed"]
            if status != 200 or timestamp["version"] < version:
                failures.append(f"timestamp {status} {timestamp['version']} after {version}")
            version = timestamp["version"]
            listed = timestamp["meta"]
            for role in ("snapshot", "root", "targets"):
                digest = base64.b64decode(listed[role]["hashes"]["sha256"]).hex()
                status, _, body = site.get(f"{TUF}{role}.{digest}.json")
                if status != 200 or hashlib.sha256(body).hexdigest() != digest:
                    failures.append(f"{role} {status}")
                elif role == "snapshot":
                    listed = json.loads(body)["signed"]["meta"]
            walks.append(version)

    def clients() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            for who in (regular, site.reader(f"newcomer{number}")):
                done = who.run("list", GUN)
                if done.returncode:
                    failures.append((done.stdout + done.stderr).decode())

    threads = [threading.Thread(target=each) for each in (walk, walk, clients)]
    for thread in threads:
        thread.start()
    try:
        for number in range(6):
            owner("add", GUN, f"v{number}", "v", "-p")
            if number % 2:
                owner("key", "rotate", GUN, "root", stdin=b"yes\n")
            if number == 4:
                owner("key", "rotate", GUN, "timestamp", "-r")
            site.export("--prune")
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(set(walks)) > 3


@pytest.mark.parametrize(
    ("rotated", "newcomers"),
    [pytest.param("root", True, id="root"), pytest.param("timestamp", False, id="timestamp")],
)
def test_an_export_that_dies_between_the_last_two_names(site: Site, rotated: str, newcomers: bool) -> None:
    """Clients that know the collection go on, and so do new ones, unless the timestamp's key changes."""
    owner, regular = site.machine("owner"), site.reader("regular")
    (owner.directory / "v").write_bytes(b"content")
    owner("init", GUN, "-p")
    owner("add", GUN, "v1", "v", "-p")
    site.export()
    assert set(regular.targets(GUN)) == {"v1"}
    place = site.tree / TUF[1:]
    old = {role: (place / f"{role}.json").read_bytes() for role in ("root", "timestamp")}
    flags, stdin = (["-r"], b"") if rotated == "timestamp" else ([], b"yes\n")
    owner("key", "rotate", GUN, rotated, *flags, stdin=stdin)
    owner("add", GUN, "v2", "v", "-p")
    site.export()
    # back to the moment before the last rename
    (place / f"{rotated}.json").unlink()
    (place / f"{rotated}.json").write_bytes(old[rotated])
    assert set(regular.targets(GUN)) == ({"v1", "v2"} if rotated == "root" else {"v1"})
    if newcomers:
        assert set(site.reader("newcomer").targets(GUN)) == {"v1", "v2"}
    site.export()
    for who in (regular, site.reader("latecomer")):
        assert set(who.targets(GUN)) == {"v1", "v2"}
