"""Addresses as text: one form for logs, messages and limits.

Rules of this module: no input or output. An IPv6 address is in brackets before its port; an IPv4-mapped IPv6 address
is written as IPv4.
"""

from __future__ import annotations

import socket

from twisted.internet.address import IPv4Address, IPv6Address


def name_of(passed: socket.socket) -> str:
    """Return the address to which a socket is bound: ``host:port``, or the path of a Unix socket."""
    address = passed.getsockname()
    return join(*address[:2]) if isinstance(address, tuple) else str(address)


def host_and_port(address: object) -> str:
    """Return ``host:port`` of an Internet address, or "" for an address of another kind."""
    return join(address.host, address.port) if isinstance(address, (IPv4Address, IPv6Address)) else ""


def host_of(address: object) -> str:
    """Return the host of an Internet address, or "" for an address of another kind."""
    return address.host if isinstance(address, (IPv4Address, IPv6Address)) else ""


def join(host: str, port: int) -> str:
    """Return ``host:port``."""
    if "." in host:
        host = host.removeprefix("::ffff:")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
