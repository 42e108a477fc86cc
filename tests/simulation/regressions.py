"""Seeds that found faults of the program, which are mended: each runs in every ``make test``.

Rules of this module: a row is a seed, the actors that it leaves out, and the planted bug (``bugs/``) that is the fault.
Any change of the program's steps may lead the seed elsewhere. ``make simulate-bugs`` shows that the simulation still
finds the fault, and with which seed, which then takes the place of the old one.
"""

from __future__ import annotations

from collections.abc import Sequence

SEEDS: Sequence[tuple[int, str, str]] = (
    (18, "", "publish-loses-to-a-renewal"),
    (800000476, "newcomer-1", "signers-late-call-forgotten"),
)
