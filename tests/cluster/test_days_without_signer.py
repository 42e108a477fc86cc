"""The signer is away for three days, and no reader behind a caching nginx gets a timestamp that has expired.

Rules of this module: a day lasts ``NOTARY_DAY_SECONDS``, and so do lifetimes; a minute is a minute. There are
``NOTARY_COLLECTIONS`` collections: one is real, and the others are copies of its rows, which one key signs. The first
timestamps last until a little longer than the server's slack from now.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.interop.test_caching_proxy import CONFIGURATION
from tests.support.author import Author, server_key_from
from tests.support.peers import OUR_SERVER, Daemon, daemon, free_port, remote_signer
from tests.support.sides import MULTIPART, form_of
from tests.support.signer import OUR_SIGNER, Pair, signer_daemon

DAY_SECONDS = float(os.environ.get("NOTARY_DAY_SECONDS", "60"))
COLLECTIONS = int(os.environ.get("NOTARY_COLLECTIONS", "1000"))
LIFE_SECONDS = 14 * DAY_SECONDS
SLACK_SECONDS = LIFE_SECONDS / 3
LEAD_SECONDS = 60.0
"""How long the first timestamps last beyond the slack."""
READS_A_SECOND, READERS = 150, 4
GUN = "example.com/app"


def ask(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, Mapping[str, str], bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body, {"Content-Type": MULTIPART})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


class Scene:
    """A signer, and a server whose database has many collections; the time of their expiry is ``end``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pair = Pair.mint(folder / "tls")
        keys = {"backend": "sqlite3", "db_url": "keys.db", "default_alias": "alias_one"}
        environment = {"NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple"}
        self.signer = signer_daemon("signer", OUR_SIGNER, pair, folder, keys, environment=environment)
        ca, client = pair.authority.write(pair.folder, "root"), pair.client.write(pair.folder, "client")
        self.section: Any = remote_signer(self.signer.port, ca, client)
        self.end = 0.0

    def server(self, life_seconds: float) -> Daemon:
        storage = {"backend": "sqlite3", "db_url": "notary.db"}
        extra = self.section | {"lifetimes": {"timestamp": round(life_seconds)}}
        return daemon("server", OUR_SERVER, self.folder, storage=storage, extra=extra)

    def publish(self) -> None:
        """Publish one collection, and copy it."""
        with self.server(SLACK_SECONDS + LEAD_SECONDS) as server:
            path = f"/v2/{GUN}/_trust/tuf/"
            author = Author(GUN, timestamp=server_key_from(ask(server.port, "GET", path + "timestamp.key")[2]))
            status, _, body = ask(server.port, "POST", path, form_of(author.first()))
            assert status == 200, body
            self.end = time.time() + SLACK_SECONDS + LEAD_SECONDS
            server.stop()
        with closing(sqlite3.connect(self.folder / "notary.db")) as database:
            names = [row[1] for row in database.execute("PRAGMA table_info(tuf_files)") if row[1] not in {"id", "gun"}]
            columns = ", ".join(names)
            copy = f"INSERT INTO tuf_files (gun, {columns}) SELECT ?, {columns} FROM tuf_files WHERE gun = ?"
            database.executemany(copy, [(f"{GUN}{number}", GUN) for number in range(COLLECTIONS)])
            database.commit()

    def renewed(self) -> int:
        """How many collections have had their timestamp renewed."""
        with closing(sqlite3.connect(self.folder / "notary.db", timeout=60)) as database:
            counted = "SELECT COUNT(DISTINCT gun) FROM tuf_files WHERE role = 'timestamp' AND version > 1"
            ((count,),) = database.execute(counted)
            return int(count)

    def proxy(self, server: Daemon) -> Daemon:
        port = free_port()
        text = CONFIGURATION.format(directory=self.folder, port=port, server=server.port)
        (self.folder / "nginx.conf").write_text(text.replace("metadata:1m", "metadata:20m"))
        command = ("/usr/sbin/nginx", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"))
        return Daemon("nginx", command, port, self.folder)


class Readers:
    """Ask a proxy for the timestamps of all collections in turn: how many answers there were, and had expired."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: Counter[str] = Counter()
        self.expired = 0
        self.failures: list[str] = []
        self._numbers = itertools.count()
        self._begun = time.monotonic()
        self._ended = False

    @contextmanager
    def asking(self) -> Any:
        threads = [threading.Thread(target=self._ask) for _ in range(READERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended = True
            for thread in threads:
                thread.join()

    def _ask(self) -> None:
        while not self._ended:
            number = next(self._numbers)
            time.sleep(max(0.0, self._begun + number / READS_A_SECOND - time.monotonic()))
            asked = datetime.now(UTC)
            path = f"/v2/{GUN}{number % COLLECTIONS}/_trust/tuf/timestamp.json"
            try:
                status, headers, body = ask(self.port, "GET", path)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                continue
            if status != 200:
                self.failures.append(f"{status} {body[:200]!r}")
                continue
            self.answers[headers["X-Cache-Status"]] += 1
            self.expired += datetime.fromisoformat(json.loads(body)["signed"]["expires"]) <= asked


def sleep_until(when: float) -> None:
    time.sleep(max(0.0, when - time.time()))


def test_nothing_that_is_read_has_expired(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with scene.signer:
        scene.publish()
        with scene.server(LIFE_SECONDS) as server, scene.proxy(server) as proxy:
            readers = Readers(proxy.port)
            with readers.asking():
                sleep_until(scene.end - SLACK_SECONDS - 5)
                assert scene.renewed() == 0
                scene.signer.kill()
                time.sleep(3 * DAY_SECONDS)
                assert scene.renewed() == 0
                scene.signer.start()
                sleep_until(scene.end + 30)
            sys.stderr.write(f"\n{dict(readers.answers)}, {readers.expired} expired, {scene.renewed()} renewed\n")
            assert scene.renewed() == COLLECTIONS + 1
            assert readers.answers["HIT"] > 0
            assert (readers.failures, readers.expired) == ([], 0)
