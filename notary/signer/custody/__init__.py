"""Who holds the private keys of the signer: the port.

Rules of this package: each custody is a module beside this one and a row in :mod:`notary.signer.custody.custodies`. The
column ``keywrap_alg`` of a stored key says which custody has made the key, and so which one opens it. Every custody
passes the contract in ``tests/signer/custody/test_contract.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from notary.config import SignerConfig
from notary.errors import SigningFailed
from notary.storage import StoredKey
from notary.tuf.canonical import quote
from notary.tuf.public import PublicKey
from notary.work.reactor import Reactor


class OpenKey(Protocol):
    """A private key that can sign now. Its ``repr`` shows no secret."""

    @property
    def public(self) -> PublicKey:
        """The public half."""
        ...

    @property
    def method(self) -> str:
        """The method of the key's signatures (docs/protocol.md, section 2)."""
        ...

    @property
    def quick(self) -> bool:
        """Whether the key signs within a millisecond or two, without waiting: then it signs on the reactor's thread."""
        ...

    def sign(self, payload: bytes, /) -> bytes:
        """The raw signature over ``payload``, which is the whole message, not a digest. Raises SigningFailed.

        A key that is not ``quick`` blocks, is called in a thread, and may be called in several at the same time.
        """
        ...


class KeyCustody(Protocol):
    """Makes private keys, and opens the keys that it has made. The methods block: call them in a thread."""

    @property
    def makes(self) -> bool:
        """Whether the configuration lets this custody make new keys, not only open those that it has made."""
        ...

    @property
    def under(self) -> str:
        """What new keys are under, as their rows say: the alias of a passphrase, or the name of what encrypts them."""
        ...

    def make(self, gun: str, role: str, algorithm: str) -> tuple[OpenKey, StoredKey]:
        """Make a key; return it, and the row to store.

        Raises UnsupportedAlgorithm, SigningFailed, CustodyUnavailable. The row is pending: its ``last_used`` is None.
        """
        ...

    def open(self, row: StoredKey) -> OpenKey:
        """Open a stored key. Raises SigningFailed, UnsupportedAlgorithm, CustodyUnavailable."""
        ...

    def check(self) -> None:
        """Find out whether the machine that the keys need can be used. Raises CustodyUnavailable."""
        ...

    def close(self) -> None:
        """Release processes and connections; the custody cannot be used afterwards."""
        ...


Builder: TypeAlias = Callable[[Callable[[], SignerConfig], Reactor], KeyCustody | None]
"""Builds a custody; None if the configuration does not set it up. Raises ConfigError.

The first argument returns the configuration that is in force, which a reload replaces. The reactor is for machines
behind the network.
"""


class ByKeywrap:
    """Several custodies as one: a stored key is opened by the custody that has made it.

    Args:
        custodies: The custodies by the value of ``keywrap_alg`` in the rows that they make. The first one that may make
            keys makes the new ones; at least one may.
    """

    makes = True

    def __init__(self, custodies: Mapping[str, KeyCustody]) -> None:
        self._custodies = custodies
        self._first = next(custody for custody in custodies.values() if custody.makes)

    @property
    def under(self) -> str:
        """See the port."""
        return self._first.under

    def make(self, gun: str, role: str, algorithm: str) -> tuple[OpenKey, StoredKey]:
        """See the port."""
        return self._first.make(gun, role, algorithm)

    def open(self, row: StoredKey) -> OpenKey:
        """See the port. Raises SigningFailed too if no custody opens such rows."""
        custody = self._custodies.get(row.keywrap_alg)
        if custody is None:
            raise SigningFailed(
                f"key {row.key_id} has keywrap_alg {quote(row.keywrap_alg)}, which this signer is not set up to open; "
                f"it opens {', '.join(self._custodies)}"
            )
        return custody.open(row)

    def check(self) -> None:
        """See the port."""
        for custody in self._custodies.values():
            custody.check()

    def close(self) -> None:
        """See the port."""
        for custody in self._custodies.values():
            custody.close()
