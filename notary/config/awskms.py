"""URIs of keys of AWS KMS.

Rules of this module: pure. A URI that is not understood whole is refused. No credential stands in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from notary.config.places import MAX_CHARACTERS, attributes, name_of

SCHEME: Final = "awskms"
"""The scheme of a key-encrypting key in AWS KMS."""

EXPECTED: Final = "awskms:arn:aws:kms:REGION:ACCOUNT:key/ID"
"""The form of such a URI; docs/keys.md has what may follow."""

_ARN: Final = re.compile(r"arn:aws[a-z-]*:kms:([a-z0-9-]+):([0-9]{12}):key/([A-Za-z0-9-]+)")
_OPTIONS: Final = frozenset({"endpoint", "ca-file", "profile"})


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
        return name_of(SCHEME, self.place)

    def __str__(self) -> str:
        return self.arn


def parse(place: str) -> KmsKey:
    """Read what follows the scheme in a URI. Raises ValueError."""
    if len(place) > MAX_CHARACTERS or not place.isprintable():
        raise ValueError("too long, or a character that is not printable")
    arn, mark, query = place.partition("?")
    found = _ARN.fullmatch(arn)
    if found is None:
        raise ValueError("no ARN of a key; an alias may become that of another key")
    options = attributes(query) if mark else {}
    if not options.keys() <= _OPTIONS:
        raise ValueError("an attribute that is unknown")
    endpoint, ca_path = options.get("endpoint", ""), options.get("ca-file", "")
    if endpoint and (urlsplit(endpoint).scheme != "https" or not urlsplit(endpoint).hostname or "@" in endpoint):
        raise ValueError("an endpoint that is not https://HOST")
    if ca_path and not ca_path.startswith("/"):
        raise ValueError("a path that is not absolute")
    region, account, key_id = found.groups()
    return KmsKey(arn, region, f"{account}:key/{key_id}", endpoint, ca_path, options.get("profile", ""))
