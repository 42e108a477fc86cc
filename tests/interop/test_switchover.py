"""The primary of the database changes while a server serves: publishing goes on without a restart, and readiness knows.

Rules of this module: the daemons are processes, the databases two MariaDBs; the address that the server knows is a way
that leads to one of them, and leaves open connections where they are, as most load balancers do.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.interop.test_outage import Publisher
from tests.support.databases import SERVER_RIGHTS
from tests.support.migrated import migrate_new_database
from tests.support.newcomer import verify_collection
from tests.support.peers import OUR_SERVER, Certificates, daemon
from tests.support.replicas import Address, MariaDBPrimary, MariaDBReplica
from tests.support.sides import Side, make_collection

WAIT_SECONDS = 60.0


async def becomes(reactor: Any, side: Side, said: Callable[[dict[str, object]], bool], what: str) -> None:
    """Wait until ``/readyz`` says so; write how long that took."""
    started = time.monotonic()
    while True:
        answer = await side.get("/readyz")
        if said({"code": answer.status, **json.loads(answer.body)}):
            break
        assert time.monotonic() < started + WAIT_SECONDS, f"{what}: {answer}"
        await deferLater(reactor, 0.05)
    sys.stderr.write(f"{what}: {time.monotonic() - started:.1f} s\n")


@pytest_twisted.ensureDeferred
async def test_a_planned_switch_and_a_hang(reactor: Any, certificates: Certificates, tmp_path: Path) -> None:
    with MariaDBPrimary() as one, MariaDBReplica(one) as two:
        database, _ = await migrate_new_database(one, "server")
        user = one.user(database, SERVER_RIGHTS)
        two.catch_up(one)
        address = Address(one).listen(reactor)
        server = daemon(
            "server",
            OUR_SERVER,
            tmp_path,
            tls=certificates,
            storage={"backend": "mysql", "db_url": address.url(one, database, user)},
        )
        try:
            await deferToThread(server.start)
            async with Side(server, reactor) as side:
                await becomes(reactor, side, lambda facts: facts["status"] == "ok", "ready")
                publisher = Publisher(await make_collection(side, server_snapshot=True))
                assert await publisher.once()

                one.execute("", "SET GLOBAL read_only = 1")
                await becomes(reactor, side, lambda facts: facts.get("writes") is False, "read-only is known")
                answer = await side.get("/readyz")
                assert (answer.status, json.loads(answer.body)["reads"]) == (200, True)
                assert not await publisher.once()
                assert (await side.get(publisher.collection.path("timestamp.json"))).status == 200

                two.catch_up(one)
                two.promote()
                one.follow(two)
                address.lead_to(two)
                for _ in range(10):
                    assert await publisher.once(), server.output()
                await becomes(reactor, side, lambda facts: facts.get("writes") is True, "the switch is known")
                verify_collection(await publisher.collection.current())

                two.pause()
                await becomes(reactor, side, lambda facts: facts["code"] == 503, "a hang is known")
                two.resume()
                await becomes(reactor, side, lambda facts: facts["status"] == "ok", "its end is known")
                assert await publisher.once()
                assert server.alive
        finally:
            await deferToThread(server.kill)
            await address.close()
