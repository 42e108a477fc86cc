"""Private keys in the memory of this process, for the custodies that open them into it.

Rules of this module: a key here is quick, and its ``repr`` shows no secret.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from notary.tuf.private import PrivateKey
from notary.tuf.public import PublicKey


@dataclass(frozen=True, slots=True)
class KeyInMemory:
    """A private key in the memory of this process: see :class:`notary.signer.custody.OpenKey`.

    ``sign`` is the method of the private key itself, so that a signature costs no further call.
    """

    public: PublicKey
    method: str
    sign: Callable[[bytes], bytes] = field(repr=False)
    quick: bool = True

    @classmethod
    def of(cls, key: PrivateKey) -> KeyInMemory:
        """Return ``key`` as an open key."""
        return cls(key.public, key.method, key.sign)
