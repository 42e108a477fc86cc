"""Private keys: make, read, sign, write.

Rules of this module: pure but for the randomness of new keys and signatures. :data:`_ALGORITHMS` is the one table of
algorithms; a new algorithm is a row in it. The plaintext encodings are those of docs/protocol.md, section 5; wrapping
them at rest is the task of :mod:`notary.tuf.jwe`. Neither the ``repr`` of a key nor an error ever shows a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import nacl.signing
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from notary.errors import SigningFailed, UnsupportedAlgorithm
from notary.tuf.canonical import quote
from notary.tuf.public import CURVES, MIN_RSA_BITS, PublicKey

_Secret: TypeAlias = Any
_SEED_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class _Algorithm:
    """One row: ``method`` names its signatures; the functions work on the library's own private key objects."""

    method: str
    generate: Callable[[], _Secret]
    decode: Callable[[bytes], _Secret]
    encode: Callable[[_Secret], bytes]
    public: Callable[[_Secret], bytes]
    sign: Callable[[_Secret, bytes], bytes]


class PrivateKey:
    """A key that signs. ``public`` is its public half, ``method`` the name of its signatures in metadata.

    :func:`generate` and :func:`decode` make these objects.
    """

    __slots__ = ("_algorithm", "_secret", "method", "public")

    def __init__(self, algorithm: _Algorithm, public: PublicKey, secret: _Secret) -> None:
        self._algorithm = algorithm
        self._secret = secret
        self.public: Final = public
        self.method: Final = algorithm.method

    def sign(self, payload: bytes) -> bytes:
        """The raw signature over ``payload``, which is the whole message, not a digest."""
        return self._algorithm.sign(self._secret, payload)

    def encode(self) -> bytes:
        """Return the secret in the plaintext form that is wrapped and stored. Handle with care."""
        return self._algorithm.encode(self._secret)

    def __repr__(self) -> str:
        return f"<PrivateKey {self.public.key_type} {self.public.key_id}>"


def generate(algorithm: str) -> PrivateKey:
    """Make a new key: ``ed25519``, ``ecdsa`` (P-256) or ``rsa`` (2048 bits). Raises UnsupportedAlgorithm."""
    row = _row(algorithm)
    secret = row.generate()
    return PrivateKey(row, PublicKey(algorithm, row.public(secret)), secret)


def decode(algorithm: str, public: bytes, private: bytes) -> PrivateKey:
    """Read a key that :meth:`PrivateKey.encode` or the reference signer wrote.

    Raises UnsupportedAlgorithm, and SigningFailed if ``private`` cannot be used or does not belong to ``public``.
    """
    row = _row(algorithm)
    key = PublicKey(algorithm, public)
    try:
        secret = row.decode(private)
        matches = row.public(secret) == public
    except Exception:  # noqa: BLE001 - the text of any error might show the secret
        raise SigningFailed(f"the private half of {algorithm} key {key.key_id} cannot be read") from None
    if not matches:
        raise SigningFailed(f"the two halves of {algorithm} key {key.key_id} do not belong together")
    return PrivateKey(row, key, secret)


def _row(algorithm: str) -> _Algorithm:
    row = _ALGORITHMS.get(algorithm)
    if row is None:
        raise UnsupportedAlgorithm(
            f"keys of algorithm {quote(algorithm)} are not supported: choose one of {', '.join(_ALGORITHMS)}"
        )
    return row


# -- algorithms -------------------------------------------------------------------------------------------------------


def _pkix(secret: _Secret) -> bytes:
    encoded: bytes = secret.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _traditional(secret: _Secret) -> bytes:
    """SEC 1 for elliptic curves, PKCS #1 for RSA."""
    encoded: bytes = secret.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return encoded


def _decode_ecdsa(private: bytes) -> ec.EllipticCurvePrivateKey:
    secret = serialization.load_der_private_key(private, None)
    if not isinstance(secret, ec.EllipticCurvePrivateKey) or secret.curve.name not in CURVES:
        raise ValueError  # not a key on a known curve; decode() shows no text of an error
    return secret


_ECDSA: Final = ec.ECDSA(hashes.SHA256())  # making this object takes a tenth of the time of a signature


def _sign_ecdsa(secret: _Secret, payload: bytes) -> bytes:
    width = (secret.curve.key_size + 7) // 8
    r, s = decode_dss_signature(secret.sign(payload, _ECDSA))
    return r.to_bytes(width) + s.to_bytes(width)


def _decode_rsa(private: bytes) -> rsa.RSAPrivateKey:
    secret = serialization.load_der_private_key(private, None)
    if not isinstance(secret, rsa.RSAPrivateKey) or secret.key_size < MIN_RSA_BITS:
        raise ValueError  # not an RSA key of sufficient size
    return secret


def _sign_pss(secret: _Secret, payload: bytes) -> bytes:
    sha256 = hashes.SHA256()
    signature: bytes = secret.sign(payload, padding.PSS(padding.MGF1(sha256), sha256.digest_size), sha256)
    return signature


def _encode_ed25519(secret: _Secret) -> bytes:
    """The public key, then Go's private key, which is the seed and the public key again."""
    public = bytes(secret.verify_key)
    return public + bytes(secret) + public


def _decode_ed25519(private: bytes) -> nacl.signing.SigningKey:
    secret = nacl.signing.SigningKey(private[_SEED_BYTES : 2 * _SEED_BYTES])
    if _encode_ed25519(secret) != private:
        raise ValueError  # the parts do not belong together
    return secret


def _sign_ed25519(secret: _Secret, payload: bytes) -> bytes:
    signature: bytes = secret.sign(payload).signature
    return signature


_ALGORITHMS: Final[Mapping[str, _Algorithm]] = MappingProxyType(
    {
        "ed25519": _Algorithm(
            method="eddsa",
            generate=nacl.signing.SigningKey.generate,
            decode=_decode_ed25519,
            encode=_encode_ed25519,
            public=lambda secret: bytes(secret.verify_key),
            sign=_sign_ed25519,
        ),
        "ecdsa": _Algorithm(
            method="ecdsa",
            generate=lambda: ec.generate_private_key(ec.SECP256R1()),
            decode=_decode_ecdsa,
            encode=_traditional,
            public=_pkix,
            sign=_sign_ecdsa,
        ),
        "rsa": _Algorithm(
            method="rsapss",
            generate=lambda: rsa.generate_private_key(65537, MIN_RSA_BITS),
            decode=_decode_rsa,
            encode=_traditional,
            public=_pkix,
            sign=_sign_pss,
        ),
    }
)
