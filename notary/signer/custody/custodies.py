"""The one table of custodies.

Rules of this module: a new custody is a module in this package and a row here, above the rows of those that it goes
before. A configuration sets a custody up or not, and may let it only open keys: the first custody that is set up to
make keys makes the new ones, and each one that is set up opens the keys that it has made. Nothing else asks for a
custody by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from notary.config import SignerConfig
from notary.envelope import INSIDE
from notary.envelope import KEYWRAP as DATAKEY
from notary.signer.custody import Builder, ByKeywrap, KeyCustody, envelope, inside, jwe
from notary.tuf.jwe import KEYWRAP
from notary.work.reactor import Reactor

CUSTODIES: Final[Mapping[str, Builder]] = MappingProxyType(
    {INSIDE: inside.build, DATAKEY: envelope.build, KEYWRAP: jwe.build}
)
"""The custodies by the value of ``keywrap_alg`` in the rows that they make."""


def custody_of(current: Callable[[], SignerConfig], reactor: Reactor) -> KeyCustody:
    """Build each custody that the configuration sets up, as one. Raises ConfigError.

    ``current`` returns the configuration that is in force.
    """
    built = ((keywrap, build(current, reactor)) for keywrap, build in CUSTODIES.items())
    return ByKeywrap({keywrap: custody for keywrap, custody in built if custody is not None})
