"""Keys that go from the Go signer under a key-encrypting key, and back: the Go signer signs with all of them again.

Rules of this module: one database on MariaDB, with the rights of the operator's guide, and UPDATE, which the Go signer
needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from notary import envelope
from notary.storage.open import migrate_database
from notary.storage.sql.migrate import SIGNER
from notary.tuf import jwe
from notary.tuf.public import PublicKey, Signature, verify
from tests.support.databases import SERVER_RIGHTS, MariaDB
from tests.support.peers import clean_environment
from tests.support.signer import GO_SIGNER, OUR_SIGNER, Client, Pair, signer_config, signer_daemon

ADMIN = str(Path(sys.executable).with_name("notary-admin"))
ENVIRONMENT = {"NOTARY_SIGNER_ALIAS_ONE": "correct-horse-battery-staple", "NOTARY_SIGNER_DEFAULT_ALIAS": "alias_one"}
MESSAGE = b"a timestamp"


class Scene:
    """One database, and signers on it, one at a time."""

    def __init__(self, mariadb: MariaDB, pair: Pair, folder: Path) -> None:
        self.mariadb = mariadb
        self.pair = pair
        self.folder = folder
        self.database = mariadb.database()
        (folder / "kek").write_bytes(bytes(range(32)))
        migrating = migrate_database("mysql", mariadb.db_url(self.database), SIGNER, reactor)
        pytest_twisted.blockon(Deferred.fromCoroutine(migrating))
        user = mariadb.user(self.database, SERVER_RIGHTS)
        self.storage = {"backend": "mysql", "db_url": mariadb.db_url(self.database, user), "default_alias": "alias_one"}

    @contextmanager
    def signer(self, command: tuple[str, ...], **keys: Any) -> Iterator[Client]:
        storage = self.storage | ({"keys": keys} if keys else {})
        daemon = signer_daemon("signer", command, self.pair, self.folder, storage, environment=ENVIRONMENT)
        with daemon, Client(self.pair, daemon.port) as client:
            yield client

    def admin(self, *arguments: str, **keys: Any) -> Mapping[str, Any]:
        config = self.folder / "admin.json"
        config.write_text(json.dumps(signer_config(self.pair, 0, self.storage | {"keys": keys})))
        done = subprocess.run(
            [ADMIN, "keys", *arguments, "--config", config, "--json"],
            env=clean_environment(ENVIRONMENT),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def keywraps(self) -> set[str]:
        return {row[0] for row in self.mariadb.execute(self.database, "SELECT keywrap_alg FROM private_keys")}


def made(client: Client, name: str) -> list[Any]:
    """New keys of each algorithm: one that has signed, and one that has not."""
    keys = []
    for algorithm in ("ecdsa", "ed25519"):
        keys += [client.create(f"example.com/{name}/{n}", "timestamp", algorithm) for n in range(2)]
        assert client.sign(keys[-1].keyInfo.keyID.ID, MESSAGE).content
    return keys


def signs(client: Client, key: Any) -> bool:
    signed = client.sign(key.keyInfo.keyID.ID, MESSAGE)
    public = PublicKey(key.keyInfo.algorithm.algorithm, key.publicKey)
    return verify(public, Signature(public.key_id, signed.algorithm.algorithm, signed.content), MESSAGE)


def there_and_back(scene: Scene) -> None:
    wrap, unwrap = {"wrap": "file:kek"}, {"unwrap": ["file:kek"]}
    with scene.signer(GO_SIGNER) as client:
        keys = made(client, "go")
    with scene.signer(OUR_SIGNER, **wrap) as client:
        keys += made(client, "ours")
        assert all(signs(client, key) for key in keys)
    assert scene.keywraps() == {jwe.KEYWRAP, envelope.KEYWRAP}
    assert scene.admin("reencrypt", "--to-kek", **wrap)["failed"] == 0
    assert scene.keywraps() == {envelope.KEYWRAP}
    with scene.signer(OUR_SIGNER, **wrap) as client:
        assert all(signs(client, key) for key in keys)
    with scene.signer(GO_SIGNER) as client:  # it takes such a key for one that is not there, and harms nothing
        for key in keys:
            with pytest.raises(grpc.RpcError) as caught:
                signs(client, key)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with scene.signer(OUR_SIGNER, **unwrap) as client:
        keys += made(client, "meanwhile")
        assert all(signs(client, key) for key in keys)
    assert scene.admin("reencrypt", "--to", "alias_one", **unwrap)["failed"] == 0
    assert scene.keywraps() == {jwe.KEYWRAP}
    assert scene.admin("verify") == {"checked": 12, "do_not_open": 0}
    with scene.signer(GO_SIGNER) as client:
        assert all(signs(client, key) for key in keys)


@pytest_twisted.ensureDeferred
async def test_under_a_kek_and_back_to_the_go_signer(scene: Scene) -> None:
    await deferToThread(there_and_back, scene)


@pytest.fixture
def scene(mariadb: MariaDB, tmp_path: Path) -> Scene:
    return Scene(mariadb, Pair.mint(tmp_path / "tls"), tmp_path)
