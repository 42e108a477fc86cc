"""The budget of request bodies: how many bytes are held, for which peer, and how slowly a body may arrive.

Rules of this module: pure. Only bytes that have arrived are counted: an announced length costs the client nothing, so
it reserves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from ipaddress import AddressValueError, IPv6Address
from typing import Final

from notary.net.http.call import Call

BLOCK_BYTES: Final = 1 << 20
"""The size of all blocks of a body but the last."""

_INTERFACE_BITS: Final = 64  # of an IPv6 address: its owner has all addresses that differ only in these bits


class BodyBudget:
    """Counts the bytes of bodies that are held: at most ``total`` together, at most ``share`` for one peer."""

    def __init__(self, total: int, share: int) -> None:
        self.held = 0
        self._total = total
        self._share = share
        self._by_peer: dict[str, int] = {}

    @property
    def peers(self) -> int:
        """The number of peers with bytes that are held."""
        return len(self._by_peer)

    def take(self, peer: str, size: int) -> bool:
        """Count ``size`` more bytes for ``peer``. Returns False, and counts nothing, if that would be too much."""
        theirs = self._by_peer.get(peer, 0) + size
        if self.held + size > self._total or theirs > self._share:
            return False
        self.held += size
        if theirs:
            self._by_peer[peer] = theirs
        return True

    def give_back(self, peer: str, size: int) -> None:
        """Stop counting ``size`` bytes that ``take`` has counted."""
        self.held -= size
        left = self._by_peer[peer] - size
        if left:
            self._by_peer[peer] = left
        else:
            del self._by_peer[peer]


class Received:
    """The content of one body as it arrives: in blocks, so that a reader can release each block that it has read."""

    def __init__(self) -> None:
        self.size = 0
        self._full: list[bytes] = []
        self._last = BytesIO()

    def write(self, data: bytes) -> None:
        """Add ``data``."""
        self.size += len(data)
        position = 0
        while (room := BLOCK_BYTES - self._last.tell()) <= len(data) - position:
            self._last.write(data[position : position + room])
            position += room
            self._end_block()
        self._last.write(data[position:])

    def take(self) -> Sequence[bytes]:
        """Return the blocks and release them. All have BLOCK_BYTES but the last one."""
        if self._last.tell():
            self._end_block()
        blocks, self._full = self._full, []
        return blocks

    def _end_block(self) -> None:
        self._full.append(self._last.getvalue())  # no copy: it shrinks to what was written
        self._last = BytesIO()


def peer_of(call: Call) -> str:
    """Return the name under which the client of ``call`` is counted.

    It is the subject that the application has authenticated (``notes["user"]``), else the network address. All IPv6
    addresses of one /64 count as one, because their owner can use any of them. Behind a proxy, all clients without a
    subject have the address of the proxy, and all clients of a Unix socket are one.
    """
    user = call.notes.get("user")
    return f"user {user}" if user else f"address {_network(call.remote.rpartition(':')[0])}"


def _network(host: str) -> str:
    try:
        address = IPv6Address(host.strip("[]"))
    except AddressValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Address(int(address) >> _INTERFACE_BITS << _INTERFACE_BITS)) + f"/{_INTERFACE_BITS}"


def body_deadline(deadline: float, now: float, size: int, rate: float, patience: float) -> float:
    """Return the new deadline of a body, of which ``size`` bytes arrived ``now``, before the old ``deadline``.

    Each byte adds the time that it takes at ``rate`` bytes a second, but the deadline is never more than ``patience``
    seconds away. So a body cannot stand still for longer than ``patience``, and cannot stay below ``rate`` for long,
    even if it began fast.
    """
    return min(deadline + size / rate, now + patience)
