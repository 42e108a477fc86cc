"""URIs of keys of AWS KMS.

Rules of this module: pure. A URI that is not understood whole is refused. No credential stands in it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlsplit

SCHEME: Final = "awskms"
"""The scheme of a key-encrypting key in AWS KMS."""

EXPECTED: Final = "awskms:arn:aws:kms:REGION:ACCOUNT:key/ID"
"""The form of such a URI; docs/keys.md has what may follow."""

_MAX_CHARACTERS: Final = 2048
_ARN: Final = re.compile(r"arn:aws[a-z-]*:kms:([a-z0-9-]+):([0-9]{12}):key/([A-Za-z0-9-]+)")
_OPTIONS: Final = frozenset({"endpoint", "ca-file", "profile"})
_NAME_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class KmsKey:
    """Where a key is: its ARN, and what differs from the usual way to reach it."""

    arn: str
    region: str
    place: str
    endpoint: str = ""
    ca_path: str = ""
    profile: str = ""

    @property
    def name(self) -> str:
        """A name of the key: that of its account and its id, since a key may have replicas in several regions."""
        return f"{SCHEME}-{hashlib.sha256(self.place.encode()).hexdigest()[:_NAME_DIGITS]}"

    def __str__(self) -> str:
        return self.arn


def parse(place: str) -> KmsKey:
    """Read what follows the scheme in a URI. Raises ValueError."""
    if len(place) > _MAX_CHARACTERS or not place.isprintable():
        raise ValueError("too long, or a character that is not printable")
    arn, mark, query = place.partition("?")
    found = _ARN.fullmatch(arn)
    if found is None:
        raise ValueError("no ARN of a key; an alias may become that of another key")
    pairs = parse_qsl(query, strict_parsing=True) if mark else []
    options = dict(pairs)
    if len(options) != len(pairs) or not options.keys() <= _OPTIONS or not all(map(str.isprintable, options.values())):
        raise ValueError("an attribute that is unknown or given twice")
    endpoint, ca_path = options.get("endpoint", ""), options.get("ca-file", "")
    if endpoint and (urlsplit(endpoint).scheme != "https" or not urlsplit(endpoint).hostname or "@" in endpoint):
        raise ValueError("an endpoint that is not https://HOST")
    if ca_path and not ca_path.startswith("/"):
        raise ValueError("a path that is not absolute")
    region, account, key_id = found.groups()
    return KmsKey(arn, region, f"{account}:key/{key_id}", endpoint, ca_path, options.get("profile", ""))
