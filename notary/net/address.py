"""notary.net.address: to be described."""

from __future__ import annotations

import socket

from twisted.internet.address import IPv4Address, IPv6Address


def name(passed: socket.socket) -> str:
    """Return the address of a socket, for a message."""
    address = passed.getsockname()
    if not isinstance(address, tuple):
        return str(address)
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_and_port(address: object) -> str:
    """Return ``host:port`` of an address, IPv4 where IPv6 only carries it, "" for what has neither."""
    if not isinstance(address, (IPv4Address, IPv6Address)):
        return ""
    host = address.host.removeprefix("::ffff:") if "." in address.host else address.host
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
