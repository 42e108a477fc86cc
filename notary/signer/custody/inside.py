"""Private keys that are made in a token, and never leave it.

Rules of this module: :mod:`notary.envelope.inside` makes and finds them, which ``notary-admin`` uses too. Tokens are
named once, when the custody is built: others need a restart.
"""

from __future__ import annotations

from collections.abc import Callable

from notary.config import SignerConfig
from notary.envelope.inside import Insides, KeyInside
from notary.envelope.schemes import open_insides
from notary.storage import StoredKey


class InsideCustody:
    """Keys in tokens; with ``makes``, new keys are made in the first of them."""

    def __init__(self, tokens: Insides, *, makes: bool = True) -> None:
        self._tokens = tokens
        self.makes = makes

    @property
    def under(self) -> str:
        """See the port."""
        return self._tokens.first.name

    def make(self, gun: str, role: str, algorithm: str) -> tuple[KeyInside, StoredKey]:
        """See the port."""
        return self._tokens.first.make(gun, role, algorithm)

    def open(self, row: StoredKey) -> KeyInside:
        """See the port."""
        return self._tokens.open(row)

    def check(self) -> None:
        """See the port."""
        self._tokens.check()

    def close(self) -> None:
        """See the port."""
        self._tokens.close()


def build(current: Callable[[], SignerConfig], _reactor: object) -> InsideCustody | None:
    """Build the custody if the configuration names a token that keeps keys inside. Raises ConfigError."""
    keys = current().storage.keys
    tokens = open_insides(keys)
    return None if tokens is None else InsideCustody(tokens, makes=keys.makes_inside)
