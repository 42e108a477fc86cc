"""How much work metadata makes: estimated from its bytes before any of it is done, and counted while it is done.

Rules of this module: pure. Work is counted in microseconds on the machine of docs/benchmarks.md, rather too much than
too little, and never measured, so that the same upload fares alike on an idle machine and on a busy one. An estimate
costs next to nothing itself. What one signature costs says :func:`notary.tuf.public.cost`.
"""

from __future__ import annotations

from typing import Final

from notary.errors import InvalidUpdate, UploadFault

MAX_VERIFYING_MICROSECONDS: Final = 1_000_000
"""What verifying the signatures of one upload may take: some 8,000 on P-256, or 1,200 on P-384 (docs/protocol.md,
section 9)."""

_BYTES_A_MICROSECOND: Final = 10  # decoded, encoded and digested; or read as a certificate
_PUNCTUATION_MICROSECONDS: Final = 2  # a member or an element: an object of Python, and its share of the model
_SIGNATURE_MICROSECONDS: Final = 1_000  # of a stored file, where only that it is one can be seen


class Budget:
    """What may be spent on one upload, in microseconds."""

    def __init__(self, microseconds: int) -> None:
        self._left = microseconds

    def spend(self, microseconds: int) -> None:
        """Take some of it. Raises InvalidUpdate if that is more than is left."""
        self._left -= microseconds
        if self._left < 0:
            raise InvalidUpdate(
                UploadFault.VALIDATION,
                "the signatures of this upload take too long to verify: remove those that no role needs, or publish "
                "fewer files at once",
            )


def handling(data: bytes) -> int:
    """About how long the bytes of a file take to be decoded, encoded and digested. Known at once."""
    return len(data) // _BYTES_A_MICROSECOND


def reading(data: bytes) -> int:
    """About how long the structure of a file takes to be read and written, beyond :func:`handling` its bytes."""
    return _PUNCTUATION_MICROSECONDS * (data.count(b",") + data.count(b"{") + data.count(b"["))


def verifying(data: bytes) -> int:
    """About how long it takes at the most to verify the signatures in a file that has not been read."""
    # Each has a member of this name, which may be written with escapes.
    return _SIGNATURE_MICROSECONDS * (data.count(b'"sig"') + data.count(b"\\u"))
