"""The environment that this process was started with.

Rules of this module: it imports nothing slow, because it is called before the signer hides its environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping


def first_environment() -> Mapping[str, str]:
    """Return the environment as it was when this process began.

    Twisted takes the variables of passed sockets out of ``os.environ`` when it is imported. Call it before the process
    protects its memory, which hides this from itself too.
    """
    try:
        with open("/proc/self/environ", "rb") as file:  # noqa: PTH123 - pathlib is slow to import
            data = file.read()
    except OSError:
        return os.environ
    pairs = (os.fsdecode(entry).partition("=") for entry in data.split(b"\0") if entry)
    return {name: value for name, _, value in pairs}
