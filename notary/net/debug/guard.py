"""Which requests the debug server answers: those of programs on this host, and of nobody's web pages.

Rules of this module: pure. A browser on the host reaches the server for every page that is open in it. A page whose own
name leads to this host (DNS rebinding) is told by the Host that it asks for: the page cannot choose one that is not its
own name, and no such name is an address or ``localhost``. A page that asks across sites is told by what browsers add to
such requests. Programs add nothing and are not concerned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final

_AUTHORITY: Final = re.compile(r"(?:\[([^\[\]]*)\]|([^\[\]:]*))(?::[0-9]*)?")
_OURS: Final = frozenset({"none", "same-origin"})
_HOST_REFUSED: Final = "only requests for localhost, 127.0.0.1 or [::1] are answered; ask for one of these names"
_SITE_REFUSED: Final = (
    "requests that a web page of another site causes are not answered; type the address, or ask with curl"
)


def refusal(headers: Mapping[str, str], *, local: bool) -> str | None:
    """Why a request with these ``headers`` (by lower-cased names) is not answered; None if it may be.

    ``local`` says that the server listens on loopback. Elsewhere its names are not known, and every Host is taken.
    """
    host = headers.get("host", "").lower()
    if local and not _is_loopback(host):
        return _HOST_REFUSED
    if headers.get("sec-fetch-site", "none") not in _OURS:
        return _SITE_REFUSED
    for name in ("origin", "referer"):
        given = headers.get(name)
        if given is not None and _authority(given) != host:
            return _SITE_REFUSED
    return None


def _is_loopback(authority: str) -> bool:
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        return False
    name = found[1] or found[2] or ""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _authority(url: str) -> str:
    """The host and port of an ``http`` URL; "" for any other."""
    scheme, _, rest = url.lower().partition("://")
    return rest.partition("/")[0] if scheme == "http" else ""
