"""Unary gRPC over HTTP/2: a server and a client of calls that take bytes and return bytes.

Rules of this package: it knows no service and no Protocol Buffers. ``status`` and ``frames`` are pure; ``connection``
has the common part of both sides; ``server`` and ``client`` are Twisted shells. The HTTP/2 state machine is the
library ``h2`` (docs/adr/ says why not a whole gRPC library). Every wait has an end and every buffer a bound, and work
without use that a peer causes is counted. Everything runs on the reactor thread.
"""

from __future__ import annotations

from notary.net.grpc.client import Channel, State
from notary.net.grpc.connection import GrpcLimits
from notary.net.grpc.server import Context, GrpcFactory, Handler, Peer
from notary.net.grpc.status import RpcError, Status
from notary.work.backoff import Backoff

__all__ = [
    "Backoff",
    "Channel",
    "Context",
    "GrpcFactory",
    "GrpcLimits",
    "Handler",
    "Peer",
    "RpcError",
    "State",
    "Status",
]
