"""How ``notary-admin`` starts: signals end it from its first moment on, and only then is the program loaded.

Rules of this module: nothing slow is imported before the signals are set. Loading the program takes half a second, in
which Ctrl-C would otherwise end in a traceback.
"""

from __future__ import annotations

import importlib
import os
import signal
from typing import Final

_INTERRUPTED: Final = 130
"""The exit status ``Status.INTERRUPTED``, which is not loaded yet."""


def main() -> None:
    """Run the console script."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(_INTERRUPTED))
    importlib.import_module("notary.admin.cli").main()
