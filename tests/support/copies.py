"""Copies of the collections of a Go server: in a server of ours, in a read-only mirror, and as a tree under nginx.

Rules of this module: everything is made by ``notary-admin`` from the Go server's public API. nginx is configured as
docs/mirror.md says, on other paths and another port.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.goclient import Delegate, Machine
from tests.support.peers import GO_SERVER, OUR_SERVER, Certificates, Daemon, clean_environment, daemon, free_port

ROOT = Path(__file__).parents[2]
ADMIN = str(Path(sys.executable).with_name("notary-admin"))
GUN = "example.com/team/app"
SQLITE = {"backend": "sqlite3", "db_url": "notary.db"}
KINDS = ("fetched", "mirror", "tree")
"""The names of the copies."""


def nginx(directory: Path, tree: Path, tls: Certificates) -> Daemon:
    """An nginx that serves a static tree; not started yet."""
    (block,) = re.findall(r"(?ms)^```nginx\n(.*?)^```$", (ROOT / "docs/mirror.md").read_text())
    port = free_port()
    for documented, here in (
        ("listen 4443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/notary/server.crt", str(tls.certificate)),
        ("/etc/notary/server.key", str(tls.key)),
        ("/srv/notary", str(tree)),
    ):
        assert documented in block
        block = block.replace(documented, here)
    directory.mkdir()
    places = "".join(
        f"{kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    config = directory / "nginx.conf"
    config.write_text(
        f"{user}daemon off;\npid {directory}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{places}{block}}}\n"
    )
    command = ("setpriv", "--pdeathsig", "TERM", "/usr/sbin/nginx", "-e", "stderr", "-c", str(config))
    return Daemon("nginx", command, port, directory, tls=tls)


def read_only(certificates: Certificates, folder: Path) -> Daemon:
    """A read-only server on SQLite, not started, and beside it the configuration ``mirror.json`` of a mirror."""
    server = daemon("server", OUR_SERVER, folder, tls=certificates, storage=SQLITE)
    with server:  # makes the tables
        pass
    path = folder / "server.json"
    config = json.loads(path.read_text())
    (folder / "mirror.json").write_text(json.dumps(config))
    config["server"] |= {"read_only": True, "mirror_status_file": "mirror.status"}
    path.write_text(json.dumps(config))
    return server


def admin(config: Path, *arguments: object) -> None:
    """Run ``notary-admin``; AssertionError if it fails."""
    command = [ADMIN, *map(str, arguments), "--config", str(config)]
    environment = clean_environment({"DOCKER_CONFIG": "/nonexistent"})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"


@dataclass
class Copies:
    """The servers of the copies, by kind, and the owner at the Go server, which are all up to date."""

    owner: Machine
    source: Daemon
    servers: dict[str, Daemon]
    folder: Path
    ca: Path

    def renew(self) -> None:
        """Bring every copy up to date."""
        admin(self.folder / "fetched" / "server.json", "fetch", self.source.url, "--ca", self.ca)
        admin(self.folder / "mirror" / "mirror.json", "mirror", self.source.url, "--ca", self.ca)
        config = self.folder / "fetched" / "server.json"
        admin(config, "repos", "export", "--static", self.folder / "tree", "--prune")


@contextmanager
def copies(certificates: Certificates, folder: Path) -> Iterator[Copies]:
    """All of it: ``v1`` is signed by targets, ``rel1`` by targets/releases and targets/alice, which Docker reads."""
    with ExitStack() as stack:
        source = stack.enter_context(daemon("go", GO_SERVER, folder / "go", tls=certificates))
        fetched = daemon("server", OUR_SERVER, folder / "fetched", tls=certificates, storage=SQLITE)
        servers = {
            "fetched": fetched,
            "mirror": read_only(certificates, folder / "mirror"),
            "tree": nginx(folder / "nginx", folder / "tree", certificates),
        }
        for server in servers.values():
            stack.enter_context(server)
        owner = Machine(folder / "owner", source.url, certificates.ca)
        made = Copies(owner, source, servers, folder, certificates.ca)
        for name in ("v1", "rel1", "v2"):
            (owner.directory / name).write_bytes(name.encode())
        owner("init", GUN, "-p")
        owner("add", GUN, "v1", "v1", "-p")
        owner("key", "rotate", GUN, "snapshot", "-r")
        alice = Delegate(owner.directory, "alice")
        roles = ("targets/releases", "targets/alice")
        for role in roles:
            owner("delegation", "add", GUN, role, alice.certificate, "--all-paths", "-p")
            owner("key", "import", alice.key, "-r", role)
        owner("add", GUN, "rel1", "rel1", *(word for role in roles for word in ("-r", role)), "-p")
        made.renew()
        yield made
        servers["tree"].stop()


def publish_more(made: Copies) -> None:
    """Another name, under a new key of targets."""
    made.owner("key", "rotate", GUN, "targets")
    made.owner("add", GUN, "v2", "v2", "-p")
    made.renew()


def rotate_root(made: Copies) -> None:
    """A new root key, twice, and another name."""
    for _ in range(2):
        made.owner("key", "rotate", GUN, "root", stdin=b"yes\n")
    made.owner("add", GUN, "v3", "v2", "-p")
    made.renew()
