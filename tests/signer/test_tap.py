"""The signer's wiring, in this process: the real service on loopback, called by grpcio over mutual TLS."""

from __future__ import annotations

import json
import sqlite3
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import grpc
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent

from notary.config import load_signer
from notary.daemon.program import Bootstrap
from notary.envelope import KEYWRAP
from notary.errors import ConfigError, StorageFailed
from notary.signer.tap import Signer
from notary.storage.open import migrate_database
from notary.storage.sql import migrate
from notary.tuf import jwe
from tests.support.certs import Authority
from tests.support.peers import free_port
from tests.support.signer import KEY_MANAGEMENT, SIGNER, Client, Pair, signer_config

FIXTURES = Path(__file__).parents[2] / "fixtures"
GUN = "example.com/app"
ENVIRONMENT = {"NOTARY_SIGNER_ALIAS_ONE": "the first passphrase"}
UNAVAILABLE, PERMISSION_DENIED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return Pair.mint(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def storage(tmp_path):
    return {"backend": "sqlite3", "db_url": str(tmp_path / "keys.db"), "default_alias": "alias_one"}


def configured(pair, storage, port=0, **more):
    text = json.dumps(signer_config(pair, port, storage, **more))
    return load_signer(text, ENVIRONMENT, pair.folder)


@asynccontextmanager
async def serving(config):
    """A signer that serves, and a function that calls it: a function of a client, in a thread."""
    port = free_port()
    address = config.server.grpc_addr._replace(port=port)
    service = Signer(replace(config, server=replace(config.server, grpc_addr=address)), reactor)
    await service.startService()

    def call(pair, work, **options):
        def connected():
            with Client(pair, port, **options) as client:
                return work(client)

        return deferToThread(connected)

    try:
        yield call
    finally:
        await service.stopService()


def life(client):
    """What a server does with a key; its id."""
    key_id, again = (client.create(GUN, "snapshot", "ecdsa").keyInfo.keyID.ID for _ in range(2))
    assert again == key_id
    assert client.info(key_id).role == "snapshot"
    assert client.sign(key_id, b"a message").content
    assert (client.health(KEY_MANAGEMENT), client.health(SIGNER)) == (1, 1)
    return key_id


@pytest_twisted.ensureDeferred
async def test_it_serves_what_is_stored(pair, storage, tmp_path):
    config = configured(pair, storage)
    async with serving(config) as call:
        key_id = await call(pair, life)
    async with serving(config) as call:  # keys outlive the signer
        assert (await call(pair, lambda client: client.sign(key_id, b"another"))).content
        assert await call(pair, lambda client: client.create(GUN, "snapshot", "ecdsa").keyInfo.keyID.ID) != key_id
    with sqlite3.connect(tmp_path / "keys.db") as database:
        rows = database.execute("SELECT key_id, passphrase_alias FROM private_keys WHERE last_used IS NOT NULL")
        assert rows.fetchall() == [(key_id, "alias_one")]
    database.close()


@pytest_twisted.ensureDeferred
async def test_a_memory_signer_needs_no_passphrase(pair):
    async with serving(configured(pair, {"backend": "memory"})) as call:
        await call(pair, life)


@pytest_twisted.ensureDeferred
async def test_large_messages_are_signed_whole(pair, storage):
    async with serving(configured(pair, storage)) as call:

        def work(client):
            key_id = client.create(GUN, "snapshot", "ed25519").keyInfo.keyID.ID
            one, two = (client.sign(key_id, b"x" * 4_000_000 + end).content for end in (b"1", b"2"))
            return one != two

        assert await call(pair, work)


async def refused(call, pair, status, *, service="grpc.health.v1.Health.Signer", **options):
    with pytest.raises(grpc.RpcError) as caught:
        await call(pair, lambda client: client.health(service), **options)
    assert caught.value.code() is status


@pytest_twisted.ensureDeferred
async def test_only_clients_of_the_bundle_are_served(pair, storage, tmp_path):
    strangers = Authority.root("strangers")
    with capturedLogs() as events:
        async with serving(configured(pair, storage)) as call:
            await refused(call, pair, UNAVAILABLE, leaf=None)
            await refused(call, pair, UNAVAILABLE, leaf=strangers.leaf("notary-server"))
            old = pair.intermediate.leaf("notary-server", starts=-timedelta(days=3), ends=-timedelta(days=1))
            await refused(call, pair, UNAVAILABLE, leaf=old)
            sibling = pair.intermediate.leaf("notary-server")
            assert await call(pair, lambda client: client.health(""), leaf=sibling) == 1
            assert await call(pair, lambda client: client.health("")) == 1
    reasons = [event["reason"] for event in events if "refused" in (event.get("log_format") or "")]
    assert len(reasons) == 3
    assert "showed no certificate" in reasons[0]
    assert "leads to no certificate in server.client_ca_file; add CN=strangers there" in reasons[1]
    assert "expired at " in reasons[2]


@pytest_twisted.ensureDeferred
async def test_the_list_of_names_decides_whom_of_them(pair, storage):
    with capturedLogs() as events:
        async with serving(configured(pair, storage, client_names=["another-server"])) as call:
            await refused(call, pair, PERMISSION_DENIED)
            with pytest.raises(grpc.RpcError, match="PERMISSION_DENIED"):
                await call(pair, life)
            assert await call(pair, lambda client: client.health("")) == 1  # of the whole: TLS is enough
            await refused(call, pair, UNAVAILABLE, service="", leaf=None)
        async with serving(configured(pair, storage, client_names=["another-server", "notary-server"])) as call:
            await call(pair, life)
    lines = [formatEvent(event) for event in events]
    assert any("has none of the names in its certificate: notary-server" in (line or "") for line in lines)


@pytest_twisted.ensureDeferred
async def test_without_a_bundle_everybody_is_served_and_the_log_warns(pair, storage):
    with capturedLogs() as events:
        async with serving(configured(pair, storage, client_ca_file="")) as call:
            assert await call(pair, lambda client: client.health(""), leaf=None) == 1
    assert any("every client that reaches this signer" in (formatEvent(event) or "") for event in events)


@pytest_twisted.ensureDeferred
async def test_a_store_that_cannot_be_opened(pair, storage, tmp_path):
    with pytest.raises(StorageFailed):
        await fail_to_start(configured(pair, storage | {"db_url": str(tmp_path)}))


@pytest_twisted.ensureDeferred
async def test_a_port_that_is_taken(pair, storage):
    taken = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
    try:
        port = taken.getHost().port
        with pytest.raises(CannotListenError) as caught:
            await fail_to_start(configured(pair, storage, port))
        assert str(caught.value).startswith(f"server.grpc_addr: 127.0.0.1:{port} cannot be used (Address already in")
    finally:
        await taken.stopListening()


async def fail_to_start(config):
    service = Signer(config, reactor)
    try:
        await service.startService()
    finally:
        await service.stopService()


@pytest_twisted.ensureDeferred
async def test_stopping_what_was_never_started(pair, storage):
    await Signer(configured(pair, storage), reactor).stopService()


def test_files_are_read_when_it_is_built(pair, storage):
    with pytest.raises(ConfigError, match=r"server\.tls_cert_file"):
        Signer(configured(pair, storage, tls_cert_file="missing.crt"), reactor)


@pytest_twisted.ensureDeferred
async def test_bootstrap_creates_the_tables_and_ends(pair, storage, tmp_path):
    class Stopped:
        """The reactor, but for its end."""

        stops = 0

        def __getattr__(self, name):
            return getattr(reactor, name)

        def stop(self):
            self.stops += 1

    stopped = Stopped()
    settings = configured(pair, storage).storage
    await Bootstrap(
        partial(migrate_database, settings.backend, settings.db_url, migrate.SIGNER, stopped), settings.backend, stopped
    ).startService()
    assert stopped.stops == 1
    with sqlite3.connect(tmp_path / "keys.db") as database:
        assert database.execute("SELECT count(*) FROM private_keys").fetchall() == [(0,)]
    database.close()


# -- the key's name in the configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([], id="nobody or everybody"),
        pytest.param([""], id="empty"),
        pytest.param(["a b"], id="space"),
        pytest.param(["*.example.com"], id="wildcard"),
        pytest.param([5], id="number"),
        pytest.param(5, id="not a list"),
    ],
)
def test_bad_lists_of_names(pair, storage, names):
    with pytest.raises(ConfigError, match=r"server\.client_names: .* expected a list of one or more names"):
        configured(pair, storage, client_names=names)


def test_names_without_a_bundle_are_refused(pair, storage):
    with pytest.raises(ConfigError, match=r"server\.client_ca_file: missing"):
        configured(pair, storage, client_ca_file="", client_names=["notary-server"])


def test_names_from_the_environment(pair, storage):
    text = json.dumps(signer_config(pair, 1, storage))
    names = {"NOTARY_SIGNER_SERVER_CLIENT_NAMES": "one two"}
    assert load_signer(text, ENVIRONMENT | names, pair.folder).server.client_names == ("one", "two")


def test_the_configuration_of_make_up_can_be_loaded():
    path, passphrase = FIXTURES / "signer-config.json", "a-passphrase-for-trying-things-out"
    config = load_signer(path.read_text(), {"NOTARY_SIGNER_PASSPHRASE_1": passphrase}, path.parent)
    assert config.warnings == ()
    assert config.passphrase(config.storage.default_alias) == passphrase
    assert Path(config.storage.db_url).parent.resolve() == FIXTURES.parent / "var"
    Signer(config, reactor)


# -- key-encrypting keys ----------------------------------------------------------------------------------------------


@pytest.fixture
def keks(tmp_path):
    """The files of two key-encrypting keys, as URIs."""
    found = []
    for number in range(2):
        path = tmp_path / f"kek{number}"
        path.write_bytes(bytes(range(number, number + 32)))
        found.append(f"file:{path}")
    return found


def stored_under(tmp_path):
    """The beginning of the alias of each stored key, in the order of their creation."""
    with closing(sqlite3.connect(tmp_path / "keys.db")) as database:
        rows = database.execute("SELECT passphrase_alias, keywrap_alg FROM private_keys ORDER BY id").fetchall()
    return [(alias.partition("-")[0], keywrap) for alias, keywrap in rows]


@pytest_twisted.ensureDeferred
async def test_new_keys_are_under_the_kek_and_older_ones_sign(pair, storage, keks, tmp_path):
    one, other = keks
    keys = []
    for each in (
        storage,
        storage | {"keys": {"wrap": one}},
        storage | {"keys": {"wrap": other, "unwrap": [one]}},
        storage | {"keys": {"wrap": one, "unwrap": [other]}},
    ):
        async with serving(configured(pair, each)) as call:
            keys.append(await call(pair, life))
            for key_id in keys:
                assert (await call(pair, lambda client, key_id=key_id: client.sign(key_id, b"another"))).content
    assert stored_under(tmp_path) == [("alias_one", jwe.KEYWRAP), *[("file", KEYWRAP)] * 3]
    async with serving(configured(pair, storage | {"keys": {"unwrap": keks}})) as call:  # back under the passphrase
        await call(pair, life)
        for key_id in keys:
            assert (await call(pair, lambda client, key_id=key_id: client.sign(key_id, b"another"))).content
    assert stored_under(tmp_path)[-1] == ("alias_one", jwe.KEYWRAP)
    # Without the passphrase, the keys under it cannot sign, and the others do.
    text = json.dumps(
        signer_config(pair, 0, {**storage, "default_alias": "", "keys": {"wrap": one, "unwrap": [other]}})
    )
    with capturedLogs() as events:
        async with serving(load_signer(text, {}, pair.folder)) as call:
            for key_id in keys[1:]:
                assert (await call(pair, lambda client, key_id=key_id: client.sign(key_id, b"another"))).content
            with pytest.raises(grpc.RpcError, match="there is no passphrase of alias"):
                await call(pair, lambda client: client.sign(keys[0], b"another"))
    assert any("alias_one" in (formatEvent(event) or "") for event in events)


@pytest_twisted.ensureDeferred
async def test_a_kek_that_opens_none_of_the_stored_keys(pair, storage, keks):
    one, other = keks
    async with serving(configured(pair, storage | {"keys": {"wrap": one}})) as call:
        await call(pair, life)
    with pytest.raises(ConfigError) as caught:
        await fail_to_start(configured(pair, storage | {"keys": {"wrap": other}}))
    assert str(caught.value).startswith("storage.keys.wrap: key ")
    assert "name it in storage.keys.unwrap" in str(caught.value)
    async with serving(configured(pair, storage | {"keys": {"wrap": other, "unwrap": [one]}})) as call:
        await call(pair, life)
    with capturedLogs() as events:  # some open: it serves, and the log names what does not
        async with serving(configured(pair, storage | {"keys": {"wrap": other}})) as call:
            await call(pair, life)
    assert any("such keys cannot sign" in (formatEvent(event) or "") for event in events)


def test_the_kek_is_read_when_it_is_built(pair, storage, tmp_path):
    with pytest.raises(ConfigError, match=r"storage\.keys\.wrap: file:.* cannot be read"):
        Signer(configured(pair, storage | {"keys": {"wrap": f"file:{tmp_path}/missing"}}), reactor)
