"""Keyrings on real stores, for the tests of the signer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from notary.signer.custody import KeyCustody
from notary.signer.custody.jwe import JweCustody
from notary.signer.keyring import Keyring
from notary.storage import KeyStore
from notary.storage.open import open_key_store
from notary.tuf import jwe

NOW = datetime(2030, 5, 17, 12, 30, 1, tzinfo=UTC)
ALIAS = "alias_one"
PASSPHRASES = {ALIAS: "the first passphrase", "alias_two": "the second passphrase"}


@dataclass
class Bench:
    """A store, and keyrings on it that share passphrases; ``threads`` counts what they ran in a thread."""

    store: KeyStore
    passphrases: dict[str, str] = field(default_factory=lambda: dict(PASSPHRASES), repr=False)
    threads: int = 0

    def keyring(
        self,
        store: KeyStore | None = None,
        alias: str = ALIAS,
        capacity: int = 100,
        allow: Callable[[], float] = lambda: 0.0,
    ) -> Keyring:
        custody = JweCustody(self.passphrases.get, alias)
        return Keyring(store or self.store, custody, self.in_thread, lambda: NOW, capacity, allow)

    def keyring_of(self, custody: KeyCustody) -> Keyring:
        return Keyring(self.store, custody, self.in_thread, lambda: NOW)

    def in_thread(self, work: Callable[[], object]):
        self.threads += 1
        return deferToThread(work)


@pytest.fixture(params=["memory", "sqlite3"])
def backend(request) -> str:
    return request.param


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


@pytest_twisted.async_yield_fixture
async def bench(backend, database):
    store = await open_key_store(backend, str(database) if backend == "sqlite3" else "", reactor)
    yield Bench(store)
    await store.close()


@pytest.fixture
def unwrapped(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often each wrapped key was unwrapped in this test."""
    counts: Counter[bytes] = Counter()
    real = jwe.unwrap

    def counting(wrapped: bytes, passphrase: str) -> bytes:
        counts[wrapped] += 1
        return real(wrapped, passphrase)

    monkeypatch.setattr(jwe, "unwrap", counting)
    return counts
