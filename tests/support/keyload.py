"""What servers do with a signer while an operator moves its keys: they sign, and have keys made."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event

from notary.storage import StoredKey
from notary.tuf.public import PublicKey, Signature, verify
from tests.support.signer import Client

MESSAGE = b"a timestamp"


def sign(client: Client, key: StoredKey) -> bool:
    """Sign with an Ed25519 key; whether the signature is good."""
    content = client.sign(key.key_id, MESSAGE).content
    return verify(PublicKey(key.algorithm, key.public), Signature(key.key_id, "eddsa", content), MESSAGE)


def keep_signing(client: Client, keys: Sequence[StoredKey], ended: Event) -> None:
    """Sign with each key in turn until all is over; each signature must be good."""
    while True:
        for key in keys:
            assert sign(client, key)
        if ended.is_set():
            return


def keep_creating(client: Client, ended: Event) -> list[str]:
    """Have keys made until all is over; their ids."""
    made: list[str] = []
    while not ended.is_set():
        made.append(client.create(f"example.com/new/{len(made)}", "timestamp", "ed25519").keyInfo.keyID.ID)
    return made
