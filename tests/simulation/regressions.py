"""Seeds that found faults of the program, which are mended: each runs in every ``make test``.

Rules of this module: a row is a seed, the actors that it leaves out, and the planted bug (``bugs/``) that is the fault.
Any change of the program's steps may lead the seed elsewhere; that the simulation still finds the fault is shown by
``make simulate-bugs``.
"""

from __future__ import annotations

from collections.abc import Sequence

SEEDS: Sequence[tuple[int, str, str]] = (
    (
        100320,
        "publisher-1,publisher-2,reader-1,newcomer-1,follower-1,key-maker-1,watcher-1",
        "publish-loses-to-a-renewal",
    ),
    (800000476, "newcomer-1", "signers-late-call-forgotten"),
)
