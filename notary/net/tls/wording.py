"""How messages about TLS name what an operator has set.

Rules of this module: pure. This package knows no configuration; a caller that does gives its names here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Wording:
    """The names of the settings of one side of TLS.

    ``cert_file`` and ``key_file`` are what this side shows, ``trusted`` is the file of the certificates that it trusts,
    and ``client_cert`` is what a client sets to show a certificate.
    """

    cert_file: str = "the certificate file"
    key_file: str = "the private key file"
    trusted: str = "the trusted certificates"
    client_cert: str = "a client certificate"


PLAIN: Final = Wording()
"""For a caller that has no names of its own."""
