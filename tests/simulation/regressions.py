"""Seeds that found faults of the program, which are mended: each runs in every ``make test``.

Rules of this module: a row is a seed, the actors that it leaves out, and the planted bug (``bugs/``) that is the fault.
With that bug the seed must fail. A change of the simulation may end that; then take the first seed that
``make simulate-bugs BUGS=name`` finds.
"""

from __future__ import annotations

from collections.abc import Sequence

SEEDS: Sequence[tuple[int, str, str]] = (
    (37, "key-maker-1,intruder-1", "publish-loses-to-a-renewal"),
    (800000476, "newcomer-1", "signers-late-call-forgotten"),
)
