"""Objects that stand for another one behind a port.

Rules of this module: the methods are those that the port declares, no more and no fewer, and they are plain attributes,
so that a call costs no look-up of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def port_methods(port: type) -> Sequence[str]:
    """Return the names of the methods that a Protocol declares, those of its bases included."""
    return [name for name in dir(port) if not name.startswith("_") and callable(getattr(port, name))]


class Forwarding:
    """Has the methods of ``port``; ``make_method`` returns the one of a name."""

    def __init__(self, port: type, make_method: Callable[[str], Callable[..., Any]]) -> None:
        self._port = port
        self.replace_methods(make_method)

    def replace_methods(self, make_method: Callable[[str], Callable[..., Any]]) -> None:
        """Have other methods of the same names."""
        for name in port_methods(self._port):
            setattr(self, name, make_method(name))
