"""The variables with which Kubernetes describes the services of a namespace to every container in it.

Rules of this module: pure. A service that is called notary-server has variables that begin like those of our keys
(``NOTARY_SERVER_PORT=tcp://10.3.0.7:4443``); they are known by the end of the name and the form of the value together,
so that no passphrase is taken for one of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_ADDRESS: Final = r"(?:[0-9.]{7,15}|[0-9a-f:]{2,39})"
_NUMBER: Final = r"[0-9]{1,5}"
_PROTOCOL: Final = r"(?:tcp|udp|sctp)"
_URL: Final = rf"{_PROTOCOL}://[][0-9a-z.:-]{{1,60}}:{_NUMBER}"
_PORT: Final = rf"PORT_{_NUMBER}_(?:TCP|UDP|SCTP)"

_LINK: Final = re.compile(
    r"(?:[A-Z0-9_]+_)?(?:"
    rf"SERVICE_HOST={_ADDRESS}|SERVICE_PORT(?:_[A-Z0-9_]{{1,63}})?={_NUMBER}|PORT={_URL}|{_PORT}={_URL}|"
    rf"{_PORT}_PROTO={_PROTOCOL}|{_PORT}_PORT={_NUMBER}|{_PORT}_ADDR={_ADDRESS}"
    r")"
)


def service_links(variables: Mapping[str, str], prefix: str) -> list[str]:
    """Return the names of those variables, all of which begin with ``prefix``, that Kubernetes made; sorted."""
    return sorted(name for name, value in variables.items() if _LINK.fullmatch(f"{name.removeprefix(prefix)}={value}"))
