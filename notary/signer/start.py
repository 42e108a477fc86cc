"""How the signer starts: it hides what its environment holds, and only then loads the program.

Rules of this module: nothing slow is imported before the process is hidden, since loading Twisted and the rest takes
half a second, in which every process of the same user could read the passphrases. ``notary-signer`` and its workers
call ``main``; ``twistd`` asks for ``Options`` and ``makeService``, once it knows that it is to be the signer. What they
are is named, not imported: this module stands below the tap, as the plugins do.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

from notary.net.environment import first_environment
from notary.signer import memory

_PREFIX: Final = "NOTARY_SIGNER_"
_TAP: Final = "notary.signer.tap"


def begin() -> Mapping[str, str]:
    """Hide this process; return the environment that it was started with."""
    first = first_environment()  # while it can be read
    with suppress(OSError):  # the same is tried again, and reported, when there is a log
        memory.hide()
    memory.scrub(name for name in os.environ if name.startswith(_PREFIX))
    return first


def main() -> None:
    """The console script: the daemon in the foreground."""
    first = begin()
    importlib.import_module(_TAP).main(first)


def __getattr__(name: str) -> Any:
    """What ``twistd`` asks for. A name that has been asked for is a plain attribute from then on."""
    if name not in ("Options", "makeService"):
        raise AttributeError(name)
    first = begin()
    tap = importlib.import_module(_TAP)
    found: dict[str, Any] = {"Options": tap.Options, "makeService": partial(tap.makeService, first=first)}
    globals().update(found)
    return found[name]
