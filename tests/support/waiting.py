"""Waiting for what a process does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_SECONDS = 60.0
"""What has not come to pass after so long never will."""


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition`` holds; ``what`` says what never came to pass if it does not."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)
