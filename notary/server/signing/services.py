"""The one table of signing services.

Rules of this module: a new service is a module in this package, a row here, and its name (with its keys, if it has any)
in the section ``trust_service`` of :mod:`notary.config`. Nothing else asks for a service by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from notary.server.signing import Builder, local, spread

SERVICES: Final[Mapping[str, Builder]] = MappingProxyType({"local": local.build, "remote": spread.build})
"""The signing services by their name in ``trust_service.type``."""
