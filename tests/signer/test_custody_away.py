"""A signer whose key-encrypting key is in a token or a server: its life, and what happens while that is away."""

from __future__ import annotations

import json
import os
import threading
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace

import grpc
import pytest
import pytest_twisted
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent

from notary.config import KekUri, load_signer
from notary.daemon import serving as starting
from notary.envelope import INSIDE, KEYWRAP, envelopes, pauses
from notary.envelope import pkcs11 as token_keys
from notary.envelope.envelopes import Envelopes
from notary.errors import SigningFailed
from notary.signer import tap
from notary.signer.custody import custodies
from notary.signer.tap import Signer
from notary.storage.open import open_key_store
from notary.tuf import private
from notary.work.backoff import Backoff
from tests.support.peers import free_port
from tests.support.signer import OUR_SIGNER, Client, Pair, signer_config, signer_daemon
from tests.support.softhsm import PIN, Tokens
from tests.support.vault import Vault

GUN = "example.com/app"
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return Pair.mint(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tokens(tmp_path, monkeypatch) -> Tokens:
    return Tokens.make(tmp_path / "hsm").seen_by(monkeypatch)


def configured(pair, tmp_path, uri):
    storage = {"backend": "sqlite3", "db_url": str(tmp_path / "keys.db"), "keys": {"wrap": uri}}
    return load_signer(json.dumps(signer_config(pair, 0, storage)), {}, pair.folder)


@asynccontextmanager
async def serving(config):
    """A signer, the Deferred of its start, and a function that calls it: a function of a client, in a thread."""
    port = free_port()
    address = config.server.grpc_addr._replace(port=port)
    service = Signer(replace(config, server=replace(config.server, grpc_addr=address)), reactor)
    started = service.startService()

    connecting = threading.Lock()  # a client writes its files anew

    def call(pair, work):
        def connected():
            with connecting:
                made = Client(pair, port)
            with made as client:
                return work(client)

        return deferToThread(connected)

    try:
        yield service, started, call
    finally:
        await service.stopService()


def made_and_signed(client):
    key_id = client.create(GUN, "snapshot", "ecdsa").keyInfo.keyID.ID
    assert client.sign(key_id, b"a message").content
    return key_id


async def row_under_another_data_key(tmp_path, tokens):
    """Store a key as another signer would; its id."""
    kek = token_keys.open_token(KekUri("pkcs11", tokens.uri().removeprefix("pkcs11:")), "storage.keys.wrap", reactor)
    row = await deferToThread(Envelopes([kek]).seal, private.generate("ed25519"), "example.com/other", "timestamp")
    await deferToThread(kek.close)
    store = await open_key_store("sqlite3", str(tmp_path / "keys.db"), reactor)
    await store.add(row)
    await store.close()
    return row.key_id


async def key_of_a_signer(config, pair) -> str:
    """The id of a key that a signer has made and used; the signer has stopped since."""
    async with serving(config) as (_, started, call):
        await started
        return await call(pair, made_and_signed)


async def stored(tmp_path, key_id):
    """The row of a key."""
    store = await open_key_store("sqlite3", str(tmp_path / "keys.db"), reactor)
    row = await store.get(key_id)
    await store.close()
    return row


async def refused(call, pair, work):
    with pytest.raises(grpc.RpcError) as caught:
        await call(pair, work)
    assert caught.value.code() is UNAVAILABLE
    return caught.value.details()


@pytest_twisted.ensureDeferred
async def test_its_life(pair, tmp_path, tokens):
    config = configured(pair, tmp_path, tokens.uri())
    key_id = await key_of_a_signer(config, pair)
    async with serving(config) as (_, started, call):
        await started
        assert (await call(pair, lambda client: client.sign(key_id, b"another"))).content


@pytest_twisted.ensureDeferred
async def test_a_token_that_hangs_stops_nobody_else(pair, tmp_path, tokens, monkeypatch):
    monkeypatch.setattr(token_keys, "TIMEOUT_SECONDS", 600.0)
    config = configured(pair, tmp_path, tokens.uri(module=tokens.faulty_module()))
    async with serving(config) as (service, started, call):
        await started
        key_id = await call(pair, made_and_signed)
        other = await row_under_another_data_key(tmp_path, tokens)
        tokens.go_wrong("hang")
        hanging = Deferred.fromCoroutine(call_it(call, pair, lambda client: client.sign(other, b"a message")))

        def many(client):
            return [client.sign(key_id, b"a message").content for _ in range(20)]

        assert all(await call(pair, many))
        assert not hanging.called
        tokens.go_wrong("")
        (helper,) = [kek._helper for kek in service._custody._custodies[KEYWRAP]._envelopes._keks.values()]
        helper.kill()  # as its time would be up
        assert (await hanging).content


async def call_it(call, pair, work):
    return await call(pair, work)


async def until(condition) -> None:
    while not await condition():
        await deferLater(reactor, 0.05)


@pytest_twisted.ensureDeferred
async def test_a_token_that_is_away_later(pair, tmp_path, tokens, monkeypatch):
    monkeypatch.setattr(tap, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(pauses, "_PAUSES", Backoff(first=0.05, most=0.1))
    module = tokens.faulty_module()
    with capturedLogs() as events:
        async with serving(configured(pair, tmp_path, tokens.uri(module=module))) as (service, started, call):
            await started
            key_id = await call(pair, made_and_signed)
            other = await row_under_another_data_key(tmp_path, tokens)
            tokens.go_wrong("removed")
            await until(lambda: has_status(service, "degraded"))
            answer = json.loads((await service._ready()).body)
            assert "the token failed" in answer["failures"]["custody"]
            assert b'notary_signer_health_check{check="custody"} 0.0' in service._metrics.render()[1]
            assert (await call(pair, lambda client: client.sign(key_id, b"a message"))).content
            assert "the token failed" in await refused(call, pair, lambda client: client.sign(other, b"a message"))
            tokens.go_wrong("")
            await until(lambda: has_status(service, "ok"))
            assert b'notary_signer_health_check{check="custody"} 1.0' in service._metrics.render()[1]
            assert (await call(pair, lambda client: client.sign(other, b"a message"))).content
    lines = [formatEvent(event) or "" for event in events]
    assert sum("keys that are open in memory go on signing" in line for line in lines) == 1
    assert "the custody of keys works again" in lines
    assert not any(PIN in line for line in lines)


async def has_status(service, status) -> bool:
    answer = await service._ready()
    return answer.status == 200 and json.loads(answer.body)["status"] == status


async def has_waited(waits) -> bool:
    """Whether the signer has said often enough that it waits."""
    return len(waits) > 2


@pytest_twisted.ensureDeferred
async def test_a_token_that_is_away_at_the_start(pair, tmp_path, tokens, monkeypatch):
    monkeypatch.setattr(starting, "_PATIENCE", Backoff(first=0.05, most=0.1))
    monkeypatch.setattr(pauses, "_PAUSES", Backoff(first=0.01, most=0.02))
    config = configured(pair, tmp_path, tokens.uri())
    key_id = await key_of_a_signer(config, pair)
    tokens.remove()
    waits = []
    with capturedLogs() as events:
        async with serving(config) as (service, started, call):
            service.on_waiting = lambda status, seconds: waits.append((status, seconds))
            await until(lambda: has_waited(waits))
            assert not started.called
            assert not service.ready
            assert b'notary_signer_health_check{check="custody"} 0.0' in service._metrics.render()[1]
            assert "there is no such token" in await refused(call, pair, lambda client: client.sign(key_id, b"m"))
            tokens.put_back()
            await started
            assert (await call(pair, lambda client: client.sign(key_id, b"a message"))).content
    assert all("Waiting for the custody of keys: the key-encrypting key in token" in status for status, _ in waits)
    assert any("the custody of keys works, after" in (formatEvent(event) or "") for event in events)


@pytest_twisted.ensureDeferred
async def test_keys_inside_a_token(pair, tmp_path, tokens, monkeypatch):
    """They outlive the signer; while the token is away none signs, and the signer says so."""
    monkeypatch.setattr(tap, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(pauses, "_PAUSES", Backoff(first=0.05, most=0.1))
    config = configured(pair, tmp_path, tokens.inside(module=tokens.faulty_module()))
    key_id = await key_of_a_signer(config, pair)
    row = await stored(tmp_path, key_id)
    assert (row.keywrap_alg, len(row.private)) == (INSIDE, 19)
    async with serving(config) as (service, started, call):
        await started
        assert (await call(pair, lambda client: client.sign(key_id, b"a message"))).content
        tokens.go_wrong("removed")
        assert "the token failed" in await refused(call, pair, lambda client: client.sign(key_id, b"a message"))
        await until(lambda: has_status(service, "degraded"))
        tokens.go_wrong("")
        await until(lambda: has_status(service, "ok"))
        assert (await call(pair, lambda client: client.sign(key_id, b"a message"))).content


@pytest_twisted.ensureDeferred
async def test_a_vault_that_is_sealed_at_the_start_and_later(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(starting, "_PATIENCE", Backoff(first=0.05, most=0.1))
    monkeypatch.setattr(pauses, "_PAUSES", Backoff(first=0.01, most=0.02))
    monkeypatch.setattr(tap, "_LOOK_SECONDS", 0.1)
    with Vault(tmp_path / "vault") as server, capturedLogs() as events:
        config = configured(pair, tmp_path, server.with_secret_id())
        server.sealed = True
        waits = []
        async with serving(config) as (service, started, call):
            service.on_waiting = lambda status, seconds: waits.append(status)
            await until(lambda: has_waited(waits))
            assert not started.called
            server.sealed = False
            await started
            key_id = await call(pair, made_and_signed)
        async with serving(config) as (service, started, call):  # another process, that has opened no data key
            await started
            server.sealed = True
            await until(lambda: has_status(service, "degraded"))
            assert "Vault is sealed" in await refused(
                call, pair, lambda client: client.create(GUN, "timestamp", "ecdsa")
            )
            server.sealed = False
            await until(lambda: has_status(service, "ok"))
            await call(pair, made_and_signed)
            server.sealed = True
            await until(lambda: has_status(service, "degraded"))
            assert (await call(pair, lambda client: client.sign(key_id, b"a message"))).content
            server.sealed = False
    assert any(
        "Waiting for the custody of keys: the key-encrypting key transit/notary at" in status for status in waits
    )
    lines = [formatEvent(event) or "" for event in events]
    assert not any("a-secret-id" in line or "hvs." in line for line in lines)


@pytest_twisted.ensureDeferred
async def test_workers_have_a_login_each(pair, tmp_path, tokens):
    storage = {"backend": "sqlite3", "db_url": str(tmp_path / "keys.db"), "keys": {"wrap": tokens.uri()}}

    def work():
        environment = {**tokens.environment, "NOTARY_SIGNER_SERVER_WORKERS": "2"}
        daemon = signer_daemon("signer", OUR_SIGNER, pair, tmp_path / "signer", storage, environment=environment)
        with daemon:
            made = set()
            for _ in range(12):  # connections, for any worker
                with Client(pair, daemon.port) as client:
                    made.add(made_and_signed(client))
            for _ in range(4):
                with Client(pair, daemon.port) as client:
                    assert all(client.sign(key_id, b"a message").content for key_id in made)
        assert PIN not in daemon.output()

    await deferToThread(work)


@pytest_twisted.ensureDeferred
async def test_a_dump_and_the_environment_open_no_key(pair, tmp_path, tokens):
    """Without the token: not by the configuration, and not by any bytes that are in the dump or the environment."""
    config = configured(pair, tmp_path, tokens.uri())
    key_id = await key_of_a_signer(config, pair)
    row = await stored(tmp_path, key_id)
    assert row.keywrap_alg == KEYWRAP
    tokens.remove()
    with closing(custodies.custody_of(lambda: config, reactor)) as custody, pytest.raises(SigningFailed):
        await deferToThread(custody.open, row)
    dump = (tmp_path / "keys.db").read_bytes()
    environment = b"\0".join(value.encode() for value in (*os.environ.values(), tokens.uri(), PIN))
    envelope = envelopes._Envelope.read(row.private)
    bound = envelopes._bound(row.passphrase_alias, row.key_id)
    context = row.passphrase_alias.partition("/")[2].encode()
    for text in (row.private, environment, dump[: 1 << 16]):
        for start in range(len(text) - 31):
            cipher = AESGCM(text[start : start + 32])
            with suppress(InvalidTag):
                cipher.decrypt(envelope.nonce, envelope.sealed, bound)
                pytest.fail("a part of the dump opens the key")
            with suppress(InvalidTag):
                cipher.decrypt(envelope.wrapped[:12], envelope.wrapped[12:], context)
                pytest.fail("a part of the dump opens the data key")
