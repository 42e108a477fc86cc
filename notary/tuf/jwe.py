"""The wrapping of private keys at rest: a compact JWE under a passphrase (docs/protocol.md, section 5).

Rules of this module: pure but for the randomness of a wrapping. There is one format, that of the reference signer:
PBES2-HS256+A128KW, A256GCM, ITERATIONS rounds. Any other format is refused before a key is derived, and so is a header
that asks for more than MAX_ITERATIONS rounds: an attacker who can write to the database must not be able to stop the
signer. No error shows the passphrase, the plaintext or a part of the JWE other than its header, nor has a cause that
does.

Deriving a key takes milliseconds on purpose: call these functions in a thread.
"""

from __future__ import annotations

import os
import re
from typing import Final

from jwcrypto.common import base64url_decode, base64url_encode, json_encode  # type: ignore[import-untyped]
from jwcrypto.jwe import JWE  # type: ignore[import-untyped]
from jwcrypto.jwk import JWK  # type: ignore[import-untyped]

from notary.errors import KeyDoesNotOpen, MalformedJSON, SigningFailed
from notary.tuf import canonical
from notary.tuf.canonical import quote

KEYWRAP: Final = "PBES2-HS256+A128KW"
"""How the content key is wrapped under the passphrase (RFC 7518, 4.8)."""
ENCRYPTION: Final = "A256GCM"
"""How the plaintext is encrypted under the content key (RFC 7518, 5.3)."""
ITERATIONS: Final = 8192
"""Rounds of PBKDF2 for new wrappings; the reference signer uses the same number."""
MAX_ITERATIONS: Final = 16_384
"""The most rounds that a stored key may ask for."""

_SALT_BYTES: Final = 16
_COMPACT = re.compile(rb"[\w-]+(?:\.[\w-]+){4}", re.ASCII)
_MEMBERS: Final = frozenset({"alg", "enc", "p2c", "p2s"})


def wrap(plaintext: bytes, passphrase: str) -> bytes:
    """Encrypt ``plaintext``, not empty, under ``passphrase``; return the bytes of a compact JWE.

    The passphrase is taken as its bytes in UTF-8. Bytes that are not UTF-8 stand in it as ``surrogateescape`` has them.
    """
    header = {"alg": KEYWRAP, "enc": ENCRYPTION, "p2c": ITERATIONS, "p2s": base64url_encode(os.urandom(_SALT_BYTES))}
    jwe = JWE(plaintext, protected=json_encode(header), algs=[KEYWRAP, ENCRYPTION], recipient=_key(passphrase))
    compact: str = jwe.serialize(compact=True)
    return compact.encode()


def unwrap(wrapped: bytes, passphrase: str) -> bytes:
    """Decrypt a JWE of :func:`wrap` or of the reference signer.

    Raises SigningFailed if ``wrapped`` is no JWE of this format, and KeyDoesNotOpen if the decryption fails: the
    passphrase is wrong or ``wrapped`` is damaged, and the two cases cannot be distinguished.
    """
    _check(wrapped)
    jwe = JWE(algs=[KEYWRAP, ENCRYPTION])
    try:
        jwe.deserialize(wrapped.decode(), _key(passphrase))
    except Exception:  # noqa: BLE001 - the text of any error might show plaintext
        raise KeyDoesNotOpen("it does not open: the passphrase is wrong, or the stored bytes are damaged") from None
    plaintext: bytes = jwe.payload
    return plaintext


def _check(wrapped: bytes) -> None:
    """Check the header. Raises SigningFailed unless it has the format of :func:`wrap`."""
    if _COMPACT.fullmatch(wrapped) is None:
        raise SigningFailed("it is not a compact JWE")
    encoded = wrapped.decode().partition(".")[0]
    try:
        header = canonical.parse(base64url_decode(encoded))
    except (ValueError, MalformedJSON):
        raise SigningFailed("the header of its JWE cannot be read") from None
    if not isinstance(header, dict) or header.keys() != _MEMBERS:
        raise SigningFailed(f"the header of its JWE must have the members {', '.join(sorted(_MEMBERS))} and no other")
    for name, expected in (("alg", KEYWRAP), ("enc", ENCRYPTION)):
        if header[name] != expected:
            raise SigningFailed(f"its JWE has {name} {quote(str(header[name]))}; expected {expected!r}")
    iterations = header["p2c"]
    if type(iterations) is not int or not 1 <= iterations <= MAX_ITERATIONS:
        raise SigningFailed(f"its JWE has p2c {quote(str(iterations))}; expected a number from 1 to {MAX_ITERATIONS}")


def _key(passphrase: str) -> JWK:
    return JWK(kty="oct", k=base64url_encode(passphrase.encode(errors="surrogateescape")))
