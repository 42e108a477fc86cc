"""``keys reencrypt`` as a process: beside a signer that serves, and interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from notary.admin.command import Status
from tests.admin.conftest import admin
from tests.storage.conftest import BACKENDS
from tests.support.keyload import keep_creating, keep_signing, sign
from tests.support.keyplace import NEW, OLD, environment, make_key
from tests.support.peers import clean_environment
from tests.support.signer import OUR_SIGNER, Client, Pair, signer_daemon

ADMIN = str(Path(sys.executable).with_name("notary-admin"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return Pair.mint(tmp_path_factory.mktemp("tls"))


def reencrypt(config: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [ADMIN, "keys", "reencrypt", "--config", config, "--to", NEW, "--json"],
        env=clean_environment(environment(OLD, NEW)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def serving(pair, place, directory, *aliases):
    storage = {"backend": place.backend, "db_url": place.db_url, "default_alias": NEW}
    return signer_daemon("signer", OUR_SIGNER, pair, directory, storage, environment=environment(*aliases))


def under_load(client, config, used, pending, doomed):
    """Reencrypt while others sign, sign for the first time, delete and create; what the command said, who was made."""
    ended = Event()
    with ThreadPoolExecutor(5) as threads, reencrypt(config) as process:
        work = [threads.submit(keep_signing, client, used, ended) for _ in range(2)]
        making = threads.submit(keep_creating, client, ended)
        firsts = threads.submit(lambda: [sign(client, key) for key in pending])
        deletions = threads.submit(lambda: [client.delete(key.key_id) for key in doomed])
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
            ended.set()
        for each in (*work, deletions):
            each.result()
        assert all(firsts.result())
        return process.returncode, out, err, making.result()


@pytest_twisted.ensureDeferred
async def test_while_the_signer_serves(key_place, pair, tmp_path):
    used = await key_place.fill(*(make_key(f"example.com/used/{n}") for n in range(200)), used=True)
    pending = await key_place.fill(*(make_key(f"example.com/pending/{n}") for n in range(100)))
    doomed = await key_place.fill(*(make_key(f"example.com/doomed/{n}") for n in range(100)))
    config = key_place.config(tmp_path)

    def work():
        with serving(pair, key_place, tmp_path / "both", OLD, NEW) as daemon, Client(pair, daemon.port) as client:
            return under_load(client, config, used, pending, doomed)

    status, out, err, made = await deferToThread(work)
    assert status == Status.OK, err
    assert json.loads(out)["failed"] == 0
    stored = await key_place.keys()
    assert {key.passphrase_alias for key in stored.values()} == {NEW}
    assert set(stored) == {*made, *(key.key_id for key in (*used, *pending))}
    assert all(stored[key.key_id].last_used for key in pending)
    assert made

    def with_the_new_passphrase_only():
        with serving(pair, key_place, tmp_path / "new", NEW) as daemon, Client(pair, daemon.port) as client:
            return [sign(client, key) for key in (*used, *pending)]

    assert all(await deferToThread(with_the_new_passphrase_only))


@pytest.mark.parametrize("key_place", [each for each in BACKENDS if each.id == "sqlite3"], indirect=True)
@pytest_twisted.ensureDeferred
async def test_interrupted_and_started_again(key_place, tmp_path):
    keys = await key_place.fill(*(make_key(f"example.com/{n}") for n in range(800)))
    config = key_place.config(tmp_path)

    async def moved() -> int:
        ((count,),) = await key_place.all("SELECT COUNT(*) FROM private_keys WHERE passphrase_alias = ?", NEW)
        return count

    with reencrypt(config) as process:
        while not await moved():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = await deferToThread(process.communicate)
    assert process.returncode == Status.INTERRUPTED, err
    assert "Traceback" not in err
    done = await moved()
    assert done < len(keys)
    outcome = await admin("keys", "reencrypt", "--config", config, "--to", NEW, "--json", environ=environment(OLD, NEW))
    assert outcome.records == [{"alias": NEW, "reencrypted": len(keys) - done, "failed": 0}]
    assert await moved() == len(keys) == len(await key_place.keys())
