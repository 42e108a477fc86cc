"""The process that has a PKCS#11 module: it logs in, then works with keys in the token.

By a key-encrypting key in the token it encrypts and decrypts data keys. In a token that keeps keys inside, it makes
private keys, and signs with them.

Rules of this module:

- It runs as a process of its own (``main``), because a module may crash, hang, or not survive a fork. It imports
  nothing slow and nothing of Twisted. Messages are lines of JSON, on standard input and output: first the place of the
  key and the PIN, then requests.
- After any failure of the token the process answers and ends: the next one begins afresh, with a session of its own.
- A PIN is tried once, and not at all if the token says that a wrong one was given before: tokens lock.
- The key must be one that the token never gives out.
- No answer has a PIN, a key or a text of the module.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

NONCE_BYTES: Final = 12
ID_BYTES: Final = 16
"""The length of the ids that keys inside have."""

_LABEL: Final = "notary-service"
_RSA_BITS: Final = 2048
_TAG_BITS: Final = 128
_PR_SET_DUMPABLE: Final = 4

AWAY, DAMAGED, MISSING, PIN = "away", "damaged", "missing", "pin"
"""The kinds of failures: the token or its key cannot be used now; the data key does not open; this session sees no key
of the id; the PIN is refused."""


_NO_DATA_KEY: Final = "its data key does not open: the stored bytes are damaged, or the key in the token is another one"


class Failed(Exception):
    """What goes wrong: its kind, and a text for the operator."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class _Session:
    """A session of the token that is logged in. Raises Failed."""

    def __init__(self, place: Mapping[str, str]) -> None:
        import pkcs11  # an extra, and only this process loads it

        self._pkcs11 = pkcs11
        try:
            library = pkcs11.lib(place["module"])
        except Exception as error:  # noqa: BLE001 - modules raise what they like
            raise Failed(AWAY, f"the module {place['module']} cannot be loaded ({type(error).__name__})") from None
        token = self._token(library, place)
        self._session = self._logged_in(token, place["pin"], writes=bool(place["inside"]))

    def _token(self, library: Any, place: Mapping[str, str]) -> Any:
        label, serial = place["token"], place["serial"]
        tokens = [
            token
            for token in library.get_tokens()
            if label in ("", token.label) and serial.encode() in (b"", bytes(token.serial).strip())
        ]
        if not tokens:
            raise Failed(AWAY, "there is no such token: it is removed, or the module does not see it")
        if len(tokens) > 1:
            raise Failed(AWAY, f"there are {len(tokens)} such tokens: add serial=… to the URI")
        flags = self._pkcs11.TokenFlag
        if tokens[0].flags & flags.USER_PIN_LOCKED:
            raise Failed(AWAY, "the PIN of the token is locked: unlock it with the PIN of its security officer")
        if tokens[0].flags & (flags.USER_PIN_COUNT_LOW | flags.USER_PIN_FINAL_TRY):
            raise Failed(
                AWAY,
                "a wrong PIN was given to the token, and no further one is tried, since tokens lock: correct the file, "
                "then log in once by hand (pkcs11-tool --login --list-objects), which takes the mark from the token",
            )
        return tokens[0]

    def _logged_in(self, token: Any, pin: str, *, writes: bool) -> Any:
        errors = self._pkcs11.exceptions
        try:
            return token.open(rw=writes, user_pin=pin)
        except (errors.PinIncorrect, errors.PinInvalid, errors.PinLenRange):
            raise Failed(PIN, "the token refuses the PIN") from None
        except errors.PinLocked:
            raise Failed(
                AWAY, "the PIN of the token is locked: unlock it with the PIN of its security officer"
            ) from None


class _Key(_Session):
    """The key-encrypting key in the token."""

    def __init__(self, place: Mapping[str, str]) -> None:
        super().__init__(place)
        self._key = self._find(self._session, place)
        self.works = {"wrap": self.wrap, "unwrap": self.unwrap, "check": self.check}

    def _find(self, session: Any, place: Mapping[str, str]) -> Any:
        attribute = self._pkcs11.Attribute
        wanted: dict[Any, Any] = {attribute.CLASS: self._pkcs11.ObjectClass.SECRET_KEY}
        if place["object"]:
            wanted[attribute.LABEL] = place["object"]
        if place["id"]:
            wanted[attribute.ID] = bytes.fromhex(place["id"])
        keys = list(session.get_objects(wanted))
        if len(keys) != 1:
            why = (
                f"there are {len(keys)} such keys: add id=… to the URI" if keys else "there is no such key in the token"
            )
            raise Failed(AWAY, why)
        if keys[0].key_type != self._pkcs11.KeyType.AES:
            raise Failed(AWAY, "the key is not an AES key")
        if keys[0][attribute.EXTRACTABLE] or not keys[0][attribute.SENSITIVE]:
            raise Failed(AWAY, "the key can be taken out of the token: make one that is sensitive and not extractable")
        return keys[0]

    def wrap(self, data: bytes, context: bytes) -> bytes:
        """Encrypt by AES-GCM, behind the nonce."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + bytes(self._key.encrypt(data, **self._gcm(nonce, context)))

    def unwrap(self, data: bytes, context: bytes) -> bytes:
        """Decrypt. A failure is damage if the token still decrypts what it has encrypted."""
        nonce, rest = data[:NONCE_BYTES], data[NONCE_BYTES:]
        if not rest:
            raise Failed(DAMAGED, _NO_DATA_KEY)
        try:
            return bytes(self._key.decrypt(rest, **self._gcm(nonce, context)))
        except self._pkcs11.PKCS11Error:
            self.check(b"", b"")
            raise Failed(DAMAGED, _NO_DATA_KEY) from None

    def check(self, _data: bytes, _context: bytes) -> bytes:
        """Encrypt and decrypt something."""
        nonce, probe = os.urandom(NONCE_BYTES), os.urandom(NONCE_BYTES)
        sealed = self._key.encrypt(probe, **self._gcm(nonce, b""))
        if bytes(self._key.decrypt(sealed, **self._gcm(nonce, b""))) != probe:
            raise Failed(AWAY, "the token does not decrypt what it has encrypted")
        return b""

    def _gcm(self, nonce: bytes, context: bytes) -> dict[str, Any]:
        parameters = self._pkcs11.GCMParams(nonce, context, _TAG_BITS)
        return {"mechanism": self._pkcs11.Mechanism.AES_GCM, "mechanism_param": parameters}


class _Inside(_Session):
    """Private keys that are made in the token, and never leave it. A key is named by its CKA_ID."""

    def __init__(self, place: Mapping[str, str]) -> None:
        super().__init__(place)
        self._keys: dict[bytes, Any] = {}
        self.works = {"make": self.make, "sign": self.sign, "forget": self.forget, "check": self.check}

    def make(self, data: bytes, _context: bytes) -> bytes:
        """Make a key of the algorithm ``data``; return its id and its public half (DER)."""
        from pkcs11.util import ec, rsa

        key_type, mechanism = self._pkcs11.KeyType, self._pkcs11.Mechanism
        key_id, algorithm = os.urandom(ID_BYTES), data.decode()
        if algorithm == "ecdsa":
            curve = {self._pkcs11.Attribute.EC_PARAMS: ec.encode_named_curve_parameters("secp256r1")}
            maker = self._session.create_domain_parameters(key_type.EC, curve, local=True)
            public, secret = maker.generate_keypair(mechanism=mechanism.EC_KEY_PAIR_GEN, **self._kept(key_id))
            encoded = ec.encode_ec_public_key(public)
        else:
            public, secret = self._session.generate_keypair(key_type.RSA, _RSA_BITS, **self._kept(key_id))
            encoded = rsa.encode_rsa_public_key(public)
        try:
            self._judge(secret)
        except Failed:
            secret.destroy()
            public.destroy()
            raise
        self._keys[key_id] = secret
        return key_id + bytes(encoded)

    def _kept(self, key_id: bytes) -> dict[str, Any]:
        attribute = self._pkcs11.Attribute
        secret = {attribute.SENSITIVE: True, attribute.EXTRACTABLE: False, attribute.PRIVATE: True}
        return {"id": key_id, "label": _LABEL, "store": True, "private_template": secret}

    def _judge(self, secret: Any) -> None:
        attribute = self._pkcs11.Attribute
        if secret[attribute.EXTRACTABLE] or not secret[attribute.SENSITIVE]:
            raise Failed(AWAY, "a key can be taken out of the token, which is no place to keep keys inside")

    def sign(self, data: bytes, context: bytes) -> bytes:
        """Sign the SHA-256 digest ``context`` with the key whose id is ``data``."""
        secret = self._keys.get(data)
        if secret is None:
            secret = self._keys[data] = self._find(data)
        mechanism = self._pkcs11.Mechanism
        if secret.key_type == self._pkcs11.KeyType.EC:
            return bytes(secret.sign(context, mechanism=mechanism.ECDSA))
        parameters = mechanism.SHA256, self._pkcs11.MGF.SHA256, len(context)
        return bytes(secret.sign(context, mechanism=mechanism.RSA_PKCS_PSS, mechanism_param=parameters))

    def _find(self, key_id: bytes) -> Any:
        attribute = self._pkcs11.Attribute
        wanted = {attribute.CLASS: self._pkcs11.ObjectClass.PRIVATE_KEY, attribute.ID: key_id}
        found = list(self._session.get_objects(wanted))
        if len(found) != 1:
            kind = DAMAGED if found else MISSING
            raise Failed(kind, f"there are {len(found)} keys in the token with the id {key_id.hex()}")
        self._judge(found[0])
        return found[0]

    def forget(self, data: bytes, _context: bytes) -> bytes:
        """Destroy both halves of the key whose id is ``data``."""
        self._keys.pop(data, None)
        for each in list(self._session.get_objects({self._pkcs11.Attribute.ID: data})):
            each.destroy()
        return b""

    def check(self, _data: bytes, _context: bytes) -> bytes:
        """Ask the token for something that needs the session."""
        self._session.generate_random(64)
        return b""


def _protect() -> None:
    """Keep the memory of this process from core files, and from other processes of its user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def main() -> None:
    """Answer requests until standard input ends."""
    _protect()
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a module prints is no answer

    def answer(**members: str) -> None:
        answers.write(json.dumps(members) + "\n")
        answers.flush()

    try:
        place = json.loads(sys.stdin.readline())
        session = _Inside(place) if place["inside"] else _Key(place)
        answer(ok="")
        for line in sys.stdin:
            request = json.loads(line)
            work = session.works[request["do"]]
            try:
                answer(ok=work(bytes.fromhex(request["data"]), bytes.fromhex(request["context"])).hex())
            except Failed as failed:
                if failed.kind not in (DAMAGED, MISSING):
                    raise
                answer(failed=failed.kind, text=failed.text)
    except Failed as failed:
        answer(failed=failed.kind, text=failed.text)
    except Exception as error:  # noqa: BLE001 - the edge; a text of the module could show what it was given
        answer(failed=AWAY, text=f"the token failed ({type(error).__name__})")
    finally:
        answers.close()
        os._exit(0)  # a module may hang in the functions that it runs at the end of a process
