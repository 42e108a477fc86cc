"""The process that has a PKCS#11 module: it logs in, then encrypts and decrypts data keys by a key in the token.

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
_TAG_BITS: Final = 128
_PR_SET_DUMPABLE: Final = 4

AWAY, DAMAGED, PIN = "away", "damaged", "pin"
"""The kinds of failures: the token or its key cannot be used now; the data key does not open; the PIN is refused."""


class Failed(Exception):
    """What goes wrong: its kind, and a text for the operator."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class _Key:
    """The key in the token, in a session that is logged in. Raises Failed."""

    def __init__(self, place: Mapping[str, str]) -> None:
        import pkcs11  # an extra, and only this process loads it

        self._pkcs11 = pkcs11
        try:
            library = pkcs11.lib(place["module"])
        except Exception as error:  # noqa: BLE001 - modules raise what they like
            raise Failed(AWAY, f"the module {place['module']} cannot be loaded ({type(error).__name__})") from None
        token = self._token(library, place)
        self._key = self._find(self._logged_in(token, place["pin"]), place)

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

    def _logged_in(self, token: Any, pin: str) -> Any:
        errors = self._pkcs11.exceptions
        try:
            return token.open(user_pin=pin)
        except (errors.PinIncorrect, errors.PinInvalid, errors.PinLenRange):
            raise Failed(PIN, "the token refuses the PIN") from None
        except errors.PinLocked:
            raise Failed(
                AWAY, "the PIN of the token is locked: unlock it with the PIN of its security officer"
            ) from None

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
            raise Failed(DAMAGED, "")
        try:
            return bytes(self._key.decrypt(rest, **self._gcm(nonce, context)))
        except self._pkcs11.PKCS11Error:
            self.check(b"", b"")
            raise Failed(DAMAGED, "") from None

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
        key = _Key(json.loads(sys.stdin.readline()))
        answer(ok="")
        for line in sys.stdin:
            request = json.loads(line)
            work = {"wrap": key.wrap, "unwrap": key.unwrap, "check": key.check}[request["do"]]
            try:
                answer(ok=work(bytes.fromhex(request["data"]), bytes.fromhex(request["context"])).hex())
            except Failed as failed:
                if failed.kind != DAMAGED:
                    raise
                answer(failed=failed.kind, text=failed.text)
    except Failed as failed:
        answer(failed=failed.kind, text=failed.text)
    except Exception as error:  # noqa: BLE001 - the edge; a text of the module could show what it was given
        answer(failed=AWAY, text=f"the token failed ({type(error).__name__})")
    finally:
        answers.close()
        os._exit(0)  # a module may hang in the functions that it runs at the end of a process
