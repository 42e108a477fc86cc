"""After each upload that our server takes, the stock client can read the collection: a new one, and one that knew it.

Rules of this module: the uploads are those of the tables that the core is tested with. What the client says to a
collection is its own business; that it gives up is what must not happen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.support import upload_files, upload_histories
from tests.support.goclient import Machine
from tests.support.peers import OUR_SERVER, Certificates, Daemon, daemon
from tests.support.sides import Side, make_collection
from tests.support.uploads import Case

CASES = [*upload_files.CASES, *upload_histories.CASES]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Daemon]:
    with daemon("ours", OUR_SERVER, tmp_path_factory.mktemp("newcomers"), tls=certificates) as started:
        yield started


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest_twisted.ensureDeferred
async def test_stock_clients_read_what_was_accepted(
    case: Case, server: Daemon, certificates: Certificates, tmp_path: Path, reactor
) -> None:
    async with Side(server, reactor) as side:
        collection = await make_collection(side, published=False, server_snapshot=case.snapshot == "server")
        regular = Machine(tmp_path / "regular", server.url, certificates.ca)
        for number, upload in enumerate(case.steps(collection.first())):
            if (await collection.upload(upload, collection.first())).status == 200:
                newcomer = Machine(tmp_path / f"newcomer-{number}", server.url, certificates.ca)
                seen = await deferToThread(newcomer, "list", collection.gun)
                assert (await deferToThread(regular, "list", collection.gun)).splitlines() == seen.splitlines()
