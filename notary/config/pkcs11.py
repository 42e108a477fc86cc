"""URIs of keys in tokens (RFC 7512), as far as a key-encrypting key, or a token that keeps keys inside, needs them.

Rules of this module: pure. A URI that is not understood whole is refused: an attribute that were ignored could mean
another key. A PIN in the URI is refused, because URIs stand in configurations and logs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from notary.config.places import MAX_CHARACTERS, name_of

SCHEME: Final = "pkcs11"
"""The scheme of a key-encrypting key in a token."""

EXPECTED: Final = "pkcs11:token=NAME;object=NAME?module-path=/PATH&pin-source=file:/PATH"
"""The form of such a URI; ``serial`` and ``id`` may be given too, and ``id`` in place of ``object``."""

_PATH: Final = frozenset({"token", "serial", "object", "id", "type"})
_QUERY: Final = frozenset({"module-path", "pin-source"})
_KEEP: Final = "keep"
"""The attribute, with the value "inside", of a token in which private keys are made, and which they never leave."""
_VALUE = re.compile(r"(?:[^%\s]|%[0-9A-Fa-f]{2})+")


@dataclass(frozen=True, slots=True)
class TokenKey:
    """Where a key is: its token, by label or serial number, and the object in it, by label or id.

    With ``inside`` there is no object: private keys are made in the token.
    """

    module_path: str
    pin_path: str
    token: str
    serial: str
    object: str
    id: bytes
    inside: bool = False

    @property
    def name(self) -> str:
        """A name of the place: it changes with the token and the object, not with the paths of module and PIN."""
        place = f"{self.token}\0{self.serial}\0{self.object}\0{self.id.hex()}"
        return name_of("inside" if self.inside else SCHEME, place)

    def __str__(self) -> str:
        given = {"token": self.token, "serial": self.serial, "object": self.object, "id": self.id.hex()}
        return ", ".join(f"{name} {value!r}" for name, value in given.items() if value)


def parse(place: str) -> TokenKey:
    """Read what follows the scheme in a URI. Raises ValueError."""
    if len(place) > MAX_CHARACTERS:
        raise ValueError("too long")
    path, _, query = place.partition("?")
    found = _attributes(path.split(";"), _PATH)
    asked = _attributes(query.split("&"), _QUERY | {_KEEP})
    if asked.pop(_KEEP, b"inside") != b"inside" or not asked.keys() >= _QUERY:
        raise ValueError("an attribute is missing, or has a value that is unknown")
    inside = f"{_KEEP}=inside" in query.split("&")
    pin = _text(asked["pin-source"]).removeprefix("file:")
    pin = pin.removeprefix("//") if pin.startswith("///") else pin
    key = TokenKey(
        module_path=_text(asked["module-path"]),
        pin_path=pin,
        token=_text(found.get("token", b"")),
        serial=_text(found.get("serial", b"")),
        object=_text(found.get("object", b"")),
        id=found.get("id", b""),
        inside=inside,
    )
    if not (key.token or key.serial) or found.get("type", b"secret-key") != b"secret-key":
        raise ValueError("no token, or an object of another type")
    if inside == bool(key.object or key.id):
        raise ValueError("no object, or one although keys are made in the token")
    if not key.module_path.startswith("/") or not pin.startswith("/") or pin.startswith("//"):
        raise ValueError("a path that is not absolute")
    return key


def _attributes(parts: list[str], known: frozenset[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in parts:
        name, _, value = part.partition("=")
        if name not in known or name in found or _VALUE.fullmatch(value) is None:
            raise ValueError("an attribute that is unknown, empty or given twice")
        found[name] = unquote_to_bytes(value)
    return found


def _text(value: bytes) -> str:
    text = value.decode("utf-8")
    if not text.isprintable():
        raise ValueError("a character that is not printable")
    return text
