"""One server and several signers, of which some are killed, hang, have several processes, or the wrong passphrase.

Rules of this module: every process is real, and the signers share a MariaDB. Nothing may fail: each publish is answered
with 200 while one signer can sign. How long something lasts is counted in answers, not in seconds.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from notary.tuf import jwe
from tests.support.databases import MariaDB
from tests.support.migrated import migrated_database
from tests.support.peers import GO_SERVER, Daemon, daemon
from tests.support.sides import Side, make_collection
from tests.support.signer import GO_SIGNER, OUR_SIGNER
from tests.support.signers import PASSPHRASE, SeveralSigners
from tests.support.traffic import Traffic
from tests.support.waiting import until

PUBLISHERS = 8
ROUNDS = 3
COMMANDS = {"ours": OUR_SIGNER, "go": GO_SIGNER}


@pytest.fixture
def keys(mariadb: MariaDB) -> tuple[str, str]:
    """A database of signers: its name and its ``db_url``."""
    return migrated_database(mariadb, "signer")


@pytest.fixture(params=COMMANDS)
def pair(request: pytest.FixtureRequest, keys: tuple[str, str], tmp_path: Path) -> Iterator[SeveralSigners]:
    """Two signers, ours or Go ones."""
    with SeveralSigners(keys, tmp_path, command=COMMANDS[request.param]) as made:
        made.await_states(True, True)
        yield made


async def collections_of(side: Side, count: int = PUBLISHERS) -> list[Any]:
    return [await make_collection(side, server_snapshot=one % 2 == 0) for one in range(count)]


@pytest_twisted.ensureDeferred
async def test_no_publish_fails_while_one_of_two_signers_is_killed(reactor: Any, pair: SeveralSigners) -> None:
    async with Side(pair.server, reactor) as side:
        collections = await collections_of(side)
        async with Traffic(side, collections) as traffic:
            await traffic.everybody_publishes()
            for number in range(2 * ROUNDS):
                victim = pair.signers[number % 2]
                victim.kill()
                await traffic.everybody_publishes()
                await deferToThread(victim.start)
                await deferToThread(pair.await_states, True, True)
                await traffic.everybody_publishes()
        assert traffic.statuses.keys() == {200}, (traffic.statuses, pair.server.output())
        for collection in collections:
            await collection.verify()
    assert pair.readiness()["writes"] is True
    calls = pair.metric("notary_server_signer_calls_total")
    assert all(calls["ok", f"127.0.0.1:{each.port}"] for each in pair.signers), calls


@pytest_twisted.ensureDeferred
async def test_no_publish_fails_while_one_of_two_signers_hangs(reactor: Any, pair: SeveralSigners) -> None:
    async with Side(pair.server, reactor) as side:
        collections = await collections_of(side)
        async with Traffic(side, collections) as traffic:
            for victim in pair.signers:
                await traffic.everybody_publishes()
                victim.signal(signal.SIGSTOP)
                try:
                    for _ in range(ROUNDS):
                        await traffic.everybody_publishes()
                finally:
                    victim.signal(signal.SIGCONT)
                await deferToThread(pair.await_states, True, True)
        assert traffic.statuses.keys() == {200}, (traffic.statuses, pair.server.output())
        for collection in collections:
            await collection.verify()


@pytest_twisted.ensureDeferred
async def test_keys_are_made_while_signers_are_killed(reactor: Any, pair: SeveralSigners) -> None:
    async with Side(pair.server, reactor) as side:
        for number in range(2 * ROUNDS):
            victim = pair.signers[number % 2]
            victim.kill()
            for collection in await collections_of(side, 3):
                await collection.verify()
            await deferToThread(victim.start)
            await deferToThread(pair.await_states, True, True)
    assert pair.readiness()["writes"] is True


def test_all_signers_are_away(pair: SeveralSigners) -> None:
    for each in pair.signers:
        each.kill()
    until(lambda: pair.readiness()["writes"] is False, "no writes without signers")
    facts = pair.readiness()
    assert (facts["status"], facts["reads"]) == ("degraded", True)
    failure = facts["failures"]["Trust operational"]
    assert all(f"the signer at 127.0.0.1:{each.port}: UNAVAILABLE" in failure for each in pair.signers)
    assert set(pair.metric("notary_server_signer_up").values()) == {0}
    pair.signers[1].start()
    until(lambda: pair.readiness()["writes"] is True, "one signer is enough")
    pair.await_states(False, True)


@pytest_twisted.ensureDeferred
async def test_the_go_server_reads_the_same_section(reactor: Any, keys: tuple[str, str], tmp_path: Path) -> None:
    """It knows nothing of the list, and goes to the host and port."""
    with SeveralSigners(keys, tmp_path) as two:
        go = daemon("go", GO_SERVER, tmp_path, extra=two.section)
        two.signers[1].kill()
        with go:
            async with Side(go, reactor) as side:
                (collection,) = await collections_of(side, 1)
                await collection.verify()


# -- several processes of one signer ----------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def connections(signer: Daemon) -> list[int]:
    """How many clients each process of a signer has."""
    open_here = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == signer.port and fields[3] == "01":
            open_here.add(f"socket:[{fields[9]}]")
    found = []
    for pid in children(signer.pid):
        try:
            links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            links = []
        found.append(len(open_here & set(links)))
    return found


@pytest_twisted.ensureDeferred
async def test_a_server_reaches_each_process_of_a_signer(reactor: Any, keys: tuple[str, str], tmp_path: Path) -> None:
    workers = 3
    with SeveralSigners(keys, tmp_path, 1, workers=workers) as one:
        (signer,) = one.signers
        await deferToThread(until, lambda: connections(signer) == [1] * workers, "a connection to each process")
        async with Side(one.server, reactor) as side:
            collections = await collections_of(side)
            async with Traffic(side, collections) as traffic:
                for _ in range(1):
                    await traffic.everybody_publishes()
                    await deferToThread(kill, signer, children(signer.pid)[0])
                    await deferToThread(
                        until, lambda: connections(signer) == [1] * workers, "a connection to the new process"
                    )
            assert traffic.statuses.keys() == {200}, (traffic.statuses, one.server.output())


def kill(signer: Daemon, pid: int) -> None:
    """Kill a process of a signer, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in children(signer.pid), "the process is gone")


# -- the passphrase ---------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_of_two_passphrases_on_an_empty_store_one_is_refused(
    reactor: Any, keys: tuple[str, str], tmp_path: Path
) -> None:
    """Neither is known to be wrong at the start. No key is made that the signer with the other keys cannot open."""
    with SeveralSigners(keys, tmp_path, passphrases=[PASSPHRASE, "another-passphrase-altogether"]) as two:
        two.await_states(True, True)
        async with Side(two.server, reactor) as side:
            collections = await collections_of(side)
            for _ in range(2):
                for collection in collections:
                    answer = await collection.publish()
                    assert answer.status == 200, answer
            await deferToThread(until, lambda: two.states().count("serving") == 1, "one signer is refused")
            refused = next(number for number in range(2) if two.states()[number] != "serving")
            assert "says that it cannot work" in two.states()[refused]
            said = two.signers[refused].output()
            assert re.search(r"it does not open.*no keys are made.*passphrase of alias alias_one", said), said
            assert PASSPHRASE not in said
            assert two.readiness()["writes"] is True
            two.signers[refused].kill()
            for collection in collections:
                answer = await collection.publish()
                assert answer.status == 200, answer
                await collection.verify()
            right = two.files[1 - refused].read_text()
            two.files[refused].write_text(right)
            two.signers[refused].start()
            await deferToThread(two.await_states, True, True)


def reencrypt(mariadb: MariaDB, signers: SeveralSigners, new: str) -> None:
    """Wrap all keys with another passphrase, under the same alias."""
    for key_id, wrapped in mariadb.execute(signers.database, "SELECT key_id, private FROM private_keys"):
        again = jwe.wrap(jwe.unwrap(bytes(wrapped), PASSPHRASE), new)
        mariadb.execute(signers.database, "UPDATE private_keys SET private = %s WHERE key_id = %s", again, key_id)


@pytest_twisted.ensureDeferred
async def test_a_passphrase_that_is_mended_by_sighup(
    reactor: Any, mariadb: MariaDB, keys: tuple[str, str], tmp_path: Path
) -> None:
    """Keys are re-encrypted behind the back of a signer: it stops serving; with the new passphrase it serves again."""
    with SeveralSigners(keys, tmp_path, 1) as one:
        (signer,), (file,) = one.signers, one.files
        async with Side(one.server, reactor) as side:
            collections = await collections_of(side, 2)
        reencrypt(mariadb, one, "a-new-passphrase-for-all")
        path = "/v2/example.com/no-keys/_trust/tuf/timestamp.key"
        signer.signal(signal.SIGHUP)  # asks for a trial, with the old passphrase
        said = "expected the passphrase that the stored keys are wrapped with"
        await deferToThread(until, lambda: said in signer.output(), "the passphrase is refused")
        await deferToThread(until, lambda: one.get(path)[0] != 200, "no keys are made")
        await deferToThread(one.await_states, False)
        assert one.readiness()["writes"] is False
        file.write_text("a-new-passphrase-for-all")
        signer.signal(signal.SIGHUP)
        await deferToThread(one.await_states, True)
        async with Side(one.server, reactor) as side:
            for collection in collections:
                collection.side = side
                answer = await collection.publish()
                assert answer.status == 200, answer
