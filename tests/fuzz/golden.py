"""The world that fuzz targets live in: a collection that is stored, keys whose private halves are known, a wrapped key.

Rules of this module: all of it comes from ``golden.json``, so that an input means the same in each run. :func:`make`
writes that file anew, after which the corpus must be made anew too. The keys in it are public and protect nothing.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from notary.storage import StoredKey
from notary.storage.wrapped import wrap
from notary.tuf import private
from notary.tuf.model import RoleName
from tests.support import certs, tokens
from tests.support.author import Key, make_key, make_root_key
from tests.support.collection import GUN, Collection, Held

FILE = Path(__file__).with_name("golden.json")
NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
PASSPHRASE = "the passphrase of the golden key"
ALIAS = "golden"
DELEGATIONS = ("targets/a", "targets/a/b")


@dataclass(frozen=True)
class World:
    """``keys`` are those of the collection's roles; ``stored`` is what a server holds of it."""

    stored: dict[RoleName, Held]
    keys: dict[str, Key]
    token_key: ec.EllipticCurvePrivateKey
    token_certificate: x509.Certificate
    tls_key: str
    tls_certificate: str
    row: StoredKey

    def collection(self) -> Collection:
        """The collection as the server holds it, to publish to."""
        made = Collection(now=NOW)
        made.keys = {self.keys[role].key_id: self.keys[role] for role in ("snapshot", "timestamp")}
        made.current = dict(self.stored)
        return made


@cache
def world() -> World:
    """What the file holds."""
    value = json.loads(FILE.read_text(encoding="utf-8"))
    stored = {
        RoleName(role): Held(json.loads(text)["signed"]["version"], text.encode())
        for role, text in value["stored"].items()
    }
    keys = {
        name: Key(one["type"], base64.b64decode(one["public"]), _private(one["private"]))
        for name, one in value["keys"].items()
    }
    row = value["row"]
    return World(
        stored=stored,
        keys=keys,
        token_key=_private(value["token"]["key"]),
        token_certificate=x509.load_pem_x509_certificate(value["token"]["certificate"].encode()),
        tls_key=value["tls"]["key"],
        tls_certificate=value["tls"]["certificate"],
        row=StoredKey(**{**row, "public": base64.b64decode(row["public"]), "private": row["private"].encode()}),
    )


def make() -> None:
    """Write the file anew."""
    collection = Collection(now=NOW)
    author = collection.author()
    author.roles["root"].keys[:] = [make_root_key(GUN)]
    author.roles["targets"].keys[:] = [make_key("ed25519")]
    for role in DELEGATIONS:
        author.delegate(role, make_key("ed25519"))
    author.add("v1", b"content")
    collection.publish(author.first())
    keys = {name: role.keys[0] for name, role in (author.roles | author.delegations).items()}
    keys |= {"snapshot": collection.snapshot_key, "timestamp": collection.timestamp_key}
    signer = tokens.self_signed("signer of tokens", ec.generate_private_key(ec.SECP256R1()), NOW, end=timedelta(36500))
    leaf = certs.Authority.root("root of the golden world").leaf(
        "localhost", "notary-server", starts=timedelta(-3650), ends=timedelta(36500)
    )
    row = wrap(private.generate("ecdsa"), GUN, "snapshot", ALIAS, lambda _alias: PASSPHRASE)
    value = {
        "stored": {str(role): held.data.decode() for role, held in collection.current.items()},
        "keys": {
            name: {"type": key.key_type, "public": _base64(key.public), "private": _text(key.private)}
            for name, key in keys.items()
        },
        "token": {
            "key": _text(signer.key),
            "certificate": signer.certificate.public_bytes(Encoding.PEM).decode(),
        },
        "tls": {"key": _text(leaf.key), "certificate": certs.pem(leaf.chain).decode()},
        "row": {
            "key_id": row.key_id,
            "algorithm": row.algorithm,
            "public": _base64(row.public),
            "private": row.private.decode(),
            "gun": row.gun,
            "role": row.role,
            "passphrase_alias": row.passphrase_alias,
        },
    }
    FILE.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _private(text: str) -> Any:
    return load_pem_private_key(text.encode(), None)


def _text(key: Any) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
