"""A server and its several signers, all real processes; the signers share one database.

Rules of this module: the server's own data is in SQLite, so that nothing but signers can fail. A signer that a test has
ended is started again by the test.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families

from tests.support.peers import OUR_SERVER, Daemon, daemon, remote_signer
from tests.support.signer import OUR_SIGNER, Pair, signer_daemon
from tests.support.waiting import until

PASSPHRASE = "correct-horse-battery-staple"


class SeveralSigners:
    """``count`` signers of ``command``, and a server that has their addresses.

    ``keys`` is the signers' database in MariaDB: its name and its ``db_url``. ``passphrases`` are those of the signers,
    if they are not the same. ``more`` is as for ``signer_daemon``. ``section`` is the server's section for its signers.
    """

    def __init__(
        self,
        keys: tuple[str, str],
        folder: Path,
        count: int = 2,
        command: Sequence[str] = OUR_SIGNER,
        passphrases: Sequence[str] = (),
        *,
        algorithm: str = "ecdsa",
        **more: Any,
    ) -> None:
        self.pair = Pair.mint(folder / "signer-tls")
        self.database, url = keys
        storage = {"backend": "mysql", "db_url": url, "default_alias": "alias_one"}
        self.files = [folder / f"passphrase-{number}" for number in range(count)]
        self.signers = []
        for number, file in enumerate(self.files):
            file.write_text(passphrases[number] if passphrases else PASSPHRASE)
            # The Go signer reads no files.
            environment = (
                {"NOTARY_SIGNER_ALIAS_ONE_FILE": str(file)}
                if command == OUR_SIGNER
                else {"NOTARY_SIGNER_ALIAS_ONE": file.read_text()}
            )
            self.signers.append(
                signer_daemon(f"signer-{number}", command, self.pair, folder, storage, environment=environment, **more)
            )
        ca, client = (
            self.pair.authority.write(self.pair.folder, "root"),
            self.pair.client.write(self.pair.folder, "client"),
        )
        self.section: Any = remote_signer(self.signers[0].port, ca, client, algorithm)
        self.section["trust_service"]["addresses"] = [f"127.0.0.1:{signer.port}" for signer in self.signers]
        self.server = daemon(
            "server", OUR_SERVER, folder, storage={"backend": "sqlite3", "db_url": "notary.db"}, extra=self.section
        )

    @property
    def daemons(self) -> list[Daemon]:
        """All processes."""
        return [*self.signers, self.server]

    def __enter__(self) -> Self:
        for each in self.daemons:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in reversed(self.daemons):
            each.kill()

    def get(self, path: str) -> tuple[int, str]:
        """The answer of the server."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body

    def readiness(self) -> Mapping[str, Any]:
        """What ``/readyz`` of the server says."""
        found: Mapping[str, Any] = json.loads(self.get("/readyz")[1])
        return found

    def states(self) -> list[str]:
        """What the server says of its signers, in their order."""
        found = self.readiness().get("signers", {})
        return [found.get(f"127.0.0.1:{signer.port}", "") for signer in self.signers]

    def await_states(self, *serve: bool) -> None:
        """Wait until the server says of each signer whether it serves."""
        until(lambda: [state == "serving" for state in self.states()] == list(serve), f"signers that serve: {serve}")

    def metric(self, name: str) -> Mapping[tuple[str, ...], float]:
        """The values of one metric of the server by the values of its labels, whose names are sorted."""
        return {
            tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
            if sample.name == name
        }
