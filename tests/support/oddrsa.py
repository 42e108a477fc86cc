"""RSA keys that no tool makes: of any size, with any public exponent.

Their moduli are products of several primes, which verifying cannot tell from the usual two; this makes large ones
quickly. Signatures are PKCS #1 v1.5 over SHA-256, by the textbook.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import rsa

_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
_PRIME_BITS = 1024

# Prime numbers, and so of use with nearly every modulus.
LARGEST_EXPONENT = 2**31 - 1
"""The largest that is allowed."""
EXPONENT_32 = 2**31 + 11
EXPONENT_63 = 2**63 - 25
EXPONENT_64 = 2**64 - 59


@functools.cache
def _primes(count: int) -> tuple[int, ...]:
    pairs = [rsa.generate_private_key(65537, 2 * _PRIME_BITS).private_numbers() for _ in range((count + 1) // 2)]
    return tuple(prime for pair in pairs for prime in (pair.p, pair.q))[:count]


@dataclass(frozen=True)
class OddKey:
    """``primes`` of 1,024 bits each make the modulus."""

    primes: int = 2
    exponent: int = 65537

    @property
    def modulus(self) -> int:
        return math.prod(_primes(self.primes))

    @property
    def public(self) -> bytes:
        """The public key, as PKIX DER. Written by hand: libraries refuse to make some of these."""
        key = _tlv(0x30, _integer(self.modulus) + _integer(self.exponent))
        algorithm = bytes.fromhex("300d06092a864886f70d0101010500")
        return _tlv(0x30, algorithm + _tlv(0x03, b"\0" + key))

    def sign(self, payload: bytes) -> bytes:
        size = (self.modulus.bit_length() + 7) // 8
        told = _DIGEST_INFO + hashlib.sha256(payload).digest()
        padded = b"\0\1" + b"\xff" * (size - len(told) - 3) + b"\0" + told
        message, modulus, signature = int.from_bytes(padded, "big"), self.modulus, 0
        for prime in _primes(self.primes):  # by the Chinese remainder theorem: quicker by far
            others = modulus // prime
            residue = pow(message, pow(self.exponent, -1, prime - 1), prime)
            signature += residue * others * pow(others, -1, prime)
        return (signature % modulus).to_bytes(size, "big")


def _integer(value: int) -> bytes:
    return _tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(digits)]) + digits + content
