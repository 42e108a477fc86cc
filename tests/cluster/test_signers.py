"""One of two signers is killed every few seconds, for minutes, under publishers: no publish fails.

``NOTARY_SIGNER_SECONDS`` says for how long, ``NOTARY_KILL_SECONDS`` how often; the rest is in test_several_signers.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.interop.conftest import reactor
from tests.support.databases import MariaDB
from tests.support.migrated import migrated_database
from tests.support.sides import Side, make_collection
from tests.support.signers import SeveralSigners
from tests.support.traffic import Traffic

__all__ = ["reactor"]

SECONDS = float(os.environ.get("NOTARY_SIGNER_SECONDS", "600"))
KILL_SECONDS = float(os.environ.get("NOTARY_KILL_SECONDS", "5"))
PUBLISHERS = 8


@pytest.fixture
def keys(mariadb: MariaDB) -> tuple[str, str]:
    return migrated_database(mariadb, "signer")


@pytest.mark.parametrize("workers", [1, 2])
@pytest_twisted.ensureDeferred
async def test_no_kill_of_a_signer_fails_a_publish(
    reactor: Any, keys: tuple[str, str], tmp_path: Path, workers: int
) -> None:
    kills = 0
    with SeveralSigners(keys, tmp_path, workers=workers) as two:
        two.await_states(True, True)
        async with Side(two.server, reactor) as side:
            collections = [await make_collection(side, server_snapshot=one % 2 == 0) for one in range(PUBLISHERS)]
            ends = reactor.seconds() + SECONDS / 2
            async with Traffic(side, collections) as traffic:
                while reactor.seconds() < ends:
                    victim = two.signers[kills % 2]
                    next_kill = reactor.seconds() + KILL_SECONDS
                    victim.kill()
                    kills += 1
                    await deferToThread(victim.start)
                    await deferToThread(two.await_states, True, True)
                    await deferLater(reactor, max(0.0, next_kill - reactor.seconds()))
            for collection in collections:
                await collection.verify()
        sys.stderr.write(f"\n{kills} kills, publishes by status: {dict(traffic.statuses)}, {traffic.reads} reads\n")
        sys.stderr.write(f"repeats: {two.metric('notary_server_signer_repeats_total')}\n")
        assert traffic.statuses.keys() == {200}, two.server.output()
