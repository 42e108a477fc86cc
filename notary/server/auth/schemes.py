"""The one table of schemes of authentication.

Rules of this module: a new scheme is a module in this package, a row here, and its name (with its options, if it has
any) in the section ``auth`` of :mod:`notary.config`. Nothing else asks for a scheme by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from notary.server.auth import Scheme, none, token

SCHEMES: Final[Mapping[str, Scheme]] = MappingProxyType({"": none.build, "token": token.build})
"""The schemes by their name in ``auth.type``."""
