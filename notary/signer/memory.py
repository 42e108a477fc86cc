"""What keeps the signer's secrets from other processes of its user (Linux).

Rules of this module: it imports nothing slow, because it is called before anything else is loaded. The environment of a
process is read through ``/proc`` as its memory is, so that both are hidden by the same flag of the kernel.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterable
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def hide() -> None:
    """Keep memory and environment of this process from other processes of its user, until ``show`` is called.

    Raises OSError if that is not possible.
    """
    _set_dumpable(0)


def show() -> None:
    """Allow debuggers of the same user again. Raises OSError."""
    _set_dumpable(1)


def protect() -> None:
    """Hide this process, and keep its memory out of core files, for good. Raises OSError if that is not possible."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hide()


def scrub(names: Iterable[str]) -> None:
    """Overwrite the values of variables where the kernel shows them; ``os.environ`` keeps its own copy."""
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    libc.getenv.argtypes = [ctypes.c_char_p]
    for name in names:
        address = libc.getenv(os.fsencode(name))
        if address:
            ctypes.memset(address, ord("*"), len(ctypes.string_at(address)))


def _set_dumpable(value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the memory of this process cannot be protected: {os.strerror(number)}")
