"""How the connections of a pool are used, as plain numbers that any thread may read.

Rules of this module: data only. The owner of a pool writes the numbers on the reactor's thread.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class PoolUsage:
    """The figures of one pool of connections.

    ``size`` is the largest number of connections, ``used`` the number of those that serve a call now, and ``waiting``
    the number of calls that wait for a connection. ``waits`` counts the calls that had to wait since the start, and
    ``wait_seconds`` is the sum of their waiting times.
    """

    size: int = 0
    used: int = 0
    waiting: int = 0
    waits: int = 0
    wait_seconds: float = 0.0
