"""The limits of an HTTP client.

Rules of this module: pure values.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """The limits of a client. Sizes are in bytes; times are in seconds and exact to one second.

    ``body`` bounds the bodies of requests that take one; of the bodies of other requests at most ``other_body`` bytes
    are read and dropped. ``bodies`` bounds what is held of the bodies of all requests together, and ``peer_bodies`` of
    those of one peer (see ``bodies.peer_of``); one body of the largest size always has room when there is no other.
    ``answers`` bounds the large answers that clients are still reading, each body counted once; one answer has room
    when there is no other. ``head`` bounds a request line and its fields together.

    A request line and its fields must be complete ``head_seconds`` after their first byte. A connection may wait
    ``idle_seconds`` for its next request. A body may stand still for ``body_seconds``, and must in the long run come at
    ``body_rate`` bytes a second. A client that reads nothing of an answer for ``write_seconds`` is dropped. After a
    refusal, input is read and dropped for ``linger_seconds``, so that the client can read the answer before the
    connection is closed.
    """

    body: int = 100 * 1024 * 1024
    other_body: int = 4 * 1024
    bodies: int = 400 * 1024 * 1024
    peer_bodies: int = 100 * 1024 * 1024
    answers: int = 256 * 1024 * 1024
    request_line: int = 8 * 1024
    head: int = 32 * 1024
    fields: int = 100
    head_seconds: float = 10.0
    idle_seconds: float = 75.0
    body_seconds: float = 30.0
    body_rate: float = 1024.0
    write_seconds: float = 30.0
    linger_seconds: float = 5.0
