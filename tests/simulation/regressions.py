"""Seeds that found faults of the program, which are mended: each runs in every ``make test``.

Rules of this module: a row is a seed, the actors that it leaves out, and what was wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

SEEDS: Sequence[tuple[int, str, str]] = (
    (
        100320,
        "publisher-1,publisher-2,reader-1,newcomer-1,follower-1,key-maker-1,watcher-1",
        "an upload was refused as old, because the server had renewed the timestamp while the upload was signed",
    ),
)
