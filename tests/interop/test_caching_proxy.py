"""A caching proxy in front of a server serves nothing that has expired; the proxy is a real nginx.

Rules of this module: timestamps live for seconds, while the configured ``max-age`` is minutes. What the proxy says of
an answer (HIT: from its cache) and what the file says of its expiry are compared at each answer; how long something
takes does not count.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from tests.support.peers import OUR_SERVER, Daemon, daemon, free_port, remote_signer
from tests.support.sides import Collection, Side, make_collection
from tests.support.signer import OUR_SIGNER, Pair, signer_daemon

LIFETIME_SECONDS = 15
TICK_SECONDS = 0.05
PATIENCE_SECONDS = 120.0

CONFIGURATION = """
user root;
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    proxy_cache_path {directory}/cache keys_zone=metadata:1m;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{server};
            proxy_cache metadata;
            add_header X-Cache-Status $upstream_cache_status;
        }}
    }}
}}
"""


class Daemons(NamedTuple):
    signer: Daemon
    server: Daemon
    proxy: Daemon


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    pair = Pair.mint(tmp_path / "tls")
    keys = {"backend": "sqlite3", "db_url": "keys.db", "default_alias": "alias_one"}
    environment = {"NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple"}
    signer = signer_daemon("signer", OUR_SIGNER, pair, tmp_path, keys, environment=environment)
    ca, client = pair.authority.write(pair.folder, "root"), pair.client.write(pair.folder, "client")
    extra = remote_signer(signer.port, ca, client) | {
        "lifetimes": {"timestamp": LIFETIME_SECONDS},
        "caching": {"max_age": {"current_metadata": 300}},
    }
    storage = {"backend": "sqlite3", "db_url": "notary.db"}
    server = daemon("server", OUR_SERVER, tmp_path, storage=storage, extra=extra)
    port = free_port()
    (tmp_path / "nginx.conf").write_text(
        CONFIGURATION.format(directory=tmp_path, port=port, server=server.port), encoding="utf-8"
    )
    command = ("/usr/sbin/nginx", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"))
    proxy = Daemon("nginx", command, port, tmp_path)
    with signer, server, proxy:
        yield Daemons(signer, server, proxy)


class Reader:
    """Asks the proxy for the timestamp of a collection, and checks each answer."""

    def __init__(self, side: Side, collection: Collection) -> None:
        self.side = side
        self.collection = collection
        self.seen: Counter[str] = Counter()
        self.versions: set[int] = set()
        self.expired = 0

    async def until(self, condition: Callable[[], bool]) -> None:
        """Ask until something is so."""
        reactor: Any = self.side.reactor
        ends = reactor.seconds() + PATIENCE_SECONDS
        while not condition():
            assert reactor.seconds() < ends, f"it never came to that: {self.seen}, {self.versions}"
            await self.ask()
            await deferLater(reactor, TICK_SECONDS)

    async def ask(self) -> None:
        asked = datetime.now(UTC)
        answer = await self.side.get(self.collection.path("timestamp.json"))
        assert answer.status == 200, answer
        signed = json.loads(answer.body)["signed"]
        status = answer.headers["x-cache-status"]
        self.seen[status] += 1
        self.versions.add(signed["version"])
        expired = datetime.fromisoformat(signed["expires"]) <= asked
        assert not (expired and status == "HIT"), "the proxy has kept it for too long"
        self.expired += expired


@pytest_twisted.ensureDeferred
async def test_nothing_that_a_proxy_has_kept_has_expired(reactor: Any, daemons: Daemons) -> None:
    async with Side(daemons.server, reactor) as direct, Side(daemons.proxy, reactor) as side:
        collection = await make_collection(direct, server_snapshot=True)
        reader = Reader(side, collection)
        await reader.until(lambda: len(reader.versions) > 1)
        assert reader.expired == 0, "it is renewed in time"
        assert reader.seen["HIT"] > 20
        daemons.signer.kill()
        await reader.until(lambda: reader.expired > 3)  # the server has nothing better; the proxy asks it each time
        daemons.signer.ensure()
        newest = max(reader.versions)
        await reader.until(lambda: max(reader.versions) > newest + 1)
        hits, reader.expired = reader.seen["HIT"], 0
        await reader.until(lambda: reader.seen["HIT"] > hits + 20)
        assert reader.expired == 0
