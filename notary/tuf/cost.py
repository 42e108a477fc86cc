"""How much work an upload makes: estimated from its bytes before validation, and counted during validation.

Rules of this module: pure. Work is counted in microseconds on the machine of docs/benchmarks.md and is never timed,
so that the same upload has the same result on an idle and on a busy machine. Estimates are rather too high than too
low, and cost next to nothing themselves. :func:`notary.tuf.public.cost` knows the cost of one signature.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Final

from notary.errors import InvalidUpdate, UploadFault
from notary.tuf import public
from notary.tuf.model import ROOT, SNAPSHOT, TIMESTAMP, Held, RoleName, Upload

MAX_VERIFYING_MICROSECONDS: Final = 1_000_000
"""The limit for verifying all signatures of one upload: some 8,000 on P-256, or 1,200 on P-384 (docs/protocol.md,
section 9)."""

_BYTES_PER_MICROSECOND: Final = 10
"""How many bytes are decoded, encoded and digested, or read as a certificate, in a microsecond."""
_PUNCTUATION_MICROSECONDS: Final = 2
"""The cost of one member or element: a Python object and its share of the model."""
_SIGNATURE_MICROSECONDS: Final = 1_000
"""The cost of a signature in a stored file that has not been parsed, so that its algorithm is unknown."""

_ALWAYS_READ: Final = frozenset({ROOT, SNAPSHOT})
"""Roles whose stored file is read even if the upload has its next version."""


class VerifyingBudget:
    """How many microseconds verifying the signatures of one upload may still take."""

    def __init__(self, microseconds: int) -> None:
        self._left = microseconds

    def spend(self, microseconds: int) -> None:
        """Subtract ``microseconds`` from the budget. Raises InvalidUpdate if the budget is exceeded."""
        self._left -= microseconds
        if self._left < 0:
            raise InvalidUpdate(
                UploadFault.VALIDATION,
                "the signatures of this upload take too long to verify: remove those that no role needs, or publish "
                "fewer files at once",
            )


def estimate(
    current: Mapping[RoleName, Held], uploads: Sequence[Upload], *, root_verified: bool = False, most: int = sys.maxsize
) -> int:
    """Estimate in microseconds how long :func:`notary.tuf.validation.validate` takes; rather too high than too low.

    No key and no stored file is parsed, and signatures that no role needs count too. Counting ends above ``most``, so
    an estimate is always quick.
    """
    uploaded = {upload.role for upload in uploads}
    # Validation looks only at the version of a stored timestamp, and of a stored file that the upload replaces.
    stored = {
        role: held.data for role, held in current.items() if role in _ALWAYS_READ or role not in {*uploaded, TIMESTAMP}
    }
    total = sum([_handling(upload.data) for upload in uploads]) + sum(map(_handling, stored.values()))
    for upload in uploads:
        if total > most:
            return total
        size, signatures = len(upload.data), upload.envelope.signatures
        passes = 2 if upload.role == ROOT else 1  # a root is verified by the keys of the previous root, then by its own
        total += _reading(upload.data) + passes * sum([public.cost(signature, size) for signature in signatures])
    for role, data in stored.items():
        if total > most:
            return total
        verified = role != SNAPSHOT and not (root_verified and role == ROOT)
        total += _reading(data) + (_verifying(data) if verified else 0)
    return total


def _handling(data: bytes) -> int:
    """Estimate the microseconds to decode, encode and digest the bytes of a file."""
    return len(data) // _BYTES_PER_MICROSECOND


def _reading(data: bytes) -> int:
    """Estimate the microseconds to parse and write the structure of a file, in addition to :func:`_handling`."""
    return _PUNCTUATION_MICROSECONDS * (data.count(b",") + data.count(b"{") + data.count(b"["))


def _verifying(data: bytes) -> int:
    """Estimate the most microseconds that verifying the signatures of an unparsed file takes."""
    # Each signature has a member "sig", whose name may be written with escapes.
    return _SIGNATURE_MICROSECONDS * (data.count(b'"sig"') + data.count(b"\\u"))
